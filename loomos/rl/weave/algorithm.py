"""WEAVE for programs that collect their own experience."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from loomos.errors import InvalidInput
from loomos.manifest import ExplorationStrategy, RewardThread, WeaveConfig
from loomos.rl.environments.task import ACTIONS, OBSERVATION_SIZE
from loomos.rl.policies import average_weights, make_agent
from loomos.rl.trainer import Trajectories, read_trajectories, rollout_of
from loomos.rl.weave.agent import WeaveAgent
from loomos.rl.weave.weave import Weave


@dataclass(frozen=True, kw_only=True)
class WeaveShape:
    """What an algorithm sees and does, and how it learns."""

    state_dim: int
    """Numbers of a state."""
    action_dim: int
    """Discrete actions."""
    settings: WeaveConfig
    """All else."""


class WeaveAlgorithm:
    """An agent in this process; for a training that must survive, see `algorithm: weave`."""

    def __init__(
        self,
        settings: WeaveConfig | None = None,
        *,
        state_dim: int = OBSERVATION_SIZE,
        action_dim: int = ACTIONS,
        num_nodes: int = 1,
    ) -> None:
        """Make one; by default it fits every environment of `LoomRLGym`.

        Args:
            settings: how it learns.
            state_dim: numbers of a state.
            action_dim: discrete actions.
            num_nodes: learners that specialise in the threads by turns; after each step their
                parameters are averaged.

        Raises:
            InvalidInput: there are no nodes.
        """
        if num_nodes < 1:
            raise InvalidInput(f"num_nodes is {num_nodes}; at least one node learns")
        given = settings or WeaveConfig()
        self.config = WeaveShape(state_dim=state_dim, action_dim=action_dim, settings=given)
        self.nodes = [
            self._make_node(preference, given.seed + node)
            for node, preference in enumerate(node_preferences(given, num_nodes))
        ]
        """The learners. Between steps they have the same parameters."""
        self._weave = self.nodes[0]
        self._generator = torch.Generator().manual_seed(given.seed)

    def _make_node(self, preference: list[float], seed: int) -> Weave:
        settings = self.config.settings.model_copy(update={"thread_weights": preference})
        space = gymnasium.spaces.Discrete(self.config.action_dim)
        agent = make_agent(settings, self.config.state_dim, space)
        assert isinstance(agent, WeaveAgent)
        return Weave(
            agent,
            settings,
            observation_size=self.config.state_dim,
            copies=1,
            generator=torch.Generator().manual_seed(seed),
        )

    @torch.no_grad()
    def get_action(self, state: NDArray[Any]) -> tuple[int, float, float]:
        """Sample an action for a state [state_dim].

        Returns:
            The action, its log-probability under the whole mixture, and the state's value: that of
            the threads by their present weights.

        Raises:
            InvalidInput: the state has another size.
        """
        row = np.asarray(state, np.float32).reshape(-1)
        if len(row) != self.config.state_dim:
            raise InvalidInput(
                f"a state of {len(row)} numbers; this algorithm takes {self.config.state_dim}"
            )
        acted = self._weave.agent.act(torch.from_numpy(row[None]), self._generator)
        weights = torch.from_numpy(self._weave.threads.weights).float()
        value = (acted.values[0, : len(weights)] * weights).sum()
        return int(acted.actions[0]), float(acted.log_probs[0]), float(value)

    def train_step(self, batch: Trajectories | Mapping[str, Any]) -> dict[str, float]:
        """Learn from steps that follow each other: every node by its threads, then all together.

        Args:
            batch: `states` [B, state_dim], `actions` [B], `log_probs` [B], `dones` [B], and
                `rewards` [B] of the first thread, or [B, H] of all, in the order of
                `reward_threads`.

        Returns:
            `actor_loss`, `critic_loss`, `entropy`, `kl_div` and others, means over the update.

        Raises:
            InvalidInput: a field is missing or of another shape than the rest.
        """
        fields = batch._asdict() if isinstance(batch, Trajectories) else dict(batch)
        if fields.get("rewards") is None:
            raise InvalidInput("trajectories.rewards is missing")
        rewards = np.asarray(fields["rewards"], np.float32)
        threads = len(self.config.settings.reward_threads)
        if rewards.ndim == 1:
            rewards = np.pad(rewards[:, None], ((0, 0), (0, threads - 1)))
        if rewards.shape[1:] != (threads,):
            raise InvalidInput(
                f"trajectories.rewards has shape {list(rewards.shape)}; give one number a step, or "
                f"{threads}, one for each thread"
            )
        given = read_trajectories({**fields, "rewards": rewards[:, 0]})
        given = given._replace(rewards=rewards[:, None])
        rollout = rollout_of(given, self._weave.agent)
        found = [node.update(rollout, remaining=1.0) for node in self.nodes]
        self._merge()
        metrics = {name: sum(of[name] for of in found) / len(found) for name in found[0]}
        return {
            **metrics,
            "actor_loss": metrics["policy_loss"],
            "critic_loss": metrics["value_loss"],
        }

    def _merge(self) -> None:
        """Give all nodes the average of their parameters; optimizers stay their own."""
        if len(self.nodes) == 1:
            return
        mean = average_weights([node.agent.state_dict() for node in self.nodes])
        for node in self.nodes:
            node.agent.load_state_dict(mean)


def create_weave_algorithm(
    exploration_strategies: Iterable[ExplorationStrategy | str] = (),
    reward_threads: Iterable[RewardThread | str] = (),
    *,
    state_dim: int = OBSERVATION_SIZE,
    action_dim: int = ACTIONS,
    num_nodes: int = 1,
    **settings: Any,
) -> WeaveAlgorithm:
    """A WEAVE with these strategies and threads.

    Args:
        exploration_strategies: what drives exploration; none for none.
        reward_threads: what is rewarded; by default the task.
        state_dim: numbers of a state.
        action_dim: discrete actions.
        num_nodes: learners that specialise in the threads by turns.
        settings: fields of `WeaveConfig`.

    Raises:
        ValueError: there is no such strategy or thread.
        pydantic.ValidationError: a setting is unknown or out of range.
    """
    threads = [RewardThread(thread) for thread in reward_threads]
    config = WeaveConfig(
        exploration_strategies=[ExplorationStrategy(s) for s in exploration_strategies],
        reward_threads=threads or [RewardThread.TASK_COMPLETION],
        **settings,
    )
    return WeaveAlgorithm(config, state_dim=state_dim, action_dim=action_dim, num_nodes=num_nodes)


def node_preferences(settings: WeaveConfig, nodes: int) -> list[list[float]]:
    """Weights of the threads for each node, summing to 1.

    A single node wants what the settings say. Of several, node n has half of its weight on thread
    n, by turns, and the other half as the settings say.
    """
    count = len(settings.reward_threads)
    wanted = np.asarray(settings.thread_weights or [1.0] * count)
    wanted = wanted / wanted.sum()
    if nodes == 1 or count == 1:
        return [wanted.tolist()] * nodes
    own = np.eye(count)
    return [((wanted + own[node % count]) / 2).tolist() for node in range(nodes)]
