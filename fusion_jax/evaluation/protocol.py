"""What is fixed before anything is looked at: the primary metric, the tests, the margin, who is compared with whom."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusion_jax.wording import listed

__all__ = ["Primary", "Protocol"]

Primary: TypeAlias = Literal[
    "auc",
    "average_precision",
    "specificity_at_sensitivity",
    "sensitivity_at_specificity",
    "brier",
    "log_loss",
    "harrell_c",
    "uno_c",
]


@dataclass(frozen=True)
class Protocol:
    """How predictions are judged.

    Attributes:
      primary: the one metric by which a fused model is said to have helped; for tables with times alone, Harrell's C
        unless Uno's is named.
      test: of a difference between two models: the bootstrap z-test, DeLong's (AUC only), or the exchange of ranks.
      singles: models that see one source each. All others are fused, and have to beat every one of these.
      margin: the smallest gain in the primary metric that would matter, above 0.
      sensitivity, specificity: what is held when the other is read off.
      threshold: for every model's scores, fixed beforehand. Without it 0.5 stands for probabilities, and nothing for
        other scores.
      interval: how bootstrap intervals are read off the draws.
      resamples, permutations: their numbers.
      level: of confidence of every interval; tests are at 1 - level.
      least_cell: subgroups with fewer rows, or with fewer than five of a class, are withheld.
      prevalence: of the population that results are wanted for; None for that of these rows.
      horizons: times at which survival is judged, in the unit of the table; None for quartiles of the event times.
      seed: of all resampling.
      curves: whether bands of ROC and precision-recall curves are wanted.
    """

    primary: Primary = "auc"
    test: Literal["bootstrap", "delong", "permutation"] = "bootstrap"
    singles: tuple[str, ...] = ()
    margin: float | None = None
    sensitivity: float = 0.95
    specificity: float = 0.95
    threshold: float | None = None
    interval: Literal["percentile", "bca"] = "percentile"
    resamples: int = 5000
    permutations: int = 2000
    level: float = 0.95
    least_cell: int = 20
    prevalence: float | None = None
    horizons: tuple[float, ...] | None = None
    seed: int = 0
    curves: bool = True

    def target(self, metric: str) -> float:
        """The sensitivity or specificity that a metric holds; of others it is not asked.

        Example:
          >>> Protocol(specificity=0.9).target("sensitivity_at_specificity")
          0.9
        """
        return self.specificity if metric == "sensitivity_at_specificity" else self.sensitivity

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
          ValueError: a number outside its range, or a test that does not fit the metric.
        """
        for name, value in (
            ("sensitivity", self.sensitivity),
            ("specificity", self.specificity),
            ("level", self.level),
            ("prevalence", self.prevalence),
        ):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is {value:g}; expected a fraction between 0 and 1, such as 0.95.")
        for name, value, least in (
            ("resamples", self.resamples, 100),
            ("permutations", self.permutations, 100),
            ("least_cell", self.least_cell, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}.")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin > 0):
            raise ValueError(f"margin is {self.margin:g}; expected a gain above 0 in the unit of {self.primary}.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold:g}; expected a finite score.")
        if self.test == "delong" and self.primary != "auc":
            raise ValueError(f"DeLong's test is for the AUC, and the primary metric is {self.primary}; take bootstrap.")
        if self.test == "permutation" and self.primary in ("brier", "log_loss", "harrell_c", "uno_c"):
            raise ValueError(f"the exchange of ranks has no {self.primary}; take the bootstrap test.")
        if len(set(self.singles)) < len(self.singles):
            raise ValueError(f"singles name a model twice: {listed(self.singles)}.")
