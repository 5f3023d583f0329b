"""The numbers of `fusion-jax evaluate-boxes`: points in double precision, intervals from one set of resamples."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.commands.evaluate_boxes import Config
from fusion_jax.evaluation.detection import (
    View,
    average_precision,
    box_counts,
    threshold_index,
)
from fusion_jax.evaluation.detection_matching import AREAS, COCO_OVERLAPS, OVERLAP_GRID, Area, Matches, match_boxes
from fusion_jax.evaluation.froc import (
    FALSE_POSITIVE_RATES,
    DetectionStatistics,
    FrocCurve,
    case_auc,
    detection_statistics,
    froc_curve,
    make_detection_data,
    sensitivity_at,
)
from fusion_jax.evaluation.paired import holm
from fusion_jax.evaluation.resampling import (
    Interval,
    bca_interval,
    bootstrap,
    jackknife,
    make_design,
    patients_alone,
    percentile_interval,
    z_test,
)
from fusion_jax.records.detections import BoxDetections, BoxTruth
from fusion_jax.reporting.tables import Shown, format_interval, p_text
from fusion_jax.wording import counted

__all__ = [
    "ALL",
    "COUNTS",
    "MEASURES",
    "Comparison",
    "Curves",
    "Number",
    "Results",
    "areas_of",
    "at_overlap",
    "corrected_interval",
    "counted_boxes",
    "match_models",
    "measure",
    "title",
]

ALL = "all classes"
MEASURES = {"iou": "IoU", "iobb": "IoBB"}
LIMITS = (1, 10)
CURVE_RATES = tuple(float(rate) for rate in np.geomspace(1 / 8, 16, 43))
COUNTS = ("TP", "FP", "FN")

Key = tuple[str, str, str, str]
"""Model, measure of overlap, class, metric."""


class Number(NamedTuple):
    """A point estimate and its interval."""

    value: float
    interval: Interval


class Comparison(NamedTuple):
    """Difference of the average precision of two models on the same patients, p-value of the z-test, Holm's."""

    first: str
    second: str
    measure: str
    difference: float
    interval: Interval
    p_value: float
    adjusted: float


class Curves(NamedTuple):
    """Curves of one model and measure: FROC of each class and of all pooled, precision by recall, AP by overlap.

    `rates`, `sensitivity`, `low` and `high` are the pooled FROC curve with its band on a grid.
    """

    froc: dict[str, FrocCurve]
    rates: np.ndarray
    sensitivity: np.ndarray
    low: np.ndarray
    high: np.ndarray
    precision: dict[str, np.ndarray]
    by_overlap: np.ndarray
    by_overlap_low: np.ndarray
    by_overlap_high: np.ndarray


class Results(NamedTuple):
    """Everything that the report shows."""

    config: Config
    truth: BoxTruth
    models: list[str]
    measures: list[str]
    detections: dict[str, int]
    numbers: dict[Key, Number]
    curves: dict[tuple[str, str], Curves]
    comparisons: list[Comparison]
    notes: list[str]
    alone: int

    @property
    def unit(self) -> str:
        """What is resampled."""
        return "images" if self.truth.patients is None else "patients"

    @property
    def counts_in_words(self) -> str:
        """Images, patients and boxes."""
        images = counted(len(self.truth.cases), "image")
        patients = "" if self.truth.patients is None else f" of {counted(len(set(self.truth.patients)), 'patient')}"
        return f"{images}{patients}, {counted_boxes(self.boxes(ALL))}"

    @property
    def headline(self) -> list[str]:
        """Metrics of the short table."""
        return [
            "AP",
            at_overlap("AP", self.config.threshold),
            "sensitivity at 1 FP per image",
            "FROC score",
            "case AUC",
        ]

    @property
    def findings(self) -> list[str]:
        """Paired differences in words."""
        return [_finding(one) for one in self.comparisons if one.measure == self.measures[0]]

    def boxes(self, name: str) -> int:
        """True boxes that count, of a class or of all."""
        counts = ~self.truth.crowd
        if name != ALL:
            counts = counts & (self.truth.label == self.truth.classes.index(name))
        return int(counts.sum())

    def shown(self, model: str, measure: str, name: str, metric: str) -> Shown:
        """A number with its interval as text."""
        value, interval = self.numbers[model, measure, name, metric]
        digits = 0 if metric in COUNTS else 2 if metric == "FP per image" else 3
        return format_interval(value, float(interval.low), float(interval.high), digits)


