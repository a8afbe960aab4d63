"""What a person may write of a campaign: policies that several trainings make together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from loomos.limits import Coefficient, Real
from loomos.manifest._document import field_errors
from loomos.manifest._document_model import Document, Metadata, Name, WholeDocument
from loomos.manifest._learning import (
    Difficulty,
    EnvironmentChoice,
    EnvironmentType,
    PPOConfig,
    RewardThread,
    WeaveConfig,
)
from loomos.manifest._resources import Resources
from loomos.manifest._spec import Runtime, TrainingSpec

MOST_TRAININGS = 2000
"""Of a whole campaign."""


class CampaignMember(Document):
    """One that trains in every round: an environment, and what counts in it.

    Members with the same environment train the same policy, each from where the last round left
    it; after the round their parameters are averaged.
    """

    name: Name
    """What it is called in the campaign."""
    environment: EnvironmentChoice
    """Where it acts."""
    copies: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Copies of the environment that it plays side by side; each plays as many steps as the
    settings say, so more copies are more experience. Default: as the settings say."""
    threads: Annotated[
        dict[Annotated[RewardThread, Field(strict=False)], Coefficient], Field(max_length=8)
    ] = {}
    """For `weave`, what it is rewarded for, with the weight of each. Default: as the settings."""


class CampaignPhase(Document):
    """Rounds that follow each other with the same members."""

    name: Name = "train"
    """What it is called."""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    """Most rounds."""
    weights: Annotated[dict[Name, Coefficient], Field(max_length=200)] = {}
    """Members that train, with the weight of each in the average; the others pause. Default: those
    of the phase before, as they last were; in the first phase all, equal."""
    adapts: bool = False
    """Whether weights move after each round to members whose score is furthest below its best."""
    until: Real | None = None
    """The phase ends sooner, once every member that trains has at least this score."""


class CampaignCurriculum(Document):
    """Environments of a family get harder as their policy solves them."""

    start: Difficulty = "beginner"
    """Where they start."""
    success_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of an evaluation's episodes that must be solved for the next difficulty."""


