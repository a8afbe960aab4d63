"""Endpoints, rollouts and the registry straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from loomos.client.answers import answered, failure
from loomos.client.listing import newest_first
from loomos.client.runs import RunKind, Runs, known_state
from loomos.errors import Conflict, NotFound, Stuck
from loomos.jobs.names import (
    CONTROL_QUEUE,
    ENDPOINT_KIND,
    ROLLOUT_KIND,
    VERIFICATION_KIND,
    endpoint_workflow_id,
    new_identifier,
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

UPDATE_TIMEOUT_S = 60.0
"""How long a change of an endpoint may take."""

ENDPOINTS = RunKind(kind=ENDPOINT_KIND, workflow="Endpoint", noun="endpoint", command="endpoints")
ROLLOUTS = RunKind(kind=ROLLOUT_KIND, workflow="CanaryRollout", noun="rollout", command="rollouts")
VERIFICATIONS = RunKind(
    kind=VERIFICATION_KIND, workflow="VerificationSuite", noun="verification", command="verify"
)


class DeliveryClient:
    """Steers what comes after training."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.endpoints = Runs(client, ENDPOINTS)
        self.rollouts = Runs(client, ROLLOUTS)
        self.verifications = Runs(client, VERIFICATIONS)

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
            return await self.endpoints.update(
                endpoint_workflow_id(name),
                "configure",
                endpoint,
                result=EndpointStatus,
                timeout_s=UPDATE_TIMEOUT_S,
            )
        try:
            return await answered(
                handle.execute_update("opened", result_type=EndpointStatus), UPDATE_TIMEOUT_S
            )
        except (NotFound, Conflict):
            try:  # it could not be opened; its failure says why
                await answered(handle.result())
            except WorkflowFailureError as error:
                raise failure(error) from None
            raise

    async def endpoint(self, name: str) -> EndpointStatus:
        """An endpoint; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        workflow_id = endpoint_workflow_id(name)
        seen = await self.endpoints.look(workflow_id, EndpointStatus)
        if seen.ended or (seen.answer is not None and seen.answer.state == "closed"):
            raise self.endpoints.missing(name)
        if seen.answer is not None:
            return seen.answer
        given = await self.endpoints.first_input(workflow_id, EndpointInput)
        return EndpointStatus(
            name=name,
            state="serving" if seen.execution.typed_search_attributes.get(STATE) else "opening",
            message=seen.reason,
            spec=given.spec if given else None,
            partial=seen.reason,
        )

    async def endpoint_names(self) -> list[str]:
        """Endpoints that exist."""
        query = f'WorkflowType = "{ENDPOINTS.workflow}" AND ExecutionStatus = "Running"'
        prefix = endpoint_workflow_id("")
        return sorted(
            {found.id.removeprefix(prefix) async for found in self._client.list_workflows(query)}
        )

    async def delete_endpoint(self, name: str, person: str = "") -> EndpointStatus | None:
        """Delete an endpoint; requests to it get 404.

        Returns:
            Where it is; None if its workflow could not close it and was ended. The caller has to
            write that it is closed.

        Raises:
            NotFound: there is none.
            Conflict: a canary is on trial.
        """
        workflow_id = endpoint_workflow_id(name)
        await self.endpoint(name)
        try:
            return await self.endpoints.update(
                workflow_id, "close", result=EndpointStatus, timeout_s=UPDATE_TIMEOUT_S
            )
        except Stuck:
            await self.endpoints.end(workflow_id, person)
            return None

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
        """The newest rollout of an endpoint; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there has been none.
        """
        workflow_id = rollout_workflow_id(endpoint)
        try:
            seen = await self.rollouts.look(
                workflow_id, RolloutStatus, is_final=lambda status: status.state.is_final
            )
        except NotFound:
            raise NotFound(
                f"{endpoint!r} has had no rollout; `loomos rollouts start` starts one"
            ) from None
        if seen.answer is not None:
            if seen.ended and not seen.answer.state.is_final:
                over = {"state": RolloutState.ROLLED_BACK, "message": "ended from outside"}
                return seen.answer.model_copy(update=over)
            return seen.answer
        given = await self.rollouts.first_input(workflow_id, RolloutInput)
        state = known_state(seen.execution, RolloutState, RolloutState.PREFLIGHT)
        return RolloutStatus(
            endpoint=endpoint,
            state=RolloutState.ROLLED_BACK if seen.ended and not state.is_final else state,
            message=seen.reason,
            candidate=given.spec.model if given else "",
            partial=seen.reason,
        )

    async def rollout_names(self) -> list[str]:
        """Endpoints that have, or lately had, a rollout."""
        prefix = rollout_workflow_id("")
        query = f'WorkflowType = "{ROLLOUTS.workflow}"'
        return sorted(
            {found.id.removeprefix(prefix) async for found in self._client.list_workflows(query)}
        )

    async def steer_rollout(
        self, endpoint: str, verb: str, argument: Approval | Reason
    ) -> RolloutStatus:
        """Approve, pause, resume, promote or abort a rollout.

        Raises:
            NotFound: there is none.
            Conflict: its state does not allow that.
        """
        before = await self.rollout(endpoint)
        if before.state.is_final:
            raise Conflict(f"the rollout of {endpoint} is {before.state}")
        workflow_id = rollout_workflow_id(endpoint)
        try:
            return await self.rollouts.update(workflow_id, verb, argument, result=RolloutStatus)
        except NotFound:
            over = await self.rollout(endpoint)
            raise Conflict(f"the rollout of {endpoint} is {over.state}") from None
        except Stuck:
            if verb != "abort":
                raise
            # Nobody renews its canary's lease any more, so the canary's traffic ends too.
            await self.rollouts.end(workflow_id, argument.person)
            return await self.rollout(endpoint)

    async def delete_rollout(self, endpoint: str) -> None:
        """Forget the rollouts that an endpoint has had.

        Raises:
            NotFound: there has been none.
            Conflict: one is on.
        """
        await self.rollouts.forget(rollout_workflow_id(endpoint))

    # --- verification ---

    async def start_verification(self, job: VerificationJob, owner: str) -> VerificationStatus:
        """Start a verification."""
        verification_id = verification_workflow_id(f"{job.metadata.name}-{new_identifier()}")
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
        """A verification; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there is none.
        """
        seen = await self.verifications.look(
            verification_id, VerificationStatus, is_final=lambda status: status.state.is_final
        )
        state = known_state(seen.execution, VerificationState, VerificationState.PLANNING)
        if seen.answer is not None:
            if seen.ended and not seen.answer.state.is_final:
                over = {"state": state, "message": "ended from outside"}
                return seen.answer.model_copy(update=over)
            return seen.answer
        given = await self.verifications.first_input(verification_id, VerificationInput)
        return VerificationStatus(
            verification_id=verification_id,
            state=state,
            message=seen.reason,
            version=given.model if given else "",
            partial=seen.reason,
        )

    async def verification_ids(self, limit: int) -> list[str]:
        """The newest verifications, newest first."""
        query = f'WorkflowType = "{VERIFICATIONS.workflow}"'
        listed = await newest_first(self._client, query, limit)
        return [execution.id for execution in listed.executions]

    async def cancel_verification(self, verification_id: str, person: str = "") -> None:
        """Stop a verification; what was generated stays.

        Raises:
            NotFound: there is none.
            Conflict: it has ended.
        """
        before = await self.verification(verification_id)
        if before.state.is_final:
            raise Conflict(
                f"the verification {verification_id} is {before.state}; nothing to cancel"
            )
        await self.verifications.end(verification_id, person)

    async def delete_verification(self, verification_id: str) -> None:
        """Forget a verification that has ended; evidence and verdicts stay.

        Raises:
            NotFound: there is none.
            Conflict: it runs.
        """
        await self.verifications.forget(verification_id)


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
