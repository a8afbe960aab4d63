"""What happens to a request: an arm is picked, the answer made and noted, perhaps shadowed.

One `Service` is one serving process. It obeys the route rows that it has seen; to pick an arm costs
microseconds and asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx

from loomos.jobs.serving import Route, Target
from loomos.prism.detectors import find_detector
from loomos.prism.looping import is_looping
from loomos.serving.engine import Piece, Row, Sampling
from loomos.serving.hosting import Hosted, ModelHost
from loomos.serving.outcomes import Outcome, RecordWriters, hash_user, now
from loomos.serving.protocol import ApiError, FeedbackRequest
from loomos.serving.remote import RemoteArm
from loomos.serving.routes import Arm, canary_share, has_lapsed, is_shadowed, pick
from loomos.serving.table import RouteTable

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
            row.is_cancelled = True


class Service:
    """Answers requests.

    Args:
        table: the route rows.
        host: the loaded versions.
        records: where outcomes go.
        server_id: this server's name, as route rows have it.
    """

    def __init__(
        self, table: RouteTable, host: ModelHost, records: RecordWriters, server_id: str
    ) -> None:
        self.table, self.host, self.records, self.server_id = table, host, records, server_id
        self.is_draining = False
        self.running: dict[str, int] = {}
        self._http = httpx.AsyncClient(trust_env=False)
        self._shadows: set[asyncio.Task[None]] = set()

    # --- choosing ---

    def endpoints(self) -> list[Route]:
        """Endpoints that this server answers for."""
        return [
            route
            for _, route in sorted(self.table.routes.items())
            if not route.is_closed and self.server_id in route.replicas
        ]

    def wanted_versions(self) -> set[str]:
        """Versions that this server should hold."""
        wanted: set[str] = set()
        for route in self.endpoints():
            arms = [route.stable, *([route.canary] if route.canary else [])]
            wanted |= {arm.version for arm in arms if arm.remote is None}
        return wanted

    def choose(self, model: str, user: str | None) -> Choice:
        """The arm for a request.

        Args:
            model: an endpoint's name; with `@VERSION`, one of its versions, whatever the traffic.
            user: the sticky key; without one every request is its own.

        Raises:
            ApiError: there is no such endpoint here, it is overloaded, or nothing is loaded.
        """
        if self.is_draining:
            raise ApiError(503, "this server is shutting down; try another", retry_after_s=1)
        name, _, version = model.partition("@")
        route = self.table.routes.get(name)
        if route is None or route.is_closed or self.server_id not in route.replicas:
            known = ", ".join(r.endpoint for r in self.endpoints()) or "none"
            raise ApiError(
                404,
                f"model: {model!r} is not served here; known: {known}",
                param="model",
                code="model_not_found",
            )
        if self.running.get(name, 0) >= route.spec.max_queue + self._capacity():
            raise ApiError(
                429,
                f"{name} has {route.spec.max_queue} requests waiting; try again soon",
                code="overloaded",
                retry_after_s=1,
            )
        key = user or uuid.uuid4().hex
        moment = now()
        if version:
            return self._pinned(route, version, key)
        if has_lapsed(route, moment):
            # Nobody decided that this user gets stable, so it says nothing about the split.
            return self._ready(route, "stable", route.stable, key, is_counted=False)
        return self._with_arm(route, pick(route, key, moment), key)

    def _capacity(self) -> int:
        return self.host.max_batch

    def _pinned(self, route: Route, version: str, key: str) -> Choice:
        arms: list[tuple[Arm, Target | None]] = [("stable", route.stable), ("canary", route.canary)]
        for arm, target in arms:
            if target is not None and target.version.partition("@")[2].startswith(version):
                return self._ready(route, arm, target, key, is_counted=False)
        raise ApiError(
            404,
            f"model: {route.endpoint} has no arm with version {version!r}",
            param="model",
            code="model_not_found",
        )

    def _with_arm(self, route: Route, arm: Arm, key: str) -> Choice:
        target = route.canary if arm == "canary" else route.stable
        assert target is not None
        try:
            chosen = self._ready(route, arm, target, key, is_counted=True)
        except ApiError:
            if arm == "stable":
                raise
            # A server that has just started does not hold the canary yet.
            chosen = self._ready(route, "stable", route.stable, key, is_counted=False)
        return replace(chosen, assigned=arm)

    def _ready(
        self, route: Route, arm: Arm, target: Target, key: str, *, is_counted: bool
    ) -> Choice:
        hosted = None if target.remote else self.host.get(target.version)
        if hosted is None and target.remote is None:
            reason = self.host.failed.get(target.version)
            if reason:
                raise ApiError(503, f"{target.version} cannot be loaded: {reason}", retry_after_s=5)
            raise ApiError(503, f"{target.version} is being loaded", retry_after_s=1)
        return Choice(
            route=route,
            arm=arm,
            target=target,
            hosted=hosted,
            user=hash_user(key),
            request_id=f"{ARM_CODES[arm]}-{target.version.partition('@')[2]}-{uuid.uuid4().hex}",
            is_counted=is_counted,
        )

    # --- answering ---

    def start(
        self,
        choice: Choice,
        prompts: list[list[int]],
        samplings: list[Sampling],
        stop_ids: frozenset[int] = frozenset(),
        *,
        is_streamed: bool = False,
    ) -> Generation:
        """Submit every choice of a request to the engine.

        Args:
            choice: who answers.
            prompts: token ids.
            samplings: one per answer wanted of each prompt.
            stop_ids: tokens that end an answer, besides the model's own.
            is_streamed: whether somebody wants to see every piece as it comes.

        Raises:
            ApiError: a prompt does not fit the model.
        """
        assert choice.hosted is not None
        engine = choice.hosted.engine
        for prompt in prompts:
            longest = max(sampling.max_tokens for sampling in samplings)
            if not prompt:
                raise ApiError(400, "the prompt is empty", param="prompt")
            if len(prompt) + longest > engine.context_length:
                raise ApiError(
                    400,
                    f"the model's context is {engine.context_length} tokens; the prompt has "
                    f"{len(prompt)} and max_tokens is {longest}",
                    param="messages",
                    code="context_length_exceeded",
                )
        generation = Generation(
            choice=choice,
            prompt_tokens=sum(map(len, prompts)),
            answers=[Answer() for _ in range(len(prompts) * len(samplings))],
        )
        loop = asyncio.get_running_loop()
        for index in range(len(generation.answers)):
            prompt, sampling = prompts[index // len(samplings)], samplings[index % len(samplings)]

            def deliver(piece: Piece, index: int = index) -> None:
                loop.call_soon_threadsafe(generation.pieces.put_nowait, (index, piece))

            row = Row(
                prompt=prompt,
                sampling=sampling,
                deliver=deliver,
                slot=choice.hosted.slot,
                stop_ids=stop_ids,
                is_streamed=is_streamed,
            )
            generation.rows.append(row)
            engine.submit(row)
        return generation

    @contextlib.contextmanager
    def admitted(self, choice: Choice) -> Any:
        """Count a request as running, and keep its version loaded."""
        name = choice.route.endpoint
        self.running[name] = self.running.get(name, 0) + 1
        try:
            with choice.hosted.use() if choice.hosted else contextlib.nullcontext():
                yield
        finally:
            self.running[name] -= 1

    async def follow(self, generation: Generation) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces as they come, until every choice is done; then the outcome is noted.

        Leaving early cancels what still runs.
        """
        left = len(generation.answers)
        error = ""
        try:
            while left:
                index, piece = await generation.pieces.get()
                answer = generation.answers[index]
                answer.text += piece.text
                answer.tokens = piece.tokens or answer.tokens
                answer.first_at = generation.rows[index].first_at
                if piece.finish_reason is not None:
                    answer.finish_reason = piece.finish_reason
                    left -= 1
                error = error or piece.error
                yield index, piece
        finally:
            if left:
                generation.cancel()
            else:
                self.note(generation, 500 if error else 200)

    async def finish(self, generation: Generation) -> None:
        """Wait until every choice is done.

        Raises:
            ApiError: the model failed.
        """
        error = ""
        async for _, piece in self.follow(generation):
            error = error or piece.error
        if error:
            raise ApiError(500, f"the model failed: {error}")

    def remote(self, choice: Choice) -> RemoteArm:
        """The server elsewhere that is this arm."""
        assert choice.target.remote is not None
        return RemoteArm(choice.target.remote, self._http)

    # --- noting ---

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
        self.records.outcome(
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
                hits=[
                    name
                    for name in detectors
                    if any(find_detector(name).finds(text, {}) for text in texts)
                ],
            ),
        )

    def note_sample(self, choice: Choice, request: dict[str, Any], texts: list[str]) -> None:
        """Keep request and answer, where the endpoint captures."""
        if choice.route.spec.capture and not choice.is_shadow:
            self.records.sample(
                choice.route.endpoint,
                {
                    "id": choice.request_id,
                    "at": now().isoformat(),
                    "version": choice.target.version,
                    "request": request,
                    "answers": texts,
                },
            )

    def feedback(self, body: FeedbackRequest) -> None:
        """Keep what a person thought of an answer; its id says which arm gave it.

        Raises:
            ApiError: the id is none of ours.
        """
        code, _, rest = body.id.removeprefix("chatcmpl-").removeprefix("cmpl-").partition("-")
        version = rest.partition("-")[0]
        arms = {short: arm for arm, short in ARM_CODES.items()}
        for route in self.endpoints():
            for target in (route.stable, route.canary):
                if target and code in arms and target.version.partition("@")[2] == version:
                    score = {"up": 1, "down": -1, None: None}[body.score]
                    self.records.outcome(
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
                        self.records.sample(
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

    # --- shadowing ---

    def shadow(
        self,
        choice: Choice,
        key: str,
        prompts: list[list[int]],
        samplings: list[Sampling],
        stop_ids: frozenset[int],
    ) -> None:
        """Let the canary answer too, behind the reply, if the row wants that."""
        route = choice.route
        if choice.arm != "stable" or not choice.is_counted or route.canary is None:
            return
        if not is_shadowed(route, key, now()):
            return
        hosted = self.host.get(route.canary.version)
        if hosted is None:
            return
        mirrored = Choice(
            route=route,
            arm="canary",
            target=route.canary,
            hosted=hosted,
            user=choice.user,
            request_id=choice.request_id,
            is_shadow=True,
        )
        task = asyncio.create_task(self._mirror(mirrored, prompts, samplings, stop_ids))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _mirror(
        self,
        choice: Choice,
        prompts: list[list[int]],
        samplings: list[Sampling],
        stop_ids: frozenset[int],
    ) -> None:
        with contextlib.suppress(ApiError), self.admitted(choice):
            await self.finish(self.start(choice, prompts, samplings, stop_ids))

    # --- life ---

    def obeys(self, moment: datetime) -> dict[str, int]:
        """The canary's share by endpoint, as this server splits now, in basis points."""
        return {route.endpoint: canary_share(route, moment) for route in self.endpoints()}

    @property
    def is_idle(self) -> bool:
        """Whether no request runs."""
        return not any(self.running.values()) and not self._shadows

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()
