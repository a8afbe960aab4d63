"""Campaigns for programs: many environments at once, durable, on as many nodes as there are.

Everything here makes an `RLCampaign` document, has the gateway run it, and waits. A program that
dies meanwhile loses nothing: the campaign goes on, and `loomos campaigns status` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from loomos.client.http import LoomOSClient, opened
from loomos.errors import InvalidInput, LoomOSError
from loomos.jobs.campaigns import CampaignStatus, PolicyState, RoundReport
from loomos.jobs.states import JobState
from loomos.manifest import (
    Document,
    EnvironmentType,
    PPOConfig,
    RLCampaign,
    WeaveConfig,
    validate_as,
)
from loomos.rl.environments.config import EnvironmentConfig

COPIES = 8
"""Copies of an environment that are played at a time, unless settings say otherwise."""
LONGEST_BATCH = 1024
"""Most steps between updates."""

OnRound = Callable[[RoundReport], None]


class CampaignFailed(LoomOSError):
    """A campaign ended without its policies."""


class SystemConfig(Document):
    """How an integrated system trains."""

    episodes_per_environment: Annotated[int, Field(ge=1)] = 1000
    """Episodes in each environment; one counts as many steps as it may have."""
    update_frequency: Annotated[int, Field(ge=1)] = 100
    """Of these, in a round; then policies are averaged and appraised."""
    curriculum_learning: bool = False
    """Whether environments get harder as they are solved."""
    evaluate_episodes: Annotated[int, Field(ge=1)] = 64
    """Episodes of an appraisal."""
    max_steps: Annotated[int, Field(ge=1)] = EnvironmentConfig().max_steps
    """Steps that an episode may have."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the algorithm's settings, such as `learning_rate`."""
    name: str = "integrated"
    """Of the campaign."""


class EnvironmentResult(dict[str, float]):
    """What came of an environment.

    `average_reward` and `success_rate` of the policy in the last appraisal, and `training_time`, in
    seconds, of all its trainings. As text it is the average reward.
    """

    def __format__(self, spec: str) -> str:
        return format(self["average_reward"], spec)


class IntegratedRLSystem:
    """Policies for several environments, trained as one campaign."""

    def __init__(self, campaign: RLCampaign, client: LoomOSClient | None = None) -> None:
        """Make one.

        Args:
            campaign: what `train` runs.
            client: an open client. Default: one of its own, from the settings.
        """
        self.campaign = campaign
        self.status: CampaignStatus | None = None
        """How the campaign ended."""
        self._client = client

    async def train(self, on_round: OnRound | None = None) -> dict[str, EnvironmentResult]:
        """Train to the end; what came of each environment.

        Args:
            on_round: called with each round as it ends.

        Raises:
            CampaignFailed: it failed or was cancelled.
        """
        self.status = await run_campaign(self.campaign, self._client, on_round)
        return {label: _result(policy) for label, policy in self.status.policies.items()}


def _result(policy: PolicyState) -> EnvironmentResult:
    return EnvironmentResult(
        average_reward=policy.appraisal.mean_return,
        success_rate=policy.appraisal.success_rate or 0.0,
        training_time=policy.training_s,
    )


async def create_integrated_rl_system(
    algorithm: Literal["ppo", "weave"] = "weave",
    environments: Iterable[str] = ("math",),
    distributed_nodes: int = 1,
    training_config: Mapping[str, Any] | None = None,
    client: LoomOSClient | None = None,
) -> IntegratedRLSystem:
    """A system that trains a policy for each environment; nothing runs yet.

    Args:
        algorithm: how policies learn.
        environments: families of LoomOS, such as `math`.
        distributed_nodes: trainings at a time. With more nodes than environments, several train
            each policy, share its copies of the environment and so its episodes, and are averaged
            after each round.
        training_config: fields of `SystemConfig`.
        client: an open client. Default: one of its own, from the settings.

    Raises:
        InvalidInput: there is no such environment, setting or number of nodes.
    """
    config = validate_as(SystemConfig, dict(training_config or {}), "training_config")
    names = [known_family(name) for name in environments]
    if not names or distributed_nodes < 1:
        raise InvalidInput("name at least one environment and one node")
    episodes = min(config.update_frequency, config.episodes_per_environment)
    settings = validate_as(
        WeaveConfig if algorithm == "weave" else PPOConfig,
        {**round_of(episodes * config.max_steps), **config.settings},
        "training_config.settings",
    )
    members = [
        member
        for place, name in enumerate(names)
        for member in _members(
            {"name": name, "config": {"max_steps": config.max_steps}},
            nodes=len(range(place, max(distributed_nodes, len(names)), len(names))),
            copies=settings.n_environments,
        )
    ]
    phase = {
        "name": "train",
        "rounds": -(-config.episodes_per_environment // episodes),
        "weights": {member["name"]: float(member["copies"]) for member in members},
    }
    spec: dict[str, Any] = {
        "algorithm": algorithm,
        algorithm: settings.model_dump(exclude_unset=True),
        "members": members,
        "phases": [phase],
        "parallelism": distributed_nodes,
        "evaluate_episodes": config.evaluate_episodes,
    }
    if config.curriculum_learning:
        spec["curriculum"] = {"start": "beginner"}
    return IntegratedRLSystem(campaign_document(config.name, spec), client)


def known_family(name: str) -> str:
    """The name of a family.

    Raises:
        InvalidInput: there is none of this name.
    """
    known = [family.value for family in EnvironmentType]
    if name not in known:
        raise InvalidInput(f"environments: no {name!r}; there are {', '.join(known)}")
    return str(EnvironmentType(name).value)


def _members(environment: dict[str, Any], nodes: int, copies: int) -> list[dict[str, Any]]:
    """One for each node, which share the copies of an environment; each plays at least one."""
    name = environment["name"]
    some, more = divmod(copies, nodes)
    return [
        {
            "name": name if nodes == 1 else f"{name}-{number + 1}",
            "environment": environment,
            "copies": max(1, some + (number < more)),
        }
        for number in range(nodes)
    ]


def round_of(steps: int, copies: int = COPIES, longest: int = LONGEST_BATCH) -> dict[str, int]:
    """Settings of a round of so many steps: batches of at most `longest` that copies share."""
    each = max(1, min(steps, longest) // copies)
    batch = each * copies
    return {
        "total_timesteps": max(batch, steps),
        "n_environments": copies,
        "batch_size": batch,
        "minibatch_size": 256,
        "evaluate_episodes": 0,
    }


def campaign_document(name: str, spec: Mapping[str, Any]) -> RLCampaign:
    """A document of this spec.

    Raises:
        InvalidInput: something of it is wrong; names the field.
    """
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "RLCampaign",
        "metadata": {"name": name},
        "spec": dict(spec),
    }
    return validate_as(RLCampaign, document, "campaign")


async def run_campaign(
    campaign: RLCampaign, client: LoomOSClient | None = None, on_round: OnRound | None = None
) -> CampaignStatus:
    """Start a campaign and wait for its end.

    Args:
        campaign: which.
        client: an open client. Default: one of its own, from the settings.
        on_round: called with each round as it ends; round 0 is before any training.

    Raises:
        CampaignFailed: it failed or was cancelled.
    """
    async with opened(client) as gateway:
        found = started = await gateway.campaigns.start(campaign)
        told = 0
        async for found in gateway.campaigns.follow(started.campaign_id):
            if on_round is not None:
                for report in found.rounds[told:]:
                    on_round(report)
            told = len(found.rounds)
    if found.state != JobState.COMPLETED:
        raise CampaignFailed(f"campaign {found.campaign_id} {found.state}: {found.message}")
    return found
