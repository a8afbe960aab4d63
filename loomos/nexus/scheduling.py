"""One round of decisions: who gets which nodes, and who must give some back.

Requests are looked at in order. The first that the cluster could serve, but not now, is the head:
it blocks those behind it, which may only fill gaps (EASY backfill, Lifka, JSSPP 1995): a request
is let past if it ends, by its estimate, before the head could start, or if it leaves the head's
nodes alone. If leases of lower classes stand in the head's way, the fewest, newest ones of the
lowest class are asked to checkpoint and come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from loomos.jobs.cluster import Lease, NodeHistory, SchedulerConfig
from loomos.limits import later
from loomos.nexus.amounts import Amounts
from loomos.nexus.ordering import in_order, is_starving
from loomos.nexus.policies import WorkerStats, find_policy
from loomos.nexus.usage import Holding, Usage, Waiting, taken

DIGEST_LENGTH = 16
"""Characters of a digest by which a node's earlier inputs are remembered."""
MOST_GRANTS = 50
"""Requests that one round grants at most; what is left is for the next."""
MOST_SCORED = 5000
"""Nodes that one round compares at most, if it has granted something: the workflow that decides
does nothing else meanwhile, and must be done with it in two seconds."""
BEHIND = "behind requests of higher priority or age"

Free = dict[str, Amounts]


@dataclass
class Grant:
    """Nodes for a request."""

    waiting: Waiting
    node_ids: list[str]
    is_backfill: bool = False
    is_protected: bool = False


class Revocation(NamedTuple):
    """A lease that is to come back."""

    lease: Lease
    reason: str


@dataclass
class Decisions:
    """What a round came to."""

    grants: list[Grant] = field(default_factory=list)
    """In order."""
    revocations: list[Revocation] = field(default_factory=list)
    """Leases to ask back."""
    is_cut: bool = False
    """Whether the round ended before it had looked at everything: another one should follow."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why each request that was not granted waits, by job, in order."""


class Reservation(NamedTuple):
    """What the head will take, and when."""

    starts_at: datetime | None
    """When its nodes should be free; None if nobody can say."""
    left: Free
    """Of each of its nodes, what will be free beside it then."""


