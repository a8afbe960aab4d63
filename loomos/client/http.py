"""The SDK: an async client of the gateway, HTTP only.

Example:
    >>> async with LoomOSClient() as client:                     # doctest: +SKIP
    ...     job = await client.submit_job("job.yaml")
    ...     async for status in client.stream_job_status(job.job_id):
    ...         print(status.progress, status.current_stage)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from loomos.client.campaigns_api import CampaignsApi
from loomos.client.delivery_api import (
    EndpointsApi,
    ModelsApi,
    RolloutsApi,
    SchedulesApi,
    VerificationsApi,
)
from loomos.client.delivery_models import Deployment, EndpointDetail, InferenceAnswer
from loomos.client.experiments_api import ExperimentsApi
from loomos.client.job_defaults import with_defaults
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
from loomos.client.names import Kind, NameList, the_one
from loomos.client.retention_api import RetentionApi
from loomos.client.scheduler_api import SchedulerApi
from loomos.client.transport import RETRY_DELAY_S, Transport
from loomos.client.uploads import DataApi
from loomos.errors import (
    InvalidInput,
    NotFound,
    Unavailable,
)
from loomos.jobs.cluster import ClusterStatus
from loomos.manifest import JobManifest, TrainingJob


class LoomOSClient(Transport):
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
        super().__init__(endpoint, auth_token, timeout=timeout, transport=transport)
        self.data = DataApi(self)
        self.retention = RetentionApi(self)
        self.ledger = LedgerApi(self)
        self.scheduler = SchedulerApi(self)
        self.models = ModelsApi(self)
        self.endpoints = EndpointsApi(self)
        self.rollouts = RolloutsApi(self)
        self.verifications = VerificationsApi(self)
        self.schedules = SchedulesApi(self)
        self.experiments = ExperimentsApi(self, self.data)
        self.campaigns = CampaignsApi(self, self.data)

    # --- jobs ---

    async def submit_job(
        self,
        job: JobSpec | JobManifest | Mapping[str, Any] | str | Path,
        *,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Submit a job given as a spec, a manifest, its content, or the path of its file.

        Files that it names by paths are uploaded first, unless they are there already; relative
        paths are looked for beside the manifest's file, then in the working folder.

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
        self,
        manifest: JobManifest,
        *,
        idempotency_key: str | None = None,
        priority: int | None = None,
    ) -> Submitted:
        """Check a manifest here, upload the files that it names, then submit it.

        Args:
            manifest: what to do.
            idempotency_key: the same key and manifest give the same job, once. One is made up if
                none is given, so that a retry after a lost answer submits once.
            priority: instead of the manifest's; 1 is served first, 5 last.

        Returns:
            The job's id.

        Raises:
            InvalidManifest: with every error.
        """
        body = with_defaults(
            manifest.job.model_dump(mode="json", exclude_unset=True), self._job_defaults
        )
        if priority is not None:
            body["spec"]["priority"] = priority
        body = await self.data.carried(TrainingJob, body, manifest.folder)
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

    async def get_job_metrics(
        self,
        job_id: str,
        *,
        after: str = "",
        tail: int | None = None,
        every: int | None = None,
        since: float | None = None,
        attempt: int | None = None,
    ) -> Records:
        """Metrics, a page at a time, or the newest.

        Args:
            job_id: the job.
            after: `next_cursor` of an earlier page, for those that came later.
            tail: only so many, the newest; there is no next page.
            every: only steps that are a multiple of it.
            since: only those written at this time or later, in seconds since 1970.
            attempt: only those of one attempt.
        """
        given = {"tail": tail, "every": every, "since": since, "attempt": attempt}
        params = _given(after=after, **given)
        return await self.call("GET", f"/jobs/{job_id}/metrics", Records, params=params)

    async def get_job_logs(
        self,
        job_id: str,
        *,
        after: str = "",
        tail: int | None = None,
        since: float | None = None,
        attempt: int | None = None,
        rank: int | None = None,
    ) -> Records:
        """Log lines by time, a page at a time, or the newest.

        Args:
            job_id: the job.
            after: `next_cursor` of an earlier page, for those that came later.
            tail: only so many, the newest; there is no next page.
            since: only those written at this time or later, in seconds since 1970.
            attempt: only those of one attempt.
            rank: only those of one rank.
        """
        given = {"tail": tail, "since": since, "attempt": attempt, "rank": rank}
        params = _given(after=after, **given)
        return await self.call("GET", f"/jobs/{job_id}/logs", Records, params=params)

    async def stream_job_logs(
        self,
        job_id: str,
        *,
        tail: int | None = None,
        since: float | None = None,
        attempt: int | None = None,
        rank: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Log lines as they are written, until the job has ended.

        Args:
            job_id: the job.
            tail: begin with so many of the newest instead of the first.
            since: only those written at this time or later, in seconds since 1970.
            attempt: only those of one attempt.
            rank: only those of one rank.
        """
        params = _given(follow="true", tail=tail, since=since, attempt=attempt, rank=rank)
        async for kind, data in self.stream(f"/jobs/{job_id}/logs", params):
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

    # --- names ---

    async def find(self, kind: Kind, text: str) -> str:
        """The id that a name, or the beginning of an id, means; `text` if there is no such thing.

        Args:
            kind: `job`, `experiment`, `campaign`, `verification`, `rollout` and `endpoint` (both by
                the endpoint's name), `schedule`, `model` (also `NAME@...`) or `node`.
            text: what a person wrote.

        Raises:
            InvalidInput: it may mean several; the message lists them.
        """
        found = await self.call("GET", "/names", NameList, params={"kind": kind, "text": text})
        return the_one(kind, text, found)

    # --- cluster ---

    async def get_cluster_status(self) -> ClusterStatus:
        """All nodes, leases and the queue, however many pages that is."""
        found = await self.call("GET", "/cluster/status", ClusterStatus)
        while found.next_cursor:
            params = {"cursor": found.next_cursor}
            more = await self.call("GET", "/cluster/status", ClusterStatus, params=params)
            found = found.joined(more)
        return found

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
                    f"no server has loaded {model} within {wait_s:g} s"
                    + (f": {reasons}" if reasons else "; is one running?")
                )
            await asyncio.sleep(RETRY_DELAY_S)
            detail = await self.endpoints.get(endpoint_name)
        return detail

    async def inference(
        self,
        endpoint_name: str,
        input_data: str | Mapping[str, Any],
        timeout_seconds: float = 30,
        *,
        chat: bool = True,
        **options: Any,
    ) -> InferenceAnswer:
        """Ask an endpoint, as `loomos models infer` does.

        Args:
            endpoint_name: which.
            input_data: a text, also as `{"text": ...}`, or a conversation as `{"messages": [...]}`.
            timeout_seconds: how long the answer may take.
            chat: take a text for a person's turn; False has the model continue the text itself.
            options: `max_tokens`, `temperature`, `user`.

        Raises:
            InvalidInput: the input is neither a text nor a conversation.
        """
        body = {"input": question(input_data, chat=chat), **options}
        return await self.models.infer(endpoint_name, body, timeout_seconds)

    async def stream_inference(
        self,
        endpoint_name: str,
        input_data: str | Mapping[str, Any],
        timeout_seconds: float = 600,
        *,
        chat: bool = True,
        **options: Any,
    ) -> AsyncIterator[str]:
        """Ask an endpoint; the answer's text piece by piece, as it is generated.

        Args:
            endpoint_name: which.
            input_data: a text, also as `{"text": ...}`, or a conversation as `{"messages": [...]}`.
            timeout_seconds: how long a piece may take.
            chat: take a text for a person's turn; False has the model continue the text itself.
            options: `max_tokens`, `temperature`, `user`.

        Raises:
            InvalidInput: the input is neither a text nor a conversation.
        """
        asked = question(input_data, chat=chat)
        async for piece in self.stream_answer(endpoint_name, asked, options, timeout_seconds):
            yield piece


