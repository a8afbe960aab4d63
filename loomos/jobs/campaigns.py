"""Messages about campaigns: rounds of trainings whose policies are averaged and appraised."""

from __future__ import annotations

from datetime import datetime

from loomos.errors import Unavailable
from loomos.jobs.message import CompactMessage, Message
from loomos.jobs.states import JobState
from loomos.jobs.training import TimelineEntry
from loomos.manifest import CampaignSpec, EnvironmentChoice, RewardThread, TrainingSpec

# --- policies -----------------------------------------------------------------------------------


class Appraisal(CompactMessage):
    """How a policy's likeliest actions do."""

    episodes: int
    """Episodes played."""
    mean_return: float
    """Mean of their undiscounted returns; of several threads, of their sum."""
    success_rate: float | None = None
    """Share of episodes that were solved; None where the environment does not say."""
    threads: dict[RewardThread, float] = {}
    """Mean return of each thread, where there are several."""


class WeightedPolicy(Message):
    """A policy that goes into an average."""

    version: str
    """`NAME@VERSION`."""
    weight: float
    """Of its parameters; all weights sum to 1."""


class BlendRequest(Message):
    """Average policies, publish what comes of it, and see how it does.

    One policy is published already and only appraised; none makes a new one.
    """

    blend_id: str
    """Unique in the campaign; a retry publishes the same version again."""
    name: str
    """Name under which it is published."""
    policies: list[WeightedPolicy]
    """What is averaged."""
    training: TrainingSpec
    """How it learns and where it acts; its seed is that of a new policy."""
    episodes: int
    """Episodes of the appraisal."""
    is_draft: bool = False
    """Whether what is published exists for others only once it is signed."""


class Blended(Message):
    """A policy and how it does."""

    version: str
    """`NAME@VERSION`."""
    appraisal: Appraisal
    """How it does."""


class PolicyState(CompactMessage):
    """A policy of a campaign, after its newest round."""

    version: str
    """`NAME@VERSION`."""
    environment: EnvironmentChoice
    """Where it acts, at the present difficulty."""
    appraisal: Appraisal
    """How it did there after the newest round."""
    training_s: float = 0.0
    """Time of all trainings that it came of."""


# --- rounds -------------------------------------------------------------------------------------


class MemberReport(CompactMessage):
    """A member's training in a round."""

    job_id: str
    """The training."""
    version: str = ""
    """What it published; empty if it failed."""
    episode_return: float | None = None
    """Mean return of its newest training episodes."""
    training_s: float = 0.0
    """Time from its submission to its end."""
    error: str = ""
    """Why it failed."""


class RoundReport(CompactMessage):
    """A round. Round 0 makes the first policies."""

    number: int
    """Counts over all phases."""
    phase: str = ""
    """Name of the phase."""
    members: dict[str, MemberReport] = {}
    """Those that trained."""
    weights: dict[str, float] = {}
    """Of each member in its policy's average."""
    scores: dict[str, float] = {}
    """By member, the mean return of its policy by the member's own threads."""
    appraisals: dict[str, Appraisal] = {}
    """By policy."""
    difficulty: dict[str, str] = {}
    """By policy, at which it trained and was appraised."""


# --- the campaign -------------------------------------------------------------------------------


class CarriedCampaign(Message):
    """What a run of the campaign hands to the run that continues it."""

    phase: int = 0
    """Number of the phase that is on."""
    phase_rounds: int = 0
    """Rounds that it has had."""
    weights: dict[str, float] = {}
    """By member."""
    policies: dict[str, PolicyState] = {}
    """By name."""
    rounds: list[RoundReport] = []
    """All so far."""
    timeline: list[TimelineEntry] = []
    """What happened."""
    started_at: datetime
    """When the first run began."""
    packed: str = ""
    """All of this, compressed; then nothing else is given but when the first run began."""


class CampaignInput(Message):
    """Input of the `RLCampaign` workflow."""

    campaign_id: str
    """Workflow id."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    project: str = "default"
    """The fairness key of its trainings."""
    spec: CampaignSpec
    """What to do."""
    carried: CarriedCampaign | None = None
    """State of the run that this one continues."""


class CampaignStatus(Message):
    """Answer of the `status` query."""

    campaign_id: str
    """Which."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    project: str = "default"
    """Project."""
    state: JobState
    """Where it is."""
    message: str = ""
    """Why, for people."""
    spec: CampaignSpec | None = None
    """What it does; none where what it was started with cannot be read."""
    phase: str
    """The phase that is on, or was last."""
    weights: dict[str, float] = {}
    """By member, in its policy's average."""
    policies: dict[str, PolicyState] = {}
    """By name."""
    rounds: list[RoundReport] = []
    """All so far; with errors cut short, and only the newest, where all are too much to send."""
    started_at: datetime
    """When."""
    finished_at: datetime | None = None
    """When it ended."""
    timeline: list[TimelineEntry] = []
    """What happened, oldest first."""
    partial: str = ""
    """Why this is not everything: the workflow itself does not answer. Empty if it does."""

    @property
    def known_spec(self) -> CampaignSpec:
        """What it does.

        Raises:
            Unavailable: what it was started with cannot be read.
        """
        if self.spec is None:
            raise Unavailable(self.partial or "what it was started with is not known")
        return self.spec


class CampaignResult(Message):
    """Result of an `RLCampaign`."""

    state: JobState
    """`completed` always; failures raise."""
    policies: dict[str, str]
    """`NAME@VERSION` of each policy."""
    rounds: int
    """How many there were, round 0 not counted."""
