"""What documents name for endpoints and rollouts, decided before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from loomos.errors import FieldError, InvalidInput, InvalidManifest
from loomos.jobs.serving import RemoteTarget
from loomos.manifest import RolloutPlan
from loomos.prism.detectors import find_serving_detector
from loomos.serving.remote import RemoteKeys, find_key


def check_remote(remote: RemoteTarget | None, keys: RemoteKeys, where: str) -> None:
    """Refuse a server elsewhere that would get a key which the operator does not send there.

    Args:
        remote: the server, if the document names one.
        keys: the operator's.
        where: path of the field in the document.

    Raises:
        InvalidManifest: with the field.
    """
    if remote is None:
        return
    try:
        find_key(remote, keys)
    except InvalidInput as error:
        message = str(error).removeprefix("api_key_env: ")
        field = FieldError(path=f"{where}.api_key_env", message=message)
        raise InvalidManifest([field], "request") from None


def check_detectors(names: list[str], where: str) -> None:
    """Refuse detectors that may not look at the answers of an endpoint.

    Raises:
        InvalidManifest: with each of them.
    """
    _check_detectors((f"{where}.{place}", name) for place, name in enumerate(names))


def check_guardrails(plan: RolloutPlan | None, where: str) -> None:
    """Refuse guardrails for whose detectors no endpoint can look.

    Raises:
        InvalidManifest: with each of them.
    """
    _check_detectors(
        (f"{where}.guardrails.{place}.name", guardrail.name)
        for place, guardrail in enumerate(plan.guardrails if plan else ())
        if guardrail.event == "detector"
    )


def _check_detectors(named: Iterable[tuple[str, str]]) -> None:
    errors: list[FieldError] = []
    for path, name in named:
        try:
            find_serving_detector(name)
        except InvalidInput as error:
            errors.append(FieldError(path=path, message=str(error).removeprefix("detector: ")))
    if errors:
        raise InvalidManifest(errors, "request")
