"""Which files of this machine a document may name, and which files of a folder are data.

A person who submits a document sees through the eyes of the process that carries it out, which
may read keys that the person may not. So such a process reads only below the folders that its
settings allow (`data.roots`), never a hidden one, never its own state, and no link leads out.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loomos.errors import InvalidData
from loomos.settings import Settings, find_state_dir

KNOWN_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".rst", ".py"})
"""Files that are data where no globs say which."""

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is taken of a folder that holds a model or a tokenizer."""


class FoundFile(NamedTuple):
    """A file below a folder."""

    name: str
    """Path below the folder."""
    path: Path
    """Where it is."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What a process reads for others."""

    roots: tuple[Path, ...] = ()
    """Folders that are allowed, with what is below them; resolved."""
    closed: tuple[Path, ...] = ()
    """Folders that stay closed even below an allowed one; resolved."""

    @classmethod
    def of(cls, settings: Settings) -> Reach:
        """What the settings allow: `data.roots`, without keys, tokens and the stack's own state."""
        auth, log = settings.auth, settings.loomdb
        keys = [auth.signing_key_file, auth.token_file, log.log_key_file, log.attestation_key_file]
        closed = [key.expanduser().resolve().parent for key in keys if key is not None]
        state = find_state_dir()
        if state is not None:
            closed.append(state.resolve())
        roots = tuple(root.expanduser().resolve() for root in settings.data.roots or ())
        return cls(roots=roots, closed=tuple(closed))

    def open(self, text: str, field: str) -> Path:
        """The path that `text` names, with every link followed.

        Raises:
            InvalidData: it is not below an allowed folder. Whether there is such a file is not
                said of what may not be named.
        """
        path = Path(text)
        if not path.is_absolute():
            raise InvalidData(
                f"{field}: {text!r} is relative, which means nothing here; `loomos jobs submit` "
                "and the SDK upload what lies beside the document"
            )
        try:
            allowed, real = self.allows(path), path.resolve()
        except (ValueError, OSError, RuntimeError) as error:  # a NUL in it, links in a circle
            raise InvalidData(f"{field}: {text[:100]!r} is no path: {error}") from None
        if not allowed:
            raise InvalidData(
                f"{field}: {text!r} is outside the folders that documents may name (data.roots: "
                f"{', '.join(map(str, self.roots)) or 'none'}); submit it with the CLI or the SDK "
                "where the file is, which upload it"
            )
        return real

    def allows(self, path: Path) -> bool:
        """Whether a path may be read, where it stands and where links lead."""
        real = path.resolve()
        return any(self._holds(root, real) for root in self.roots)

    def _holds(self, root: Path, real: Path) -> bool:
        if not real.is_relative_to(root):
            return False
        if any(part.startswith(".") for part in real.relative_to(root).parts):
            return False
        return not any(real.is_relative_to(closed) for closed in self.closed)


def is_wanted(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Whether a file of a dataset's folder is data.

    Args:
        name: path below the folder.
        include: globs of what is taken. Default: every known suffix.
        exclude: globs of what is left out.
    """
    if _matches(name, exclude):
        return False
    if include is not None:
        return _matches(name, include)
    return Path(name).suffix.lower() in KNOWN_SUFFIXES


def data_files(
    folder: Path, include: Sequence[str] | None, exclude: Sequence[str], reach: Reach | None = None
) -> Iterator[FoundFile]:
    """The files of a folder that are data, sorted by name; empty ones are none.

    Args:
        folder: where to look, however deep.
        include: globs of what is taken.
        exclude: globs of what is left out.
        reach: what may be read. Default: whatever this process may.

    Raises:
        InvalidData: a link leads out of what may be read.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not is_wanted(name, include, exclude) or not path.is_file():
            continue
        if reach is not None and not reach.allows(path):
            raise InvalidData(
                f"{name} is hidden, or a link out of the folders that documents may name; copy "
                "the file, or leave it out by `exclude`"
            )
        if path.stat().st_size:
            yield FoundFile(name, path)


def model_files(folder: Path) -> list[FoundFile]:
    """What counts of a folder that holds a model or a tokenizer."""
    return [
        FoundFile(path.name, path)
        for path in sorted(folder.iterdir())
        if path.is_file() and is_model_file(path.name)
    ]


def is_model_file(name: str) -> bool:
    """Whether a file of this name counts in a folder that holds a model or a tokenizer."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a glob fits a file's whole name or its last part; `*` crosses folders."""
    base = name.rpartition("/")[2]
    return any(fnmatch.fnmatch(n, pattern) for pattern in patterns for n in (name, base))
