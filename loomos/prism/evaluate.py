"""The process that answers one shard, forked from a node's warm host."""

from __future__ import annotations

from pathlib import Path

from loomos.jobs.verification import Shard
from loomos.prism.answers import generate_shard
from loomos.prism.generate import OFFLINE_BATCH, EngineGenerator
from loomos.prism.plan import read_plan
from loomos.provenance.dsse import parse_public
from loomos.serving.hosting import ModelHost, in_process
from loomos.storage import open_store
from loomos.training.hosted import answer
from loomos.training.requests import EvaluateRequest


def run_evaluate(request_file: Path) -> int:
    """Answer the shard; write what went wrong, if anything, where the request says."""
    request = EvaluateRequest.model_validate_json(request_file.read_text())

    def work() -> dict[str, bool]:
        evaluate(request)
        return {"done": True}

    return answer(request.result, work)


def evaluate(request: EvaluateRequest) -> None:
    """Load the shard's version, verified, and answer its prompts.

    Raises:
        InvalidInput: the version cannot be loaded, or its signature does not verify.
    """
    store = open_store(request.storage)
    plan = read_plan(store, request.work.plan_sha256)
    shard: Shard = request.work.shard
    key = parse_public(request.public_key)
    host = ModelHost(store, key, request.scratch / "models", in_process(OFFLINE_BATCH))
    try:
        hosted = host.load(shard.version)
        generate_shard(store, plan, shard, EngineGenerator(hosted.engine, hosted.slot))
    finally:
        host.close()