def counted_boxes(count: int) -> str:
    """A number of boxes in words."""
    return f"{count} box{'' if count == 1 else 'es'}"


def at_overlap(metric: str, overlap: float) -> str:
    """Name of a metric at one overlap: AP50."""
    return f"{metric}{round(100 * overlap)}"


def title(metric: str, results: Results) -> str:
    """A metric as the heading of a column."""
    at = f"{results.config.threshold:g}"
    return {
        "AP": "AP .5:.95",
        at_overlap("AP", results.config.threshold): f"AP at {at}",
        at_overlap("recall", results.config.threshold): f"recall at {at}",
    }.get(metric, metric)


def _finding(one: Comparison) -> str:
    low, high = float(one.interval.low), float(one.interval.high)
    verdict = (
        f"{one.first if one.difference > 0 else one.second} has the higher AP"
        if one.adjusted < 0.05
        else "no evidence of a difference"
    )
    shown = format_interval(one.difference, low, high, signed=True)
    return f"AP of {one.first} − {one.second}: {shown}, adjusted p {p_text(one.adjusted)}: {verdict}."


def areas_of(config: Config) -> tuple[Area, ...]:
    """Ranges of sizes, with the user's sides."""
    small, large = (side**2 for side in config.sides)
    largest = AREAS[0].high
    return AREAS[0], Area("small", 0, small), Area("medium", small, large), Area("large", large, largest)


def match_models(truth: BoxTruth, models: Sequence[BoxDetections], config: Config) -> dict[tuple[str, str], Matches]:
    """Matches of every model by every measure of overlap, the measure of the headline first."""
    measures = {"iou": ["iou"], "iobb": ["iobb", "iou"], "both": ["iou", "iobb"]}[config.overlap]
    return {
        (model.model, measure): match_boxes(
            truth.boxes,
            truth.case,
            truth.label,
            model.boxes,
            model.case,
            model.label,
            model.score,
            cases=len(truth.cases),
            classes=len(truth.classes),
            crowd=truth.crowd,
            area=truth.area,
            overlap=measure,  # pyright: ignore[reportArgumentType]
            thresholds=OVERLAP_GRID,
            areas=areas_of(config),
            max_detections=config.max_detections,
        )
        for measure in measures
        for model in models
    }


def measure(
    truth: BoxTruth,
    models: Sequence[BoxDetections],
    entries: dict[tuple[str, str], Matches],
    notes: Sequence[str],
    config: Config,
) -> Results:
    """Points, intervals, curves and comparisons of all models."""
    limits = [limit for limit in LIMITS if limit < config.max_detections]
    views = {
        (*key, name): View(entry, area, limit)
        for key, entry in entries.items()
        for name, area, limit in (
            *((area.name, number, None) for number, area in enumerate(areas_of(config)) if number),
            *((str(limit), 0, limit) for limit in limits),
        )
    }
    # Patients with and without a box are drawn apart, as the study has fixed how many of each there are.
    holds = np.zeros(len(truth.cases), np.int64)
    holds[truth.case[~truth.crowd]] = 1
    design = make_design(holds, truth.patients)
    data = make_detection_data(
        list(entries.values()),
        overlap=config.threshold,
        score=config.score,
        rates=(*FALSE_POSITIVE_RATES, *CURVE_RATES),
        views=list(views.values()),
    )
    draws = bootstrap(detection_statistics, data, design, resamples=config.resamples, seed=config.seed)
    deleted = jackknife(detection_statistics, data, design, seed=config.seed)

    numbers: dict[Key, Number] = {}
    curves = {}
    primary: dict[tuple[str, str], _Primary] = {}
    found_classes = [*truth.classes, ALL]
    for number, (key, entry) in enumerate(entries.items()):
        points = _points(entry, config, limits)
        of_entry = [(i, view[2]) for i, view in enumerate(views) if view[:2] == key]
        samples, left_out = (_samples(found, number, config, of_entry) for found in (draws, deleted.values))
        for metric, values in points.items():
            intervals = corrected_interval(values, samples[metric], left_out[metric], deleted.stratum)
            for k, name in enumerate(found_classes):
                interval = Interval(*(part[k] for part in intervals))
                numbers[(*key, name, metric)] = Number(float(values[k]), interval)
        of_draws, of_deleted = (
            DetectionStatistics(*(_of(part, number) for part in found)) for found in (draws, deleted.values)
        )
        curves[key] = _curves(entry, config, truth.classes, of_draws, of_deleted, deleted.stratum)
        primary[key] = _Primary(float(points["AP"][-1]), samples["AP"][:, -1], left_out["AP"][:, -1])
    return Results(
        config=config,
        truth=truth,
        models=[model.model for model in models],
        measures=list(dict.fromkeys(key[1] for key in entries)),
        detections={model.model: len(model.score) for model in models},
        numbers=numbers,
        curves=curves,
        comparisons=_comparisons(primary, deleted.stratum),
        notes=[*notes, *_limits_reached(models, config)],
        alone=patients_alone(design),
    )


