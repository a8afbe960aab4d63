"""The client for code that is not async, such as notebooks. Written by `make sdk`; do not edit.

Each method does what the one of the same name in `LoomOSClient` does, and returns when it is done.
What streams there is an iterator here. Longer than other modules since it is written by a program.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from loomos.client.campaign_models import CampaignList
from loomos.client.campaigns_api import CampaignsApi
from loomos.client.delivery_api import (
    EndpointsApi,
    ModelsApi,
    RolloutsApi,
    SchedulesApi,
    VerificationsApi,
)
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
from loomos.client.experiment_models import ExperimentList
from loomos.client.experiments_api import ExperimentsApi
from loomos.client.http import LoomOSClient
from loomos.client.job_spec import JobSpec
from loomos.client.ledger import ConsistencyProof, EventPage, EventRecord, LedgerApi, LedgerStatus
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
from loomos.client.names import Kind
from loomos.client.portal import Portal
from loomos.client.retention_api import RetentionApi
from loomos.client.scheduler_api import SchedulerApi
from loomos.client.uploads import DataApi
from loomos.jobs.campaigns import CampaignStatus
from loomos.jobs.cluster import AdviceList, ClusterStatus, SchedulerConfig
from loomos.jobs.continual import ContinualJob
from loomos.jobs.experiments import ExperimentStatus, TrialPage, TrialRecord
from loomos.jobs.retention import CollectionReport, CollectionStatus, StorageUsage
from loomos.jobs.rollouts import CanaryRollout, RolloutStatus
from loomos.jobs.serving import EndpointSpec
from loomos.jobs.uploads import UploadList, UploadRecord
from loomos.jobs.verification import VerificationJob, VerificationStatus
from loomos.manifest import JobManifest
from loomos.manifest._campaign import RLCampaign
from loomos.manifest._experiment import Experiment
from loomos.provenance.lineage import Lineage


class SyncDataApi:
    """Uploads, through a gateway."""

    def __init__(self, portal: Portal, awaited: DataApi) -> None:
        self._portal, self._awaited = portal, awaited

    def upload(
        self,
        path: str | Path,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        name: str | None = None,
    ) -> UploadRecord:
        """Upload a file, or the data of a folder; what is there already is not sent.

        A cut upload goes on where it was when it is asked for again.

        Args:
            path: file or folder.
            include: globs of what is taken from a folder. Default: every known suffix.
            exclude: globs of what is left out.
            name: what to call it. Default: as the file or folder.

        Raises:
            InvalidData: there is nothing to upload.
            Unavailable: a file changed while it was sent.
        """
        return self._portal.run(
            self._awaited.upload(path, include=include, exclude=exclude, name=name)
        )

    def upload_model(self, folder: str | Path) -> UploadRecord:
        """Upload a folder that holds a model or a tokenizer.

        Raises:
            InvalidData: there is nothing to upload.
        """
        return self._portal.run(self._awaited.upload_model(folder))

    def list(self) -> UploadList:
        """Your uploads; of everybody, with the scope `admin`."""
        return self._portal.run(self._awaited.list())

    def delete(self, reference: str) -> None:
        """Forget an upload, by `upload:SHA256` or its digest; what runs need of it stays.

        Raises:
            NotFound: you have no such upload.
        """
        return self._portal.run(self._awaited.delete(reference))

    def carried(
        self, model: type[BaseModel], body: dict[str, Any], folder: Path | None = None
    ) -> dict[str, Any]:
        """A document whose local files are uploaded, with references in their place.

        Args:
            model: what the document is.
            body: the document, as it would be sent.
            folder: where relative paths are looked for first, before the working folder.

        Raises:
            InvalidManifest: relative paths that are not there, each with its field.
        """
        return self._portal.run(self._awaited.carried(model, body, folder))


class SyncRetentionApi:
    """The store's housekeeping, through a gateway."""

    def __init__(self, portal: Portal, awaited: RetentionApi) -> None:
        self._portal, self._awaited = portal, awaited

    def usage(self) -> StorageUsage:
        """What takes how much of the store, by class."""
        return self._portal.run(self._awaited.usage())

    def start(self, *, dry_run: bool = False) -> CollectionStatus:
        """Start a collection of garbage."""
        return self._portal.run(self._awaited.start(dry_run=dry_run))

    def get(self, collection_id: str) -> CollectionStatus:
        """A collection.

        Raises:
            NotFound: there is none of this id.
        """
        return self._portal.run(self._awaited.get(collection_id))

    def collect(self, *, dry_run: bool = False) -> CollectionReport:
        """Collect garbage and wait for the report.

        Args:
            dry_run: only say what would be freed.

        Raises:
            Unavailable: the collection was ended before it was over.
        """
        return self._portal.run(self._awaited.collect(dry_run=dry_run))


