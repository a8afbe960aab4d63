"""Prism: whether a model is good enough, said honestly.

Example:
    >>> from loomos.prism import Prism, SafetyTest, VerificationSuite
    >>> suite = VerificationSuite([SafetyTest.TOXICITY_DETECTION])
    >>> results = await Prism().verify_model("./model", suite)      # doctest: +SKIP
    >>> results.verdict                                             # doctest: +SKIP
    'PASS'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomos.prism.verifier import (
        STANDARDS,
        ComplianceReport,
        Prism,
        SafetyTest,
        VerificationResults,
        VerificationSuite,
    )

__all__ = [
    "STANDARDS",
    "ComplianceReport",
    "Prism",
    "SafetyTest",
    "VerificationResults",
    "VerificationSuite",
]


def __getattr__(name: str) -> Any:
    """Load the verifier when it is first named: detectors and statistics need nothing of it."""
    if name in __all__:
        from loomos.prism import verifier

        return getattr(verifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
