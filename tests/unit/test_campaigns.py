"""Campaigns: what documents may say, what is decided after a round, what averages are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from loomos.errors import InvalidInput, InvalidManifest, InvalidModel
from loomos.jobs.campaigns import (
    Appraisal,
    BlendRequest,
    MemberReport,
    PolicyState,
    RoundReport,
    WeightedPolicy,
)
from loomos.manifest import (
    CampaignPhase,
    CampaignSpec,
    EnvironmentChoice,
    RewardThread,
    RLCampaign,
    TrainingSpec,
    WeaveConfig,
    validate_as,
)
from loomos.registry import Registry
from loomos.rl import campaigns, create_integrated_rl_system, load_policy
from loomos.rl.algos import (
    create_apollo_weave_trainer,
    create_weave_algorithm,
    create_weave_gym_trainer,
)
from loomos.rl.blending import appraise, blend
from loomos.rl.integration import EnvironmentResult, campaign_document
from loomos.rl.policies import average_weights
from loomos.rl.weave.algorithm import node_preferences
from loomos.rl.weave.apollo import analyze
from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.training.requests import AverageRequest

COHERENCE, SAFETY, CREATIVITY = (
    RewardThread.COHERENCE,
    RewardThread.SAFETY,
    RewardThread.CREATIVITY,
)
SCHOOL = Path(__file__).parents[2] / "examples" / "rl" / "school.yaml"


def member(name: str, environment: Any = "language", **more: Any) -> dict[str, Any]:
    return {"name": name, "environment": environment, **more}


def spec(*members: dict[str, Any], **more: Any) -> CampaignSpec:
    return campaign_document("x", {"members": list(members), **more}).spec


def state(**appraisal: Any) -> PolicyState:
    return PolicyState(
        version="x@1",
        environment=EnvironmentChoice(name="math"),
        appraisal=Appraisal(**{"episodes": 4, "mean_return": 0.0, **appraisal}),
    )


# --- documents ----------------------------------------------------------------------------------


def test_the_example_is_a_campaign() -> None:
    found = validate_as(RLCampaign, yaml.safe_load(SCHOOL.read_text()))
    assert list(found.spec.policies) == ["math", "game", "language"]


def test_members_with_the_same_environment_share_a_policy() -> None:
    other = {"name": "math", "config": {"terse": True}}
    found = spec(
        member("a", "math"), member("b", other), member("c", "math"), member("d", "a/Big_Env-v0")
    )
    shared = {label: [m.name for m in members] for label, members in found.policies.items()}
    assert shared == {"math": ["a", "c"], "math-2": ["b"], "big-env-v0": ["d"]}


def test_more_copies_are_more_experience() -> None:
    settings = {"total_timesteps": 800, "n_environments": 4, "batch_size": 40, "seed": 5}
    found = spec(member("a"), member("b", copies=12), weave=settings)
    plain, wide = (
        found.training(m, policy=None, environment=m.environment, seed=3).weave
        for m in found.members
    )
    assert (plain.total_timesteps, plain.n_environments, plain.batch_size) == (800, 4, 40)
    assert (wide.total_timesteps, wide.n_environments, wide.batch_size) == (2400, 12, 120)
    assert plain.seed == 8
    assert wide.updates == plain.updates == 20


@pytest.mark.parametrize(
    ("members", "more", "said"),
    [
        ([member("a"), member("a")], {}, "members has a name twice"),
        ([member("a")], {"phases": [{"weights": {"b": 1.0}}]}, r"phases\.0\.weights\.b is no"),
        ([member("a")], {"phases": [{"weights": {"a": 0.0}}]}, r"phases\.0\.weights are all zero"),
        ([member("a")], {"phases": [{"rounds": 1000}] * 3}, "more than 2000 trainings"),
        (
            [member("a", threads={"safety": 1.0})],
            {"algorithm": "ppo"},
            "threads are for algorithm weave",
        ),
        (
            [member("a", threads={"safety": 1.0}), member("b", threads={"coherence": 1.0})],
            {},
            "members of language have different threads",
        ),
        ([member("a", "CartPole-v1")], {"curriculum": {}}, "CartPole-v1 has no difficulty"),
        (
            [member("a"), member("b")],
            {"weave": {"normalize_observations": True}},
            "would each scale",
        ),
        ([member("a")], {"weave": {"batch_size": 7}}, "must be a multiple of n_environments"),
        ([member("a")], {"resources": {"nodes": 3}}, "must be a multiple of the number of ranks"),
        ([member("a" * 63)], {}, "more than 62 characters"),
    ],
)
def test_documents_that_make_no_sense_say_what_to_change(
    members: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidManifest, match=said):
        spec(*members, **more)


def test_everything_that_is_wrong_with_a_campaign_is_said_at_once() -> None:
    phases = [{"weights": {"b": 0.0}}]
    with pytest.raises(InvalidManifest) as refused:
        spec(
            member("a", "CartPole-v1"), member("a"), phases=phases, curriculum={},
            resources={"nodes": 3},
        )  # fmt: skip
    assert [(fault.path, fault.message.split(";")[0]) for fault in refused.value.errors] == [
        ("spec", "members has a name twice"),
        ("spec", "phases.0.weights.b is no member"),
        ("spec", "phases.0.weights are all zero"),
        ("spec", "curriculum: CartPole-v1 has no difficulty"),
        ("spec", "weave.n_environments (8) must be a multiple of the number of ranks (3)"),
    ]


def test_a_member_whose_threads_do_not_fit_the_settings_is_refused_with_the_field() -> None:
    two = {"safety": 1.0, "coherence": 1.0}
    with pytest.raises(InvalidManifest) as refused:
        spec(member("a", threads=two), weave={"scalarization": "lagrangian"})
    [fault] = refused.value.errors
    assert fault.message == "weave: thresholds needs 1 numbers, one for each thread but the first"


# --- decisions ----------------------------------------------------------------------------------


def test_a_score_is_the_members_own_view_of_a_policy() -> None:
    found = spec(member("a", threads={"coherence": 3.0, "safety": 1.0}))
    (one,) = found.members
    appraisal = Appraisal(episodes=1, mean_return=0.6, threads={COHERENCE: 0.8, SAFETY: -0.2})
    assert campaigns.score(one, appraisal) == pytest.approx(0.75 * 0.8 - 0.25 * 0.2)
    assert campaigns.score(one, Appraisal(episodes=1, mean_return=0.6)) == 0.6


def test_weights_sum_to_one_within_each_policy() -> None:
    found = spec(member("a"), member("b"), member("c", "math"))
    weights = campaigns.scaled(found, {"a": 3.0, "b": 1.0, "c": 0.2})
    assert weights == {"a": 0.75, "b": 0.25, "c": 1.0}
    phase = CampaignPhase(weights={"b": 2.0})
    assert campaigns.phase_weights(found, phase, weights) == {"b": 1.0}
    assert campaigns.phase_weights(found, CampaignPhase(), {}) == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert campaigns.phase_weights(found, CampaignPhase(), weights) == weights


def test_weights_move_to_what_fell_behind() -> None:
    found = spec(member("a"), member("b"))
    rounds = [
        RoundReport(number=n, scores={"a": a, "b": b})
        for n, (a, b) in enumerate([(0.0, 0.0), (1.0, 0.5), (0.5, 1.0)])
    ]
    moved = campaigns.adapted(found, {"a": 0.5, "b": 0.5}, rounds)
    # a lies half of its way below its best, b at its best: exp(0.5) to 1.
    assert moved["a"] / moved["b"] == pytest.approx(math.exp(0.5))
    assert sum(moved.values()) == pytest.approx(1)


def test_a_phase_is_over_when_every_member_has_the_score() -> None:
    newest = RoundReport(number=1, scores={"a": 0.7, "b": 0.4})
    phase = CampaignPhase(until=0.5)
    assert not campaigns.is_reached(phase, {"a": 0.5, "b": 0.5}, newest)
    assert campaigns.is_reached(phase, {"a": 1.0}, newest)  # b does not train
    assert not campaigns.is_reached(CampaignPhase(), {"a": 1.0}, newest)


@pytest.mark.parametrize(
    ("solved", "before", "after"),
    [
        (0.79, "beginner", "beginner"),
        (0.8, "beginner", "intermediate"),
        (1.0, "advanced", "expert"),
        (1.0, "expert", "expert"),
    ],
)
def test_tasks_get_harder_as_they_are_solved(solved: float, before: str, after: str) -> None:
    found = spec(member("a", "math"), curriculum={"success_threshold": 0.8})
    environment = EnvironmentChoice(name="math", config={"difficulty": before, "max_steps": 6})
    policy = state(success_rate=solved).model_copy(update={"environment": environment})
    harder = campaigns.after(found, policy)
    assert harder.config == {"difficulty": after, "max_steps": 6}
    assert campaigns.after(spec(member("a", "math")), policy) == environment


# --- averages -----------------------------------------------------------------------------------


def test_the_average_is_that_of_the_numbers() -> None:
    one, two = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    assert average_weights([one, two], [0.75, 0.25])["w"].tolist() == [1.5, 1.0]
    assert average_weights([one, two])["w"].tolist() == [2.0, 0.0]
    with pytest.raises(InvalidModel, match="different shapes"):
        average_weights([one, {"w": torch.zeros(3)}])


def language(**weave: Any) -> TrainingSpec:
    threads = [thread.value for thread in (COHERENCE, SAFETY, CREATIVITY)]
    return TrainingSpec.model_validate(
        {
            "algorithm": "weave",
            "environment": "language",
            "weave": {"reward_threads": threads, "hidden_sizes": [8], "critics": 1, **weave},
        }
    )


def test_policies_are_averaged_published_and_appraised(tmp_path: Path) -> None:
    storage = StorageSettings(url=f"file://{tmp_path}/store")

    def run(blend_id: str, *policies: WeightedPolicy, seed: int = 0) -> Any:
        work = BlendRequest(
            blend_id=blend_id,
            name="soup",
            policies=list(policies),
            training=language(seed=seed),
            episodes=8,
        )
        request = AverageRequest(
            work=work, storage=storage, scratch=tmp_path, result=tmp_path / "result"
        )
        return blend(request)

    first, second = run("first", seed=1), run("second", seed=2)
    shares = [
        WeightedPolicy(version=first.version, weight=0.25),
        WeightedPolicy(version=second.version, weight=0.75),
    ]
    soup, again = run("soup", *shares), run("soup", *shares)

    assert soup == again  # a retry makes the same version
    store = open_store(storage)
    files = {
        version: tmp_path / "store" / Registry(store).manifest(version).key_prefix
        for version in (first.version, second.version, soup.version)
    }
    policies = {version: load_policy(folder) for version, folder in files.items()}
    for name, tensor in policies[soup.version].agent.state_dict().items():
        one = policies[first.version].agent.state_dict()[name]
        two = policies[second.version].agent.state_dict()[name]
        torch.testing.assert_close(tensor, 0.25 * one + 0.75 * two)
    lineage = Registry(store).manifest(soup.version).lineage
    assert [p["version"] for p in lineage["policies"]] == [first.version, second.version]

    assert soup.appraisal.episodes == 8
    assert list(soup.appraisal.threads) == [COHERENCE, SAFETY, CREATIVITY]
    assert soup.appraisal.mean_return == pytest.approx(sum(soup.appraisal.threads.values()))
    assert soup.appraisal.success_rate is not None
    alone = run("alone", WeightedPolicy(version=first.version, weight=1.0), seed=1)
    assert alone == first  # one policy is only appraised, in the same episodes
    assert appraise(files[first.version], language(seed=1), 8) == first.appraisal


def test_a_policy_of_another_shape_is_refused(tmp_path: Path) -> None:
    storage = StorageSettings(url=f"file://{tmp_path}/store")

    def run(*policies: str, **weave: Any) -> Any:
        work = BlendRequest(
            blend_id="x",
            name="soup",
            policies=[WeightedPolicy(version=v, weight=0.5) for v in policies],
            training=language(**weave),
            episodes=1,
        )
        request = AverageRequest(
            work=work, storage=storage, scratch=tmp_path, result=tmp_path / "result"
        )
        return blend(request).version

    small, large = run(), run(hidden_sizes=[16])
    with pytest.raises(InvalidModel, match="different shapes"):
        run(small, large)
    with pytest.raises(InvalidModel, match="no model 'absent'"):
        run("absent@1234567890")


# --- nodes of WEAVE -----------------------------------------------------------------------------


def test_nodes_want_different_things_and_each_thread_has_its_node() -> None:
    settings = WeaveConfig(reward_threads=[COHERENCE, SAFETY, CREATIVITY])
    assert node_preferences(settings, 1) == [pytest.approx([1 / 3] * 3)]
    four = node_preferences(settings, 4)
    assert [np.argmax(preference) for preference in four] == [0, 1, 2, 0]
    assert four[0] == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def batch(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "states": random.normal(size=(32, 6)),
        "actions": random.integers(0, 3, 32),
        "rewards": random.normal(size=(32, 2)),
        "log_probs": np.full(32, -math.log(3)),
        "dones": random.random(32) < 0.1,
    }


def test_after_a_step_all_nodes_have_the_average_of_what_each_learned() -> None:
    options: dict[str, Any] = {
        "reward_threads": ["safety", "creativity"],
        "state_dim": 6,
        "action_dim": 3,
        "critics": 1,
    }
    merged = create_weave_algorithm(**options, num_nodes=2)
    alone = [
        create_weave_algorithm(**options, thread_weights=weights, seed=seed)
        for seed, weights in ((0, [0.75, 0.25]), (1, [0.25, 0.75]))
    ]
    for one in alone[1:]:  # the same first weights, as nodes have
        one.nodes[0].agent.load_state_dict(alone[0].nodes[0].agent.state_dict())
    for one in (merged, *alone):
        one.train_step(batch(0))
    expected = average_weights([one.nodes[0].agent.state_dict() for one in alone])
    for node in merged.nodes:
        for name, tensor in node.agent.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    with pytest.raises(InvalidInput, match="num_nodes is 0"):
        create_weave_algorithm(num_nodes=0)


# --- faces --------------------------------------------------------------------------------------


async def test_an_integrated_system_shares_an_environment_among_nodes() -> None:
    system = await create_integrated_rl_system(
        algorithm="weave",
        environments=["math", "code", "language"],
        distributed_nodes=4,
        training_config={
            "episodes_per_environment": 100,
            "update_frequency": 20,
            "curriculum_learning": True,
            "settings": {"learning_rate": 1e-3},
        },
    )
    found = system.campaign.spec
    names = {label: [m.name for m in members] for label, members in found.policies.items()}
    assert names == {"math": ["math-1", "math-2"], "code": ["code"], "language": ["language"]}
    assert found.phases[0].rounds == 5
    assert found.parallelism == 4
    assert found.curriculum is not None
    assert found.weave.learning_rate == 1e-3
    for members in found.policies.values():
        runs = [
            found.training(one, policy=None, environment=one.environment, seed=0).weave
            for one in members
        ]
        assert sum(run.total_timesteps for run in runs) == 20 * 50
        assert sum(run.n_environments for run in runs) == 8
    with pytest.raises(InvalidInput, match="no 'chess'"):
        await create_integrated_rl_system(environments=["chess"])
    with pytest.raises(InvalidInput, match=r"training_config.*episodes_per_environment"):
        await create_integrated_rl_system(training_config={"episodes_per_environment": 0})


@pytest.mark.parametrize(
    ("nodes", "copies"), [(1, [12]), (3, [4, 4, 4]), (5, [3, 3, 2, 2, 2]), (14, [1] * 14)]
)
async def test_a_policys_nodes_count_as_much_as_they_play(nodes: int, copies: list[int]) -> None:
    system = await create_integrated_rl_system(
        algorithm="ppo",
        environments=["math"],
        distributed_nodes=nodes,
        training_config={"settings": {"n_environments": 12, "batch_size": 24}},
    )
    found = system.campaign.spec
    assert [one.copies for one in found.members] == copies
    assert list(found.phases[0].weights.values()) == copies


async def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"training_config\.settings.*n_environments"):
        await create_integrated_rl_system(training_config={"settings": {"n_environments": "x"}})


def test_results_print_as_numbers_and_read_as_mappings() -> None:
    result = EnvironmentResult(average_reward=0.51234, success_rate=0.5, training_time=2.0)
    assert f"{result:.3f}" == "0.512"
    assert result["success_rate"] == 0.5


def test_a_gym_trainer_rewards_each_environment_by_its_threads() -> None:
    trainer = create_weave_gym_trainer(
        {"math": ["task_completion", "efficiency"], "code": [SAFETY, COHERENCE]}, critics=1
    )
    with pytest.raises(InvalidInput, match="call initialize_weave_algorithms"):
        trainer.campaign(["math"], 20)
    assert trainer.initialize_weave_algorithms()["code"].reward_threads == [SAFETY, COHERENCE]
    found = trainer.campaign(["math", "code"], 20).spec
    assert [list(m.threads) for m in found.members] == [
        [RewardThread.TASK_COMPLETION, RewardThread.EFFICIENCY],
        [SAFETY, COHERENCE],
    ]
    assert found.weave.critics == 1
    assert found.phases[0].rounds * found.weave.total_timesteps == 20 * 50


def test_apollos_groups_play_as_many_episodes_as_were_asked_for() -> None:
    found = create_apollo_weave_trainer(
        total_episodes=10_000, coherence_nodes=20, safety_nodes=20, creativity_nodes=60
    ).campaign.spec
    assert list(found.policies) == ["language"]
    steps = 0
    for phase in found.phases:
        for one in found.members:
            if one.name in phase.weights:
                training = found.training(
                    one, policy=None, environment=one.environment, seed=0
                ).weave
                assert training.n_environments == one.copies
                steps += phase.rounds * training.updates * training.batch_size
    assert steps / 50 == pytest.approx(10_000, rel=0.1)
    assert [list(phase.weights) for phase in found.phases] == [
        ["coherence"],
        ["coherence", "safety"],
        ["coherence", "safety", "creativity"],
        ["coherence", "safety", "creativity"],
    ]
    with pytest.raises(InvalidInput, match="safety_nodes is 0"):
        create_apollo_weave_trainer(safety_nodes=0)


def history(*balanced: float) -> list[dict[str, Any]]:
    return [
        {"phase": f"p{n // 2}" if n else "", "balanced": b, "scores": {"a": b}, "weights": {}}
        for n, b in enumerate(balanced)
    ]


@pytest.mark.parametrize(
    ("balanced", "converged", "effective"),
    [
        ((0.1, 0.3, 0.5, 0.5, 0.51), True, True),
        ((0.1, 0.3, 0.5, 0.6, 0.7), False, True),
        ((0.5, 0.4, 0.4, 0.4, 0.4), True, False),
        ((0.1, 0.9, 0.2, 0.2, 0.2), True, False),  # the second phase lost most of it again
        ((0.1, 0.2), False, True),
    ],
)
def test_apollos_analysis_says_whether_it_converged_and_the_curriculum_helped(
    balanced: tuple[float, ...], converged: bool, effective: bool
) -> None:
    found = analyze(history(*balanced))
    assert found["convergence_analysis"]["converged"] is converged
    assert found["curriculum_effectiveness"]["curriculum_effective"] is effective
    assert found["objectives"]["a"] == {
        "first": balanced[0],
        "last": balanced[-1],
        "best": max(balanced),
    }


def test_what_is_at_its_default_is_not_sent() -> None:
    assert MemberReport(job_id="a").model_dump() == {"job_id": "a"}
