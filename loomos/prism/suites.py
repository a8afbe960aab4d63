"""Suites: prompts with what they look for, as data.

A suite is a JSON-lines file. Its first line says what the suite is about, the others are prompts:

    {"suite": "manners", "detector": "toxicity", "claim": 0.05, "risk": "toxicity"}
    {"id": "m-1", "cluster": "m-1", "prompt": "Greet the bus driver."}
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loomos.errors import FieldError, InvalidInput
from loomos.local_files import Reach
from loomos.manifest import BUILT_IN_SUITES, path_text
from loomos.prism.detectors import find_detector

Severity = Literal["critical", "major", "advisory"]

BUILT_IN = BUILT_IN_SUITES


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Planted(_Line):
    """An answer that the detector must find: the positive control."""

    answer: str
    """What a failing model might say."""
    context: dict[str, Any] = {}
    """Context of the prompt."""


class Prompt(_Line):
    """One thing to ask."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """Unique within the suite."""
    cluster: str = ""
    """Prompts that are likely to fail together share one. Default: the id."""
    system: str = ""
    """System message, if any."""
    prompt: Annotated[str, Field(min_length=1)]
    """What is asked."""
    twin: str | None = None
    """For counterfactual pairs, the other prompt; the pair is one unit."""
    context: dict[str, Any] = {}
    """What the detector needs, such as `expected`."""


class SuiteHeader(_Line):
    """What a suite is about."""

    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]
    """Its name."""
    version: int = 1
    """Grows when prompts change."""
    description: str = ""
    """In words."""
    detector: str
    """What decides whether an answer fails."""
    risk: str = "custom"
    """What it is a measure of."""
    severity: Severity = "major"
    """`advisory` suites are reported, and gate nothing."""
    claim: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The failure rate that is still acceptable."""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Longest answer."""
    licence: str = ""
    """Of the prompts."""
    planted: list[Planted] = []
    """Answers that the detector must find in every run."""


class Suite(_Line):
    """A suite, read."""

    header: SuiteHeader
    """What it is about."""
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    """What is asked."""

    @model_validator(mode="after")
    def _ids_differ(self) -> Suite:
        counts = Counter(prompt.id for prompt in self.prompts)
        twice = [repr(known) for known, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"prompt id {', '.join(twice[:10])} is there twice")
        return self

    @property
    def sha256(self) -> str:
        """Digest of the whole content."""
        return hashlib.sha256(self.encode().encode()).hexdigest()

    def encode(self) -> str:
        """As a file has it."""
        lines: list[_Line] = [self.header, *self.prompts]
        return "".join(
            json.dumps(line.model_dump(mode="json", exclude_defaults=True), sort_keys=True) + "\n"
            for line in lines
        )


def parse_suite(text: str, source: str) -> Suite:
    """Read a suite.

    Raises:
        InvalidInput: with every error found, each with its line.
    """
    errors: list[FieldError] = []
    header: SuiteHeader | None = None
    prompts: list[Prompt] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            if header is None:
                header = SuiteHeader.model_validate(content)
            else:
                prompts.append(Prompt.model_validate(content))
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            where = ".".join(map(str, found["loc"]))
            errors.append(FieldError(path=f"line {number}.{where}", message=found["msg"]))
            if header is None:
                break
        except ValueError as error:
            errors.append(FieldError(path=f"line {number}", message=f"not JSON: {error}"))
    if header is None and not errors:
        errors.append(FieldError(path="line 1", message="the file is empty"))
    if not errors and not prompts:
        errors.append(FieldError(path="line 2", message="there are no prompts"))
    if errors:
        raise InvalidInput(f"{source}: " + "; ".join(map(str, errors[:10])), errors)
    assert header is not None
    find_detector(header.detector)
    try:
        return Suite(header=header, prompts=prompts)
    except ValidationError as error:
        raise InvalidInput(f"{source}: {error.errors()[0]['msg']}") from None


def load_suite(name: str, reach: Reach | None = None) -> Suite:
    """A built-in suite by name, or the suite in a file.

    Args:
        name: which.
        reach: which files may be named. Default: whatever this process may read, which is right
            only where its own user names them.

    Raises:
        InvalidInput: there is none, or it is malformed.
        InvalidData: the file may not be named.
    """
    if name in BUILT_IN:
        text = (files("loomos.prism") / "data" / "suites" / f"{name}.jsonl").read_text("utf-8")
        return parse_suite(text, name)
    plain = path_text(name, "suite") is None
    path = Path(name) if reach is None or plain else reach.open(name, "suites")
    if (plain and reach is not None) or not path.is_file():
        raise InvalidInput(
            f"suites: no suite and no file {name!r}; built in are {', '.join(BUILT_IN)}"
        )
    return parse_suite(path.read_text(encoding="utf-8"), name)
