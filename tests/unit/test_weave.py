"""WEAVE: PPO when all of it is off, an exact mixture, bonuses and weights that keep their laws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from loomos.errors import InvalidInput
from loomos.manifest import (
    EnvironmentChoice,
    ExplorationStrategy,
    PPOConfig,
    RewardThread,
    WeaveConfig,
)
from loomos.rl import LoomRLGym, WeaveAlgorithm, create_weave_algorithm
from loomos.rl.environments.deep_sea_treasure import FRONT
from loomos.rl.making import environment_maker
from loomos.rl.networks import Categorical, DiagonalGaussian
from loomos.rl.pool import EnvironmentPool
from loomos.rl.ppo import PPO
from loomos.rl.practice import Practice, make_ppo
from loomos.rl.rollouts import Collector, Rollout
from loomos.rl.threads import with_threads
from loomos.rl.weave import Mixture
from loomos.rl.weave.bonuses import CountBonus, NoveltyBonus
from loomos.rl.weave.threads import Scalarizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More only get in each other's way at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL: dict[str, Any] = {
    "total_timesteps": 4096,
    "n_environments": 8,
    "batch_size": 512,
    "n_epochs": 3,
    "hidden_sizes": [32, 32],
    "entropy_coef": 0.01,
}


def learn(
    name: str, settings: PPOConfig, updates: int, /, **made_with: Any
) -> tuple[PPO, list[float]]:
    """Updates in an environment; returns of the episodes that ended."""

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(name, **made_with)

    pool = EnvironmentPool(make, range(settings.n_environments), seed=settings.seed)
    practice = Practice(pool, settings)
    practice.collector.reset()
    found: list[float] = []
    for update in range(updates):
        found += practice.update(update)[1].returns
    return practice.learner, found


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_with_all_of_it_off_it_is_ppo_bit_for_bit(name: str) -> None:
    plain, returns = learn(name, PPOConfig(**SMALL), 8)
    off = WeaveConfig(**SMALL, critics=1, exploration_strategies=[])
    weave, others = learn(name, off, 8)
    assert returns == others
    for parameter, other in zip(plain.parameters, weave.parameters, strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_all_of_it_on_learns_without_a_nan(name: str) -> None:
    config = WeaveConfig(
        **SMALL,
        heads=3,
        critics=3,
        caution=0.5,
        exploration_strategies=list(ExplorationStrategy),
    )
    weave, _ = learn(name, config, 3)
    assert all(torch.isfinite(p).all() for p in weave.parameters)
    assert float(weave.agent.trust.sum()) == pytest.approx(1)


# --- the mixture --------------------------------------------------------------------------------


def discrete() -> tuple[Mixture, torch.distributions.Distribution]:
    gate, logits = torch.randn(6, 3), torch.randn(6, 3, 5)
    ours = Mixture(gate.log_softmax(-1), Categorical(logits))
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=gate),
        torch.distributions.Categorical(logits=logits),
    )
    return ours, theirs


def test_a_mixture_of_discrete_actions_is_exact() -> None:
    torch.manual_seed(0)
    ours, theirs = discrete()
    every = torch.arange(5).expand(6, 5).T
    log_probs = torch.stack([ours.log_prob(actions) for actions in every])
    assert torch.allclose(log_probs.exp().sum(0), torch.ones(6), atol=1e-6)
    expected = torch.stack([theirs.log_prob(actions) for actions in every])
    assert torch.allclose(log_probs, expected, atol=1e-5)
    entropy = -(expected.exp() * expected).sum(0)
    assert torch.allclose(ours.entropy(), entropy, atol=1e-5)
    assert torch.equal(ours.mode(), expected.argmax(0))


def test_a_mixture_of_gaussians_is_exact() -> None:
    torch.manual_seed(0)
    gate, mean, log_std = torch.randn(6, 3), torch.randn(6, 3, 2), torch.randn(3, 2)
    ours = Mixture(gate.log_softmax(-1), DiagonalGaussian(mean, log_std))
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=gate),
        torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1),
    )
    actions = torch.randn(6, 2)
    assert torch.allclose(ours.log_prob(actions), theirs.log_prob(actions), atol=1e-5)


def test_responsibilities_are_posteriors_and_samples_come_from_the_mixture() -> None:
    torch.manual_seed(0)
    ours, _ = discrete()
    actions = torch.randint(0, 5, (6,))
    shares = ours.responsibilities(actions)
    assert torch.allclose(shares.sum(-1), torch.ones(6))
    joint = (ours.log_gate + ours.components.log_p[torch.arange(6), :, actions]).exp()
    assert torch.allclose(shares, joint / joint.sum(-1, keepdim=True), atol=1e-6)
    one = Mixture(
        ours.log_gate[:1].expand(50_000, 3),
        Categorical(ours.components.log_p[:1].expand(50_000, 3, 5)),
    )
    drawn = torch.bincount(one.sample(torch.Generator().manual_seed(1)), minlength=5) / 50_000
    expected = torch.stack([ours.log_prob(torch.full((6,), a))[0].exp() for a in range(5)])
    assert torch.allclose(drawn, expected, atol=0.01)


# --- bonuses ------------------------------------------------------------------------------------


def rollout(observations: torch.Tensor, actions: torch.Tensor) -> Rollout:
    shape = actions.shape
    nothing = torch.zeros(*shape, 1)
    return Rollout(
        observations=observations,
        actions=actions,
        log_probs=torch.zeros(shape),
        rewards=nothing,
        values=nothing,
        next_values=nothing,
        terminated=torch.zeros(shape, dtype=torch.bool),
        truncated=torch.zeros(shape, dtype=torch.bool),
        next_observations=observations,
    )


def test_a_count_bonus_is_one_over_the_root_of_the_count() -> None:
    seen = torch.eye(3)[[0, 0, 1, 0]].unsqueeze(1)
    actions = torch.tensor([[0], [0], [0], [1]])
    bonus = CountBonus(3, seed=0)
    first = bonus.of(rollout(seen, actions))
    assert first.flatten().tolist() == pytest.approx([1, 2**-0.5, 1, 1])
    again = CountBonus(3, seed=0)
    again.load(bonus.state())
    assert torch.equal(again.of(rollout(seen, actions)), bonus.of(rollout(seen, actions)))


def test_novelty_falls_where_one_has_been_and_not_elsewhere() -> None:
    torch.manual_seed(0)
    known = torch.randn(4, 64, 5) * 0.3 + torch.tensor([2.0, 0, 0, 0, 0])
    unknown = torch.randn(4, 64, 5) * 0.3 - torch.tensor([2.0, 0, 0, 0, 0])
    bonus = NoveltyBonus(5, [32], seed=0)
    both = torch.cat([known, unknown])
    actions = torch.zeros(8, 64, dtype=torch.int64)
    before = bonus.of(rollout(both, actions)).mean()
    for _ in range(300):
        bonus.of(rollout(known, actions[:4]))
    after = bonus.of(rollout(both, actions))
    assert float(after[:4].mean()) < 0.5 * float(after[4:].mean())
    assert float(after[:4].mean()) < 0.5 * float(before)


# --- threads ------------------------------------------------------------------------------------

TWO = [RewardThread.TASK_COMPLETION, RewardThread.SAFETY]


def test_threads_are_summed_by_weights_whatever_their_units() -> None:
    torch.manual_seed(0)
    config = WeaveConfig(reward_threads=TWO, thread_weights=[3.0, 1.0])
    advantages = torch.randn(16, 4, 2)
    combined = Scalarizer(config).combine(advantages)
    scaled = Scalarizer(config).combine(advantages * torch.tensor([100.0, 0.01]))
    assert torch.allclose(combined, scaled, atol=1e-5)
    unit = advantages / advantages.square().mean(dim=(0, 1)).sqrt()
    assert torch.allclose(combined, 0.75 * unit[..., 0] + 0.25 * unit[..., 1], atol=1e-5)


def test_chebyshev_puts_weight_on_what_lags() -> None:
    scalarizer = Scalarizer(WeaveConfig(reward_threads=TWO, scalarization="chebyshev"))
    scalarizer.learn(np.array([10.0, 0.0]))
    scalarizer.learn(np.array([0.0, 1.0]))
    scalarizer.learn(np.array([9.0, 0.2]))
    assert scalarizer.weights[1] > 0.9
    scalarizer.learn(np.array([1.0, 0.9]))
    assert scalarizer.weights[0] > 0.9
    again = Scalarizer(WeaveConfig(reward_threads=TWO, scalarization="chebyshev"))
    again.load(scalarizer.state())
    assert np.array_equal(again.weights, scalarizer.weights)


def utility_of(weights: list[float], **more: Any) -> Scalarizer:
    return Scalarizer(
        WeaveConfig(
            reward_threads=TWO,
            scalarization="utility",
            thread_weights=weights,
            ideal=[124.0, -1.0],
            worst=[0.0, -25.0],
            **more,
        )
    )


def test_utilities_best_trades_include_those_that_no_sum_prefers() -> None:
    """Each of the ten best trades is the best of some utility; sums prefer two of them."""
    front = torch.tensor(FRONT)
    shares = np.linspace(0.001, 0.999, 999)
    best = {int(utility_of([w, 1 - w]).utility(front).argmax()) for w in shares}
    assert best == set(range(10))
    scaled = (front - torch.tensor([0.0, -25.0])) / torch.tensor([124.0, 24.0])
    summed = {
        int((scaled @ torch.tensor([w, 1 - w], dtype=torch.float32)).argmax()) for w in shares
    }
    assert summed <= {0, 8, 9}


def test_treasures_lie_as_far_away_as_the_front_says() -> None:
    """By trying all ways: fewest steps to each treasure, in the environment itself."""
    environment = gymnasium.make("loomos/DeepSeaTreasure-v0", disable_env_checker=True)
    fewest: dict[float, float] = {}
    ways: list[list[int]] = [[]]
    seen = set()
    while ways:
        following = []
        for way in ways:
            for action in range(4):
                observation, _ = environment.reset(seed=0)
                rewards, over = np.zeros(2), False
                for taken in [*way, action]:
                    observation, reward, over, _, _ = environment.step(taken)
                    rewards = rewards + np.asarray(reward)
                if over:
                    fewest.setdefault(float(rewards[0]), float(rewards[1]))
                elif (place := int(observation.argmax())) not in seen:
                    seen.add(place)
                    following.append([*way, action])
        ways = following
    assert sorted(fewest.items()) == sorted(FRONT)
    environment.reset()
    cut = [environment.step(0)[3] for _ in range(100)]  # up, against the surface
    assert cut == [False] * 99 + [True]


def test_rewards_of_utility_sum_up_to_the_utility_of_the_episode() -> None:
    torch.manual_seed(0)
    scalarizer = utility_of([0.6, 0.4])
    rewards, accrued = torch.randn(6, 2, 2) * 10, torch.randn(2, 2) * 10
    over = torch.zeros(6, 2, dtype=torch.bool)
    over[3, 0] = True
    empty = torch.zeros(6, 2, 2)
    rollout = Rollout(
        observations=empty,
        actions=empty,
        log_probs=empty,
        rewards=rewards,
        values=empty,
        next_values=empty,
        terminated=over,
        truncated=torch.zeros_like(over),
        accrued=accrued,
    )
    changes = scalarizer.rewards(rollout)
    u, nothing = scalarizer.utility, scalarizer.utility(torch.zeros(2))
    ended = accrued[0] + rewards[:4, 0].sum(0)
    torch.testing.assert_close(changes[:4, 0, 0].sum(), u(ended) - u(accrued[0]))
    torch.testing.assert_close(changes[4:, 0, 0].sum(), u(rewards[4:, 0].sum(0)) - nothing)
    whole = accrued[1] + rewards[:, 1].sum(0)
    torch.testing.assert_close(changes[:, 1, 0].sum(), u(whole) - u(accrued[1]))
    assert changes[..., 1].abs().sum() == 0
    assert scalarizer.weights.tolist() == [1.0, 0.0]


def test_a_multiplier_rises_while_its_constraint_is_broken_and_never_below_zero() -> None:
    config = WeaveConfig(
        reward_threads=TWO, scalarization="lagrangian", thresholds=[-1.0], dual_learning_rate=0.5
    )
    scalarizer = Scalarizer(config)
    shares = []
    for safety in (-3.0, -3.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        scalarizer.learn(np.array([5.0, safety]))
        shares.append(scalarizer.weights[1])
    assert shares[0] < shares[1] < shares[2] > shares[3] > shares[4]
    assert shares[0] == pytest.approx(0.5)  # multiplier 0.5 * (-1 + 3) = 1 beside 1
    assert shares[-1] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward_threads": TWO, "thread_weights": [1.0]}, "thread_weights needs 2 numbers"),
        ({"reward_threads": TWO, "scalarization": "lagrangian"}, "thresholds needs 1 numbers"),
        ({"reward_threads": TWO, "scalarization": "utility"}, "ideal needs 2 numbers"),
        (
            {
                "reward_threads": TWO,
                "scalarization": "utility",
                "ideal": [1.0, 1.0],
                "worst": [0.0, 1.0],
            },
            "ideal must be above worst",
        ),
        ({"reward_threads": TWO, "normalize_rewards": True}, "normalize_rewards is for one"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WeaveConfig(**settings)


# --- exploration --------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_finds_the_treasure_that_ppo_does_not() -> None:
    """DeepSea of 14: one path in 16,384 pays, every step towards it costs."""
    import loomos.rl.environments  # registers it

    assert loomos.rl.environments
    common: dict[str, Any] = {
        "total_timesteps": 60_000,
        "n_environments": 32,
        "batch_size": 14 * 128,
        "minibatch_size": 14 * 16,
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "entropy_coef": 0.01,
    }
    plain, config = PPOConfig(**common), WeaveConfig(**common, critics=1)
    _, without = learn("loomos/DeepSea-v0", plain, plain.updates, size=14)
    _, found = learn("loomos/DeepSea-v0", config, config.updates, size=14)
    assert not any(value > 0.5 for value in without)
    assert sum(value > 0.5 for value in found[-200:]) > 180


# --- for programs -------------------------------------------------------------------------------


def test_a_program_acts_and_learns_with_it() -> None:
    weave = create_weave_algorithm(
        exploration_strategies=["entropy_based", "curiosity_driven", "ucb_exploration"],
        reward_threads=["task_completion", "safety"],
        seed=1,
    )
    random = np.random.default_rng(0)
    action, log_prob, value = weave.get_action(random.normal(size=weave.config.state_dim))
    assert 0 <= action < weave.config.action_dim
    assert log_prob < 0
    assert math.isfinite(value)
    for shape in ((16,), (16, 2)):
        metrics = weave.train_step(
            {
                "states": random.normal(size=(16, weave.config.state_dim)),
                "actions": random.integers(0, weave.config.action_dim, 16),
                "rewards": random.normal(size=shape),
                "log_probs": -np.abs(random.normal(size=16)),
                "dones": random.choice([True, False], 16),
            }
        )
        assert math.isfinite(metrics["actor_loss"])
        assert metrics["critic_loss"] > 0
    with pytest.raises(InvalidInput, match="takes 64"):
        weave.get_action(np.zeros(3))
    with pytest.raises(InvalidInput, match="one for each thread"):
        weave.train_step({"rewards": np.zeros((16, 3))})


async def test_it_acts_in_every_environment_of_the_gym() -> None:
    gym, weave = LoomRLGym(), WeaveAlgorithm()
    for name in await gym.list_environments():
        environment = await gym.create_environment(name, {})
        state = await environment.reset(seed=0)
        action, _, _ = weave.get_action(state)
        state, _, _, _ = await environment.step(action)
        assert state.shape == (weave.config.state_dim,)
    await gym.cleanup()


@pytest.mark.slow
def test_it_learns_arithmetic_by_typing() -> None:
    """Sums and differences of two digits, typed digit by digit; chance solves one in thousands."""
    settings: dict[str, Any] = {
        "total_timesteps": 60_000,
        "n_environments": 16,
        "batch_size": 1024,
        "minibatch_size": 256,
        "learning_rate": 1e-3,
        "n_epochs": 4,
        "gamma": 0.95,
    }
    config = WeaveConfig(**settings, critics=2)
    shaping = {"partial_credit": True}
    _, found = learn(
        "loomos/Math-v0", config, config.updates, config={"max_steps": 6, "reward_shaping": shaping}
    )
    assert np.mean(found[-500:]) > 2 * np.mean(found[:500])


def test_environments_give_rewards_of_several_threads() -> None:
    threads = list(RewardThread)
    make = with_threads(environment_maker(EnvironmentChoice(name="language")), threads)
    environment = make()
    environment.reset(seed=0)
    task = environment.unwrapped.task  # type: ignore[attr-defined]
    *words, stop = task.solution()
    for word in words:
        _, rewards, _, _, _ = environment.step(word)
        assert rewards.tolist() == [0, 0, 0, -1 / 50, 0]
    _, rewards, over, _, _ = environment.step(stop)
    assert over
    assert rewards.tolist() == [1, 1, 1, -1 / 50, 1]  # noun, verb, noun; no word twice
    alone = with_threads(environment_maker(EnvironmentChoice(name="language")), threads[:1])
    assert isinstance(alone().unwrapped.reset(seed=0)[0], np.ndarray)


def test_it_learns_several_threads_at_once() -> None:
    config = WeaveConfig(
        **SMALL, reward_threads=[RewardThread.TASK_COMPLETION, RewardThread.EFFICIENCY]
    )
    make = with_threads(
        environment_maker(EnvironmentChoice(name="language")), config.reward_threads
    )
    pool = EnvironmentPool(make, range(8), seed=0)
    generator = torch.Generator().manual_seed(0)
    weave, collector = make_ppo(pool, config, generator=generator), Collector(pool, config)
    collector.reset()
    rollout, episodes = collector.collect(weave.agent, 64, generator)
    weave.note(episodes)
    assert rollout.rewards.shape == (64, 8, 2)
    assert rollout.values.shape == (64, 8, 3)  # two threads and a bonus
    assert len(episodes.thread_returns[0]) == 2
    metrics = weave.update(rollout, remaining=1.0)
    assert math.isfinite(metrics["loss"])
