"""The registry of a program's blocks.

A block is a class or function that some package has, described by a `BlockSpec`: a name, a version,
what it needs, and where it is. Packages may bring blocks of their own by the entry point group
`loomos.blocks`, whose entries name a `BlockSpec`.

Example:
    >>> registry = BlockRegistry()
    >>> await registry.register_block(BlockSpec(                           # doctest: +SKIP
    ...     name="counter", version="1.0.0", entry_point="collections:Counter"))
    >>> block = await registry.load_block("counter")                       # doctest: +SKIP
    >>> block.create_instance({"a": 2})                                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from pydantic import Field, field_validator

from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.manifest import Document

GROUP = "loomos.blocks"


class BlockSpec(Document):
    """What a block is."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?$", max_length=128)]
    """By which it is loaded."""
    version: str
    """Such as 1.0.0 (PEP 440)."""
    entry_point: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """Where it is, as `package.module:Name`."""
    category: str = ""
    """Such as `language_models`."""
    author: str = ""
    """Who made it."""
    description: str = ""
    """What it is for."""
    requirements: list[str] = Field(default_factory=list)
    """Packages that it needs, such as `torch>=2.0` (PEP 508)."""

    @field_validator("version")
    @classmethod
    def _is_version(cls, value: str) -> str:
        try:
            return str(Version(value))
        except InvalidVersion:
            raise ValueError("write a version such as 1.0.0") from None

    @field_validator("requirements")
    @classmethod
    def _are_requirements(cls, value: list[str]) -> list[str]:
        for requirement in value:
            try:
                Requirement(requirement)
            except InvalidRequirement:
                raise ValueError(f"{requirement!r}: write a package such as torch>=2.0") from None
        return value


@dataclass(frozen=True)
class Block:
    """A loaded block."""

    spec: BlockSpec
    """What it is."""
    factory: Callable[..., Any]
    """What makes instances of it."""

    def create_instance(self, config: Mapping[str, Any] | None = None) -> Any:
        """Make one, with the fields of `config` as named arguments."""
        return self.factory(**(config or {}))


class BlockRegistry:
    """Blocks of this process: those of installed packages, and those registered here."""

    def __init__(self) -> None:
        self._specs: dict[tuple[str, str], BlockSpec] = {}
        for entry in entry_points(group=GROUP):
            spec = entry.load()
            self._specs[spec.name, spec.version] = spec

    async def register_block(self, spec: BlockSpec) -> None:
        """Make a block known; the same one again changes nothing.

        Raises:
            Conflict: another block has this name and version.
        """
        known = self._specs.setdefault((spec.name, spec.version), spec)
        if known != spec:
            raise Conflict(
                f"block {spec.name} {spec.version} is registered with other contents; "
                "give the new one another version"
            )

    async def list_blocks(self, category: str | None = None) -> list[BlockSpec]:
        """All blocks, or those of a category, by name, newest version first."""
        found = [s for s in self._specs.values() if category is None or s.category == category]
        newest_first = sorted(found, key=lambda spec: Version(spec.version), reverse=True)
        return sorted(newest_first, key=lambda spec: spec.name)

    async def load_block(self, name: str, version: str | None = None) -> Block:
        """Import a block.

        Args:
            name: which.
            version: which of it. Default: the newest.

        Raises:
            NotFound: there is no such block.
            InvalidInput: what it needs is not installed, or its entry point is not there.
        """
        specs = [s for s in await self.list_blocks() if s.name == name]
        wanted = None if version is None else str(Version(version))
        spec = next((s for s in specs if wanted in (None, s.version)), None)
        if spec is None:
            known = ", ".join(f"{s.name} {s.version}" for s in await self.list_blocks()) or "none"
            raise NotFound(f"no block {name} {version or ''}; there are {known}")
        if lacking := _lacking(spec):
            raise InvalidInput(f"block {name} needs {', '.join(lacking)}; install it")
        module, _, attribute = spec.entry_point.partition(":")
        try:
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise InvalidInput(f"block {name}: {spec.entry_point} is not there: {error}") from error
        return Block(spec, found)


def _lacking(spec: BlockSpec) -> list[str]:
    """Requirements that are not met here."""
    lacking = []
    for text in spec.requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            lacking.append(f"{text} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            lacking.append(f"{text} ({installed} is installed)")
    return lacking