class _Primary(NamedTuple):
    """The average precision that models are compared by: its value, in resamples, and without each patient."""

    value: float
    draws: np.ndarray
    left_out: np.ndarray


def corrected_interval(estimate: Any, draws: np.ndarray, left_out: np.ndarray, stratum: np.ndarray) -> Interval:
    """BCa interval, and the percentile interval where all draws lie on one side of the estimate.

    Average precision is larger in small samples, as precision is a maximum: with 150 images of 2 classes percentile
    intervals covered the value of the population in 86.5 % of 200 simulated studies, and BCa intervals in 93.5 %.
    """
    plain, found = percentile_interval(draws), bca_interval(estimate, draws, left_out, stratum)
    known = ~np.isnan(np.asarray(found.low + found.high))
    ends = (np.where(known, *both) for both in zip(found[:4], plain[:4], strict=True))
    return Interval(*ends, undefined=found.undefined)


def _of(part: Any, number: int) -> Any:
    """Draws of one entry; the number of cases has no axis of entries."""
    return None if part is None else part if part.ndim == 1 else part[:, number]


def _limits_reached(models: Sequence[BoxDetections], config: Config) -> list[str]:
    notes = []
    for model in models:
        pairs = np.stack([model.case, model.label], axis=1)
        most = int(np.unique(pairs, axis=0, return_counts=True)[1].max()) if len(pairs) else 0
        if most > config.max_detections:
            notes.append(
                f"{model.model}: up to {most} detections of an image and class; the {config.max_detections} of the "
                "highest scores were judged (--max-detections)."
            )
    return notes


def _points(entry: Matches, config: Config, limits: Sequence[int]) -> dict[str, np.ndarray]:
    """Metric to values of the classes and, last, of all."""
    all_limits = (*limits, config.max_detections)
    found = average_precision(entry, max_detections=all_limits)
    coco = [threshold_index(entry.thresholds, overlap) for overlap in COCO_OVERLAPS]
    precision, recall = found.of(max_detections=config.max_detections)

    def each(values: np.ndarray) -> np.ndarray:
        return np.append(values, np.nanmean(values) if not np.isnan(values).all() else np.nan)

    points = {"AP": each(precision[:, coco].mean(axis=1))}
    for overlap in dict.fromkeys((config.threshold, 0.5, 0.75)):
        points[at_overlap("AP", overlap)] = each(precision[:, threshold_index(entry.thresholds, overlap)])
    for area in entry.areas[1:]:
        points[f"AP_{area.name}"] = each(found.of(area.name, config.max_detections)[0][:, coco].mean(axis=1))
    points |= {f"AR{limit}": each(found.of(max_detections=limit)[1][:, coco].mean(axis=1)) for limit in all_limits}
    for area in entry.areas[1:]:
        points[f"AR_{area.name}"] = each(found.of(area.name, config.max_detections)[1][:, coco].mean(axis=1))
    points[at_overlap("recall", config.threshold)] = each(
        recall[:, threshold_index(entry.thresholds, config.threshold)]
    )

    rows = [*range(entry.classes), None]
    froc = np.stack([sensitivity_at(froc_curve(entry, overlap=config.threshold, label=row)) for row in rows])
    points |= _froc_metrics(froc)
    tp, fp, fn = box_counts(entry, overlap=config.threshold, score=config.score)
    return points | _count_metrics(tp, fp, fn, entry.cases) | {"case AUC": case_auc(entry)}


def _froc_metrics(sensitivity: np.ndarray) -> dict[str, np.ndarray]:
    names = ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    at = {f"sensitivity at {name} FP per image": sensitivity[..., x] for x, name in enumerate(names)}
    return at | {"FROC score": sensitivity[..., : len(names)].mean(axis=-1)}


