"""What the settings say of every job, filled in where its manifest says nothing."""

from __future__ import annotations

from typing import Any

from loomos.settings import JobDefaults


def with_defaults(document: dict[str, Any], defaults: JobDefaults) -> dict[str, Any]:
    """The document of a training job, with `defaults.job` of the settings where it is silent.

    Args:
        document: as it is sent; not changed.
        defaults: from the settings.
    """
    spec = dict(document.get("spec") or {})
    places = (
        ("resources", "gpu_type", defaults.resources.gpu_type),
        ("runtime", "max_duration", defaults.resources.timeout),
    )
    for section, name, value in places:
        if value is not None:
            spec[section] = {name: value} | dict(spec.get(section) or {})
    return {**document, "spec": spec}
