"""The space of an experiment: which parameters apply, which points are allowed, the grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loomos.errors import InvalidInput
from loomos.jobs.experiments import Params
from loomos.manifest import ExperimentSpec, Parameter, holds

MOST_GRID_POINTS = 100_000
MOST_GRID_LOOKS = 1_000_000
"""Points of which it is seen whether they are allowed."""
_TOO_MANY = (
    f"spec.sampler: the grid has more than {MOST_GRID_POINTS} points; use fewer values or another "
    "sampler"
)


def applies(parameter: Parameter, chosen: Mapping[str, object]) -> bool:
    """Whether a parameter has a value, given those chosen before it."""
    for name, wanted in parameter.when.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if not any(_same(chosen.get(name), value) for value in allowed):
            return False
    return True


def allowed(spec: ExperimentSpec, params: Params) -> bool:
    """Whether a point keeps every constraint.

    Raises:
        InvalidInput: a constraint cannot be computed.
    """
    try:
        return all(holds(condition, params) for condition in spec.constraints)
    except ValueError as error:
        raise InvalidInput(f"spec.constraints: {error}") from None


def contains(spec: ExperimentSpec, params: Params) -> bool:
    """Whether a point is one of the space: all that apply, nothing else, each within its range."""
    for name, parameter in spec.parameters.items():
        if applies(parameter, params) != (name in params):
            return False
        if name in params and not _has(parameter, params[name]):
            return False
    return params.keys() <= spec.parameters.keys() and allowed(spec, params)


def grid(spec: ExperimentSpec) -> list[Params]:
    """Every allowed point, the last parameter changing first.

    Raises:
        InvalidInput: there are too many.
    """
    points: list[Params] = []
    for looked_at, point in enumerate(_points(spec, list(spec.parameters), {})):
        if allowed(spec, point):
            points.append(point)
        if len(points) > MOST_GRID_POINTS or looked_at > MOST_GRID_LOOKS:
            raise InvalidInput(_TOO_MANY)
    return points


def _points(spec: ExperimentSpec, names: list[str], chosen: Params) -> Iterator[Params]:
    if not names:
        yield dict(chosen)
        return
    name, *rest = names
    parameter = spec.parameters[name]
    if not applies(parameter, chosen):
        yield from _points(spec, rest, chosen)
        return
    for value in values_of(parameter):
        yield from _points(spec, rest, {**chosen, name: value})


def values_of(parameter: Parameter) -> list[bool | int | float | str]:
    """Every value of a parameter that has finitely many.

    Raises:
        InvalidInput: there are too many.
    """
    if parameter.values is not None:
        return list(parameter.values)
    assert parameter.min is not None and parameter.max is not None
    step = parameter.step or 1.0
    count = int((parameter.max - parameter.min) / step + 1e-9) + 1
    if count > MOST_GRID_POINTS:
        raise InvalidInput(_TOO_MANY)
    reals = (parameter.min + step * i for i in range(count))
    return [round(value) if parameter.is_whole else value for value in reals]


def _has(parameter: Parameter, value: object) -> bool:
    if parameter.values is not None:
        return any(_same(value, known) for known in parameter.values)
    assert parameter.min is not None and parameter.max is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if parameter.is_whole and value != int(value):
        return False
    return parameter.min <= value <= parameter.max


def _same(a: object, b: object) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)
