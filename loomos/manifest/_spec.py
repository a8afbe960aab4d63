"""What a person may write in a manifest, field by field.

The models are strict (a `false` is no zero) and closed (an unknown key is an error). They are
part of every job's history, so they change by addition only.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from loomos.manifest._delivery import RolloutPlan, Verification
from loomos.manifest._document_model import Document, Name
from loomos.manifest._learning import (
    DPOConfig,
    EnvironmentChoice,
    GRPOConfig,
    PPOConfig,
    WeaveConfig,
)
from loomos.manifest._resources import Resources
from loomos.quantities import Duration, Moment

LabelKey = Annotated[
    str, Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")
]
LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")
]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


def _is_dataset_uri(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if separator and (scheme not in ("s3", "file") or not rest):
        raise ValueError("use a local path, file:///path or s3://bucket/prefix")
    if scheme == "s3" and "/" not in rest.strip("/"):
        raise ValueError("name a prefix inside the bucket, as in s3://bucket/prefix")
    return uri


DataUri = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_is_dataset_uri)]


class Metadata(Document):
    """Who and what a job is."""

    name: Name
    """Name of the job; its id is this name and a random suffix."""
    labels: Labels = {}
    """Free key/value pairs to filter jobs by."""
    project: Name = "default"
    """The project that the job counts for; the fairness key in the queue."""


class LoRA(Document):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) as PEFT implements it."""

    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the update matrices."""
    alpha: Annotated[int, Field(ge=1)] = 16
    """Scale; the update is multiplied by alpha/r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the low-rank path."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""


class FineTuning(Document):
    """The optimisation: how long, how fast, in which precision."""

    method: Literal["full", "lora", "qlora"] = "full"
    """Which weights train: all, low-rank adapters, or adapters over a 4-bit base."""
    lora: LoRA = LoRA()
    """Adapter settings for `lora` and `qlora`."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-5
    """Peak learning rate of AdamW."""
    num_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Passes over the training documents; give this or `max_steps`."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; where both are given the run ends at the earlier."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Sequences per optimizer step over all ranks. It fixes the data order, whatever the ranks."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Sequences per forward pass of a rank; gradients accumulate over the rest. Default: all."""
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    """Tokens per packed sequence."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    """Momentum coefficients of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the global gradient norm to this; null for no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 over fp32 master weights."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial weights, data order and dropout."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations. Default: a tenth of the run."""
    evaluate_sequences: Annotated[int, Field(ge=1)] = 64
    """Packed sequences in one evaluation, over all ranks."""


class Model(Document):
    """What to start from and what to call the result."""

    base_model: Annotated[str, Field(min_length=1, max_length=1024)]
    """A local folder, `s3://bucket/prefix`, a Hugging Face hub id, `model:NAME` for a published
    version, or `init:TYPE` for random weights of a transformers model type such as `init:llama`."""
    config: dict[str, Any] = {}
    """For `init:`, fields of the transformers config, such as `hidden_size`."""
    tokenizer: Annotated[
        str, Field(pattern=r"^(byte|bpe:[0-9]+|base|/.+|s3://.+|[\w.-]+/[\w.-]+)$")
    ] = "base"
    """`base` (that of the base model), `byte` (one token a byte, built in), `bpe:SIZE` (trained on
    the data), or a folder, S3 prefix or hub id."""
    output_name: Name | None = None
    """Name under which versions are published. Default: the job's name."""
    fine_tuning_config: FineTuning = FineTuning()
    """The optimisation."""

    @model_validator(mode="after")
    def _init_needs_a_tokenizer(self) -> Model:
        is_init = self.base_model.startswith("init:")
        if is_init and not self.base_model.removeprefix("init:"):
            raise ValueError("name a transformers model type after init:, as in init:llama")
        if is_init and self.tokenizer == "base":
            raise ValueError("an init: model has no tokenizer; set tokenizer: byte or bpe:1024")
        if self.config and not is_init:
            raise ValueError("config is only for init: models; remove it")
        return self


class Data(Document):
    """What to train and evaluate on."""

    training_dataset: DataUri
    """A file or folder of JSONL, text or Parquet: a path the workers can read, or s3://."""
    validation_dataset: DataUri | None = None
    """Likewise, for evaluation."""
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training documents held out for evaluation, chosen by hash."""
    format: Literal["auto", "text", "chat", "prompt_completion", "preference"] = "auto"
    """Shape of a record: `text`, `messages`, `prompt` and `completion` (loss on the latter), or,
    for `dpo`, `prompt`, `chosen` and `rejected`."""
    text_field: Annotated[str, Field(min_length=1)] = "text"
    """Field that holds the text in JSONL and Parquet records."""
    include: Annotated[list[str], Field(min_length=1)] | None = None
    """Globs of file names to take from a folder, such as `*.py`. Default: every known suffix."""
    exclude: list[str] = []
    """Globs of file names to leave out, such as `test/*`."""
    preprocessing: Literal["standard_tokenization"] = "standard_tokenization"
    """Tokenise, join with end-of-text, cut into `sequence_length` pieces."""


class Strategy(Document):
    """How the ranks share the work."""

    type: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` replicates the model, `fsdp2` shards parameters, gradients and optimizer state."""


