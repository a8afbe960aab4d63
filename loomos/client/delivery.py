"""Endpoints, rollouts and the registry straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from loomos.client.answers import answered, failure
from loomos.errors import Conflict, NotFound, Unavailable
from loomos.jobs.message import Message
from loomos.jobs.names import (
    CONTROL_QUEUE,
    ENDPOINT_KIND,
    ROLLOUT_KIND,
    VERIFICATION_KIND,
    endpoint_workflow_id,
    rollout_workflow_id,
    verification_workflow_id,
)
from loomos.jobs.rollouts import (
    Approval,
    CanaryRollout,
    Reason,
    RolloutInput,
    RolloutState,
    RolloutStatus,
)
from loomos.jobs.serving import EndpointInput, EndpointSpec, EndpointStatus, ModelChange
from loomos.jobs.training import ModelVersion
from loomos.jobs.verification import (
    VerificationInput,
    VerificationJob,
    VerificationState,
    VerificationStatus,
)
from loomos.search_attributes import KIND, NAME, OWNER, STATE

CHANGE_TIMEOUT_S = 120.0
"""How long a change of an alias, or a deletion, may take."""
REGISTER_TIMEOUT_S = 3000.0
"""How long a version may take to be made of blobs: the store copies gigabytes."""

MessageT = TypeVar("MessageT", bound=Message)


class DeliveryClient:
    """Steers what comes after training."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # --- registry ---

    async def change_registry(self, change: ModelChange) -> ModelVersion:
        """Register a version, move an alias, or delete a version.

        Raises:
            NotFound: there is no such version.
            Conflict: the alias is elsewhere, or the version is in use.
            InvalidInput: the files are no model.
        """
        handle = await answered(
            self._client.start_workflow(
                "ModelChange",
                change,
                id=f"model-change/{change.name}/{uuid.uuid4().hex[:12]}",
                task_queue=CONTROL_QUEUE,
                result_type=ModelVersion,
                task_timeout=timedelta(seconds=5),
                static_summary=f"{change.action} {change.name} {change.alias}".strip(),
                search_attributes=search_attributes("ModelChange", change.name, change.person),
            )
        )
        timeout_s = REGISTER_TIMEOUT_S if change.action == "register" else CHANGE_TIMEOUT_S
        try:
            made: ModelVersion = await answered(handle.result(), timeout_s)
        except WorkflowFailureError as error:
            raise failure(error) from None
        return made

    # --- endpoints ---

    async def deploy(self, name: str, spec: EndpointSpec, owner: str) -> EndpointStatus:
        """Make an endpoint, or change the one there is.

        Raises:
            NotFound: there is no such model.
            Conflict: a canary is on trial and the model would change.
        """
        endpoint = EndpointInput(name=name, owner=owner, spec=spec)
        try:
            handle = await answered(
                self._client.start_workflow(
                    "Endpoint",
                    endpoint,
                    id=endpoint_workflow_id(name),
                    task_queue=CONTROL_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    task_timeout=timedelta(seconds=5),
                    static_summary=f"serves {spec.model} for {owner}",
                    search_attributes=search_attributes(ENDPOINT_KIND, name, owner, "opening"),
                )
            )
        except WorkflowAlreadyStartedError:
            known = self._client.get_workflow_handle(endpoint_workflow_id(name))
            return await answered(
                known.execute_update("configure", endpoint, result_type=EndpointStatus), 60.0
            )
        try:
            return await answered(handle.execute_update("opened", result_type=EndpointStatus), 60.0)
        except (NotFound, Conflict):
            try:  # it could not be opened; its failure says why
                await answered(handle.result())
            except WorkflowFailureError as error:
                raise failure(error) from None
            raise

    async def endpoint(self, name: str) -> EndpointStatus:
        """An endpoint.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        status = await self._query(endpoint_workflow_id(name), EndpointStatus)
        if status is None or status.state == "closed":
            raise NotFound(f"no endpoint {name!r}; `loomos endpoints list` shows them")
        return status

    async def endpoint_names(self) -> list[str]:
        """Endpoints that exist."""
        query = f'{KIND.name} = "{ENDPOINT_KIND}" AND ExecutionStatus = "Running"'
        return sorted(await self._names(query))

    async def delete_endpoint(self, name: str) -> EndpointStatus:
        """Delete an endpoint; requests to it get 404.

        Raises:
            NotFound: there is none.
            Conflict: a canary is on trial.
        """
        await self.endpoint(name)
        handle = self._client.get_workflow_handle(endpoint_workflow_id(name))
        return await answered(handle.execute_update("close", result_type=EndpointStatus), 60.0)

    # --- rollouts ---

    async def start_rollout(self, rollout: CanaryRollout, owner: str) -> RolloutStatus:
        """Start a canary.

        Raises:
            NotFound: there is no such endpoint.
            Conflict: the endpoint has a canary already.
        """
        spec = rollout.spec
        await self.endpoint(spec.endpoint)
        run = RolloutInput(name=rollout.metadata.name, owner=owner, spec=spec)
        try:
            await answered(
                self._client.start_workflow(
                    "CanaryRollout",
                    run,
                    id=rollout_workflow_id(spec.endpoint),
                    task_queue=CONTROL_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    task_timeout=timedelta(seconds=5),
                    static_summary=f"{spec.model} to {spec.endpoint} for {owner}",
                    search_attributes=search_attributes(
                        ROLLOUT_KIND, spec.endpoint, owner, RolloutState.PREFLIGHT.value
                    ),
                )
            )
        except WorkflowAlreadyStartedError:
            raise Conflict(
                f"{spec.endpoint} has a canary on trial already; `loomos rollouts status "
                f"{spec.endpoint}` shows it"
            ) from None
        return await self.rollout(spec.endpoint)

    async def rollout(self, endpoint: str) -> RolloutStatus:
        """The newest rollout of an endpoint.

        Raises:
            NotFound: there has been none.
        """
        status = await self._query(rollout_workflow_id(endpoint), RolloutStatus)
        if status is None:
            raise NotFound(f"{endpoint!r} has had no rollout; `loomos rollouts start` starts one")
        return status

    async def rollout_names(self) -> list[str]:
        """Endpoints that have, or lately had, a rollout."""
        return sorted(await self._names(f'{KIND.name} = "{ROLLOUT_KIND}"'))

    async def steer_rollout(
        self, endpoint: str, verb: str, argument: Approval | Reason
    ) -> RolloutStatus:
        """Approve, pause, resume, promote or abort a rollout.

        Raises:
            NotFound: there is none.
            Conflict: its state does not allow that.
        """
        await self.rollout(endpoint)
        handle = self._client.get_workflow_handle(rollout_workflow_id(endpoint))
        try:
            return await answered(handle.execute_update(verb, argument, result_type=RolloutStatus))
        except NotFound:
            over = await self.rollout(endpoint)
            raise Conflict(f"the rollout of {endpoint} is {over.state}") from None

    # --- verification ---

    async def start_verification(self, job: VerificationJob, owner: str) -> VerificationStatus:
        """Start a verification."""
        verification_id = verification_workflow_id(f"{job.metadata.name}-{uuid.uuid4().hex[:8]}")
        run = VerificationInput(
            verification_id=verification_id, owner=owner, model=job.model, spec=job.spec
        )
        await answered(
            self._client.start_workflow(
                "VerificationSuite",
                run,
                id=verification_id,
                task_queue=CONTROL_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                task_timeout=timedelta(seconds=5),
                static_summary=f"verify {job.model} for {owner}",
                search_attributes=search_attributes(
                    VERIFICATION_KIND,
                    job.model.partition("@")[0],
                    owner,
                    VerificationState.PLANNING.value,
                ),
            )
        )
        return await self.verification(verification_id)

    async def verification(self, verification_id: str) -> VerificationStatus:
        """A verification.

        Raises:
            NotFound: there is none.
        """
        status = await self._query(verification_id, VerificationStatus)
        if status is None:
            raise NotFound(f"no verification {verification_id!r}; `loomos verify list` shows them")
        return status

    async def verification_ids(self, limit: int) -> list[str]:
        """The newest verifications, newest first."""
        found: list[str] = []
        pages = self._client.list_workflows(f'{KIND.name} = "{VERIFICATION_KIND}"', limit=limit)
        async for workflow in pages:
            found.append(workflow.id)
        return found

    async def cancel_verification(self, verification_id: str) -> None:
        """Stop a verification; what was generated stays."""
        await self.verification(verification_id)
        await answered(self._client.get_workflow_handle(verification_id).cancel())

    # --- inside ---

    async def _names(self, query: str) -> set[str]:
        names: set[str] = set()
        async for found in self._client.list_workflows(query):
            names.add(found.typed_search_attributes.get(NAME) or found.id)
        return names

    async def _query(self, workflow_id: str, result: type[MessageT]) -> MessageT | None:
        """The workflow's own answer; None if there is no such workflow."""
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            found: MessageT = await answered(handle.query("status", result_type=result))
        except NotFound:
            return None
        except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
            raise Unavailable(f"{workflow_id} does not answer: {error}") from None
        return found

    async def describe(self, workflow_id: str) -> WorkflowExecutionDescription:
        """What Temporal knows of a workflow."""
        return await answered(self._client.get_workflow_handle(workflow_id).describe())


def search_attributes(kind: str, name: str, owner: str, state: str = "") -> TypedSearchAttributes:
    """How a workflow is found."""
    pairs: Sequence[SearchAttributePair[Any]] = [
        SearchAttributePair(KIND, kind),
        SearchAttributePair(NAME, name),
        SearchAttributePair(OWNER, owner),
    ]
    return TypedSearchAttributes(
        [*pairs, SearchAttributePair(STATE, state)] if state else list(pairs)
    )
