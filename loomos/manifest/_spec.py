"""What a person may write in a manifest, field by field.

The models are strict (a `false` is no zero) and closed (an unknown key is an error). They are
part of every job's history, so they change by addition only.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loomos.limits import WRITABLE, Coefficient, PlannedMoment, Span, Steps, Timeout, Words
from loomos.manifest._delivery import RolloutPlan, Verification
from loomos.manifest._document_model import Document, Metadata, WholeDocument
from loomos.manifest._learning import (
    Completions,
    DPOConfig,
    EnvironmentChoice,
    EnvironmentType,
    GRPOConfig,
    LanguagePPOConfig,
    PPOConfig,
    RewardFunction,
    WeaveConfig,
)
from loomos.manifest._model import Data, FineTuning, Model
from loomos.manifest._resources import Resources


class Strategy(Document):
    """How the ranks share the work."""

    type: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` replicates the model, `fsdp2` shards parameters, gradients and optimizer state."""


class EarlyStopping(Document):
    """Stop when the validation loss has stopped falling."""

    metric: Literal["validation_loss"] = "validation_loss"
    """Metric to watch; lower is better."""
    patience: Steps = 5
    """Evaluations without improvement before the run ends."""
    min_delta: Coefficient = 0.0
    """Smallest fall that counts as improvement."""


class Retries(Document):
    """How often a failed attempt is made again."""

    max_attempts: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Failures in a row without a new checkpoint before the run fails. Lost nodes count too."""
    backoff: Span = timedelta(seconds=1)
    """Wait before the second failure's attempt; doubles up to a minute. The first is at once."""


class Runtime(Document):
    """Limits in time, and what happens on the way."""

    max_duration: Timeout | None = None
    """Time with nodes after which the run checkpoints and ends as failed."""
    estimated_duration: Span | None = None
    """How long it should take with nodes; with it a run may fill gaps that others wait around.
    Default: `max_duration`."""
    deadline: PlannedMoment | None = None
    """When it must be done, such as 2027-01-31T18:00:00Z. Within a priority the earliest goes
    first; a submission that cannot meet its own is refused. Needs an estimated_duration."""
    preemptible: bool = True
    """Whether runs of higher priority may take its nodes; it checkpoints, and goes on later."""
    checkpoint_interval: Span = timedelta(minutes=10)
    """Time between checkpoints."""
    checkpoint_steps: Steps | None = None
    """Steps between checkpoints; whichever of the two comes first."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints to keep; the best by validation loss is kept besides."""
    early_stopping: EarlyStopping | None = None
    """Stop early; needs validation data."""
    retries: Retries = Retries()
    """What failures may cost."""
    stop_grace: Span = timedelta(seconds=30)
    """Time that ranks get for a last checkpoint when stopped."""

    def faults(self) -> Iterator[str]:
        """A deadline needs an estimate."""
        if self.deadline is not None and self.estimate is None:
            yield "deadline needs estimated_duration or max_duration; add one"

    @property
    def estimate(self) -> timedelta | None:
        """Time with nodes that is planned for."""
        return self.estimated_duration or self.max_duration


class Dependency(Document):
    """A job that must have ended before this one asks for nodes."""

    job: Words
    """Its id."""
    on_failure: Literal["fail", "run"] = "fail"
    """If it fails or is cancelled: fail too, or run all the same."""

    @model_validator(mode="before")
    @classmethod
    def _from_id(cls, value: Any) -> Any:
        return {"job": value} if isinstance(value, str) else value


