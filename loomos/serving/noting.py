"""Requests as they are made, and what is kept of how they went."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field

from loomos.jobs.serving import Route, Target
from loomos.prism.detectors import find_serving_detector
from loomos.prism.looping import is_looping
from loomos.serving.api_errors import ApiError
from loomos.serving.hosting import Hosted
from loomos.serving.outcomes import Outcome, RecordWriters, hash_user, now
from loomos.serving.protocol import ChatRequest, CompletionRequest, FeedbackRequest
from loomos.serving.routes import Arm
from loomos.serving.rows import Piece, Row

log = logging.getLogger(__name__)

MOST_SAMPLE_BYTES = 256 * 1024
"""Size of a request with its answers above which it is not kept to learn from: it would not fit
into the context that training has."""

ARM_CODES: dict[Arm, str] = {"stable": "s", "canary": "c"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Who answers a request."""

    route: Route
    """The row that decided."""
    arm: Arm
    """Which arm."""
    target: Target
    """What it serves."""
    hosted: Hosted | None
    """The loaded version; None for a remote arm."""
    user: str
    """Hash of the sticky key."""
    request_id: str
    """Id of the answer."""
    is_counted: bool = True
    """Whether its outcome says something about the arm."""
    is_shadow: bool = False
    """Nobody sees the answer."""
    assigned: Arm | None = None
    """Arm that the split chose; none for a request that named a version."""


@dataclass(kw_only=True)
class Answer:
    """One choice of an answer, in the making."""

    text: str = ""
    """Text so far."""
    finish_reason: str | None = None
    """Set at the end."""
    tokens: int = 0
    """Tokens so far."""
    first_at: float | None = None
    """When the first token came."""


@dataclass(kw_only=True)
class Generation:
    """All choices of one request."""

    choice: Choice
    """Who answers."""
    prompt_tokens: int
    """Tokens of the prompts."""
    answers: list[Answer]
    """One per choice."""
    rows: list[Row] = field(default_factory=list)
    """Their rows in the engine."""
    pieces: asyncio.Queue[tuple[int, Piece]] = field(default_factory=asyncio.Queue)
    """What has come."""
    began: float = field(default_factory=time.monotonic)
    """When the request came."""

    @property
    def tokens(self) -> int:
        """Tokens generated, over all choices."""
        return sum(answer.tokens for answer in self.answers)

    def cancel(self) -> None:
        """Nobody wants the rest."""
        for row in self.rows:
            row.cancel()


def _is_hit(detector: str, texts: list[str]) -> bool:
    """Whether a detector finds something; one that fails finds nothing, and spoils no answer."""
    try:
        found = find_serving_detector(detector)
        return any(found.finds(text, {}) for text in texts)
    except Exception as error:
        log.warning("the detector %s looks at nothing: %s", detector, error)
        return False


class Notes:
    """Keeps how requests went.

    Args:
        records: where it is written.
    """

    def __init__(self, records: RecordWriters) -> None:
        self._records = records

    def note(self, generation: Generation, status: int) -> None:
        """Keep how a request went."""
        choice = generation.choice
        texts = [answer.text for answer in generation.answers]
        firsts = [a.first_at for a in generation.answers if a.first_at is not None]
        self.note_answer(
            choice,
            status,
            texts,
            latency_s=time.monotonic() - generation.began,
            first_token_s=min(firsts) - generation.began if firsts else None,
            tokens=generation.tokens,
        )

    def note_answer(
        self,
        choice: Choice,
        status: int,
        texts: list[str],
        *,
        latency_s: float,
        first_token_s: float | None = None,
        tokens: int = 0,
    ) -> None:
        """Keep how a request went, whoever answered it."""
        is_answered = status < 400
        detectors = choice.route.spec.detectors if is_answered else []
        self._records.outcome(
            choice.route.endpoint,
            Outcome(
                id=choice.request_id,
                at=now(),
                user=choice.user,
                arm=choice.arm,
                version=choice.target.version,
                stage=choice.route.stage,
                is_shadow=choice.is_shadow,
                is_counted=choice.is_counted,
                assigned=choice.assigned,
                status=status,
                latency_s=round(latency_s, 6),
                first_token_s=None if first_token_s is None else round(first_token_s, 6),
                tokens=tokens,
                is_empty=is_answered and any(not text.strip() for text in texts),
                is_looping=is_answered and any(is_looping(text) for text in texts),
                hits=[name for name in detectors if _is_hit(name, texts)],
            ),
        )

    def note_sample(
        self, choice: Choice, request: ChatRequest | CompletionRequest, texts: list[str]
    ) -> None:
        """Keep request and answer, where the endpoint captures and they are not too large."""
        if not choice.route.spec.capture or choice.is_shadow:
            return
        sample = {
            "id": choice.request_id,
            "at": now().isoformat(),
            "version": choice.target.version,
            "request": request.declared(),
            "answers": texts,
        }
        if len(json.dumps(sample)) <= MOST_SAMPLE_BYTES:
            self._records.sample(choice.route.endpoint, sample)

    def feedback(self, body: FeedbackRequest, routes: list[Route]) -> None:
        """Keep what a person thought of an answer; its id says which arm gave it.

        Args:
            body: what was sent.
            routes: rows of the endpoints that this server answers for.

        Raises:
            ApiError: the id is none of ours, or the correction is too large.
        """
        if len(json.dumps(body.correction)) > MOST_SAMPLE_BYTES:
            raise ApiError(
                400,
                f"correction: has more than {MOST_SAMPLE_BYTES:,} bytes as JSON; shorten it",
                param="correction",
            )
        code, _, rest = body.id.removeprefix("chatcmpl-").removeprefix("cmpl-").partition("-")
        version = rest.partition("-")[0]
        arms = {short: arm for arm, short in ARM_CODES.items()}
        for route in routes:
            for target in (route.stable, route.canary):
                if target and code in arms and target.version.partition("@")[2] == version:
                    score = {"up": 1, "down": -1, None: None}[body.score]
                    self._records.outcome(
                        route.endpoint,
                        Outcome(
                            id=body.id,
                            at=now(),
                            user=hash_user(body.user or body.id),
                            arm=arms[code],
                            version=target.version,
                            stage=route.stage,
                            score=score,
                            events=body.events,
                        ),
                    )
                    if route.spec.capture:
                        self._records.sample(
                            route.endpoint,
                            {
                                "id": body.id,
                                "at": now().isoformat(),
                                "score": score,
                                "correction": body.correction,
                            },
                        )
                    return
        raise ApiError(404, f"id: {body.id!r} is no answer of a version in service", param="id")
