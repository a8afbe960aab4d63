"""The command tree. Each group is a file; what it needs is imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from loomos.cli import (
    auth,
    campaigns,
    cluster,
    config,
    contexts,
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


def _print_version(wanted: bool) -> None:
    if wanted:
        from loomos import __version__

        print(f"loomos {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: Annotated[
        str | None, typer.Option("--context", help="Context to use, as `loomos context list` says.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """AI training as durable pipelines. Exit codes: 0, 1 ended badly, 2 error, 130 Ctrl-C."""
    from loomos.contexts import choose

    choose(context)


def prepare() -> None:
    """Do what the config file says about the command line itself, if there is one."""
    from loomos.contexts import config_file

    if not config_file().exists():
        return
    import logging

    from loomos.cli.plugins import add_plugins
    from loomos.settings import OutputSettings, PluginsSettings, read_config_file

    content = read_config_file()
    try:
        level = OutputSettings(**content.get("output", {})).verbosity
        enabled = PluginsSettings(**content.get("plugins", {})).enabled
    except ValueError:
        return  # The command itself says what is wrong; `loomos config set` mends it.
    logging.basicConfig(level={"warn": "WARNING", "info": "WARNING"}.get(level, level.upper()))
    if enabled:
        add_plugins(app, enabled)


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
app.add_typer(contexts.app, name="context")
app.add_typer(auth.app, name="auth")
app.add_typer(upkeep.app, name="stack")
app.command()(upkeep.gc)
stack.register(app)
