"""What an evaluation proves, in the words of reporting checklists and of a model card; reasons are left to authors."""

from collections.abc import Mapping
from pathlib import Path

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.classification import METRICS
from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.reporting.evaluation.words import people, primary_estimates, shown, verdict
from fusion_jax.reporting.tables import format_interval, format_percent
from fusion_jax.wording import counted, listed

__all__ = ["checklist_evidence", "model_facts"]


def checklist_evidence(found: Evaluation, *, files: Mapping[str, str], software: str) -> dict[str, str]:
    """Evidence for `fill`, by key.

    Args:
      found: the evaluation.
      files: path of every table of predictions to its fingerprint.
      software: what made the numbers, with versions.
    """
    panel = found.panel
    evidence = {
        "software": software,
        "code": f"The numbers were made by {software.split(',', maxsplit=1)[0]} and its command evaluate",
        "sample_size": people(found),
        "unit_of_analysis": _unit(found),
        "missing_predictions": "Every model has a prediction of every case that was judged"
        + (f"; {panel.uncommon:,} that some model lacks were left out" if panel.uncommon else ""),
        "conditions": "Intervals are conditional on the trained models; nothing was adjusted for the number of "
        "metrics, tests and subgroups",
        "predictions": "; ".join(f"{Path(path).name} (SHA-256 {digest[:16]})" for path, digest in files.items()),
    }
    if panel.labels is not None and len(panel.classes) == 2:
        evidence["events"] = (
            f"{int(panel.labels.sum()):,} of {len(panel):,} {panel.level}s have label {panel.classes[1]}"
        )
    elif panel.event is not None:
        evidence["events"] = f"{int(panel.event.sum()):,} events, follow-up up to {float(max(panel.time)):g}"  # pyright: ignore[reportArgumentType]
    if found.judged is not None:
        metrics = dict.fromkeys(key.metric for key in found.judged.values)
        names = [METRICS[name].title() if name in METRICS else "AUC within folds" for name in metrics]
        evidence["performance_measures"] = listed(names, 20)
        evidence["performance"] = f"{_estimates(found)}; all in estimates.csv"
        evidence["statistics"] = _statistics(found)
    if found.view.name.startswith("ensemble"):
        evidence["ensembling"] = f"Scores are of an {found.view.name}: their mean score"
    elif found.judged is not None:
        evidence["ensembling"] = "No scores were averaged over seeds or repeats"
    if found.comparisons:
        evidence["comparison"] = (
            " ".join(verdict(found)) or "Paired differences of all pairs of models are in comparisons.csv"
        )
    if found.calibrations:
        evidence["calibration"] = "Slope, intercept, expected calibration error and curves: tables/calibration.csv"
        evidence["recalibration"] = "; ".join(
            f"{model}: {'on validation rows of the same fold' if one.recalibrated is not None else 'none'}"
            for model, one in found.calibrations.items()
        )
    if found.decision is not None:
        low, high = found.decision.thresholds[0], found.decision.thresholds[-1]
        evidence["decision_curve"] = (
            f"Net benefit over threshold probabilities from {format_percent(low, 0)} to {format_percent(high, 0)}"
        )
    if found.rules:
        evidence["thresholds"] = "; ".join(f"{rule.name}: {rule.origin}" for rule in found.rules)
        evidence["failures"] = "Every case with its outcome at every threshold is listed in cases.csv"
    if found.cells:
        columns = listed(dict.fromkeys(cell.column for cell in found.cells), 8)
        withheld = sum(bool(cell.withheld) for cell in found.cells if cell.metric == "auc")
        evidence["subgroups"] = f"By {columns}, tables/subgroups.csv; {counted(withheld, 'cell')} withheld"
        if any(cell.column == "site" for cell in found.cells):
            evidence["sites"] = "By site, tables/subgroups.csv"
    if found.folds or found.trainings:
        evidence["robustness"] = "Spread over folds and trainings: tables/folds.csv and tables/trainings.csv"
        evidence["partitions"] = f"{len(panel.fold_names) or 'No'} folds, {len(panel.run_names)} trainings of a model"
    if panel.patients is not None and any(part is not None for part in found.view.validation.values()):
        evidence["partition_disjoint"] = (
            "No patient is in validation and test rows of one training (checked; training rows are not in the table)"
        )
    return evidence


def model_facts(found: Evaluation, model: str, *, software: str) -> dict[str, str]:
    """Facts for a model card of one model, by key.

    Args:
      found: the evaluation.
      model: one of its models.
      software: what made the numbers, with versions.
    """
    facts = {
        "software": f"evaluated with {software}",
        "evaluation_size": people(found),
        "conditions": "The intervals are conditional on the trained model and on these cases",
        "out_of_scope": "The care of a patient: this is research software and no medical device",
    }
    if found.judged is not None:
        facts["measures"] = listed(
            [title(MetricKey(metric), found.protocol) for metric in dict.fromkeys(
                key.metric for key in found.judged.values if not key.rule and not key.of_class)], 12
        )  # fmt: skip
        facts["uncertainty"] = _statistics(found)
        first = primary_estimates(found)
        if model in first:
            row = first[model]
            name = title(MetricKey(found.protocol.primary), found.protocol)
            facts["overall"] = f"{name} {format_interval(row.value, row.low, row.high)}, {people(found)}"
    told = [sentence for one, sentence in zip(found.benefits, verdict(found), strict=True) if one.model == model]
    if told:
        facts["comparison"] = told[0]
    if model in found.calibrations:
        raw = found.calibrations[model].raw
        facts["calibration"] = f"slope {shown(raw.slope, 2)}, intercept {shown(raw.intercept, 2)}"
    if found.rules:
        facts["thresholds"] = "; ".join(f"{rule.name}: {rule.origin}" for rule in found.rules)
    if found.cells:
        facts["evaluated_factors"] = listed(dict.fromkeys(cell.column for cell in found.cells), 8)
        facts["subgroups"] = "tables/subgroups.csv"
    return facts


def _unit(found: Evaluation) -> str:
    panel = found.panel
    if panel.patients is None:
        return f"The {panel.level}; the table names no patients, so that {panel.level}s were taken as independent"
    return f"Figures are of {panel.level}s; intervals and tests are over patients" + (
        ", who have several rows" if panel.clustered else ", each with one row"
    )


def _estimates(found: Evaluation) -> str:
    name = title(MetricKey(found.protocol.primary), found.protocol)
    rows = primary_estimates(found)
    return f"{name}: " + "; ".join(
        f"{model} {format_interval(row.value, row.low, row.high)}" for model, row in rows.items()
    )


def _statistics(found: Evaluation) -> str:
    protocol = found.protocol
    unit = "patients" if found.panel.patients is not None else f"{found.panel.level}s"
    return (
        f"{format_percent(protocol.level, 0)} intervals: stratified bootstrap of {unit} ({protocol.resamples:,} "
        f"resamples, {protocol.interval}), DeLong for areas, Wilson for proportions; paired tests: bootstrap z, "
        "DeLong, exchange of ranks, McNemar; Holm and Benjamini-Hochberg over pairs of models"
    )
