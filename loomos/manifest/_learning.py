"""What a person may write of how a policy learns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from loomos.limits import Batch, Coefficient, JsonMap, Positive, Real, Steps, Where, Width, Words
from loomos.manifest._document_model import Document
from loomos.manifest._local_path import LocalPath
from loomos.quantities import Duration


class EnvironmentType(StrEnum):
    """The families: environments of LoomOS, whose tasks have a difficulty."""

    MATH = "math"
    GAME = "game"
    TOOL_CALL = "tool_call"
    CODE = "code"
    LANGUAGE = "language"
    MULTIMODAL = "multimodal"


Difficulty = Literal["beginner", "intermediate", "advanced", "expert"]
"""Of a task, easiest first."""
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
"""Each, easiest first."""


class EnvironmentChoice(Document):
    """Where a policy acts."""

    name: Where
    """A family of LoomOS (`math`, `game`, `tool_call`, `code`, `language`, `multimodal`) or an id
    that Gymnasium knows, such as `CartPole-v1` or `module:Name-v0`."""
    config: JsonMap = {}
    """Settings of the environment, such as `difficulty`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class DPOConfig(Document):
    """Direct preference optimisation (arXiv:2305.18290) of a language model.

    Pairs per step, learning rate and length are the model's `fine_tuning_config`.
    """

    beta: Positive = 0.1
    """How far the policy may move from the model it starts as; small is far."""
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Which loss."""


class RewardFunction(Document):
    """A function of one's own that says what completions are worth.

    It is called as TRL calls its `reward_funcs`: `reward(prompts, completions, **columns)`, and
    gives a list with a number, or None, for each completion.
    """

    function: Words
    """With `file`, the function's name in it; else the name of an entry point of the group
    `loomos.rewards` of a package that is installed on the nodes."""
    file: Annotated[Where, LocalPath("file")] | None = None
    """A Python file, local or s3://, that is pinned by its digest when the job is resolved."""
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    """What its rewards are multiplied by before those of all functions are added."""
    sandbox: bool = True
    """For a file: run it in the sandbox, with the standard library only. If false it runs in a
    process of its own on the node, without the worker's secrets, and may import what is there."""
    timeout: Annotated[Duration, Field(ge=timedelta(0), le=timedelta(hours=1))] = timedelta(
        seconds=30
    )
    """How long one batch may take it."""

    def faults(self) -> Iterator[str]:
        """A function in a file has a name that Python allows; only files have a sandbox."""
        if self.file is not None and not self.function.isidentifier():
            yield f"function {self.function!r} is no name of a Python function"
        if self.file is None and not self.sandbox:
            yield "sandbox is for files; an entry point is installed code, remove it"
        if not self.timeout:
            yield "timeout must be more than 0"


class Completions(Document):
    """How a language model's replies in an environment are written, and how free they are."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=131_072)] = 256
    """Tokens that a reply may have."""
    max_turns: Annotated[int, Field(ge=1, le=1000)] = 8
    """Replies that a conversation may have, in environments that answer; it also ends where the
    next reply might not fit into `sequence_length`."""
    temperature: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Of sampling; also divides logits in the loss."""
    beta: Coefficient = 0.0
    """Weight of the divergence from the model it starts as; 0 needs no second model."""
    chat: bool = True
    """Put prompts as a user's message in the tokenizer's chat template."""


class LanguagePPOConfig(Completions):
    """Proximal policy optimisation of a language model with a value head (arXiv:1909.08593).

    Conversations per step, learning rate and steps are the model's `fine_tuning_config`.
    """

    beta: Coefficient = 0.05
    """Cost of each token's divergence from the model it starts as; 0 needs no second model."""
    minibatch_size: Batch | None = None
    """Conversations per optimizer step, over all ranks. Default: all of a batch."""
    n_epochs: Annotated[int, Field(ge=1, le=100)] = 4
    """Times that a batch is gone through."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount of a token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far advantages look ahead."""
    clip_epsilon: Positive = 0.2
    """The ratio of new to old probability counts this close to 1."""
    clip_value: Positive | None = 0.2
    """The value counts this close to its old one."""
    value_loss_coef: Coefficient = 0.1
    """Weight of the value loss."""
    value_learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Of the value head, by Adam."""
    normalize_advantage: bool = True
    """Advantages of a batch's tokens get mean 0 and deviation 1."""


