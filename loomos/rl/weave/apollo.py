"""Apollo: one policy that is to be coherent, safe and creative at once.

Three groups of nodes train it, each for its own objective; after every round their parameters are
averaged, by weights. The phases are a curriculum of objectives: first coherence alone, then safety
with it, then creativity with both, and in the end weights move to whatever falls behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from loomos.client.http import LoomOSClient
from loomos.errors import InvalidInput
from loomos.manifest import RewardThread, RLCampaign
from loomos.rl.environments.config import EnvironmentConfig
from loomos.rl.integration import OnRound, campaign_document, round_of, run_campaign

OBJECTIVES = (RewardThread.COHERENCE, RewardThread.SAFETY, RewardThread.CREATIVITY)
OWN_WEIGHT, OTHERS_WEIGHT = 0.8, 0.1
"""Of a group's objective in its rewards, and of each of the others."""
PHASES: tuple[tuple[str, int], ...] = (
    ("coherence", 1),
    ("safety", 2),
    ("creativity", 3),
    ("balanced", 3),
)
"""Each phase, and how many of the objectives it has."""
STEPS_PER_UPDATE = 32
"""Of each copy."""
CONVERGED_ROUNDS = 3
CONVERGED_SHARE = 0.05
"""Converged is when so many newest rounds lie within this share of their mean."""


class ApolloTrainer:
    """Runs Apollo as a campaign; see `create_apollo_weave_trainer`."""

    def __init__(self, campaign: RLCampaign, client: LoomOSClient | None = None) -> None:
        self.campaign = campaign
        self._client = client

    async def run_apollo_training_campaign(self, on_round: OnRound | None = None) -> dict[str, Any]:
        """Train, and wait for the end.

        Args:
            on_round: called with each round as it ends.

        Returns:
            `final_balanced_performance` (mean of the objectives' scores, each from 0 to 1),
            `final_objective_weights` (of each group in the average), `objective_scores`,
            `performance_history` (a dictionary for each round: `phase`, `balanced`, `scores`,
            `weights`), `policy` (`NAME@VERSION`) and `campaign_id`.

        Raises:
            CampaignFailed: it failed or was cancelled.
        """
        found = await run_campaign(self.campaign, self._client, on_round)
        history = [
            {
                "phase": report.phase,
                "balanced": mean(report.scores.values()),
                "scores": dict(report.scores),
                "weights": dict(report.weights),
            }
            for report in found.rounds
        ]
        (policy,) = found.policies.values()
        return {
            "campaign_id": found.campaign_id,
            "final_balanced_performance": history[-1]["balanced"],
            "final_objective_weights": dict(found.weights),
            "objective_scores": history[-1]["scores"],
            "performance_history": history,
            "policy": policy.version,
        }

    def analyze_apollo_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """What a campaign's history says; see `analyze`."""
        return analyze(results["performance_history"])


def analyze(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a history of rounds says.

    Args:
        history: as `run_apollo_training_campaign` gives it; the first entry is before training.

    Returns:
        `convergence_analysis` (`converged`: whether the newest three rounds differ by at most a
        twentieth of their mean; `spread`), `curriculum_effectiveness` (`curriculum_effective`:
        whether the end is better than the start and no phase undid more than half of what those
        before it had won; `improvement`; `phases`: balanced performance at the end of each) and
        `objectives` (first, last and best score of each).
    """
    balanced = [entry["balanced"] for entry in history]
    newest = balanced[1:][-CONVERGED_ROUNDS:]
    spread = max(newest) - min(newest) if newest else 0.0
    enough = len(newest) == CONVERGED_ROUNDS
    ends = {entry["phase"]: entry["balanced"] for entry in history[1:]}
    improvement = balanced[-1] - balanced[0]
    names = history[0]["scores"]
    return {
        "convergence_analysis": {
            "converged": enough and spread <= CONVERGED_SHARE * abs(mean(newest)),
            "spread": spread,
        },
        "curriculum_effectiveness": {
            "curriculum_effective": improvement > 0 and _keeps_most([balanced[0], *ends.values()]),
            "improvement": improvement,
            "phases": ends,
        },
        "objectives": {
            name: {
                "first": history[0]["scores"][name],
                "last": history[-1]["scores"][name],
                "best": max(entry["scores"][name] for entry in history),
            }
            for name in names
        },
    }


def _keeps_most(ends: Sequence[float]) -> bool:
    """Whether no step down is more than half of the way up before it."""
    best = ends[0]
    for end in ends[1:]:
        if best - end > (best - ends[0]) / 2:
            return False
        best = max(best, end)
    return True


def create_apollo_weave_trainer(
    total_episodes: int = 10_000,
    coherence_nodes: int = 20,
    safety_nodes: int = 20,
    creativity_nodes: int = 60,
    *,
    rounds_per_phase: int = 2,
    client: LoomOSClient | None = None,
    name: str = "apollo",
    **settings: Any,
) -> ApolloTrainer:
    """A trainer of one policy in the environment `language`, by three groups of nodes.

    Args:
        total_episodes: of all groups together; one counts as many steps as it may have.
        coherence_nodes: copies of the environment that are played for coherence.
        safety_nodes: likewise for safety.
        creativity_nodes: likewise for creativity.
        rounds_per_phase: rounds of each of the four phases.
        client: an open client. Default: one of its own, from the settings.
        name: of the campaign.
        settings: fields of `WeaveConfig`.

    Raises:
        InvalidInput: a number is below 1, or a setting is out of range.
    """
    nodes = dict(zip(OBJECTIVES, (coherence_nodes, safety_nodes, creativity_nodes), strict=True))
    for objective, count in nodes.items():
        if count < 1:
            raise InvalidInput(f"{objective.value}_nodes is {count}; at least 1")
    if total_episodes < 1 or rounds_per_phase < 1:
        raise InvalidInput("total_episodes and rounds_per_phase are at least 1")
    rounds = {
        objective: sum(place < count for _, count in PHASES) * rounds_per_phase
        for place, objective in enumerate(OBJECTIVES)
    }
    plays = sum(nodes[objective] * rounds[objective] for objective in OBJECTIVES)
    steps = max(1, total_episodes * EnvironmentConfig().max_steps // plays)
    members = [
        {
            "name": objective.value,
            "environment": "language",
            "copies": nodes[objective],
            "threads": {o: OWN_WEIGHT if o == objective else OTHERS_WEIGHT for o in OBJECTIVES},
        }
        for objective in OBJECTIVES
    ]
    phases = [
        {
            "name": phase,
            "rounds": rounds_per_phase,
            "weights": {objective.value: 1.0 for objective in OBJECTIVES[:count]},
            "adapts": phase == "balanced",
        }
        for phase, count in PHASES
    ]
    spec = {
        "algorithm": "weave",
        "weave": {**round_of(steps, copies=1, longest=STEPS_PER_UPDATE), **settings},
        "members": members,
        "phases": phases,
        "parallelism": len(members),
    }
    return ApolloTrainer(campaign_document(name, spec), client)
