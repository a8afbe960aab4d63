"""Whether the gateway lives, and whether it can do anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.bodies import Route
from api.context import Parts
from loomos.client.models import Health
from loomos.errors import LoomOSError, NotFound
from loomos.security.proof import CHALLENGE_CHARACTERS, prove

router = APIRouter(route_class=Route, prefix="/api/v1", tags=["health"])


@router.get("/health")
async def health() -> Health:
    """The gateway's process answers."""
    return Health(status="ok")


@router.get("/proof", include_in_schema=False)
async def proof(
    challenge: Annotated[str, Query(pattern=f"^[0-9a-f]{{{CHALLENGE_CHARACTERS}}}$")],
    request: Request,
    parts: Parts,
) -> dict[str, str]:
    """Prove that this is the gateway of its stack, to whoever knows the stack's secret."""
    server = request.scope.get("server")
    if not parts.stack_key or not server:
        raise NotFound("this gateway belongs to no embedded stack")
    address = f"{server[0]}:{server[1]}"
    return {"address": address, "proof": prove(parts.stack_key, address, challenge)}


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
