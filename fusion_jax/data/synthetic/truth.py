"""What a generator knows of its cases and a model has to find out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fusion_jax.data.cohort import Cohort

__all__ = ["AUC", "Synthetic", "Truth", "area_under_curve", "auc_of_d_prime"]


class AUC(NamedTuple):
    """An area under the ROC curve.

    Attributes:
      value: between 0 and 1.
      standard_error: of the value, over the draw of the cases (DeLong).
    """

    value: float
    standard_error: float


class Truth(NamedTuple):
    """The truth about a synthetic cohort: no model can rank its cases better than the evidence does.

    Evidence is the log-likelihood ratio of the classes given everything a source tells about its case. Its AUC over the
    population is the largest that any model of that source can have (Neyman and Pearson).

    Attributes:
      targets: label columns of the cohort, k of them.
      label: the classes, 0 or 1, shape `(n, k)`.
      evidence: source to log-likelihood ratio, shape `(n, k)`; sources without a closed form are left out.
      together: log-likelihood ratio given all sources, shape `(n, k)`; None without a closed form.
      hidden: what the cases were made from, by name, one row a case.
    """

    targets: tuple[str, ...]
    label: Int[np.ndarray, "n k"]
    evidence: Mapping[str, Float[np.ndarray, "n k"]]
    together: Float[np.ndarray, "n k"] | None
    hidden: Mapping[str, Shaped[np.ndarray, "n ..."]]

    def auc(self, source: str | None = None, target: str | None = None) -> AUC:
        """Bayes-optimal AUC on these cases, of one source or of all together.

        The more cases, the closer to the population: images are made when they are read, so a cohort of a million cases
        answers this in seconds.

        Args:
          source: one of `evidence`; all sources together where None.
          target: one of `targets`; the first where None.

        Returns:
          The AUC with its standard error.

        Raises:
          ValueError: a source or target without evidence, or a cohort of one class.
        """
        if target is not None and target not in self.targets:
            raise ValueError(f"target {target!r}: this truth knows {', '.join(self.targets)}.")
        if source is not None and source not in self.evidence:
            known = ", ".join(self.evidence) or "none"
            raise ValueError(f"source {source!r} has no likelihood ratio in closed form; sources that have: {known}.")
        scores = self.together if source is None else self.evidence[source]
        if scores is None:
            raise ValueError("the sources together have no likelihood ratio in closed form. Name a source.")
        column = 0 if target is None else self.targets.index(target)
        return area_under_curve(scores[:, column], self.label[:, column] == 1)


class Synthetic(NamedTuple):
    """A synthetic cohort.

    Attributes:
      cohort: what a study would have.
      truth: what it would not.
    """

    cohort: Cohort
    truth: Truth


def area_under_curve(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> AUC:
    r"""Area under the ROC curve by the Mann-Whitney statistic, with DeLong's standard error.

    .. math:: A = P(S_1 > S_0) + \tfrac12 P(S_1 = S_0)

    Args:
      scores: any real numbers, shape `(n,)`.
      positive: cases of the positive class, shape `(n,)`.

    Returns:
      The AUC with its standard error, NaN where a class has one case.

    Raises:
      ValueError: one of the classes is absent.

    Example:
      >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])).value
      0.875

    References:
      DeLong et al. 1988, doi:10.2307/2531595; midranks as in Sun and Xu 2014, doi:10.1109/LSP.2014.2337313.
    """
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ValueError(f"{m} positive and {n} negative cases; an AUC needs both classes.")
    above, below = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([above, below]))
    wins = (ranks[:m] - rankdata(above)) / n
    losses = 1 - (ranks[m:] - rankdata(below)) / m
    if min(m, n) == 1:
        return AUC(float(wins.mean()), float("nan"))
    return AUC(float(wins.mean()), float(np.sqrt(wins.var(ddof=1) / m + losses.var(ddof=1) / n)))


def auc_of_d_prime(d_prime: float) -> float:
    r"""AUC of the best model of two normal classes of equal covariance.

    .. math:: A = \Phi(d' / \sqrt 2)

    Args:
      d_prime: distance of the class means in standard deviations (of the likelihood ratio's direction).

    Returns:
      The AUC.

    Example:
      >>> auc_of_d_prime(0.0), round(auc_of_d_prime(1.0), 4)
      (0.5, 0.7602)
    """
    from scipy.special import ndtr

    return float(ndtr(d_prime / np.sqrt(2)))
