"""The command tree. Each group is a file; what it needs is imported when a command runs."""

from __future__ import annotations

import typer

from loomos.cli import (
    auth,
    campaigns,
    cluster,
    config,
    data,
    endpoints,
    events,
    experiments,
    jobs,
    ledger,
    models,
    provenance,
    rollouts,
    scheduler,
    schedules,
    stack,
    upkeep,
    verify,
    workers,
)

app = typer.Typer(
    name="loomos",
    help="AI training as durable pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(verify.app, name="verify")
app.add_typer(rollouts.app, name="rollouts")
app.add_typer(schedules.app, name="schedules")
app.add_typer(experiments.app, name="experiments")
app.add_typer(campaigns.app, name="campaigns")
app.add_typer(data.app, name="data")
app.add_typer(workers.app, name="workers")
app.add_typer(cluster.app, name="cluster")
app.add_typer(scheduler.app, name="scheduler")
app.add_typer(scheduler.optimize, name="optimize")
app.add_typer(events.app, name="events")
app.add_typer(ledger.app, name="ledger")
app.add_typer(provenance.app, name="provenance")
app.add_typer(config.app, name="config")
app.add_typer(auth.app, name="auth")
app.add_typer(upkeep.app, name="stack")
app.command()(upkeep.gc)
stack.register(app)
