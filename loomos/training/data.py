"""Training data: documents in files, shuffled, tokenised and packed while training reads them.

The order of data depends on the dataset, the seed and the global batch size, never on the number
of ranks. A step has `batch_size` lanes; lane i reads documents i, i+B, i+2B, ... of the shuffled
stream, joins their tokens with end-of-text and cuts them into sequences. Ranks share the lanes.
A lane's position is two integers (document ordinal, tokens of it already used), which is all that
a checkpoint must keep.

Shuffling permutes files, then documents within each file, so that files are read one after
another and can be fetched while training goes on. Documents of one sequence see each other's
tokens (plain packing, as GPT-3 did; arXiv:2005.14165).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loomos.errors import InvalidData
from loomos.jobs.training import DataFile, DatasetIndex
from loomos.limits import shown

IGNORED = -100
"""Label of a token that does not count in the loss."""

TEXT_DOCUMENT_BYTES = 4096
"""Plain text is cut at line ends into documents of at least this size."""

_JSONL = {".jsonl", ".ndjson"}
_PARQUET = {".parquet"}

IntArray = npt.NDArray[np.int64]

FetchFile = Callable[[DataFile], Path]
"""Makes a dataset's file available on this machine, verified, and returns its local path."""


def document_offsets(path: Path, name: str) -> IntArray:
    """Where documents begin in a file.

    Returns:
        n+1 int64 numbers: byte offsets of n documents and the end; row numbers for Parquet.
    """
    suffix = Path(name).suffix.lower()
    if suffix in _PARQUET:
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.ParquetFile(path).metadata.num_rows
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise InvalidData(f"{name} is not Parquet: {error}") from None
        return np.arange(rows + 1, dtype=np.int64)
    if path.stat().st_size == 0:
        return np.zeros(1, dtype=np.int64)
    content = np.memmap(path, dtype=np.uint8, mode="r")
    line_ends = np.flatnonzero(content == ord("\n")) + 1
    if not len(line_ends) or line_ends[-1] != len(content):
        line_ends = np.append(line_ends, len(content))
    if suffix in _JSONL:
        return np.concatenate(([0], line_ends)).astype(np.int64)
    starts = [0]
    while starts[-1] < len(content):
        after = np.searchsorted(line_ends, min(starts[-1] + TEXT_DOCUMENT_BYTES, len(content)))
        starts.append(int(line_ends[after]))
    return np.array(starts, dtype=np.int64)


class Document(NamedTuple):
    """One record, as parts that do or do not count in the loss."""

    parts: list[tuple[str, bool]]
    """(text, whether its tokens are learnt)."""
    record: dict[str, Any] | None = None
    """What a tokenizer's chat template or a reward function is asked about, as it was written."""


