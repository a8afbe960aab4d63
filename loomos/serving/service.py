"""What happens to a request: an arm is picked, the answer made and noted, perhaps shadowed.

One `Service` is one serving process. It obeys the route rows that it has seen; to pick an arm costs
microseconds and asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx

from loomos.errors import LoomOSError
from loomos.jobs.serving import Route, Target
from loomos.serving.api_errors import ApiError
from loomos.serving.hosting import ModelHost
from loomos.serving.noting import ARM_CODES, Answer, Choice, Generation, Notes
from loomos.serving.outcomes import RecordWriters, hash_user, now
from loomos.serving.remote import RemoteArm, RemoteKeys
from loomos.serving.routes import Arm, canary_share, has_lapsed, is_shadowed, pick
from loomos.serving.rows import Piece, Row, Sampling
from loomos.serving.table import RouteTable


class Service:
    """Answers requests.

    Args:
        table: the route rows.
        host: the loaded versions.
        records: where outcomes go.
        server_id: this server's name, as route rows have it.
        max_batch: requests that run at once, besides those that wait.
        remote_keys: keys that may be sent to servers elsewhere.
    """

    def __init__(
        self,
        table: RouteTable,
        host: ModelHost,
        records: RecordWriters,
        server_id: str,
        *,
        max_batch: int = 16,
        remote_keys: RemoteKeys | None = None,
    ) -> None:
        self.table, self.host, self.server_id = table, host, server_id
        self._max_batch = max_batch
        self._remote_keys = remote_keys or {}
        self.notes = Notes(records)
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
        if self.running.get(name, 0) >= route.spec.max_queue + self._max_batch:
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
            ApiError: a prompt does not fit the model, or has tokens that it does not know.
        """
        assert choice.hosted is not None
        engine = choice.hosted.engine
        for prompt in prompts:
            longest = max(sampling.max_tokens for sampling in samplings)
            if not prompt:
                raise ApiError(400, "the prompt is empty", param="prompt")
            if min(prompt) < 0 or max(prompt) >= engine.vocabulary:
                raise ApiError(
                    400,
                    f"prompt: the model's token ids go from 0 to {engine.vocabulary - 1}",
                    param="prompt",
                )
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
    def admitted(self, choice: Choice, answers: int = 1) -> Any:
        """Count a request's answers as running, and keep its version loaded."""
        name = choice.route.endpoint
        self.running[name] = self.running.get(name, 0) + answers
        try:
            with choice.hosted.use() if choice.hosted else contextlib.nullcontext():
                yield
        finally:
            self.running[name] -= answers
            if not self.running[name]:
                del self.running[name]

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
                self.notes.note(generation, 500 if error else 200)

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
        return RemoteArm(choice.target.remote, self._http, self._remote_keys)

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
        with (
            contextlib.suppress(ApiError, LoomOSError),
            self.admitted(choice, len(prompts) * len(samplings)),
        ):
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
