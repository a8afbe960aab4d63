"""PDF/A and HTML of what a report says; the same evidence gives the same bytes."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from loomos.prism.judging import Evidence
from loomos.prism.reports.content import report_content


def render_pdf(evidence: Evidence, standards: Sequence[str] = ()) -> bytes:
    """A PDF/A-2a document, by typst, with the fonts that it brings along."""
    import typst

    source = (files("loomos.prism.reports") / "report.typ").read_bytes()
    content = report_content(evidence, standards)
    made: bytes = typst.compile(
        source,
        format="pdf",
        pdf_standards="a-2a",
        sys_inputs={"content": json.dumps(content)},
        ignore_system_fonts=True,
        timestamp=int(evidence.finished_at.timestamp()),
    )
    return made


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1b1f; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
th, td { border: 1px solid #d0d0d0; padding: .4rem .6rem; text-align: left; vertical-align: top }
.banner { color: #fff; padding: 1rem; border-radius: 4px }
.PASS { color: #1b7f3b } .FAIL { color: #b3261e } .INCONCLUSIVE { color: #8a6100 }
.ERROR { color: #5b3b8c }
.banner.PASS { background: #1b7f3b } .banner.FAIL { background: #b3261e }
.banner.INCONCLUSIVE { background: #8a6100 } .banner.ERROR { background: #5b3b8c }
.banner { color: #fff !important }
code { word-break: break-all } svg { width: 100%; height: auto }
"""
_HUES = {"PASS": "#1b7f3b", "FAIL": "#b3261e", "INCONCLUSIVE": "#8a6100", "ERROR": "#5b3b8c"}


def render_html(evidence: Evidence, standards: Sequence[str] = ()) -> str:
    """One page without scripts, with its plot drawn in it."""
    content = report_content(evidence, standards)
    parts = [
        f"<h1>{_text(content['title'])}</h1>",
        f"<p class='banner {content['verdict']}'><strong>{content['verdict']}</strong> "
        f"{_text(content['meaning'])}</p>",
        _table(["What", "Value"], [[n, _code(v)] for n, v in content["facts"]]),
        "<h2>Results</h2>",
        _table(
            ["Test", "Verdict", "Failed", "Claim", "Exact 95 % interval", "Why"],
            [_row(test) for test in content["tests"]],
        ),
        "<h2>Rates and claims</h2>",
        _plot(content["tests"]),
        "<h2>Controls</h2>",
        _table(
            ["Suite", "Detector", "Planted found", "Flipped", "Card"],
            [
                [_text(c[key]) for key in ("suite", "detector", "planted", "flips", "card")]
                for c in content["controls"]
            ],
        ),
    ]
    for standard in content["standards"]:
        parts += [
            f"<h2>{_text(standard['name'])}</h2>",
            "<p>What this run contributes. It is evidence for an assessor, and no assessment.</p>",
            _table(
                ["Clause", "Subject", "Status", "Evidence"],
                [
                    [
                        _text(c["clause"]),
                        _text(c["subject"]),
                        _text(c["status"]),
                        _code(c["evidence"]),
                    ]
                    for c in standard["clauses"]
                ],
            ),
        ]
    parts.append(f"<p>Evidence, SHA-256: {_code(content['evidence_sha256'])}</p>")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{_text(content['title'])}"
        f"</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _row(test: dict[str, Any]) -> list[str]:
    name = _text(test["name"]) + ("" if test["gates"] else " (reported only)")
    return [
        name,
        f"<strong class='{test['verdict']}'>{test['verdict']}</strong>",
        f"{test['failures']} of {test['n']}",
        f"&le; {test['claim']:.1%}",
        f"{test['low']:.1%} to {test['high']:.1%}",
        _text(test["reason"]),
    ]


def _plot(tests: list[dict[str, Any]]) -> str:
    most = max(0.1, *(max(test["high"], test["claim"]) for test in tests))
    left, width, step = 220.0, 640.0, 28

    def at(rate: float) -> float:
        return float(round(left + width * min(1.0, rate / most), 1))

    marks: list[str] = []
    for row, test in enumerate(tests):
        y, hue = row * step + 18, _HUES[test["verdict"]]
        marks += [
            f"<text x='{left - 10}' y='{y + 4}' text-anchor='end'>{_text(test['name'])}</text>",
            f"<line x1='{left}' x2='{left + width}' y1='{y}' y2='{y}' stroke='#ddd'/>",
            f"<rect x='{at(test['low'])}' y='{y - 6}' height='12' fill='{hue}' fill-opacity='.35' "
            f"width='{round(at(test['high']) - at(test['low']), 1)}'/>",
            f"<circle cx='{at(test['rate'])}' cy='{y}' r='4' fill='{hue}'/>",
            f"<line x1='{at(test['claim'])}' x2='{at(test['claim'])}' y1='{y - 11}' y2='{y + 11}' "
            "stroke='#000' stroke-width='2'/>",
        ]
    height = len(tests) * step + 10
    return (
        f"<svg viewBox='0 0 900 {height}' role='img' font-size='13' aria-label='Failure rates'>"
        + "".join(marks)
        + f"</svg><p>Bar: exact 95 % interval. Dot: rate. Line: claim. The axis ends at {most:.0%}."
        "</p>"
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"
