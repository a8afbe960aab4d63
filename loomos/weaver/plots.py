"""Pictures of an experiment: drawn by Optuna from its trials, as PNG (matplotlib) or HTML (plotly).

Needs the extra `weaver`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna

from loomos.errors import InvalidInput
from loomos.jobs.experiments import TrialRecord, TrialState
from loomos.manifest import ExperimentSpec
from loomos.weaver.space import applies
from loomos.weaver.study import distribution

Plot = Literal["history", "importance", "parallel", "intermediate", "pareto"]

_PLOTS: dict[Plot, str] = {
    "history": "plot_optimization_history",
    "importance": "plot_param_importances",
    "parallel": "plot_parallel_coordinate",
    "intermediate": "plot_intermediate_values",
    "pareto": "plot_pareto_front",
}
_STATES = {
    TrialState.COMPLETED: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
}


def study_of(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> optuna.Study:
    """An Optuna study that holds finished trials, for its plots and analyses."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[metric.direction for metric in spec.metrics])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([metric.name for metric in spec.metrics])
    for trial in trials:
        if trial.state not in _STATES:
            continue
        is_whole = trial.state == TrialState.COMPLETED
        study.add_trial(
            optuna.trial.create_trial(
                state=_STATES[trial.state],
                values=trial.values if is_whole else None,
                params=trial.params,
                distributions={
                    name: distribution(parameter)
                    for name, parameter in spec.parameters.items()
                    if applies(parameter, trial.params)
                },
                intermediate_values=dict(trial.reports),
            )
        )
    return study


def draw(
    plot: Plot, spec: ExperimentSpec, trials: Sequence[TrialRecord], path: Path, metric: str = ""
) -> None:
    """Draw one plot into a file, `.png` or `.html`.

    Args:
        plot: what to draw.
        spec: the experiment.
        trials: its finished trials.
        path: the file.
        metric: which metric, where there are several. Default: the first.

    Raises:
        InvalidInput: there is too little to draw, or no such metric or kind of file.
    """
    if path.suffix not in (".png", ".html"):
        raise InvalidInput(f"{path}: name a .png or .html file")
    names = [found.name for found in spec.metrics]
    if metric and metric not in names:
        raise InvalidInput(f"metric: no {metric!r}; there are {', '.join(names)}")
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETED]
    if len(whole) < 2:
        raise InvalidInput(f"{len(whole)} trials are complete; two are needed to draw anything")
    if plot == "pareto" and len(names) not in (2, 3):
        raise InvalidInput(f"pareto: draws 2 or 3 metrics, there are {len(names)}")
    study = study_of(spec, trials)
    if path.suffix == ".html":
        _html(plot, study, path, names.index(metric or names[0]))
    else:
        _png(plot, study, path, names.index(metric or names[0]))


def _figure(drawing: Any, plot: Plot, study: optuna.Study, index: int) -> Any:
    """Have one of Optuna's two drawing modules draw."""
    draw_it = getattr(drawing, _PLOTS[plot])
    names = study.metric_names or []
    if plot in ("intermediate", "pareto"):
        return draw_it(study)
    if len(names) == 1:
        return draw_it(study, target_name=names[0])
    return draw_it(study, target=lambda trial: trial.values[index], target_name=names[index])


def _html(plot: Plot, study: optuna.Study, path: Path, index: int) -> None:
    from optuna import visualization

    _figure(visualization, plot, study, index).write_html(path, include_plotlyjs=True)


def _png(plot: Plot, study: optuna.Study, path: Path, index: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as visualization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        drawn = _figure(visualization, plot, study, index)
    figure = getattr(drawn, "figure", drawn)
    figure.set_size_inches(10, 6)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
