"""`loomos campaigns`: rounds of trainings whose policies are averaged."""

from __future__ import annotations

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
    from loomos.client.campaign_models import CampaignList
    from loomos.client.http import LoomOSClient
    from loomos.jobs.campaigns import CampaignStatus, RoundReport

app = typer.Typer(help="Train policies together, round by round.", no_args_is_help=True)

CampaignId = Annotated[str, typer.Argument(help="Id of the campaign, or what only it begins with.")]


@app.command()
def run(
    file: File = None,
    manifest: ManifestOption = None,
    follow: Annotated[bool, typer.Option(help="Wait until it is over.")] = False,
    output: Output = None,
) -> None:
    """Start a campaign; with --follow, exit code 1 unless it completes."""
    from loomos.manifest import RLCampaign, read_document

    path = manifest_of(file, manifest)
    campaign = read_document(path, RLCampaign)
    started = call(lambda client: client.campaigns.start(campaign, folder=path.absolute().parent))
    if follow:
        _follow(started, output)
        return
    _print(started, output)


@app.command("list")
def list_campaigns(output: Output = None) -> None:
    """List the newest campaigns."""

    async def work(client: LoomOSClient) -> CampaignList:
        return await client.campaigns.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("CAMPAIGN", "STATE", "ROUNDS", "RETURNS", "STARTED", "OWNER"),
            [
                (c.campaign_id, c.state, c.rounds, _numbers(c.returns), ago(c.started_at), c.owner)
                for c in found.campaigns
            ],
            spare=("OWNER", "STARTED"),
        )

    show(found, output, table)


@app.command()
def status(
    campaign_id: CampaignId,
    follow: Annotated[bool, typer.Option(help="Show rounds until it is over.")] = False,
    output: Output = None,
) -> None:
    """Show where a campaign is; exit code 1 if it has ended badly."""
    found = call_on("campaign", campaign_id, lambda client, one: client.campaigns.get(one))
    if follow:
        _follow(found, output)
        return
    _print(found, output)


@app.command()
def rounds(campaign_id: CampaignId, output: Output = None) -> None:
    """List the rounds of a campaign; round 0 is before any training."""
    found = call_on("campaign", campaign_id, lambda client, one: client.campaigns.get(one))

    def table() -> None:
        print_table(
            ("ROUND", "PHASE", "RETURNS", "SOLVED", "SCORES", "WEIGHTS", "FAILED"),
            [_row(report) for report in found.rounds],
        )

    show([report.model_dump(mode="json") for report in found.rounds], output, table)


@app.command()
def cancel(campaign_id: CampaignId, output: Output = None) -> None:
    """End a campaign and the trainings that run."""
    found = call_on("campaign", campaign_id, lambda client, one: client.campaigns.cancel(one))
    _print(found, output, is_judged=False)


@app.command()
def delete(campaign_id: CampaignId) -> None:
    """Forget a campaign that has ended, with the jobs that it started; models stay."""
    forget("campaign", campaign_id, lambda client, one: client.campaigns.delete(one))


# --- printing -----------------------------------------------------------------------------------


def _follow(campaign: CampaignStatus, output: Output) -> None:
    """Show rounds as they end; then the campaign."""
    shows = chosen(output) == Format.TABLE
    total = sum(phase.rounds for phase in campaign.known_spec.phases)

    async def work(client: LoomOSClient) -> CampaignStatus:
        found, told = campaign, 0
        with counting(campaign.campaign_id, total, shows=shows) as count:
            async for found in client.campaigns.follow(campaign.campaign_id):
                for event in found.timeline[told:]:
                    count(max(0, len(found.rounds) - 1), f"{event.state:<10} {event.message}")
                told = len(found.timeline)
        return found

    name = campaign.campaign_id
    goes_on = (
        f"campaign {name} goes on; `loomos campaigns status {name} --follow` follows it, "
        f"`loomos campaigns cancel {name}` ends it"
    )
    _print(call(work, goes_on), output)


def _print(campaign: CampaignStatus, output: Output, is_judged: bool = True) -> None:
    """Print a campaign; then end with code 1 if it is over and did not complete."""

    def table() -> None:
        print_facts(
            [
                ("campaign", campaign.campaign_id),
                ("state", f"{campaign.state}: {campaign.message}"),
                ("algorithm", campaign.spec and campaign.spec.algorithm),
                ("phase", campaign.phase),
                ("rounds", str(max(0, len(campaign.rounds) - 1))),
                ("weights", _numbers(campaign.weights) or None),
                ("started", ago(campaign.started_at)),
            ]
        )
        if campaign.policies:
            print()
            print_table(
                ("POLICY", "RETURN", "SOLVED", "DIFFICULTY", "VERSION"),
                [
                    (
                        label,
                        f"{policy.appraisal.mean_return:.4g}",
                        _share(policy.appraisal.success_rate),
                        policy.environment.config.get("difficulty", ""),
                        policy.version,
                    )
                    for label, policy in campaign.policies.items()
                ],
            )

    show(campaign, output, table)
    if is_judged:
        ends(campaign.state == "completed", campaign.state.is_final)


def _row(report: RoundReport) -> tuple[object, ...]:
    appraisals = report.appraisals.items()
    solved = [f"{n} {_share(a.success_rate)}" for n, a in appraisals if a.success_rate is not None]
    return (
        report.number,
        report.phase,
        _numbers({name: appraisal.mean_return for name, appraisal in appraisals}),
        ", ".join(solved),
        _numbers(report.scores),
        _numbers(report.weights),
        ", ".join(name for name, member in report.members.items() if member.error),
    )


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
