"""Fusion quality: numerical validation and the bundled PET-CT cohort (Wang et al. 2023).

python -m experiments.fusion_quality.run                      # both parts, about a minute on 2 cores
python -m experiments.fusion_quality.run --keys 3             # fewer simulated cases
python -m experiments.fusion_quality.run --parts cohort       # the cohort alone
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GAMMAS = (0.01, 0.1, 0.5, 1.0, 10.0, 100.0)
BANDWIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
RESCALINGS = ("none", "zscore", "minmax")
LENGTH_SCALES = (10.0, 50.0, 200.0)


@dataclass(frozen=True)
class Config:
    """Numerical validation of Wang et al. 2023 and the fusion quality of the bundled sarcoma cohort.

    Attributes:
      parts: what to run: the numerical validation, the cohort, or both.
      keys: number of simulated cases that every figure of the validation is a mean of.
      size_x: number of simulated image features.
      iterations: iterations that the encoding of sparse samples is averaged over.
      curve_points: values of gamma on the continuous curve.
      cohort_bandwidth: standard deviation of the kernel on the cohort, in standard deviations of a source.
      largest_size: largest encoding of the clinical values that is tried on the cohort.
      permutations: permutations of every null of the cohort.
      resamples: bootstrap resamples of the patients.
      seed: of sampling, permutations and bootstrap.
      out: folder of the results.
    """

    parts: Literal["both", "validation", "cohort"] = "both"
    keys: int = 10
    size_x: int = 1000
    iterations: int = 1000
    curve_points: int = 241
    cohort_bandwidth: float = 1.0
    largest_size: int = 1080
    permutations: int = 1999
    resamples: int = 1000
    seed: int = 0
    out: Path = Path("results/fusion_quality")
