"""The SDK: an async client of the gateway, HTTP only.

Example:
    >>> async with LoomOSClient() as client:                     # doctest: +SKIP
    ...     job = await client.submit_job("job.yaml")
    ...     async for status in client.stream_job_status(job.job_id):
    ...         print(status.progress, status.current_stage)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from loomos.client.delivery_api import (
    EndpointsApi,
    ModelsApi,
    RolloutsApi,
    SchedulesApi,
    VerificationsApi,
)
from loomos.client.delivery_models import Deployment, EndpointDetail, InferenceAnswer
from loomos.client.job_spec import JobSpec
from loomos.client.ledger import LedgerApi
from loomos.client.models import (
    ArtifactList,
    ClusterResources,
    JobDetail,
    JobPage,
    Records,
    Submitted,
    WorkerDetail,
    WorkerList,
)
from loomos.errors import (
    Conflict,
    FieldError,
    Forbidden,
    InvalidInput,
    LoomOSError,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from loomos.jobs.messages import ClusterStatus
from loomos.manifest import JobManifest
from loomos.settings import load_settings

RETRY_DELAY_S = 0.3
API = "/api/v1"

ModelT = TypeVar("ModelT", bound=BaseModel)

_ERRORS: dict[int, type[LoomOSError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: InvalidInput,
    429: Overloaded,
    503: Unavailable,
}


class LoomOSClient:
    """Submits, follows and steers jobs through a gateway.

    Args:
        endpoint: URL of the gateway. Default: from the settings.
        auth_token: bearer token. Default: from the settings.
        timeout: seconds a request may take. Default: from the settings.
        transport: for tests.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        auth_token: str | None = None,
        *,
        timeout: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = load_settings()
        self.endpoint = (endpoint or settings.cluster.endpoint).rstrip("/")
        token = auth_token or settings.token()
        self._retries = settings.cluster.retries
        self._http = httpx.AsyncClient(
            base_url=self.endpoint,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout or settings.cluster.timeout,
            transport=transport,
        )
        self.ledger = LedgerApi(self)
        self.models = ModelsApi(self)
        self.endpoints = EndpointsApi(self)
        self.rollouts = RolloutsApi(self)
        self.verifications = VerificationsApi(self)
        self.schedules = SchedulesApi(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    # --- jobs ---

    async def submit_job(
        self,
        job: JobSpec | JobManifest | Mapping[str, Any] | str | Path,
        *,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Submit a job given as a spec, a manifest, its content, or the path of its file.

        Raises:
            InvalidManifest: found wrong before anything is sent.
        """
        if isinstance(job, JobSpec):
            manifest = job.to_manifest()  # noqa: ASYNC240
        elif isinstance(job, JobManifest):
            manifest = job
        elif isinstance(job, Mapping):
            manifest = JobManifest.from_dict(job)
        else:
            manifest = JobManifest.from_file(job)
        return await self.submit_job_from_manifest(manifest, idempotency_key=idempotency_key)

    async def submit_job_from_manifest(
        self, manifest: JobManifest, *, idempotency_key: str | None = None
    ) -> Submitted:
        """Check a manifest here, then submit it.

        A key is made up if none is given, so that a retry after a lost answer submits once.
        """
        body = manifest.job.model_dump(mode="json", exclude_unset=True)
        key = idempotency_key or _fresh_key()
        return await self.call(
            "POST", "/jobs", Submitted, json=body, headers={"Idempotency-Key": key}
        )

    async def submit_batch_jobs(self, manifests: Sequence[JobManifest]) -> list[Submitted]:
        """Check all manifests, then submit all; none is sent if one is wrong."""
        for manifest in manifests:
            _ = manifest.job
        return [await self.submit_job_from_manifest(manifest) for manifest in manifests]

    async def get_job_status(self, job_id: str) -> JobDetail:
        """Everything about a job."""
        return await self.call("GET", f"/jobs/{job_id}", JobDetail)

    async def list_jobs(
        self,
        *,
        states: Sequence[str] = (),
        owner: str | None = None,
        project: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """One page of jobs, newest first."""
        query: list[tuple[str, str | int]] = [("limit", limit)]
        query += [("state", state) for state in states]
        query += [("label", f"{k}={v}") for k, v in (labels or {}).items()]
        for name, value in (("owner", owner), ("project", project), ("cursor", cursor)):
            if value is not None:
                query.append((name, value))
        return await self.call("GET", "/jobs", JobPage, params=query)

    async def cancel_job(self, job_id: str) -> JobDetail:
        """Stop a job for good."""
        return await self.call("POST", f"/jobs/{job_id}/cancel", JobDetail)

    async def pause_job(self, job_id: str) -> JobDetail:
        """Checkpoint a job and give its nodes back."""
        return await self.call("POST", f"/jobs/{job_id}/pause", JobDetail)

    async def resume_job(self, job_id: str) -> JobDetail:
        """Let a paused job go on."""
        return await self.call("POST", f"/jobs/{job_id}/resume", JobDetail)

    async def restart_job(self, job_id: str, *, from_scratch: bool = False) -> JobDetail:
        """Start a new attempt, or run a job again that has ended."""
        body = {"from_scratch": from_scratch}
        return await self.call("POST", f"/jobs/{job_id}/restart", JobDetail, json=body)

    async def migrate_job(self, job_id: str, nodes: Sequence[str]) -> JobDetail:
        """Move a job to other nodes while it runs."""
        body = {"nodes": list(nodes)}
        return await self.call("POST", f"/jobs/{job_id}/migrate", JobDetail, json=body)

    async def change_job(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> JobDetail:
        """Change priority or labels of a job that lives."""
        body: dict[str, Any] = {}
        if priority is not None:
            body["priority"] = priority
        if labels is not None:
            body["labels"] = dict(labels)
        return await self.call("PUT", f"/jobs/{job_id}", JobDetail, json=body)

    async def delete_job(self, job_id: str) -> None:
        """Forget a job that has ended."""
        await self.request("DELETE", f"/jobs/{job_id}")

    async def stream_job_status(self, job_id: str) -> AsyncIterator[JobDetail]:
        """The job each time it changes, until it has ended."""
        async for kind, data in self.stream(f"/jobs/{job_id}/events"):
            if kind == "job":
                yield JobDetail.model_validate({"spec": {}, **data})

    async def stream_job_events(self, job_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Everything that happens to a job as (kind, content), until it has ended."""
        async for kind, data in self.stream(f"/jobs/{job_id}/events"):
            yield kind, data

    async def get_job_metrics(self, job_id: str, *, after: str = "") -> Records:
        """Metrics; give `next_cursor` as `after` for those that came later."""
        return await self.call("GET", f"/jobs/{job_id}/metrics", Records, params={"after": after})

    async def get_job_logs(self, job_id: str, *, after: str = "") -> Records:
        """Log lines; give `next_cursor` as `after` for those that came later."""
        return await self.call("GET", f"/jobs/{job_id}/logs", Records, params={"after": after})

    async def stream_job_logs(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Log lines as they are written, until the job has ended."""
        async for kind, data in self.stream(f"/jobs/{job_id}/logs", {"follow": "true"}):
            if kind == "log":
                yield data

    async def list_artifacts(self, job_id: str) -> ArtifactList:
        """Files of the model that a job published."""
        return await self.call("GET", f"/jobs/{job_id}/artifacts", ArtifactList)

    async def download_job_artifact(
        self, job_id: str, artifact_type: str = "trained_model", local_path: str | Path = "."
    ) -> Path:
        """Download the model that a job published into a folder, verified.

        Args:
            job_id: the job.
            artifact_type: `trained_model` for all files, or the path of one of them.
            local_path: folder for the files; made if it is not there.

        Returns:
            The folder, or the one file.

        Raises:
            NotFound: the job has published nothing, or no such file.
        """
        listing = (await self.list_artifacts(job_id)).artifacts
        wanted = [
            a
            for a in listing
            if artifact_type in ("trained_model", "model") or a.path == artifact_type
        ]
        if not wanted:
            known = ", ".join(artifact.path for artifact in listing)
            raise NotFound(f"job {job_id} has no artifact {artifact_type!r}; known: {known}")
        root = Path(local_path)
        for artifact in wanted:
            path = f"/jobs/{job_id}/artifacts/{artifact.path}"
            await self.download(path, artifact.sha256, root / artifact.path)
        return root if len(wanted) > 1 else root / wanted[0].path

    async def download(self, path: str, sha256: str, target: Path) -> None:
        """Write what the gateway has at `path` into a file, once its SHA-256 has been checked.

        Raises:
            Unavailable: it arrived damaged, or not at all.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        digest = hashlib.sha256()
        try:
            async with self._http.stream("GET", API + path) as answer:
                await _raise_for(answer)
                with partial.open("wb") as file:
                    async for piece in answer.aiter_bytes():
                        digest.update(piece)
                        file.write(piece)
            if digest.hexdigest() != sha256:
                raise Unavailable(f"{target.name} arrived damaged; download it again")
            partial.replace(target)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)

    # --- cluster ---

    async def get_cluster_status(self) -> ClusterStatus:
        """Nodes, leases and the queue."""
        return await self.call("GET", "/cluster/status", ClusterStatus)

    async def get_available_resources(self) -> ClusterResources:
        """What the ready nodes have, and what of it is in use."""
        return await self.call("GET", "/cluster/resources", ClusterResources)

    async def list_workers(self) -> WorkerList:
        """Every worker node."""
        return await self.call("GET", "/workers", WorkerList)

    async def get_worker(self, node_id: str) -> WorkerDetail:
        """A worker node with its load."""
        return await self.call("GET", f"/workers/{node_id}", WorkerDetail)

    async def drain_worker(self, node_id: str) -> WorkerDetail:
        """Move away what runs on a node, then give it nothing new."""
        return await self.call("POST", f"/workers/{node_id}/drain", WorkerDetail)

    async def cordon_worker(self, node_id: str) -> WorkerDetail:
        """Give a node nothing new."""
        return await self.call("POST", f"/workers/{node_id}/cordon", WorkerDetail)

    async def uncordon_worker(self, node_id: str) -> WorkerDetail:
        """Let a node take work again."""
        return await self.call("POST", f"/workers/{node_id}/uncordon", WorkerDetail)

    # --- models ---

    async def deploy_model(
        self,
        model_path: str | Path,
        endpoint_name: str,
        scaling_config: Mapping[str, Any] | None = None,
        *,
        wait_s: float = 120.0,
    ) -> EndpointDetail:
        """Serve a model under a name, and wait until a server can answer.

        Args:
            model_path: a folder that `save_pretrained` wrote, which is uploaded under the
                endpoint's name; or a registered version, as `NAME@VERSION`.
            endpoint_name: name of the endpoint; what it served before is replaced at once.
            scaling_config: `min_instances`, `max_instances`, `auto_scaling` (false holds the
                number at the minimum).
            wait_s: how long to wait; 0 not to.

        Raises:
            InvalidInput: the folder is no model, or the scaling makes no sense.
            Unavailable: no server could load it in time.
        """
        model = str(model_path)
        if Path(model).is_dir():  # noqa: ASYNC240
            made = await self.models.upload(model, endpoint_name)
            model = f"{made.name}@{made.version}"
        deployment = Deployment.model_validate(
            {"endpoint": endpoint_name, "replicas": _replicas(scaling_config or {})}
        )
        detail = await self.models.deploy(model, deployment)
        deadline = time.monotonic() + wait_s
        while wait_s and not detail.is_ready:
            reasons = "; ".join(r for server in detail.servers for r in server.failed.values())
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"no server has loaded {detail.route.stable.version} within {wait_s:g} s"
                    + (f": {reasons}" if reasons else "; is one running?")
                )
            await asyncio.sleep(RETRY_DELAY_S)
            detail = await self.endpoints.get(endpoint_name)
        return detail

    async def inference(
        self,
        endpoint_name: str,
        input_data: Mapping[str, Any],
        timeout_seconds: float = 30,
        **options: Any,
    ) -> InferenceAnswer:
        """Ask an endpoint.

        Args:
            endpoint_name: which.
            input_data: `{"text": ...}` to continue a text, `{"messages": [...]}` to converse.
            timeout_seconds: how long the answer may take.
            options: `max_tokens`, `temperature`, `user`.
        """
        body = {"input": dict(input_data), **options}
        return await self.models.infer(endpoint_name, body, timeout_seconds)

    # --- requests ---

    async def call(self, method: str, path: str, model: type[ModelT], **options: Any) -> ModelT:
        """Send a request to a path of the API and read the answer as `model`."""
        response = await self.request(method, path, **options)
        return model.model_validate_json(response.content)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again while the gateway is away and sending twice does no harm."""
        safe = method == "GET" or "Idempotency-Key" in options.get("headers", {})
        attempt = 0
        while True:
            try:
                response = await self._http.request(method, API + path, **options)
                if response.status_code != 503 or attempt >= self._retries or not safe:
                    await _raise_for(response)
                    return response
            except httpx.ConnectError as error:
                if attempt >= self._retries:
                    raise self._unreachable(error) from error
            except httpx.HTTPError as error:
                if attempt >= self._retries or not safe:
                    raise self._unreachable(error) from error
            attempt += 1
            await asyncio.sleep(RETRY_DELAY_S * 2**attempt)

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        reason = str(error) or type(error).__name__
        return Unavailable(
            f"gateway at {self.endpoint} cannot be reached ({reason}); start one with `loomos up` "
            f"or set cluster.endpoint"
        )

    async def stream(self, path: str, params: Any = None) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events, going on after a cut connection, until the stream's own end."""
        last_id: str | None = None
        failures = 0
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            try:
                async with self._http.stream(
                    "GET", API + path, params=params, headers=headers, timeout=60
                ) as response:
                    await _raise_for(response)
                    async for kind, data, event_id in _parse_events(response):
                        failures = 0
                        last_id = event_id or last_id
                        if kind == "end":
                            return
                        yield kind, data
            except (httpx.HTTPError, Unavailable) as error:
                failures += 1
                if failures > 60:
                    if isinstance(error, Unavailable):
                        raise
                    raise self._unreachable(error) from error
            await asyncio.sleep(min(5.0, RETRY_DELAY_S * 2 ** min(failures, 4)))


def _replicas(scaling: Mapping[str, Any]) -> dict[str, int]:
    """Replicas from the SDK's words for them."""
    known = {"min_instances", "max_instances", "auto_scaling"}
    if unknown := sorted(scaling.keys() - known):
        raise InvalidInput(f"scaling_config: no {unknown[0]!r}; known: {', '.join(sorted(known))}")
    fewest = int(scaling.get("min_instances", 1))
    most = int(scaling.get("max_instances", fewest))
    return {"min": fewest, "max": most if scaling.get("auto_scaling", True) else fewest}


async def _parse_events(response: httpx.Response) -> AsyncIterator[tuple[str, Any, str | None]]:
    """(event, data, id) of each server-sent event."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id")
            fields = {}


async def _raise_for(response: httpx.Response) -> None:
    """Turn a problem+json answer into the error that it was."""
    if response.is_success:
        return
    await response.aread()
    try:
        problem = response.json()
        detail, fields = problem.get("detail", ""), problem.get("errors", [])
    except ValueError:
        detail, fields = response.text[:200] or response.reason_phrase, []
    kind = _ERRORS.get(response.status_code, LoomOSError)
    if issubclass(kind, InvalidInput):
        raise kind(detail, [FieldError(path=f["path"], message=f["message"]) for f in fields])
    raise kind(detail or f"the gateway answered {response.status_code}")


def _fresh_key() -> str:
    import uuid

    return uuid.uuid4().hex