def question(given: str | Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """What is asked, as `POST /models/{id}/inference` takes it."""
    content = {"text": given} if isinstance(given, str) else dict(given)
    if set(content) not in ({"text"}, {"messages"}):
        raise InvalidInput('input_data: give a text, {"text": ...} or {"messages": [...]}')
    if chat and "text" in content:
        return {"messages": [{"role": "user", "content": content["text"]}]}
    return content


def _replicas(scaling: Mapping[str, Any]) -> dict[str, int]:
    """Replicas from the SDK's words for them."""
    known = {"min_instances", "max_instances", "auto_scaling"}
    if unknown := sorted(scaling.keys() - known):
        raise InvalidInput(f"scaling_config: no {unknown[0]!r}; known: {', '.join(sorted(known))}")
    fewest = int(scaling.get("min_instances", 1))
    most = int(scaling.get("max_instances", fewest))
    return {"min": fewest, "max": most if scaling.get("auto_scaling", True) else fewest}


def _given(**options: Any) -> dict[str, Any]:
    """Options that were given, as a query."""
    return {name: value for name, value in options.items() if value not in (None, "")}


def _fresh_key() -> str:
    import uuid

    return uuid.uuid4().hex


@asynccontextmanager
async def opened(client: LoomOSClient | None = None) -> AsyncIterator[LoomOSClient]:
    """A client that is open already, or one from the settings for as long as the block takes."""
    if client is not None:
        yield client
        return
    async with LoomOSClient() as own:
        yield own
