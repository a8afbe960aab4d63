"""An engine in its own process says what one in this process says, and its death is heard of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from peft import LoraConfig, get_peft_model

from loomos.errors import InvalidModel, Unavailable
from loomos.serving.engine import Engine
from loomos.serving.engine_process import EngineOptions, EngineProcess
from tests.unit.test_engine import PROMPTS, TOKENIZER, Asked, ask, make_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "m"
    make_model().save_pretrained(made)
    TOKENIZER.save_pretrained(made)
    return made


@pytest.fixture
def process(folder: Path) -> Iterator[EngineProcess]:
    made = EngineProcess(folder, EngineOptions(max_batch=4))
    yield made
    made.close()


def test_it_says_what_an_engine_here_says(process: EngineProcess) -> None:
    here = Engine(make_model(), TOKENIZER, max_batch=4)
    for temperature in (0.0, 1.0):
        wanted, said = (
            [
                Asked(p, temperature=temperature, seed=i, max_tokens=30)
                for i, p in enumerate(PROMPTS)
            ]
            for _ in range(2)
        )
        ask(here, wanted)
        ask(process, said)
        assert [item.text for item in said] == [item.text for item in wanted]
        tokens = [[item.pieces[-1].tokens for item in items] for items in (said, wanted)]
        assert tokens[0] == tokens[1]
        assert all(item.row.first_at is not None for item in said)
    here.close()
    assert process.context_length == 256


def test_streamed_rows_come_in_pieces(process: EngineProcess) -> None:
    streamed, whole = Asked("hello"), Asked("hello")
    streamed.row.is_streamed = True
    ask(process, [streamed, whole])
    assert len(streamed.pieces) > 1 == len(whole.pieces)
    assert streamed.text == whole.text


def test_a_row_that_nobody_wants_ends_early(process: EngineProcess) -> None:
    unwanted = Asked("hello", max_tokens=200)
    process.submit(unwanted.row)
    unwanted.row.cancel()
    assert unwanted.done.wait(60)
    assert unwanted.pieces[-1].finish_reason == "cancelled"
    assert unwanted.pieces[-1].tokens < 200


def test_adapters_come_and_go(process: EngineProcess, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(make_model(), lora).save_pretrained(tmp_path / "adapter")
    slot = process.load_adapter(tmp_path / "adapter")
    base, adapted = ask(process, [Asked("hello"), Asked("hello", slot=slot)])
    assert adapted.text != base.text
    process.unload_adapter(slot)
    assert process.load_adapter(tmp_path / "adapter") == slot
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "PREFIX", "r": 1}')
    with pytest.raises(InvalidModel, match="not plain LoRA"):
        process.load_adapter(tmp_path / "adapter")


def test_its_death_ends_its_rows_and_only_those(folder: Path) -> None:
    dying, other = EngineProcess(folder), EngineProcess(folder)
    rows = [Asked("hello", max_tokens=240) for _ in range(3)]
    for item in rows:
        dying.submit(item.row)
    os.kill(dying.pid, signal.SIGKILL)
    for item in rows:
        assert item.done.wait(60)
        assert "has ended (signal 9)" in item.pieces[-1].error
    assert not dying.is_alive
    with pytest.raises(Unavailable):
        dying.submit(Asked("hello").row)
    with pytest.raises(Unavailable, match="signal 9"):
        dying.load_adapter(folder)
    assert ask(other, [Asked("hello")])[0].pieces[-1].finish_reason == "length"
    dying.close()
    other.close()


def test_closing_finishes_what_was_submitted_whatever_signals_come(folder: Path) -> None:
    process = EngineProcess(folder)
    os.kill(process.pid, signal.SIGTERM)
    rows = [Asked("hello", max_tokens=100) for _ in range(20)]
    for item in rows:
        process.submit(item.row)
    process.close()
    assert [item.pieces[-1].finish_reason for item in rows] == ["length"] * 20
    with pytest.raises(Unavailable):
        process.submit(Asked("hello").row)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(InvalidModel):
        EngineProcess(tmp_path)


def test_it_does_not_outlive_its_parent(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from loomos.serving.engine_process import EngineProcess\n"
        "if __name__ == '__main__':\n"
        "    print(EngineProcess(Path(sys.argv[1])).pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
