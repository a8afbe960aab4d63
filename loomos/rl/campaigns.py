"""What a campaign decides after a round. Pure: the workflow runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from loomos.jobs.campaigns import (
    Appraisal,
    CampaignStatus,
    CarriedCampaign,
    PolicyState,
    RoundReport,
)
from loomos.jobs.packing import fitting, packed, unpacked
from loomos.manifest import (
    DIFFICULTIES,
    CampaignMember,
    CampaignPhase,
    CampaignSpec,
    EnvironmentChoice,
)

ADAPTATION = 1.0
"""How fast weights move to members that fall behind."""
ERROR_LENGTHS = (200, 40)
"""Characters that are left of errors where all that is known is too much, at first and then."""


def score(member: CampaignMember, appraisal: Appraisal) -> float:
    """Mean return by the member's own threads, whose weights are scaled to a sum of 1."""
    total = sum(member.threads.values())
    if not appraisal.threads or not total:
        return appraisal.mean_return
    return sum(w / total * appraisal.threads[thread] for thread, w in member.threads.items())


def scores(spec: CampaignSpec, policies: Mapping[str, PolicyState]) -> dict[str, float]:
    """Of every member."""
    return {
        member.name: score(member, policies[label].appraisal)
        for label, members in spec.policies.items()
        for member in members
    }


def scaled(spec: CampaignSpec, weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1 within each policy; members without one have none."""
    found: dict[str, float] = {}
    for members in spec.policies.values():
        given = {m.name: weights[m.name] for m in members if weights.get(m.name)}
        total = sum(given.values())
        found |= {name: weight / total for name, weight in given.items()}
    return found


def phase_weights(
    spec: CampaignSpec, phase: CampaignPhase, before: Mapping[str, float]
) -> dict[str, float]:
    """Weights as a phase begins."""
    if phase.weights:
        return scaled(spec, phase.weights)
    return scaled(spec, before or {member.name: 1.0 for member in spec.members})


def adapted(
    spec: CampaignSpec, weights: Mapping[str, float], rounds: Sequence[RoundReport]
) -> dict[str, float]:
    """Move weights to members whose score is furthest below the best it has been.

    Multiplicative weights (Freund & Schapire 1997): each is multiplied by exp(eta * short), where
    short is how far the newest score lies below the best, as a share of the way to the worst.
    """
    moved = {}
    for name, weight in weights.items():
        history = [report.scores[name] for report in rounds if name in report.scores]
        best, worst = max(history), min(history)
        short = (best - history[-1]) / (best - worst) if best > worst else 0.0
        moved[name] = weight * math.exp(ADAPTATION * short)
    return scaled(spec, moved)


def is_reached(phase: CampaignPhase, weights: Mapping[str, float], newest: RoundReport) -> bool:
    """Whether a phase has what it is for."""
    if phase.until is None:
        return False
    return all(newest.scores[name] >= phase.until for name in weights)


def at_start(spec: CampaignSpec, environment: EnvironmentChoice) -> EnvironmentChoice:
    """An environment at the difficulty that the curriculum starts with."""
    if spec.curriculum is None:
        return environment
    return _with_difficulty(environment, spec.curriculum.start)


def after(spec: CampaignSpec, policy: PolicyState) -> EnvironmentChoice:
    """The environment of the next round: harder, if the policy solves it often enough."""
    solved = policy.appraisal.success_rate
    if spec.curriculum is None or solved is None or solved < spec.curriculum.success_threshold:
        return policy.environment
    place = DIFFICULTIES.index(difficulty(policy.environment))
    return _with_difficulty(policy.environment, DIFFICULTIES[min(place + 1, len(DIFFICULTIES) - 1)])


def moved_on(spec: CampaignSpec, made: Mapping[str, PolicyState]) -> dict[str, PolicyState]:
    """Policies that were just appraised, with the environments of their next round."""
    return {
        label: policy.model_copy(update={"environment": after(spec, policy)})
        for label, policy in made.items()
    }


def difficulty(environment: EnvironmentChoice) -> str:
    """Its difficulty, where it has one."""
    return str(environment.config.get("difficulty", DIFFICULTIES[0]))


def _with_difficulty(environment: EnvironmentChoice, difficulty: str) -> EnvironmentChoice:
    config = {**environment.config, "difficulty": difficulty}
    return environment.model_copy(update={"config": config})


# --- what is carried and told ---------------------------------------------------------------------


def pack(carried: CarriedCampaign) -> CarriedCampaign:
    """The same in few bytes; errors are cut short where they are still too many."""
    rounds = _shorter(carried.rounds)
    text = packed(carried.model_copy(update={"rounds": each}) for each in rounds)
    return CarriedCampaign(started_at=carried.started_at, packed=text)


def unpack(carried: CarriedCampaign) -> CarriedCampaign:
    """What `pack` was given."""
    return unpacked(CarriedCampaign, carried.packed) if carried.packed else carried


def told(status: CampaignStatus) -> CampaignStatus:
    """As much of an answer as can be sent."""
    return fitting(_shorter_answers(status))


def _shorter_answers(status: CampaignStatus) -> Iterator[CampaignStatus]:
    for rounds in _shorter(status.rounds):
        status = status.model_copy(update={"rounds": rounds})
        yield status
    while len(status.rounds) > 1:
        newest = status.rounds[len(status.rounds) // 2 :]
        status = status.model_copy(update={"rounds": newest})
        yield status


def _shorter(rounds: list[RoundReport]) -> Iterator[list[RoundReport]]:
    yield rounds
    for length in ERROR_LENGTHS:
        yield [_with_errors(each, length) for each in rounds]


def _with_errors(report: RoundReport, length: int) -> RoundReport:
    members = {
        name: member.model_copy(update={"error": member.error[:length]})
        for name, member in report.members.items()
    }
    return report.model_copy(update={"members": members})
