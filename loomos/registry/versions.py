"""Versions of models in the store: written once, listed, verified, deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.jobs.serving import FileFacts
from loomos.registry.aliases import Aliases
from loomos.registry.references import ModelRef, parse_reference
from loomos.storage import Store
from loomos.storage.layout import attestation_key, blob_key, model_prefix
from loomos.storage.register import Register

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

MODELS = "models/"
MANIFEST = "manifest.json"
"""Written last of a version, once it is signed: without it the version does not exist."""
DRAFT = "unsigned.json"
"""The manifest of a version that waits for its signature."""
SIGNATURE = "model.sig"
FEWEST_DIGITS = 6
"""A version may be named by its first digits."""
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".joblib", ".npy")
"""Formats that may run code when loaded, or that nothing here reads."""


class VersionManifest(BaseModel):
    """`manifest.json` of a version."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str
    """Model."""
    version: str
    """Digest that names it."""
    key_prefix: str
    """Where its files are."""
    size_bytes: int
    """Size of all files."""
    weights_sha256: str
    """Digest of the weights' files."""
    files: dict[str, FileFacts]
    """Every file but the manifest."""
    lineage: dict[str, Any] = {}
    """Job, inputs and step, or who uploaded it."""

    @property
    def adapter_base(self) -> str | None:
        """`NAME@VERSION` that its adapter stands on, if it has one on a registered base."""
        base = self.lineage.get("base_version")
        has_adapter = any(name.startswith("adapter/") for name in self.files)
        return str(base) if base and has_adapter else None


