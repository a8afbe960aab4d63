"""Detectors that are models: a classifier in its own process, a judge behind an endpoint."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from api.named_in_service import check_detectors, check_guardrails
from loomos.errors import InvalidData, InvalidInput, InvalidManifest, Unavailable
from loomos.jobs.serving import EndpointSpec, Route, Target
from loomos.local_files import Reach
from loomos.manifest import RolloutPlan, SuiteChoice, Verification
from loomos.prism.detectors import (
    Context,
    detector_names,
    find_all,
    find_detector,
    find_serving_detector,
    fingerprint,
)
from loomos.prism.plan import _pin
from loomos.serving.noting import Choice, Notes
from loomos.storage._local import LocalStore
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
    items: list[tuple[str, Context]] = [(f"say {word}", {}) for word in ("YES", "NO", "MAYBE")]
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


# --- where detectors may look -------------------------------------------------------------------


def test_endpoints_take_detectors_that_are_quick_and_need_the_answer_only() -> None:
    taken: list[str] = []
    for name in detector_names():
        try:
            find_serving_detector(name).finds("an answer", {})
            taken.append(name)
        except InvalidInput as error:
            assert "needs to know the right answer" in str(error)
    assert taken == ["negative", "refusal", "toxicity", "unhelpful"]


def test_a_submitted_endpoint_or_rollout_names_no_other_detectors() -> None:
    check_detectors(["toxicity"], "detectors")
    with pytest.raises(InvalidManifest) as refused:
        check_detectors(["toxicity", "judge:http://h/v1|m|Rude?", "classifier:/f", "differs"], "d")
    paths = [error.path for error in refused.value.errors]
    assert paths == ["d.1", "d.2", "d.3"]
    assert "is a model, which takes too long" in refused.value.errors[0].message
    plan = RolloutPlan.model_validate(
        {
            "endpoint": "e",
            "guardrails": [{"event": "error"}, {"event": "detector", "name": "marker"}],
        }
    )
    with pytest.raises(InvalidManifest, match=r"spec\.guardrails\.1\.name: 'marker' needs"):
        check_guardrails(plan, "spec")
    check_guardrails(None, "spec")


class _Records:
    """Keeps outcomes in a list."""

    def __init__(self) -> None:
        self.hits: list[list[str]] = []

    def outcome(self, endpoint: str, outcome: Any) -> None:
        self.hits.append(outcome.hits)


def test_a_detector_that_fails_spoils_no_answer(
    judge: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that were written before such names were refused still have them."""
    names = ["marker", "wrong-answer", "differs", f"judge:{judge}|m|Is it rude?", "refusal"]
    target = Target(version="m@1")
    route = Route(
        endpoint="m",
        generation=1,
        spec=EndpointSpec(model="m", detectors=names),
        stable=target,
        issued_at=datetime.now(UTC),
    )
    choice = Choice(
        route=route, arm="stable", target=target, hosted=None, user="u", request_id="s-1-x"
    )
    records: Any = _Records()
    with caplog.at_level(logging.WARNING):
        Notes(records).note_answer(choice, 200, ["I cannot help. say YES"], latency_s=0.1)
    assert records.hits == [["refusal"]]
    assert "the detector marker looks at nothing" in caplog.text


# --- how long models may take, and which --------------------------------------------------------


def test_models_that_take_too_long_are_given_up(
    judge: str, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loomos.prism.detectors.MODEL_S", 0.2)
    with pytest.raises(InvalidInput, match=r"did not decide 1 answers within 0\.2 s"):
        find_all(find_detector(f"classifier:{classifier}"), [("x", {})])
    with pytest.raises(InvalidInput, match=r"did not decide 100000 answers within 0\.2 s"):
        find_all(find_detector(f"judge:{judge}|m|Is it rude?"), [("x", {})] * 100_000)


def test_a_suites_classifier_lies_where_documents_may_name_files(
    classifier: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    reach, store = Reach(roots=(root.resolve(),)), LocalStore(tmp_path / "store")

    def pin(folder: Path) -> str:
        header = {"suite": "mine", "detector": f"classifier:{folder}", "claim": 0.1}
        lines = [header, {"id": "1", "prompt": "Question?"}]
        path = root / "mine.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return _pin(store, SuiteChoice(suite=str(path)), Verification(), reach).detector_sha256

    with pytest.raises(InvalidData, match=r"detector: .* outside the folders"):
        pin(classifier)
    inside = root / "classifier"
    inside.mkdir()
    for file in classifier.iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    assert len(pin(inside)) == 64
    (inside / "config.json").unlink()
    (inside / "config.json").symlink_to(classifier / "config.json")
    with pytest.raises(InvalidData, match=r"detector: config\.json in .* is a link out"):
        pin(inside)
