"""What `fusion-jax evaluate-boxes` writes: the report, the numbers behind it, and its figures."""

import dataclasses
import hashlib
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusion_jax.commands._evaluate_boxes.figures import curve_figure
from fusion_jax.commands._evaluate_boxes.measure import ALL, COUNTS, MEASURES, Results, at_overlap, counted_boxes, title
from fusion_jax.commands._shared.screen import file_name
from fusion_jax.commands.evaluate_boxes import Config
from fusion_jax.evaluation.detection import RECALL_LEVELS
from fusion_jax.evaluation.detection_matching import OVERLAP_GRID
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.reporting import Figure, Section, Table, save_figure, write_report
from fusion_jax.reporting.curve_figures import froc_figure
from fusion_jax.reporting.figure_parts import Curve
from fusion_jax.reporting.forest_figures import ForestRow, forest_figure
from fusion_jax.reporting.tables import format_interval, format_p, write_tables
from fusion_jax.wording import counted, listed

__all__ = ["write_results"]

MOST_CLASSES = 8
"""Classes that a figure shows: those with the most boxes."""


def write_results(results: Results) -> Path:
    """Write everything into the folder of the configuration; the path of the report."""
    out = results.config.out
    record = run_record()
    figures = _figures(results)
    for name, figure in figures.items():
        save_figure(figure, out / "figures" / f"{name}.svg")
    write_csv(out / "metrics.csv", _metric_rows(results))
    write_csv(out / "curves.csv", _curve_rows(results))
    write_tables(out, "summary", _summary_table(results))
    write_json(out / "metrics.json", _content(results, record))
    path = out / "report.html"
    write_report(
        path,
        title="Detection of boxes",
        summary=_summary(results),
        sections=_sections(results, figures),
        record=record,
    )
    return path


# Files.


def _finite(value: object) -> float | None:
    number = float(value)  # pyright: ignore[reportArgumentType]
    return number if math.isfinite(number) else None


def _metric_rows(results: Results) -> list[dict[str, object]]:
    rows = []
    for (model, measure, name, metric), (value, interval) in results.numbers.items():
        rows.append(
            {
                "model": model,
                "overlap": measure,
                "class": name,
                "metric": metric,
                "images": len(results.truth.cases),
                "boxes": results.boxes(name),
                "estimate": _finite(value),
                "low": _finite(interval.low),
                "high": _finite(interval.high),
                "low_error": _finite(interval.low_error),
                "high_error": _finite(interval.high_error),
                "undefined_resamples": int(interval.undefined),
            }
        )
    return rows


def _curve_rows(results: Results) -> list[dict[str, object]]:
    rows = []

    def add(
        key: tuple[str, str], name: str, curve: str, x: np.ndarray, y: np.ndarray, score: np.ndarray | None = None
    ) -> None:
        scores = [None] * len(x) if score is None else score.tolist()
        for at, value, cut in zip(x.tolist(), y.tolist(), scores, strict=True):
            start = {"model": key[0], "overlap": key[1], "class": name, "curve": curve}
            rows.append({**start, "x": at, "y": _finite(value), "score": cut})

    for key, curves in results.curves.items():
        for name, froc in curves.froc.items():
            add(key, name, "froc", froc.false_positives, froc.sensitivity, froc.score)
        for name, precision in curves.precision.items():
            add(key, name, "precision by recall", RECALL_LEVELS, precision)
        add(key, ALL, "AP by overlap", np.array(OVERLAP_GRID), curves.by_overlap)
    return rows


def _content(results: Results, record: dict[str, object]) -> dict[str, object]:
    config = results.config
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    files = [*config.detections, config.truth, *([] if config.cases is None else [config.cases])]
    settings |= {"detections": [path.name for path in config.detections], "truth": config.truth.name}
    settings |= {"cases": None if config.cases is None else config.cases.name, "out": config.out.name}
    return {
        "settings": settings,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "images": len(results.truth.cases),
        "patients": None if results.truth.patients is None else len(set(results.truth.patients)),
        "boxes": {name: results.boxes(name) for name in (*results.truth.classes, ALL)},
        "detections": results.detections,
        "interval": f"95 % BCa, {config.resamples} resamples of the {results.unit}",
        "metrics": _metric_rows(results),
        "comparisons": [
            {
                "first": one.first,
                "second": one.second,
                "overlap": one.measure,
                "metric": "AP",
                "difference": _finite(one.difference),
                "low": _finite(one.interval.low),
                "high": _finite(one.interval.high),
                "p_value": _finite(one.p_value),
                "p_value_holm": _finite(one.adjusted),
            }
            for one in results.comparisons
        ],
        "notes": results.notes,
        "record": record,
    }


