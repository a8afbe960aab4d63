"""A small model goes from guessing to calculating, by GRPO: about three minutes.

    loomos up
    python examples/grpo_math/run.py

Submits two jobs: supervised fine-tuning on guesses within three of the right answer, then GRPO in
the environment `math`, whose reward is 1 for the right answer and 0 for any other. Prints the share
of right answers before and after, and draws its course into a PNG. Kill what you like meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from loomos.client.http import LoomOSClient
from loomos.client.models import JobDetail
from loomos.errors import LoomOSError
from loomos.manifest import JobManifest
from loomos.rl.environments import FamilyEnvironment

HERE = Path(__file__).parent
GUESSES = 3000

console = Console(markup=False, highlight=False)


def write_guesses(path: Path) -> None:
    """Problems with answers that are within three of the right one."""
    environment = FamilyEnvironment("math", {"terse": True})
    chance = random.Random(0)
    with path.open("w") as file:
        for seed in range(GUESSES):
            task = environment.make_task(seed)
            answer = int(task.right_replies()[0].removeprefix("Answer: "))
            guess = f" {answer + chance.randint(-3, 3)}"
            file.write(json.dumps({"prompt": task.prompt, "completion": guess}) + "\n")


async def run(client: LoomOSClient, manifest: JobManifest) -> JobDetail:
    """Submit a job and follow it to its end.

    Raises:
        LoomOSError: it did not complete.
    """
    job = await client.submit_job_from_manifest(manifest)
    console.print(f"job {job.job_id}  {job.temporal_url}")
    with Progress(console=console) as progress:
        bar = progress.add_task(job.job_id, total=100)
        async for detail in client.stream_job_status(job.job_id):
            progress.update(bar, completed=detail.progress)
    done = await client.get_job_status(job.job_id)
    if done.state != "completed":
        raise LoomOSError(f"{job.job_id} is {done.state}: {done.message}")
    return done


async def solved(client: LoomOSClient, job_id: str) -> tuple[list[int], list[float]]:
    """Steps, and the share of right answers in each."""
    found: dict[int, float] = {}
    after: str | None = ""
    while after is not None:
        page = await client.get_job_metrics(job_id, after=after)
        found |= {r["step"]: r["solved"] for r in page.records if r["kind"] == "step"}
        after = page.next_cursor if page.records else None
    return sorted(found), [found[step] for step in sorted(found)]


def draw(steps: list[int], shares: list[float], path: Path) -> None:
    """The course of the training; the mean of twenty steps over single ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    windows = [shares[max(0, n - 19) : n + 1] for n in range(len(shares))]
    means = [sum(window) / len(window) for window in windows]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(steps, shares, color="0.8", linewidth=0.8, label="a step, 512 completions")
    axes.plot(steps, means, label="mean of 20 steps")
    axes.axhline(1 / 7, color="0.5", linestyle="--", label="guessing within three")
    axes.set(
        xlabel="step", ylabel="share of right answers", ylim=(0, 1), title="GRPO on arithmetic"
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


async def main(steps: int, plot: Path) -> None:
    """Guess, learn, tell."""
    with tempfile.TemporaryDirectory() as folder:
        guesses = Path(folder) / "guesses.jsonl"
        write_guesses(guesses)
        async with LoomOSClient() as client:
            console.rule("1. supervised: how answers look")
            await run(
                client,
                JobManifest.from_template(HERE / "guess.yaml", {"guesses": str(guesses)}),
            )
            console.rule("2. GRPO: which are right")
            parameters = {"steps": steps, "evaluate_every": max(1, steps // 10)}
            done = await run(client, JobManifest.from_template(HERE / "learn.yaml", parameters))
            numbers, shares = await solved(client, done.job_id)
    draw(numbers, shares, plot)
    assert done.training is not None and done.training.validation_loss is not None
    before, after = sum(shares[:5]) / 5, sum(shares[-20:]) / 20
    console.print(
        f"right answers: {before:.0%} of samples before, {after:.0%} after; "
        f"{-done.training.validation_loss:.0%} of likeliest answers; {plot}"
    )


def cli(
    steps: Annotated[int, typer.Option(help="Steps of GRPO.")] = 1000,
    plot: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("grpo_math.png"),
) -> None:
    """Take a small model from guessing to calculating."""
    asyncio.run(main(steps, plot))


if __name__ == "__main__":
    typer.run(cli)
