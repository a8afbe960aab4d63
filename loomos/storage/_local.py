"""A store in a local folder: for one machine, for bare `torchrun`, and as the contract's twin."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from loomos.errors import NotFound
from loomos.storage import ObjectInfo

PLACINGS = 100
"""Times that a folder may vanish before that is an error."""

_PARTIAL = ".partial-"


class LocalStore:
    """Objects are files; they appear by rename, so a reader never sees half of one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        with self._whole(key) as partial:
            partial.write_bytes(data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        target = self._path(key)
        partial = self._partial()
        partial.write_bytes(data)
        try:
            _place(target, lambda: os.link(partial, target))
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            partial.unlink()
        return True

    def put_file(self, key: str, path: Path) -> None:
        """See `Store.put_file`."""
        with self._whole(key) as partial:
            shutil.copyfile(path, partial)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"no object {key!r} in {self.url}") from None

    def stream(self, key: str) -> Iterator[bytes]:
        """See `Store.stream`."""
        try:
            file = self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"no object {key!r} in {self.url}") from None

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(1024 * 1024):
                    yield piece

        return pieces()

    def get_file(self, key: str, path: Path) -> None:
        """See `Store.get_file`."""
        partial = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
        try:
            shutil.copyfile(self._path(key), partial)
        except FileNotFoundError:
            raise NotFound(f"no object {key!r} in {self.url}") from None
        partial.replace(path)

    def copy(self, source: str, target: str) -> None:
        """See `Store.copy`."""
        try:
            self.put_file(target, self._path(source))
        except FileNotFoundError:
            raise NotFound(f"no object {source!r} in {self.url}") from None

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def size_bytes(self, key: str) -> int | None:
        """See `Store.size_bytes`."""
        path = self._path(key)
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:
            return None

    def objects(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """See `Store.objects`."""
        folder = self.root / prefix.rpartition("/")[0]
        keys = sorted(
            path.relative_to(self.root).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(_PARTIAL)
        )
        for key in keys:
            if key.startswith(prefix) and key > after:
                with contextlib.suppress(FileNotFoundError):
                    facts = self._path(key).stat()
                    yield ObjectInfo(
                        key=key,
                        size_bytes=facts.st_size,
                        modified_at=datetime.fromtimestamp(facts.st_mtime, UTC),
                    )

    def children(self, prefix: str, after: str = "") -> list[str]:
        """See `Store.children`."""
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        names = (
            child.name + "/" * child.is_dir()
            for child in folder.iterdir()
            if not child.name.startswith(_PARTIAL)
        )
        return sorted(name for name in names if name > after)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`; a folder goes with the last object in it."""
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or not _removed(folder):
                    break

    def _path(self, key: str) -> Path:
        return self.root / key

    @contextlib.contextmanager
    def _whole(self, key: str) -> Iterator[Path]:
        target, partial = self._path(key), self._partial()
        try:
            yield partial
            _place(target, lambda: partial.replace(target))
        finally:
            partial.unlink(missing_ok=True)

    def _partial(self) -> Path:
        """A file in the making; in the root, which is there whatever else is deleted."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / f"{_PARTIAL}{uuid.uuid4().hex}"


def _place(target: Path, put: Callable[[], object]) -> None:
    """Put a file into its folder, which may vanish with the last file that is deleted from it."""
    for attempt in range(PLACINGS):
        try:
            _make(target.parent)
            put()
            return
        except FileNotFoundError:
            if attempt == PLACINGS - 1:
                raise


def _make(folder: Path) -> None:
    """Make a folder, unless there is one.

    Raises:
        FileNotFoundError: it vanished while one looked, or a file stands in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileNotFoundError(f"{folder} is no folder") from error


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # something is in it, or it is gone
        return False
    return True
