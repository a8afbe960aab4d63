"""Which gateway a command talks to, wherever it is run, and whose credentials it sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loomos import contexts
from loomos.client.http import LoomOSClient
from loomos.errors import InvalidInput, NotFound, Unavailable
from loomos.settings import load_settings
from tests.stack import a_stack_at

LOCAL, ELSEWHERE = "http://127.0.0.1:1", "http://elsewhere:1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No settings but those of the test, in a folder without a stack."""
    for name in ("LOOMOS_STATE_DIR", "LOOMOS_CONTEXT", "LOOMOS_TOKEN", "LOOMOS_CLUSTER__ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("LOOMOS_CONFIG", str(home / "config.yaml"))
    monkeypatch.chdir(tmp_path / "work")
    yield home
    contexts.choose(None)


def seen() -> tuple[str, str | None]:
    """Endpoint and token of a command."""
    settings = load_settings()
    return settings.cluster.endpoint, settings.token()


def test_a_stack_is_found_from_any_folder_once_it_was_started(tmp_path: Path, home: Path) -> None:
    folder = a_stack_at(tmp_path / "proj" / ".loomos", LOCAL)
    assert contexts.register_stack(folder.root) == "proj"
    assert contexts.register_stack(folder.root) == "proj"
    assert seen() == (LOCAL, folder.token_file.read_text())
    assert contexts.contexts_file().stat().st_mode & 0o077 == 0
    assert folder.token_file.read_text() not in contexts.contexts_file().read_text()


def test_the_nearest_stack_comes_before_the_current_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = a_stack_at(tmp_path / "near" / ".loomos", "http://127.0.0.1:2")
    contexts.register_stack(a_stack_at(tmp_path / "far" / ".loomos", LOCAL).root)
    (tmp_path / "near" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "near" / "deep")
    assert seen() == ("http://127.0.0.1:2", near.token_file.read_text())


def test_a_named_context_comes_before_the_nearest_stack_and_the_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = a_stack_at(tmp_path / "far" / ".loomos", LOCAL)
    contexts.register_stack(far.root)
    contexts.register_stack(a_stack_at(tmp_path / "other" / ".loomos", "http://127.0.0.1:3").root)
    a_stack_at(tmp_path / "work" / ".loomos", "http://127.0.0.1:2")
    home.joinpath("config.yaml").write_text("cluster: {endpoint: 'http://file'}")
    assert seen()[0] == "http://file"
    monkeypatch.setenv("LOOMOS_CONTEXT", "far")
    assert seen() == (LOCAL, far.token_file.read_text())
    contexts.choose("other")
    assert seen()[0] == "http://127.0.0.1:3"


def test_only_the_flag_comes_before_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = a_stack_at(tmp_path / "far" / ".loomos", LOCAL)
    contexts.register_stack(far.root)
    monkeypatch.setenv("LOOMOS_CLUSTER__ENDPOINT", ELSEWHERE)
    monkeypatch.setenv("LOOMOS_CONTEXT", "far")
    assert seen() == (ELSEWHERE, None), "a stack's token is for its own gateway"
    contexts.choose("far")
    assert seen() == (LOCAL, far.token_file.read_text())


def test_the_token_of_a_variable_is_not_that_of_a_remote_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("theirs\n")
    with contexts.changing() as known:
        known.contexts["prod"] = contexts.Context(endpoint=ELSEWHERE, token_file=tmp_path / "token")
    monkeypatch.setenv("LOOMOS_TOKEN", "mine")
    contexts.choose("prod")
    assert seen() == (ELSEWHERE, "theirs")


def test_a_stack_that_is_gone_is_said_so_and_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = a_stack_at(tmp_path / "a" / "proj" / ".loomos", LOCAL)
    second = a_stack_at(tmp_path / "b" / "proj" / ".loomos", "http://127.0.0.1:2")
    assert contexts.register_stack(first.root) == "proj"
    assert contexts.register_stack(second.root) == "proj-2"
    (first.root / "stack.json").unlink()
    monkeypatch.setenv("LOOMOS_CONTEXT", "proj")
    with pytest.raises(NotFound, match="context delete proj"):
        load_settings()
    monkeypatch.setenv("LOOMOS_CONTEXT", "nope")
    with pytest.raises(NotFound, match="known: proj, proj-2"):
        load_settings()
    third = a_stack_at(tmp_path / "c" / ".loomos", "http://127.0.0.1:3")
    assert contexts.register_stack(third.root) == "c"
    assert set(contexts.read_contexts().contexts) == {"proj-2", "c"}
    assert contexts.read_contexts().current == "c"


@pytest.mark.parametrize(
    "content", ["- 1", "contexts: {x: {}}", "contexts: {x: {endpoint: a, state_dir: b}}", "{"]
)
def test_a_file_of_contexts_that_is_wrong_is_named(home: Path, content: str) -> None:
    home.mkdir()
    contexts.contexts_file().write_text(content)
    with pytest.raises(InvalidInput, match=r"contexts\.yaml"):
        load_settings()


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_gateway_that_is_named_with_its_token_need_not_be_the_nearest_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    """Another stack may listen where a stopped one did."""
    a_stack_at(tmp_path / "work" / ".loomos", LOCAL)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"jobs": [], "next_cursor": None})

    given = (LOCAL, "a token of the other stack") if is_named else ()
    transport = httpx.MockTransport(answer)
    async with LoomOSClient(*given, transport=transport) as client:
        if is_named:
            assert (await client.list_jobs()).jobs == []
        else:
            with pytest.raises(Unavailable, match="so no token was sent"):
                await client.list_jobs()
    assert asked == ["/api/v1/jobs"] if is_named else "/api/v1/jobs" not in asked
