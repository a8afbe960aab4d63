"""What lies at the bottom of a failure, in words."""

from __future__ import annotations


def root_cause(error: BaseException) -> str:
    """The message of the error that caused all the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "message", "") or str(error) or type(error).__name__
