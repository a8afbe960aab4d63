"""Generation for many at once: one model, one thread, a batch that requests join and leave.

Scheduling is per token (Orca, OSDI 2022): between two tokens finished rows leave the batch and
waiting requests join it, after one prefill for all that join together. Rows are padded on the
left; a row's adapter goes along as a slot. Only the engine's thread touches the model.

A row's fault stays its own: what cannot be read is refused before it joins, and when a forward pass
over several rows fails, each of them goes on alone, so that only the one that fails again ends.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from loomos.errors import InvalidInput, Unavailable
from loomos.serving.adapters import AdapterBank
from loomos.serving.batch import Batch
from loomos.serving.rows import Piece, Row, choose_tokens
from loomos.serving.text import TextStream, WholeText, most_characters

log = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_STEPS = 4
"""Tokens of the batch that a request waits at most for others to join it with."""


class Engine:
    """Serves one model.

    Args:
        model: a transformers causal language model in eval mode.
        tokenizer: its tokenizer.
        max_batch: most rows at once.
        batch_wait_s: how long the first request of an idle engine waits for company.
        on_step: called on the engine's thread when all that a token brought has been delivered.
        on_crash: called on the engine's thread when it can serve no more, and all have heard.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int = 16,
        batch_wait_s: float = 0.003,
        on_step: Callable[[], None] = lambda: None,
        on_crash: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.bank = AdapterBank(model)
        self.max_batch, self.batch_wait_s = max_batch, batch_wait_s
        self._on_step, self._on_crash = on_step, on_crash
        self.is_alive = True
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.context_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
        self.most_characters = most_characters(tokenizer, self.context_length)
        self.end_ids = _end_ids(model, tokenizer)
        self._takes_last_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._waiting: deque[Row] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._batch: Batch | None = None
        self._joining: list[Row] = []
        self._step_s = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that are not in the batch yet."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Rows of the batch."""
        batch = self._batch
        return len(batch.rows) if batch else 0

    def submit(self, row: Row) -> None:
        """Queue a request; one that cannot be answered hears so by its last piece.

        Raises:
            Unavailable: the engine is closed, or has failed for good.
        """
        try:
            self._prepare(row)
        except Exception as error:
            row.fail(error)
            return
        with self._wake:
            if self._closed:
                raise Unavailable("the model is being unloaded; try again")
            self._waiting.append(row)
            self._wake.notify()

    def _prepare(self, row: Row) -> None:
        """Make what the row needs; raises if it has what the model cannot read."""
        if not row.prompt or not all(0 <= token < self.vocabulary for token in row.prompt):
            raise InvalidInput(f"prompt: give token ids from 0 to {self.vocabulary - 1}")
        if not 0 <= row.slot < self.bank.slots:
            raise InvalidInput(f"slot: there is no adapter {row.slot}")
        if row.is_streamed or row.sampling.stop:
            row.text = TextStream(self.tokenizer, row.sampling.stop)
        else:
            row.text = WholeText(self.tokenizer)
        if row.sampling.temperature > 0:
            row.generator = torch.Generator()
            seed = row.sampling.seed
            row.generator.manual_seed(seed) if seed is not None else row.generator.seed()

    def load_adapter(self, folder: Path) -> int:
        """Load a LoRA adapter between two tokens; returns its slot.

        Raises:
            InvalidModel: it does not fit this model.
        """
        return self._call(lambda: self.bank.load(folder)).result()

    def unload_adapter(self, slot: int) -> None:
        """Free an adapter's slot between two tokens."""
        self._call(lambda: self.bank.unload(slot)).result()

    def _call(self, work: Callable[[], T]) -> Future[T]:
        """Run something that touches the model on the engine's thread."""
        future: Future[T] = Future()
        with self._wake:
            self._commands.append((work, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    # --- the engine's thread ---

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._await_work():
                    self._run_commands()
                    self._admit()
                    if self._batch is not None:
                        self._step(self._batch)
                    self._on_step()
        except BaseException as error:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """Nothing more can be served: everyone who waits hears of it."""
        log.error("the engine has failed", exc_info=error)
        with self._wake:
            self._closed, self.is_alive = True, False
            rows, commands = [*self._joining, *self._waiting], list(self._commands)
            self._waiting.clear()
            self._commands.clear()
        for row in rows + (self._batch.rows if self._batch else []):
            row.fail(error)
        self._batch = None
        for _, future in commands:
            future.set_exception(Unavailable(f"the engine has failed: {error}"))
        self._on_crash()

    def _await_work(self) -> bool:
        """Sleep until there is something to do; false when closed and done."""
        with self._wake:
            while not (self._waiting or self._commands or self._batch):
                if self._closed:
                    return False
                self._wake.wait()
            if self._batch is None and self._waiting:
                full_at = self._waiting[0].arrived + self.batch_wait_s
                while (
                    len(self._waiting) < self.max_batch
                    and not self._closed
                    and (left := full_at - time.monotonic()) > 0
                ):
                    self._wake.wait(left)
        return True

    def _run_commands(self) -> None:
        while self._commands:
            work, future = self._commands.popleft()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _admit(self) -> None:
        """Let waiting requests join, all by one forward pass over their prompts."""
        if self._batch is not None and not self._is_worth_joining(self._batch):
            return
        joining: list[Row] = []
        with self._wake:
            while self._waiting and self.active + len(joining) < self.max_batch:
                row = self._waiting.popleft()
                if row.is_cancelled:
                    row.say(Piece(text="", finish_reason="cancelled", tokens=len(row.generated)))
                else:
                    joining.append(row)
        if joining:
            # Kept before the forward pass, so that a crash reaches them too.
            self._joining = joining
            self._begin(joining)
            self._joining = []

    def _begin(self, rows: list[Row]) -> None:
        """Let rows join by one forward pass over what they have; if it fails, by one for each."""
        new = Batch(rows)
        try:
            self._choose(new, self._prefill(new))
        except Exception as error:
            self._recover(rows, error)
            return
        if not new.rows or self._batch is None:
            self._batch = self._batch or (new if new.rows else None)
            return
        both = [*self._batch.rows, *new.rows]
        try:
            self._batch.join(new)
        except Exception as error:  # a cache that is half joined is of no use to anybody
            log.warning("%d rows are begun again: %s", len(both), error)
            self._batch = None
            self._wait_again(both)

    def _recover(self, rows: list[Row], error: Exception) -> None:
        """A forward pass over these rows failed: each goes on alone, and ends if it fails again.

        Where the model's caches cannot be joined, all but the first wait for their turn again.
        """
        if _is_beyond_help(error):
            raise error
        left = [row for row in rows if not row.is_done]
        if len(rows) == 1:
            for row in left:
                row.fail(error)
            return
        log.warning("%d rows go on alone: %s", len(left), error)
        while left:
            if self._batch is not None and not self._batch.can_grow:
                self._wait_again(left)
                return
            self._begin([left.pop(0)])

    def _wait_again(self, rows: list[Row]) -> None:
        """Rows that had begun wait before all others; what they have said stands."""
        with self._wake:
            self._waiting.extendleft(reversed(rows))

    def _is_worth_joining(self, batch: Batch) -> bool:
        """Whether those who wait should join now: a forward pass for each of them would be dear."""
        if not self._waiting or not batch.can_grow:
            return False
        enough = min(self.max_batch - len(batch.rows), max(1, self.max_batch // 4))
        if len(self._waiting) >= enough:
            return True
        return time.monotonic() - self._waiting[0].arrived > JOIN_STEPS * self._step_s

    def _prefill(self, batch: Batch) -> Tensor:
        read = [row.tokens for row in batch.rows]
        longest = max(map(len, read))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(batch.rows), longest), pad)
        batch.mask = torch.zeros((len(batch.rows), longest), dtype=torch.long)
        for i, tokens in enumerate(read):
            ids[i, longest - len(tokens) :] = torch.tensor(tokens)
            batch.mask[i, longest - len(tokens) :] = 1
        batch.is_padded = not bool(batch.mask.all())
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
        batch.cache = DynamicCache(config=self.model.config)
        return self._forward(batch, ids, positions)

    def _step(self, batch: Batch) -> None:
        """One more token for every row."""
        if any(row.is_cancelled for row in batch.rows):
            self._leave(batch, [i for i, row in enumerate(batch.rows) if row.is_cancelled])
            if not batch.rows:
                return
        began, rows = time.monotonic(), batch.rows
        try:
            ids = torch.tensor([[row.generated[-1]] for row in rows])
            positions = batch.mask.sum(1, keepdim=True)
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(rows), 1)], 1)
            self._choose(batch, self._forward(batch, ids, positions))
        except Exception as error:  # its cache may be half a token further: it is made anew
            self._batch, self._joining = None, rows
            self._recover(rows, error)
            self._joining = []
            return
        self._step_s = time.monotonic() - began
        if not batch.rows:
            self._batch = None

    def _forward(self, batch: Batch, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits of each row's next token: [rows, vocabulary]."""
        self.bank.select([row.slot for row in batch.rows])
        device = self.model.device
        out = self.model(
            input_ids=ids.to(device),
            # Without padding the mask says nothing, and a model is faster without one.
            attention_mask=batch.mask.to(device) if batch.is_padded else None,
            position_ids=positions.to(device),
            past_key_values=batch.cache,
            use_cache=True,
            **({"logits_to_keep": 1} if self._takes_last_logits else {}),
        )
        return out.logits[:, -1].float().cpu()  # type: ignore[no-any-return]

    def _choose(self, batch: Batch, logits: Tensor) -> None:
        """Append a token to each row, deliver what became text, drop the rows that are done."""
        for row, token in zip(batch.rows, choose_tokens(logits, batch.rows), strict=True):
            try:
                if isinstance(token, Exception):
                    raise token
                self._advance(row, token)
            except Exception as error:
                row.fail(error)
        batch.keep({i for i, row in enumerate(batch.rows) if not row.is_done})

    def _advance(self, row: Row, token: int) -> None:
        """Take in a token."""
        assert row.text is not None
        count = len(row.generated) + 1
        if row.first_at is None:
            row.first_at = time.monotonic()
        if token in self.end_ids or token in row.stop_ids:
            row.say(Piece(text=row.text.finish(), finish_reason="stop", tokens=count))
            return
        row.generated.append(token)
        text, stopped = row.text.add(token)
        if stopped:
            row.say(Piece(text=text, finish_reason="stop", tokens=count))
            return
        full = len(row.prompt) + count >= self.context_length
        if count >= row.sampling.max_tokens or full:
            text += row.text.finish()
            row.say(Piece(text=text, finish_reason="length", tokens=count))
        elif text:
            row.say(Piece(text=text, tokens=count))

    def _leave(self, batch: Batch, indices: list[int]) -> None:
        for i in indices:
            row = batch.rows[i]
            row.say(Piece(text="", finish_reason="cancelled", tokens=len(row.generated)))
        batch.keep(set(range(len(batch.rows))) - set(indices))
        if not batch.rows:
            self._batch = None


def _is_beyond_help(error: Exception) -> bool:
    """Whether the device itself has failed: every later call in this process would fail too."""
    accelerator = isinstance(error, torch.AcceleratorError)
    return accelerator and not isinstance(error, torch.OutOfMemoryError)


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
