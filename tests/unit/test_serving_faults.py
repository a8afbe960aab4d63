"""What a request can do to others: nothing. Hostile rows beside honest ones in one engine."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from loomos.serving.engine import Engine
from loomos.serving.rows import Piece, Row, Sampling, choose_tokens
from tests.unit.test_engine import PROMPTS, TOKENIZER, Asked, ask, greedy, make_model

WILD_NUMBERS = (1e-320, 1e-45, 1e-40, 1e-9, 0.0, 1.0, 1e308, math.inf, -1.0, math.nan)
WILD_SEEDS = (0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40)
WILD_TOKENS = (-1, 10**9, 2**31, 2**63, 2**64, 10**30)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(make_model(), TOKENIZER, max_batch=8)
    yield made
    made.close()


class Hostile(Asked):
    """A row with what no person would send, made from a seed."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        super().__init__(
            chance.choice(PROMPTS),
            max_tokens=chance.choice([-1, 0, 1, 2, 3]),
            temperature=chance.choice(WILD_NUMBERS),
            top_p=chance.choice(WILD_NUMBERS),
            seed=chance.choice([None, *WILD_SEEDS]),
            stop=chance.choice([(), ("\ud800",), ("",), ("a" * 500, "\x00")]),
        )
        self.row.slot = chance.choice([0, 0, 0, 1, -1, 7])
        self.row.is_streamed = chance.random() < 0.3
        if chance.random() < 0.4:
            self.row.prompt = chance.choice([[], [chance.choice(WILD_TOKENS)] * 3, [0] * 300])
        if chance.random() < 0.1:
            self.row.cancel()
        if chance.random() < 0.1:
            self.row.deliver = self._refuse

    def _refuse(self, piece: Piece) -> None:
        self._deliver(piece)
        raise RuntimeError("the client has gone")


def test_hostile_rows_change_nothing_for_honest_ones(engine: Engine) -> None:
    fuzz(engine, 150)


@pytest.mark.slow
def test_ten_thousand_hostile_rows_change_nothing_for_honest_ones(engine: Engine) -> None:
    fuzz(engine, 10_000)


def fuzz(engine: Engine, rows: int) -> None:
    """Every honest row says what it says when nobody disturbs; every hostile one ends."""
    wanted = [greedy(make_model(), prompt, 24) for prompt in PROMPTS]
    honest: list[Asked] = []
    hostile: list[Hostile] = []
    for seed in range(rows):
        if seed % 5 == 0:
            honest.append(Asked(PROMPTS[len(honest) % 4], max_tokens=24))
            engine.submit(honest[-1].row)
        hostile.append(Hostile(seed))
        engine.submit(hostile[-1].row)
        if seed % 200 == 199:  # no more than so many wait at a time
            assert all(item.done.wait(60) for item in (*honest, *hostile))
    for number, item in enumerate(honest):
        assert item.done.wait(60)
        assert item.row.generated == wanted[number % 4]
        assert item.pieces[-1].finish_reason == "length"
    assert all(item.done.wait(60) for item in hostile)
    ends = [sum(p.finish_reason is not None for p in item.pieces) for item in hostile]
    assert set(ends) == {1}
    assert engine.is_alive


@pytest.mark.parametrize("fails_at", ["prefill", "step"])
@pytest.mark.parametrize("others", [1, 5])
def test_a_row_that_makes_the_forward_pass_fail_ends_alone(
    engine: Engine, fails_at: str, others: int
) -> None:
    """Some fault that nobody foresaw: the model raises whenever this token is in the batch."""
    poison = TOKENIZER("~")["input_ids"][-1]
    forward = engine.model.forward

    def broken(**inputs: Any) -> Any:
        ids = inputs["input_ids"]
        if (ids == poison).any():  # with its cache half a token further
            inputs["past_key_values"].update(*[torch.zeros(len(ids), 2, 1, 16)] * 2, 0)
            raise RuntimeError("out of order")
        return forward(**inputs)

    engine.model.forward = broken
    honest = [Asked(PROMPTS[i % 4], max_tokens=30) for i in range(others)]
    bad = Asked("a~" if fails_at == "prefill" else "hello", max_tokens=30)
    advance = engine._advance

    def take(row: Row, token: int) -> None:
        advance(row, poison if row is bad.row and len(row.generated) == 5 else token)

    engine._advance = take  # type: ignore[method-assign]
    ask(engine, [*honest, bad])
    assert "out of order" in bad.pieces[-1].error
    for i, item in enumerate(honest):
        assert item.row.generated == greedy(make_model(), PROMPTS[i % 4], 30)


def test_a_row_that_cannot_be_sampled_ends_alone() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = math.nan
    rows = [Asked("x", temperature=1.0, top_p=0.5).row for _ in range(3)]
    for row in rows:
        row.generator = torch.Generator()
    chosen = choose_tokens(logits, rows)
    assert [isinstance(token, int) for token in chosen] == [True, False, True]


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-40, 1e-30, 1e-9])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-9, 1e-320])
def test_what_is_too_close_to_zero_takes_the_most_likely_token(
    temperature: float, top_p: float
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 50) * 20
    rows = [Asked("x", temperature=temperature, top_p=top_p).row for _ in range(16)]
    for row in rows:
        row.generator = torch.Generator()
    assert choose_tokens(logits, rows) == logits.argmax(-1).tolist()


def test_an_engine_that_cannot_go_on_tells_everybody_and_says_that_it_is_dead() -> None:
    crashed = threading.Event()
    engine = Engine(make_model(), TOKENIZER, max_batch=2, batch_wait_s=60, on_crash=crashed.set)
    _break(engine, lambda: torch.AcceleratorError("device-side assert"))
    asked = ask(engine, [Asked("hello"), Asked("x")])
    assert all("device-side assert" in item.pieces[-1].error for item in asked)
    assert crashed.wait(60) and not engine.is_alive


def _break(engine: Engine, make: Callable[[], Exception]) -> None:
    def broken(**inputs: Any) -> Any:
        raise make()

    engine.model.forward = broken


def test_a_row_says_nothing_after_its_last_piece() -> None:
    said: list[Piece] = []
    row = Row(prompt=[1], sampling=Sampling(max_tokens=1), deliver=said.append)
    row.fail(RuntimeError("first"))
    row.fail(RuntimeError("second"))
    assert [piece.error for piece in said] == ["first"]
