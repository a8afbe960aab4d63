"""Training by real ranks: exact resume, re-sharding, damaged checkpoints, early ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from activities.rank_host import HostedProcess
from loomos.errors import InvalidData
from loomos.jobs.training import CheckpointRef
from loomos.storage.layout import checkpoint_prefix, fence_key
from loomos.training.fences import open_generation, read_fence
from tests.gangs import Lab, resumes_to_the_same_bits

MakeLab = Callable[..., Lab]


def lora(method: str = "lora") -> dict[str, Any]:
    return {"method": method, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}


@pytest.mark.parametrize(
    ("changes", "nodes", "ranks"),
    [
        pytest.param({}, 2, 1, id="ddp on 2 nodes"),
        pytest.param({}, 1, 4, id="ddp with 4 ranks", marks=pytest.mark.slow),
        pytest.param({"strategy": {"type": "fsdp2"}}, 2, 1, id="fsdp2"),
        pytest.param({"tuning": lora()}, 2, 1, id="lora with dropout", marks=pytest.mark.slow),
        pytest.param({"tuning": lora("qlora")}, 1, 2, id="qlora", marks=pytest.mark.slow),
        pytest.param(
            {"tuning": {"micro_batch_size": 2}}, 1, 2, id="accumulation", marks=pytest.mark.slow
        ),
        pytest.param({"tuning": {"precision": "bf16"}}, 1, 2, id="bf16", marks=pytest.mark.slow),
    ],
)
async def test_a_killed_run_resumes_to_the_same_bits(
    lab: MakeLab, changes: dict[str, Any], nodes: int, ranks: int
) -> None:
    undisturbed, disturbed = lab(**changes), lab(**changes)
    await resumes_to_the_same_bits(undisturbed, disturbed, nodes, ranks)


async def test_the_same_ranks_on_other_nodes_give_the_same_bits(lab: MakeLab) -> None:
    undisturbed, moved = lab(), lab()
    whole = await undisturbed.run(nodes=2, ranks=2)
    await moved.run(nodes=2, ranks=2, at_step=15, then=HostedProcess.terminate)
    assert not list(moved.root.glob("scratch-*/**/save-*"))  # on no node
    done = await moved.run(nodes=1, ranks=4)
    assert moved.weights(done.outcome.checkpoint) == undisturbed.weights(whole.outcome.checkpoint)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
async def test_other_ranks_keep_data_order_and_loss(lab: MakeLab, strategy: str) -> None:
    steady, resized = lab(strategy={"type": strategy}), lab(strategy={"type": strategy})
    await steady.run(ranks=2)
    first = await resized.run(ranks=2, at_step=12, then=HostedProcess.terminate)
    await resized.run(ranks=4, at_step=22, then=HostedProcess.terminate)
    done = await resized.run(ranks=1)

    assert first.outcome.status == "stopped"
    assert done.outcome.step == 30
    expected = steady.losses()[1]
    for of_generation in resized.losses().values():
        for step, loss in of_generation.items():
            assert loss == pytest.approx(expected[step], rel=2e-3), step


async def test_a_stopped_run_checkpoints_where_it_stands(lab: MakeLab) -> None:
    job = lab()
    stopped = await job.run(at_step=13, then=HostedProcess.terminate)
    assert stopped.outcome.status == "stopped"
    assert stopped.outcome.checkpoint == CheckpointRef(generation=1, step=stopped.outcome.step)
    assert stopped.outcome.step >= 13
    assert (1, stopped.outcome.step) in job.committed()


def corrupt_byte(job: Lab, prefix: str) -> None:
    key = next(o.key for o in job.store.objects(prefix) if o.key.endswith(".distcp"))
    data = bytearray(job.store.get(key))
    data[len(data) // 2] ^= 1
    job.store.put(key, bytes(data))


def delete_shard(job: Lab, prefix: str) -> None:
    job.store.delete([f"{prefix}.metadata"])


def cut_manifest(job: Lab, prefix: str) -> None:
    key = f"{prefix}manifest.json"
    job.store.put(key, job.store.get(key)[:100])


@pytest.mark.parametrize(
    "damage",
    [
        corrupt_byte,
        pytest.param(delete_shard, marks=pytest.mark.slow),
        pytest.param(cut_manifest, marks=pytest.mark.slow),
    ],
)
async def test_a_damaged_checkpoint_is_passed_over_and_reported(
    lab: MakeLab, damage: Callable[[Lab, str], None]
) -> None:
    undisturbed, damaged = lab(), lab()
    whole = await undisturbed.run()
    await damaged.run(at_step=27)
    assert damaged.committed() == [(1, 10), (1, 20)]
    damage(damaged, checkpoint_prefix(damaged.job_id, 1, 20))

    resumed = await damaged.run()

    assert resumed.outcome.resumed_from == CheckpointRef(generation=1, step=10)
    assert resumed.outcome.skipped == [CheckpointRef(generation=1, step=20)]
    assert resumed.reports[0].progress.skipped == [CheckpointRef(generation=1, step=20)]
    assert damaged.weights(resumed.outcome.checkpoint) == undisturbed.weights(
        whole.outcome.checkpoint
    )


async def test_a_replaced_generation_cannot_commit(lab: MakeLab) -> None:
    """A gang that sleeps through the loss of its lease and goes on is fenced off."""
    job = lab()
    opened: list[int] = []

    def replace(process: HostedProcess) -> None:
        opened.append(
            open_generation(job.store, job.job_id, "newer", from_scratch=False).generation
        )

    zombie = await job.run(at_step=12, then=replace)

    assert opened == [2]
    assert zombie.codes == [1]
    assert any("has been replaced" in failure["message"] for failure in zombie.failures)
    assert read_fence(job.store, job.job_id, 2).accepted == [CheckpointRef(generation=1, step=10)]
    assert job.committed() == [(1, 10)]


async def test_what_a_zombie_commits_late_counts_for_nobody(lab: MakeLab) -> None:
    job = lab()
    await job.run(at_step=13)
    plan = open_generation(job.store, job.job_id, "second", from_scratch=False)
    late = checkpoint_prefix(job.job_id, 1, 25)
    job.store.put(f"{late}manifest.json", b"{}")
    again = open_generation(job.store, job.job_id, "third", from_scratch=False)
    assert plan.accepted == again.accepted == [CheckpointRef(generation=1, step=10)]
    assert again.generation == 3
    assert json.loads(job.store.get(fence_key(job.job_id, 3)))["claim"] == "third"


async def test_old_checkpoints_go_but_the_best_stays(lab: MakeLab) -> None:
    job = lab(
        data={"validation_split": 0.1},
        tuning={"evaluate_every": 10, "evaluate_sequences": 8, "max_steps": 30},
        runtime={"checkpoint_steps": 5, "keep_checkpoints": 2},
    )
    done = await job.run()
    assert job.committed() == [(1, 25), (1, 30)]
    assert done.outcome.validation_loss is not None
    assert done.outcome.validation_loss < 5.0


async def test_early_stopping_ends_a_run_that_no_longer_improves(lab: MakeLab) -> None:
    job = lab(
        data={"validation_split": 0.1},
        tuning={"evaluate_every": 2, "evaluate_sequences": 4, "learning_rate": 1e-12},
        runtime={"early_stopping": {"patience": 3, "min_delta": 0.01}},
    )
    done = await job.run()
    assert (done.outcome.reason, done.outcome.step) == ("early_stopping", 8)
    assert done.outcome.status == "completed"


async def test_a_diverging_loss_is_fatal(lab: MakeLab) -> None:
    job = lab()
    # The root of a negative variance: the first loss is not a number.
    job.spec.model.config["rms_norm_eps"] = -1.0  # type: ignore[union-attr]
    failed = await job.run()
    assert failed.codes == [1]
    assert "LossDiverged" in {failure["type"] for failure in failed.failures}


async def test_a_model_config_that_does_not_fit_is_fatal_and_named(lab: MakeLab) -> None:
    job = lab()
    job.spec.model.config["hidden_size"] = "wide"  # type: ignore[union-attr]
    failed = await job.run()
    assert {f["type"] for f in failed.failures} == {"InvalidModel"}
    assert "hidden_size" in failed.failures[0]["message"]


async def test_an_epoch_has_as_many_steps_as_its_tokens_fill(lab: MakeLab) -> None:
    job = lab(
        tuning={"max_steps": None, "num_epochs": 1, "batch_size": 32, "sequence_length": 512},
        data={"include": ["queues.py", "locks.py"]},
    )
    done = await job.run()
    index = job.store.get(job.inputs.training.uri)
    facts = json.loads(index)["files"]
    tokens = sum(f["size_bytes"] + f["documents"] for f in facts)
    assert done.outcome.total_steps == -(-tokens // (32 * 512))
    assert done.outcome.step == done.outcome.total_steps


async def test_a_tokenizer_can_be_trained_on_the_data(lab: MakeLab) -> None:
    job = lab(tuning={"max_steps": 4})
    model = job.spec.model
    assert model is not None
    job.spec = job.spec.model_copy(
        update={"model": model.model_copy(update={"tokenizer": "bpe:400"})}
    )
    done = await job.run()
    assert done.outcome.step == 4
    trained = json.loads(job.store.get(f"jobs/{job.job_id}/tokenizer.json"))
    assert len(trained["model"]["vocab"]) == 400


def test_a_missing_dataset_is_named(lab: MakeLab) -> None:
    with pytest.raises(InvalidData, match="does not exist"):
        lab(data={"training_dataset": "/no/such/folder"})


def test_a_dataset_without_documents_is_refused(lab: MakeLab) -> None:
    with pytest.raises(InvalidData, match=r"no documents.*\*\.nothing"):
        lab(data={"include": ["*.nothing"]})
