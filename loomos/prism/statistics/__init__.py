"""The statistics behind gates and canaries: pure functions, checked by simulation.

Gates use exact intervals, so that 0 failures of 30 never reads as "no failures". Canaries use
e-processes, so that one may look after every request and still quote an error rate.
"""

from __future__ import annotations

from loomos.prism.statistics.clusters import EffectiveSample, effective_sample
from loomos.prism.statistics.eprocess import ArmCounts, OneSample, SampleRatio, TwoSample
from loomos.prism.statistics.intervals import (
    Interval,
    clopper_pearson,
    p_above,
    p_below,
    rogan_gladen,
    wilson,
)
from loomos.prism.statistics.multiplicity import holm
from loomos.prism.statistics.paired import PairedTest, mcnemar
from loomos.prism.statistics.power import (
    missing_n,
    non_inferiority_n,
    non_inferiority_p,
    zero_failure_n,
)

__all__ = [
    "ArmCounts",
    "EffectiveSample",
    "Interval",
    "OneSample",
    "PairedTest",
    "SampleRatio",
    "TwoSample",
    "clopper_pearson",
    "effective_sample",
    "holm",
    "mcnemar",
    "missing_n",
    "non_inferiority_n",
    "non_inferiority_p",
    "p_above",
    "p_below",
    "rogan_gladen",
    "wilson",
    "zero_failure_n",
]
