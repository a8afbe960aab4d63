"""The SDK's parts for what comes after training: `client.models`, `.endpoints`, `.rollouts`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomos.client.delivery_models import (
    Deployment,
    EndpointDetail,
    EndpointList,
    InferenceAnswer,
    ModelDetail,
    ModelList,
    RolloutList,
    ScheduleDetail,
    ScheduleList,
    VerificationList,
)
from loomos.errors import InvalidInput, NotFound
from loomos.jobs.continual import ContinualJob
from loomos.jobs.rollouts import CanaryRollout, RolloutStatus
from loomos.jobs.serving import EndpointSpec
from loomos.jobs.verification import VerificationJob, VerificationStatus

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

UPLOAD_TIMEOUT_S = 3600.0
FOLLOW_S = 0.5
"""How often what is followed is looked at."""


class ModelsApi:
    """The registry, through a gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def list(self) -> ModelList:
        """Every model."""
        return await self._client.call("GET", "/models", ModelList)

    async def get(self, model: str) -> ModelDetail:
        """A version, by `NAME`, `NAME@ALIAS` or `NAME@VERSION`."""
        return await self._client.call("GET", f"/models/{model}", ModelDetail)

    async def upload(self, path: str | Path, name: str) -> ModelDetail:
        """Register a folder that `save_pretrained` wrote; what is there already is not sent.

        Raises:
            InvalidInput: it is no such folder, or holds other than safetensors.
        """
        root = Path(path)
        files = await asyncio.to_thread(_files, root)
        content = {
            file: {"sha256": digest, "size_bytes": (root / file).stat().st_size}
            for file, digest in files.items()
        }
        for file, digest in files.items():
            where = f"/blobs/{digest}"
            try:
                await self._client.request("HEAD", where)
            except NotFound:
                await self._client.send_file(
                    where, root / file, key=digest, timeout_s=UPLOAD_TIMEOUT_S
                )
        body = {"name": name, "files": content}
        return await self._client.call(
            "POST", "/models", ModelDetail, json=body, timeout=UPLOAD_TIMEOUT_S
        )

    async def edit(
        self,
        model: str,
        *,
        aliases: Mapping[str, str | None] | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelDetail:
        """Point aliases at a version, describe it, tag it.

        Args:
            model: the version.
            aliases: by alias the version it must be at now, or None to move it wherever it is.
            description: new description.
            tags: new tags, replacing the old.
        """
        body: dict[str, Any] = {"aliases": dict(aliases or {})}
        if description is not None:
            body["description"] = description
        if tags is not None:
            body["tags"] = dict(tags)
        return await self._client.call("PUT", f"/models/{model}", ModelDetail, json=body)

    async def unalias(self, model: str, alias: str) -> None:
        """Remove an alias of a model; the version that it is at stays.

        Raises:
            NotFound: the model has no such alias.
            Conflict: an endpoint serves the version as `stable` or `canary`, whichever it is.
        """
        await self._client.request("DELETE", f"/models/{model}/aliases/{alias}")

    async def delete(self, model: str) -> None:
        """Delete a version that nobody serves and no alias is at; see `unalias`."""
        await self._client.request("DELETE", f"/models/{model}")

    async def deploy(self, model: str, deployment: Deployment) -> EndpointDetail:
        """Serve a version."""
        body = deployment.model_dump(mode="json", exclude_unset=True)
        return await self._client.call("POST", f"/models/{model}/deploy", EndpointDetail, json=body)

    async def infer(self, model: str, body: Mapping[str, Any], timeout_s: float) -> InferenceAnswer:
        """Ask an endpoint, or the endpoint that serves a model."""
        path = f"/models/{model}/inference"
        return await self._client.call(
            "POST", path, InferenceAnswer, json=dict(body), timeout=timeout_s
        )


class EndpointsApi:
    """Endpoints, through a gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def list(self) -> EndpointList:
        """Every endpoint."""
        return await self._client.call("GET", "/endpoints", EndpointList)

    async def get(self, name: str) -> EndpointDetail:
        """An endpoint with its route row and servers."""
        return await self._client.call("GET", f"/endpoints/{name}", EndpointDetail)

    async def configure(self, name: str, spec: EndpointSpec) -> EndpointDetail:
        """Make an endpoint, or change it."""
        body = spec.model_dump(mode="json")
        return await self._client.call("PUT", f"/endpoints/{name}", EndpointDetail, json=body)

    async def delete(self, name: str) -> None:
        """Delete an endpoint."""
        await self._client.request("DELETE", f"/endpoints/{name}")


class RolloutsApi:
    """Canary rollouts, through a gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def list(self) -> RolloutList:
        """The newest rollout of each endpoint."""
        return await self._client.call("GET", "/rollouts", RolloutList)

    async def get(self, endpoint: str) -> RolloutStatus:
        """The newest rollout of an endpoint."""
        return await self._client.call("GET", f"/rollouts/{endpoint}", RolloutStatus)

    async def follow(self, endpoint: str) -> AsyncIterator[RolloutStatus]:
        """The rollout as it is, and again whenever something happened, until it is over."""
        told = -1
        while True:
            found = await self.get(endpoint)
            newest = found.timeline[-1].sequence if found.timeline else 0
            if newest != told or found.state.is_final:
                told = newest
                yield found
            if found.state.is_final:
                return
            await asyncio.sleep(FOLLOW_S)

    async def start(self, rollout: CanaryRollout) -> RolloutStatus:
        """Put a version on trial."""
        body = rollout.model_dump(mode="json", exclude_unset=True)
        return await self._client.call("POST", "/rollouts", RolloutStatus, json=body)

    async def steer(
        self, endpoint: str, verb: str, *, reason: str = "", stage: str = ""
    ) -> RolloutStatus:
        """Approve, pause, resume, promote or abort."""
        body = {"reason": reason, "stage": stage}
        path = f"/rollouts/{endpoint}/{verb}"
        return await self._client.call("POST", path, RolloutStatus, json=body)

    async def delete(self, endpoint: str) -> None:
        """Forget the rollouts that an endpoint has had; what they promoted stays."""
        await self._client.request("DELETE", f"/rollouts/{endpoint}")


class SchedulesApi:
    """Continual learning, through a gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def create(self, job: ContinualJob, *, folder: Path | None = None) -> ScheduleDetail:
        """Upload the files that a schedule names, but those that grow, and start it.

        Args:
            job: the schedule.
            folder: where relative paths are looked for first. Default: the working folder.
        """
        body = job.model_dump(mode="json", exclude_unset=True)
        body = await self._client.data.carried(ContinualJob, body, folder)
        return await self._client.call("POST", "/schedules", ScheduleDetail, json=body)

    async def list(self) -> ScheduleList:
        """Every schedule."""
        return await self._client.call("GET", "/schedules", ScheduleList)

    async def get(self, name: str) -> ScheduleDetail:
        """A schedule with what it did lately."""
        return await self._client.call("GET", f"/schedules/{name}", ScheduleDetail)

    async def steer(self, name: str, verb: str) -> ScheduleDetail:
        """Pause, resume, or trigger."""
        return await self._client.call("POST", f"/schedules/{name}/{verb}", ScheduleDetail)

    async def delete(self, name: str) -> None:
        """Delete a schedule."""
        await self._client.request("DELETE", f"/schedules/{name}")


class VerificationsApi:
    """Prism's verifications, through a gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def start(
        self, job: VerificationJob, *, folder: Path | None = None
    ) -> VerificationStatus:
        """Upload the suites that a verification names by path, and start it.

        Args:
            job: the verification.
            folder: where relative paths are looked for first. Default: the working folder.
        """
        body = job.model_dump(mode="json", exclude_unset=True)
        body = await self._client.data.carried(VerificationJob, body, folder)
        return await self._client.call("POST", "/verifications", VerificationStatus, json=body)

    async def list(self) -> VerificationList:
        """The newest verifications."""
        return await self._client.call("GET", "/verifications", VerificationList)

    async def get(self, verification_id: str) -> VerificationStatus:
        """A verification."""
        path = f"/verifications/{verification_id}"
        return await self._client.call("GET", path, VerificationStatus)

    async def follow(self, verification_id: str) -> AsyncIterator[VerificationStatus]:
        """The verification as it is, and again whenever it has changed, until it is over."""
        told: VerificationStatus | None = None
        while True:
            found = await self.get(verification_id)
            if found != told:
                told = found
                yield found
            if found.state.is_final:
                return
            await asyncio.sleep(FOLLOW_S)

    async def cancel(self, verification_id: str) -> VerificationStatus:
        """Stop a verification."""
        path = f"/verifications/{verification_id}/cancel"
        return await self._client.call("POST", path, VerificationStatus)

    async def delete(self, verification_id: str) -> None:
        """Forget a verification that has ended; evidence and verdicts stay."""
        await self._client.request("DELETE", f"/verifications/{verification_id}")

    async def report(self, verification_id: str, form: str) -> bytes:
        """A report: `pdf`, `html`, `json` (the evidence), or `zip` (logs for `inspect view`)."""
        path = f"/verifications/{verification_id}/report"
        answer = await self._client.request("GET", path, params={"format": form}, timeout=300)
        return answer.content


def _files(root: Path) -> dict[str, str]:
    """SHA-256 by path of a model folder's files."""
    if not (root / "config.json").exists():
        raise InvalidInput(
            f"{root}: has no config.json; name a folder that save_pretrained() wrote"
        )
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "manifest.json":
            with path.open("rb") as file:
                found[path.relative_to(root).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found
