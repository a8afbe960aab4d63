"""Real requests to an endpoint at a steady rate: traffic by which a rollout can judge a version.

Requests leave at their times whether or not earlier ones have been answered, as people do not wait
for each other; past `clients` of them at a time the next one waits. Each comes from another user.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loomos.errors import LoomOSError, NotFound

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

PROMPTS = ("Hello!", "What can you do?", "Tell me something about lamps.", "Why is that so?")
TELL_S = 0.5
"""Time between two reports."""


@dataclass(kw_only=True)
class Load:
    """What came of the requests so far."""

    sent: int = 0
    """Requests sent."""
    answered: int = 0
    """Of which answered."""
    failed: int = 0
    """Of which refused, or not answered."""
    versions: Counter[str] = field(default_factory=Counter)
    """Answers by version."""
    latencies_s: list[float] = field(default_factory=list)
    """How long each answer took."""
    first_failure: str = ""
    """What the first that failed was told."""
    state: str = ""
    """Of the endpoint's rollout, if that is looked at."""

    def percentile_s(self, share: float) -> float | None:
        """The latency that this share of answers kept to."""
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """How much of what to send."""

    prompts: Sequence[str] = PROMPTS
    """What to ask, in turn."""
    rate: float = 5.0
    """Requests a second."""
    duration_s: float = 60.0
    """How long, at most."""
    requests: int = 10_000
    """How many, at most."""
    clients: int = 8
    """Requests that may wait for an answer at a time."""
    max_tokens: int = 64
    """Longest answer."""
    while_rollout: bool = False
    """Stop when the endpoint's rollout is over; one that has not begun yet is waited for."""


async def send_load(client: LoomOSClient, endpoint: str, plan: LoadPlan) -> AsyncIterator[Load]:
    """Send requests, and tell twice a second, and at the end, what came of them."""
    load = Load()
    free = asyncio.Semaphore(plan.clients)
    over = asyncio.Event()
    began = time.monotonic()
    pending: set[asyncio.Task[None]] = set()

    async def ask(number: int) -> None:
        prompt = plan.prompts[number % len(plan.prompts)]
        sent_at = time.monotonic()
        try:
            answer = await client.inference(
                endpoint, prompt, 60.0, max_tokens=plan.max_tokens, user=f"load-{began}-{number}"
            )
            load.answered += 1
            load.versions[answer.version] += 1
            load.latencies_s.append(time.monotonic() - sent_at)
        except LoomOSError as error:
            load.failed += 1
            load.first_failure = load.first_failure or str(error)
        finally:
            free.release()

    async def send() -> None:
        for number in range(plan.requests):
            await asyncio.sleep(max(0.0, began + number / plan.rate - time.monotonic()))
            await free.acquire()
            if over.is_set() or time.monotonic() - began > plan.duration_s:
                free.release()
                break
            load.sent += 1
            task = asyncio.create_task(ask(number))
            pending.add(task)
            task.add_done_callback(pending.discard)

    async def watch() -> None:
        has_begun = False
        while plan.while_rollout and not over.is_set():
            try:
                rollout = await client.rollouts.get(endpoint)
                load.state = rollout.state
                has_begun = has_begun or not rollout.state.is_final
                if has_begun and rollout.state.is_final:
                    over.set()
            except NotFound:
                pass
            await asyncio.sleep(TELL_S)

    sending, watching = asyncio.create_task(send()), asyncio.create_task(watch())
    try:
        while not sending.done():
            await asyncio.wait({sending}, timeout=TELL_S)
            yield load
        await sending
        if pending:
            await asyncio.wait(pending)
        yield load
    finally:
        for task in (sending, watching, *pending):
            task.cancel()
        await asyncio.gather(sending, watching, *pending, return_exceptions=True)
