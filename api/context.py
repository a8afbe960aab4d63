"""What routes need: the clients behind the gateway, and who is asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.traffic import Traffic
from loomos.client.campaigns import CampaignClient
from loomos.client.cluster import ClusterClient
from loomos.client.delivery import DeliveryClient
from loomos.client.experiments import ExperimentClient
from loomos.client.finder import Finder
from loomos.client.retention import RetentionClient
from loomos.client.schedules import ScheduleClient
from loomos.client.workflows import WorkflowClient
from loomos.errors import Forbidden
from loomos.local_files import Reach
from loomos.loomdb import LoomDB
from loomos.loomdb.policies import Policy
from loomos.retention.usage import UsageCounter
from loomos.security.tokens import Identity, Scope
from loomos.serving.remote import RemoteKeys
from loomos.storage import Store


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The parts behind the gateway."""

    workflows: WorkflowClient
    """Jobs, on Temporal."""
    cluster: ClusterClient
    """Nodes and the queue, on Temporal."""
    store: Store
    """Artifacts."""
    signing_key: str
    """Verifies tokens."""
    db: LoomDB
    """Events and the ledger."""
    policy: Policy
    """Whom to trust about the ledger."""
    attestation_key: str
    """PEM of the public key that signs provenance; empty without one."""
    delivery: DeliveryClient
    """What comes after training, on Temporal."""
    schedules: ScheduleClient
    """Continual learning."""
    experiments: ExperimentClient
    """Searches over parameters."""
    campaigns: CampaignClient
    """Policies trained together, round by round."""
    reach: Reach
    """Which files of this machine documents may name."""
    usage: UsageCounter
    """What takes how much of the store."""
    uploading: asyncio.Semaphore
    """Uploads whose parts are looked for at a time, so that other requests find threads."""
    most_uploaded: int
    """Bytes that one upload may have."""
    retention: RetentionClient
    """Collections of garbage."""
    finder: Finder
    """What names mean."""
    traffic: Traffic
    """Servers and route rows, as requests are passed on by."""
    remote_keys: RemoteKeys = field(default_factory=dict)
    """Keys that may be sent to servers elsewhere, by the name that documents give."""
    stack_key: str = ""
    """Secret of the embedded stack, by which this gateway proves itself; empty without one."""


def gateway(request: Request) -> Gateway:
    """The parts behind the app that serves this request."""
    found: Gateway = request.app.state.gateway
    return found


_bearer = HTTPBearer(auto_error=False, description="Token minted by `loomos auth create-token`.")


def identity(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Identity:
    """Who is asking, as `api.edge` has found out before anything of the request was read."""
    found: Identity = request.scope["loomos.identity"]
    return found


def require(scope: Scope) -> Callable[..., Coroutine[Any, Any, Identity]]:
    """Dependency that lets only tokens with `scope` pass."""

    async def check(who: Annotated[Identity, Depends(identity)]) -> Identity:
        if not who.allows(scope):
            raise Forbidden(f"this needs the scope {scope!r}; the token of {who.subject} lacks it")
        return who

    return check


Parts = Annotated[Gateway, Depends(gateway)]
Reader = Annotated[Identity, Depends(require("read"))]
Submitter = Annotated[Identity, Depends(require("submit"))]
Admin = Annotated[Identity, Depends(require("admin"))]