class SyncLedgerApi:
    """Reads events and proofs through the gateway."""

    def __init__(self, portal: Portal, awaited: LedgerApi) -> None:
        self._portal, self._awaited = portal, awaited

    def status(self) -> LedgerStatus:
        """How far the ledger is."""
        return self._portal.run(self._awaited.status())

    def events(
        self,
        *,
        event_types: Sequence[str] = (),
        stream: str | None = None,
        after: int = -1,
        limit: int = 100,
        newest_first: bool = False,
    ) -> EventPage:
        """A page of events."""
        return self._portal.run(
            self._awaited.events(
                event_types=event_types,
                stream=stream,
                after=after,
                limit=limit,
                newest_first=newest_first,
            )
        )

    def follow(
        self, *, event_types: Sequence[str] = (), stream: str | None = None, after: int = -1
    ) -> Iterator[EventRecord]:
        """Events as they come, for ever; none left out, none twice, across lost connections."""
        return self._portal.iterate(
            self._awaited.follow(event_types=event_types, stream=stream, after=after)
        )

    def checkpoint(self, *, cosigned: bool = False) -> str:
        """The newest checkpoint, as text."""
        return self._portal.run(self._awaited.checkpoint(cosigned=cosigned))

    def entry(self, position: int) -> bytes:
        """One entry, byte for byte."""
        return self._portal.run(self._awaited.entry(position))

    def proof(self, position: int) -> str:
        """An offline proof of one entry, as text."""
        return self._portal.run(self._awaited.proof(position))

    def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Proof that the first `old` entries are a prefix of the first `new`."""
        return self._portal.run(self._awaited.consistency(old, new))

    def lineage(self, name: str, version: str) -> Lineage:
        """Everything the ledger knows of how a model version was made; not yet verified."""
        return self._portal.run(self._awaited.lineage(name, version))

    def export_lineage(self, name: str, version: str, folder: Path) -> Lineage:
        """Write a lineage, its attestations and the model into a folder; then verify it there.

        Raises:
            VerificationFailed: what came does not hold.
        """
        return self._portal.run(self._awaited.export_lineage(name, version, folder))


class SyncSchedulerApi:
    """How the cluster decides: `client.scheduler`."""

    def __init__(self, portal: Portal, awaited: SchedulerApi) -> None:
        self._portal, self._awaited = portal, awaited

    def config(self) -> SchedulerConfig:
        """The rules in force."""
        return self._portal.run(self._awaited.config())

    def configure(self, config: SchedulerConfig) -> ClusterStatus:
        """Decide in another way from now on; answers with the cluster after it.

        Raises:
            InvalidInput: there is no such policy.
        """
        return self._portal.run(self._awaited.configure(config))

    def advice(self) -> AdviceList:
        """What waiting and running jobs could ask for differently."""
        return self._portal.run(self._awaited.advice())


class SyncModelsApi:
    """The registry, through a gateway."""

    def __init__(self, portal: Portal, awaited: ModelsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def list(self) -> ModelList:
        """Every model."""
        return self._portal.run(self._awaited.list())

    def get(self, model: str) -> ModelDetail:
        """A version, by `NAME`, `NAME@ALIAS` or `NAME@VERSION`."""
        return self._portal.run(self._awaited.get(model))

    def upload(self, path: str | Path, name: str) -> ModelDetail:
        """Register a folder that `save_pretrained` wrote; what is there already is not sent.

        Raises:
            InvalidInput: it is no such folder, or holds other than safetensors.
        """
        return self._portal.run(self._awaited.upload(path, name))

    def edit(
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
        return self._portal.run(
            self._awaited.edit(model, aliases=aliases, description=description, tags=tags)
        )

    def unalias(self, model: str, alias: str) -> None:
        """Remove an alias of a model; the version that it is at stays.

        Raises:
            NotFound: the model has no such alias.
            Conflict: an endpoint serves the version as `stable` or `canary`, whichever it is.
        """
        return self._portal.run(self._awaited.unalias(model, alias))

    def delete(self, model: str) -> None:
        """Delete a version that nobody serves and no alias is at; see `unalias`."""
        return self._portal.run(self._awaited.delete(model))

    def deploy(self, model: str, deployment: Deployment) -> EndpointDetail:
        """Serve a version."""
        return self._portal.run(self._awaited.deploy(model, deployment))

    def infer(self, model: str, body: Mapping[str, Any], timeout_s: float) -> InferenceAnswer:
        """Ask an endpoint, or the endpoint that serves a model."""
        return self._portal.run(self._awaited.infer(model, body, timeout_s))


class SyncEndpointsApi:
    """Endpoints, through a gateway."""

    def __init__(self, portal: Portal, awaited: EndpointsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def list(self) -> EndpointList:
        """Every endpoint."""
        return self._portal.run(self._awaited.list())

    def get(self, name: str) -> EndpointDetail:
        """An endpoint with its route row and servers."""
        return self._portal.run(self._awaited.get(name))

    def configure(self, name: str, spec: EndpointSpec) -> EndpointDetail:
        """Make an endpoint, or change it."""
        return self._portal.run(self._awaited.configure(name, spec))

    def delete(self, name: str) -> None:
        """Delete an endpoint."""
        return self._portal.run(self._awaited.delete(name))


class SyncRolloutsApi:
    """Canary rollouts, through a gateway."""

    def __init__(self, portal: Portal, awaited: RolloutsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def list(self) -> RolloutList:
        """The newest rollout of each endpoint."""
        return self._portal.run(self._awaited.list())

    def get(self, endpoint: str) -> RolloutStatus:
        """The newest rollout of an endpoint."""
        return self._portal.run(self._awaited.get(endpoint))

    def follow(self, endpoint: str) -> Iterator[RolloutStatus]:
        """The rollout as it is, and again whenever something happened, until it is over."""
        return self._portal.iterate(self._awaited.follow(endpoint))

    def start(self, rollout: CanaryRollout) -> RolloutStatus:
        """Put a version on trial."""
        return self._portal.run(self._awaited.start(rollout))

    def steer(
        self, endpoint: str, verb: str, *, reason: str = "", stage: str = ""
    ) -> RolloutStatus:
        """Approve, pause, resume, promote or abort."""
        return self._portal.run(self._awaited.steer(endpoint, verb, reason=reason, stage=stage))

    def delete(self, endpoint: str) -> None:
        """Forget the rollouts that an endpoint has had; what they promoted stays."""
        return self._portal.run(self._awaited.delete(endpoint))


class SyncVerificationsApi:
    """Prism's verifications, through a gateway."""

    def __init__(self, portal: Portal, awaited: VerificationsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def start(self, job: VerificationJob, *, folder: Path | None = None) -> VerificationStatus:
        """Upload the suites that a verification names by path, and start it.

        Args:
            job: the verification.
            folder: where relative paths are looked for first. Default: the working folder.
        """
        return self._portal.run(self._awaited.start(job, folder=folder))

    def list(self) -> VerificationList:
        """The newest verifications."""
        return self._portal.run(self._awaited.list())

    def get(self, verification_id: str) -> VerificationStatus:
        """A verification."""
        return self._portal.run(self._awaited.get(verification_id))

    def follow(self, verification_id: str) -> Iterator[VerificationStatus]:
        """The verification as it is, and again whenever it has changed, until it is over."""
        return self._portal.iterate(self._awaited.follow(verification_id))

    def cancel(self, verification_id: str) -> VerificationStatus:
        """Stop a verification."""
        return self._portal.run(self._awaited.cancel(verification_id))

    def delete(self, verification_id: str) -> None:
        """Forget a verification that has ended; evidence and verdicts stay."""
        return self._portal.run(self._awaited.delete(verification_id))

    def report(self, verification_id: str, form: str) -> bytes:
        """A report: `pdf`, `html`, `json` (the evidence), or `zip` (logs for `inspect view`)."""
        return self._portal.run(self._awaited.report(verification_id, form))


class SyncSchedulesApi:
    """Continual learning, through a gateway."""

    def __init__(self, portal: Portal, awaited: SchedulesApi) -> None:
        self._portal, self._awaited = portal, awaited

    def create(self, job: ContinualJob, *, folder: Path | None = None) -> ScheduleDetail:
        """Upload the files that a schedule names, but those that grow, and start it.

        Args:
            job: the schedule.
            folder: where relative paths are looked for first. Default: the working folder.
        """
        return self._portal.run(self._awaited.create(job, folder=folder))

    def list(self) -> ScheduleList:
        """Every schedule."""
        return self._portal.run(self._awaited.list())

    def get(self, name: str) -> ScheduleDetail:
        """A schedule with what it did lately."""
        return self._portal.run(self._awaited.get(name))

    def steer(self, name: str, verb: str) -> ScheduleDetail:
        """Pause, resume, or trigger."""
        return self._portal.run(self._awaited.steer(name, verb))

    def delete(self, name: str) -> None:
        """Delete a schedule."""
        return self._portal.run(self._awaited.delete(name))


class SyncExperimentsApi:
    """Searches over parameters: `client.experiments`."""

    def __init__(self, portal: Portal, awaited: ExperimentsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def trials(self, experiment_id: str, *, since: int = 0, limit: int = 500) -> TrialPage:
        """Finished trials, in the order in which they finished."""
        return self._portal.run(self._awaited.trials(experiment_id, since=since, limit=limit))

    def all_trials(self, experiment_id: str) -> builtins.list[TrialRecord]:
        """Every finished trial, by number."""
        return self._portal.run(self._awaited.all_trials(experiment_id))

    def follow(self, experiment_id: str) -> Iterator[TrialRecord]:
        """Each trial as it finishes, those finished already first, until the experiment is over."""
        return self._portal.iterate(self._awaited.follow(experiment_id))

    def stop(self, experiment_id: str, reason: str = "") -> ExperimentStatus:
        """Start no more trials; those that run end.

        Raises:
            Conflict: it has ended, or stops already.
        """
        return self._portal.run(self._awaited.stop(experiment_id, reason))

    def start(
        self,
        document: Experiment,
        *,
        idempotency_key: str | None = None,
        folder: Path | None = None,
    ) -> ExperimentStatus:
        """Upload the files that a document names, and start one.

        A key is made up if none is given, so that a retry after a lost answer starts once.

        Args:
            document: what is to be done.
            idempotency_key: the same key and document start one, once.
            folder: where relative paths are looked for first. Default: the working folder.

        Raises:
            Conflict: the key was used for another document.
        """
        return self._portal.run(
            self._awaited.start(document, idempotency_key=idempotency_key, folder=folder)
        )

    def get(self, document_id: str) -> ExperimentStatus:
        """Where one is.

        Raises:
            NotFound: there is none of this id.
        """
        return self._portal.run(self._awaited.get(document_id))

    def cancel(self, document_id: str) -> ExperimentStatus:
        """End one, and what it runs.

        Raises:
            Conflict: it has ended.
        """
        return self._portal.run(self._awaited.cancel(document_id))

    def delete(self, document_id: str) -> None:
        """Forget one that has ended, with the jobs and trials that it started; models stay.

        Raises:
            Conflict: it has not ended.
        """
        return self._portal.run(self._awaited.delete(document_id))

    def list(self) -> ExperimentList:
        """The newest."""
        return self._portal.run(self._awaited.list())


class SyncCampaignsApi:
    """Rounds of trainings whose policies are averaged: `client.campaigns`."""

    def __init__(self, portal: Portal, awaited: CampaignsApi) -> None:
        self._portal, self._awaited = portal, awaited

    def follow(self, campaign_id: str) -> Iterator[CampaignStatus]:
        """The campaign as it is, and again whenever something happened, until it is over."""
        return self._portal.iterate(self._awaited.follow(campaign_id))

    def start(
        self,
        document: RLCampaign,
        *,
        idempotency_key: str | None = None,
        folder: Path | None = None,
    ) -> CampaignStatus:
        """Upload the files that a document names, and start one.

        A key is made up if none is given, so that a retry after a lost answer starts once.

        Args:
            document: what is to be done.
            idempotency_key: the same key and document start one, once.
            folder: where relative paths are looked for first. Default: the working folder.

        Raises:
            Conflict: the key was used for another document.
        """
        return self._portal.run(
            self._awaited.start(document, idempotency_key=idempotency_key, folder=folder)
        )

    def get(self, document_id: str) -> CampaignStatus:
        """Where one is.

        Raises:
            NotFound: there is none of this id.
        """
        return self._portal.run(self._awaited.get(document_id))

    def cancel(self, document_id: str) -> CampaignStatus:
        """End one, and what it runs.

        Raises:
            Conflict: it has ended.
        """
        return self._portal.run(self._awaited.cancel(document_id))

    def delete(self, document_id: str) -> None:
        """Forget one that has ended, with the jobs and trials that it started; models stay.

        Raises:
            Conflict: it has not ended.
        """
        return self._portal.run(self._awaited.delete(document_id))

    def list(self) -> CampaignList:
        """The newest."""
        return self._portal.run(self._awaited.list())


class SyncLoomOSClient:
    """`LoomOSClient` without `await`, also where an event loop runs already, as in Jupyter.

    Args:
        endpoint: URL of the gateway. Default: from the settings.
        auth_token: bearer token. Default: from the settings.
        timeout: seconds a request may take. Default: from the settings.

    Example:
        >>> with SyncLoomOSClient() as client:                    # doctest: +SKIP
        ...     job = client.submit_job("job.yaml")
        ...     for status in client.stream_job_status(job.job_id):
        ...         print(status.progress, status.current_stage)
    """

    def __init__(
        self,
        endpoint: str | None = None,
        auth_token: str | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self._portal = Portal()
        self._awaited = LoomOSClient(endpoint, auth_token, timeout=timeout)
        self.endpoint = self._awaited.endpoint
        """URL of the gateway."""
        self.data = SyncDataApi(self._portal, self._awaited.data)
        self.retention = SyncRetentionApi(self._portal, self._awaited.retention)
        self.ledger = SyncLedgerApi(self._portal, self._awaited.ledger)
        self.scheduler = SyncSchedulerApi(self._portal, self._awaited.scheduler)
        self.models = SyncModelsApi(self._portal, self._awaited.models)
        self.endpoints = SyncEndpointsApi(self._portal, self._awaited.endpoints)
        self.rollouts = SyncRolloutsApi(self._portal, self._awaited.rollouts)
        self.verifications = SyncVerificationsApi(self._portal, self._awaited.verifications)
        self.schedules = SyncSchedulesApi(self._portal, self._awaited.schedules)
        self.experiments = SyncExperimentsApi(self._portal, self._awaited.experiments)
        self.campaigns = SyncCampaignsApi(self._portal, self._awaited.campaigns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        if not self._portal.is_closed:
            self._portal.run(self._awaited.close())
            self._portal.close()

    def submit_job(
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
        return self._portal.run(self._awaited.submit_job(job, idempotency_key=idempotency_key))

    def submit_job_from_manifest(
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
        return self._portal.run(
            self._awaited.submit_job_from_manifest(
                manifest, idempotency_key=idempotency_key, priority=priority
            )
        )

    def submit_batch_jobs(self, manifests: Sequence[JobManifest]) -> builtins.list[Submitted]:
        """Check all manifests, then submit all; none is sent if one is wrong."""
        return self._portal.run(self._awaited.submit_batch_jobs(manifests))

    def get_job_status(self, job_id: str) -> JobDetail:
        """Everything about a job."""
        return self._portal.run(self._awaited.get_job_status(job_id))

    def list_jobs(
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
        return self._portal.run(
            self._awaited.list_jobs(
                states=states,
                owner=owner,
                project=project,
                labels=labels,
                limit=limit,
                cursor=cursor,
            )
        )

    def cancel_job(self, job_id: str) -> JobDetail:
        """Stop a job for good."""
        return self._portal.run(self._awaited.cancel_job(job_id))

    def pause_job(self, job_id: str) -> JobDetail:
        """Checkpoint a job and give its nodes back."""
        return self._portal.run(self._awaited.pause_job(job_id))

    def resume_job(self, job_id: str) -> JobDetail:
        """Let a paused job go on."""
        return self._portal.run(self._awaited.resume_job(job_id))

    def restart_job(self, job_id: str, *, from_scratch: bool = False) -> JobDetail:
        """Start a new attempt, or run a job again that has ended."""
        return self._portal.run(self._awaited.restart_job(job_id, from_scratch=from_scratch))

    def migrate_job(self, job_id: str, nodes: Sequence[str]) -> JobDetail:
        """Move a job to other nodes while it runs."""
        return self._portal.run(self._awaited.migrate_job(job_id, nodes))

    def change_job(
        self, job_id: str, *, priority: int | None = None, labels: Mapping[str, str] | None = None
    ) -> JobDetail:
        """Change priority or labels of a job that lives."""
        return self._portal.run(self._awaited.change_job(job_id, priority=priority, labels=labels))

    def delete_job(self, job_id: str) -> None:
        """Forget a job that has ended."""
        return self._portal.run(self._awaited.delete_job(job_id))

    def stream_job_status(self, job_id: str) -> Iterator[JobDetail]:
        """The job each time it changes, until it has ended."""
        return self._portal.iterate(self._awaited.stream_job_status(job_id))

    def stream_job_events(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Everything that happens to a job as (kind, content), until it has ended."""
        return self._portal.iterate(self._awaited.stream_job_events(job_id))

    def get_job_metrics(
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
        return self._portal.run(
            self._awaited.get_job_metrics(
                job_id, after=after, tail=tail, every=every, since=since, attempt=attempt
            )
        )

    def get_job_logs(
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
        return self._portal.run(
            self._awaited.get_job_logs(
                job_id, after=after, tail=tail, since=since, attempt=attempt, rank=rank
            )
        )

    def stream_job_logs(
        self,
        job_id: str,
        *,
        tail: int | None = None,
        since: float | None = None,
        attempt: int | None = None,
        rank: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Log lines as they are written, until the job has ended.

        Args:
            job_id: the job.
            tail: begin with so many of the newest instead of the first.
            since: only those written at this time or later, in seconds since 1970.
            attempt: only those of one attempt.
            rank: only those of one rank.
        """
        return self._portal.iterate(
            self._awaited.stream_job_logs(
                job_id, tail=tail, since=since, attempt=attempt, rank=rank
            )
        )

    def list_artifacts(self, job_id: str) -> ArtifactList:
        """Files of the model that a job published."""
        return self._portal.run(self._awaited.list_artifacts(job_id))

    def download_job_artifact(
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
        return self._portal.run(
            self._awaited.download_job_artifact(job_id, artifact_type, local_path)
        )

    def find(self, kind: Kind, text: str) -> str:
        """The id that a name, or the beginning of an id, means; `text` if there is no such thing.

        Args:
            kind: `job`, `experiment`, `campaign`, `verification`, `rollout` and `endpoint` (both by
                the endpoint's name), `schedule`, `model` (also `NAME@...`) or `node`.
            text: what a person wrote.

        Raises:
            InvalidInput: it may mean several; the message lists them.
        """
        return self._portal.run(self._awaited.find(kind, text))

    def get_cluster_status(self) -> ClusterStatus:
        """All nodes, leases and the queue, however many pages that is."""
        return self._portal.run(self._awaited.get_cluster_status())

    def get_available_resources(self) -> ClusterResources:
        """What the ready nodes have, and what of it is in use."""
        return self._portal.run(self._awaited.get_available_resources())

    def list_workers(self) -> WorkerList:
        """Every worker node."""
        return self._portal.run(self._awaited.list_workers())

    def get_worker(self, node_id: str) -> WorkerDetail:
        """A worker node with its load."""
        return self._portal.run(self._awaited.get_worker(node_id))

    def drain_worker(self, node_id: str) -> WorkerDetail:
        """Move away what runs on a node, then give it nothing new."""
        return self._portal.run(self._awaited.drain_worker(node_id))

    def cordon_worker(self, node_id: str) -> WorkerDetail:
        """Give a node nothing new."""
        return self._portal.run(self._awaited.cordon_worker(node_id))

    def uncordon_worker(self, node_id: str) -> WorkerDetail:
        """Let a node take work again."""
        return self._portal.run(self._awaited.uncordon_worker(node_id))

    def deploy_model(
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
        return self._portal.run(
            self._awaited.deploy_model(model_path, endpoint_name, scaling_config, wait_s=wait_s)
        )

    def inference(
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
        return self._portal.run(
            self._awaited.inference(
                endpoint_name, input_data, timeout_seconds, chat=chat, **options
            )
        )

    def stream_inference(
        self,
        endpoint_name: str,
        input_data: str | Mapping[str, Any],
        timeout_seconds: float = 600,
        *,
        chat: bool = True,
        **options: Any,
    ) -> Iterator[str]:
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
        return self._portal.iterate(
            self._awaited.stream_inference(
                endpoint_name, input_data, timeout_seconds, chat=chat, **options
            )
        )