class Round:
    """Decides once.

    Args:
        usage: nodes and what of them is free.
        leases: those in force.
        queue: those who wait.
        config: how to decide.
        history: what is known of nodes.
        now: the time.
    """

    def __init__(
        self,
        usage: Usage,
        leases: Sequence[Lease],
        queue: Sequence[Waiting],
        config: SchedulerConfig,
        history: Mapping[str, NodeHistory],
        now: datetime,
    ) -> None:
        self._usage, self._leases, self._queue = usage, leases, queue
        self._config, self._history, self._now = config, history, now
        self._policy = find_policy(config.policy)
        self._free: Free = dict(usage.free)
        idle = [node_id for node_id in usage.ready if not usage.holders[node_id]]
        self._standby = set(idle[-config.standby_nodes :] if config.standby_nodes else [])
        self._held = dict(usage.by_project)
        self._head: Waiting | None = None
        self._reservation: Reservation | None = None
        # Shapes for which there was no room: in a round, room only becomes less.
        self._too_big: set[tuple[object, ...]] = set()
        self._too_big_beside: set[tuple[object, ...]] = set()
        self._looked_at = 0
        self._scored = 0
        self._made = Decisions()

    def decide(self, *, explain: bool = False) -> Decisions:
        """Everything that can be decided now.

        Args:
            explain: say why every request waits, those included that nothing depends on.
        """
        for waiting in in_order(self._queue, self._config, self._share_of, self._now):
            reason = self._consider(waiting)
            if reason is not None:
                self._made.reasons[waiting.request.job_id] = reason
            if self._looked_at > self._config.backfill_depth and not explain:
                break
            if len(self._made.grants) >= MOST_GRANTS or self._scored >= MOST_SCORED:
                self._made.is_cut = True
                break
        if not self._made.is_cut:
            self._extend()
            self._grow()
        return self._made

    def why_never(self, waiting: Waiting) -> str | None:
        """Why the ready nodes could not serve a request even if they were all idle."""
        return self._unservable(waiting)

    # --- one request ---

    def _consider(self, waiting: Waiting) -> str | None:
        """Grant a request, or say why not."""
        aside = self._over_quota(waiting) or self._unservable(waiting)
        if aside is not None:
            return aside
        if self._head is None:
            if self._grant(waiting):
                return None
            self._head = waiting
            self._preempt(waiting)
            self._reservation = self._reserve(waiting)
            return self._why_blocked()
        self._looked_at += 1
        if self._looked_at <= self._config.backfill_depth and self._backfill(waiting):
            return None
        return BEHIND

    def _over_quota(self, waiting: Waiting, more: int | None = None) -> str | None:
        """Why a project may not have `more` nodes; by default those that the request needs."""
        project = waiting.request.project
        quota = self._config.quotas.get(project)
        needs = self._usage.candidates(waiting).values()
        if quota is None or not waiting.counts or not needs:
            return None
        count = waiting.counts[0] if more is None else more
        holds = self._held.get(project, Holding())
        # Who names no number of GPUs may get a node with any of them.
        gpus = max(need.gpus for need in needs)
        for name, limit, would in (
            ("nodes", quota.nodes, holds.nodes + count),
            ("gpus", quota.gpus, holds.amounts.gpus + count * gpus),
            ("ranks", quota.ranks, holds.amounts.ranks + count * waiting.request.resources.ranks),
        ):
            if limit is not None and would > limit:
                return f"project {project} may hold {limit} {name} and would hold {would}"
        return None

    def _unservable(self, waiting: Waiting) -> str | None:
        """Why the ready nodes could not serve a request even if they were all idle."""
        request = waiting.request
        fitting = len(self._usage.candidates(waiting))
        if not waiting.counts:
            return f"no number of nodes it allows divides its batch of {request.batch_size}"
        spare = 0 if request.is_recovery else self._config.standby_nodes
        if fitting - spare >= waiting.counts[0]:
            return None
        standing_by = f" and {spare} must stand by" if spare else ""
        return (
            f"needs {waiting.counts[0]} ready nodes with what it asks for; "
            f"{fitting} of {len(self._usage.holders)} known nodes have it{standing_by}"
        )

    def _grant(self, waiting: Waiting, *, beside_head: bool = False) -> bool:
        """Grant a request the least that it needs, if that is free."""
        too_big = self._too_big_beside if beside_head else self._too_big
        if waiting.shape in too_big:
            return False
        free = self._beside_head() if beside_head else self._free
        chosen = self._choose(waiting, waiting.counts[0], free)
        if chosen is None:
            too_big.add(waiting.shape)
            return False
        is_protected = is_starving(waiting, self._config, self._now)
        self._made.grants.append(Grant(waiting, chosen, is_protected=is_protected))
        self._take(waiting, chosen)
        return True

    def _take(self, waiting: Waiting, node_ids: Iterable[str]) -> None:
        needs = self._usage.candidates(waiting)
        held = self._held.get(waiting.request.project, Holding())
        for node_id in node_ids:
            self._free[node_id] = self._free[node_id].minus(needs[node_id])
            held = Holding(held.amounts.plus(needs[node_id]), held.nodes + 1)
        self._held[waiting.request.project] = held

    def _choose(
        self, waiting: Waiting, count: int, free: Free, besides: Sequence[str] = ()
    ) -> list[str] | None:
        """The `count` best nodes with enough free; None if there are too few."""
        fitting = self._fitting(waiting, free, besides)
        if len(fitting) < count:
            return None
        if len(fitting) > count:
            self._scored += len(fitting)
            fitting.sort(key=lambda node_id: (-self._score(waiting, node_id), node_id))
        return fitting[:count]

    def _fitting(self, waiting: Waiting, free: Free, besides: Sequence[str] = ()) -> list[str]:
        barred = set() if waiting.request.is_recovery else self._standby
        return [
            node_id
            for node_id, need in self._usage.candidates(waiting).items()
            # Most nodes are full most of the time, and ranks are what every request takes.
            if free[node_id].ranks
            and free[node_id].covers(need)
            and node_id not in barred
            and node_id not in besides
        ]

    def _score(self, waiting: Waiting, node_id: str) -> float:
        info, free = self._usage.ready[node_id], self._free[node_id]
        history = self._history.get(node_id) or NodeHistory()
        wanted, near = waiting.request.affinity, 0.0
        if wanted and history.affinity:
            had = {digest[:DIGEST_LENGTH] for digest in history.affinity}
            near = sum(digest[:DIGEST_LENGTH] in had for digest in wanted) / len(wanted)
        stats = WorkerStats(
            node_id=node_id,
            available_resources=self._usage.available(node_id, free),
            ranks_free=free.ranks,
            gpus_free=free.gpus,
            gpus=len(info.gpus),
            speed=history.speed,
            cost_per_hour=info.cost_per_hour,
            data_affinity=near,
            region=info.region,
        )
        return self._policy.score_placement(waiting.request, stats)

    # --- behind the head ---

    def _reserve(self, head: Waiting) -> Reservation:
        """When the head could start if leases end as estimated, and on which nodes."""
        needs, count = self._usage.candidates(head), head.counts[0]
        free = dict(self._free)
        ends = [(self._ends_by(lease), lease) for lease in self._leases]
        room = len(self._fitting(head, free))
        for ends_by, lease in sorted(
            ((at, lease) for at, lease in ends if at is not None),
            key=lambda item: (item[0], item[1].epoch),
        ):
            room += sum(_add(free, taken(lease), needs))
            if room >= count and len(fitting := self._fitting(head, free)) >= count:
                # Nodes that are free already first: others then find room on the later ones.
                chosen = sorted(fitting, key=lambda n: (not self._free[n].covers(needs[n]), n))
                left = {n: free[n].minus(needs[n]) for n in chosen[:count]}
                return Reservation(max(ends_by, self._now), left)
        # Nobody knows when: what would do for the head now is kept for it.
        fitting = self._fitting(head, self._free)[:count]
        return Reservation(None, {n: self._free[n].minus(needs[n]) for n in fitting})

    def _ends_by(self, lease: Lease) -> datetime | None:
        is_coming = lease.is_revoked or any(lease is r.lease for r in self._made.revocations)
        return self._now if is_coming else lease.ends_by

    def _backfill(self, waiting: Waiting) -> bool:
        """Let a request past the head if the head will not notice."""
        reservation = self._reservation
        assert reservation is not None
        estimate = waiting.request.estimate
        if (
            reservation.starts_at is not None
            and estimate is not None
            and later(self._now, estimate) <= reservation.starts_at
        ):
            if not self._grant(waiting):
                return False
            self._made.grants[-1].is_backfill = True
            return True
        if not self._grant(waiting, beside_head=True):
            return False
        needs = self._usage.candidates(waiting)
        for node_id in self._made.grants[-1].node_ids:
            if node_id in reservation.left:
                left = reservation.left[node_id]
                reservation.left[node_id] = left.minus(needs[node_id])
        return True

    def _beside_head(self) -> Free:
        """What is free for good: of the head's nodes only what it will leave."""
        free = dict(self._free)
        if self._reservation is not None:
            for node_id, left in self._reservation.left.items():
                free[node_id] = Amounts(*map(min, free[node_id], left))
        return free

    def _why_blocked(self) -> str:
        assert self._reservation is not None
        at = self._reservation.starts_at
        if at is None:
            return "nodes that would do are in use"
        if at <= self._now:
            return "nodes that would do are being given back"
        return f"nodes that would do are in use, by estimate until {at:%Y-%m-%dT%H:%M:%SZ}"

    # --- taking back ---

    def _preempt(self, head: Waiting) -> None:
        """Ask back the fewest leases that stand in the head's way, if any may be asked."""
        count = head.counts[0]
        needs = self._usage.candidates(head)
        would = ((lease, self._would_return(lease, head)) for lease in self._leases)
        could = [item for item in would if not needs.keys().isdisjoint(item[1])]
        if not could:
            return
        soon = dict(self._free)
        for lease in self._leases:
            if lease.is_revoked:
                _add(soon, taken(lease))
        if len(self._fitting(head, soon)) >= count:
            return
        victims: list[Lease] = []
        for lease, returned in sorted(could, key=lambda item: _cheapest_victim(item[0])):
            _add(soon, returned)
            victims.append(lease)
            if len(self._fitting(head, soon)) >= count:
                break
        else:
            return
        for lease in list(victims):
            without = dict(soon)
            _subtract(without, self._would_return(lease, head))
            if len(self._fitting(head, without)) >= count:
                victims.remove(lease)
                soon = without
        for lease in victims:
            self._made.revocations.append(Revocation(lease, self._why_revoked(lease, head)))

    def _would_return(self, lease: Lease, head: Waiting) -> dict[str, Amounts]:
        """What of a lease the head may have: all, an elastic one's extra nodes, or nothing."""
        request = lease.request
        if request is None or lease.is_revoked:
            return {}
        if self._is_overdue(lease):
            return taken(lease)
        if not self._config.preemption or not request.is_preemptible or lease.is_protected:
            return {}
        if request.priority > head.request.priority:
            return taken(lease)
        sizes = request.resources.nodes
        fewest = sizes if isinstance(sizes, int) else sizes.min
        if request.priority == head.request.priority and len(lease.nodes) > fewest:
            extra = {node.node_id for node in lease.nodes[fewest:]}
            return {n: amounts for n, amounts in taken(lease).items() if n in extra}
        return {}

    def _is_overdue(self, lease: Lease) -> bool:
        return lease.is_backfill and lease.ends_by is not None and lease.ends_by <= self._now

    def _why_revoked(self, lease: Lease, head: Waiting) -> str:
        assert lease.request is not None
        job = head.request.job_id
        if self._is_overdue(lease):
            return f"it was let past {job} and has taken longer than estimated"
        if lease.request.priority > head.request.priority:
            return f"preempted by {job}, of priority {head.request.priority}"
        return f"makes room for {job}: it can run with fewer nodes"

    # --- elastic gangs ---

    def _extend(self) -> None:
        """Give elastic gangs what nobody else can use now."""
        for grant in self._made.grants:
            for count in reversed(grant.waiting.counts[1:]):
                missing = count - len(grant.node_ids)
                if self._over_quota(grant.waiting, missing):
                    continue
                more = self._choose(grant.waiting, missing, self._beside_head(), grant.node_ids)
                if more is not None:
                    grant.node_ids += more
                    self._take(grant.waiting, more)
                    break

    def _grow(self) -> None:
        """Ask back an elastic lease that could have more nodes, where nobody waits for them."""
        if self._made.reasons or self._made.grants:
            return
        for lease in self._leases:
            request = lease.request
            if request is None or isinstance(request.resources.nodes, int) or lease.is_revoked:
                continue
            if lease.granted_at is None or self._now - lease.granted_at < self._config.grow_after:
                continue
            waiting = Waiting(request, self._now)
            has = [node.node_id for node in lease.nodes]
            could = len(has) + len(self._fitting(waiting, self._free, has))
            larger = [
                count
                for count in waiting.counts
                if len(has) < count <= could and not self._over_quota(waiting, count - len(has))
            ]
            if larger:
                self._made.revocations.append(
                    Revocation(lease, f"can have {larger[-1]} nodes instead of {len(has)}")
                )
                return

    def _share_of(self, project: str) -> float:
        return self._usage.share(self._held.get(project, Holding()).amounts)


def _cheapest_victim(lease: Lease) -> tuple[int, float]:
    """Lowest class first, then the newest, which loses least."""
    assert lease.request is not None or lease.granted_at is None
    priority = lease.request.priority if lease.request else 0
    return -priority, -(lease.granted_at.timestamp() if lease.granted_at else 0.0)


def _add(
    free: Free, amounts: Mapping[str, Amounts], needs: Mapping[str, Amounts] | None = None
) -> list[bool]:
    """Give amounts back; says of each node whether it now has enough, and had not before."""
    became: list[bool] = []
    for node_id, more in amounts.items():
        if node_id in free:
            before, free[node_id] = free[node_id], free[node_id].plus(more)
            if needs is not None and node_id in needs:
                need = needs[node_id]
                became.append(free[node_id].covers(need) and not before.covers(need))
    return became


def _subtract(free: Free, amounts: Mapping[str, Amounts]) -> None:
    for node_id, less in amounts.items():
        if node_id in free:
            free[node_id] = free[node_id].minus(less)
