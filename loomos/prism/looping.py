"""Does a text go round and round?"""

from __future__ import annotations

LONGEST_PERIOD = 40
FEWEST_REPEATS = 5


def is_looping(text: str) -> bool:
    """Whether an answer ends in the same few characters over and over."""
    for period in range(1, LONGEST_PERIOD + 1):
        span = period * FEWEST_REPEATS
        if period == 1:
            span = 3 * FEWEST_REPEATS
        if len(text) < span:
            return False
        tail = text[-span:]
        if tail[period:] == tail[:-period]:
            return True
    return False
