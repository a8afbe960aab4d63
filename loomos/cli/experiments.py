"""`loomos experiments`: searches over parameters."""

from __future__ import annotations

import csv
import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.arguments import File, ManifestOption, manifest_of
from loomos.cli.output import (
    Format,
    Output,
    ago,
    call,
    call_on,
    chosen,
    counting,
    ends,
    forget,
    print_facts,
    print_table,
    show,
)

if TYPE_CHECKING:
    from loomos.client.experiment_models import ExperimentList
    from loomos.client.http import LoomOSClient
    from loomos.jobs.experiments import ExperimentStatus, TrialRecord

app = typer.Typer(help="Search over parameters.", no_args_is_help=True)

ExperimentId = Annotated[
    str, typer.Argument(help="Id of the experiment, or what only it begins with.")
]


class PlotKind(StrEnum):
    """What can be drawn."""

    HISTORY = "history"
    IMPORTANCE = "importance"
    PARALLEL = "parallel"
    INTERMEDIATE = "intermediate"
    PARETO = "pareto"


class ExportFormat(StrEnum):
    """How trials are written."""

    CSV = "csv"
    JSON = "json"


@app.command()
def run(
    file: File = None,
    manifest: ManifestOption = None,
    follow: Annotated[bool, typer.Option(help="Wait until it is over.")] = False,
    output: Output = None,
) -> None:
    """Start an experiment; with --follow, exit code 1 unless it completes with a best trial."""
    from loomos.manifest import Experiment, read_document

    path = manifest_of(file, manifest)
    experiment = read_document(path, Experiment)

    async def work(client: LoomOSClient) -> ExperimentStatus:
        return await client.experiments.start(experiment, folder=path.absolute().parent)

    started = call(work)
    if follow:
        _follow(started, output)
        return
    _print(started, output)


@app.command("list")
def list_experiments(output: Output = None) -> None:
    """List the newest experiments."""

    async def work(client: LoomOSClient) -> ExperimentList:
        return await client.experiments.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("EXPERIMENT", "STATE", "TRIALS", "BEST", "STARTED", "OWNER"),
            [
                (
                    e.experiment_id,
                    e.state,
                    e.trials,
                    f"{e.front} on the front" if (e.front or 0) > 1 else _numbers(e.best),
                    ago(e.started_at),
                    e.owner,
                )
                for e in found.experiments
            ],
            spare=("OWNER", "STARTED"),
        )

    show(found, output, table)


@app.command()
def status(
    experiment_id: ExperimentId,
    follow: Annotated[bool, typer.Option(help="Show trials until it is over.")] = False,
    output: Output = None,
) -> None:
    """Show where an experiment is; exit code 1 if it has ended without a best trial."""
    found = _get(experiment_id)
    if follow:
        _follow(found, output)
        return
    _print(found, output)


@app.command()
def trials(experiment_id: ExperimentId, output: Output = None) -> None:
    """List finished trials."""
    found = call_on(
        "experiment", experiment_id, lambda client, one: client.experiments.all_trials(one)
    )

    def table() -> None:
        print_table(
            ("TRIAL", "STATE", "VALUE", "PARAMETERS", "SECONDS", "NODE", "WHY"),
            [
                (t.number, t.state, _values(t), _params(t), f"{t.duration_s:.1f}", t.node, t.error)
                for t in found
            ],
        )

    show([trial.model_dump(mode="json") for trial in found], output, table)


@app.command()
def best(experiment_id: ExperimentId, output: Output = None) -> None:
    """Show the best trial, or the Pareto front."""
    from loomos.errors import NotFound

    found = _get(experiment_id).best
    if not found:
        raise NotFound(f"no trial of {experiment_id} is complete and feasible yet")

    def table() -> None:
        print_table(
            ("TRIAL", "VALUE", "PARAMETERS"), [(t.number, _values(t), _params(t)) for t in found]
        )

    show([trial.model_dump(mode="json") for trial in found], output, table)


@app.command()
def stop(
    experiment_id: ExperimentId,
    reason: Annotated[str, typer.Option(help="For the record.")] = "",
    output: Output = None,
) -> None:
    """Start no more trials; those that run end, and the experiment is complete."""
    found = call_on(
        "experiment", experiment_id, lambda client, one: client.experiments.stop(one, reason)
    )
    _print(found, output, is_judged=False)


@app.command()
def cancel(experiment_id: ExperimentId, output: Output = None) -> None:
    """End an experiment and the trials that run."""
    found = call_on("experiment", experiment_id, lambda client, one: client.experiments.cancel(one))
    _print(found, output, is_judged=False)


@app.command()
def delete(experiment_id: ExperimentId) -> None:
    """Forget an experiment that has ended, with its trials; models stay."""
    forget("experiment", experiment_id, lambda client, one: client.experiments.delete(one))


