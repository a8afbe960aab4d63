"""The mirror against a real MLflow registry in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from loomos.client.delivery_models import ModelDetail
from loomos.errors import InvalidInput
from loomos.registry.mlflow_mirror import mirror

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, of its dependencies

FIRST, SECOND = "a" * 16, "b" * 16


def detail(version: str, aliases: dict[str, str]) -> ModelDetail:
    return ModelDetail(
        name="helper",
        version=version,
        versions=[FIRST, SECOND],
        aliases=aliases,
        size_bytes=1,
        weights_sha256=version * 4,
        is_signed=True,
        files={},
        lineage={},
    )


def test_versions_and_aliases_are_mirrored_and_follow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    aliases = {"stable": FIRST, "canary": SECOND}
    both = [detail(version, aliases) for version in (FIRST, SECOND)]
    assert mirror(both, "s3://loomos", uri) == (2, 2)
    assert mirror(both, "s3://loomos", uri) == (0, 0)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    stable = client.get_model_version_by_alias("helper", "stable")
    assert stable.tags["loomos.version"] == FIRST
    assert stable.tags["loomos.weights_sha256"] == FIRST * 4
    assert stable.source == f"s3://loomos/models/helper/{FIRST}"
    promoted = [detail(version, {"stable": SECOND}) for version in (FIRST, SECOND)]
    assert mirror(promoted, "s3://loomos", uri) == (0, 2)
    assert client.get_model_version_by_alias("helper", "stable").tags["loomos.version"] == SECOND
    assert set(dict(client.get_registered_model("helper").aliases)) == {"stable"}


def test_nothing_to_mirror_is_said() -> None:
    with pytest.raises(InvalidInput, match="no version"):
        mirror([], "s3://loomos", "sqlite:///x.db")
