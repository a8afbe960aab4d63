"""How `loomos jobs describe` shows a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos.cli.output import ago, print_facts, print_table

if TYPE_CHECKING:
    from loomos.client.models import JobDetail


def print_job(job: JobDetail) -> None:
    """Print everything about a job."""
    training = job.training
    is_rewarded = bool(job.spec.get("environment"))
    evaluated = None
    if training and training.validation_loss is not None:
        evaluated = -training.validation_loss
    print_facts(
        [
            ("job", job.job_id),
            ("state", job.current_stage),
            ("asked for", job.asked),
            ("queue", f"number {job.queued.position}: {job.queued.reason}" if job.queued else None),
            ("progress", f"{job.progress:g} %"),
            ("step", f"{training.step} of {training.total_steps}" if training else None),
            ("loss", training and training.loss),
            ("validation loss", None if is_rewarded else training and training.validation_loss),
            ("mean reward", training and training.episode_return),
            ("mean reward, best actions", evaluated if is_rewarded else None),
            ("checkpoint", training and training.checkpoint_step),
            ("model", job.model),
            ("owner", job.owner),
            ("project", job.project),
            ("labels", ", ".join(f"{k}={v}" for k, v in job.labels.items())),
            ("priority", job.priority),
            ("created", ago(job.created_at)),
            ("temporal", job.temporal_url),
        ]
    )
    if job.attempts:
        print_table(
            ("ATTEMPT", "NODES", "FROM STEP", "TO STEP", "OUTCOME"),
            [
                (a.generation, ", ".join(a.nodes), a.from_step, a.to_step, a.outcome)
                for a in job.attempts
            ],
        )
    print_table(
        ("TIME", "STATE", "WHAT HAPPENED"),
        [(e.at.astimezone().strftime("%H:%M:%S"), e.state, e.message) for e in job.timeline],
    )
