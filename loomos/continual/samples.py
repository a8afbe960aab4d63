"""From what an endpoint captured to what an update learns. Pure."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from loomos.jobs.continual import Collect

Sample = dict[str, Any]
Record = dict[str, Any]


def learnable(records: Iterable[Record], collect: Collect) -> list[Sample]:
    """Join captured answers with what people thought of them.

    Args:
        records: requests with answers, and feedback, in any order.
        collect: what may be learnt.

    Returns:
        Chat or prompt/completion records, as `loomos.training.data` reads them.
    """
    return [sample for _, sample in learnable_at(records, collect)]


def learnable_at(records: Iterable[Record], collect: Collect) -> list[tuple[int, Sample]]:
    """What `learnable` finds, each with the place of its answer among the records, in order."""
    answers: dict[str, tuple[int, Record]] = {}
    scores: dict[str, int] = {}
    corrections: dict[str, str] = {}
    for place, record in enumerate(records):
        name = _bare(str(record["id"]))
        if "request" in record:
            answers[name] = place, record
        if record.get("score") is not None:
            scores[name] = int(record["score"])
        if record.get("correction"):
            corrections[name] = str(record["correction"])
    found: list[tuple[int, Sample]] = []
    for name, (place, record) in answers.items():
        said = corrections.get(name)
        if said is None:
            score = scores.get(name, 0)
            if score < 0 or (score == 0 and not collect.unrated):
                continue
            said = str(record["answers"][0])
        sample = _sample(record["request"], said)
        if sample is not None:
            found.append((place, sample))
    return sorted(found, key=lambda item: item[0])


def _bare(request_id: str) -> str:
    return request_id.removeprefix("chatcmpl-").removeprefix("cmpl-")


def _sample(request: Record, said: str) -> Sample | None:
    if not said.strip():
        return None
    if "messages" in request:
        turns = [
            {"role": "system" if turn["role"] == "developer" else turn["role"], "content": text}
            for turn in request["messages"]
            if isinstance(text := turn.get("content"), str)
        ]
        return {"messages": [*turns, {"role": "assistant", "content": said}]}
    prompt = request.get("prompt")
    return {"prompt": prompt, "completion": said} if isinstance(prompt, str) else None


def mix(new: Sequence[Sample], old: Sequence[Sample], ratio: float, seed: str) -> list[Sample]:
    """New samples with old ones among them, in an order that depends on the seed alone.

    Args:
        new: what is to be learnt.
        old: what must not be forgotten.
        ratio: old samples for each new one; all of the old ones if there are fewer.
        seed: makes it repeatable.
    """
    rng = random.Random(seed)
    wanted = min(len(old), round(ratio * len(new)))
    mixed = [*new, *rng.sample(list(old), wanted)]
    rng.shuffle(mixed)
    return mixed


def encode(samples: Iterable[Sample]) -> bytes:
    """Samples as JSON lines."""
    return "".join(json.dumps(s, sort_keys=True) + "\n" for s in samples).encode()
