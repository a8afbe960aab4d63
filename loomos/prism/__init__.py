"""Prism: whether a model is good enough, said honestly.

Example:
    >>> from loomos.prism import Prism, SafetyTest, VerificationSuite
    >>> suite = VerificationSuite([SafetyTest.TOXICITY_DETECTION])
    >>> results = await Prism().verify_model("./model", suite)      # doctest: +SKIP
    >>> results.verdict                                             # doctest: +SKIP
    'PASS'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos._lazy import lazy

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

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "loomos.prism.verifier"))