class DocumentFile:
    """Random access to the documents of one local file."""

    def __init__(self, path: Path, name: str, data_format: str, text_field: str) -> None:
        self.name = name
        self.format = data_format
        self.text_field = text_field
        self._path = path
        self._suffix = Path(name).suffix.lower()
        self.offsets = document_offsets(path, name)
        self._table: Any = None
        if self._suffix not in _PARQUET and len(self.offsets) > 1:
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, index: int) -> Document:
        """Parse document `index`.

        Raises:
            InvalidData: it does not have the shape that was asked for; names file and record.
        """
        if self._suffix in _PARQUET:
            return self._parse(self._row(index), f"{self.name} row {index + 1}")
        raw = self._bytes[self.offsets[index] : self.offsets[index + 1]].tobytes()
        text = raw.decode("utf-8", errors="replace")
        if self._suffix not in _JSONL:
            return Document([(text, True)])
        where = f"{self.name} line {index + 1}"
        if not text.strip():
            return Document([])
        return self._parse(_read_json(text, where), where)

    def _row(self, index: int) -> dict[str, Any]:
        import pyarrow.parquet

        if self._table is None:
            try:
                self._table = pyarrow.parquet.read_table(self._path)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
                raise InvalidData(f"{self.name} cannot be read as Parquet: {error}") from None
        try:
            row: dict[str, Any] = self._table.slice(index, 1).to_pylist()[0]
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            raise InvalidData(
                f"{self.name} row {index + 1} has a value that cannot be read: {error}; mend or "
                "drop the row"
            ) from None
        return row

    def _parse(self, record: Any, where: str) -> Document:
        if not isinstance(record, dict):
            raise InvalidData(f"{where} is not a mapping; write one JSON object a line")
        shape = self.format if self.format != "auto" else self._shape_of(record)
        if shape == "chat":
            return Document(_chat_parts(record.get("messages"), where))
        if shape == "prompt_completion":
            prompt = _text(record, "prompt", where)
            return Document([(prompt, False), (_text(record, "completion", where), True)])
        if shape == "prompt":
            return _prompt(record, where)
        if shape == "preference":
            if any(isinstance(record.get(name), list) for name in ("prompt", "chosen")):
                return _conversational_preference(record, where)
            completions = [_text(record, name, where) for name in ("chosen", "rejected")]
            prompt = _text(record, "prompt", where)
            return Document([(prompt, False), *((text, True) for text in completions)])
        return Document([(_text(record, self.text_field, where), True)])

    def _shape_of(self, record: dict[str, Any]) -> str:
        if "messages" in record:
            return "chat"
        if "prompt" in record and "completion" in record:
            return "prompt_completion"
        return "text"


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        known = shown(", ".join(sorted(record)) or "none", 200)
        raise InvalidData(
            f"{where} has no text in {field!r} (fields: {known}); set data.text_field"
        )
    return _whole(value, f"{where}, field {field!r},")


def _read_json(text: str, where: str) -> Any:
    """The value of a line; whatever Python's reader stumbles over is the line's fault."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg}"
    except RecursionError:
        why = "is nested too deep to be read"
    except ValueError as error:  # a number of thousands of digits
        why = f"has a number that cannot be read: {error}"
    raise InvalidData(f"{where} {why}; mend or drop the line")


def _whole(text: str, where: str) -> str:
    """The text, if it has whole characters only: no tokenizer takes half ones."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(
            f"{where} has half a character (U+{ord(text[error.start]):04X}) at place "
            f"{error.start + 1}; mend or drop it"
        ) from None
    return text


def _chat_parts(messages: Any, where: str) -> list[tuple[str, bool]]:
    """ChatML (the format of the OpenAI chat models); only what the assistant says is learnt."""
    if not isinstance(messages, list) or not messages:
        raise InvalidData(f"{where} has no list in 'messages'; give role and content of each turn")
    parts: list[tuple[str, bool]] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
            raise InvalidData(
                f"{where} message {number} needs a role (system, user, assistant, tool) and a text "
                f"in content"
            )
        parts.append((f"<|im_start|>{role}\n", False))
        _whole(content, f"{where} message {number}")
        parts.append((f"{content}<|im_end|>\n", role == "assistant"))
    return parts


ASKING = "<|im_start|>assistant\n"
"""What asks for a reply, in ChatML."""


def _joined(messages: list[dict[str, str]], where: str) -> str:
    return "".join(text for text, _ in _chat_parts(messages, where))


def _prompt(record: dict[str, Any], where: str) -> Document:
    """A prompt to reply to, a text or a list of messages, with the record's other fields."""
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        text = _joined(prompt, f"{where}, field 'prompt',") + ASKING
    else:
        text = _text(record, "prompt", where)
    return Document([(text, False)], record)