def _count_metrics(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, cases: Any) -> dict[str, np.ndarray]:
    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)

    return {
        **dict(zip(COUNTS, (tp, fp, fn), strict=True)),
        "sensitivity": ratio(tp, tp + fn),
        "precision": ratio(tp, tp + fp),
        "F1": ratio(2 * tp, 2 * tp + fp + fn),
        "FP per image": fp / cases,
    }


def _samples(
    draws: DetectionStatistics, number: int, config: Config, views: Sequence[tuple[int, str]]
) -> dict[str, np.ndarray]:
    """The metrics of `_points` in every resample, shape `(r, k + 1)`."""
    coco = [threshold_index(OVERLAP_GRID, overlap) for overlap in COCO_OVERLAPS]
    precision, recall = draws.average_precision[:, number], draws.recall[:, number]
    samples = {"AP": precision[:, :, coco].mean(axis=2)}
    for overlap in dict.fromkeys((config.threshold, 0.5, 0.75)):
        samples[at_overlap("AP", overlap)] = precision[:, :, threshold_index(OVERLAP_GRID, overlap)]
    for view, name in views:
        if name.isdecimal():
            samples[f"AR{name}"] = draws.view_recall[:, view]
        else:
            samples[f"AP_{name}"], samples[f"AR_{name}"] = draws.view_precision[:, view], draws.view_recall[:, view]
    samples[f"AR{config.max_detections}"] = recall[:, :, coco].mean(axis=2)
    samples[at_overlap("recall", config.threshold)] = recall[:, :, threshold_index(OVERLAP_GRID, config.threshold)]
    samples |= _froc_metrics(draws.sensitivity[:, number])
    tp, fp = draws.tp[:, number], draws.fp[:, number]
    samples |= _count_metrics(tp, fp, draws.boxes[:, number] - tp, draws.cases[:, None])
    return samples | {"case AUC": draws.case_auc[:, number]}


def _curves(
    entry: Matches,
    config: Config,
    classes: Sequence[str],
    draws: DetectionStatistics,
    deleted: DetectionStatistics,
    stratum: np.ndarray,
) -> Curves:
    found = average_precision(entry, max_detections=(config.max_detections,))
    t = threshold_index(entry.thresholds, config.threshold)
    precision = found.of(max_detections=config.max_detections)[0]
    by_overlap = precision[~np.isnan(precision[:, 0])].mean(axis=0)
    froc = {
        name: froc_curve(entry, overlap=config.threshold, label=label)
        for name, label in zip([*classes, ALL], [*range(len(classes)), None], strict=True)
    }
    rates = slice(len(FALSE_POSITIVE_RATES), None)
    sensitivity = sensitivity_at(froc[ALL], CURVE_RATES)
    band = corrected_interval(sensitivity, draws.sensitivity[:, -1, rates], deleted.sensitivity[:, -1, rates], stratum)
    overlaps = corrected_interval(by_overlap, draws.average_precision[:, -1], deleted.average_precision[:, -1], stratum)
    return Curves(
        froc=froc,
        rates=np.array(CURVE_RATES),
        sensitivity=sensitivity,
        low=np.asarray(band.low),
        high=np.asarray(band.high),
        precision={name: found.precision[t, :, k, 0, 0] for k, name in enumerate(classes)},
        by_overlap=by_overlap,
        by_overlap_low=np.asarray(overlaps.low),
        by_overlap_high=np.asarray(overlaps.high),
    )


def _comparisons(primary: dict[tuple[str, str], _Primary], stratum: np.ndarray) -> list[Comparison]:
    found = []
    for measure in dict.fromkeys(key[1] for key in primary):
        names = [key[0] for key in primary if key[1] == measure]
        pairs = list(itertools.combinations(names, 2))
        tests, intervals = [], []
        for first, second in pairs:
            one, other = primary[first, measure], primary[second, measure]
            difference, draws = one.value - other.value, one.draws - other.draws
            tests.append(z_test(difference, draws))
            intervals.append(corrected_interval(difference, draws, one.left_out - other.left_out, stratum))
        adjusted = holm(np.array([float(test.p_value) for test in tests]))
        found += [
            Comparison(first, second, measure, float(test.difference), interval, float(test.p_value), float(p))
            for (first, second), test, interval, p in zip(pairs, tests, intervals, adjusted, strict=True)
        ]
    return found
