"""Which versions this process holds: fetched, verified, loaded, shared, let go.

A version that is an adapter over a registered base goes into its base's engine; any other gets an
engine of its own. Nothing is loaded whose OpenSSF signature does not verify. What is let go of
finishes the requests that still run, while others are loaded.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loomos.errors import InvalidModel, NotFound
from loomos.registry import Registry, VersionManifest, verified_files
from loomos.retention.local import mark_used, sweep_folder
from loomos.serving.adapters import BASE_SLOT
from loomos.serving.engine import Engine
from loomos.serving.engine_process import EngineOptions, EngineProcess
from loomos.serving.loading import load_model
from loomos.serving.rows import Piece, Row, Sampling
from loomos.storage import Store, file_sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

log = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter/"
AnyEngine = Engine | EngineProcess
"""What generates, in this process or in one of its own."""
GOLDEN_PROMPT, GOLDEN_TOKENS = "The quick brown fox", 16


@dataclass(eq=False, kw_only=True)
class Hosted:
    """A version that can answer."""

    version: str
    """`NAME@VERSION`."""
    engine: AnyEngine
    """What generates."""
    slot: int = BASE_SLOT
    """Its adapter in that engine."""
    users: int = 0
    """Requests that run."""
    is_leaving: bool = False
    """Takes no new requests."""
    idle: threading.Condition = field(default_factory=threading.Condition)
    """Guards `users`."""

    @contextmanager
    def use(self) -> Iterator[Hosted]:
        """Hold the version for one request.

        Raises:
            NotFound: it is being let go.
        """
        with self.idle:
            if self.is_leaving:
                raise NotFound(f"{self.version} is being unloaded")
            self.users += 1
        try:
            yield self
        finally:
            with self.idle:
                self.users -= 1
                self.idle.notify_all()

    def retire(self) -> None:
        """Take no new requests."""
        with self.idle:
            self.is_leaving = True

    def await_idle(self) -> None:
        """Wait until the last request has ended."""
        with self.idle:
            while self.users:
                self.idle.wait()


class ModelHost:
    """The versions of this process. `hold` blocks; everything else may be called from anywhere.

    Args:
        store: where versions are.
        key: who must have signed them.
        folder: for the files of versions; kept between starts.
        start_engine: makes the engine of a model in a folder; see `in_process`, `in_own_process`.
    """

    def __init__(
        self,
        store: Store,
        key: ec.EllipticCurvePublicKey,
        folder: Path,
        start_engine: Callable[[Path], AnyEngine],
    ) -> None:
        self._store, self._key, self._folder = store, key, folder
        self._registry = Registry(store)
        self._start_engine = start_engine
        self._hosted: dict[str, Hosted] = {}
        self._engines: dict[str, AnyEngine] = {}
        self._leaving: list[Hosted] = []
        self._dead: list[AnyEngine] = []
        self.failed: dict[str, str] = {}
        self.goldens: dict[str, str] = {}

    @property
    def loaded(self) -> list[str]:
        """Versions that can answer."""
        return sorted(v for v, hosted in list(self._hosted.items()) if hosted.engine.is_alive)

    @property
    def has_work(self) -> bool:
        """Whether `hold` has something to do: an engine has died, or what is let go of is idle."""
        lost = any(not engine.is_alive for engine in list(self._engines.values()))
        return lost or any(not hosted.users for hosted in list(self._leaving))

    def get(self, version: str) -> Hosted | None:
        """A version, if it is loaded."""
        hosted = self._hosted.get(version)
        return hosted if hosted is not None and hosted.engine.is_alive else None

    def hold(self, wanted: set[str]) -> None:
        """Load what is wanted and not there, let go of the rest; failures go to `failed`.

        A version whose engine has died is loaded again. Nothing here waits for a request: versions
        with requests that still run are freed by a later call.
        """
        for name, engine in list(self._engines.items()):
            if not engine.is_alive:
                self._dead.append(self._engines.pop(name))
        for version, hosted in list(self._hosted.items()):
            if not hosted.engine.is_alive:
                log.error("the engine of %s has died", version)
                self._let_go(version)
        self.failed = {v: reason for v, reason in self.failed.items() if v in wanted}
        for version in sorted(wanted - self._hosted.keys() - self.failed.keys()):
            try:
                hosted = self._load(version)
                self.goldens[version] = say_golden(hosted)
                self._hosted[version] = hosted
                log.info("loaded %s", version)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                log.exception("cannot load %s", version)
                self.failed[version] = reason[:500]
        for version in sorted(self._hosted.keys() - wanted):
            self._let_go(version)
        self._free()

    def load(self, version: str) -> Hosted:
        """Load one version and hold it.

        Raises:
            LoomOSError: it cannot be loaded.
        """
        if version not in self._hosted:
            self._hosted[version] = self._load(version)
        return self._hosted[version]

    def close(self) -> None:
        """Finish what runs, let go of everything."""
        self.hold(set())
        for hosted in self._leaving:
            hosted.await_idle()
        self._free()

    def sweep(self, older_than_s: float) -> None:
        """Remove files of versions that are not held and were last loaded long ago."""
        held = [
            self._folder / v.replace("@", "/") for v in [*list(self._hosted), *list(self._engines)]
        ]
        for model in self._folder.glob("*"):
            sweep_folder(model, older_than_s, held)

    def _load(self, version: str) -> Hosted:
        manifest = self._registry.manifest(version)
        base = manifest.adapter_base
        if base is not None:
            try:
                return self._load_adapter(version, manifest, base)
            except InvalidModel as error:
                log.warning("%s is served whole: %s", version, error)
        return Hosted(version=version, engine=self._engine(version, manifest))

    def _load_adapter(self, version: str, manifest: VersionManifest, base: str) -> Hosted:
        folder = self._fetch(manifest, ADAPTER_FOLDER)
        engine = self._engine(base, self._registry.manifest(base))
        try:
            slot = engine.load_adapter(folder / "adapter")
        except InvalidModel:
            self._close_unused()
            raise
        return Hosted(version=version, engine=engine, slot=slot)

    def _engine(self, version: str, manifest: VersionManifest) -> AnyEngine:
        """The engine of a whole model, made if it is not there."""
        engine = self._engines.get(version)
        if engine is None:
            engine = self._engines[version] = self._start_engine(self._fetch(manifest))
        return engine

    def _let_go(self, version: str) -> None:
        hosted = self._hosted.pop(version)
        self.goldens.pop(version, None)
        hosted.retire()
        self._leaving.append(hosted)
        log.info("let go of %s", version)

    def _free(self) -> None:
        """Free adapters and engines that nobody uses any more."""
        for hosted in [hosted for hosted in self._leaving if not hosted.users]:
            self._leaving.remove(hosted)
            if hosted.slot != BASE_SLOT:
                hosted.engine.unload_adapter(hosted.slot)
        self._close_unused()

    def _close_unused(self) -> None:
        used = {id(hosted.engine) for hosted in (*self._hosted.values(), *self._leaving)}
        for name, engine in list(self._engines.items()):
            if id(engine) not in used:
                del self._engines[name]
                engine.close()
        for engine in [engine for engine in self._dead if id(engine) not in used]:
            self._dead.remove(engine)
            engine.close()

    def _fetch(self, manifest: VersionManifest, below: str = "") -> Path:
        """The version's files on this machine, each as its signature says.

        Raises:
            VerificationFailed: the version is not signed, or a file is not what was signed.
        """
        from loomos.loomdb.errors import VerificationFailed

        signed = verified_files(self._store, manifest, self._key)
        folder = self._folder / manifest.name / manifest.version
        mark_used(folder)
        for path, digest in signed.items():
            if below and not path.startswith(below):
                continue
            if not below and path.startswith(ADAPTER_FOLDER):
                continue
            target = folder / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                self._store.get_file(manifest.key_prefix + path, target)
            if file_sha256(target) != digest:
                target.unlink()
                raise VerificationFailed(
                    f"{path} of {manifest.name}@{manifest.version} is not what was signed"
                )
        return folder


def in_process(max_batch: int) -> Callable[[Path], AnyEngine]:
    """Engines that are threads of this process; best where nothing else runs in it."""
    return lambda folder: Engine(*load_model(folder), max_batch=max_batch)


def in_own_process(options: EngineOptions) -> Callable[[Path], AnyEngine]:
    """Engines that each have a process of their own."""
    return lambda folder: EngineProcess(folder, options)


def say_golden(hosted: Hosted) -> str:
    """Let a version say something, which warms it up; returns the digest of what it said.

    Raises:
        InvalidModel: it cannot generate.
    """
    engine, done, said = hosted.engine, threading.Event(), list[Piece]()

    def deliver(piece: Piece) -> None:
        said.append(piece)
        if piece.finish_reason is not None:
            done.set()

    engine.submit(
        Row(
            prompt=engine.tokenizer(GOLDEN_PROMPT)["input_ids"],
            sampling=Sampling(max_tokens=GOLDEN_TOKENS, temperature=0),
            deliver=deliver,
            slot=hosted.slot,
        )
    )
    done.wait()
    if said[-1].error:
        raise InvalidModel(f"{hosted.version} cannot generate: {said[-1].error}")
    text = "".join(piece.text for piece in said)
    return hashlib.sha256(text.encode()).hexdigest()
