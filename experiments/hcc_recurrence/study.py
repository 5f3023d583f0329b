"""The trainings on ten folds of patients, judged twice: slices as the paper counts them, and patients."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.hcc_recurrence.cohort import patients_of
from experiments.hcc_recurrence.encoding import FACTORS, NINE_BITS
from experiments.hcc_recurrence.models import CLAIMS, SELECTION
from fusion_jax.data import Cohort, Splits, k_fold
from fusion_jax.data.splits import leave_site_out
from fusion_jax.data.synthetic import liver_cancer_ct
from fusion_jax.data.synthetic.hepatocellular import FOLD_PATIENTS, SLICES
from fusion_jax.data.tabular import Column, Selection, columns_to_json, select
from fusion_jax.evaluation.assembly import Evaluation, evaluate
from fusion_jax.evaluation.classification import auc
from fusion_jax.evaluation.folds import per_fold
from fusion_jax.evaluation.paired import holm
from fusion_jax.evaluation.panel import make_panel
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.registry import make_recipe
from fusion_jax.training.keys import run_key

__all__ = [
    "Claim",
    "ClinicalCohorts",
    "Fold",
    "FoldMean",
    "claims_of",
    "clinical_cohorts",
    "declared_factors",
    "fold_means",
    "folds_of",
    "patient_level",
    "selections",
    "ten_folds",
]

FOLD_COLUMN = "fold"


class Fold(NamedTuple):
    """Composition of a fold.

    Attributes:
      name: of it.
      patients, slices: tested, and those that are trained on.
      without, recurring: tested patients of either class.
    """

    name: str
    patients: int
    slices: int
    train_patients: int
    train_slices: int
    without: int
    recurring: int


def ten_folds(cohort: Cohort, *, folds: int = 10, seed: int = 0) -> Splits:
    """The folds that a column `fold` names, if they are as many, or stratified ones of patients; slices follow.

    Raises:
      ValueError: on the paper's 65 and 102 patients, folds of another composition than its Table 2.
    """
    column = cohort.table.get(FOLD_COLUMN)
    names = [] if column is None else [_padded(str(name)) for name in column]
    if len(set(names)) == folds:
        splits = leave_site_out(dataclasses.replace(cohort, site=np.array(names, dtype=object)))
    else:
        splits = k_fold(cohort, folds, seed=seed)
    found = folds_of(cohort, splits)
    composition = sorted((fold.without, fold.recurring) for fold in found)
    totals = tuple(map(sum, zip(*composition, strict=True)))
    if totals == (102, 65) and len(found) == 10 and composition != sorted(FOLD_PATIENTS):
        raise ValueError(f"{cohort.name}: folds of {composition} patients; expected those of the paper's Table 2.")
    return splits


def folds_of(cohort: Cohort, splits: Splits) -> tuple[Fold, ...]:
    """Patients and slices of every fold, as the paper's Table 2 has them."""
    found = []
    for number, split in enumerate(splits.splits, start=1):
        rows = split.rows(cohort)
        first = np.unique(cohort.patient_id[rows.test], return_index=True)[1]
        labels = cohort.label[rows.test][first]
        train = np.concatenate([rows.train, rows.validation])
        found.append(
            Fold(
                split.name or str(number),
                len(first),
                len(rows.test),
                len(set(cohort.patient_id[train])),
                len(train),
                int((labels == 0).sum()),
                int((labels == 1).sum()),
            )
        )
    return tuple(found)


def is_published(folds: Sequence[Fold]) -> bool:
    """Whether patients and slices are those of Table 2."""
    return sorted(fold.slices for fold in folds) == sorted(SLICES) and sum(fold.patients for fold in folds) == 167


def _padded(name: str) -> str:
    """E2 before E10."""
    return re.sub(r"\d+", lambda found: found[0].zfill(2), name)


def declared_factors(cohort: Cohort) -> tuple[Column, ...]:
    """Factors of the paper that the cohort has as input columns.

    Raises:
      ValueError: it has none of them.
    """
    names = cohort.columns("input")
    found = tuple(column for column in FACTORS if column.name in names)
    if not found:
        raise ValueError(
            f"{cohort.name}: none of the paper's factors is an input column; expected some of "
            f"{', '.join(column.name for column in FACTORS)}. Name the columns so in cohort.toml."
        )
    return found


def selected_on_all(cohort: Cohort) -> tuple[Column, ...]:
    """The paper's selection: on all patients, those that will be tested among them; the best factor if none passes."""
    columns = declared_factors(cohort)
    found = _select(columns, cohort, cohort.case_id, "all")
    names = found.names or (min(found.tests, key=lambda test: test.p).factor,)
    return tuple(column for column in columns if column.name in names)


def selections(cohort: Cohort, splits: Splits) -> tuple[Selection, ...]:
    """What the training patients of every fold select."""
    columns = declared_factors(cohort)
    return tuple(_select(columns, cohort, split.train, f"r{split.repeat}_f{split.fold}") for split in splits.splits)


