"""An endpoint for as long as it exists, and single changes to the registry.

The route row in the store is what servers obey. The `Endpoint` workflow decides about spec and
replicas; a canary's share is its rollout's business. Both write rows by compare-and-set.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.serving import (
        CloseEndpoint,
        EndpointInput,
        EndpointSpec,
        EndpointStatus,
        ModelChange,
        OpenEndpoint,
        Placement,
        PlaceReplicas,
        Route,
        WatchEndpoint,
    )
    from loomos.jobs.training import ModelVersion
    from loomos.search_attributes import STATE
    from workflows import delivery_calls

EndpointState = Literal["opening", "serving", "closing", "closed"]


@workflow.defn(name="Endpoint")
class Endpoint:
    """One endpoint."""

    @workflow.init
    def __init__(self, endpoint: EndpointInput) -> None:
        self._endpoint = endpoint
        self._spec = endpoint.spec
        self._state: EndpointState = "opening"
        self._message = ""
        self._route: Route | None = None
        self._is_closing = False
        self._changes = 0

    @workflow.run
    async def run(self, endpoint: EndpointInput) -> EndpointStatus:
        """Open the endpoint and keep its models held, until it is deleted."""
        self._route = await self._open(self._spec, endpoint.owner, "open")
        self._enter("serving", "open")
        while not self._is_closing:
            await self._watch()
            if workflow.info().is_continue_as_new_suggested() and not self._is_closing:
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(endpoint.model_copy(update={"spec": self._spec}))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.status()

    async def _watch(self) -> None:
        """One placement, or the end of the endpoint."""
        watching = delivery_calls.start_watch_endpoint(
            WatchEndpoint(name=self._endpoint.name, issued_by=self._issuer)
        )
        closing = asyncio.create_task(workflow.wait_condition(lambda: self._is_closing))
        await workflow.wait([watching, closing], return_when=asyncio.FIRST_COMPLETED)
        if not watching.done():
            watching.cancel()
            return
        closing.cancel()
        placement: Placement = await watching
        self._route = await delivery_calls.place_replicas(
            PlaceReplicas(
                name=self._endpoint.name, issued_by=self._issuer, replicas=placement.replicas
            )
        )
        self._enter(self._state, placement.reason)

    async def _open(self, spec: EndpointSpec, owner: str, what: str) -> Route:
        run = workflow.info().first_execution_run_id
        return await delivery_calls.open_endpoint(
            OpenEndpoint(
                name=self._endpoint.name,
                spec=spec,
                issued_by=self._issuer,
                owner=owner,
                request=f"{run}/{what}",
            )
        )

    @property
    def _issuer(self) -> str:
        return workflow.info().workflow_id

    def _enter(self, state: EndpointState, message: str) -> None:
        self._state, self._message = state, message
        workflow.upsert_search_attributes([STATE.value_set(state)])
        workflow.set_current_details(f"**{state}**: {message}")

    # --- messages ---

    @workflow.update
    async def opened(self) -> EndpointStatus:
        """Answer once the first row is written."""
        await workflow.wait_condition(lambda: self._route is not None)
        return self.status()

    @workflow.update
    async def configure(self, change: EndpointInput) -> EndpointStatus:
        """Change model, limits or replicas."""
        self._changes += 1
        what = f"configure-{workflow.info().run_id}-{self._changes}"
        try:
            self._route = await self._open(change.spec, change.owner, what)
        except ActivityError as error:
            raise _refusal(error) from error
        self._spec = change.spec
        return self.status()

    @workflow.update
    async def close(self) -> EndpointStatus:
        """Delete the endpoint."""
        try:
            await delivery_calls.close_endpoint(
                CloseEndpoint(name=self._endpoint.name, issued_by=self._issuer)
            )
        except ActivityError as error:
            raise _refusal(error) from error
        self._is_closing = True
        self._enter("closed", "deleted")
        return self.status()

    @workflow.query
    def status(self) -> EndpointStatus:
        """Where it is."""
        return EndpointStatus(
            name=self._endpoint.name,
            state=self._state,
            message=self._message,
            spec=self._spec,
            route=self._route,
        )


@workflow.defn(name="ModelChange")
class ModelChanges:
    """One change to the registry: durable, recorded, done once."""

    @workflow.run
    async def run(self, change: ModelChange) -> ModelVersion:
        """Make the change."""
        return await delivery_calls.change_registry(change)


def _refusal(error: ActivityError) -> ApplicationError:
    """What the activity refused, as the answer to an update."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return ApplicationError(cause.message, type=cause.type, non_retryable=True)
    return ApplicationError(str(cause or error), type="Unavailable", non_retryable=True)
