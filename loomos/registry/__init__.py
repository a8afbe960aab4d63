"""The model registry: immutable versions named by digest, and aliases that move between them.

It owns no process and no table: versions, aliases and notes are objects in the store. Versions are
written once and signed; aliases change by compare-and-set, and only workflows move them.
"""

from __future__ import annotations

from loomos.registry.aliases import STABLE_ALIASES, Aliases, AliasState
from loomos.registry.references import ModelRef, parse_reference
from loomos.registry.versions import (
    Registry,
    VersionManifest,
    check_files,
    identify,
    verified_files,
)

__all__ = [
    "STABLE_ALIASES",
    "AliasState",
    "Aliases",
    "ModelRef",
    "Registry",
    "VersionManifest",
    "check_files",
    "identify",
    "parse_reference",
    "verified_files",
]
