"""What single numbers of the tumour say by themselves: the least that a network has to beat.

Volume and SUVmax are those of the sheet, measured on the grids of the scanner; nothing is trained for them.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data import Cohort
from fusion_jax.evaluation.classification import auc
from fusion_jax.evaluation.delong import delong, delong_interval

__all__ = ["SingleNumbers", "single_numbers"]

PARTITIONS = 100


class SingleNumbers(NamedTuple):
    """AUC for distant metastasis with 95 % intervals over patients (DeLong).

    Attributes:
      rows: name to AUC and the ends of its interval.
      spread: standard deviation of the AUC of the regression over `partitions` divisions into folds.
      partitions: number of them.
    """

    rows: dict[str, tuple[float, float, float]]
    spread: float
    partitions: int


def single_numbers(cohort: Cohort, *, folds: int = 6, partitions: int = PARTITIONS) -> SingleNumbers:
    """Tumour volume, SUVmax, and a logistic regression of both: standardised log volume and SUVmax, C = 0.1.

    The regression is scikit-learn's, fitted to the other folds; its AUC is that of all patients' out-of-fold
    probabilities, the mean over divisions, and its interval that of the mean probability of a patient.

    Args:
      cohort: with `tumour_volume_ml` and `suv_max` in its table.
      folds: of every division.
      partitions: random divisions, stratified by the label.

    Example:
      >>> from experiments.sarcoma_fusion.cohort import make_cohort
      >>> found = single_numbers(make_cohort(), partitions=2)
      >>> [round(auc, 3) for auc, _, _ in list(found.rows.values())[:2]]
      [0.745, 0.738]
    """
    label = np.asarray(cohort.label)
    table: Any = cohort.table
    volume, maximum = (table[name].to_numpy(float) for name in ("tumour_volume_ml", "suv_max"))
    scores = _out_of_fold(np.c_[np.log(volume), maximum], label, folds, partitions)
    areas = np.array([auc(label, column) for column in scores.T])
    rows = {
        "tumour volume": _area(label, volume),
        "SUVmax": _area(label, maximum),
        f"logistic regression of both, {folds} folds": (float(areas.mean()), *_area(label, scores.mean(axis=1))[1:]),
    }
    return SingleNumbers(rows, float(areas.std(ddof=1)), partitions)


def _area(label: Int[np.ndarray, "n"], score: Float[np.ndarray, "n"]) -> tuple[float, float, float]:
    found = delong(label, score)
    interval = delong_interval(found)
    return float(found.auc[0]), float(interval.low[0]), float(interval.high[0])


def _out_of_fold(
    x: Float[np.ndarray, "n f"], label: Int[np.ndarray, "n"], folds: int, partitions: int
) -> Float[np.ndarray, "n p"]:
    """Probabilities of patients that were not fitted, for every division."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    divisions = (StratifiedKFold(folds, shuffle=True, random_state=seed) for seed in range(partitions))
    found: list[Any] = [cross_val_predict(model, x, label, cv=one, method="predict_proba") for one in divisions]
    return np.stack(found)[:, :, 1].T
