"""The gateway's application. Start with `uvicorn api.app:create_app --factory`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import problems
from api.context import Gateway
from api.routes import cluster, health, jobs
from api.stream import RecentJobs
from loomos.client.temporal import connect
from loomos.client.workflows import WorkflowClient
from loomos.errors import InvalidInput
from loomos.security.tokens import read_key
from loomos.settings import Settings, load_settings
from loomos.storage import open_store


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the gateway; it connects when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen = settings or load_settings()
        if chosen.auth.signing_key_file is None:
            raise InvalidInput(
                "the gateway needs auth.signing_key_file (LOOMOS_AUTH__SIGNING_KEY_FILE)"
            )
        client = await connect(chosen.temporal, patience_s=60)
        workflows = WorkflowClient(client, chosen.temporal)
        app.state.gateway = Gateway(
            workflows=workflows,
            store=open_store(chosen.storage),
            signing_key=read_key(chosen.auth.signing_key_file),
        )
        app.state.recent = RecentJobs(workflows)
        yield

    app = FastAPI(
        title="LoomOS",
        version=version("loomos"),
        summary="AI training as durable pipelines.",
        lifespan=lifespan,
    )
    problems.install(app)
    for routes in (health, jobs, cluster):
        app.include_router(routes.router)
    return app