class Registry:
    """The registry in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[str]:
        """Every model."""
        return [c.rstrip("/") for c in self._store.children(MODELS) if c.endswith("/")]

    def versions(self, name: str) -> list[str]:
        """Versions of a model, in the order of their digests; none if there is no such model."""
        return [
            child.rstrip("/")
            for child in self._store.children(f"{MODELS}{name}/")
            if self._store.exists(f"{MODELS}{name}/{child}{MANIFEST}")
        ]

    def aliases(self, name: str) -> Aliases:
        """Aliases of a model."""
        return Aliases(self._store, name)

    def notes(self, name: str, version: str) -> Register:
        """What people wrote about a version."""
        from loomos.storage.layout import model_notes_prefix

        return Register(self._store, model_notes_prefix(name, version))

    def manifest(self, ref: ModelRef | str) -> VersionManifest:
        """The manifest of a version.

        Raises:
            NotFound: there is no such model or version.
            InvalidInput: the reference is malformed, or fits several versions.
        """
        ref = parse_reference(ref) if isinstance(ref, str) else ref
        version = self._select(ref)
        key = f"{model_prefix(ref.name, version)}{MANIFEST}"
        return VersionManifest.model_validate_json(self._store.get(key))

    def check_servable(self, manifest: VersionManifest) -> None:
        """Look into a version's `config.json` for a type of model that the engine cannot serve.

        Raises:
            InvalidInput: it is of such a type.
        """
        from loomos.manifest import UNSERVABLE_TYPES, unservable

        if "config.json" not in manifest.files:
            return
        config = json.loads(self._store.get(f"{manifest.key_prefix}config.json"))
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind in UNSERVABLE_TYPES:
            raise InvalidInput(f"{manifest.name}@{manifest.version}: {unservable(kind)}")

    def _select(self, ref: ModelRef) -> str:
        if not ref.selector:
            stable = self.aliases(ref.name).read().aliases.get("stable")
            if stable:
                return stable
            versions = self.versions(ref.name)
            if len(versions) == 1:
                return versions[0]
            known = ", ".join(f"{ref.name}@{v}" for v in versions[:5])
            raise NotFound(
                f"model {ref.name!r} has no stable version; name one of: {known}"
                if versions
                else f"no model {ref.name!r}; `loomos models list` shows them"
            )
        if self._store.exists(f"{model_prefix(ref.name, ref.selector)}{MANIFEST}"):
            return ref.selector
        aliases = self.aliases(ref.name).read().aliases
        if ref.selector in aliases:
            return aliases[ref.selector]
        versions = self.versions(ref.name)
        fitting = [v for v in versions if v.startswith(ref.selector)]
        if len(ref.selector) >= FEWEST_DIGITS and len(fitting) == 1:
            return fitting[0]
        if not versions:
            raise NotFound(f"no model {ref.name!r}; `loomos models list` shows them")
        known = ", ".join([*sorted(aliases), *versions[:5]])
        raise NotFound(
            f"model {ref.name!r} has no alias or version {ref.selector!r}; it has {known}"
        )

    def write(
        self,
        name: str,
        files: Mapping[str, FileFacts],
        lineage: dict[str, Any],
        sign: Callable[[VersionManifest], None] = lambda manifest: None,
    ) -> VersionManifest:
        """Make a version of blobs that the store has; the same files make the same version.

        Args:
            name: the model's name.
            files: digest and size by path.
            lineage: where it comes from.
            sign: called before the version exists for anybody; if it fails, it does not.

        Raises:
            InvalidInput: the files are no model that can be served.
            NotFound: a blob is missing.
        """
        check_files(files)
        version, weights = identify(name, files)
        manifest = VersionManifest(
            name=name,
            version=version,
            key_prefix=model_prefix(name, version),
            size_bytes=sum(facts.size_bytes for facts in files.values()),
            weights_sha256=weights,
            files=dict(files),
            lineage=lineage,
        )
        for path, facts in files.items():
            key = manifest.key_prefix + path
            if not self._store.exists(key):
                self._store.copy(blob_key(facts.sha256), key)
        content = {"format": 1, **manifest.model_dump(mode="json")}
        encoded = json.dumps(content, indent=1, sort_keys=True).encode()
        sign(manifest)
        self._store.put_if_absent(manifest.key_prefix + MANIFEST, encoded)
        return self.manifest(ModelRef(name, version))

    def unsigned(self, key_prefix: str) -> bytes:
        """The manifest of a version that is to be signed, or that was signed already.

        Raises:
            NotFound: there is neither.
        """
        try:
            return self._store.get(key_prefix + DRAFT)
        except NotFound:
            return self._store.get(key_prefix + MANIFEST)

    def commit(self, key_prefix: str, manifest: bytes) -> None:
        """Make a version exist, now that it is signed. Doing it twice is no error."""
        self._store.put_if_absent(key_prefix + MANIFEST, manifest)
        self._store.delete([key_prefix + DRAFT])

    def delete(self, ref: ModelRef) -> None:
        """Remove a version that no alias points at; its signatures stay.

        Raises:
            Conflict: an alias points at it.
        """
        version = self._select(ref)
        pointing = [a for a, v in self.aliases(ref.name).read().aliases.items() if v == version]
        if pointing:
            raise Conflict(
                f"{ref.name}@{version} is {', '.join(sorted(pointing))}; move the alias, or "
                f"remove it: `loomos models unalias {ref.name} {min(pointing)}`"
            )
        prefix = model_prefix(ref.name, version)
        # The manifest first: without it the version does not exist.
        self._store.delete([prefix + MANIFEST])
        self._store.delete([item.key for item in self._store.objects(prefix)])


def check_files(files: Mapping[str, FileFacts]) -> None:
    """Raise `InvalidInput` unless these files can be a version: safetensors, and a config."""
    for path in files:
        parts = path.split("/")
        if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
            raise InvalidInput(f"files: {path!r} is no path below the model's folder")
        if path.lower().endswith(UNSAFE_SUFFIXES):
            raise InvalidInput(
                f"files: {path!r} may run code when it is loaded; save the model with "
                "safe_serialization=True, which writes .safetensors"
            )
    if MANIFEST in files:
        raise InvalidInput(f"files: {MANIFEST!r} is written by the registry; leave it out")
    if "config.json" not in files:
        raise InvalidInput("files: config.json is missing; name a folder of save_pretrained()")
    if not any(path.endswith(".safetensors") for path in files):
        raise InvalidInput("files: there are no .safetensors weights")


def identify(name: str, files: Mapping[str, FileFacts]) -> tuple[str, str]:
    """Version and digest of the weights, from the files' digests."""
    digests = {path: facts.sha256 for path, facts in files.items()}
    weights = {path: d for path, d in digests.items() if path.endswith(".safetensors")}
    version = _digest({"model": name, "files": digests})[:16]
    return version, _digest(weights)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verified_files(
    store: Store, manifest: VersionManifest, key: ec.EllipticCurvePublicKey
) -> dict[str, str]:
    """SHA-256 by file, as the version's OpenSSF signature vouches for them.

    Raises:
        VerificationFailed: it is not signed, not by this key, or for other files.
    """
    from loomos.loomdb.errors import VerificationFailed
    from loomos.provenance.attestation import open_model_signature

    where = attestation_key(manifest.name, manifest.version, SIGNATURE)
    try:
        signature = store.get(where).decode()
    except NotFound:
        raise VerificationFailed(
            f"{manifest.name}@{manifest.version} is not signed; only signed versions are loaded"
        ) from None
    signed = open_model_signature(signature, key)
    found = {path: facts.sha256 for path, facts in manifest.files.items()}
    if signed != found:
        changed = sorted(p for p in signed.keys() | found.keys() if signed.get(p) != found.get(p))
        raise VerificationFailed(
            f"the signature of {manifest.name}@{manifest.version} is for other files: "
            + ", ".join(changed[:3])
        )
    return signed