def _select(columns: tuple[Column, ...], cohort: Cohort, cases: Sequence[str], fold: str) -> Selection:
    inputs: Any = cohort.inputs
    return select(
        columns, inputs, cohort.label, cases,
        fold=fold, patients=cohort.patient_id, units=dict(cohort.units), **SELECTION,
    )  # fmt: skip


def patient_level(comparison: Comparison) -> Comparison:
    """The comparison judged by patients: of each the mean probability of its slices."""
    panel = make_panel(comparison.predictions, level="patient")
    protocol = comparison.evaluation.protocol
    return dataclasses.replace(comparison, panel=panel, evaluation=evaluate(panel, protocol))


class FoldMean(NamedTuple):
    """A model over folds.

    Attributes:
      accuracy, accuracy_sd: mean and sample standard deviation over folds, in percent, at a probability of one half.
      auc, auc_sd: of the area under the ROC curve.
    """

    accuracy: float
    accuracy_sd: float
    auc: float
    auc_sd: float


def fold_means(evaluation: Evaluation) -> dict[str, FoldMean]:
    """The paper's figures of every model: means over folds, the standard deviation that of a sample."""
    found = {}
    for model in evaluation.view.models:
        values = {
            metric: np.array([row.value for row in evaluation.folds if (row.model, row.metric) == (model, metric)])
            for metric in ("accuracy", "auc")
        }
        numbers = [
            float(number)
            for metric, scale in (("accuracy", 100), ("auc", 1))
            for number in (scale * np.nanmean(values[metric]), scale * np.nanstd(values[metric], ddof=1))
        ]
        found[model] = FoldMean(*numbers)
    return found


class Claim(NamedTuple):
    """A claim of the paper, put to this cohort.

    Attributes:
      what: is claimed.
      better, other: models.
      difference, low, high: in AUC, with its interval.
      p, p_holm: of the paired test, and adjusted over the claims.
    """

    what: str
    better: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def claims_of(evaluation: Evaluation) -> tuple[Claim, ...]:
    """Claims of which both models were judged, by the paired bootstrap over patients."""
    found = []
    for what, better, other in CLAIMS:
        for row in evaluation.comparisons:
            if row.metric == "auc" and row.test == "bootstrap z" and {row.first, row.second} == {better, other}:
                sign = 1 if row.first == better else -1
                low, high = sorted((sign * row.low, sign * row.high))
                found.append(Claim(what, better, other, sign * row.difference, low, high, row.p_value, float("nan")))
    adjusted = holm([claim.p for claim in found]) if found else []
    return tuple(claim._replace(p_holm=float(p)) for claim, p in zip(found, adjusted, strict=True))


class ClinicalCohorts(NamedTuple):
    """The clinical model on many synthetic cohorts.

    Attributes:
      auc, accuracy: mean over the folds of every cohort.
      auc_fold_sd, accuracy_fold_sd: standard deviation over its folds.
    """

    auc: tuple[float, ...]
    accuracy: tuple[float, ...]
    auc_fold_sd: tuple[float, ...]
    accuracy_fold_sd: tuple[float, ...]


def drawn_patients(seed: int) -> Cohort:
    """102 and 65 patients drawn from ten times as many that have the printed shares of every factor.

    In a cohort with exactly the printed counts the patients left out of a fold are missing from the others: factors
    that are strong among the tested are weak in training, and cross-validation is too pessimistic.
    """
    many = patients_of(liver_cancer_ct(10 * 167, size=64, seed=seed).cohort)
    rng = np.random.default_rng([seed])
    chosen = [
        rng.choice(np.flatnonzero(many.label == value), count, replace=False) for value, count in ((0, 102), (1, 65))
    ]
    return many.take(np.sort(np.concatenate(chosen)))


def clinical_cohorts(
    out: Path, count: int, *, trees: int, advance: Callable[[int, int], None] = lambda done, total: None
) -> ClinicalCohorts:
    """A forest on the nine bits of patients drawn with the printed shares, one row a patient, on ten folds each."""
    recipe = make_recipe("random-forest", {"trees": trees, "columns": columns_to_json(NINE_BITS), "leaf": 1})
    found = []
    for seed in range(count):
        advance(seed, count)
        cohort = drawn_patients(seed)
        splits = k_fold(cohort, 10, seed=seed)
        scores, folds = np.empty(len(cohort)), np.empty(len(cohort), np.int64)
        for number, split in enumerate(splits.splits):
            folder = out / f"c{seed:02d}_f{number}"
            folder.mkdir(parents=True, exist_ok=True)
            recipe.fit(cohort, split, run_key(seed, 0, number), folder)
            tested = split.rows(cohort).test
            scores[tested], folds[tested] = recipe.predict(folder, cohort, tested)[:, 1], number
        values = [per_fold(metric, cohort.label, scores, folds) for metric in (auc, _accuracy)]
        found.append((values[0].mean, 100 * values[1].mean, values[0].sd, 100 * values[1].sd))
    advance(count, count)
    return ClinicalCohorts(*zip(*found, strict=True))


def _accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean((scores >= 0.5) == (labels == 1)))


NO_INNER: Mapping[str, Any] = {"least": 1_000_000}
"""Nothing is set aside of the training patients: the paper names no stopping, and the last epoch is taken."""
