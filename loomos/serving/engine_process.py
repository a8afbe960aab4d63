"""An engine in a process of its own, so that a model and HTTP do not share one interpreter.

The process is forked from one that has already imported torch (`multiprocessing`'s forkserver), so
a start costs the loading of weights and nothing else. Rows go there, pieces come back, many to a
message. Should the process die, its rows end with an error and `is_alive` turns false; should the
parent die, the connection ends and so does the process.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loomos.errors import InvalidModel, Unavailable
from loomos.serving.loading import load_model, load_tokenizer
from loomos.serving.rows import Piece, Row
from loomos.serving.text import most_characters

if TYPE_CHECKING:
    from loomos.serving.engine import Engine

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        __name__,
        "loomos.serving.engine",
        # What transformers would import on the first load of nearly any model.
        "transformers.models.llama.modeling_llama",
        "transformers.tokenization_utils_tokenizers",
    ]
)


def prepare() -> None:
    """Start the process that engines are forked from, so that the first need not wait for it."""
    forkserver.ensure_running()


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine runs."""

    max_batch: int = 16
    """Most rows of a batch."""
    batch_wait_s: float = 0.003
    """How long an idle engine waits for a fuller batch."""
    threads: int | None = None
    """Threads of torch; None leaves the choice to it."""


class _Asked(NamedTuple):
    """A row on its way to the engine."""

    number: int
    row: Row


class _Cancel(NamedTuple):
    """Nobody wants the rest of a row."""

    number: int


class _LoadAdapter(NamedTuple):
    """Load an adapter from a folder."""

    number: int
    folder: Path


class _UnloadAdapter(NamedTuple):
    """Free a slot."""

    number: int
    slot: int


class _Said(NamedTuple):
    """Some more of a row's answer."""

    number: int
    piece: Piece
    first_at: float | None


class _Loaded(NamedTuple):
    """What the parent must know of the model."""

    context_length: int
    vocabulary: int


class _Done(NamedTuple):
    """What came of an adapter's loading or unloading, or of the model's loading."""

    number: int
    value: int | _Loaded | Exception


_READY = -1
"""Number of the message that says that the model is loaded."""
_CRASHED = 70
"""Exit code of a process that can serve no more."""


