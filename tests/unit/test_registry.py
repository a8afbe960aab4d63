"""Registers, aliases, references and versions, on a local store."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.jobs.serving import FileFacts
from loomos.loomdb.errors import VerificationFailed
from loomos.provenance.attestation import model_signature
from loomos.provenance.dsse import make_key
from loomos.registry import Registry, parse_reference, verified_files
from loomos.registry.references import ModelRef
from loomos.storage._local import LocalStore
from loomos.storage.layout import attestation_key, blob_key
from loomos.storage.register import KEPT_REVISIONS, Register

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# card"}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def put_files(store: LocalStore, files: dict[str, bytes] = FILES) -> dict[str, FileFacts]:
    facts = {}
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        store.put_if_absent(blob_key(digest), content)
        facts[name] = FileFacts(sha256=digest, size_bytes=len(content))
    return facts


def test_only_one_of_many_writers_gets_a_revision(store: LocalStore) -> None:
    def write(number: int) -> bool:
        try:
            Register(store, "r/").write(1, str(number).encode())
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(64)))
    assert sum(won) == 1
    newest = Register(store, "r/").read()
    assert newest is not None and newest.data == str(won.index(True)).encode()


def test_a_reader_sees_only_what_is_newer(store: LocalStore) -> None:
    register = Register(store, "r/")
    assert register.read() is None
    register.write(1, b"a")
    register.write(2, b"b")
    assert register.read() == (2, b"b")
    assert register.read(after=1) == (2, b"b")
    assert register.read(after=2) is None


def test_old_revisions_are_pruned_and_the_newest_stays(store: LocalStore) -> None:
    register = Register(store, "r/")
    for number in range(1, 2 * KEPT_REVISIONS + 1):
        register.write(number, str(number).encode())
    kept = register.numbers()
    assert kept[-1] == 2 * KEPT_REVISIONS
    assert len(kept) < 2 * KEPT_REVISIONS
    assert register.read() == (2 * KEPT_REVISIONS, str(2 * KEPT_REVISIONS).encode())


def test_the_same_files_are_the_same_version(store: LocalStore) -> None:
    registry = Registry(store)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: registry.write("m", put_files(store), {}), range(8)))
    assert {m.version for m in made} == {made[0].version}
    assert registry.versions("m") == [made[0].version]
    other = registry.write("m", put_files(store, {**FILES, "model.safetensors": b"new"}), {})
    assert other.version != made[0].version
    assert len(registry.versions("m")) == 2


def test_two_publishers_of_different_models_never_make_the_same_version(store: LocalStore) -> None:
    registry = Registry(store)
    facts = put_files(store)
    assert registry.write("a", facts, {}).version != registry.write("b", facts, {}).version


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.bin", "may run code"),
        ("weights/part.PT", "may run code"),
        ("../outside.json", "no path below"),
        ("/etc/passwd.json", "no path below"),
        ("manifest.json", "written by the registry"),
    ],
)
def test_files_that_a_version_cannot_have(store: LocalStore, name: str, message: str) -> None:
    facts = put_files(store, {**FILES, name: b"x"})
    with pytest.raises(InvalidInput, match=message):
        Registry(store).write("m", facts, {})


def test_a_version_needs_config_and_safetensors(store: LocalStore) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json is missing"):
        Registry(store).write("m", put_files(store, {"model.safetensors": b"w"}), {})
    with pytest.raises(InvalidInput, match=r"no \.safetensors"):
        Registry(store).write("m", put_files(store, {"config.json": b"{}"}), {})


def test_references_resolve_names_aliases_and_first_digits(store: LocalStore) -> None:
    registry = Registry(store)
    with pytest.raises(NotFound, match="no model 'm'"):
        registry.manifest("m")
    first = registry.write("m", put_files(store), {})
    assert registry.manifest("m").version == first.version
    second = registry.write("m", put_files(store, {**FILES, "README.md": b"2"}), {})
    with pytest.raises(NotFound, match="has no stable version"):
        registry.manifest("m")
    registry.aliases("m").move({"stable": second.version}, by="w", request="1")
    assert registry.manifest("m").version == second.version
    assert registry.manifest("m@stable").version == second.version
    assert registry.manifest(f"m@{first.version[:8]}").version == first.version
    with pytest.raises(NotFound, match="no alias or version 'gone'"):
        registry.manifest("m@gone")


@pytest.mark.parametrize("text", ["", "M", "a b", "m@", "m@UPPER", "../m", "m@a/b"])
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="names no model"):
        parse_reference(text)


def test_an_alias_moves_by_compare_and_set_and_remembers_the_previous(store: LocalStore) -> None:
    aliases = Registry(store).aliases("m")
    aliases.move({"stable": "a" * 16}, by="w", request="1", expected={"stable": None})
    with pytest.raises(Conflict, match="is at a"):
        aliases.move({"stable": "b" * 16}, by="w", request="2", expected={"stable": "c" * 16})
    state = aliases.move({"stable": "b" * 16, "canary": None}, by="w", request="3")
    assert state.aliases == {"stable": "b" * 16, "previous": "a" * 16}
    again = aliases.move({"stable": "b" * 16, "canary": None}, by="w", request="3")
    assert again == state
    assert [s.request for s in aliases.history()] == ["3", "1"]


def test_of_many_movers_that_expect_the_same_one_wins(store: LocalStore) -> None:
    aliases = Registry(store).aliases("m")
    aliases.move({"stable": "0" * 16}, by="w", request="0")

    def move(number: int) -> bool:
        version = f"{number:016x}"
        try:
            aliases.move(
                {"stable": version}, by="w", request=version, expected={"stable": "0" * 16}
            )
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(move, range(1, 33))) == 1


@pytest.mark.parametrize("alias", ["", "Stable", "9lives", "deadbeefdeadbeef", "a/b"])
def test_names_that_no_alias_can_have(store: LocalStore, alias: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be one"):
        Registry(store).aliases("m").move({alias: "a" * 16}, by="w", request="1")


def test_a_version_is_deleted_unless_an_alias_points_at_it(store: LocalStore) -> None:
    registry = Registry(store)
    made = registry.write("m", put_files(store), {})
    registry.aliases("m").move({"stable": made.version}, by="w", request="1")
    with pytest.raises(
        Conflict, match="is stable; move the alias, or remove it: `loomos models unalias m stable`"
    ):
        registry.delete(ModelRef("m", made.version))
    registry.aliases("m").move({"stable": None}, by="w", request="2")
    registry.delete(ModelRef("m", made.version))
    assert registry.versions("m") == []
    assert list(store.objects(made.key_prefix)) == []


def test_only_what_the_right_key_signed_is_verified(store: LocalStore) -> None:
    key = load_pem_private_key(make_key().encode(), None)
    other = load_pem_private_key(make_key().encode(), None)
    made = Registry(store).write("m", put_files(store), {})
    with pytest.raises(VerificationFailed, match="is not signed"):
        verified_files(store, made, key.public_key())
    files = {name: facts.model_dump() for name, facts in made.files.items()}
    where = attestation_key("m", made.version, "model.sig")
    store.put(where, json.dumps(model_signature("m", files, key)).encode())
    found = verified_files(store, made, key.public_key())
    assert found["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(VerificationFailed):
        verified_files(store, made, other.public_key())
    changed = made.model_copy(
        update={
            "files": {**made.files, "model.safetensors": FileFacts(sha256="0" * 64, size_bytes=1)}
        }
    )
    with pytest.raises(VerificationFailed, match=r"for other files: model\.safetensors"):
        verified_files(store, changed, key.public_key())
