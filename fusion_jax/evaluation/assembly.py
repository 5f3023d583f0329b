"""Everything that a table of predictions says about its models, from one call."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.benefit import Benefit, fusion_benefit
from fusion_jax.evaluation.calibration import (
    Calibration,
    Histogram,
    ReliabilityBins,
    calibration,
    prediction_histogram,
    reliability_bins,
)
from fusion_jax.evaluation.comparisons import Comparison, compare_pairs, survival_pairs
from fusion_jax.evaluation.decision import DecisionCurve, decision_curve, metrics_at_prevalence
from fusion_jax.evaluation.estimates import Judged, judge
from fusion_jax.evaluation.operating import READ_OFF, Rule, make_rules
from fusion_jax.evaluation.panel import Panel, Validation, View
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.recalibration import Recalibrated, ValidationRows, recalibrate
from fusion_jax.evaluation.reclassification import Change, changed_sides
from fusion_jax.evaluation.resampling import patients_alone
from fusion_jax.evaluation.spread import (
    FoldTest,
    FoldValue,
    TrainingSpread,
    fold_tests,
    fold_values,
    fold_warnings,
    training_spread,
)
from fusion_jax.evaluation.subgroups import Cell, judge_subgroups
from fusion_jax.evaluation.survival_follow_up import default_horizons
from fusion_jax.evaluation.survival_groups import GroupSurvival, risk_groups, survival_by_group
from fusion_jax.evaluation.survival_resampled import SurvivalComparison, compare_survival
from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Calibrated", "Evaluation", "Survival", "evaluate"]


RANKED = ("auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity")
CONCORDANCES = ("harrell_c", "uno_c")

CALIBRATED_ROWS = 50_000_000
"""Rows times resamples of a calibration: a resample fits three regressions, a minute a model at this number."""
LEAST_RESAMPLES = 500

FEW_OF_A_CLASS = 15
"""Patients of a class below which tests by resampling and DeLong's find differences that are not there: in 300 cohorts
of 100 patients and equal models the bootstrap at 5 % found one in 33 % with 2 positives, 13 % with 5, 11 % with 10,
7 % with 15; the exchange of ranks in no more than 7 % of any."""


class Calibrated(NamedTuple):
    """Calibration of one model.

    Attributes:
      raw: as the model answers.
      bins, histogram: for the reliability curve.
      recalibrated: the same after recalibration on the validation rows of each fold; None without them.
      fits: the maps that did it; None without validation rows.
    """

    raw: Calibration
    bins: ReliabilityBins
    histogram: Histogram
    recalibrated: Calibration | None
    fits: Recalibrated | None


class Survival(NamedTuple):
    """Survival metrics and curves by group of risk.

    Attributes:
      comparison: of all models.
      horizons: at which they are judged.
      groups: Kaplan-Meier curves of each model; empty where a patient has several rows, who would count twice.
      notes: what a reader has to know.
    """

    comparison: SurvivalComparison
    horizons: np.ndarray
    groups: Mapping[str, GroupSurvival]
    notes: tuple[str, ...]


class Evaluation(NamedTuple):
    """Everything that a report shows of one view.

    Attributes:
      panel, view, protocol: what was judged, and how.
      rules: operating points; empty with three classes and more.
      judged: metrics with intervals; None for tables with times alone.
      comparisons: all pairs of models.
      benefits: verdicts on fused models; empty where no single source was named.
      changes: which cases change sides, from each single source (or each model before) to each other model.
      folds, fold_tests: the primary metric in folds; empty without folds.
      trainings: spread over repeats and seeds; empty with one training.
      cells: subgroups.
      calibrations: of the models whose scores are probabilities.
      decision: net benefit of those models; None without any.
      prevalence: by operating point, figures for the population of the prevalence that was given; empty without one.
      survival: None without times.
      notes, rule_notes, calibration_notes: what a reader has to know of the whole, of the thresholds, of the
        probabilities.
      warnings: what has to be said before everything else.
    """

    panel: Panel
    view: View
    protocol: Protocol
    rules: tuple[Rule, ...]
    judged: Judged | None
    comparisons: tuple[Comparison, ...]
    benefits: tuple[Benefit, ...]
    changes: tuple[Change, ...]
    folds: tuple[FoldValue, ...]
    fold_tests: tuple[FoldTest, ...]
    trainings: tuple[TrainingSpread, ...]
    cells: tuple[Cell, ...]
    calibrations: Mapping[str, Calibrated]
    decision: DecisionCurve | None
    prevalence: Mapping[str, Mapping[str, Any]]
    survival: Survival | None
    notes: tuple[str, ...]
    rule_notes: tuple[str, ...]
    calibration_notes: tuple[str, ...]
    warnings: tuple[str, ...]


def evaluate(
    panel: Panel,
    protocol: Protocol | None = None,
    *,
    view: View | None = None,
    covariates: "pandas.DataFrame | None" = None,
    advance: Callable[[str], None] = lambda doing: None,
) -> Evaluation:
    """Judge all models of a panel on the same rows.

    Args:
      panel: of `make_panel`.
      protocol: what was fixed beforehand.
      view: which score of each row is judged; by default the ensemble of all trainings of a model.
      covariates: by case (index), columns to show subgroups of.
      advance: told what is being done.

    Returns:
      The evaluation. All intervals are conditional on the trained models; patients are the unit of all of them.

    Raises:
      ValueError: what cannot be judged, with the reason: one class only, a single source that is no model, a covariate
        that lacks cases.

    Example:
      >>> import pandas as pd
      >>> from fusion_jax.evaluation.panel import make_panel
      >>> from fusion_jax.records.predictions import check_predictions
      >>> rng = np.random.default_rng(0)
      >>> label = np.tile([0, 1], 50)
      >>> scores = {"image": label + rng.normal(0, 1.5, 100), "fused": label + rng.normal(0, 0.5, 100)}
      >>> tables = {
      ...     f"{name}.csv": pd.DataFrame({"case_id": np.arange(100), "label": label, "score": score})
      ...     for name, score in scores.items()
      ... }
      >>> found = evaluate(make_panel(check_predictions(tables)), Protocol(singles=("image",), resamples=200))
      >>> found.benefits[0].model, found.benefits[0].helped
      ('fused', True)
    """
    protocol = protocol or Protocol()
    view = view or panel.ensemble()
    notes, warnings = list(panel.notes), _independence(panel)
    if panel.labels is None and protocol.primary not in CONCORDANCES:
        protocol = replace(protocol, primary="harrell_c", test="bootstrap")
        notes.append("The table has times and no labels: Harrell's C is the primary metric.")
    few = _few(panel)
    warnings += few + _unequal_trainings(panel, view) + _crossing_folds(panel)
    rules: tuple[Rule, ...] = ()
    rule_notes, calibration_notes = (), []
    judged, comparisons, benefits, changes = None, (), (), ()
    folds, tests, trainings, cells = (), (), (), ()
    if panel.labels is not None:
        two = len(panel.classes) == 2
        if two and panel.labels.min() != panel.labels.max():
            rules, rule_notes = make_rules(panel, view, protocol)
            warnings += [warning for rule in rules if rule.name != READ_OFF for warning in rule.warnings]
        advance("resampling patients")
        judged = judge(panel, view, rules, protocol)
        alone = patients_alone(judged.design)
        if alone:
            notes.append(f"{counted(alone, 'patient')} alone with that pattern of labels never varied in resamples.")
        advance("comparing models")
        comparisons = compare_pairs(panel, view, judged, rules, protocol)
        if two and few and protocol.singles and protocol.test != "permutation" and protocol.primary in RANKED:
            protocol = replace(protocol, test="permutation")
            warnings.append(
                "With so few of a class the exchange of ranks decides whether fusion helped, not the test that was "
                "asked for: it keeps its level, and the others do not."
            )
        changes = _changes(panel, view, rules, protocol)
        advance("looking at folds and trainings")
        folds = fold_values(panel, protocol)
        tests = fold_tests(panel, folds, protocol)
        warnings += fold_warnings(panel, view)
        trainings = training_spread(panel, view, protocol)
        if two and covariates is not None:
            advance("looking at subgroups")
            cells = judge_subgroups(panel, view, rules, _joined(panel, covariates), protocol)
            shown = {cell.column for cell in cells}
            notes += [
                f"{column} has one value in all rows: no subgroups." for column in covariates if column not in shown
            ]
    calibrations, decision = _probabilities(panel, view, protocol, advance, calibration_notes)
    prevalence = _at_prevalence(panel, view, rules, protocol) if calibrations else {}
    if protocol.prevalence is not None and not prevalence:
        calibration_notes.append(
            f"Nothing is shown for a prevalence of {protocol.prevalence:g}: that needs probabilities of two classes."
        )
    survival = None
    if panel.time is not None and view.scores.ndim > 2:
        notes.append("Survival is not judged: of scores of several classes none says who is at higher risk.")
    elif panel.time is not None:
        advance("judging survival")
        survival = _survival(panel, view, protocol)
        comparisons += survival_pairs(view.models, survival.comparison)
    benefits = fusion_benefit(view.models, comparisons, protocol)
    if len(view.models) > 1 and not protocol.singles:
        notes.append(
            "No single source was named (--single), so no verdict is given on whether fusion helped; the differences "
            "of all pairs are listed."
        )
    return Evaluation(
        panel, view, protocol, rules, judged, comparisons, benefits, changes, folds, tests, trainings, cells,
        calibrations, decision, prevalence, survival, tuple(dict.fromkeys(notes)), rule_notes, tuple(calibration_notes),
        tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def _independence(panel: Panel) -> list[str]:
    if panel.patients is not None:
        return []
    warning = (
        f"The table does not say which {panel.level}s are of one patient. Intervals and tests assume independent "
        f"{panel.level}s, and are probably too narrow where patients have several."
    )
    return [warning]


def _few(panel: Panel) -> list[str]:
    sizes = panel.class_sizes
    if not sizes or not 0 < min(sizes) < FEW_OF_A_CLASS:
        return []
    least = sizes.index(min(sizes))
    warning = (
        f"Only {counted(sizes[least], panel.whom)} with label {panel.classes[least]}: with fewer than {FEW_OF_A_CLASS} "
        "of a class, intervals of the bootstrap and of DeLong are too narrow, and their p-values too small."
    )
    return [warning]


def _unequal_trainings(panel: Panel, view: View) -> list[str]:
    counts = {model: len(runs) for model, runs in panel.runs.items()}
    if len(set(counts.values())) == 1 or not view.name.startswith("ensemble"):
        return []
    warning = (
        "Models were not trained equally often ("
        + listed((f"{model} {count}" for model, count in counts.items()), 8)
        + "): the mean score of several trainings is better than one of them, and that gain is part of every "
        "difference. Judge training by training (--trainings each)."
    )
    return [warning]


def _crossing_folds(panel: Panel) -> list[str]:
    """Patients whose cases were tested in different folds of one training trained the models that tested them."""
    if panel.patients is None or not panel.clustered:
        return []
    names, codes = np.unique(panel.patients, return_inverse=True)
    crossing = np.zeros(len(names), bool)
    for run in (run for runs in panel.runs.values() for run in runs if run.folds is not None):
        folds: Any = run.folds
        lowest, highest = np.full(len(names), folds.max()), np.full(len(names), folds.min())
        np.minimum.at(lowest, codes, folds)
        np.maximum.at(highest, codes, folds)
        crossing |= lowest < highest
    if not crossing.any():
        return []
    warning = (
        f"{counted(int(crossing.sum()), 'patient')} ({listed(names[crossing].tolist())}) with cases in several folds "
        "of one training: if folds split a cross-validation, their other cases were trained on, and all figures are "
        "too good. Split by patient."
    )
    return [warning]


def _changes(panel: Panel, view: View, rules: tuple[Rule, ...], protocol: Protocol) -> tuple[Change, ...]:
    labels: Any = panel.labels
    found: list[Change] = []
    for rule in rules:
        for one, first in enumerate(view.models):
            for other, second in enumerate(view.models):
                from_single = first in protocol.singles and second not in protocol.singles
                if from_single or (not protocol.singles and one < other):
                    found += changed_sides(
                        labels, rule.decisions[one], rule.decisions[other], rule=rule.name, names=(first, second)
                    )
    return tuple(found)


def _joined(panel: Panel, covariates: Any) -> Any:
    """Covariates in the order of the panel's rows."""
    missing = [case for case in dict.fromkeys(panel.cases) if case not in covariates.index]
    if missing:
        raise ValueError(
            f"the covariates have no row of case {missing[0]!r} and {len(missing) - 1} others that were predicted; "
            "every case needs one. Check the ids, or leave the subgroups out."
        )
    if not covariates.index.is_unique:
        twice = covariates.index[covariates.index.duplicated()][0]
        raise ValueError(f"the covariates have two rows of case {twice!r}; expected one.")
    return covariates.loc[panel.cases].reset_index(drop=True)


