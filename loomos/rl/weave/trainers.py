"""WEAVE in several environments, each with threads of its own, as one campaign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loomos.client.http import LoomOSClient
from loomos.errors import InvalidInput
from loomos.manifest import RewardThread, RLCampaign, WeaveConfig
from loomos.rl.environments.config import EnvironmentConfig
from loomos.rl.integration import (
    OnRound,
    campaign_document,
    known_family,
    round_of,
    run_campaign,
)

ROUNDS = 4
"""Of a training, unless it has fewer episodes."""


class WeaveGymTrainer:
    """Trains a policy for each environment, which it rewards by the threads given for it."""

    def __init__(
        self,
        environment_specializations: Mapping[str, Iterable[RewardThread | str]],
        client: LoomOSClient | None = None,
        **settings: Any,
    ) -> None:
        """Make one; see `create_weave_gym_trainer`."""
        self.specializations = {
            known_family(name): [RewardThread(thread) for thread in threads]
            for name, threads in environment_specializations.items()
        }
        self.algorithms: dict[str, WeaveConfig] = {}
        """Settings by environment, once they are initialized."""
        self._settings, self._client = settings, client

    def initialize_weave_algorithms(self) -> dict[str, WeaveConfig]:
        """Make the settings of every environment's policy.

        Raises:
            InvalidInput: an environment has no thread.
            pydantic.ValidationError: a setting is unknown or out of range.
        """
        for name, threads in self.specializations.items():
            if not threads:
                raise InvalidInput(f"environment_specializations: {name} has no thread; name one")
            self.algorithms[name] = WeaveConfig(reward_threads=threads, **self._settings)
        return self.algorithms

    def campaign(
        self, environments: Iterable[str], num_episodes_per_env: int, name: str = "weave-gym"
    ) -> RLCampaign:
        """The document of a training.

        Raises:
            InvalidInput: an environment was not initialized, or there are no episodes.
        """
        chosen = [known_family(environment) for environment in environments]
        if missing := [e for e in chosen if e not in self.algorithms]:
            raise InvalidInput(
                f"no algorithm for {', '.join(missing)}; name it in environment_specializations "
                "and call initialize_weave_algorithms"
            )
        if num_episodes_per_env < 1:
            raise InvalidInput(f"num_episodes_per_env is {num_episodes_per_env}; at least 1")
        rounds = min(ROUNDS, num_episodes_per_env)
        steps = num_episodes_per_env * EnvironmentConfig().max_steps // rounds
        members = [
            {
                "name": environment,
                "environment": environment,
                "threads": dict.fromkeys(self.algorithms[environment].reward_threads, 1.0),
            }
            for environment in chosen
        ]
        return campaign_document(
            name,
            {
                "algorithm": "weave",
                "weave": {**round_of(steps), **self._settings},
                "members": members,
                "phases": [{"name": "train", "rounds": rounds}],
                "parallelism": max(1, len(chosen)),
            },
        )

    async def run_multi_environment_training(
        self,
        num_episodes_per_env: int = 100,
        environments: Iterable[str] | None = None,
        on_round: OnRound | None = None,
    ) -> dict[str, Any]:
        """Train, and wait for the end.

        Args:
            num_episodes_per_env: episodes in each; one counts as many steps as it may have.
            environments: which. Default: all that were initialized.
            on_round: called with each round as it ends.

        Returns:
            `final_performances` (by environment the mean return over all its threads),
            `performance_history` (likewise after each round, from before the first),
            `thread_returns`, `policies` (`NAME@VERSION`) and `campaign_id`.

        Raises:
            InvalidInput: an environment was not initialized, or there are no episodes.
            CampaignFailed: it failed or was cancelled.
        """
        chosen = list(environments or self.algorithms)
        campaign = self.campaign(chosen, num_episodes_per_env)
        found = await run_campaign(campaign, self._client, on_round)
        return {
            "campaign_id": found.campaign_id,
            "final_performances": {
                label: policy.appraisal.mean_return for label, policy in found.policies.items()
            },
            "performance_history": [
                {label: a.mean_return for label, a in report.appraisals.items()}
                for report in found.rounds
            ],
            "thread_returns": {
                label: {thread.value: value for thread, value in policy.appraisal.threads.items()}
                for label, policy in found.policies.items()
            },
            "policies": {label: policy.version for label, policy in found.policies.items()},
        }


def create_weave_gym_trainer(
    environment_specializations: Mapping[str, Iterable[RewardThread | str]],
    client: LoomOSClient | None = None,
    **settings: Any,
) -> WeaveGymTrainer:
    """A trainer of one policy for each environment.

    Args:
        environment_specializations: what is rewarded in each, by family.
        client: an open client. Default: one of its own, from the settings.
        settings: fields of `WeaveConfig`, the same for all.

    Raises:
        InvalidInput: there is no such environment.
        ValueError: there is no such thread.
    """
    return WeaveGymTrainer(environment_specializations, client, **settings)
