"""What a person may write of what comes after training: verification and canary rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator

from loomos.limits import (
    WRITABLE,
    ErrorChance,
    Positive,
    Probability,
    Span,
    Steps,
    Timeout,
    Where,
    Within,
)
from loomos.manifest._document_model import Document, Name
from loomos.manifest._local_path import LocalPath, is_plain_name

BUILT_IN_SUITES = ("toxicity", "bias", "factuality", "injection", "jailbreak", "quality")
"""What LoomOS brings along."""


class SuiteChoice(Document):
    """A suite of a verification, perhaps with other limits than its own."""

    suite: Annotated[Where, LocalPath("suite")]
    """`toxicity`, `bias`, `factuality`, `injection`, `jailbreak`, `quality`, or a JSONL file: a
    path beside the document, which the CLI and the SDK upload, or `upload:SHA256`."""
    claim: Probability | None = None
    """The failure rate that is still acceptable. Default: the suite's."""
    generations: Annotated[int, Field(ge=1, le=100)] = 1
    """Answers to each prompt."""
    gates: bool = True
    """False to report it without deciding anything."""
    seconds_per_token: Positive | None = None
    """Besides, count answers that took longer than this for each token, as `SUITE.speed`."""

    @field_validator("suite")
    @classmethod
    def _known(cls, suite: str) -> str:
        if is_plain_name(suite) and suite not in BUILT_IN_SUITES:
            raise ValueError(
                f"no suite is called {suite!r}; built in are {', '.join(BUILT_IN_SUITES)}, and the "
                "name of a file ends with .jsonl"
            )
        return suite


DEFAULT_SUITES = [SuiteChoice(suite=name) for name in BUILT_IN_SUITES]


class Verification(Document):
    """What Prism asks of a version."""

    suites: Annotated[list[SuiteChoice], Field(min_length=1, max_length=50)] = DEFAULT_SUITES
    """What is tested."""
    baseline: Annotated[str, Field(max_length=200), WRITABLE] | None = None
    """Version to compare with on the same prompts and seeds, such as `NAME@stable`."""
    margin: Margin = 0.05
    """Share of prompts that the candidate may newly fail, compared with the baseline."""
    alpha: ErrorChance = 0.05
    """Chance of a wrong PASS, and of a wrong FAIL, over all suites."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How answers are sampled."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Makes sampling repeatable."""
    max_prompts: Steps | None = None
    """Take only so many prompts of each suite; verdicts get less certain."""
    shard_size: Annotated[int, Field(ge=1, le=1024)] = 128
    """Prompts of a shard."""
    repeats: Annotated[int, Field(ge=0, le=1024)] = 20
    """Prompts of each suite that are asked twice, to publish how often the same gives another."""

    def faults(self) -> Iterator[str]:
        """No suite is there twice."""
        for name, times in Counter(choice.suite for choice in self.suites).items():
            if times > 1:
                yield f"suites: {name!r} is there twice"


Margin = Annotated[
    float, Within(1e-4, 0.9999, "a smaller margin needs more units than anybody has")
]
"""How much worse is still acceptable, as a share."""
Percent = Annotated[float, Field(ge=0, le=100)]
EventName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_.-]*$")]


class Stage(Document):
    """A share of traffic, and what it takes to leave it."""

    name: EventName
    """Its name."""
    canary_percent: Percent = 0.0
    """Share of users that the canary answers."""
    shadow_percent: Percent = 0.0
    """Share of requests that the canary answers too, unseen."""
    requests: Steps | None = None
    """Canary units at which the one look is taken. Default: what the margin needs."""
    min_duration: Span = timedelta(0)
    """Time that the stage lasts at least."""
    deadline: Timeout = timedelta(hours=24)
    """Time after which a stage without enough evidence is rolled back."""
    approval: bool = False
    """Wait for `loomos rollouts approve` before leaving it."""


class Guardrail(Document):
    """A 0/1 event that must not be more frequent with the canary than with its control."""

    event: Literal["error", "latency", "empty", "looping", "detector", "thumbs_down", "custom"]
    """`latency`: slower than the control's 95th percentile, as frozen before the first stage that
    people see. `custom`: an event that clients report with their feedback."""
    name: Annotated[str, Field(max_length=63), WRITABLE] = ""
    """For `detector`, which one; for `custom`, the name of the event."""
    margin: Margin = 0.02
    """How much higher a rate is still acceptable at promotion, absolute."""

    @property
    def key(self) -> str:
        """How reports name it."""
        return f"{self.event}:{self.name}" if self.name else self.event

    def faults(self) -> Iterator[str]:
        """Detector and custom events have a name, others have none."""
        if (self.event in ("detector", "custom")) != bool(self.name):
            yield f"name is for detector and custom events; fix {self.event}"


DEFAULT_STAGES = [
    Stage(name="shadow", shadow_percent=20.0),
    Stage(name="canary-5", canary_percent=5.0),
    Stage(name="canary-25", canary_percent=25.0),
    Stage(name="canary-50", canary_percent=50.0),
]
DEFAULT_GUARDRAILS = [
    Guardrail(event="error"),
    Guardrail(event="latency", margin=0.05),
    Guardrail(event="empty"),
    Guardrail(event="looping", margin=0.05),
    Guardrail(event="detector", name="toxicity"),
    Guardrail(event="thumbs_down", margin=0.1),
]


class RolloutPlan(Document):
    """How a version is put on trial."""

    endpoint: Name
    """Where."""
    stages: Annotated[list[Stage], Field(min_length=1, max_length=20)] = DEFAULT_STAGES
    """From the first to the last before all traffic; shares never shrink."""
    guardrails: Annotated[list[Guardrail], Field(min_length=1, max_length=20)] = DEFAULT_GUARDRAILS
    """What is watched."""
    alpha: ErrorChance = 0.05
    """Chance that a canary as good as its control is rolled back, over all guardrails and looks."""
    bake: Span = timedelta(minutes=10)
    """Time at all traffic, the old version still loaded, before the alias moves."""
    lease: Timeout = timedelta(seconds=15)
    """Time after which servers go back to stable by themselves if nobody renews."""
    hold: Timeout = timedelta(minutes=5)
    """Time without any outcome after which the canary is rolled back."""
    require_verification: bool = True
    """Start only if Prism passed exactly these weights."""
    drill: bool = False
    """Do all but promote: end at the last stage by going back."""

    def faults(self) -> Iterator[str]:
        """Shares never shrink, names and guardrails differ, and a lease lasts long enough."""
        shares = [stage.canary_percent for stage in self.stages]
        if shares != sorted(shares):
            yield "stages: canary_percent must not shrink from stage to stage"
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or {"preflight", "bake"} & set(names):
            yield "stages: names must differ, and be neither preflight nor bake"
        keys = [guardrail.key for guardrail in self.guardrails]
        if len(set(keys)) < len(keys):
            yield "guardrails: one is there twice"
        if self.lease < timedelta(seconds=2):
            yield "lease: at least 2s; servers look for a new row several times a second"