class CampaignSpec(Document):
    """What an `RLCampaign` does."""

    algorithm: Literal["ppo", "weave"] = "weave"
    """How members learn."""
    ppo: PPOConfig = PPOConfig()
    """How, by `ppo`; `total_timesteps` are those of one member in one round."""
    weave: WeaveConfig = WeaveConfig()
    """How, by `weave`; likewise."""
    members: Annotated[list[CampaignMember], Field(min_length=1, max_length=200)]
    """Who trains."""
    phases: Annotated[list[CampaignPhase], Field(min_length=1, max_length=50)] = [CampaignPhase()]
    """In what order."""
    parallelism: Annotated[int, Field(ge=1, le=1000)] = 4
    """Trainings at a time, each with nodes of its own."""
    curriculum: CampaignCurriculum | None = None
    """How environments get harder. Default: they stay as they are."""
    evaluate_episodes: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Episodes, always the same, that a policy plays after each round."""
    priority: Annotated[int, Field(ge=1, le=5)] = 3
    """Of the trainings; 1 is served first."""
    resources: Resources = Resources()
    """Of one training."""
    runtime: Runtime = Runtime()
    """Limits and checkpoints of one training."""

    def faults(self) -> Iterator[str]:
        """Members are told apart and make sense together, and each can train."""
        yield from self._member_faults()
        yield from self._policy_faults()

    def _member_faults(self) -> Iterator[str]:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            yield "members has a name twice"
        for number, phase in enumerate(self.phases):
            for name in sorted(phase.weights.keys() - set(names)):
                yield f"phases.{number}.weights.{name} is no member; members has it not"
            if phase.weights and not sum(phase.weights.values()):
                yield f"phases.{number}.weights are all zero; raise one"
        if sum(phase.rounds for phase in self.phases) * len(names) > MOST_TRAININGS:
            yield (
                f"rounds times members is more than {MOST_TRAININGS} trainings; make rounds longer"
            )
        if self._ppo_has_threads:
            yield "threads are for algorithm weave; remove them from members"

    def _policy_faults(self) -> Iterator[str]:
        for label, members in self.policies.items():
            first = members[0]
            if any(list(other.threads) != list(first.threads) for other in members):
                yield (
                    f"members of {label} have different threads; name the same ones in the same "
                    "order, with weight 0 where one does not count"
                )
            if self.settings.normalize_observations and len(members) > 1:
                yield (
                    "normalize_observations: members that share an environment would each scale "
                    "in their own way; set it to false"
                )
            if self.curriculum is not None and first.environment.name not in set(EnvironmentType):
                yield (
                    f"curriculum: {first.environment.name} has no difficulty; it is for "
                    f"{', '.join(EnvironmentType)}"
                )
        if not self._ppo_has_threads:
            yield from self._training_faults()

    def _training_faults(self) -> Iterator[str]:
        """What is wrong with the trainings of members."""
        for member in self.members:
            try:
                self.training(member, policy=None, environment=member.environment, seed=0)
            except ValidationError as error:
                for fault in field_errors(error.errors(include_url=False), TrainingSpec):
                    yield fault.message if fault.path == "$" else str(fault)

    @property
    def _ppo_has_threads(self) -> bool:
        """Whether members have threads, of which `ppo` knows nothing."""
        return self.algorithm == "ppo" and any(member.threads for member in self.members)

    @property
    def settings(self) -> PPOConfig:
        """How members learn."""
        return self.weave if self.algorithm == "weave" else self.ppo

    @property
    def policies(self) -> dict[str, list[CampaignMember]]:
        """The members of each policy, by a name made of its environment's."""
        found: dict[str, list[CampaignMember]] = {}
        for member in self.members:
            for members in found.values():
                if members[0].environment == member.environment:
                    members.append(member)
                    break
            else:
                label = first = _label(member.environment.name)
                number = 1
                while label in found:
                    number += 1
                    label = f"{first}-{number}"
                found[label] = [member]
        return found

    def training(
        self,
        member: CampaignMember,
        *,
        policy: str | None,
        environment: EnvironmentChoice,
        seed: int,
    ) -> TrainingSpec:
        """A member's training in a round.

        Args:
            member: who.
            policy: where it starts, as `model:NAME@VERSION`.
            environment: where it acts, at the present difficulty.
            seed: added to that of the settings.

        Raises:
            pydantic.ValidationError: it makes no sense.
        """
        settings = self.settings.model_dump(exclude_unset=True)
        settings["seed"] = (self.settings.seed + seed) % 2**31
        if member.copies is not None:
            settings["n_environments"] = member.copies
            settings["batch_size"] = member.copies * self.settings.steps_per_update
            each = self.settings.total_timesteps / self.settings.n_environments
            settings["total_timesteps"] = max(1, round(each * member.copies))
        if member.threads:
            settings["reward_threads"] = list(member.threads)
            settings["thread_weights"] = list(member.threads.values())
        return TrainingSpec.model_validate(
            {
                "algorithm": self.algorithm,
                "priority": self.priority,
                "environment": environment,
                "policy": policy,
                self.algorithm: settings,
                "resources": self.resources,
                "runtime": self.runtime,
            }
        )


def _label(environment: str) -> str:
    """A name for the policy of an environment, such as `deepsea-v0` of `loomos/DeepSea-v0`."""
    last = environment.rpartition("/")[2].rpartition(":")[2].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-") or "policy"


class RLCampaign(WholeDocument):
    """The document: `kind: RLCampaign`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["RLCampaign"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the campaign is."""
    spec: CampaignSpec
    """What it does."""

    def faults(self) -> Iterator[str]:
        """Policies can be published under the names of the campaign and its members."""
        parts = [*(member.name for member in self.spec.members), *self.spec.policies]
        longest = max(map(len, parts))
        if len(self.metadata.name) + 1 + longest > 63:
            yield (
                "metadata.name and a member's name together have more than 62 characters; policies "
                "are published under both, so shorten one"
            )
