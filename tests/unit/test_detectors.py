"""Detectors that are models: a classifier in its own process, a judge behind an endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from loomos.errors import InvalidInput, Unavailable
from loomos.prism.detectors import find_all, find_detector, fingerprint
from loomos.training.tokenizer import byte_tokenizer

RUDE, KIND = "!!!!!!!!", "........"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier that has learnt to tell exclamation marks from full stops."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer: Any = byte_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer([RUDE, KIND], return_tensors="pt")
    for _ in range(60):
        model(**batch, labels=torch.tensor([1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_in_a_folder_decides_in_its_own_process(classifier: Path) -> None:
    detector = find_detector(f"classifier:{classifier}")
    assert find_all(detector, [(RUDE, {}), (KIND, {}), (RUDE, {})]) == [True, False, True]


def test_a_classifier_that_is_not_there_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="classifier "):
        find_all(find_detector(f"classifier:{tmp_path}"), [("x", {})])


class _Judge(BaseHTTPRequestHandler):
    """Says what the text between the marks tells it to."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][0]["content"]
        word = next((w for w in ("YES", "NO", "MAYBE") if f"say {w}" in asked), "NO")
        reply = {"choices": [{"message": {"content": f" {word}. "}}]}
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def judge() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_says_yes_or_no_or_cannot_tell(judge: str) -> None:
    detector = find_detector(f"judge:{judge}|m|Is it rude?")
    items = [(f"say {word}", {}) for word in ("YES", "NO", "MAYBE")]
    assert find_all(detector, items) == [True, False, None]
    with pytest.raises(Unavailable, match="neither YES nor NO"):
        detector.finds("say MAYBE", {})


def test_a_judge_that_does_not_answer_is_an_error() -> None:
    detector = find_detector("judge:http://127.0.0.1:9/v1|m|Is it rude?")
    with pytest.raises(Unavailable, match="does not answer"):
        detector.finds("x", {})


def test_a_fingerprint_changes_with_what_is_asked_and_with_the_weights(classifier: Path) -> None:
    asked = {fingerprint(f"judge:http://h/v1|m|{question}") for question in ("Rude?", "Kind?")}
    assert len(asked | {fingerprint("toxicity"), fingerprint("refusal")}) == 4
    assert fingerprint("toxicity") == fingerprint("toxicity")
    before = fingerprint(f"classifier:{classifier}")
    weights = classifier / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(f"classifier:{classifier}") != before
    weights.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        fingerprint(f"classifier:{classifier}/nowhere")
