"""Every metric of every model with its interval, all of them from the same resamples of the patients."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.evaluation.classification import METRICS, metric_value
from fusion_jax.evaluation.delong import delong, delong_interval
from fusion_jax.evaluation.folds import within_fold_auc
from fusion_jax.evaluation.multiclass import confusion_matrix, one_versus_rest
from fusion_jax.evaluation.operating import READ_OFF, Rule
from fusion_jax.evaluation.panel import Panel, View
from fusion_jax.evaluation.proportions import clopper_pearson_interval, clustered_proportion
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.ranked import (
    ClassificationData,
    ClassificationStatistics,
    Curves,
    classification_statistics,
    curve_statistics,
    exact_ratio,
    make_fold_pairs,
    make_ranked,
    row_losses,
    stack_ranked,
)
from fusion_jax.evaluation.resampling import (
    Design,
    Interval,
    bca_interval,
    bootstrap,
    jackknife,
    make_design,
    percentile_interval,
)

__all__ = ["DECISION_METRICS", "Estimate", "Judged", "MetricKey", "judge", "larger_is_better", "title"]

DECISION_METRICS = ("accuracy", "sensitivity", "specificity", "precision", "f1", "balanced_accuracy", "mcc")
PROPORTIONS = ("accuracy", "sensitivity", "specificity", "precision")
LOSSES = ("brier", "log_loss")
OTHER_TITLES = {"within_fold_auc": "AUC within folds", "harrell_c": "Harrell's C", "uno_c": "Uno's C"}

# With the threshold taken as given, the interval of the specificity at 95 % sensitivity of a published model is
# [47.6, 50.7]; with the threshold read off again in every resample it is [38.9, 55.3].
NO_INTERVAL = Interval(np.nan, np.nan)
CHOSEN_HERE = "none: these rows chose the threshold"
NEVER_VARIED = "none: the same in every resample, which is no certainty"

SMALL_STRATUM = 10
"""Patients with several labels share a stratum where fewer than this have just these labels: a stratum of g patients
loses the share 1 / g of its variance, and with many classes most patients would be alone in theirs."""


class MetricKey(NamedTuple):
    """What a number is of.

    Attributes:
      metric: its name in `METRICS`, or `within_fold_auc`, `harrell_c` or `uno_c`.
      rule: how scores became decisions; empty for metrics of scores.
      of_class: one class against the rest, of three and more; empty for two classes, and for the mean over classes.
    """

    metric: str
    rule: str = ""
    of_class: str = ""


class Estimate(NamedTuple):
    """One number with its interval.

    Attributes:
      model, metric, rule, of_class: what it is of, as in `MetricKey`.
      value: of all rows, in double precision.
      low, high: ends of the interval.
      low_error, high_error: Monte-Carlo standard errors of the ends; None where nothing was resampled.
      method: of the interval, in words.
      rows, events, patients: what it rests on: the rows of its denominator, those that count, and how many patients
        they are of (None: the table does not tell).
      undefined: resamples in which it did not exist, and which were left out.
    """

    model: str
    metric: str
    rule: str
    of_class: str
    value: float
    low: float
    high: float
    low_error: float | None
    high_error: float | None
    method: str
    rows: int
    events: int
    patients: int | None
    undefined: int = 0


class Judged(NamedTuple):
    """Metrics of a view, and the resamples that everything else is read off.

    Attributes:
      estimates: the first of several for one key is the one to report.
      values: of each key that was resampled, shape `(m,)`. Figures at a threshold that the rows themselves chose are
        not: as if it were known, their intervals and tests would be far too sure.
      draws: of the same keys, shape `(r, m)`.
      design: who was drawn with whom.
      curves: point curves and bands on a grid, or None: `Curves` of values, low and high ends, each `(m, g)`.
      alone: why no resample tells how sure anything is: a class of one patient, who is in all of them; empty otherwise.
    """

    estimates: tuple[Estimate, ...]
    values: Mapping[MetricKey, Float[np.ndarray, "m"]]
    draws: Mapping[MetricKey, Float[np.ndarray, "r m"]]
    design: Design
    curves: tuple[Curves, Curves, Curves] | None
    alone: str = ""


def title(key: MetricKey, protocol: Protocol) -> str:
    """What a metric is called in a table.

    Example:
      >>> title(MetricKey("specificity_at_sensitivity"), Protocol())
      'Specificity at 95 % sensitivity'
    """
    if key.metric in OTHER_TITLES:
        name = OTHER_TITLES[key.metric]
    else:
        name = METRICS[key.metric].title(protocol.target(key.metric))
    return f"{name}, {key.of_class} against the rest" if key.of_class else name


def larger_is_better(metric: str) -> bool:
    """Whether a larger value is a better one."""
    return metric in OTHER_TITLES or METRICS[metric].larger_is_better


def judge(panel: Panel, view: View, rules: tuple[Rule, ...], protocol: Protocol) -> Judged:
    """All metrics of all models of a view.

    Args:
      panel: with labels.
      view: one score for each model and row.
      rules: operating points at which decisions are judged; none with three classes and more, where the class of the
        highest score is the decision.
      protocol: numbers of resamples, level, targets.

    Returns:
      Estimates in the order of models; intervals of proportions are Wilson's (over patients), of areas the bootstrap's
      and DeLong's, of all others the bootstrap's. Patients are resampled, in strata of their labels.

    Raises:
      ValueError: rows of one class only.
    """
    if panel.labels is None:
        raise ValueError("the table has no labels; classification metrics need them.")
    missing = [name for number, name in enumerate(panel.classes) if not (panel.labels == number).any()]
    if missing:
        raise ValueError(
            f"no test row has the label {missing[0]!r}; {len(panel)} rows of the others cannot show how well the "
            "models tell them apart."
        )
    if len(panel.classes) > 2:
        return _judge_classes(panel, view, protocol)
    labels = panel.labels
    design = _design(panel)
    probabilities = _probable(panel, view)
    data = ClassificationData(
        ranked=make_ranked(labels, view.scores),
        positive=labels,
        pairs=None if view.folds is None else make_fold_pairs(labels, view.scores, view.folds),
        sensitivities=exact_ratio(protocol.sensitivity)[None],
        specificities=exact_ratio(protocol.specificity)[None],
        decisions={rule.name: rule.decisions for rule in rules if rule.name != READ_OFF},
        losses=row_losses(labels, np.where(probabilities[:, None], view.scores, 0.5)) if probabilities.any() else {},
    )
    sample = bootstrap(_statistics, data, design, resamples=protocol.resamples, seed=protocol.seed)
    draws = _flat(sample[0])
    values = _values(panel, view, rules, protocol)
    for metric in LOSSES:
        if MetricKey(metric) in draws:
            draws[MetricKey(metric)] = np.where(probabilities, draws[MetricKey(metric)], np.nan)
    intervals = _intervals(values, draws, data, design, protocol)
    estimates = _estimates(panel, view, rules, values, draws, intervals, protocol)
    curves = _bands(data, sample[1], protocol) if protocol.curves else None
    resampled = {key: value for key, value in values.items() if key in draws}
    return Judged(estimates, resampled, {key: draws[key] for key in resampled}, design, curves, _alone(panel))


def _design(panel: Panel) -> Design:
    """Patients in strata of their labels, rare sets of several labels together."""
    labels: Any = panel.labels
    design = make_design(labels, panel.patients)
    pairs = np.unique(np.stack([design.cluster, labels.astype(design.cluster.dtype)], axis=1), axis=0)
    several = np.bincount(pairs[:, 0], minlength=len(design.stratum)) > 1
    rare = several & (np.bincount(design.stratum)[design.stratum] < SMALL_STRATUM)
    if not rare.any():
        return design
    merged = np.where(rare, design.stratum[rare].min(), design.stratum)
    return design._replace(stratum=np.unique(merged, return_inverse=True)[1].astype(design.stratum.dtype))


def _alone(panel: Panel) -> str:
    for name, size in zip(panel.classes, panel.class_sizes, strict=True):
        if size == 1:
            return f"none: a single {panel.whom} has the label {name}"
    return ""


def _statistics(data: ClassificationData, weights: Any) -> tuple[ClassificationStatistics, Curves]:
    return classification_statistics(data, weights), curve_statistics(data.ranked, weights)


def _probable(panel: Panel, view: View) -> Bool[np.ndarray, "m"]:
    return np.array([panel.kinds[model] == "probability" for model in view.models])


def _values(
    panel: Panel, view: View, rules: tuple[Rule, ...], protocol: Protocol
) -> dict[MetricKey, Float[np.ndarray, "m"]]:
    """Point estimates in double precision on the host."""
    labels: Any = panel.labels
    probabilities = _probable(panel, view)
    values = {}
    for metric in ("auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity"):
        values[MetricKey(metric)] = np.array(
            [metric_value(metric, labels, scores, target=protocol.target(metric)) for scores in view.scores]
        )
    if view.folds is not None:
        folds = view.folds
        values[MetricKey("within_fold_auc")] = np.array(
            [within_fold_auc(labels, scores, folds) for scores in view.scores]
        )
    for metric in LOSSES if probabilities.any() else ():
        values[MetricKey(metric)] = np.array(
            [
                metric_value(metric, labels, scores) if probable else np.nan
                for scores, probable in zip(view.scores, probabilities, strict=True)
            ]
        )
    for rule in rules:
        for metric in DECISION_METRICS:
            values[MetricKey(metric, rule.name)] = np.array(
                [metric_value(metric, labels, decisions, threshold=1) for decisions in rule.decisions]
            )
    return values


def _flat(statistics: ClassificationStatistics) -> dict[MetricKey, Float[np.ndarray, "r m"]]:
    found = {
        MetricKey("auc"): statistics.auc,
        MetricKey("average_precision"): statistics.average_precision,
        MetricKey("specificity_at_sensitivity"): statistics.specificity_at_sensitivity[..., 0],
        MetricKey("sensitivity_at_specificity"): statistics.sensitivity_at_specificity[..., 0],
    }
    if statistics.within_fold_auc is not None:
        found[MetricKey("within_fold_auc")] = statistics.within_fold_auc
    for name, loss in statistics.losses.items():
        found[MetricKey(name)] = loss
    for rule, rates in statistics.decisions.items():
        for metric, value in rates._asdict().items():
            found[MetricKey(metric, rule)] = value
    return {key: np.asarray(value, float) for key, value in found.items()}


def _intervals(
    values: Mapping[MetricKey, Float[np.ndarray, "m"]],
    draws: Mapping[MetricKey, Float[np.ndarray, "r m"]],
    data: ClassificationData,
    design: Design,
    protocol: Protocol,
) -> dict[MetricKey, Interval]:
    if protocol.interval == "percentile":
        return {key: percentile_interval(draws[key], protocol.level) for key in values if key in draws}
    left_out = jackknife(classification_statistics, data, design)
    without = _flat(left_out.values)
    return {
        key: bca_interval(value, draws[key], without[key], left_out.stratum, protocol.level)
        for key, value in values.items()
        if key in draws
    }


def _estimates(
    panel: Panel,
    view: View,
    rules: tuple[Rule, ...],
    values: Mapping[MetricKey, Float[np.ndarray, "m"]],
    draws: Mapping[MetricKey, Float[np.ndarray, "r m"]],
    intervals: Mapping[MetricKey, Interval],
    protocol: Protocol,
) -> tuple[Estimate, ...]:
    labels: Any = panel.labels
    whole = {"rows": len(panel), "events": int(labels.sum()), "patients": panel.patient_count}
    resampled = _resampled(panel, protocol)
    analytic = delong(labels, view.scores.T, panel.patients)
    area = delong_interval(analytic, protocol.level, scale="logit")
    by_rule = {rule.name: rule for rule in rules}
    found = []
    for number, model in enumerate(view.models):
        for key, value in values.items():
            if np.isnan(value[number]) and key.metric in LOSSES:
                continue  # scores of this model are no probabilities
            if key.rule == READ_OFF:
                found.append(_estimate(model, key, value[number], NO_INTERVAL, CHOSEN_HERE, whole))
                continue
            if key.metric in PROPORTIONS and key.rule:
                found += _proportion(panel, key, by_rule[key.rule].decisions[number], model, protocol)
            ends, how = _trusted(_at(intervals[key], number), draws[key][:, number], resampled, _alone(panel))
            found.append(_estimate(model, key, value[number], ends, how, whole))
            if key.metric == "auc":
                method = f"{'clustered DeLong (Obuchowski)' if analytic.clustered else 'DeLong'}, logit scale"
                ends = Interval(float(area.low[number]), float(area.high[number]))
                if not analytic.standard_error[number] > 0:  # constant scores, or classes parted perfectly
                    ends = NO_INTERVAL
                found.append(_estimate(model, key, value[number], ends, method, whole))
    return tuple(found)


def _resampled(panel: Panel, protocol: Protocol) -> str:
    kind = "percentile" if protocol.interval == "percentile" else "BCa"
    unit = "patients" if panel.patients is not None else f"{panel.level}s"
    return f"stratified bootstrap of {unit}, {protocol.resamples:,} resamples, {kind}"


def _trusted(interval: Interval, draws: Float[np.ndarray, "r"], method: str, alone: str) -> tuple[Interval, str]:
    """The interval with its method, or none with the reason where the draws cannot know it."""
    if alone:
        return NO_INTERVAL, alone
    known = draws[~np.isnan(draws)]
    # Classes that are parted perfectly are so in every resample: [1, 1] would be a claim of certainty.
    if len(known) and known.min() == known.max():
        return NO_INTERVAL, NEVER_VARIED
    return interval, method


def _at(interval: Interval, number: int) -> Interval:
    return Interval(*(None if part is None else np.asarray(part)[number] for part in interval))


def _estimate(
    model: str, key: MetricKey, value: Any, interval: Interval, method: str, basis: Mapping[str, Any]
) -> Estimate:
    def number(part: Any) -> float | None:
        return None if part is None else float(part)

    return Estimate(
        model=model,
        metric=key.metric,
        rule=key.rule,
        of_class=key.of_class,
        value=float(value),
        low=float(interval.low),
        high=float(interval.high),
        low_error=number(interval.low_error),
        high_error=number(interval.high_error),
        method=method,
        rows=basis["rows"],
        events=basis["events"],
        patients=basis["patients"],
        undefined=int(interval.undefined or 0),
    )


def _proportion(
    panel: Panel, key: MetricKey, decisions: Int[np.ndarray, "n"], model: str, protocol: Protocol
) -> list[Estimate]:
    """Wilson's interval over patients and, where every patient has one row, the exact one."""
    labels: Any = panel.labels
    rows = {
        "accuracy": np.ones(len(panel), bool),
        "sensitivity": labels == 1,
        "specificity": labels == 0,
        "precision": decisions == 1,
    }[key.metric]
    outcome = (decisions == labels)[rows].astype(int)
    if not len(outcome):
        return []
    share = clustered_proportion(outcome, None if panel.patients is None else panel.patients[rows], protocol.level)
    basis = {
        "rows": share.rows,
        "events": share.successes,
        "patients": None if panel.patients is None else share.patients,
    }
    method = "Wilson over patients" if share.patients < share.rows else "Wilson"
    ends = Interval(share.low, share.high)
    found = [_estimate(model, key, share.estimate, ends, method, basis)]
    if share.patients == share.rows:
        exact = clopper_pearson_interval(share.successes, share.rows, protocol.level)
        found.append(_estimate(model, key, share.estimate, exact, "Clopper-Pearson", basis))
    return found