class TrainingSpec(Document):
    """What a `TrainingJob` does."""

    algorithm: Literal["sft", "dpo", "grpo", "ppo", "weave", "noop"] = "sft"
    """`sft` is supervised fine-tuning of a causal language model, `dpo` fits it to preferences,
    `grpo` to the rewards of an environment; `ppo` has a small network learn to act in one, or, with
    `spec.model`, a language model; `weave` a mixture of small ones that explores; `noop` does
    nothing (a probe)."""
    priority: Annotated[int, Field(ge=1, le=5)] = 3
    """1 is served first, 5 last; Temporal's priority key."""
    model: Model | None = None
    """What to train."""
    data: Data | None = None
    """What to train on."""
    environment: EnvironmentChoice | None = None
    """Where a policy learns to act."""
    rewards: Annotated[list[RewardFunction], Field(max_length=16)] = []
    """For `grpo` and `ppo` of a language model, instead of an environment: functions that judge
    the replies to the prompts of `spec.data`."""
    policy: Annotated[str, Field(max_length=200, pattern=r"^model:.+"), WRITABLE] | None = None
    """For `ppo` and `weave`, the published policy that learning starts from, as
    `model:NAME@VERSION`. Default: a new one."""
    ppo: PPOConfig = PPOConfig()
    """How, by `ppo`."""
    weave: WeaveConfig = WeaveConfig()
    """How, by `weave`."""
    dpo: DPOConfig = DPOConfig()
    """How preferences are learned, by `dpo`."""
    grpo: GRPOConfig = GRPOConfig()
    """How rewards are learned, by `grpo`."""
    language_ppo: LanguagePPOConfig = LanguagePPOConfig()
    """How rewards are learned, by `ppo` of a language model."""
    resources: Resources = Resources()
    """What to train with."""
    depends_on: Annotated[list[Dependency], Field(max_length=64)] = []
    """Jobs that must have ended first, by id or as `{job, on_failure}`."""
    strategy: Strategy = Strategy()
    """How ranks share the work."""
    runtime: Runtime = Runtime()
    """Limits and checkpoints."""
    verify: Verification | None = None
    """What Prism asks of the published version."""
    rollout: RolloutPlan | None = None
    """Where the published version is put on trial, if it is verified."""

    def faults(self) -> Iterator[str]:
        """The algorithm has what it needs, and nothing that it does not know."""
        if self.policy is not None and not self.trains_policy:
            yield f"algorithm {self.algorithm} trains no policy here; remove spec.policy"
        if self.rewards and self.completions is None:
            yield "rewards are for grpo, and for ppo of a language model; remove spec.rewards"
        if self.algorithm in ("sft", "dpo"):
            yield from self._data_faults()
            yield from self._fine_tuning_faults()
        elif self.completions is not None:
            yield from self._reward_faults()
            yield from self._fine_tuning_faults()
        elif self.trains_policy:
            yield from self._policy_faults()

    def _data_faults(self) -> Iterator[str]:
        if self.environment is not None:
            yield f"algorithm {self.algorithm} acts in no environment; remove spec.environment"
        if self.data is None:
            yield f"algorithm {self.algorithm} needs spec.data; add it"
            return
        yield from self._early_stopping_faults(self.data)
        if self.algorithm == "dpo" and self.data.format not in ("auto", "preference"):
            yield "algorithm dpo reads preferences; set data.format: preference"
        if self.algorithm == "sft" and self.data.format == "preference":
            yield "algorithm sft learns no preferences; set algorithm: dpo"
        if self.algorithm == "sft" and self.data.format == "prompt":
            yield "algorithm sft needs what to say to a prompt; set another data.format"

    def _early_stopping_faults(self, data: Data) -> Iterator[str]:
        validates = data.validation_dataset is not None or data.validation_split > 0
        if self.runtime.early_stopping and not validates:
            yield "runtime.early_stopping needs data.validation_dataset or data.validation_split"

    def _reward_faults(self) -> Iterator[str]:
        """A language model, and an environment that it talks with."""
        name = self.algorithm
        if self.rewards:
            yield from self._prompt_faults()
        elif self.environment is None:
            yield (
                f"algorithm {name} needs spec.environment, or spec.data with prompts and "
                "spec.rewards; add one"
            )
        else:
            if self.environment.name not in set(EnvironmentType):
                yield (
                    "environment.name: language models talk with "
                    f"{', '.join(EnvironmentType)}; use one of them"
                )
            if self.data is not None:
                yield (
                    f"algorithm {name} learns from an environment; remove spec.data, or name "
                    "spec.rewards instead of spec.environment"
                )
        if name == "ppo" and self.ppo != PPOConfig():
            yield "spec.ppo is for small networks; write spec.language_ppo"
        if self.strategy.type != "ddp":
            yield f"{name} generates under strategy ddp only; set strategy.type: ddp"
        if self.model is None:
            return
        tuning = self.model.fine_tuning_config
        if not self.rewards and (tuning.max_steps is None or tuning.num_epochs is not None):
            yield "an environment has no epochs; set model.fine_tuning_config.max_steps only"
        if self._splits_groups:
            yield (
                f"model.fine_tuning_config.batch_size ({tuning.batch_size}) counts completions and "
                f"must be a multiple of grpo.group_size ({self.grpo.group_size})"
            )

    def _prompt_faults(self) -> Iterator[str]:
        """Prompts of a dataset, judged by functions."""
        if self.environment is not None:
            yield "rewards judge the prompts of spec.data; remove spec.environment or spec.rewards"
        if self.data is None:
            yield "rewards need prompts; add spec.data with records that hold `prompt`"
        else:
            if self.data.format not in ("auto", "prompt"):
                yield "rewards judge replies to prompts; set data.format: prompt"
            yield from self._early_stopping_faults(self.data)
        if self.model is None or self.completions is None:
            return
        longest = self.model.fine_tuning_config.sequence_length
        if self.completions.max_completion_tokens >= longest:
            yield (
                f"max_completion_tokens ({self.completions.max_completion_tokens}) leaves no room "
                f"for a prompt in model.fine_tuning_config.sequence_length ({longest})"
            )

    def _fine_tuning_faults(self) -> Iterator[str]:
        if self.rollout is not None and self.rollout.require_verification and not self.verify:
            yield (
                "rollout needs a verification; add spec.verify, or set "
                "rollout.require_verification: false"
            )
        if self.model is None:
            yield f"algorithm {self.algorithm} needs spec.model; add it"
            return
        if (self.verify or self.rollout) and self.model.unservable:
            yield f"remove spec.verify and spec.rollout: {self.model.unservable}"
        if self.algorithm != "sft" and self.model.tokenizer.startswith("bpe:"):
            yield "model.tokenizer: only sft can train a tokenizer; use another"
        tuning = self.model.fine_tuning_config
        has_epochs = self.completions is None or bool(self.rewards)
        if has_epochs and tuning.num_epochs is None and tuning.max_steps is None:
            yield "the run has no end; set model.fine_tuning_config.max_steps or num_epochs"
        if not self._splits_groups:
            yield from self._rank_faults("model.fine_tuning_config.batch_size")
        if tuning.method == "qlora" and self.strategy.type == "fsdp2":
            yield "qlora runs under strategy ddp only; set strategy.type: ddp"

    def _policy_faults(self) -> Iterator[str]:
        """A small network that acts: no language model, no documents, nobody to ask it."""
        if self.environment is None:
            yield f"algorithm {self.algorithm} needs spec.environment; add it"
        for name in ("model", "data", "verify", "rollout"):
            if getattr(self, name) is not None:
                yield f"algorithm {self.algorithm} trains a policy network; remove spec.{name}"
        if self.strategy.type != "ddp":
            yield "a policy network is small; set strategy.type: ddp"
        yield from self._rank_faults(f"{self.algorithm}.n_environments")
        many = self.resources.node_range.max * self.resources.ranks > 1
        if many and (self.acting.normalize_observations or self.acting.normalize_rewards):
            yield (
                f"{self.algorithm}.normalize_observations and normalize_rewards need a single "
                "rank; set resources.nodes: 1 and one GPU"
            )

    def _rank_faults(self, field: str) -> Iterator[str]:
        nodes = self.resources.node_range
        worlds = [n * self.resources.ranks for n in range(nodes.min, nodes.max + 1)]
        if not any(self.divisible_by_ranks % world == 0 for world in worlds):
            yield (
                f"{field} ({self.divisible_by_ranks}) must be a multiple of the number of ranks "
                f"({worlds[0]})"
            )

    @property
    def _splits_groups(self) -> bool:
        """Whether a batch of GRPO ends within a group of completions."""
        if self.algorithm != "grpo" or self.model is None:
            return False
        return self.model.fine_tuning_config.batch_size % self.grpo.group_size != 0

    @property
    def trains_policy(self) -> bool:
        """Whether a small network learns to act."""
        return self.algorithm == "weave" or (self.algorithm == "ppo" and self.model is None)

    @property
    def completions(self) -> Completions | None:
        """How a language model's replies are written, if it learns from an environment."""
        if self.algorithm == "grpo":
            return self.grpo
        return self.language_ppo if self.algorithm == "ppo" and self.model is not None else None

    @property
    def acting(self) -> PPOConfig:
        """How a policy learns to act."""
        return self.weave if self.algorithm == "weave" else self.ppo

    @property
    def divisible_by_ranks(self) -> int:
        """What the ranks share out evenly; 0 if nothing."""
        if self.trains_policy:
            return self.acting.n_environments
        if self.model is None:
            return 0
        size = self.model.fine_tuning_config.batch_size
        return size // self.grpo.group_size if self.algorithm == "grpo" else size

    @property
    def work_per_step(self) -> int:
        """Tokens, or steps in environments, of one step of the run."""
        if self.trains_policy:
            return self.acting.batch_size
        tuning = self.model.fine_tuning_config if self.model else FineTuning(max_steps=1)
        if self.completions is not None:
            return tuning.batch_size * self.completions.max_completion_tokens
        return tuning.batch_size * tuning.sequence_length * (2 if self.algorithm == "dpo" else 1)

    def model_name(self, job: str) -> str:
        """Name under which the versions of a job of this name are published."""
        return (self.model.output_name if self.model else None) or job


class TrainingJob(WholeDocument):
    """The document: `kind: TrainingJob`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["TrainingJob"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the job is."""
    spec: TrainingSpec
    """What the job does."""
