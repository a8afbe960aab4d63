"""The gateway's application. Start with `uvicorn api.app:create_app --factory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import httpx
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import problems
from api.context import Gateway
from api.edge import Edge
from api.openai_face import create_openai_app
from api.routes import (
    campaigns,
    cluster,
    experiments,
    health,
    jobs,
    ledger,
    models,
    names,
    retention,
    rollouts,
    scheduler,
    schedules,
    serving,
    uploads,
    verifications,
)
from api.stream import RecentJobs
from api.traffic import Traffic
from loomos.client.campaigns import CampaignClient
from loomos.client.delivery import DeliveryClient
from loomos.client.experiments import ExperimentClient
from loomos.client.finder import Finder
from loomos.client.retention import RetentionClient
from loomos.client.schedules import ScheduleClient
from loomos.client.temporal import connect
from loomos.client.workflows import WorkflowClient
from loomos.errors import InvalidInput
from loomos.local_files import Reach
from loomos.loomdb import LoomDB
from loomos.loomdb.keys import read_policy
from loomos.loomdb.policies import Policy
from loomos.provenance import dsse
from loomos.retention.usage import UsageCounter
from loomos.security.proof import read_stack_key
from loomos.security.tokens import read_key
from loomos.settings import LoomDBSettings, Settings, load_settings
from loomos.storage import open_store

UPLOADS_AT_ONCE = 4

MANY_CONNECTIONS = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
"""To the servers of models."""


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
        store = open_store(chosen.storage)
        workflows = WorkflowClient(client, chosen.temporal, store)
        async with (
            LoomDB(chosen.loomdb.url, may_lead=False) as db,
            httpx.AsyncClient(trust_env=False, limits=MANY_CONNECTIONS) as http,
        ):
            app.state.http = http
            app.state.gateway = Gateway(
                workflows=workflows,
                cluster=workflows.cluster,
                delivery=DeliveryClient(client),
                schedules=ScheduleClient(client, store),
                reach=Reach.of(chosen),
                usage=UsageCounter(store),
                uploading=asyncio.Semaphore(UPLOADS_AT_ONCE),
                most_uploaded=chosen.data.max_upload_bytes,
                retention=RetentionClient(client),
                finder=Finder(client),
                experiments=ExperimentClient(client, store),
                campaigns=CampaignClient(client, store),
                traffic=Traffic(store),
                remote_keys=chosen.serving.remotes,
                store=store,
                signing_key=read_key(chosen.auth.signing_key_file),
                db=db,
                policy=_policy(chosen.loomdb),
                attestation_key=_attestation_key(chosen.loomdb),
                stack_key=read_stack_key(chosen.auth.stack_key_file) or "",
            )
            app.state.recent = RecentJobs(workflows)
            yield

    # Its pages are those of FastAPI with scripts of its own, so that they open without a network.
    app = FastAPIOffline(
        title="LoomOS",
        version=version("loomos"),
        summary="AI training as durable pipelines.",
        lifespan=lifespan,
        redoc_url=None,
    )
    problems.install(app)
    app.add_middleware(
        Edge,
        key=lambda scope: scope["app"].state.gateway.signing_key,
        refusal=lambda scope, error: problems.refusal(scope["path"], error),
    )
    for routes in (
        health,
        jobs,
        cluster,
        scheduler,
        ledger,
        models,
        retention,
        rollouts,
        verifications,
        experiments,
        campaigns,
        names,
        schedules,
        serving,
        uploads,
    ):
        app.include_router(routes.router)
    app.mount("/v1", create_openai_app(app.state))
    return app


def _policy(settings: LoomDBSettings) -> Policy:
    return read_policy(settings.policy_file) if settings.policy_file else Policy()


def _attestation_key(settings: LoomDBSettings) -> str:
    if settings.attestation_key_file is None:
        return ""
    return dsse.public_pem(dsse.read_key(settings.attestation_key_file).public_key())