def _bands(data: ClassificationData, sample: Curves, protocol: Protocol) -> tuple[Curves, Curves, Curves]:
    import jax

    rows = np.shape(data.positive)[-1]
    point = jax.jit(curve_statistics)(data.ranked, np.ones(rows, np.float32))
    bands = [percentile_interval(draws, protocol.level) for draws in sample]
    return (
        Curves(*(np.asarray(part) for part in point)),
        Curves(*(band.low for band in bands)),
        Curves(*(band.high for band in bands)),
    )


# Three classes and more.


def _judge_classes(panel: Panel, view: View, protocol: Protocol) -> Judged:
    """Each class against the rest, their mean, and the decision for the class of the highest score."""
    labels: Any = panel.labels
    k, m = len(panel.classes), len(view.models)
    probabilities = _probable(panel, view)
    positive = np.stack([labels == number for number in range(k)]).astype(int)
    decided = view.scores.argmax(axis=-1)
    design = _design(panel)
    one_rest = ClassificationData(
        ranked=stack_ranked(
            [make_ranked(positive[c], view.scores[model, :, c]) for model in range(m) for c in range(k)],
            rows=len(panel),
        ),
        positive=np.tile(positive, (m, 1)),
        sensitivities=exact_ratio(protocol.sensitivity)[None],
        specificities=exact_ratio(protocol.specificity)[None],
        decisions={"highest": (decided[:, None] == np.arange(k)[:, None]).astype(int).reshape(m * k, -1)},
        losses={
            "right": np.repeat(decided == labels, k, axis=0).astype(float),
            **{
                name: np.repeat(loss, k, axis=0)
                for name, loss in _class_losses(labels, view.scores, probabilities).items()
            },
        },
    )
    draws, values = {}, {}
    sample = _flat_classes(
        bootstrap(classification_statistics, one_rest, design, resamples=protocol.resamples, seed=protocol.seed), m, k
    )
    for model in range(m):
        for metric in ("auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity"):
            rest = one_versus_rest(labels, view.scores[model], metric, target=protocol.target(metric))
            for c, name in enumerate(panel.classes):
                values.setdefault(MetricKey(metric, "", name), np.zeros(m))[model] = rest.values[c]
            values.setdefault(MetricKey(metric), np.zeros(m))[model] = rest.macro
        matrix = confusion_matrix(labels, decided[model], k)
        recall = np.diag(matrix) / matrix.sum(axis=1)
        values.setdefault(MetricKey("accuracy", "highest"), np.zeros(m))[model] = np.trace(matrix) / matrix.sum()
        values.setdefault(MetricKey("balanced_accuracy", "highest"), np.zeros(m))[model] = recall.mean()
        for c, name in enumerate(panel.classes):
            values.setdefault(MetricKey("sensitivity", "highest", name), np.zeros(m))[model] = recall[c]
    for name, loss in _class_losses(labels, view.scores, probabilities).items():
        values[MetricKey(name)] = np.where(probabilities, loss.mean(axis=1), np.nan)
        draws[MetricKey(name)] = np.where(probabilities, sample[MetricKey(name)][..., 0], np.nan)
    for key in values:
        if key in draws:
            continue
        if key.of_class:
            draws[key] = sample[key._replace(of_class="")][..., panel.classes.index(key.of_class)]
        elif key.metric == "accuracy":
            draws[key] = sample[MetricKey("right")][..., 0]
        elif key.metric == "balanced_accuracy":
            draws[key] = sample[MetricKey("sensitivity", "highest")].mean(axis=-1)
        else:
            draws[key] = sample[key].mean(axis=-1)
    estimates = []
    method = _resampled(panel, protocol).replace("BCa", "percentile")
    for number, model in enumerate(view.models):
        for key, value in values.items():
            if np.isnan(value[number]) and key.metric in LOSSES:
                continue
            events = int((labels == panel.classes.index(key.of_class)).sum()) if key.of_class else len(panel)
            basis = {"rows": len(panel), "events": events, "patients": panel.patient_count}
            of_model = draws[key][:, number]
            ends, how = _trusted(percentile_interval(of_model, protocol.level), of_model, method, _alone(panel))
            estimates.append(_estimate(model, key, value[number], ends, how, basis))
    return Judged(tuple(estimates), values, draws, design, None, _alone(panel))


def _flat_classes(statistics: ClassificationStatistics, m: int, k: int) -> dict[MetricKey, np.ndarray]:
    flat = _flat(statistics)
    return {key: value.reshape(len(value), m, k) for key, value in flat.items()}


def _class_losses(
    labels: Int[np.ndarray, "n"], scores: Float[np.ndarray, "m n k"], probabilities: Bool[np.ndarray, "m"]
) -> dict[str, Float[np.ndarray, "m n"]]:
    """Loss of every row whose mean is the Brier score over classes, and the log loss."""
    if not probabilities.any():
        return {}
    truth = np.eye(scores.shape[-1])[labels]
    usable = np.where(probabilities[:, None, None], scores, 1 / scores.shape[-1])
    least = np.finfo(scores.dtype).eps
    of_truth = np.clip((usable * truth).sum(axis=-1), least, 1 - least)
    return {"brier": np.square(usable - truth).sum(axis=-1), "log_loss": -np.log(of_truth)}