@app.command()
def export(
    experiment_id: ExperimentId,
    file: Annotated[Path | None, typer.Option(help="Where to. Default: printed.")] = None,
    format: Annotated[ExportFormat, typer.Option(help="How.")] = ExportFormat.CSV,
) -> None:
    """Write every finished trial as CSV or JSON."""
    import json

    experiment, found = _with_trials(experiment_id)
    if format == ExportFormat.JSON:
        text = json.dumps([trial.model_dump(mode="json") for trial in found], indent=2) + "\n"
    else:
        text = _csv(experiment, found)
    if file is None:
        print(text, end="")
        return
    file.write_text(text)
    print(f"{len(found)} trials in {file}")


@app.command()
def plot(
    experiment_id: ExperimentId,
    kind: Annotated[PlotKind, typer.Option(help="What to draw.")] = PlotKind.HISTORY,
    file: Annotated[
        Path | None, typer.Option(help="A .png or .html file. Default: EXPERIMENT-KIND.png.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Which, where there are several.")] = "",
) -> None:
    """Draw history, importance of parameters, parallel coordinates, learning curves or front."""
    from loomos.errors import InvalidInput

    try:
        from loomos.weaver.plots import draw
    except ImportError as error:
        raise InvalidInput(f"plots need {error.name}; pip install 'loomos[weaver]'") from None

    experiment, found = _with_trials(experiment_id)
    path = file or Path(f"{experiment_id}-{kind.value}.png")
    draw(kind.value, experiment.known_spec, found, path, metric)
    print(path)


def _get(experiment_id: str) -> ExperimentStatus:
    return call_on("experiment", experiment_id, lambda client, one: client.experiments.get(one))


def _with_trials(experiment_id: str) -> tuple[ExperimentStatus, list[TrialRecord]]:
    async def work(client: LoomOSClient, one: str) -> tuple[ExperimentStatus, list[TrialRecord]]:
        found = await client.experiments.get(one)
        return found, await client.experiments.all_trials(one)

    return call_on("experiment", experiment_id, work)


# --- printing -----------------------------------------------------------------------------------


def _follow(experiment: ExperimentStatus, output: Output) -> None:
    """Show trials as they finish; then the experiment."""
    shows = chosen(output) == Format.TABLE
    total = experiment.known_spec.most_trials

    async def work(client: LoomOSClient) -> ExperimentStatus:
        with counting(experiment.experiment_id, total, shows=shows) as count:
            done = 0
            async for trial in client.experiments.follow(experiment.experiment_id):
                done += 1
                value = trial.error or _values(trial)
                count(done, f"{trial.number:>5}  {trial.state:<10} {value:<14} {_params(trial)}")
        return await client.experiments.get(experiment.experiment_id)

    name = experiment.experiment_id
    goes_on = (
        f"experiment {name} goes on; `loomos experiments status {name} --follow` follows it, "
        f"`loomos experiments stop {name}` ends it"
    )
    _print(call(work, goes_on), output)


def _print(experiment: ExperimentStatus, output: Output, is_judged: bool = True) -> None:
    """Print an experiment; then end with code 1 if it is over and nothing came of it."""

    def table() -> None:
        best = experiment.best[0] if len(experiment.best) == 1 else None
        spec = experiment.spec
        print_facts(
            [
                ("experiment", experiment.experiment_id),
                ("state", f"{experiment.state}: {experiment.message}"),
                ("sampler", spec and spec.sampler.name),
                ("pruner", spec and spec.pruner.name),
                ("trials", ", ".join(f"{n} {state}" for state, n in experiment.counts.items())),
                (
                    "at most",
                    spec and f"{spec.most_trials}, {spec.parallelism} at a time",
                ),
                ("best", best and f"{_values(best)} (trial {best.number})"),
                ("with", best and _params(best)),
                ("front", f"{len(experiment.best)} trials" if len(experiment.best) > 1 else None),
                ("cost", experiment.cost or None),
                ("started", ago(experiment.started_at)),
            ]
        )

    show(experiment, output, table)
    if is_judged:
        is_good = experiment.state == "completed" and bool(experiment.best)
        ends(is_good, experiment.state.is_final)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _values(trial: TrialRecord) -> str:
    if trial.values:
        return _numbers(trial.values)
    if trial.reports:
        step, value = trial.reports[-1]
        return f"{value:.4g} at {step}"
    return ""


def _params(trial: TrialRecord) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.params.items()
    )


def _csv(experiment: ExperimentStatus, found: list[TrialRecord]) -> str:
    metrics = [metric.name for metric in experiment.known_spec.metrics]
    others = sorted({name for trial in found for name in trial.metrics} - set(metrics))
    parameters = list(experiment.known_spec.parameters)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["trial", "state", *metrics, *others, *parameters, "feasible", "seconds", "node", "error"]
    )
    for trial in found:
        values: list[float | str] = [*trial.values] or [""] * len(metrics)
        writer.writerow(
            [
                trial.number,
                trial.state.value,
                *values,
                *(trial.metrics.get(name, "") for name in others),
                *(trial.params.get(name, "") for name in parameters),
                trial.is_feasible,
                trial.duration_s,
                trial.node,
                trial.error,
            ]
        )
    return text.getvalue()
