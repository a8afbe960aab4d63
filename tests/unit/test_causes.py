"""What lies at the bottom of a failure."""

from __future__ import annotations

import itertools

from workflows.causes import root_cause


def chain(*errors: BaseException) -> BaseException:
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def test_the_last_cause_is_the_root() -> None:
    assert root_cause(chain(ValueError("a"), KeyError(), OSError("the disk"))) == "the disk"
    assert root_cause(KeyError()) == "KeyError"


def test_causes_that_go_round_in_a_circle_end() -> None:
    inner, outer = ValueError("not signed"), RuntimeError("activity failed")
    assert root_cause(chain(inner, outer, inner)) == "not signed"
    alone = ValueError("alone")
    assert root_cause(chain(alone, alone)) == "alone"
    entry = chain(RuntimeError("entry"), inner)
    assert root_cause(entry) == "not signed"
