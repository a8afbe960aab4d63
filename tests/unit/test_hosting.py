"""Versions come and go in a server while requests run; none holds up another, nor does a death."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from loomos.errors import NotFound
from loomos.registry import VersionManifest
from loomos.serving import hosting
from loomos.serving.hosting import Hosted, ModelHost
from loomos.storage._local import LocalStore


class FakeEngine:
    """Stands for the process of a model."""

    def __init__(self, name: str) -> None:
        self.name, self.is_alive, self.is_closed = name, True, False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelHost:
    made = ModelHost(
        LocalStore(tmp_path), cast(Any, None), tmp_path, lambda folder: cast(Any, FakeEngine("x"))
    )
    fields = {"key_prefix": "", "size_bytes": 1, "weights_sha256": "", "files": {}}

    def manifest(version: str) -> VersionManifest:
        name, _, digest = version.partition("@")
        return VersionManifest.model_validate({"name": name, "version": digest, **fields})

    monkeypatch.setattr(made._registry, "manifest", manifest)
    monkeypatch.setattr(made, "_fetch", lambda manifest, below="": tmp_path)
    monkeypatch.setattr(hosting, "say_golden", lambda hosted: "said")
    return made


def engine_of(hosted: Hosted | None) -> FakeEngine:
    assert hosted is not None
    return cast(FakeEngine, hosted.engine)


def test_a_request_that_does_not_end_holds_up_no_other_version(host: ModelHost) -> None:
    host.hold({"a@1"})
    old = host.get("a@1")
    assert old is not None
    with old.use():
        host.hold({"a@2"})
        assert host.loaded == ["a@2"] and host.get("a@1") is None
        assert not engine_of(old).is_closed and not host.has_work
        with pytest.raises(NotFound), old.use():
            pass
        host.hold({"a@2", "b@1"})
        assert host.loaded == ["a@2", "b@1"]
    assert host.has_work
    host.hold({"a@2", "b@1"})
    assert engine_of(old).is_closed and not host.has_work


def test_a_dead_engine_is_made_anew_beside_requests_that_have_not_heard_yet(
    host: ModelHost,
) -> None:
    host.hold({"a@1", "b@1"})
    dead, other = host.get("a@1"), host.get("b@1")
    assert dead is not None and other is not None
    with dead.use(), other.use():
        engine_of(dead).is_alive = False
        assert host.has_work and host.get("a@1") is None and host.loaded == ["b@1"]
        host.hold({"a@1", "b@1"})
        assert host.loaded == ["a@1", "b@1"] and not host.has_work
        assert engine_of(host.get("a@1")) is not engine_of(dead)
        assert host.get("b@1") is other
    host.hold({"a@1", "b@1"})
    assert engine_of(dead).is_closed and not engine_of(other).is_closed


def test_a_version_that_is_wanted_again_while_it_leaves_keeps_its_engine(host: ModelHost) -> None:
    host.hold({"a@1"})
    first = host.get("a@1")
    assert first is not None
    with first.use():
        host.hold(set())
        host.hold({"a@1"})
        assert engine_of(host.get("a@1")) is engine_of(first)
    host.hold({"a@1"})
    assert not engine_of(first).is_closed
    host.close()
    assert engine_of(first).is_closed
