"""Who is next: class, deadline, fair share, age.

Requests that have waited too long go first, oldest first, so that nobody starves. Then priority
classes; within a class, deadlines by earliest first; among the rest, the project that holds the
smallest weighted dominant share, and its oldest request (DRF, Ghodsi et al., NSDI 2011).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from loomos.jobs.cluster import SchedulerConfig
from loomos.nexus.usage import Waiting

NO_DEADLINE = datetime.max.replace(tzinfo=UTC)


def in_order(
    queue: Sequence[Waiting],
    config: SchedulerConfig,
    share_of: Callable[[str], float],
    now: datetime,
) -> Iterator[Waiting]:
    """The queue, next first. Lazy: shares are looked at when a request's turn is decided.

    Args:
        queue: in any order.
        config: weights, and when a request starves.
        share_of: a project's dominant share as it is now, grants of this round included.
        now: for ages.
    """
    aged = sorted(queue, key=_age)
    yield from (waiting for waiting in aged if is_starving(waiting, config, now))
    rest = [waiting for waiting in aged if not is_starving(waiting, config, now)]
    rest.sort(key=_class)
    for _, group in groupby(rest, _class):
        projects: dict[str, deque[Waiting]] = {}
        for waiting in group:
            projects.setdefault(waiting.request.project, deque()).append(waiting)
        while projects:
            next_up = min(
                projects,
                key=lambda p: (share_of(p) / config.weights.get(p, 1.0), _age(projects[p][0])),
            )
            yield projects[next_up].popleft()
            if not projects[next_up]:
                del projects[next_up]


def is_starving(waiting: Waiting, config: SchedulerConfig, now: datetime) -> bool:
    """Whether a request has waited too long."""
    return now - waiting.since >= config.starves_after


def _age(waiting: Waiting) -> tuple[datetime, str]:
    return waiting.request.submitted_at, waiting.request.job_id


def _class(waiting: Waiting) -> tuple[int, datetime]:
    return waiting.request.priority, waiting.request.deadline or NO_DEADLINE
