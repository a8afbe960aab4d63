"""Templates with parameters, and overlays for environments.

A template is a manifest with `{{ name }}` in its values. A value that is nothing but one
placeholder takes the parameter's type, so `learning_rate: "{{ lr }}"` becomes a number. An
`environments` section at the root maps an environment's name to a JSON merge patch (RFC 7396).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loomos.errors import FieldError, InvalidManifest

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")


def placeholders(document: Any) -> set[str]:
    """Names of all parameters that a template uses."""
    if isinstance(document, str):
        return set(_PLACEHOLDER.findall(document))
    if isinstance(document, Mapping):
        return set().union(*(placeholders(v) for v in document.values()))
    if isinstance(document, list):
        return set().union(*(placeholders(v) for v in document))
    return set()


def substitute(document: Any, params: Mapping[str, Any]) -> Any:
    """Put parameters in their places; placeholders without a parameter stay."""
    if isinstance(document, str):
        whole = _PLACEHOLDER.fullmatch(document)
        if whole and whole[1] in params:
            return params[whole[1]]
        return _PLACEHOLDER.sub(lambda m: str(params[m[1]]) if m[1] in params else m[0], document)
    if isinstance(document, Mapping):
        return {key: substitute(value, params) for key, value in document.items()}
    if isinstance(document, list):
        return [substitute(value, params) for value in document]
    return document


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch: null removes, mappings merge, all else replaces (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def check_parameters(template: Any, params: Mapping[str, Any], source: str) -> None:
    """Refuse parameters that the template does not use.

    Raises:
        InvalidManifest: naming each of them.
    """
    known = placeholders(template)
    unknown = sorted(set(params) - known)
    if unknown:
        raise InvalidManifest(
            [
                FieldError(
                    path=name,
                    message="the template has no such parameter; it has "
                    + (", ".join(sorted(known)) or "none"),
                )
                for name in unknown
            ],
            source,
        )
