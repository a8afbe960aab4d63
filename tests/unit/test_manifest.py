from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loomos.client.job_spec import JobSpec
from loomos.errors import InvalidManifest
from loomos.manifest import JobManifest, ManifestValidator, json_schema
from tests.malformed import Malformed, malformed
from tests.stack import tiny_job
from tests.work import calls_of


def errors_of(document: Any) -> dict[str, str]:
    result = ManifestValidator().validate(JobManifest.from_dict(document))
    return {error.path: error.message for error in result.errors}


@pytest.mark.parametrize("case", malformed(), ids=lambda case: case.name)
def test_what_is_wrong_is_named(case: Malformed) -> None:
    with pytest.raises(InvalidManifest) as caught:
        _ = JobManifest.from_text(json.dumps(case.document)).job
    assert any(error.path.startswith(case.field) for error in caught.value.errors)


def test_there_are_at_least_fifty_malformed_manifests() -> None:
    assert len(malformed()) >= 50


def test_every_error_is_found_at_once() -> None:
    document = tiny_job("Wrong Name")
    document["spec"]["priority"] = 9
    document["spec"]["runtime"]["max_duration"] = "soon"
    assert set(errors_of(document)) == {
        "metadata.name",
        "spec.priority",
        "spec.runtime.max_duration",
    }


def test_every_rule_across_fields_that_is_broken_is_an_error_of_its_own() -> None:
    document = tiny_job("x", max_steps=None, batch_size=7)
    document["spec"]["runtime"]["early_stopping"] = {}
    document["spec"]["rollout"] = {"endpoint": "chat"}
    result = ManifestValidator().validate(JobManifest.from_dict(document))
    assert {error.path for error in result.errors} == {"spec"}
    messages = [error.message for error in result.errors]
    assert messages == [
        "runtime.early_stopping needs data.validation_dataset or data.validation_split",
        "rollout needs a verification; add spec.verify, or set rollout.require_verification: false",
        "the run has no end; set model.fine_tuning_config.max_steps or num_epochs",
        "model.fine_tuning_config.batch_size (7) must be a multiple of the number of ranks (2)",
    ]


def test_rules_of_several_parts_and_several_of_one_part_are_listed_together() -> None:
    document = tiny_job("x")
    document["spec"]["resources"] = {
        "memory": "1Gi", "memory_gb": 1, "storage": "1Gi", "storage_gb": 1,
    }  # fmt: skip
    document["spec"]["runtime"] = {"deadline": "2030-01-01T00:00:00Z"}
    result = ManifestValidator().validate(JobManifest.from_dict(document))
    assert [(error.path, error.message) for error in result.errors] == [
        ("spec.resources", "give memory or memory_gb, not both"),
        ("spec.resources", "give storage or storage_gb, not both"),
        ("spec.runtime", "deadline needs estimated_duration or max_duration; add one"),
    ]


def test_a_rule_that_means_nothing_while_another_is_broken_is_left_out() -> None:
    document = tiny_job("x", batch_size=7)
    document["spec"] |= {"algorithm": "grpo", "environment": "math", "data": None}
    assert errors_of(document) == {
        "spec": "model.fine_tuning_config.batch_size (7) counts completions and must be a multiple "
        "of grpo.group_size (8)"
    }


def test_what_the_members_of_a_union_say_is_one_error() -> None:
    document = tiny_job("x")
    document["spec"]["resources"]["nodes"] = {"min": 3, "max": 2}
    result = ManifestValidator().validate(JobManifest.from_dict(document))
    [error] = result.errors
    assert error.path == "spec.resources.nodes"
    assert error.message.endswith("; or min (3) is above max (2); swap them")


def test_a_key_that_reads_like_the_member_of_a_union_stays_in_the_path() -> None:
    document = tiny_job("x")
    document["spec"] |= {"list[a": 0, "int": 0}
    assert set(errors_of(document)) == {"spec.list[a", "spec.int"}


@pytest.mark.parametrize("name", ["list[{}", "x{}"])
def test_of_many_errors_the_first_are_told_and_how_many_more_there_are(name: str) -> None:
    def broken(errors: int) -> Any:
        document = tiny_job("x")
        document["spec"] |= {name.format(n): 0 for n in range(errors)}
        return document

    few, many = (calls_of(lambda n=n: errors_of(broken(n))) for n in (1000, 5000))
    assert many < 6 * few
    found = errors_of(broken(5000))
    assert len(found) == 101
    assert found[f"spec.{name.format(99)}"].startswith("unknown key; known here: ")
    assert found["$"] == "and 4,900 more errors, which are not told; mend these first"


def test_what_many_members_of_unions_say_of_one_path_is_joined_once() -> None:
    document = tiny_job("x")
    document["metadata"]["labels"] = {f"-{n}": "" for n in range(5000)}
    found = errors_of(document)
    assert len(found) == 101
    assert all(len(message) < 200 for message in found.values())


def test_an_unknown_key_gets_a_suggestion() -> None:
    document = tiny_job("x")
    document["spec"]["model"]["fine_tuning_config"]["batch_sise"] = 4
    assert errors_of(document) == {
        "spec.model.fine_tuning_config.batch_sise": "unknown key; did you mean batch_size?"
    }