class EarlyStopping(Document):
    """Stop when the validation loss has stopped falling."""

    metric: Literal["validation_loss"] = "validation_loss"
    """Metric to watch; lower is better."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Evaluations without improvement before the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest fall that counts as improvement."""


class Retries(Document):
    """How often a failed attempt is made again."""

    max_attempts: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Failures in a row without a new checkpoint before the run fails. Lost nodes count too."""
    backoff: Duration = timedelta(seconds=1)
    """Wait before the second failure's attempt; doubles up to a minute. The first is at once."""


class Runtime(Document):
    """Limits in time, and what happens on the way."""

    max_duration: Duration | None = None
    """Time with nodes after which the run checkpoints and ends as failed."""
    estimated_duration: Duration | None = None
    """How long it should take with nodes; with it a run may fill gaps that others wait around.
    Default: `max_duration`."""
    deadline: Moment | None = None
    """When it must be done, such as 2027-01-31T18:00:00Z. Within a priority the earliest goes
    first; a submission that cannot meet its own is refused. Needs an estimated_duration."""
    preemptible: bool = True
    """Whether runs of higher priority may take its nodes; it checkpoints, and goes on later."""
    checkpoint_interval: Duration = timedelta(minutes=10)
    """Time between checkpoints."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints; whichever of the two comes first."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints to keep; the best by validation loss is kept besides."""
    early_stopping: EarlyStopping | None = None
    """Stop early; needs validation data."""
    retries: Retries = Retries()
    """What failures may cost."""
    stop_grace: Duration = timedelta(seconds=30)
    """Time that ranks get for a last checkpoint when stopped."""

    @model_validator(mode="after")
    def _deadline_needs_an_estimate(self) -> Runtime:
        if self.deadline is not None and self.estimate is None:
            raise ValueError("deadline needs estimated_duration or max_duration; add one")
        return self

    @property
    def estimate(self) -> timedelta | None:
        """Time with nodes that is planned for."""
        return self.estimated_duration or self.max_duration


class Dependency(Document):
    """A job that must have ended before this one asks for nodes."""

    job: Annotated[str, Field(min_length=1, max_length=128)]
    """Its id."""
    on_failure: Literal["fail", "run"] = "fail"
    """If it fails or is cancelled: fail too, or run all the same."""

    @model_validator(mode="before")
    @classmethod
    def _from_id(cls, value: Any) -> Any:
        return {"job": value} if isinstance(value, str) else value


SINGLE_REPLY = ("math", "code", "language", "multimodal")
"""Environments that judge a language model's first reply."""


