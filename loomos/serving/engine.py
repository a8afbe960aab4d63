"""Generation for many at once: one model, one thread, a batch that requests join and leave.

Scheduling is per token (Orca, OSDI 2022): between two tokens finished rows leave the batch and
waiting requests join it, after one prefill for all that join together. Rows are padded on the
left; a row's adapter goes along as a slot. Only the engine's thread touches the model.
"""

from __future__ import annotations

import inspect
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

from loomos.errors import Unavailable
from loomos.serving.adapters import AdapterBank
from loomos.serving.batch import Batch
from loomos.serving.rows import Piece, Row, choose_tokens
from loomos.serving.text import TextStream, WholeText

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
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int = 16,
        batch_wait_s: float = 0.003,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.bank = AdapterBank(model)
        self.max_batch, self.batch_wait_s = max_batch, batch_wait_s
        self._on_step = on_step
        self.is_alive = True
        self.context_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
        self.end_ids = _end_ids(model, tokenizer)
        self._takes_last_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._waiting: deque[Row] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._batch: Batch | None = None
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
        """Queue a request.

        Raises:
            Unavailable: the engine is closed.
        """
        if row.is_streamed or row.sampling.stop:
            row.text = TextStream(self.tokenizer, row.sampling.stop)
        else:
            row.text = WholeText(self.tokenizer)
        if row.sampling.temperature > 0:
            row.generator = torch.Generator()
            seed = row.sampling.seed
            row.generator.manual_seed(seed) if seed is not None else row.generator.seed()
        with self._wake:
            if self._closed:
                raise Unavailable("the model is being unloaded; try again")
            self._waiting.append(row)
            self._wake.notify()

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
        with torch.inference_mode():
            while self._await_work():
                self._run_commands()
                try:
                    self._admit()
                    if self._batch is not None:
                        self._step(self._batch)
                except Exception as error:  # the model failed: every row of the batch hears of it
                    self._fail(error)
                self._on_step()

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

    def _fail(self, error: Exception) -> None:
        rows, self._batch = (self._batch.rows if self._batch else []), None
        for row in rows:
            row.deliver(Piece(text="", finish_reason="error", error=str(error) or repr(error)))

    def _admit(self) -> None:
        """Let waiting requests join, all by one forward pass over their prompts."""
        batch = self._batch
        if batch is not None and not self._is_worth_joining(batch):
            return
        joining: list[Row] = []
        with self._wake:
            while self._waiting and self.active + len(joining) < self.max_batch:
                row = self._waiting.popleft()
                if row.is_cancelled:
                    row.deliver(Piece(text="", finish_reason="cancelled"))
                else:
                    joining.append(row)
        if not joining:
            return
        # Known before the forward pass, so that a failure reaches them too.
        new = Batch(joining)
        if batch is None:
            self._batch = new
        try:
            logits = self._prefill(new)
        except Exception as error:
            for row in joining:
                row.deliver(Piece(text="", finish_reason="error", error=str(error) or repr(error)))
            self._batch = batch
            return
        self._choose(new, logits)
        if not new.rows:
            self._batch = batch
        elif batch is not None:
            batch.join(new)

    def _is_worth_joining(self, batch: Batch) -> bool:
        """Whether those who wait should join now: a forward pass for each of them would be dear."""
        if not self._waiting or not batch.can_grow:
            return False
        enough = min(self.max_batch - len(batch.rows), max(1, self.max_batch // 4))
        if len(self._waiting) >= enough:
            return True
        return time.monotonic() - self._waiting[0].arrived > JOIN_STEPS * self._step_s

    def _prefill(self, batch: Batch) -> Tensor:
        longest = max(len(row.prompt) for row in batch.rows)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(batch.rows), longest), pad)
        batch.mask = torch.zeros((len(batch.rows), longest), dtype=torch.long)
        for i, row in enumerate(batch.rows):
            ids[i, longest - len(row.prompt) :] = torch.tensor(row.prompt)
            batch.mask[i, longest - len(row.prompt) :] = 1
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
        began = time.monotonic()
        ids = torch.tensor([[row.generated[-1]] for row in batch.rows])
        positions = batch.mask.sum(1, keepdim=True)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], 1)
        self._choose(batch, self._forward(batch, ids, positions))
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
        done: list[int] = []
        for i, token in enumerate(choose_tokens(logits, batch.rows)):
            if self._advance(batch.rows[i], token):
                done.append(i)
        if done:
            batch.keep(set(range(len(batch.rows))) - set(done))

    def _advance(self, row: Row, token: int) -> bool:
        """Take in a token; says whether the row is done."""
        assert row.text is not None
        count = len(row.generated) + 1
        if row.first_at is None:
            row.first_at = time.monotonic()
        if token in self.end_ids or token in row.stop_ids:
            row.deliver(Piece(text=row.text.finish(), finish_reason="stop", tokens=count))
            return True
        row.generated.append(token)
        text, stopped = row.text.add(token)
        if stopped:
            row.deliver(Piece(text=text, finish_reason="stop", tokens=count))
            return True
        full = len(row.prompt) + count >= self.context_length
        if count >= row.sampling.max_tokens or full:
            text += row.text.finish()
            row.deliver(Piece(text=text, finish_reason="length", tokens=count))
            return True
        if text:
            row.deliver(Piece(text=text, tokens=count))
        return False

    def _leave(self, batch: Batch, indices: list[int]) -> None:
        for i in indices:
            row = batch.rows[i]
            row.deliver(Piece(text="", finish_reason="cancelled", tokens=len(row.generated)))
        batch.keep(set(range(len(batch.rows))) - set(indices))
        if not batch.rows:
            self._batch = None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
