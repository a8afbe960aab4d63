"""The serving engine against transformers and PEFT: same tokens, whoever joins or leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from loomos.errors import InvalidModel, Unavailable
from loomos.prism.looping import is_looping
from loomos.serving.engine import Engine
from loomos.serving.engine_process import EngineProcess
from loomos.serving.rows import Piece, Row, Sampling, choose_tokens
from loomos.serving.text import TextStream
from loomos.training.tokenizer import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
"""PEFT asks transformers for a name that is about to go."""

PROMPTS = ["hello", "a much longer prompt than the first one", "x", "def foo(bar):"]
TOKENIZER: Any = byte_tokenizer()


def make_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(TOKENIZER),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(make_model(), TOKENIZER, max_batch=4)
    yield made
    made.close()


class Asked:
    """A row and what came of it."""

    def __init__(self, prompt: str, slot: int = 0, **sampling: Any) -> None:
        self.pieces: list[Piece] = []
        self.done = threading.Event()
        chosen = {"max_tokens": 20, "temperature": 0.0, **sampling}
        self.row = Row(
            prompt=TOKENIZER(prompt)["input_ids"],
            sampling=Sampling(**chosen),
            deliver=self._deliver,
            slot=slot,
        )

    def _deliver(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if piece.finish_reason is not None:
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def ask(engine: Engine | EngineProcess, asked: list[Asked], apart_s: float = 0.0) -> list[Asked]:
    for item in asked:
        engine.submit(item.row)
        time.sleep(apart_s)
    for item in asked:
        assert item.done.wait(60)
    return asked


def greedy(model: Any, prompt: str, tokens: int = 20) -> list[int]:
    ids = TOKENIZER(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    found: list[int] = made[0, ids["input_ids"].shape[1] :].tolist()
    return found


@pytest.mark.parametrize("apart_s", [0.0, 0.003, 0.02])
def test_rows_that_join_and_leave_get_what_they_would_alone(engine: Engine, apart_s: float) -> None:
    asked = ask(engine, [Asked(PROMPTS[i % 4], max_tokens=8 + i) for i in range(12)], apart_s)
    for i, item in enumerate(asked):
        assert item.row.generated == greedy(engine.model, PROMPTS[i % 4], 8 + i)
        assert item.pieces[-1].finish_reason == "length"
        assert item.pieces[-1].tokens == 8 + i


def test_the_same_seed_samples_the_same_in_any_company(engine: Engine) -> None:
    alone = ask(engine, [Asked("hello", temperature=1.0, seed=7)])[0]
    company = [Asked(p, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    again = ask(engine, [*company, Asked("hello", temperature=1.0, seed=7)])[-1]
    assert again.row.generated == alone.row.generated
    other = ask(engine, [Asked("hello", temperature=1.0, seed=8)])[0]
    assert other.row.generated != alone.row.generated


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    rows = [Asked("x", temperature=1.0).row for _ in range(4000)]
    for number, row in enumerate(rows):
        row.generator = torch.Generator()
        row.generator.manual_seed(number)
    drawn = choose_tokens(logits, rows)
    assert [drawn.count(i) / 4000 for i in range(4)] == pytest.approx(
        [0.5, 0.3, 0.15, 0.05], abs=0.03
    )


def test_top_p_takes_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(500, 1)
    rows = [Asked("x", temperature=1.0, top_p=0.6).row for _ in range(500)]
    for number, row in enumerate(rows):
        row.generator = torch.Generator()
        row.generator.manual_seed(number)
    assert set(choose_tokens(logits, rows)) == {0, 1}


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    whole = ask(engine, [Asked("hello", max_tokens=40)])[0].text
    stop = whole[5:8]
    stopped = ask(engine, [Asked("hello", max_tokens=40, stop=(stop,))])[0]
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.pieces[-1].finish_reason == "stop"


def test_what_may_begin_a_stop_text_is_held_back_until_it_is_sure() -> None:
    stream = TextStream(TOKENIZER, ("abc",))
    said = [stream.add(token) for token in TOKENIZER("xababd")["input_ids"]]
    assert [text for text, _ in said] == ["x", "", "", "ab", "", "abd"]
    assert stream.finish() == ""


def test_streamed_and_whole_answers_say_the_same_to_the_last_byte(engine: Engine) -> None:
    """Random bytes, which often end within a character."""
    for seed in range(12):
        options = {"temperature": 1.0, "seed": seed, "max_tokens": 9}
        whole, streamed = Asked("hello", **options), Asked("hello", **options)
        streamed.row.is_streamed = True
        ask(engine, [whole, streamed])
        assert whole.row.generated == streamed.row.generated
        assert streamed.text == whole.text
        assert len(whole.pieces) == 1


def test_a_cancelled_row_leaves_and_the_others_go_on(engine: Engine) -> None:
    long, short = Asked("hello", max_tokens=150), Asked("x", max_tokens=60)
    engine.submit(long.row)
    engine.submit(short.row)
    long.row.cancel()
    assert long.done.wait(60) and short.done.wait(60)
    assert long.pieces[-1].finish_reason == "cancelled"
    assert short.row.generated == greedy(engine.model, "x", 60)


def test_a_model_that_fails_tells_every_row_and_serves_the_next(engine: Engine) -> None:
    forward = engine.model.forward

    def broken(**inputs: Any) -> Any:
        raise RuntimeError("out of order")

    engine.model.forward = broken
    failed = ask(engine, [Asked("hello"), Asked("x")])
    assert [item.pieces[-1].error for item in failed] == ["out of order"] * 2
    engine.model.forward = forward
    assert ask(engine, [Asked("x")])[0].row.generated == greedy(engine.model, "x")


def test_a_closed_engine_finishes_what_it_has_and_takes_nothing_more() -> None:
    engine = Engine(make_model(), TOKENIZER)
    item = Asked("hello")
    engine.submit(item.row)
    engine.close()
    assert item.pieces[-1].finish_reason == "length"
    with pytest.raises(Unavailable, match="being unloaded"):
        engine.submit(Asked("x").row)


# --- adapters -----------------------------------------------------------------------------------


def save_adapter(folder: Path, seed: int, rank: int, targets: list[str], **more: Any) -> Path:
    model = get_peft_model(
        make_model(),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **more),
    )
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_each_row_of_a_batch_gets_its_own_adapter_as_peft_would(tmp_path: Path) -> None:
    folders = [
        save_adapter(tmp_path / "a", 1, 4, ["q_proj", "v_proj"]),
        save_adapter(tmp_path / "b", 2, 8, ["q_proj", "v_proj", "down_proj"]),
        save_adapter(tmp_path / "c", 3, 2, ["gate_proj", "o_proj"], use_rslora=True),
    ]
    wanted = [greedy(make_model(), "hello")]
    for folder in folders:
        merged = PeftModel.from_pretrained(make_model(), folder).merge_and_unload()
        wanted.append(greedy(merged, "hello"))
    assert len({tuple(tokens) for tokens in wanted}) == 4
    engine = Engine(make_model(), TOKENIZER, max_batch=8)
    slots = [0] + [engine.load_adapter(f) for f in folders]
    asked = ask(engine, [Asked("hello", slot=slot) for slot in slots])
    assert [item.row.generated for item in asked] == wanted
    engine.close()


def test_adapters_are_swapped_while_others_answer(tmp_path: Path) -> None:
    first = save_adapter(tmp_path / "a", 1, 4, ["q_proj", "v_proj"])
    second = save_adapter(tmp_path / "b", 2, 8, ["q_proj", "up_proj"])
    engine = Engine(make_model(), TOKENIZER, max_batch=8)
    base = [Asked(PROMPTS[i % 4], max_tokens=100) for i in range(4)]
    for item in base:
        engine.submit(item.row)
    slot = engine.load_adapter(first)
    engine.unload_adapter(slot)
    again = engine.load_adapter(second)
    assert again == slot
    merged = PeftModel.from_pretrained(make_model(), second).merge_and_unload()
    item = ask(engine, [Asked("hello", slot=again)])[0]
    assert item.row.generated == greedy(merged, "hello")
    for i, item in enumerate(base):
        assert item.done.wait(60)
        assert item.row.generated == greedy(make_model(), PROMPTS[i % 4], 100)
    engine.close()


def test_an_adapter_that_is_not_plain_lora_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "d", 1, 4, ["q_proj"], use_dora=True)
    engine = Engine(make_model(), TOKENIZER)
    with pytest.raises(InvalidModel, match="not plain LoRA"):
        engine.load_adapter(folder)
    engine.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I do not know. " * 6, True),
        ("aaaaaaaaaaaaaaaa", True),
        ("What is this? It is a lamp, and it gives light.", False),
        ("no no no", False),
        ("", False),
    ],
)
def test_going_round_and_round_is_noticed(text: str, expected: bool) -> None:
    assert is_looping(text) is expected