class TrainingSpec(Document):
    """What a `TrainingJob` does."""

    algorithm: Literal["sft", "dpo", "grpo", "ppo", "weave", "noop"] = "sft"
    """`sft` is supervised fine-tuning of a causal language model, `dpo` fits it to preferences,
    `grpo` to the rewards of an environment; `ppo` has a small network learn to act in one, `weave`
    a mixture of them that explores; `noop` does nothing (a probe)."""
    priority: Annotated[int, Field(ge=1, le=5)] = 3
    """1 is served first, 5 last; Temporal's priority key."""
    model: Model | None = None
    """What to train."""
    data: Data | None = None
    """What to train on."""
    environment: EnvironmentChoice | None = None
    """Where a policy learns to act."""
    ppo: PPOConfig = PPOConfig()
    """How, by `ppo`."""
    weave: WeaveConfig = WeaveConfig()
    """How, by `weave`."""
    dpo: DPOConfig = DPOConfig()
    """How preferences are learned, by `dpo`."""
    grpo: GRPOConfig = GRPOConfig()
    """How rewards are learned, by `grpo`."""
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

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainingSpec:
        if self.algorithm in ("sft", "dpo"):
            self._check_data()
            self._check_fine_tuning()
        elif self.algorithm == "grpo":
            self._check_rewards()
            self._check_fine_tuning()
        elif self.algorithm in ("ppo", "weave"):
            self._check_policy()
        return self

    def _check_data(self) -> None:
        if self.data is None:
            raise ValueError(f"algorithm {self.algorithm} needs spec.data; add it")
        if self.environment is not None:
            raise ValueError(
                f"algorithm {self.algorithm} acts in no environment; remove spec.environment"
            )
        validates = self.data.validation_dataset is not None or self.data.validation_split > 0
        if self.runtime.early_stopping and not validates:
            raise ValueError(
                "runtime.early_stopping needs data.validation_dataset or data.validation_split"
            )
        if self.algorithm == "dpo" and self.data.format not in ("auto", "preference"):
            raise ValueError("algorithm dpo reads preferences; set data.format: preference")
        if self.algorithm == "sft" and self.data.format == "preference":
            raise ValueError("algorithm sft learns no preferences; set algorithm: dpo")

    def _check_rewards(self) -> None:
        """A language model, and an environment that judges a single reply."""
        if self.environment is None:
            raise ValueError("algorithm grpo needs spec.environment; add it")
        if self.environment.name not in SINGLE_REPLY:
            raise ValueError(
                f"environment.name: grpo learns from a single reply; use one of "
                f"{', '.join(SINGLE_REPLY)}"
            )
        if self.data is not None:
            raise ValueError("algorithm grpo learns from an environment; remove spec.data")
        if self.strategy.type != "ddp":
            raise ValueError("grpo generates under strategy ddp only; set strategy.type: ddp")
        if self.model is None:
            return
        tuning = self.model.fine_tuning_config
        if tuning.max_steps is None or tuning.num_epochs is not None:
            raise ValueError(
                "an environment has no epochs; set model.fine_tuning_config.max_steps only"
            )
        if tuning.batch_size % self.grpo.group_size:
            raise ValueError(
                f"model.fine_tuning_config.batch_size ({tuning.batch_size}) counts completions and "
                f"must be a multiple of grpo.group_size ({self.grpo.group_size})"
            )

    def _check_fine_tuning(self) -> None:
        if self.rollout is not None and self.rollout.require_verification and not self.verify:
            raise ValueError(
                "rollout needs a verification; add spec.verify, or set "
                "rollout.require_verification: false"
            )
        if self.model is None:
            raise ValueError(f"algorithm {self.algorithm} needs spec.model; add it")
        if self.algorithm != "sft" and self.model.tokenizer.startswith("bpe:"):
            raise ValueError("model.tokenizer: only sft can train a tokenizer; use another")
        tuning = self.model.fine_tuning_config
        if tuning.num_epochs is None and tuning.max_steps is None:
            raise ValueError(
                "the run has no end; set model.fine_tuning_config.max_steps or num_epochs"
            )
        self._check_ranks("model.fine_tuning_config.batch_size")
        if tuning.method == "qlora" and self.strategy.type == "fsdp2":
            raise ValueError("qlora runs under strategy ddp only; set strategy.type: ddp")

    def _check_policy(self) -> None:
        """A small network that acts: no language model, no documents, nobody to ask it."""
        if self.environment is None:
            raise ValueError(f"algorithm {self.algorithm} needs spec.environment; add it")
        for name in ("model", "data", "verify", "rollout"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"algorithm {self.algorithm} trains a policy network; remove spec.{name}"
                )
        if self.strategy.type != "ddp":
            raise ValueError("a policy network is small; set strategy.type: ddp")
        self._check_ranks(f"{self.algorithm}.n_environments")
        many = self.resources.node_range.max * self.resources.ranks > 1
        if many and (self.acting.normalize_observations or self.acting.normalize_rewards):
            raise ValueError(
                f"{self.algorithm}.normalize_observations and normalize_rewards need a single "
                "rank; set resources.nodes: 1 and one GPU"
            )

    def _check_ranks(self, field: str) -> None:
        nodes = self.resources.node_range
        worlds = [n * self.resources.ranks for n in range(nodes.min, nodes.max + 1)]
        if not any(self.divisible_by_ranks % world == 0 for world in worlds):
            raise ValueError(
                f"{field} ({self.divisible_by_ranks}) must be a multiple of the number of ranks "
                f"({worlds[0]})"
            )

    @property
    def acting(self) -> PPOConfig:
        """How a policy learns to act."""
        return self.weave if self.algorithm == "weave" else self.ppo

    @property
    def divisible_by_ranks(self) -> int:
        """What the ranks share out evenly; 0 if nothing."""
        if self.algorithm in ("ppo", "weave"):
            return self.acting.n_environments
        if self.model is None:
            return 0
        size = self.model.fine_tuning_config.batch_size
        return size // self.grpo.group_size if self.algorithm == "grpo" else size

    @property
    def work_per_step(self) -> int:
        """Tokens, or steps in environments, of one step of the run."""
        if self.algorithm in ("ppo", "weave"):
            return self.acting.batch_size
        tuning = self.model.fine_tuning_config if self.model else FineTuning(max_steps=1)
        if self.algorithm == "grpo":
            return tuning.batch_size * self.grpo.max_completion_tokens
        return tuning.batch_size * tuning.sequence_length * (2 if self.algorithm == "dpo" else 1)

    def model_name(self, job: str) -> str:
        """Name under which the versions of a job of this name are published."""
        return (self.model.output_name if self.model else None) or job


class TrainingJob(Document):
    """The document: `kind: TrainingJob`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["TrainingJob"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the job is."""
    spec: TrainingSpec
    """What the job does."""