def test_yaml_scalars_are_those_of_yaml_1_2() -> None:
    manifest = JobManifest.from_text(
        "apiVersion: loomos.ai/v1\nkind: TrainingJob\n"
        "metadata: {name: probe, labels: {answer: no}}\n"
        "spec: {algorithm: noop, runtime: {max_duration: 1h30m}}\n"
    )
    assert manifest.job.metadata.labels == {"answer": "no"}
    duration = manifest.job.spec.runtime.max_duration
    assert duration is not None
    assert duration.total_seconds() == 5400


def test_small_learning_rates_are_numbers() -> None:
    manifest = JobManifest.from_text(json.dumps(tiny_job("x")).replace("0.002", "5e-5"))
    model = manifest.job.spec.model
    assert model is not None
    assert model.fine_tuning_config.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML or JSON at line"),
        ("a: 1\na: 2", "given twice"),
        ("- a", "a manifest is a mapping"),
        ("", "a manifest is a mapping"),
        ("1: x", "keys are text"),
        ("a: " + "x" * 1_100_000, "larger than 1 MiB"),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message):
        JobManifest.from_text(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"job\.yaml.*No such file"):
        JobManifest.from_file(tmp_path / "job.yaml")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    document = tiny_job("sweep")
    document["spec"]["model"]["fine_tuning_config"]["learning_rate"] = "{{ lr }}"
    document["spec"]["data"]["training_dataset"] = "/data/{{ dataset }}/train"
    document["environments"] = {
        "production": {"spec": {"priority": 1, "data": {"include": None}}},
    }
    path = tmp_path / "template.yaml"
    path.write_text(json.dumps(document))
    return path


def test_parameters_keep_their_type(template: Path) -> None:
    job = JobManifest.from_template(template, {"lr": 1e-4, "dataset": "books"}).job
    assert job.spec.model is not None and job.spec.data is not None
    assert job.spec.model.fine_tuning_config.learning_rate == 1e-4
    assert job.spec.data.training_dataset == "/data/books/train"


def test_a_missing_parameter_is_named(template: Path) -> None:
    manifest = JobManifest.from_template(template, {"dataset": "books"})
    with pytest.raises(InvalidManifest, match="lr: parameter not given"):
        _ = manifest.job


def test_an_unknown_parameter_is_named(template: Path) -> None:
    with pytest.raises(InvalidManifest, match="rate: the template has no such parameter"):
        JobManifest.from_template(template, {"rate": 1})


def test_an_environment_is_a_merge_patch(template: Path) -> None:
    base = JobManifest.from_template(template, {"lr": 1e-4, "dataset": "books"})
    job = base.for_environment("production").job
    assert job.spec.data is not None
    assert (job.spec.priority, job.spec.data.include) == (1, None)
    assert base.job.spec.priority == 3


def test_an_unknown_environment_is_named(template: Path) -> None:
    with pytest.raises(InvalidManifest, match="no environment 'staging'; it has production"):
        JobManifest.from_file(template).for_environment("staging")


def test_the_schema_accepts_and_rejects_as_the_models_do() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(tiny_job("x"))
    unseen = [case.name for case in malformed() if validator.is_valid(case.document)]
    # Rules over several fields are beyond JSON Schema.
    assert unseen == [
        "spec.data.training_dataset='https://example.org/data'",
        "spec.data.training_dataset='s3://bucket-only'",
        "spec.resources.nodes={'min': 3, 'max': 2}",
        "no end",
        "batch not divisible",
        "no estimate",
        "no data",
    ]


def test_a_manifest_survives_its_own_json() -> None:
    job = JobManifest.from_dict(tiny_job("x")).job
    again = type(job).model_validate_json(job.model_dump_json())
    assert again == job


# --- the short way ------------------------------------------------------------------------------


def test_a_policy_in_a_few_words() -> None:
    spec = JobSpec(
        name="walker",
        algorithm="weave",
        environment="language",
        config={"learning_rate": 1e-4, "batch_size": 64, "num_epochs": 3, "critics": 3},
    )
    job = spec.to_manifest().job.spec
    assert job.environment is not None and job.environment.name == "language"
    assert (job.weave.learning_rate, job.weave.batch_size) == (1e-4, 64)
    assert (job.weave.n_epochs, job.weave.critics) == (3, 3)
    assert job.divisible_by_ranks == 8


def test_rewards_for_a_language_model_in_a_few_words() -> None:
    spec = JobSpec(
        name="solver",
        algorithm="grpo",
        environment={"name": "math", "config": {"terse": True}},
        config={
            "model_name": "init:llama",
            "tokenizer": "byte",
            "max_steps": 3,
            "batch_size": 16,
            "group_size": 4,
            "beta": 0.04,
        },
    )
    job = spec.to_manifest().job.spec
    assert job.model is not None
    assert (job.grpo.group_size, job.grpo.beta) == (4, 0.04)
    assert job.model.fine_tuning_config.batch_size == 16
    assert job.divisible_by_ranks == 4


def test_a_config_without_a_model_is_not_lost() -> None:
    with pytest.raises(InvalidManifest, match="base_model"):
        _ = JobSpec(name="x", config={"learning_rate": 1e-4}).to_manifest().job
