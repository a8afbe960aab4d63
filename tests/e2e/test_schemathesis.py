"""Requests made up from the schema, one by one and in sequences, beside stuck workflows: no 5xx."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from temporalio.exceptions import WorkflowAlreadyStartedError

from api.openapi import document
from tests.stack import Stack, running_stack
from tests.wedged import KINDS, Kind, temporal, wedge, wedged_schedule

EXAMPLES = int(os.environ.get("LOOMOS_TEST_EXAMPLES", "60"))
"""Requests made up for each operation."""
QUIET = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MOST_ENDED = 3
"""Requests of each operation that may end what is stuck."""
SCHEDULE = "stuck-schedule"
ENDLESS = "/events"
"""These answer as long as something may happen."""
DOCUMENT = json.loads(document())
OPERATIONS = [
    (method, path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if not path.endswith(ENDLESS)
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def schema() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def beset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, for its rules are made up too; two workflows of each kind are stuck."""

    async def spoil(stack: Stack) -> None:
        client = await temporal(stack)
        for kind in KINDS:
            await wedge(client, kind, f"never-named-{kind.members}")
            await wedge(client, kind, stuck(kind))
        await wedged_schedule(client, SCHEDULE)

    with running_stack(tmp_path_factory.mktemp("beset"), nodes=1) as stack:
        asyncio.run(spoil(stack))
        yield stack


def stuck(kind: Kind) -> str:
    """Name of the stuck workflow of a kind that requests are made to."""
    return f"stuck-{kind.members}"


async def again(stack: Stack, kind: Kind) -> None:
    """Wedge the workflow of a kind once more, if the last request ended it."""
    with contextlib.suppress(WorkflowAlreadyStartedError):
        await wedge(await temporal(stack), kind, stuck(kind))


def call(case: schemathesis.Case, stack: Stack) -> None:
    """Send a request, which may not follow anything for ever, and look for an error of ours."""
    if case.query:
        case.query.pop("follow", None)
    response = case.call(
        base_url=stack.state.settings["cluster"]["endpoint"],
        headers={"Authorization": f"Bearer {stack.folder.token_file.read_text()}"},
        timeout=60,
    )
    case.validate_response(response, checks=[not_a_server_error])


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_operation_answers_with_an_error_of_ours(
    method: str, path: str, schema: schemathesis.BaseSchema, beset: Stack
) -> None:
    """Half of the requests are as the schema has them, half are not."""
    operation = schema[path][method.upper()]
    cases = st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)
    # To end what is stuck takes ten seconds: it is given the time to end by itself.
    left = itertools.count(EXAMPLES if method == "get" else MOST_ENDED, -1)

    @QUIET
    @given(case=cases)
    def answers(case: schemathesis.Case) -> None:
        call(case, beset)
        if next(left) > 0:
            ask_stuck(case, beset)

    answers()


def ask_stuck(case: schemathesis.Case, beset: Stack) -> None:
    """Send the same request to what is stuck, if it can be."""
    for kind in KINDS:
        if case.path.startswith(f"/api/v1{kind.path}/{{"):
            case.path_parameters = {**case.path_parameters, kind.name: stuck(kind)}
            call(case, beset)
            if case.method != "GET":
                asyncio.run(again(beset, kind))
    if case.path.startswith("/api/v1/schedules/{"):
        case.path_parameters = {**case.path_parameters, "name": SCHEDULE}
        call(case, beset)


def test_no_sequence_of_operations_ends_in_an_error_of_ours(
    beset: Stack, schema: schemathesis.BaseSchema
) -> None:
    base: Any = schema.exclude(path_regex=f"{ENDLESS}$").as_state_machine()

    class Sequences(base):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            token = beset.folder.token_file.read_text()
            return {
                "base_url": beset.state.settings["cluster"]["endpoint"],
                "headers": {"Authorization": f"Bearer {token}"},
                "timeout": 60,
            }

        def before_call(self, case: schemathesis.Case) -> None:
            if case.query:
                case.query.pop("follow", None)

        def validate_response(self, response: Any, case: schemathesis.Case, **more: Any) -> None:
            case.validate_response(response, checks=[not_a_server_error])

    Sequences.run(settings=QUIET)