def _probabilities(
    panel: Panel, view: View, protocol: Protocol, advance: Callable[[str], None], notes: list[str]
) -> tuple[dict[str, Calibrated], DecisionCurve | None]:
    """Calibration and net benefit of the models whose scores are probabilities."""
    usable = [number for number, model in enumerate(view.models) if panel.kinds[model] == "probability"]
    if panel.labels is None or len(panel.classes) != 2 or not usable:
        if panel.labels is not None and len(panel.classes) == 2:
            notes.append("Calibration and net benefit are left out: the scores are no probabilities.")
        return {}, None
    labels = panel.labels
    found = {}
    resamples = min(protocol.resamples, max(LEAST_RESAMPLES, CALIBRATED_ROWS // len(panel)))
    if resamples < protocol.resamples:
        notes.append(
            f"Calibration and net benefit rest on {resamples:,} resamples, because of the {len(panel):,} rows."
        )
    for number in usable:
        model, scores = view.models[number], view.scores[number]
        advance(f"calibrating {model}")
        options: dict[str, Any] = {
            "patients": panel.patients,
            "resamples": resamples,
            "simulations": min(1000, resamples),
            "level": protocol.level,
            "seed": protocol.seed,
        }
        again = _recalibrated(view, number, view.validation.get(model))
        found[model] = Calibrated(
            calibration(labels, scores, **options),
            reliability_bins(labels, scores, patients=panel.patients, level=protocol.level),
            prediction_histogram(labels, scores),
            None if again is None else calibration(labels, again.probabilities, **options),
            again,
        )
        if again is not None:
            notes += [f"{model}: {warning}" for warning in again.warnings]
    if all(each.recalibrated is None for each in found.values()):
        why = view.refused or "the table has no validation rows to fit one on"
        notes.append(f"No recalibration was tried: {why}.")
    advance("weighing decisions")
    decision = decision_curve(
        labels,
        view.scores[usable],
        single_sources=[number for number, index in enumerate(usable) if view.models[index] in protocol.singles],
        prevalence=protocol.prevalence,
        patients=panel.patients,
        resamples=resamples,
        level=protocol.level,
        seed=protocol.seed,
    )
    return found, decision


def _at_prevalence(
    panel: Panel, view: View, rules: tuple[Rule, ...], protocol: Protocol
) -> dict[str, Mapping[str, Any]]:
    """Predictive values at every operating point but the one that these rows chose, in the population asked for."""
    if protocol.prevalence is None or panel.labels is None:
        return {}
    return {
        rule.name: metrics_at_prevalence(
            panel.labels,
            rule.decisions,
            prevalence=protocol.prevalence,
            patients=panel.patients,
            resamples=protocol.resamples,
            level=protocol.level,
            seed=protocol.seed,
        )
        for rule in rules
        if rule.name != READ_OFF
    }


def _recalibrated(view: View, number: int, validation: Validation | None) -> Recalibrated | None:
    if validation is None:
        return None
    folds = view.folds if view.folds is not None else np.zeros(view.scores.shape[1], int)
    of = (
        validation.folds
        if view.folds is not None and validation.folds is not None
        else np.zeros(len(validation.units), int)
    )
    return recalibrate(view.scores[number], folds, validation=ValidationRows(validation.labels, validation.scores, of))


def _survival(panel: Panel, view: View, protocol: Protocol) -> Survival:
    time, event = panel.time, panel.event
    if time is None or event is None:
        raise ValueError("the table has a time and no event; survival needs both.")
    notes: list[str] = []
    if protocol.horizons is None:
        horizons = default_horizons(time, event)
        notes.append("Horizons are quartiles of the event times of these rows: no study named any.")
    else:
        horizons = np.asarray(protocol.horizons, float)
    comparison = compare_survival(
        view.scores.T,
        time,
        event,
        horizons,
        patients=panel.patients,
        resamples=protocol.resamples,
        level=protocol.level,
        seed=protocol.seed,
    )
    groups: dict[str, GroupSurvival] = {}
    if panel.clustered:
        notes.append("Kaplan-Meier curves are left out: patients have several rows, and would count several times.")
    else:
        for model, scores in zip(view.models, view.scores, strict=True):
            groups[model] = survival_by_group(time, event, risk_groups(scores), level=protocol.level)
        notes.append("Groups of risk are cut at the median of these rows; a new patient has no such group.")
    return Survival(comparison, horizons, groups, (*notes, *comparison.notes))