def _conversational_preference(record: dict[str, Any], where: str) -> Document:
    """TRL's conversational preferences; without `prompt` it is what both have in common."""
    sides: dict[str, list[dict[str, str]]] = {}
    for name in ("chosen", "rejected"):
        _chat_parts(record.get(name), f"{where}, field {name!r},")
        sides[name] = record[name]
    prompt = record.get("prompt")
    if prompt is None:
        pairs = zip(sides["chosen"], sides["rejected"], strict=False)
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        # Somebody has something of his own to say, even where one answer begins the other.
        shared = min(shared, len(sides["chosen"]) - 1, len(sides["rejected"]) - 1)
        prompt = sides["chosen"][:shared]
        sides = {name: messages[shared:] for name, messages in sides.items()}
    text = _joined(prompt, f"{where}, field 'prompt',")
    # ChatML ends with what asks for a reply, which each side's first message begins with.
    chosen, rejected = (_joined(messages, where) for messages in sides.values())
    if chosen.startswith(ASKING) and rejected.startswith(ASKING):
        text, chosen, rejected = (
            text + ASKING,
            chosen.removeprefix(ASKING),
            rejected.removeprefix(ASKING),
        )
    parts = [(text, False), (chosen, True), (rejected, True)]
    return Document(parts, {"prompt": prompt, **sides})


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which documents of an index count: all, or those on one side of a hash."""

    share: float = 0.0
    """Share of documents that are held out."""
    held_out: bool = False
    """Whether this is the held-out side."""
    seed: int = 0
    """Seed of the hash."""

    def select(self, first_ordinal: int, count: int) -> IntArray:
        """Indices, within a file whose documents start at `first_ordinal`, that count."""
        if self.share == 0:
            return np.arange(0 if self.held_out else count, dtype=np.int64)
        ordinals = np.arange(first_ordinal, first_ordinal + count, dtype=np.uint64)
        is_out = _splitmix64(ordinals + np.uint64(self.seed)) < np.uint64(
            int(self.share * float(2**64 - 1))
        )
        return np.flatnonzero(is_out == self.held_out).astype(np.int64)


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash integers (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class DocumentStream:
    """The endless shuffled stream of a dataset's documents, by ordinal."""

    def __init__(
        self,
        index: DatasetIndex,
        fetch: FetchFile,
        *,
        data_format: str,
        text_field: str,
        split: Split,
        seed: int,
    ) -> None:
        self._index = index
        self._fetch = fetch
        self._format, self._text_field = data_format, text_field
        self._seed = seed
        first = np.cumsum([0] + [f.documents for f in index.files])
        self._selected = [
            split.select(int(first[i]), f.documents) for i, f in enumerate(index.files)
        ]
        self._open = lru_cache(maxsize=4)(self._open_file)
        self._order_of_file = lru_cache(maxsize=8)(self._shuffle_file)
        self._epoch_starts = lru_cache(maxsize=4)(self._shuffle_epoch)

    @property
    def documents_per_epoch(self) -> int:
        """Documents in one pass."""
        return sum(len(selected) for selected in self._selected)

    def read(self, ordinal: int) -> Document:
        """Document number `ordinal` of the stream, epochs following one another."""
        epoch, position = divmod(ordinal, self.documents_per_epoch)
        files, ends = self._epoch_starts(epoch)
        place = int(np.searchsorted(ends, position, side="right"))
        file = int(files[place])
        within = position - (int(ends[place - 1]) if place else 0)
        return self._open(file).read(int(self._order_of_file(epoch, file)[within]))

    def _shuffle_epoch(self, epoch: int) -> tuple[IntArray, IntArray]:
        files = np.random.default_rng([self._seed, epoch]).permutation(len(self._selected))
        ends = np.cumsum([len(self._selected[f]) for f in files])
        return files, ends

    def _shuffle_file(self, epoch: int, file: int) -> IntArray:
        random = np.random.default_rng([self._seed, epoch, file + 1])
        return self._selected[file][random.permutation(len(self._selected[file]))]

    def _open_file(self, file: int) -> DocumentFile:
        entry = self._index.files[file]
        return DocumentFile(self._fetch(entry), entry.name, self._format, self._text_field)


@dataclass(kw_only=True)
class Lane:
    """Where one lane is."""

    ordinal: int
    """Document of the stream that it reads."""
    used: int = 0
    """Tokens of that document already given out."""