# Figures.


def _figures(results: Results) -> dict[str, Figure]:
    config, first = results.config, results.measures[0]
    names = sorted(results.truth.classes, key=lambda name: -results.boxes(name))[:MOST_CLASSES]
    base = f"{results.counts_in_words}. {_intervals(results)}"
    found = {}
    rows = [
        _forest_row(results, model, measure, name)
        for name in (ALL, *(names if len(results.truth.classes) > 1 else []))
        for measure in results.measures
        for model in results.models
    ]
    found["average_precision"] = forest_figure(
        rows, xlabel="average precision, overlaps .5 to .95", caption=base, heading="AP [95 %]"
    )
    hit = f"Found: {MEASURES[first]} of at least {config.threshold:g} with a box of the class."
    found["froc"] = froc_figure(
        {model: _froc_curve(results, model, first) for model in results.models},
        caption=f"All classes pooled. {base} {hit}",
    )
    found["average_precision_by_overlap"] = curve_figure(
        {
            f"{model}, {MEASURES[measure]}": Curve(
                np.array(OVERLAP_GRID),
                results.curves[model, measure].by_overlap,
                results.curves[model, measure].by_overlap_low,
                results.curves[model, measure].by_overlap_high,
            )
            for measure in results.measures
            for model in results.models
        },
        xlabel="smallest overlap of a hit",
        ylabel="average precision",
        at=0.5,
        caption=f"Mean over classes. {base}",
    )
    for model in results.models:
        curves = {
            name: Curve(
                RECALL_LEVELS,
                results.curves[model, first].precision[name],
                note=f"AP {results.shown(model, first, name, at_overlap('AP', config.threshold))}, "
                f"{counted_boxes(results.boxes(name))}",
            )
            for name in names
            if results.boxes(name)
        }
        if not curves:
            continue
        more = len(results.truth.classes) - len(curves)
        found[f"precision_recall_{file_name(model)}"] = curve_figure(
            curves,
            xlabel="recall",
            ylabel="precision, highest at this recall or beyond",
            at=0.5,
            caption=f"{model}. {hit}{f' {more} classes of fewer boxes are not shown.' if more else ''}",
            step=False,
        )
    return found


def _forest_row(results: Results, model: str, measure: str, name: str) -> ForestRow:
    value, interval = results.numbers[model, measure, name, "AP"]
    label = model if len(results.measures) == 1 else f"{model}, {MEASURES[measure]}"
    text = results.shown(model, measure, name, "AP")
    boxes = f"{name} ({counted_boxes(results.boxes(name))})"
    return ForestRow(label, boxes, value, float(interval.low), float(interval.high), str(text))


def _froc_curve(results: Results, model: str, measure: str) -> Curve:
    curves = results.curves[model, measure]
    score = f"mean of seven points {results.shown(model, measure, ALL, 'FROC score')}"
    return Curve(curves.rates, curves.sensitivity, curves.low, curves.high, note=score)


# Sections.


def _intervals(results: Results) -> str:
    return f"95 % BCa intervals from {results.config.resamples} resamples of the {results.unit}."


def _summary(results: Results) -> list[str]:
    first = results.measures[0]
    found = [f"{results.counts_in_words}; classes: {listed(results.truth.classes, MOST_CLASSES)}."]
    found += [
        f"{model}: AP {results.shown(model, first, ALL, 'AP')} ({MEASURES[first]} .5 to .95, mean over classes); "
        f"sensitivity {results.shown(model, first, ALL, 'sensitivity at 1 FP per image')} at 1 false positive an image."
        for model in results.models
    ]
    found += results.findings
    if results.truth.patients is None:
        found.append(
            "No patients were given: the intervals take images as independent. If patients have several images, they "
            "are probably too narrow."
        )
    return found


