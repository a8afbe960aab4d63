"""The contract of LoomDB, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, select, update

from loomos.errors import InvalidInput, NotFound
from loomos.loomdb import AuditContext, Event, EventType, LoomDB, NewEvent, Projection
from loomos.loomdb.errors import EventIdReused, LedgerUnavailable, WrongVersion
from loomos.loomdb.events import LARGEST_ENTRY_BYTES, new_event_ids
from loomos.loomdb.schema import inbox
from tests.events import ALICE, CONTROL, numbered

# --- the seeds' API -----------------------------------------------------------------------------


async def test_the_documented_calls_work(db: LoomDB, tmp_path: Path) -> None:
    context = AuditContext(user_id="user123", session_id="session456", source_ip="192.168.1.100")
    await db.log_event(
        event_type=EventType.MODEL_TRAINING_START,
        data={"model": "gpt-4", "dataset": "openorca", "job_id": "training_job_123"},
        context=context,
    )
    found = await db.query_events(
        event_type=EventType.MODEL_TRAINING_START,
        start_time=datetime.now() - timedelta(days=7),  # noqa: DTZ005 as the seed writes it
    )
    assert [e.data["model"] for e in found] == ["gpt-4"]
    assert found[0].context == context
    assert found == await db.query_events({"event_type": EventType.MODEL_TRAINING_START})

    class CustomEventType(EventType):
        CUSTOM_WORKFLOW_START = f"custom_{new_event_ids(1)[0]}"

    await db.log_event(CustomEventType.CUSTOM_WORKFLOW_START, {}, context)
    await db.batch_log_events(
        [
            {"event_type": EventType.MODEL_UPDATE, "data": {"version": "v1.1"}},
            {"event_type": EventType.MODEL_UPDATE, "data": {"version": "v1.2"}},
        ],
        context,
    )
    updates = await db.query_events({"event_type": "model_update"})
    assert [e.data["version"] for e in updates] == ["v1.1", "v1.2"]
    await db.log_event(
        EventType.PERFORMANCE_METRIC, {"job_id": "training_job_123", "metrics": {"loss": 2.0}}
    )
    await db.log_event(
        EventType.PERFORMANCE_METRIC, {"job_id": "training_job_123", "metrics": {"loss": 1.0}}
    )
    metrics = await db.get_performance_metrics("training_job_123")
    assert metrics.events == 3
    loss = metrics.values["loss"]
    assert (loss.count, loss.mean, loss.minimum, loss.maximum, loss.last) == (2, 1.5, 1, 2, 1)
    with pytest.raises(ValueError, match="nonexistent"):
        await db.get_performance_metrics("nonexistent")
    async for event in db.stream_events(event_types=[EventType.MODEL_UPDATE]):
        assert event.data == {"version": "v1.1"}
        break
    async for event in db.stream_events():
        assert event.position == 0
        break
    assert await db.backup_database(str(tmp_path / "backup.db")) is True
    async with LoomDB(f"sqlite:///{tmp_path / 'restored.db'}") as restored:
        assert await restored.restore_database(str(tmp_path / "backup.db")) is True
        assert await restored.query_events() == await db.query_events()


async def test_a_jobs_state_is_that_of_its_newest_event(db: LoomDB) -> None:
    for event_type, data, state in (
        ("job_submitted", {}, "queued"),
        ("lease_granted", {}, "running"),
        ("run_recovered", {}, "recovering"),
        ("job_ended", {"state": "failed", "message": "the loss is nan"}, "failed"),
    ):
        await db.log_event(event_type, data, CONTROL, stream="job:one")
        assert (await db.get_job_status("one")).state == state
    assert (await db.get_job_status("one")).message == "the loss is nan"
    with pytest.raises(ValueError, match="the ledger knows no job 'two'"):
        await db.get_job_status("two")


async def test_a_decorated_function_leaves_its_time_and_numbers(db: LoomDB) -> None:
    @db.log_performance
    async def score(value: float) -> dict[str, object]:
        if value < 0:
            raise ValueError("no score")
        return {"accuracy": value, "note": "not a number"}

    assert await score(0.5) == {"accuracy": 0.5, "note": "not a number"}
    with pytest.raises(ValueError, match="no score"):
        await score(-1)
    good, bad = await db.query_events(event_type="performance_metric")
    assert (good.data["succeeded"], good.data["accuracy"]) == (True, 0.5)
    assert "note" not in good.data
    assert bad.data["succeeded"] is False
    assert good.data["duration_s"] >= 0
    metrics = await db.get_performance_metrics(good.stream)
    assert metrics.values["accuracy"].mean == 0.5
    with pytest.raises(InvalidInput, match="no coroutine function"):
        db.log_performance(len)


def test_event_types_are_strings_with_names() -> None:
    assert EventType.MODEL_UPDATE == "model_update"
    assert EventType.of("model_update") is EventType.MODEL_UPDATE

    class Pipeline(EventType):
        NIGHTLY = "nightly_run"

    assert isinstance(Pipeline.NIGHTLY, Pipeline)
    assert EventType.of("nightly_run") is Pipeline.NIGHTLY
    assert Pipeline.members() == [Pipeline.NIGHTLY]
    assert EventType.MODEL_UPDATE in EventType.members()
    with pytest.raises(InvalidInput, match="already one of EventType"):

        class Clash(EventType):
            UPDATE = "model_update"

    with pytest.raises(InvalidInput, match="begin with a letter"):
        EventType("no spaces")


# --- appending ----------------------------------------------------------------------------------


async def test_positions_and_versions_have_no_gaps(db: LoomDB) -> None:
    streams = [f"s{n % 7}" for n in range(200)]
    placed = await asyncio.gather(
        *(db.append(stream, [NewEvent(event_type="tick")]) for stream in streams)
    )
    positions = sorted(r.position for (r,) in placed)
    assert positions == list(range(200))
    for stream in set(streams):
        versions = [e.version for e in await db.query_events(stream=stream)]
        assert versions == list(range(1, len(versions) + 1))
    assert await db.size() == 200


async def test_the_expected_version_is_kept(db: LoomDB) -> None:
    await db.append("job:1", numbered(2), expected_version=0)
    await db.append("job:1", numbered(1), expected_version=2)
    with pytest.raises(WrongVersion, match="at version 3, not at 2"):
        await db.append("job:1", numbered(1), expected_version=2)
    assert await db.stream_version("job:1") == 3
    results = await asyncio.gather(
        *(db.append("job:2", numbered(1), expected_version=0) for _ in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(r, list) for r in results) == 1
    assert sum(isinstance(r, WrongVersion) for r in results) == 19
    assert await db.stream_version("job:2") == 1


async def test_the_same_event_id_counts_once(db: LoomDB) -> None:
    event = NewEvent(event_type="tick", data={"n": 1}, event_id="job-1:submitted")
    first = await db.append("job:1", [event], CONTROL)
    again = await asyncio.gather(*(db.append("job:1", [event], CONTROL) for _ in range(10)))
    assert all(r == first for r in again)
    assert await db.size() == 1
    assert await db.append("job:1", [event], CONTROL, expected_version=0) == first
    both = await db.append("job:1", [event, *numbered(1)])
    assert [r.position for r in both] == [0, 1]
    with pytest.raises(EventIdReused, match="position 0"):
        other = NewEvent(event_type="tick", data={"n": 2}, event_id="job-1:submitted")
        await db.append("job:1", [other])
    with pytest.raises(EventIdReused):
        await db.append("job:2", [event])
    assert await db.size() == 2


async def test_a_batch_is_all_or_nothing(db: LoomDB) -> None:
    await db.append("a", [NewEvent(event_type="tick", event_id="x", data={"n": 1})])
    with pytest.raises(EventIdReused):
        await db.batch_log_events(
            [
                {"event_type": "tick", "data": {}, "event_id": "y"},
                {"event_type": "tick", "data": {"n": 2}, "event_id": "x"},
            ],
            stream="a",
        )
    assert await db.size() == 1


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"event_type": "no good"}, "event_type"),
        ({"event_type": "ok", "data": {"x": float("nan")}}, "not JSON"),
        ({"event_type": "ok", "data": {"x": "y" * LARGEST_ENTRY_BYTES}}, "put the content into"),
        ({"event_type": "ok", "event_id": 'a"b'}, "event_id"),
        ({"event_type": "ok", "personal": {"name": "x"}}, "whose it is"),
        ({"event_type": "ok", "when": 1}, "when not known"),
        ({"data": {}}, "event_type is missing"),
    ],
)
async def test_bad_events_are_refused_and_nothing_is_written(
    db: LoomDB, call: dict[str, object], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        await db.batch_log_events([{"event_type": "fine"}, call], stream="s")
    assert await db.size() == 0


@pytest.mark.parametrize(
    ("filters", "why"),
    [
        ({"kind": "x"}, "kind not known"),
        ({"limit": 0}, "limit 0"),
        ({"start_time": "yesterday"}, "a datetime"),
    ],
)
async def test_bad_filters_name_what_is_known(
    db: LoomDB, filters: dict[str, object], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        await db.query_events(filters)


async def test_queries_combine_conditions(db: LoomDB) -> None:
    await db.append("a", numbered(5), ALICE)
    await db.append("b", [NewEvent(event_type="tock", data={"n": 9})], CONTROL)
    assert [e.position for e in await db.query_events(stream="a", after=2)] == [3, 4]
    newest = await db.query_events(newest_first=True, limit=2)
    assert [e.position for e in newest] == [5, 4]
    assert [e.position for e in await db.query_events(event_type=["tock"])] == [5]
    assert len(await db.query_events(user_id="alice")) == 5
    assert await db.query_events(user_id="bob") == []
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert await db.query_events(start_time=later) == []
    assert len(await db.query_events(end_time=later)) == 6
    assert (await db.event_at(5)).context == CONTROL
    assert (await db.event((await db.event_at(5)).event_id)).position == 5
    with pytest.raises(NotFound):
        await db.event_at(6)


# --- reading along ------------------------------------------------------------------------------


async def test_a_subscription_catches_up_and_goes_on_without_skip_or_repeat(db: LoomDB) -> None:
    await db.append("s", numbered(1500))
    seen: list[int] = []

    async def follow() -> None:
        async for event in db.stream_events():
            seen.append(event.position)
            if len(seen) == 2500:
                return

    async with asyncio.timeout(30):
        await asyncio.gather(follow(), *(db.append(f"w{n}", numbered(50)) for n in range(20)))
    assert seen == list(range(2500))


async def test_a_filtered_subscription_resumes_where_it_was(db: LoomDB) -> None:
    for n in range(30):
        await db.append(f"s{n % 3}", [NewEvent(event_type=f"kind{n % 2}", data={"n": n})])
    seen: list[int] = []
    after = -1
    for _ in range(5):
        async for event in db.stream_events(["kind1"], after=after, stream="s0"):
            seen.append(event.data["n"])
            after = event.position
            break
    assert seen == [3, 9, 15, 21, 27]


async def test_another_process_wakes_a_subscription(db: LoomDB, db_url: str) -> None:
    async with LoomDB(db_url, may_lead=False) as other:

        async def next_event() -> Event:
            async for event in other.stream_events(after=await other.size() - 1):
                return event
            raise AssertionError

        waiting = asyncio.create_task(next_event())
        await asyncio.sleep(0.1)
        await db.append("s", numbered(1))
        async with asyncio.timeout(10):
            assert (await waiting).position == 0


async def test_who_does_not_lead_appends_through_the_leader(db: LoomDB, db_url: str) -> None:
    await db.append("s", numbered(1))
    async with LoomDB(db_url, may_lead=False) as other:
        (placed,) = await other.append("s", numbered(1), expected_version=1)
        assert (placed.position, placed.version) == (1, 2)
        with pytest.raises(WrongVersion):
            await other.append("s", numbered(1), expected_version=1)
        await asyncio.gather(*(d.append("s", numbered(5)) for d in (db, other) for _ in range(10)))
    assert [e.version for e in await db.query_events(stream="s")] == list(range(1, 103))


async def test_without_any_leader_an_append_says_so_and_is_not_lost(db_url: str) -> None:
    event = NewEvent(event_type="tick", data={}, event_id="only-once")
    async with LoomDB(db_url, may_lead=False) as follower:
        with pytest.raises(LedgerUnavailable, match="with the same ids is safe"):
            await follower.append("s", [event], timeout_s=0.3)
        async with LoomDB(db_url) as leader:
            (placed,) = await follower.append("s", [event])
            assert placed.position == 0
            assert await leader.size() == 1


async def test_when_the_leader_leaves_another_takes_over(db_url: str) -> None:
    async with LoomDB(db_url) as second:
        async with LoomDB(db_url) as first:
            await first.append("s", numbered(3))
        async with asyncio.timeout(20):
            (placed,) = await second.append("s", numbered(1))
    assert placed.position == 3


# --- read models --------------------------------------------------------------------------------


class Totals(Projection):
    name = "totals"
    tables = MetaData()
    rows = Table(
        "totals",
        tables,
        Column("stream", Text, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    def apply(self, events: object, connection: Connection) -> None:
        for event in events:  # type: ignore[attr-defined]
            here = self.rows.c.stream == event.stream
            total = connection.execute(select(self.rows.c.total).where(here)).scalar()
            if total is None:
                connection.execute(insert(self.rows).values((event.stream, event.data["n"])))
            else:
                connection.execute(
                    update(self.rows).where(here).values(total=total + event.data["n"])
                )


async def totals(db: LoomDB) -> dict[str, int]:
    rows = await db._backend.read(lambda c: c.execute(select(Totals.rows)).all())
    return {stream: total for stream, total in rows}


async def test_projections_count_each_event_once_and_can_be_rebuilt(db: LoomDB) -> None:
    await db.append("a", numbered(1200))
    await db.append("b", numbered(3))
    runs = await asyncio.gather(*(db.project(Totals()) for _ in range(4)))
    assert set(runs) == {1203}
    assert await totals(db) == {"a": 1200 * 1199 // 2, "b": 3}
    await db.append("b", numbered(3))
    assert await db.project(Totals()) == 1206
    assert await totals(db) == {"a": 719400, "b": 6}
    assert await db.rebuild(Totals()) == 1206
    assert await totals(db) == {"a": 719400, "b": 6}


async def test_a_failing_projection_changes_nothing(db: LoomDB) -> None:
    await db.append("a", numbered(2))
    await db.append("a", [NewEvent(event_type="tick", data={"wrong": 1})])
    with pytest.raises(KeyError):
        await db.project(Totals())
    assert await totals(db) == {}


async def test_older_shapes_are_upcast_and_the_entry_stays(db: LoomDB) -> None:
    db.upcasters.register("renamed", 1, lambda d: {"name": d["label"]})
    db.upcasters.register("renamed", 2, lambda d: {**d, "size": 0})
    await db.log_event("renamed", {"label": "x"})
    await db.log_event("renamed", {"name": "y", "size": 4}, schema=3)
    old, new = await db.query_events(event_type="renamed")
    assert (old.schema, old.data) == (3, {"name": "x", "size": 0})
    assert (new.schema, new.data) == (3, {"name": "y", "size": 4})
    assert json.loads(old.entry)["data"] == {"label": "x"}
    with pytest.raises(InvalidInput, match="already"):
        db.upcasters.register("renamed", 1, lambda d: d)


async def test_an_unreadable_request_in_the_inbox_is_refused_and_holds_up_nobody(
    db: LoomDB, db_url: str
) -> None:
    rows = [(f"bad-{n}", text) for n, text in enumerate(("{", "[]", '{"events":[[1]]}'))]
    for request_id, text in rows:
        row = {"request_id": request_id, "request": text, "submitted_us": 0}
        await db._backend.write(lambda c, row=row: c.execute(insert(inbox).values(row)))
    async with LoomDB(db_url, may_lead=False) as other:
        (placed,) = await other.append("s", numbered(1))
    assert placed.position == 0
    outcomes = await db._backend.read(
        lambda c: (
            c.execute(select(inbox.c.outcome).where(inbox.c.request_id.like("bad-%")))
            .scalars()
            .all()
        )
    )
    assert [json.loads(outcome)["error"] for outcome in outcomes] == ["InvalidInput"] * 3
