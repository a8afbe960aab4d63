"""A one-way mirror of versions and aliases in an MLflow registry, for whoever looks there.

Needs the extra `mlflow`. The files stay where they are; MLflow gets their place, digests and what
Prism said. Mirroring again changes only what has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from loomos.client.delivery_models import ModelDetail
from loomos.errors import InvalidInput, Unavailable

VERSION_TAG, WEIGHTS_TAG, VERDICT_TAG = (
    "loomos.version",
    "loomos.weights_sha256",
    "loomos.verdict",
)


class Mirrored(NamedTuple):
    """What a mirroring has done."""

    created: int
    """Versions that were new to MLflow."""
    aliases: int
    """Aliases that were moved or taken away."""


def mirror(versions: Sequence[ModelDetail], store_url: str, tracking_uri: str) -> Mirrored:
    """Let an MLflow registry show a model's versions and aliases.

    Args:
        versions: every version of one model.
        store_url: URL of the store that their files are in.
        tracking_uri: of MLflow, such as `http://host:5000` or `sqlite:///mlflow.db`.

    Raises:
        InvalidInput: there is no version, or the extra is not installed.
        Unavailable: MLflow refuses, or cannot be reached.
    """
    if not versions:
        raise InvalidInput("there is no version to mirror")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise InvalidInput("mirroring needs MLflow: pip install 'loomos[mlflow]'") from None
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        return _mirror(client, versions, store_url)
    except MlflowException as error:
        raise Unavailable(f"MLflow at {tracking_uri}: {error}") from error


def _mirror(client: Any, versions: Sequence[ModelDetail], store_url: str) -> Mirrored:
    name = versions[0].name
    if all(model.name != name for model in client.search_registered_models()):
        client.create_registered_model(name, description="Mirrored from LoomOS.")
    known = {
        found.tags[VERSION_TAG]: found.version
        for found in client.search_model_versions(f"name='{name}'")
        if VERSION_TAG in found.tags
    }
    created = 0
    for detail in versions:
        verdict = detail.verification.verdict if detail.verification else "not verified"
        if detail.version not in known:
            made = client.create_model_version(
                name,
                source=f"{store_url}/models/{name}/{detail.version}",
                tags={VERSION_TAG: detail.version, WEIGHTS_TAG: detail.weights_sha256},
                description=detail.notes.description,
            )
            known[detail.version] = made.version
            created += 1
        client.set_model_version_tag(name, known[detail.version], VERDICT_TAG, verdict)
    return Mirrored(created, _mirror_aliases(client, name, versions[0].aliases, known))


def _mirror_aliases(client: Any, name: str, aliases: dict[str, str], known: dict[str, str]) -> int:
    wanted = {alias: known[v] for alias, v in aliases.items() if v in known}
    present = {
        alias: str(v) for alias, v in dict(client.get_registered_model(name).aliases).items()
    }
    changed = 0
    for alias, number in wanted.items():
        if present.get(alias) != str(number):
            client.set_registered_model_alias(name, alias, number)
            changed += 1
    for alias in present.keys() - wanted.keys():
        client.delete_registered_model_alias(name, alias)
        changed += 1
    return changed