class GRPOConfig(Completions):
    """Group relative policy optimisation (arXiv:2402.03300) of a language model, and its variants.

    Completions per step, learning rate and steps are the model's `fine_tuning_config`. Dr. GRPO is
    `loss_type: dr_grpo, scale_rewards: none`; DAPO is `loss_type: dapo, clip_epsilon_high: 0.28`.
    """

    group_size: Annotated[int, Field(ge=2, le=1024)] = 8
    """Completions to each prompt."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 1
    """Updates on the same completions."""
    clip_epsilon: Positive = 0.2
    """A ratio counts from 1 minus this."""
    clip_epsilon_high: Positive | None = None
    """To 1 plus this. Default: the same."""
    bias_corrected_kl: bool = False
    """Multiply the divergence by the ratio."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How the loss of tokens is averaged."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the deviation of their group, of the batch, or nothing."""
    mask_truncated: bool = False
    """Leave completions out of the loss that did not come to an end."""


class PPOConfig(Document):
    """Proximal policy optimisation (arXiv:1707.06347) of a small network.

    Defaults are those of Stable-Baselines3, as far as it has them.
    """

    total_timesteps: Steps = 100_000
    """Steps in all environments together; the run ends with the batch that reaches them."""
    n_environments: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Copies of the environment that are stepped together, over all ranks."""
    batch_size: Batch = 2048
    """Steps, in all copies together, between updates of the policy."""
    minibatch_size: Batch = 64
    """Of these, as many per optimizer step; a smaller batch is one minibatch."""
    n_epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Times that a batch is gone through."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Of Adam."""
    anneal_learning_rate: bool = False
    """Whether it falls linearly to zero."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount of a step."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far advantages look ahead."""
    clip_epsilon: Positive = 0.2
    """The ratio of new to old probability counts this close to 1."""
    anneal_clip: bool = False
    """Whether the clip falls linearly to zero."""
    clip_value: Positive | None = None
    """The value counts this close to its old one."""
    value_loss_coef: Coefficient = 0.5
    """Weight of the value loss."""
    entropy_coef: Coefficient = 0.0
    """Weight of the entropy."""
    max_grad_norm: Positive | None = 0.5
    """Clip the global gradient norm to this."""
    target_kl: Positive | None = None
    """End an update when the policy has moved 1.5 times this far."""
    normalize_advantage: bool = True
    """Advantages of a minibatch get mean 0 and deviation 1."""
    normalize_observations: bool = False
    """Observations get mean 0 and deviation 1, as seen so far."""
    normalize_rewards: bool = False
    """Rewards are divided by the deviation of the discounted return, as seen so far."""
    hidden_sizes: Annotated[list[Width], Field(max_length=8)] = [64, 64]
    """Widths of the layers of policy and value, each its own."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    log_std_init: Annotated[float, Field(ge=-20, le=20)] = 0.0
    """Of a continuous policy, the logarithm of its first standard deviation."""
    evaluate_every: Steps | None = None
    """Updates between evaluations of the policy's best action. Default: a tenth of the run."""
    evaluate_episodes: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """Episodes in one evaluation; 0 for none."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of weights, actions and environments."""

    def faults(self) -> Iterator[str]:
        """Each copy of the environment has the same number of steps in a batch."""
        if self.batch_size % self.n_environments:
            yield (
                f"batch_size ({self.batch_size}) must be a multiple of n_environments "
                f"({self.n_environments})"
            )

    @property
    def steps_per_update(self) -> int:
        """Steps in each copy between updates."""
        return self.batch_size // self.n_environments

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return -(-self.total_timesteps // self.batch_size)


class ExplorationStrategy(StrEnum):
    """What drives a policy to where it has not been."""

    ENTROPY_BASED = "entropy_based"
    """Entropy of the whole mixture is rewarded."""
    CURIOSITY_DRIVEN = "curiosity_driven"
    """States that a network cannot predict yet (RND, arXiv:1810.12894)."""
    UCB_EXPLORATION = "ucb_exploration"
    """States and actions that were seen seldom: 1 / sqrt(count), by hash (arXiv:1611.04717)."""


class RewardThread(StrEnum):
    """What is wanted of a policy."""

    TASK_COMPLETION = "task_completion"
    SAFETY = "safety"
    CREATIVITY = "creativity"
    EFFICIENCY = "efficiency"
    COHERENCE = "coherence"


class WeaveConfig(PPOConfig):
    """WEAVE: PPO of a gated mixture of policies, with bonuses, an ensemble of critics and threads.

    With one head, one critic, one thread and no strategy it is PPO, bit for bit.
    """

    heads: Annotated[int, Field(ge=1, le=64)] | None = None
    """Policies in the mixture. Default: one for each strategy, at least one."""
    critics: Annotated[int, Field(ge=1, le=64)] = 2
    """Value networks of the ensemble."""
    exploration_strategies: Annotated[
        list[Annotated[ExplorationStrategy, Field(strict=False)]], Field(max_length=8)
    ] = [ExplorationStrategy.UCB_EXPLORATION]
    """What drives exploration; head number n belongs to strategy number n."""
    bonus_weight: Coefficient = 1.0
    """Weight of each bonus beside the reward; falls linearly to zero."""
    bonus_until: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the run after which bonuses are over."""
    bonus_gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount of bonuses, whose returns go on beyond episodes."""
    entropy_weight: Coefficient = 0.01
    """Weight of the entropy, where `entropy_based` is among the strategies."""
    balance_weight: Coefficient = 0.01
    """Weight of the gate's mean entropy, which keeps heads from dying out."""
    reward_threads: Annotated[
        list[Annotated[RewardThread, Field(strict=False)]], Field(min_length=1, max_length=8)
    ] = [RewardThread.TASK_COMPLETION]
    """What the environment rewards, in the order in which it gives rewards."""
    thread_weights: Annotated[list[Coefficient], Field(max_length=8)] | None = None
    """Weights of the threads, which are scaled to a sum of 1. Default: equal."""
    scalarization: Literal["linear", "chebyshev", "lagrangian", "utility"] = "linear"
    """How threads make one advantage: a weighted sum; weight on what is farthest from the best
    return seen; the first thread under the constraint that the others reach `thresholds`; or the
    utility of each episode's returns, the nearer to `ideal` in its worst thread the better."""
    thresholds: Annotated[list[Real], Field(max_length=8)] = []
    """For `lagrangian`, the least return of each thread but the first."""
    ideal: Annotated[list[Real], Field(max_length=8)] = []
    """For `utility`, the best return of each thread."""
    worst: Annotated[list[Real], Field(max_length=8)] = []
    """For `utility`, the worst return of each thread that matters."""
    dual_learning_rate: Positive = 0.05
    """For `lagrangian`, of the multipliers."""
    trust_temperature: Coefficient = 1.0
    """How much less a critic counts whose errors are larger."""
    caution: Coefficient = 0.0
    """The baseline is the ensemble's mean less this many of its standard deviations."""

    def faults(self) -> Iterator[str]:
        """Those of PPO, and a number for each thread in what is given by thread."""
        yield from super().faults()
        count = len(self.reward_threads)
        if self.thread_weights is not None and len(self.thread_weights) != count:
            yield f"thread_weights needs {count} numbers, one for each thread"
        if self.thread_weights and not sum(self.thread_weights):
            yield "thread_weights are all zero; raise one"
        if count > 1 and self.normalize_rewards:
            yield "normalize_rewards is for one thread; several are scaled as they are"
        if self.scalarization == "lagrangian" and len(self.thresholds) != count - 1:
            yield f"thresholds needs {count - 1} numbers, one for each thread but the first"
        if self.scalarization == "utility":
            for name in ("ideal", "worst"):
                if len(getattr(self, name)) != count:
                    yield f"{name} needs {count} numbers, one for each thread"
            if any(best <= bad for best, bad in zip(self.ideal, self.worst, strict=False)):
                yield "ideal must be above worst in every thread"

    @property
    def n_heads(self) -> int:
        """Policies in the mixture."""
        return self.heads or max(1, len(self.exploration_strategies))

    @property
    def bonuses(self) -> list[ExplorationStrategy]:
        """Strategies that give a stream of rewards."""
        entropy = ExplorationStrategy.ENTROPY_BASED
        return [strategy for strategy in self.exploration_strategies if strategy != entropy]
