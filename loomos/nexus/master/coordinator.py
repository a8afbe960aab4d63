"""The cluster for programs: is it there, how full is it, train this.

A thin face over the gateway. Nodes, heartbeats and leases are kept by the `Cluster` workflow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loomos.client.http import LoomOSClient
from loomos.client.job_spec import JobSpec
from loomos.errors import Conflict, InvalidInput
from loomos.manifest import JobManifest

_STRATEGIES = {"data_parallel": "ddp", "ddp": "ddp", "fully_sharded": "fsdp2", "fsdp2": "fsdp2"}
_BASES = {"transformer": "init:llama"}

SEQUENCE_LENGTH = 512
"""Tokens of a sequence where nothing else is said; the default of manifests."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a coordinator expects of its cluster."""

    cluster_name: str
    """For people; also the label `cluster` of the jobs it submits."""
    max_workers: int | None = None
    """Most nodes that may be ready; `start` refuses a larger cluster."""
    heartbeat_interval: float = 2.0
    """Seconds. Nodes of LoomOS heartbeat every 2 s whatever is wished here."""
    failure_threshold: int = 5
    """Heartbeats. A node of LoomOS is lost after 10 s of silence whatever is wished here."""
    load_balancing_strategy: str = "bin_pack"
    """Placement policy that is expected: bin_pack, spread, priority_first, performance_weighted,
    cost_aware. It holds for everybody's jobs, so it changes by `apply_load_balancing` alone."""


@dataclass(frozen=True, kw_only=True)
class MasterStatus:
    """A cluster at a glance."""

    active_workers: int
    """Nodes that take work."""
    total_capacity: int
    """Ranks that they run at once."""
    current_load: float
    """Share of those that run, in percent."""
    jobs_waiting: int
    """Jobs that wait for nodes."""


class MasterCoordinator:
    """Steers a cluster.

    Args:
        config: what is expected of it.
        client: an open client. Default: made by `start`, from the settings.
    """

    def __init__(self, config: ClusterConfig, client: LoomOSClient | None = None) -> None:
        self.config = config
        self._given, self._client = client, client

    async def __aenter__(self) -> MasterCoordinator:
        await self.start()
        return self

    async def __aexit__(self, *exit: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. The cluster stays as it is: how it places jobs is not this program's alone.

        Raises:
            Unavailable: no gateway answers.
            InvalidInput: there is no such strategy.
            Conflict: the cluster is larger than `max_workers`.
        """
        if not self._policy:
            raise InvalidInput("load_balancing_strategy: name one, as bin_pack")
        if self._client is None:
            self._client = LoomOSClient()
        ready = (await self._client.get_available_resources()).nodes_ready
        if self.config.max_workers is not None and ready > self.config.max_workers:
            raise Conflict(
                f"max_workers: {ready} nodes are ready, more than {self.config.max_workers}; "
                "cordon some or raise it"
            )
        rules = await self._client.scheduler.config()
        if rules.policy != self._policy:
            log.warning(
                "%s places jobs by %s, not %s; apply_load_balancing() changes that for everybody",
                self.config.cluster_name,
                rules.policy,
                self._policy,
            )

    async def apply_load_balancing(self) -> str:
        """Have the cluster place everybody's jobs as the config says, from now on.

        Returns:
            The policy by which it placed them before.

        Raises:
            InvalidInput: there is no such strategy.
        """
        rules = await self._connected.scheduler.config()
        if rules.policy != self._policy:
            changed = rules.model_copy(update={"policy": self._policy})
            await self._connected.scheduler.configure(changed)
        return rules.policy

    @property
    def _policy(self) -> str:
        return self.config.load_balancing_strategy.replace("_", "-")

    async def stop(self) -> None:
        """Disconnect; the cluster and its jobs go on."""
        if self._client is not None and self._given is None:
            await self._client.close()
        self._client = self._given

    async def get_cluster_status(self) -> MasterStatus:
        """How many nodes there are and how busy they are."""
        found = await self._connected.get_available_resources()
        load = 100 * found.ranks_used / found.ranks_total if found.ranks_total else 0.0
        return MasterStatus(
            active_workers=found.nodes_ready,
            total_capacity=found.ranks_total,
            current_load=round(load, 1),
            jobs_waiting=found.jobs_waiting,
        )

    async def submit_training_job(self, job_config: Mapping[str, Any]) -> str:
        """Submit a training described in a few words; returns the job's id.

        Args:
            job_config: `model_type` (`transformer`, or what `base_model` of a manifest takes),
                `model_config` (of a transformer; whatever is not given follows from what is, and
                some 4 million parameters from nothing), `training_data`,
                `distributed_strategy` (`data_parallel` or `fully_sharded`),
                `nodes`, `name`, and any field of `FineTuning`; one epoch unless it says more.

        Raises:
            InvalidInput: `distributed_strategy` is none of these.
            InvalidManifest: a field is wrong.
        """
        rest = dict(job_config)
        strategy = rest.pop("distributed_strategy", "data_parallel")
        if strategy not in _STRATEGIES:
            raise InvalidInput(
                f"distributed_strategy: no {strategy!r}; known: {', '.join(_STRATEGIES)}"
            )
        base = rest.pop("model_type", "transformer")
        nodes, name = rest.pop("nodes", 1), rest.pop("name", "training")
        if "training_data" not in rest:
            raise InvalidInput("training_data: name what to train on")
        config: dict[str, Any] = {
            "model_name": _BASES.get(base, base),
            "dataset": rest.pop("training_data"),
            **rest,
        }
        if str(config["model_name"]).startswith("init:"):
            config.setdefault("tokenizer", "byte")
        if base == "transformer":
            length = int(config.get("sequence_length", SEQUENCE_LENGTH))
            config["model_config"] = _sized(config.get("model_config", {}), length)
        if "max_steps" not in config:
            config.setdefault("num_epochs", 1)
        document = (
            JobSpec(name=name, config=config, labels={"cluster": self.config.cluster_name})
            .to_manifest()
            .to_dict()
        )
        document["spec"] |= {
            "resources": {"nodes": nodes},
            "strategy": {"type": _STRATEGIES[strategy]},
        }
        manifest = JobManifest.from_dict(document)
        return (await self._connected.submit_job_from_manifest(manifest)).job_id

    @property
    def _connected(self) -> LoomOSClient:
        if self._client is None:
            raise Conflict("the coordinator is not started; call start() first")
        return self._client


def _sized(given: Mapping[str, Any], sequence_length: int) -> dict[str, Any]:
    """Sizes of a transformer: what is given, and the usual proportions of it."""
    hidden = int(given.get("hidden_size", 256))
    heads = next(n for n in (max(1, hidden // 64), 2, 1) if hidden % n == 0)
    heads = int(given.get("num_attention_heads", heads))
    return {
        "hidden_size": hidden,
        "intermediate_size": -(-hidden * 8 // 3 // 64) * 64,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": max(2048, sequence_length),
        **given,
    }
