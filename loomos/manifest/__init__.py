"""Manifests: what a person writes, validated, with templates and environments.

Example:
    >>> manifest = JobManifest.from_dict({
    ...     "apiVersion": "loomos.ai/v1", "kind": "TrainingJob",
    ...     "metadata": {"name": "probe"}, "spec": {"algorithm": "noop"}})
    >>> manifest.job.metadata.name
    'probe'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loomos.errors import FieldError, InvalidManifest
from loomos.manifest._campaign import (
    CampaignCurriculum,
    CampaignMember,
    CampaignPhase,
    CampaignSpec,
    RLCampaign,
)
from loomos.manifest._delivery import (
    BUILT_IN_SUITES,
    Guardrail,
    RolloutPlan,
    Stage,
    SuiteChoice,
    Verification,
)
from loomos.manifest._document import (
    field_errors,
    model_in,
    plain,
    read_document,
    read_mapping,
    read_scalar,
    validate,
    validate_as,
)
from loomos.manifest._document_model import Document, Labels, Metadata, Name, WholeDocument
from loomos.manifest._experiment import (
    Experiment,
    ExperimentSpec,
    Limit,
    Metric,
    Objective,
    Parameter,
    Population,
    Pruner,
    Sampler,
)
from loomos.manifest._expressions import holds
from loomos.manifest._learning import (
    DIFFICULTIES,
    Completions,
    Difficulty,
    DPOConfig,
    EnvironmentChoice,
    EnvironmentType,
    ExplorationStrategy,
    GRPOConfig,
    LanguagePPOConfig,
    PPOConfig,
    RewardFunction,
    RewardThread,
    WeaveConfig,
)
from loomos.manifest._local_path import (
    UPLOAD_SCHEME,
    LocalPath,
    NamedPath,
    is_explicit,
    named_paths,
    path_text,
)
from loomos.manifest._model import (
    UNSERVABLE_TYPES,
    Data,
    FineTuning,
    LoRA,
    Model,
    unservable,
)
from loomos.manifest._resources import NodeRange, Resources
from loomos.manifest._spec import (
    Dependency,
    EarlyStopping,
    Retries,
    Runtime,
    Strategy,
    TrainingJob,
    TrainingSpec,
)
from loomos.manifest._template import check_parameters, merge_patch, placeholders, substitute

__all__ = [
    "BUILT_IN_SUITES",
    "DIFFICULTIES",
    "UNSERVABLE_TYPES",
    "UPLOAD_SCHEME",
    "CampaignCurriculum",
    "CampaignMember",
    "CampaignPhase",
    "CampaignSpec",
    "Completions",
    "DPOConfig",
    "Data",
    "Dependency",
    "Difficulty",
    "Document",
    "EarlyStopping",
    "EnvironmentChoice",
    "EnvironmentType",
    "Experiment",
    "ExperimentSpec",
    "ExplorationStrategy",
    "FineTuning",
    "GRPOConfig",
    "Guardrail",
    "JobManifest",
    "Labels",
    "LanguagePPOConfig",
    "Limit",
    "LoRA",
    "LocalPath",
    "ManifestValidator",
    "Metadata",
    "Metric",
    "Model",
    "Name",
    "NamedPath",
    "NodeRange",
    "Objective",
    "PPOConfig",
    "Parameter",
    "Population",
    "Pruner",
    "RLCampaign",
    "Resources",
    "Retries",
    "RewardFunction",
    "RewardThread",
    "RolloutPlan",
    "Runtime",
    "Sampler",
    "Stage",
    "Strategy",
    "SuiteChoice",
    "TrainingJob",
    "TrainingSpec",
    "ValidationResult",
    "Verification",
    "WeaveConfig",
    "WholeDocument",
    "field_errors",
    "holds",
    "is_explicit",
    "json_schema",
    "model_in",
    "named_paths",
    "path_text",
    "read_document",
    "read_scalar",
    "unservable",
    "validate_as",
]


@dataclass(frozen=True, kw_only=True)
class JobManifest:
    """A manifest, perhaps still with open parameters and environments."""

    template: dict[str, Any]
    """The document as written, placeholders and `environments` included."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters given so far."""
    environment: str | None = None
    """Environment whose overlay applies."""
    source: str = "manifest"
    """Where it came from, for error messages."""
    folder: Path | None = None
    """Where relative paths in it are looked for first. Default: the working folder."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> JobManifest:
        """Wrap a document; it is checked when `job` is read or by `ManifestValidator`."""
        return cls(template=dict(document))

    @classmethod
    def from_text(cls, text: str, source: str = "manifest") -> JobManifest:
        """Parse YAML or JSON.

        Raises:
            InvalidManifest: the text does not parse to a mapping.
        """
        return cls(template=read_mapping(text, source), source=source)

    @classmethod
    def from_file(cls, path: str | Path) -> JobManifest:
        """Read a YAML or JSON file.

        Raises:
            InvalidManifest: it cannot be read or does not parse to a mapping.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InvalidManifest(
                [FieldError(path="$", message=f"cannot be read: {reason}")], str(path)
            ) from None
        return replace(cls.from_text(text, str(path)), folder=Path(path).absolute().parent)

    @classmethod
    def from_template(cls, path: str | Path, params: Mapping[str, Any]) -> JobManifest:
        """Read a template file and give it parameters."""
        return cls.from_file(path).with_params(params)

    def with_params(self, params: Mapping[str, Any]) -> JobManifest:
        """Return a copy with these parameters added or replaced.

        Raises:
            InvalidManifest: the template has no such parameter.
        """
        check_parameters(self.template, params, self.source)
        return replace(self, params={**self.params, **params})

    def for_environment(self, name: str) -> JobManifest:
        """Return a copy with the overlay of environment `name` applied.

        Raises:
            InvalidManifest: the manifest has no such environment.
        """
        known = self.template.get("environments", {})
        if not isinstance(known, Mapping) or name not in known:
            message = f"no environment {name!r}; it has " + (", ".join(known) or "none")
            raise InvalidManifest([FieldError(path="environments", message=message)], self.source)
        return replace(self, environment=name)

    def to_dict(self) -> dict[str, Any]:
        """The document with overlay and parameters in place.

        Raises:
            InvalidManifest: a parameter is missing.
        """
        document = plain(self.template, self.source)
        overlays = document.pop("environments", {})
        if self.environment is not None:
            document = merge_patch(document, overlays[self.environment])
        filled: dict[str, Any] = substitute(document, plain(self.params, self.source))
        missing = sorted(placeholders(filled))
        if missing:
            raise InvalidManifest(
                [FieldError(path=m, message="parameter not given") for m in missing], self.source
            )
        return filled

    @property
    def job(self) -> TrainingJob:
        """The validated job.

        Raises:
            InvalidManifest: with every error.
        """
        return validate(self.to_dict(), self.source)


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a `ManifestValidator` found."""

    errors: list[FieldError]
    """Every error, in document order."""

    @property
    def is_valid(self) -> bool:
        """Whether there is none."""
        return not self.errors


class ManifestValidator:
    """Checks manifests without raising."""

    def validate(self, manifest: JobManifest) -> ValidationResult:
        """Return every error of `manifest`."""
        try:
            _ = manifest.job
        except InvalidManifest as error:
            return ValidationResult(errors=error.errors)
        return ValidationResult(errors=[])


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a manifest."""
    schema = TrainingJob.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