class EngineProcess:
    """Serves one model from a process of its own. May be called from any thread.

    Args:
        folder: the model and its tokenizer.
        options: how to run it.

    Raises:
        InvalidModel: it cannot be loaded.
    """

    def __init__(self, folder: Path, options: EngineOptions | None = None) -> None:
        self.tokenizer = load_tokenizer(folder)
        self._name = folder.name
        self._numbers = itertools.count()
        self._rows: dict[int, Row] = {}
        self._calls: dict[int, Future[Any]] = {_READY: Future()}
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_closing = False
        self.is_alive = True
        """Whether the process takes rows."""
        here, there = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(
            target=_serve, args=(there, folder, options or EngineOptions()), daemon=True
        )
        self._process.start()
        there.close()
        self._writer = threading.Thread(target=self._write, args=(here,), daemon=True)
        self._reader = threading.Thread(target=self._read, args=(here,), daemon=True)
        self._writer.start()
        self._reader.start()
        try:
            loaded: _Loaded = self._calls[_READY].result()
        except Unavailable as error:
            raise InvalidModel(f"{folder.name} cannot be loaded: {error}") from error
        self.context_length, self.vocabulary = loaded
        self.most_characters = most_characters(self.tokenizer, self.context_length)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    def submit(self, row: Row) -> None:
        """Queue a request.

        Raises:
            Unavailable: the engine is closed, or its process has died.
        """
        number = next(self._numbers)
        with self._lock:
            if self._is_closing or not self.is_alive:
                raise Unavailable("the model is being unloaded; try again")
            self._rows[number] = row
        self._outbox.put(_Asked(number, replace(row, deliver=_to_nobody)))
        row.on_cancel = lambda: self._outbox.put(_Cancel(number))

    def load_adapter(self, folder: Path) -> int:
        """Load a LoRA adapter between two tokens; returns its slot.

        Raises:
            InvalidModel: it does not fit this model.
            Unavailable: the process has died.
        """
        return self._call(lambda number: _LoadAdapter(number, folder))

    def unload_adapter(self, slot: int) -> None:
        """Free an adapter's slot between two tokens; a process that has died holds none."""
        with contextlib.suppress(Unavailable):
            self._call(lambda number: _UnloadAdapter(number, slot))

    def close(self) -> None:
        """Finish what was submitted, then end the process."""
        with self._lock:
            self._is_closing = True
        self._outbox.put(None)
        self._reader.join()

    def _call(self, message: Callable[[int], Any]) -> int:
        number, done = next(self._numbers), Future[Any]()
        with self._lock:
            if not self.is_alive:
                raise Unavailable(self._epitaph())
            self._calls[number] = done
        self._outbox.put(message(number))
        slot: int = done.result()
        return slot

    def _write(self, connection: Connection) -> None:
        """Send what was put, until the end; a sender must not wait for a busy engine."""
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                connection.send(message)
            connection.send(None)

    def _read(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                for message in connection.recv():
                    self._take(message)
        self._bury()
        self._writer.join()
        connection.close()

    def _take(self, message: _Said | _Done) -> None:
        if isinstance(message, _Done):
            done = self._calls.pop(message.number) if message.number >= 0 else self._calls[_READY]
            if isinstance(message.value, Exception):
                done.set_exception(message.value)
            else:
                done.set_result(message.value)
            return
        if message.piece.finish_reason is None:
            row = self._rows[message.number]
        else:
            row = self._rows.pop(message.number)
        row.first_at = message.first_at
        row.say(message.piece)
        if row.is_cancelled and not row.is_done:
            row.cancel()

    def _bury(self) -> None:
        """The process has ended: whoever still waits hears of it."""
        self._process.join()
        with self._lock:
            self.is_alive = False
            rows, self._rows = list(self._rows.values()), {}
            calls = [call for call in self._calls.values() if not call.done()]
        self._outbox.put(None)
        reason = self._epitaph()
        for row in rows:
            row.say(Piece(text="", finish_reason="error", error=reason))
        for call in calls:
            call.set_exception(Unavailable(reason))

    def _epitaph(self) -> str:
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the process of model {self._name} has ended ({how})"


# --- in the process -----------------------------------------------------------------------------


def _to_nobody(piece: Piece) -> None:
    raise AssertionError("a row on its way has nobody to deliver to")


def _serve(connection: Connection, folder: Path, options: EngineOptions) -> None:
    """Load the model, then generate until the parent says so or is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # the parent drains, and says when to end
        signal.signal(signum, signal.SIG_IGN)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    outbox = _Outbox(connection)
    try:
        engine = _load(folder, options, outbox)
    except InvalidModel as error:
        outbox.send([_Done(_READY, error)])
        return
    outbox.send([_Done(_READY, _Loaded(engine.context_length, engine.vocabulary))])
    rows: dict[int, Row] = {}
    while (message := inbox.get()) is not None:
        match message:
            case _Asked(number, row):
                rows[number] = row
                row.deliver = partial(_deliver, rows, outbox, number)
                engine.submit(row)
                outbox.flush()  # what could not even be queued has been refused already
            case _Cancel(number) if number in rows:
                rows[number].cancel()
            case _LoadAdapter() | _UnloadAdapter():
                outbox.send([_change(engine, message)])
    engine.close()
    outbox.flush()


def _receive(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone, so nobody waits for anything


def _load(folder: Path, options: EngineOptions, outbox: _Outbox) -> Engine:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from loomos.serving.engine import Engine

    disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    return Engine(
        *load_model(folder),
        max_batch=options.max_batch,
        batch_wait_s=options.batch_wait_s,
        on_step=outbox.flush,
        on_crash=partial(_give_up, outbox),
    )


def _give_up(outbox: _Outbox) -> None:
    """Say what there is to say, and end: a process without an engine would only be waited for."""
    with contextlib.suppress(OSError):
        outbox.flush()
    os._exit(_CRASHED)


def _deliver(rows: dict[int, Row], outbox: _Outbox, number: int, piece: Piece) -> None:
    row = rows[number] if piece.finish_reason is None else rows.pop(number)
    outbox.add(_Said(number, piece, row.first_at))


def _change(engine: Engine, message: _LoadAdapter | _UnloadAdapter) -> _Done:
    try:
        if isinstance(message, _LoadAdapter):
            return _Done(message.number, engine.load_adapter(message.folder))
        engine.unload_adapter(message.slot)
        return _Done(message.number, message.slot)
    except InvalidModel as error:
        return _Done(message.number, error)
    except Exception as error:
        return _Done(message.number, InvalidModel(repr(error)))


class _Outbox:
    """What rows said since the last message; any thread may add and flush."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._said: list[_Said] = []

    def add(self, said: _Said) -> None:
        with self._lock:
            self._said.append(said)

    def flush(self) -> None:
        with self._lock:
            if self._said:
                said, self._said = self._said, []
                self._connection.send(said)

    def send(self, messages: Sequence[_Said | _Done]) -> None:
        with self._lock:
            self._connection.send(messages)
