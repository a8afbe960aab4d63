"""PPO equals Stable-Baselines3's number for number, and keeps the laws that it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import PPO as TheirPPO
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from loomos.errors import InvalidInput
from loomos.manifest import PPOConfig
from loomos.rl.advantages import explained_variance, gae, normalize
from loomos.rl.losses import ppo_loss
from loomos.rl.networks import ActorCritic, Categorical, DiagonalGaussian
from loomos.rl.normalizing import ObservationScale, RewardScale
from loomos.rl.pool import EnvironmentPool, episode_seed
from loomos.rl.ppo import PPO
from loomos.rl.rollouts import Collector, Rollout
from loomos.rl.trainer import PPOTrainer, collect_trajectories


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """One thread: more only get in each other's way at this size."""
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(ours: Tensor, theirs: Any, tolerance: float = 1e-5) -> bool:
    """Relative difference, by the largest element."""
    other = torch.as_tensor(theirs, dtype=ours.dtype).reshape(ours.shape)
    return float((ours - other).abs().max() / other.abs().max()) < tolerance


# --- equality with the reference ----------------------------------------------------------------


def random_rollout(steps: int = 64, copies: int = 4) -> Rollout:
    agent = ActorCritic(3, gymnasium.spaces.Discrete(5), hidden_sizes=[16])
    observations = torch.randn(steps, copies, 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        acted = agent.act(observations, generator)
    last = torch.randn(1, copies, 1)
    return Rollout(
        observations=observations,
        actions=acted.actions,
        log_probs=acted.log_probs + 0.1 * torch.randn(steps, copies),
        rewards=torch.randn(steps, copies, 1),
        values=acted.values,
        next_values=torch.cat([acted.values[1:], last]),
        terminated=torch.rand(steps, copies) < 0.1,
        truncated=torch.zeros(steps, copies, dtype=torch.bool),
    )


def their_buffer(rollout: Rollout, size: int) -> RolloutBuffer:
    steps, copies = rollout.rewards.shape[:2]
    buffer = RolloutBuffer(
        steps,
        gymnasium.spaces.Box(-np.inf, np.inf, (size,)),
        gymnasium.spaces.Discrete(5),
        device="cpu",
        gae_lambda=0.9,
        gamma=0.97,
        n_envs=copies,
    )
    starts = np.ones(copies)
    for step in range(steps):
        buffer.add(
            rollout.observations[step].numpy(),
            rollout.actions[step].numpy()[:, None],
            rollout.rewards[step, :, 0].numpy(),
            starts,
            rollout.values[step, :, 0],
            rollout.log_probs[step],
        )
        starts = rollout.terminated[step].numpy().astype(float)
    buffer.compute_returns_and_advantage(rollout.next_values[-1, :, 0], starts)
    return buffer


def test_advantages_equal_those_of_stable_baselines3() -> None:
    rollout = random_rollout()
    advantages, returns = gae(
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        gamma=0.97,
        gae_lambda=0.9,
    )
    buffer = their_buffer(rollout, 3)
    assert close(advantages, buffer.advantages)
    assert close(returns, buffer.returns)


def test_loss_and_gradients_equal_those_of_stable_baselines3() -> None:
    """Their own `PPO.train` on the same buffer and weights, caught at the optimizer's step."""
    config = PPOConfig(
        batch_size=256,
        minibatch_size=256,
        n_epochs=1,
        n_environments=4,
        gamma=0.97,
        gae_lambda=0.9,
        entropy_coef=0.01,
        max_grad_norm=None,
        hidden_sizes=[64, 64],
    )
    rollout = random_rollout()
    theirs = TheirPPO(
        "MlpPolicy",
        SyncVectorEnvOfFive(),
        n_steps=64,
        batch_size=256,
        n_epochs=1,
        gamma=0.97,
        gae_lambda=0.9,
        ent_coef=0.01,
        max_grad_norm=math.inf,
        device="cpu",
    )
    theirs.rollout_buffer = their_buffer(rollout, 3)
    theirs._setup_learn(256)
    caught: dict[str, Tensor] = {}

    def catch(*_: Any, **__: Any) -> None:
        caught.update({n: p.grad.clone() for n, p in theirs.policy.named_parameters()})

    theirs.policy.optimizer.step = catch  # type: ignore[method-assign]
    theirs.train()

    agent = ActorCritic(3, gymnasium.spaces.Discrete(5), hidden_sizes=[64, 64])
    names = {
        "actor.0": "mlp_extractor.policy_net.0",
        "actor.2": "mlp_extractor.policy_net.2",
        "actor.4": "action_net",
        "critic.0": "mlp_extractor.value_net.0",
        "critic.2": "mlp_extractor.value_net.2",
        "critic.4": "value_net",
    }
    their_weights = theirs.policy.state_dict()
    agent.load_state_dict(
        {
            f"{ours}.{kind}": their_weights[f"{other}.{kind}"]
            for ours, other in names.items()
            for kind in ("weight", "bias")
        }
    )
    ppo = PPO(agent, config, generator=torch.Generator())
    kept: dict[str, Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        kept.update({n: p.grad.clone() for n, p in agent.named_parameters() if p.grad is not None})

    ppo.optimizer.step = keep  # type: ignore[method-assign]
    metrics = ppo.update(rollout, remaining=1.0)

    said = theirs.logger.name_to_value
    assert metrics["loss"] == pytest.approx(said["train/loss"], rel=1e-5)
    assert metrics["policy_loss"] == pytest.approx(
        said["train/policy_gradient_loss"], rel=1e-5, abs=1e-7
    )
    assert metrics["value_loss"] == pytest.approx(said["train/value_loss"], rel=1e-5)
    assert metrics["entropy"] == pytest.approx(-said["train/entropy_loss"], rel=1e-5)
    assert metrics["kl_div"] == pytest.approx(said["train/approx_kl"], rel=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(said["train/clip_fraction"], rel=1e-5)
    for ours, other in names.items():
        for kind in ("weight", "bias"):
            assert close(kept[f"{ours}.{kind}"], caught[f"{other}.{kind}"]), ours


def SyncVectorEnvOfFive() -> Any:
    """Four copies of something with three observations and five actions, as theirs wants it."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Five(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        action_space = gymnasium.spaces.Discrete(5)

        def reset(self, **_: Any) -> Any:
            return np.zeros(3, np.float32), {}

    return DummyVecEnv([Five] * 4)


def test_the_loss_equals_cleanrl_s_with_a_clipped_value() -> None:
    """Transcribed from its ppo.py: max of two squared errors, halved."""
    batch = {name: torch.randn(128) for name in ("new", "old", "advantage", "v", "old_v", "r")}
    old = -batch["old"].abs()
    new = old + 0.2 * batch["new"]
    loss = ppo_loss(
        log_probs=new,
        old_log_probs=old,
        advantages=batch["advantage"],
        entropy=batch["new"].abs(),
        values=batch["v"],
        old_values=batch["old_v"],
        returns=batch["r"],
        clip_epsilon=0.2,
        clip_value=0.2,
        value_loss_coef=0.25,
        entropy_coef=0.01,
    )
    ratio = (new - old).exp()
    policy = torch.max(
        -batch["advantage"] * ratio, -batch["advantage"] * torch.clamp(ratio, 0.8, 1.2)
    ).mean()
    unclipped = (batch["v"] - batch["r"]) ** 2
    near = batch["old_v"] + torch.clamp(batch["v"] - batch["old_v"], -0.2, 0.2)
    value = 0.5 * torch.max(unclipped, (near - batch["r"]) ** 2).mean()
    expected = policy - 0.01 * batch["new"].abs().mean() + value * 0.5
    assert close(loss.total, expected)


def test_distributions_equal_torch_s() -> None:
    logits, mean, log_std = torch.randn(7, 5), torch.randn(7, 3), torch.randn(3)
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    actions = torch.randint(0, 5, (7,))
    assert close(ours.log_prob(actions), theirs.log_prob(actions))
    assert close(ours.entropy(), theirs.entropy())
    gaussian = DiagonalGaussian(mean, log_std)
    normal = torch.distributions.Normal(mean, log_std.exp())
    points = torch.randn(7, 3)
    assert close(gaussian.log_prob(points), normal.log_prob(points).sum(-1))
    assert close(gaussian.entropy(), normal.entropy().sum(-1))


def test_samples_have_the_frequencies_of_their_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    drawn = Categorical(logits.expand(100_000, 4)).sample(torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn, minlength=4) / 100_000
    assert torch.allclose(frequencies, logits.softmax(-1), atol=0.006)  # four standard errors


# --- laws ---------------------------------------------------------------------------------------


def test_truncation_has_a_future_and_termination_has_none() -> None:
    rewards, values = torch.ones(2, 1), torch.tensor([[1.0], [2.0]])
    next_values = torch.tensor([[10.0], [20.0]])
    over = torch.tensor([[True], [False]])
    none = torch.zeros(2, 1, dtype=torch.bool)
    options = {"gamma": 0.5, "gae_lambda": 0.5}
    ended, _ = gae(rewards, values, next_values, over, none, **options)
    cut, _ = gae(rewards, values, next_values, none, over, **options)
    through, _ = gae(rewards, values, next_values, none, none, **options)
    assert ended[:, 0].tolist() == [0.0, 9.0]  # 1 - 1; 1 + 0.5 * 20 - 2
    assert cut[:, 0].tolist() == [5.0, 9.0]  # 1 + 0.5 * 10 - 1
    assert through[:, 0].tolist() == [7.25, 9.0]  # 5 + 0.25 * 9


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.5, 1.0, False), (0.5, -1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (1.1, 1.0, True)],
)
def test_the_clip_stops_the_gradient_only_where_it_would_go_on(
    ratio: float, advantage: float, flows: bool
) -> None:
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    zero = torch.zeros(1)
    loss = ppo_loss(
        log_probs=log_probs,
        old_log_probs=zero,
        advantages=torch.tensor([advantage]),
        entropy=zero,
        values=zero,
        old_values=zero,
        returns=zero,
        clip_epsilon=0.2,
        clip_value=None,
        value_loss_coef=0.0,
        entropy_coef=0.0,
    )
    loss.total.backward()
    assert log_probs.grad is not None
    assert (float(log_probs.grad) != 0) == flows
    if flows:
        assert float(log_probs.grad) == pytest.approx(-advantage * ratio)


def test_weights_begin_orthogonal_with_the_right_gains() -> None:
    agent = ActorCritic(8, gymnasium.spaces.Discrete(4), hidden_sizes=[8, 8])
    for layer, gain in ((agent.actor[0], math.sqrt(2)), (agent.actor[4], 0.01)):
        weight = layer.weight.detach()
        gram = weight @ weight.T
        assert torch.allclose(gram, gain**2 * torch.eye(len(gram)), atol=1e-5)
    assert float(agent.critic[4].weight.detach().norm()) == pytest.approx(1)
    assert all(
        float(p.detach().abs().max()) == 0 for n, p in agent.named_parameters() if "bias" in n
    )


def test_the_learning_rate_falls_linearly_and_adam_has_the_small_epsilon() -> None:
    ppo = PPO(
        ActorCritic(3, gymnasium.spaces.Discrete(5), hidden_sizes=[16]),
        PPOConfig(batch_size=256, n_environments=4, anneal_learning_rate=True, learning_rate=1e-3),
        generator=torch.Generator(),
    )
    metrics = ppo.update(random_rollout(), remaining=0.5)
    assert metrics["learning_rate"] == pytest.approx(5e-4)
    assert ppo.optimizer.param_groups[0]["eps"] == 1e-5


def test_nothing_has_moved_at_the_first_minibatch() -> None:
    config = PPOConfig(batch_size=64, minibatch_size=64, n_epochs=1, n_environments=4)
    pool = EnvironmentPool(lambda: gymnasium.make("CartPole-v1"), range(4), seed=0)
    agent = ActorCritic(4, pool.action_space, hidden_sizes=[16])
    collector = Collector(pool, config)
    collector.reset()
    rollout, _ = collector.collect(agent, 16, torch.Generator().manual_seed(0))
    metrics = PPO(agent, config, generator=torch.Generator()).update(rollout, remaining=1.0)
    assert metrics["kl_div"] == pytest.approx(0, abs=1e-7)
    assert metrics["clip_fraction"] == 0


def test_an_update_ends_when_the_policy_has_moved_too_far() -> None:
    config = PPOConfig(
        batch_size=256, n_environments=4, n_epochs=50, learning_rate=0.05, target_kl=0.01
    )
    agent = ActorCritic(3, gymnasium.spaces.Discrete(5), hidden_sizes=[16])
    rollout = random_rollout()
    with torch.no_grad():
        acted = agent.judge(rollout.observations.flatten(0, 1), rollout.actions.flatten())
    steady = Rollout(**{**vars(rollout), "log_probs": acted.log_probs.view(64, 4)})
    taken = 0
    ppo = PPO(agent, config, generator=torch.Generator())
    step = ppo.optimizer.step

    def count(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return step(*arguments)

    ppo.optimizer.step = count  # type: ignore[method-assign,assignment]
    ppo.update(steady, remaining=1.0)
    assert 0 < taken < 20  # of 200


def test_normalizing() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert normalize(values).tolist() == pytest.approx([-1.1619, -0.3873, 0.3873, 1.1619], abs=1e-4)
    assert normalize(values[:1]).tolist() == [1.0]
    assert explained_variance(values, values) == 1.0
    assert explained_variance(torch.zeros(4), values) == 0.0


def test_scales_equal_those_of_stable_baselines3() -> None:
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    theirs, ours = RunningMeanStd(shape=(3,)), ObservationScale(3)
    for _ in range(5):
        rows = np.random.randn(7, 3).astype(np.float32) * 4 + 2
        theirs.update(rows)
        ours.moments.add(rows)
    assert np.allclose(ours.moments.mean, theirs.mean, rtol=1e-7)
    assert np.allclose(ours.moments.variance, theirs.var, rtol=1e-6)
    scale = RewardScale(2, gamma=0.5)
    scale(np.array([1.0, 2.0]), np.array([False, True]))
    assert scale.returns.tolist() == [1.0, 0.0]
    scale(np.array([1.0, 2.0]), np.array([False, False]))
    assert scale.returns.tolist() == [1.5, 2.0]


# --- copies of an environment -------------------------------------------------------------------


def test_a_pool_does_what_gymnasium_s_vector_environment_does() -> None:
    pool = EnvironmentPool(lambda: gymnasium.make("CartPole-v1"), range(3), seed=7)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * 3,
        autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,
    )
    seeds = [episode_seed(7, copy, 0) for copy in range(3)]
    observations, _ = theirs.reset(seed=seeds)
    assert np.array_equal(pool.reset(), observations)
    ended = np.zeros(3, np.bool_)
    while not ended.any():
        actions = np.array([0, 1, 0])
        observations, rewards, ended, _, _ = theirs.step(actions)
        result = pool.step(actions)
        assert np.array_equal(result.final_observations, observations)
        assert np.array_equal(result.rewards, rewards)
        assert np.array_equal(result.terminated, ended)
    assert not np.array_equal(result.observations[ended], observations[ended])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3", "FrozenLake-v1"])
def test_a_restored_pool_goes_on_the_same(name: str) -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(name)

    def act(pool: EnvironmentPool, steps: int, random: np.random.Generator) -> list[Any]:
        seen = []
        for _ in range(steps):
            if isinstance(pool.action_space, gymnasium.spaces.Discrete):
                actions = random.integers(0, pool.action_space.n, len(pool))
            else:
                actions = random.normal(size=(len(pool), *pool.action_space.shape))
            result = pool.step(actions)
            seen.append((result.observations.tobytes(), result.rewards.tobytes()))
        return seen

    pool = EnvironmentPool(make, range(3), seed=3)
    pool.reset()
    act(pool, 150, np.random.default_rng(0))
    snapshot = pool.snapshot()
    went_on = act(pool, 100, np.random.default_rng(1))
    restored = EnvironmentPool(make, range(3), seed=3)
    restored.restore(snapshot)
    assert act(restored, 100, np.random.default_rng(1)) == went_on


# --- the trainer of programs --------------------------------------------------------------------


def test_a_trainer_learns_to_balance() -> None:
    config = PPOConfig(
        total_timesteps=40_000,
        n_environments=16,
        batch_size=512,
        minibatch_size=256,
        n_epochs=10,
        learning_rate=2e-3,
        gamma=0.98,
        gae_lambda=0.9,
        anneal_learning_rate=True,
    )
    returns: list[float] = []
    policy = PPOTrainer(config).train(
        "CartPole-v1", on_update=lambda _, metrics: returns.append(metrics["episode_return"])
    )
    environment = gymnasium.make("CartPole-v1")
    total = 0.0
    for seed in range(10):
        observation, _ = environment.reset(seed=seed)
        over = False
        while not over:
            observation, reward, ended, cut, _ = environment.step(policy.act(observation))
            total += float(reward)
            over = ended or cut
    assert np.nanmean(returns[:5]) < 60
    assert total / 10 > 400


async def test_a_trainer_learns_from_trajectories_of_a_program() -> None:
    trainer = PPOTrainer({"learning_rate": 0.001, "batch_size": 32})
    assert trainer.config.n_environments == 8
    environment = gymnasium.make("CartPole-v1")
    trainer.prepare(4, environment.action_space)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    trajectories = await collect_trajectories(environment, trainer.policy, steps=200)
    metrics = await trainer.update(trajectories)
    assert {"policy_loss", "value_loss", "kl_div"} <= set(metrics)
    assert metrics["kl_div"] > 0
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True)
    )


async def test_trajectories_of_another_shape_are_refused_by_name() -> None:
    good = {
        "states": np.zeros((5, 4)),
        "actions": np.zeros(5, np.int64),
        "rewards": np.zeros(5),
        "dones": np.zeros(5, np.bool_),
        "log_probs": np.zeros(5),
    }
    await PPOTrainer().update(good)
    with pytest.raises(InvalidInput, match=r"trajectories.log_probs has shape \[4, 1\]"):
        await PPOTrainer().update({**good, "log_probs": np.zeros(4)})
    with pytest.raises(InvalidInput, match="rewards is missing"):
        await PPOTrainer().update({k: v for k, v in good.items() if k != "rewards"})
