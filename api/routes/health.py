"""Whether the gateway lives, and whether it can do anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Response

from api.context import Parts
from loomos.client.models import Health
from loomos.errors import LoomOSError

router = APIRouter(prefix="/api/v1", tags=["health"])


@router.get("/health")
async def health() -> Health:
    """The gateway's process answers."""
    return Health(status="ok")


@router.get("/ready", responses={503: {"model": Health, "description": "A part is away."}})
async def ready(parts: Parts, response: Response) -> Health:
    """Temporal and the store answer too."""
    found = {
        "temporal": await _state(parts.workflows.check()),
        "store": await _state(asyncio.to_thread(parts.store.exists, "health")),
    }
    is_ready = set(found.values()) == {"ok"}
    response.status_code = 200 if is_ready else 503
    return Health(status="ok" if is_ready else "unavailable", parts=found)


async def _state(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(3):
            await check
    except TimeoutError:
        return "does not answer"
    except LoomOSError as error:
        return str(error)
    return "ok"