def _sections(results: Results, figures: dict[str, Figure]) -> list[Section]:
    sections = [
        _judged(results),
        Section(
            "Average precision",
            [
                "Precision over recall, interpolated at 101 points; classes without a box are left out of means."
                + (
                    " IoBB divides by the detection's own box: a small box inside a large finding has overlap 1, "
                    "whatever it leaves out; read it beside IoU."
                    if "iobb" in results.measures
                    else ""
                )
            ],
            [
                _summary_table(results),
                figures["average_precision"],
                _class_table(results),
                figures["average_precision_by_overlap"],
                *(figure for name, figure in figures.items() if name.startswith("precision_recall")),
            ],
        ),
        Section(
            "False positives per image",
            [
                (
                    "Highest sensitivity for boxes with at most so many false detections per image, without "
                    "interpolation. All images are in the denominator, those without a box too. A second detection of "
                    "a box is false. The FROC score is the mean of the seven sensitivities."
                )
            ],
            [figures["froc"], _froc_table(results)],
        ),
        _counts(results),
    ]
    if results.comparisons:
        sections.append(_compared(results))
    return [*sections, _sizes(results), _notes(results), _settings(results.config)]


def _judged(results: Results) -> Section:
    truth = results.truth
    rows = []
    for k, name in enumerate(truth.classes):
        own = truth.label == k
        counts = own & ~truth.crowd
        rows.append((name, int(counts.sum()), len(set(truth.case[counts].tolist())), int((own & truth.crowd).sum())))
    holding = len(set(truth.case[~truth.crowd].tolist()))
    text = [
        f"{results.counts_in_words}. {holding} images hold a box that counts, {len(truth.cases) - holding} hold none.",
        "; ".join(f"{model}: {counted(number, 'detection')}" for model, number in results.detections.items()) + ".",
        *results.notes,
    ]
    columns = ("class", "boxes", "images with a box", "boxes that do not count")
    return Section("What was judged", text, [Table(columns, rows, f"True boxes in {len(truth.cases)} images.")])


def _summary_table(results: Results) -> Table:
    names = results.headline
    rows = [
        (model, MEASURES[measure], *(results.shown(model, measure, ALL, name) for name in names))
        for measure in results.measures
        for model in results.models
    ]
    columns = ("model", "overlap", *(title(name, results) for name in names))
    return Table(columns, rows, f"All classes: {results.counts_in_words}. {_intervals(results)}")


def _class_table(results: Results) -> Table:
    first, threshold = results.measures[0], results.config.threshold
    names = ("AP", at_overlap("AP", threshold), at_overlap("recall", threshold), "case AUC")
    rows = [
        (name, model, results.boxes(name), *(results.shown(model, first, name, metric) for metric in names))
        for name in results.truth.classes
        for model in results.models
    ]
    columns = ("class", "model", "boxes", *(title(name, results) for name in names))
    text = (
        f"By class, {MEASURES[first]}; recall with all detections. Case AUC: of the highest score of an image, for "
        "holding a box."
    )
    return Table(columns, rows, f"{text} {_intervals(results)}")


def _froc_table(results: Results) -> Table:
    first = results.measures[0]
    names = [metric for metric in _metrics(results) if metric.startswith("sensitivity at")]
    short = [name.removeprefix("sensitivity at ").removesuffix(" FP per image") for name in names]
    classes = results.truth.classes if len(results.truth.classes) > 1 else ()
    rows = [
        (name, model, results.boxes(name), *(results.shown(model, first, name, metric) for metric in names))
        for name in (*classes, ALL)
        for model in results.models
    ]
    caption = (
        f"Sensitivity at so many false positives per image, of {len(results.truth.cases)} images; "
        f"{MEASURES[first]} of at least {results.config.threshold:g}. {_intervals(results)}"
    )
    return Table(("class", "model", "boxes", *short), rows, caption)


def _metrics(results: Results) -> list[str]:
    return list(dict.fromkeys(key[3] for key in results.numbers))


def _counts(results: Results) -> Section:
    score = results.config.score
    names = (*COUNTS, "sensitivity", "precision", "F1", "FP per image")
    classes = results.truth.classes if len(results.truth.classes) > 1 else ()
    rows = [
        (name, model, MEASURES[measure], *(results.shown(model, measure, name, metric) for metric in names))
        for name in (*classes, ALL)
        for measure in results.measures
        for model in results.models
    ]
    of = "all detections" if score is None else f"detections with a score of at least {score:g}, which was given"
    caption = (
        f"Overlap of at least {results.config.threshold:g}; {of}. TP + FN is the number of boxes. {_intervals(results)}"
    )
    text = "Counts depend on the score that a detection needs: a threshold chosen on these images flatters."
    return Section("Counts", [text], [Table(("class", "model", "overlap", *names), rows, caption)])


