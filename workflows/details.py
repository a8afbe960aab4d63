"""What a workflow shows of itself in Temporal's UI: a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable

from temporalio import workflow


def show_table(rows: Iterable[tuple[str, str]]) -> None:
    """Put names and values on the run's page."""
    body = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in rows)
    workflow.set_current_details(f"| | |\n|---|---|\n{body}")


def cell(text: str) -> str:
    """Text that does not break a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
