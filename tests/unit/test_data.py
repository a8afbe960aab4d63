"""Data order is a law: it depends on dataset, seed and batch size, never on the ranks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomos.errors import InvalidData
from loomos.jobs.training import DataFile, DatasetIndex
from loomos.training.data import (
    IGNORED,
    DocumentFile,
    DocumentStream,
    Encode,
    PackedLanes,
    Split,
    document_offsets,
)


class Bytes:
    """A tokenizer of one token a byte."""

    eos_token_id = 256

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def write_dataset(folder: Path, files: list[list[str]]) -> DatasetIndex:
    entries = []
    for number, texts in enumerate(files):
        name = f"part-{number}.jsonl"
        (folder / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        entries.append(DataFile(name=name, uri="", sha256="", size_bytes=1, documents=len(texts)))
    return DatasetIndex(source=str(folder), files=entries)


def stream_of(folder: Path, index: DatasetIndex, split: Split | None = None, seed: int = 0) -> Any:
    return DocumentStream(
        index,
        lambda file: folder / file.name,
        data_format="auto",
        text_field="text",
        split=split or Split(),
        seed=seed,
    )


def texts(count: int) -> list[str]:
    return [f"document {n} " + "x" * (n * 7 % 40) for n in range(count)]


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, DatasetIndex]:
    return tmp_path, write_dataset(tmp_path, [texts(13), texts(5), texts(1)])


def steps(stream: Any, batch_size: int, ranks: int, count: int) -> list[list[list[int]]]:
    """The sequences of each step in lane order, as `ranks` ranks read them."""
    readers = [
        PackedLanes(
            stream,
            Encode(Bytes()),
            lanes=range(rank, batch_size, ranks),
            stride=batch_size,
            sequence_length=16,
        )
        for rank in range(ranks)
    ]
    found = []
    for _ in range(count):
        rows: dict[int, list[int]] = {}
        for reader in readers:
            rows |= dict(zip(reader.lanes, reader.next_batch().tokens.tolist(), strict=True))
        found.append([rows[lane] for lane in sorted(rows)])
    return found


def test_the_number_of_ranks_does_not_change_the_data(dataset: tuple[Path, DatasetIndex]) -> None:
    stream = stream_of(*dataset)
    alone = steps(stream, 4, 1, 12)
    assert steps(stream, 4, 2, 12) == alone
    assert steps(stream, 4, 4, 12) == alone


def test_an_epoch_has_each_document_once(dataset: tuple[Path, DatasetIndex]) -> None:
    stream = stream_of(*dataset)
    count = stream.documents_per_epoch
    assert count == 19
    epochs = [[stream.read(e * count + i).parts[0][0] for i in range(count)] for e in (0, 1)]
    everything = sorted(texts(13) + texts(5) + texts(1))
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]


@settings(deadline=None, max_examples=25)
@given(before=st.integers(0, 9), after=st.integers(1, 5))
def test_a_position_is_all_that_a_resume_needs(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    stream = stream_of(folder, write_dataset(folder, [texts(9), texts(4)]))

    def lanes() -> PackedLanes:
        return PackedLanes(stream, Encode(Bytes()), lanes=range(3), stride=3, sequence_length=16)

    first = lanes()
    for _ in range(before):
        first.next_batch()
    second = lanes()
    second.seek(first.positions())
    for _ in range(after):
        assert second.next_batch().tokens.tolist() == first.next_batch().tokens.tolist()


def test_a_split_takes_each_document_on_one_side(dataset: tuple[Path, DatasetIndex]) -> None:
    folder, index = dataset
    sides = []
    for held_out in (False, True):
        stream = stream_of(folder, index, Split(share=0.3, held_out=held_out, seed=1))
        sides.append([stream.read(i).parts[0][0] for i in range(stream.documents_per_epoch)])
    assert sorted(sides[0] + sides[1]) == sorted(texts(13) + texts(5) + texts(1))
    assert 0 < len(sides[1]) < 12


def test_only_the_completion_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "ab", "completion": "c"}) + "\n")
    document = DocumentFile(path, path.name, "auto", "text").read(0)
    tokens, labels = Encode(Bytes())(document)
    assert tokens == [97, 98, 99, 256]
    assert labels == [IGNORED, IGNORED, 99, 256]


def test_only_what_the_assistant_says_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    document = DocumentFile(path, path.name, "chat", "text").read(0)
    assert [text for text, learnt in document.parts if learnt] == ["yo<|im_end|>\n"]
    assert "".join(text for text, _ in document.parts) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    )


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one", "two"]}), path)
    file = DocumentFile(path, path.name, "auto", "body")
    assert [file.read(i).parts for i in range(len(file))] == [[("one", True)], [("two", True)]]


@given(st.binary(max_size=20_000))
def test_text_documents_are_whole_lines_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content)
    offsets = document_offsets(path, path.name).tolist()
    assert offsets[0] == 0 and offsets[-1] == len(content)
    for start, end in itertools.pairwise(offsets):
        assert content[end - 1 : end] == b"\n" or end == len(content)
        assert end - start >= 4096 or end == len(content)


@pytest.mark.parametrize(
    ("line", "data_format", "message"),
    [
        ("{broken", "auto", r"a\.jsonl line 1 is not JSON"),
        ("[1]", "auto", "is not a mapping"),
        ('{"body": "x"}', "auto", r"no text in 'text' \(fields: body\)"),
        ('{"messages": []}', "chat", "no list in 'messages'"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "chat", "message 1 needs a role"),
        ('{"prompt": "x"}', "prompt_completion", "no text in 'completion'"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, line: str, data_format: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidData, match=message):
        DocumentFile(path, path.name, data_format, "text").read(0)


def test_documents_that_are_all_empty_end_with_an_error(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, write_dataset(tmp_path, [["", ""]]))
    lanes = PackedLanes(stream, Encode(Bytes()), lanes=[0], stride=1, sequence_length=8)
    with pytest.raises(InvalidData, match="every document is empty"):
        lanes.next_batch()
