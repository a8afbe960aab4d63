"""Workflows newest first, each once, page by page.

Temporal's visibility store on SQL knows one order only: what runs before what has ended, that by
its end. So an order by start is made here: of a window of time that holds somewhat more than a
page. A cursor is a place in that order, which stays where it is whatever starts or ends meanwhile.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from temporalio.client import Client, WorkflowExecution

from loomos.client.answers import answered
from loomos.errors import InvalidInput
from loomos.search_attributes import quoted

WINDOW = 1000
"""Most executions that are fetched to make a page of, unless more began in the same moment."""
SLACK = timedelta(milliseconds=1)
"""What stores may round the time of a start by."""
FIRST_SPAN = timedelta(minutes=1)
IDS_AT_ONCE = 50
LIVING = 'ExecutionStatus != "ContinuedAsNew"'


class Place(NamedTuple):
    """A place in the order: behind this run."""

    started_at: datetime
    """When it began."""
    workflow_id: str
    """Which workflow; runs that began in the same moment are in the order of these."""


class Listed(NamedTuple):
    """A page."""

    executions: list[WorkflowExecution]
    """The newest run of each workflow."""
    next: Place | None
    """Behind the last of them; None if there are no more."""


async def newest_first(
    client: Client, query: str, limit: int, after: Place | None = None
) -> Listed:
    """Some of the workflows that a visibility query finds, newest first, each once.

    A workflow counts by its newest run: if that is not among what the query finds, an older run
    is left out too.

    Args:
        client: Temporal.
        query: conditions on executions.
        limit: most workflows to give.
        after: `next` of the page before.
    """
    found: list[WorkflowExecution] = []
    while True:
        window, is_last = await _window(client, query, limit - len(found) + 1, after)
        page = window[: limit - len(found)]
        found += await _newest_runs(client, page)
        is_last = is_last and len(page) == len(window)
        if page:
            after = _place(page[-1])
        if is_last:
            return Listed(found, None)
        if len(found) >= limit:
            return Listed(found, after)


async def _window(
    client: Client, query: str, wanted: int, after: Place | None
) -> tuple[list[WorkflowExecution], bool]:
    """At least `wanted` executions behind a place, in order; whether there are no more than these.

    The newest run that the query finds of each workflow.
    """
    until = None if after is None else after.started_at + SLACK
    conditions = [f"({query})", LIVING]
    if until is not None:
        conditions.append(f"StartTime <= {_moment(until)}")
    everything = " AND ".join(conditions)
    is_last = await _count(client, everything) <= WINDOW
    chosen = everything
    if not is_last:
        since = await _since(client, everything, wanted, until or datetime.now(UTC))
        chosen = f"{everything} AND StartTime > {_moment(since)}"
    newest: dict[str, WorkflowExecution] = {}
    async for execution in client.list_workflows(chosen, page_size=WINDOW):
        if after is not None and _order(execution) <= _order_of(after):
            continue
        known = newest.get(execution.id)
        if known is None or execution.start_time > known.start_time:
            newest[execution.id] = execution
    return sorted(newest.values(), key=_order), is_last


async def _since(client: Client, query: str, wanted: int, until: datetime) -> datetime:
    """A moment after which at least `wanted` executions began, and not many more if possible."""
    enough = min(2 * wanted, WINDOW)  # there are more than `WINDOW`
    short, span = timedelta(0), FIRST_SPAN
    while await _count(client, f"{query} AND StartTime > {_moment(until - span)}") < enough:
        short, span = span, span * 8
    while span - short > SLACK:
        middle = short + (span - short) / 2
        number = await _count(client, f"{query} AND StartTime > {_moment(until - middle)}")
        if number < enough:
            short = middle
        else:
            span = middle
            if number <= WINDOW:
                break
    return until - span


async def _newest_runs(
    client: Client, page: Sequence[WorkflowExecution]
) -> list[WorkflowExecution]:
    """Those that no newer run of the same workflow has replaced."""
    newest: dict[str, datetime] = {}
    for first in range(0, len(page), IDS_AT_ONCE):
        ids = ", ".join(quoted(e.id) for e in page[first : first + IDS_AT_ONCE])
        async for run in client.list_workflows(f"WorkflowId IN ({ids}) AND {LIVING}"):
            newest[run.id] = max(newest.get(run.id, run.start_time), run.start_time)
    return [e for e in page if newest.get(e.id, e.start_time) <= e.start_time]


async def _count(client: Client, query: str) -> int:
    return (await answered(client.count_workflows(query))).count


def _moment(moment: datetime) -> str:
    return quoted(moment.astimezone(UTC).isoformat().replace("+00:00", "Z"))


def _place(execution: WorkflowExecution) -> Place:
    return Place(execution.start_time.astimezone(UTC), execution.id)


def _order(execution: WorkflowExecution) -> tuple[float, str]:
    return _order_of(_place(execution))


def _order_of(place: Place) -> tuple[float, str]:
    return -place.started_at.timestamp(), place.workflow_id


def encode_cursor(place: Place) -> str:
    """A place as clients send it back."""
    body = json.dumps([place.started_at.isoformat(), place.workflow_id]).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:8] + body).decode()


def decode_cursor(cursor: str | None) -> Place | None:
    """The place that a cursor names.

    Raises:
        InvalidInput: it is not one that a page gave.
    """
    if cursor is None:
        return None
    wrong = InvalidInput("cursor: not one that a page gave")
    try:
        decoded = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise wrong from None
    checksum, body = decoded[:8], decoded[8:]
    if hashlib.sha256(body).digest()[:8] != checksum:
        raise wrong
    try:
        started_at, workflow_id = json.loads(body)
        return Place(datetime.fromisoformat(started_at), str(workflow_id))
    except (ValueError, TypeError):
        raise wrong from None