def _compared(results: Results) -> Section:
    rows = [
        (
            f"{one.first} − {one.second}",
            MEASURES[one.measure],
            format_interval(one.difference, float(one.interval.low), float(one.interval.high), signed=True),
            format_p(one.p_value),
            format_p(one.adjusted),
        )
        for one in results.comparisons
    ]
    text = [
        (
            f"Difference of AP (overlaps .5 to .95, mean over classes) on the same {results.unit}, drawn together. "
            "Test: the difference over the standard deviation of its resampled values, normal, two-sided. Holm's "
            f"adjustment covers the {counted(len(rows) // len(results.measures), 'comparison')} of a measure of "
            "overlap, and no other number of this report."
        ),
        "A difference that is not significant is no proof of equality: see what its interval excludes.",
    ]
    columns = ("models", "overlap", "difference of AP [95 %]", "p", "p, Holm")
    return Section("Which one finds more?", text, [Table(columns, rows, f"{results.counts_in_words}.")])


def _sizes(results: Results) -> Section:
    small, large = (f"{side:g}" for side in results.config.sides)
    names = [name for name in _metrics(results) if name.startswith(("AP_", "AR"))]
    rows = [
        (model, MEASURES[measure], *(results.shown(model, measure, ALL, name) for name in names))
        for measure in results.measures
        for model in results.models
    ]
    text = (
        f"Small: up to {small} by {small} pixels; large: from {large} by {large}. AR1 and so on: mean over overlaps .5 "
        "to .95 of the recall with so many detections of an image and class. A dash: no box of this size."
    )
    caption = f"Mean over classes. {results.counts_in_words}. {_intervals(results)}"
    columns = ("model", "overlap", *(name.replace("_", ", ") for name in names))
    return Section("By size, and with fewer detections", [text], [Table(columns, rows, caption)])


def _notes(results: Results) -> Section:
    # What no image has shows as a dash; here is what only some resamples lack.
    undefined = max(
        (int(number.interval.undefined) for number in results.numbers.values() if not np.isnan(number.value)),
        default=0,
    )
    drawn = "All images of a patient are drawn together. " if results.truth.patients is not None else ""
    text = [
        (
            "Detections are matched within image and class, the highest score first, each with the free box that it "
            "overlaps most; means over ten overlaps, sizes and limits are those of COCO's evaluation program."
        ),
        (
            f"Intervals are bias-corrected and accelerated (BCa): {results.unit} are drawn with replacement, those "
            f"with a box and those without apart. {drawn}They are conditional on the trained models: another training "
            "would give other detections."
        ),
        (
            "Average precision itself is too high in small samples, as interpolated precision is a maximum; resamples "
            "are higher still, which the correction allows for and plain percentiles would double."
        ),
        "Nothing was adjusted for multiplicity but the table of comparisons.",
    ]
    if undefined:
        text.append(
            f"Up to {undefined} of {results.config.resamples} resamples hold no box of some class or size; its numbers "
            "leave them out, means over classes the class."
        )
    if results.alone:
        text.append(f"{counted(results.alone, results.unit[:-1])} alone in a stratum never varies.")
    return Section("How to read this", text, [])


def _settings(config: Config) -> Section:
    words = ["fusion-jax", "evaluate-boxes", *(path.name for path in config.detections)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("detections", "out", "compilation_cache") or value == field.default:
            continue
        values: Sequence[object] = value if isinstance(value, tuple) else (value,)
        shown = [item.name if isinstance(item, Path) else str(item) for item in values]
        words += [f"--{field.name.replace('_', '-')}", *shown]
    files = [
        ("metrics.csv", "every number with interval, Monte-Carlo errors of its ends, and n"),
        ("summary.csv, .md, .tex", "the first table"),
        ("curves.csv", "FROC, precision by recall, AP by overlap"),
        ("metrics.json", "settings, checksums of files, all numbers, comparisons, versions"),
        ("figures/", "the figures as SVG"),
    ]
    table = Table(("file", "content"), files, "Files beside this report.")
    return Section("Settings and files", [f"Command, with file names only: {shlex.join(words)}"], [table])