class Encode:
    """Turns a document into tokens and labels."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.eos_token_id

    def __call__(self, document: Document) -> tuple[list[int], list[int]]:
        """Tokens of `document` with end-of-text, and the label of each."""
        tokens: list[int] = []
        labels: list[int] = []
        for text, learnt in document.parts:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += ids
            labels += ids if learnt else [IGNORED] * len(ids)
        if tokens:
            tokens.append(self._end)
            labels.append(self._end)
        return tokens, labels


class Batch(NamedTuple):
    """The sequences of one rank for one optimizer step."""

    tokens: IntArray
    """[lanes, sequence_length]"""
    labels: IntArray
    """[lanes, sequence_length]; `IGNORED` where the loss does not count."""

    @property
    def label_count(self) -> int:
        """Labels that count once shifted by one for next-token prediction."""
        return int((self.labels[:, 1:] != IGNORED).sum())


class PackedLanes:
    """Packs the lanes of one rank into sequences."""

    def __init__(
        self,
        stream: DocumentStream,
        encode: Encode,
        *,
        lanes: Sequence[int],
        stride: int,
        sequence_length: int,
    ) -> None:
        """Start each lane at its first document.

        Args:
            stream: the documents.
            encode: tokeniser.
            lanes: numbers of the lanes to read, each below `stride`.
            stride: lanes over all ranks.
            sequence_length: tokens per sequence.

        Raises:
            InvalidData: the stream has no documents.
        """
        if stream.documents_per_epoch == 0:
            raise InvalidData("no documents to read; check data.include and data.validation_split")
        self._stream, self._encode = stream, encode
        self._stride, self._length = stride, sequence_length
        self.lanes = {lane: Lane(ordinal=lane) for lane in lanes}
        self._pending: dict[int, tuple[int, list[int], list[int]]] = {}

    def next_batch(self) -> Batch:
        """One sequence from each lane, in lane order."""
        rows = [self._next_row(number) for number in self.lanes]
        tokens, labels = zip(*rows, strict=True)
        return Batch(np.array(tokens, dtype=np.int64), np.array(labels, dtype=np.int64))

    def positions(self) -> dict[int, tuple[int, int]]:
        """(ordinal, used) by lane."""
        return {number: (lane.ordinal, lane.used) for number, lane in self.lanes.items()}

    def seek(self, positions: dict[int, tuple[int, int]]) -> None:
        """Go to positions that `positions()` gave."""
        for number in self.lanes:
            ordinal, used = positions[number]
            self.lanes[number] = Lane(ordinal=ordinal, used=used)
        self._pending.clear()

    def _next_row(self, number: int) -> tuple[list[int], list[int]]:
        lane = self.lanes[number]
        tokens: list[int] = []
        labels: list[int] = []
        empty = 0
        while len(tokens) < self._length:
            document_tokens, document_labels = self._document(number, lane.ordinal)
            take = self._length - len(tokens)
            tokens += document_tokens[lane.used : lane.used + take]
            labels += document_labels[lane.used : lane.used + take]
            lane.used += take
            if lane.used >= len(document_tokens):
                empty = empty + 1 if not document_tokens else 0
                if empty > self._stream.documents_per_epoch:
                    raise InvalidData("every document is empty")
                lane.ordinal, lane.used = lane.ordinal + self._stride, 0
        return tokens, labels

    def _document(self, number: int, ordinal: int) -> tuple[list[int], list[int]]:
        """Encode a document once, though several sequences are cut from it."""
        known = self._pending.get(number)
        if known is None or known[0] != ordinal:
            known = (ordinal, *self._encode(self._stream.read(ordinal)))
            self._pending[number] = known
        return known[1], known[2]


def count_tokens(stream: DocumentStream, encode: Encode, ordinals: range) -> int:
    """Tokens in some documents of the stream, for the length of an epoch."""
    return sum(len(encode(stream.read(ordinal))[0]) for ordinal in ordinals)
