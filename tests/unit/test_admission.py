"""A queue that is full: who is admitted, who waits, who is called; and state that stays small."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from loomos.jobs.admission import LeaseChange, LeaseDeferred
from loomos.jobs.cluster import Lease, LeaseRequest, ReleaseRequest, SchedulerConfig, StatusQuery
from loomos.jobs.packing import MOST_BYTES
from loomos.manifest import Resources
from loomos.nexus.admission import MOST_DEFERRED, MOST_QUEUE_BYTES, Lobby
from loomos.nexus.allocation import Allocation
from loomos.nexus.overview import Overview
from loomos.nexus.packing import pack, unpack
from loomos.nexus.requests import why_not_on
from loomos.nexus.usage import Waiting
from tests.unit.test_allocation import START, cluster, node


def request(job: str, at_s: int = 0, **fields: Any) -> LeaseRequest:
    given = {"job_id": job, "run_id": f"run-{job}", "ticket": 1, "resources": Resources(nodes=1)}
    submitted_at = START + timedelta(seconds=at_s)
    return LeaseRequest.model_validate({**given, "submitted_at": submitted_at, **fields})


def small_queue(limit: int) -> Allocation:
    """A cluster whose only node is taken and whose queue has little room."""
    allocation = cluster(node("n1"))
    allocation.configure(SchedulerConfig(queue_limit=limit, preemption=False))
    allocation.request(request("holder"), START)
    allocation.decide(START)
    return allocation


def ask(allocation: Allocation, request: LeaseRequest, now: datetime) -> list[LeaseDeferred]:
    """Queue a request; who finds no room then."""
    allocation.request(request, now)
    return allocation.turn_away(now)


def queued(allocation: Allocation) -> list[str]:
    return [waiting.request.job_id for waiting in allocation.queue]


def test_a_full_queue_defers_the_request_that_is_farthest_from_its_turn() -> None:
    allocation = small_queue(2)
    assert [ask(allocation, request(name, at), START) for name, at in (("a", 1), ("b", 2))] == [
        [],
        [],
    ]
    (told,) = ask(allocation, request("c", 3), START)
    assert (told.job_id, told.reason) == ("c", "the cluster's queue is full (2 requests)")
    (told,) = ask(allocation, request("urgent", 4, priority=1), START)
    assert (told.job_id, queued(allocation)) == ("b", ["a", "urgent"])
    # Of one class, the project that has most in the queue gives way.
    (told,) = ask(allocation, request("other", 5, priority=1, project="small"), START)
    assert (told.job_id, queued(allocation)) == ("a", ["urgent", "other"])
    place = Overview(allocation).place_of("b", START).queued
    assert place is not None
    assert (place.position, place.reason) == (
        4,
        "waits for admission: the queue is full (2 requests)",
    )


def test_a_burst_is_turned_away_as_if_its_requests_had_come_one_by_one() -> None:
    """Of one class: otherwise who comes later is weighed against who was there before."""
    limit = 5
    asked = [request(f"j{n}", n, project=f"p{n * n % 3}") for n in range(40)]
    slow, quick = small_queue(limit), small_queue(limit)
    for each in asked:
        ask(slow, each, START)
        quick.request(each, START)
    assert len(quick.queue) == 40
    told = quick.turn_away(START)
    assert len(told) == 35 and quick.turn_away(START) == []
    projects = [Counter(w.request.project for w in c.queue) for c in (slow, quick)]
    assert projects[0] == projects[1] and max(projects[1].values()) == 3
    assert sorted([*queued(quick), *(each.job_id for each in told)]) == sorted(
        each.job_id for each in asked
    )


def test_those_that_wait_are_called_in_order_and_keep_their_age() -> None:
    allocation = small_queue(1)
    allocation.request(request("first", 0), START)
    for name, at in (("late", 9), ("early", 1)):
        ask(allocation, request(name, at), START)
    assert allocation.call(START) == []
    allocation.release(ReleaseRequest(job_id="first", run_id="run-first", epoch=0), START)
    later = START + timedelta(seconds=5)
    assert allocation.call(later) == ["early"]
    assert allocation.call(later) == [], "it is on its way"
    assert ask(allocation, request("early", 1), later) == []
    assert allocation.queue[0].since == START
    # One that was called and does not come is passed over.
    allocation.release(ReleaseRequest(job_id="early", run_id="run-early", epoch=0), later)
    assert allocation.call(later) == ["late"]
    ask(allocation, request("new", 20), later)
    allocation.release(ReleaseRequest(job_id="new", run_id="run-new", epoch=0), later)
    assert allocation.call(later + timedelta(minutes=2)) == []
    assert not allocation.lobby.waiting


def test_beyond_what_is_remembered_jobs_come_back_one_after_the_other() -> None:
    lobby = Lobby()
    told = [
        lobby.enter(Waiting(request(f"j{n}", n), START), 5, START) for n in range(MOST_DEFERRED + 3)
    ]
    assert len(lobby.waiting) == MOST_DEFERRED
    assert told[0].retry_after == timedelta(hours=1)
    assert [each.retry_after.total_seconds() for each in told[-3:]] == [300 + n for n in (1, 2, 3)]


def test_a_withdrawn_request_waits_no_more() -> None:
    allocation = small_queue(1)
    allocation.request(request("a"), START)
    ask(allocation, request("b", 1), START)
    allocation.release(ReleaseRequest(job_id="b", run_id="run-b", epoch=0), START)
    assert not allocation.lobby.waiting and queued(allocation) == ["a"]


def test_a_new_priority_of_a_running_job_decides_who_is_preempted() -> None:
    allocation = cluster(node("n1"))
    allocation.request(request("holder", priority=3), START)
    allocation.decide(START)
    allocation.request(request("wants", 1, priority=3), START)
    assert allocation.decide(START) == ([], [])
    allocation.change(LeaseChange(job_id="holder", run_id="another run", priority=5))
    assert allocation.decide(START) == ([], [])
    allocation.change(LeaseChange(job_id="holder", run_id="run-holder", priority=4))
    _, asked_back = allocation.decide(START)
    assert [lease.job_id for lease, _ in asked_back] == ["holder"]
    assert asked_back[0][1].reason == "preempted by wants, of priority 3"


def test_a_job_is_not_moved_to_fewer_nodes_than_it_needs() -> None:
    two = request("two", resources=Resources(nodes=2))
    assert why_not_on(two, ["n1", "n1"]) == (
        "nodes: it needs at least 2 nodes and 1 is named; name 2 or more"
    )
    assert why_not_on(two, ["n1", "n2"]) == ""


def big() -> Allocation:
    """A thousand nodes, all held, with a full queue and lobby."""
    allocation = Allocation()
    for number in range(1000):
        info = node(f"node-{number:04d}", code_sha256="a" * 64, environment_sha256="b" * 64)
        allocation.register(info, START)

    def ask(number: int) -> None:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        data = [digest, hashlib.sha256(digest.encode()).hexdigest()]
        asked = request(f"job-{digest[:32]}", number, run_id=digest[:36], affinity=data)
        if len(allocation.queue) < 1000:
            allocation.request(asked, START)
        else:  # as `request` does, without a look at the whole queue each time
            allocation.lobby.enter(Waiting(asked, START), 1000, START)

    for number, info in enumerate(allocation.nodes.values()):
        held = request(f"holder-{hashlib.sha256(str(number).encode()).hexdigest()[:32]}")
        allocation.leases[number + 1] = Lease(
            epoch=number + 1,
            job_id=held.job_id,
            run_id=held.run_id,
            ticket=1,
            nodes=[info.info],
            ranks_per_node=1,
            request=held,
            granted_at=START,
        )
    for number in range(1000 + MOST_DEFERRED):
        ask(number)
    return allocation


def test_state_and_answers_of_a_thousand_nodes_and_ten_thousand_jobs_fit() -> None:
    allocation = big()
    assert (len(allocation.leases), len(allocation.queue)) == (1000, 1000)
    packed = pack(allocation.to_state(), START)
    assert len(packed.model_dump_json()) <= MOST_BYTES
    assert unpack(packed) == allocation.to_state()
    overview = Overview(allocation)
    pages = [overview.status(START)]
    while cursor := pages[-1].next_cursor:
        pages.append(overview.status(START, StatusQuery(cursor=cursor)))
    assert max(len(page.model_dump_json()) for page in pages) < 1_000_000
    joined = pages[0]
    for page in pages[1:]:
        joined = joined.joined(page)
    assert [n.info.node_id for n in joined.nodes] == sorted(allocation.nodes)
    assert [place.position for place in joined.queue] == list(range(1, 1001))
    assert [lease.epoch for lease in joined.leases] == sorted(allocation.leases)
    assert pages[0].deferred == MOST_DEFERRED


def heavy(job: str, at_s: int = 0, **fields: Any) -> LeaseRequest:
    """A request of 48 KB that no compression makes smaller, as older versions took them."""
    noise = random.Random(job)
    labels = {f"k{n}": noise.randbytes(4000).hex() for n in range(6)}
    resources = Resources.model_validate_json(json.dumps({"nodes": 1, "node_labels": labels}))
    return request(job, at_s, resources=resources, **fields)


def test_requests_that_are_heavy_make_the_queue_shorter() -> None:
    allocation = small_queue(1000)
    light = [request(f"light-{n}", n, project="other") for n in range(100)]
    for each in [*light, *(heavy(f"heavy-{n}", 1000 + n) for n in range(60))]:
        allocation.request(each, START)
    told = allocation.turn_away(START)
    weight = sum(waiting.size_bytes for waiting in allocation.queue)
    assert MOST_QUEUE_BYTES - 50_000 < weight <= MOST_QUEUE_BYTES
    assert {each.job_id for each in light} <= set(queued(allocation))
    assert [each.job_id for each in told] == [f"heavy-{n}" for n in range(59, 59 - len(told), -1)]
    assert len(told) == 60 - (len(queued(allocation)) - 100)
    # Whoever is called finds room, however heavy the request: nobody is called in vain.
    assert allocation.call(START, 200) == []
    for n in range(3):
        gone = ReleaseRequest(job_id=f"heavy-{n}", run_id=f"run-heavy-{n}", epoch=0)
        allocation.release(gone, START)
    called = allocation.call(START, 200)
    assert len(called) == 2
    assert [ask(allocation, heavy(job), START) for job in called] == [[], []]


def test_a_state_of_heavy_requests_and_leases_is_packed_and_loses_none() -> None:
    allocation = cluster(*(node(f"n{n}") for n in range(50)))
    for n in range(50):
        allocation.request(request(f"j{n}", n), START)
    allocation.decide(START)
    for epoch, lease in allocation.leases.items():
        asked_for = {"request": heavy(lease.job_id)}
        allocation.leases[epoch] = lease.model_copy(update=asked_for)
    for n in range(50, 110):
        allocation.request(heavy(f"j{n}", n), START)
    assert (len(allocation.leases), len(allocation.queue)) == (50, 60)
    packed = pack(allocation.to_state(), START)
    assert len(packed.model_dump_json()) <= MOST_BYTES
    state = unpack(packed)
    asked = {request.job_id for request, _ in state.queue}
    remembered = {each.job_id for each in state.deferred}
    assert [lease.job_id for lease in state.leases] == [f"j{n}" for n in range(50)]
    assert len(asked) == 15 and not asked & remembered
    assert asked | remembered == {f"j{n}" for n in range(50, 110)}
    assert {each.job_id for each in state.turned_away} == remembered


def test_a_place_is_asked_for_without_playing_a_round_each_time(monkeypatch: Any) -> None:
    allocation = small_queue(10)
    allocation.request(request("a", 1), START)
    rounds = 0
    played = Allocation.round

    def counted(self: Allocation, now: datetime) -> Any:
        nonlocal rounds
        rounds += 1
        return played(self, now)

    monkeypatch.setattr(Allocation, "round", counted)
    overview = Overview(allocation)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(50):
        place = overview.place_of("a", now).queued
        assert place is not None and place.position == 1
    assert rounds == 1
    allocation.request(request("b", 0), START)
    place = overview.place_of("a", now).queued
    assert place is not None and (place.position, rounds) == (2, 2)
