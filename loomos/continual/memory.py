"""What a schedule remembers between its periods: watermarks and decisions, by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from loomos.jobs.continual import Budget, ContinualState, UpdateRecord
from loomos.storage import Store
from loomos.storage.layout import continual_state_prefix
from loomos.storage.register import Register

REMEMBERED = 500


def read_state(store: Store, name: str) -> ContinualState:
    """What is remembered."""
    newest = Register(store, continual_state_prefix(name)).read()
    return ContinualState() if newest is None else ContinualState.model_validate_json(newest.data)


def change_state(
    store: Store, name: str, change: Callable[[ContinualState], ContinualState]
) -> ContinualState:
    """Remember something else; if somebody was faster, `change` is asked again."""
    register = Register(store, continual_state_prefix(name))
    return register.change(ContinualState, lambda state: change(state or ContinualState()))


def concluded(state: ContinualState, record: UpdateRecord, *, learnt: bool) -> ContinualState:
    """The state after a period: its decision, and, if its data was used, its watermarks."""
    if any(known.update_id == record.update_id for known in state.updates):
        return state
    marks = state.pending.get(record.update_id)
    changes: dict[str, object] = {
        "updates": [*state.updates, record][-REMEMBERED:],
        "pending": {},
    }
    if learnt and marks is not None:
        changes |= {
            "cursors": marks.cursors,
            "offsets": marks.offsets,
            "taken": marks.taken,
        }
    return state.model_copy(update=changes)


def over_budget(state: ContinualState, budget: Budget, now: datetime) -> str:
    """Why the budget allows no update now; empty if it does."""
    lately = [
        update
        for update in state.updates
        if now - update.at < budget.period and update.decision != "skipped"
    ]
    if budget.updates is not None and len(lately) >= budget.updates:
        return f"{len(lately)} of {budget.updates} updates of the period are used"
    spent = sum(update.training_s for update in lately)
    if budget.training_time is not None and spent >= budget.training_time.total_seconds():
        return f"trainings took {spent:.0f} s, which is the period's budget"
    return ""
