"""What the vitals say of the lesions before any image is seen, and whether radiologists' opinion foretells the gains.

Figures 4a and 4b of Hsieh et al.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.chest_xray_detection.cohort import CERTAINTY
from experiments.chest_xray_detection.features import PUBLISHED_ABLATION, RELEVANCE
from fusion_jax.arrays import Array
from fusion_jax.data import Cohort
from fusion_jax.data.synthetic import LESIONS, TRIAGE
from fusion_jax.evaluation.resampling import bootstrap, make_design, percentile_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PUBLISHED_CORRELATIONS",
    "RankCorrelation",
    "clinical_numbers",
    "correlation_table",
    "published_gains",
    "rank_correlation",
    "relevance_table",
]

PUBLISHED_CORRELATIONS: Mapping[tuple[str, str], float] = {
    ("enlarged_cardiac_silhouette", "age_years"): 0.21,
    ("pulmonary_edema", "age_years"): 0.19,
    ("consolidation", "resprate_per_min"): 0.21,
    ("enlarged_cardiac_silhouette", "resprate_per_min"): 0.16,
    ("consolidation", "o2sat_percent"): -0.12,
    ("pulmonary_edema", "pain"): 0.11,
    ("pleural_abnormality", "dbp_mmhg"): -0.13,
}
"""Of the 670 instances, between the certainty of a label and a vital; the largest of the figure."""

FEMALE = "female"

CONSTANT = 1e-6
"""Variance of a standardised column below which it holds one value in a resample; single precision leaves 1e-7."""

ADDED = {"age_years": "age", "temperature_f": "temp", "heartrate_bpm": "heartrate", "resprate_per_min": "resprate"}
"""Features that one set of the ablation adds to gender alone."""


class RankCorrelation(NamedTuple):
    """Spearman's correlation of two columns.

    Attributes:
      rho: the correlation; NaN where a column is constant.
      p_value: of a permutation test, two-sided.
      cells: rows, one a feature and lesion.
    """

    rho: float
    p_value: float
    cells: int


def clinical_numbers(cohort: Cohort, features: Sequence[str] = TRIAGE) -> "pd.DataFrame":
    """The clinical columns as numbers, NaN where missing; gender is 1 for a woman, called `female`."""
    table: Any = cohort.table[list(features)]
    if "gender" in table.columns:
        female = (table["gender"] == "F").astype(float).where(table["gender"].notna())
        table = table.drop(columns="gender").assign(**{FEMALE: female})
    return table.astype(float)


def correlation_table(
    cohort: Cohort,
    *,
    features: Sequence[str] = TRIAGE,
    lesions: Sequence[str] = LESIONS,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """Pearson's correlation of every lesion with every clinical column, with n and interval (Figure 4b).

    A lesion counts with the certainty of its reader (0 to 5) where the cohort has it, otherwise with 0 or 1. Cases that
    lack the vital are left out of its correlations. The interval is the percentile interval of resamples of patients,
    so that readings of one image do not count as several patients.

    Args:
      cohort: with the columns.
      features: clinical columns.
      lesions: columns.
      resamples: of the patients.
      level: of the intervals.
      seed: of the resamples.

    Returns:
      One row a pair: `lesion`, `feature`, `r`, `low`, `high`, `cases`, `patients`, and `published`, NaN where nothing
      is printed.
    """
    import pandas as pd

    numbers = clinical_numbers(cohort, features)
    scored = [CERTAINTY.format(name) for name in lesions]
    names = scored if set(scored) <= set(cohort.table.columns) else list(lesions)
    marked = cohort.table[names].to_numpy(np.float64)
    values = numbers.to_numpy(np.float64)
    there = ~np.isnan(values)
    # Standardised beforehand: sums of squares of blood pressures would lose digits in single precision.
    middle, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    values = np.where(there, (values - middle) / np.where(spread > 0, spread, 1), 0.0)
    marked = (marked - marked.mean(axis=0)) / np.where(marked.std(axis=0) > 0, marked.std(axis=0), 1)
    data = marked.astype(np.float32), values.astype(np.float32), there.astype(np.float32)
    design = make_design(None, cohort.patient_id)
    interval = percentile_interval(bootstrap(_correlations, data, design, resamples=resamples, seed=seed), level)
    found = np.asarray(_correlations(data, np.ones(len(cohort), np.float32)))
    rows = []
    for i, lesion in enumerate(lesions):
        for j, feature in enumerate(numbers.columns):
            rows.append(
                {
                    "lesion": lesion,
                    "feature": feature,
                    "r": float(found[i, j]),
                    "low": float(interval.low[i, j]),
                    "high": float(interval.high[i, j]),
                    "cases": int(there[:, j].sum()),
                    "patients": len(set(cohort.patient_id[there[:, j]])),
                    "published": PUBLISHED_CORRELATIONS.get((lesion, feature), float("nan")),
                }
            )
    return pd.DataFrame(rows)


def _correlations(data: tuple[Any, Any, Any], weights: Any) -> Array:
    r"""Weighted correlations `(k, t)` of lesions and features over the cases that have the feature."""
    marked, values, there = (jnp.asarray(part) for part in data)
    own = there * weights[:, None].astype(there.dtype)
    total = own.sum(axis=0, keepdims=True)
    mean_y, mean_x = marked.T @ own / total, (values * own).sum(axis=0, keepdims=True) / total
    covariance = marked.T @ (values * own) / total - mean_y * mean_x
    variance_y = jnp.square(marked).T @ own / total - jnp.square(mean_y)
    variance_x = (jnp.square(values) * own).sum(axis=0, keepdims=True) / total - jnp.square(mean_x)
    known = (variance_y > CONSTANT) & (variance_x > CONSTANT)
    return jnp.where(known, covariance / jnp.sqrt(jnp.where(known, variance_y * variance_x, 1)), jnp.nan)


def published_gains() -> dict[str, tuple[float, ...]]:
    """Average precision by lesion of every published set, in per cent."""
    return {name: row.precision for name, row in PUBLISHED_ABLATION.items()}


def relevance_table(precision: Mapping[str, Sequence[float]]) -> "pd.DataFrame":
    """Gain of average precision from adding one feature to gender, beside its relevance (Figure 4a).

    Args:
      precision: set of features, by the names of `FEATURE_SETS`, to average precision by `LESIONS`; with "gender" and
        any of the sets that add one feature to it.

    Returns:
      One row for each added feature and lesion: `feature`, `lesion`, `relevance`, `gain`.

    Raises:
      ValueError: no "gender", or no set that adds one feature to it.
    """
    import pandas as pd

    sets = {feature: f"gender + {word}" for feature, word in ADDED.items()}
    known = [name for name in sets.values() if name in precision]
    if "gender" not in precision or not known:
        raise ValueError(
            f"the ablation holds {', '.join(precision) or 'nothing'}; expected 'gender' and at least one of "
            f"{', '.join(sets.values())}."
        )
    rows = [
        {
            "feature": feature,
            "lesion": lesion,
            "relevance": RELEVANCE[feature][number],
            "gain": float(precision[name][number]) - float(precision["gender"][number]),
        }
        for feature, name in sets.items()
        if name in precision
        for number, lesion in enumerate(LESIONS)
    ]
    return pd.DataFrame(rows)


def rank_correlation(table: "pd.DataFrame", *, permutations: int = 9999, seed: int = 0) -> RankCorrelation:
    """Spearman's correlation of relevance and gain, tested by permuting the gains.

    Rows of one feature, and of one lesion, come from the same trainings, so that they are fewer than they look.

    Args:
      table: from `relevance_table`.
      permutations: of the test.
      seed: of the permutations.
    """
    from scipy.stats import permutation_test, rankdata

    x, y = (rankdata(table[name].to_numpy(float)) for name in ("relevance", "gain"))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(float("nan"), float("nan"), len(table))

    def rho(ranks: np.ndarray, axis: int = -1) -> Any:
        away = ranks - ranks.mean(axis=axis, keepdims=True)
        own = x - x.mean()
        return (away * own).sum(axis=axis) / np.sqrt(np.square(away).sum(axis=axis) * np.square(own).sum())

    found = permutation_test(
        (y,), rho, permutation_type="pairings", n_resamples=permutations, vectorized=True,
        rng=np.random.default_rng([seed]),
    )  # fmt: skip
    return RankCorrelation(float(found.statistic), float(found.pvalue), len(table))
