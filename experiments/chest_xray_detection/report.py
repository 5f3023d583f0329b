"""The report: what was found, beside the figures and tables of the paper."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.chest_xray_detection.config import Config, Settings
from experiments.chest_xray_detection.correlation import correlation_table, rank_correlation, relevance_table
from experiments.chest_xray_detection.features import (
    ABLATION_OF,
    FEATURE_SETS,
    PUBLISHED_ABLATION,
    PUBLISHED_COUNTS,
    PUBLISHED_MODELS,
    RELEVANCE,
)
from experiments.chest_xray_detection.measures import (
    COUNTED,
    HIT,
    Measured,
    curve_of,
    measure,
    measure_study,
    trained_models,
)
from experiments.chest_xray_detection.models import BASELINE, DUAL, NAMES
from experiments.chest_xray_detection.pictures import prediction_section, stage_section
from experiments.chest_xray_detection.study import INFORMATIVE, UNINFORMATIVE, Studies
from fusion_jax.data.synthetic import LESIONS, TRIAGE, Synthetic, chest_opacities, oracle_detections
from fusion_jax.detection.anchors import PUBLISHED, anchor_recall, read_anchors
from fusion_jax.detection.study import DetectorStudy
from fusion_jax.evaluation.detection_matching import OVERLAP_GRID, Overlap
from fusion_jax.records import run_record, write_json
from fusion_jax.reporting.detection import (
    Generalisation,
    anchor_figure,
    correlation_figure,
    count_table,
    generalisation_figure,
    overlap_figure,
    relevance_figure,
)
from fusion_jax.reporting.figure_parts import Curve
from fusion_jax.reporting.figures import Figure, save_figure
from fusion_jax.reporting.forest_figures import ForestRow, forest_figure
from fusion_jax.reporting.html import Section, Table, write_report
from fusion_jax.reporting.tables import format_interval, p_text, write_tables
from fusion_jax.wording import counted, listed

__all__ = ["Answer", "answer", "table_of", "write_results"]

TITLE = "Does a detector gain from the patient's clinical data? MDF-Net and its baseline on chest X-rays"
MEASURES: Mapping[Overlap, str] = {"iobb": "IoBB", "iou": "IoU"}
ABLATIONS = ("fusion", "features")
"""Parts that are judged beside the informative arm, whose detectors they vary."""


class Answer(NamedTuple):
    """Whether dual fusion gains over the image alone in one cohort.

    Attributes:
      gain, low, high: of average precision at IoBB 0.5, mean over classes.
      seeds: trainings of each model.
      helps, harms: the interval lies above, or below, 0.
    """

    gain: float
    low: float
    high: float
    seeds: int
    helps: bool
    harms: bool


def answer(measured: Measured, *, overlap: Overlap = "iobb", model: str = DUAL) -> Answer:
    """The gain of a model over the first one."""
    gains = measured.gains[overlap]
    at = gains.models.index(model)
    gain, low, high = (float(part[at, -1]) for part in (gains.gain, *gains.gain_interval[:2]))
    return Answer(gain, low, high, gains.seeds, low > 0, high < 0)


def table_of(measured: Measured, *, beside: Mapping[str, Any] | None = None, caption: str) -> Table:
    """Average precision, gain and recall of every model, by both overlaps."""
    rows = []
    for at, model in enumerate(measured.gains["iobb"].models):
        row: list[Any] = [NAMES.get(model, model)]
        for overlap in MEASURES:
            gains = measured.gains[overlap]
            low, high = (end[at, -1] for end in gains.interval[:2])
            row.append(format_interval(gains.value[at, -1], low, high))
            if at:
                low, high = (end[at, -1] for end in gains.gain_interval[:2])
                row.append(format_interval(gains.gain[at, -1], low, high, signed=True))
            else:
                row.append("–")
        row.append(float(measured.recall["iobb"][model][-1]))
        if beside is not None:
            printed = beside.get(model)
            row.append("–" if printed is None else f"{printed.overall[0]:.1f} / {printed.overall[1]:.1f}")
        rows.append(row)
    columns = ["model", *(f"{part}, {name}" for name in MEASURES.values() for part in ("AP", "gain")), "AR, IoBB"]
    return Table([*columns, *(["paper: AP / AR, %"] if beside is not None else [])], rows, caption)


def write_results(config: Config, settings: Settings, studies: Studies, out: Path) -> Path:
    """Write `report.html`, tables, figures and `results.json`; returns the path of the report."""
    untrained = {
        name: [NAMES[model] for model in (BASELINE, DUAL) if model not in trained_models(study)]
        for name, study in studies.found.items()
        if name not in ABLATIONS
    }
    found = {
        name: measure_study([studies.found[name]], resamples=settings.resamples)
        for name, models in untrained.items()
        if not models
    }
    record = run_record()
    sections, summary, tables = [], [], {}
    pages = _Page(sections, tables, out)
    if INFORMATIVE in found:
        summary += _arm_sections(pages, config, settings, studies, found)
    if "fusion" in studies.found and INFORMATIVE in found:
        _fusion_section(pages, settings, studies)
    if "features" in studies.found and INFORMATIVE in found:
        _feature_section(pages, settings, [studies.found[INFORMATIVE], studies.found["features"]])
    if "mimic" in found:
        summary.append(_sentence("MIMIC", answer(found["mimic"])))
        _whole_study(pages, "MIMIC", studies.found["mimic"], found["mimic"], beside=PUBLISHED_MODELS)
        _feature_section(pages, settings, [studies.found["mimic"]])
    for name, title in (("jsrt", "Nodules of JSRT"), ("lungs", "Lungs of the COVID-19 collection")):
        if name in found:
            summary.append(_sentence(title, answer(found[name])))
            _real_section(pages, name, title, studies.found[name], found[name])
    summary += [
        f"{part}: not judged. No training of {listed(models)} ended well; mend what the "
        "screen says of them, and run this again: what is trained is kept."
        for part, models in untrained.items()
        if models
    ]
    summary += [f"{part}: not run. {reason}" for part, reason in studies.skipped.items()]
    sections.append(_settings_section(config, settings, studies))
    for name, table in tables.items():
        write_tables(out / "tables", name, table)
    write_json(
        out / "results.json",
        {
            "config": {name: _plain(value) for name, value in dataclasses.asdict(config).items()},
            "answers": {name: answer(one)._asdict() for name, one in found.items()},
            "seconds": dict(studies.seconds),
            "skipped": dict(studies.skipped),
            "record": record,
        },
    )
    path = out / "report.html"
    write_report(path, title=TITLE, summary=summary, sections=sections, record=record)
    return path


class _Page(NamedTuple):
    sections: list[Section]
    tables: dict[str, Table]
    out: Path

    def add(self, heading: str, text: Sequence[str], items: Mapping[str, Figure | Table]) -> None:
        self.sections.append(Section(heading, text, list(items.values())))
        for name, item in items.items():
            if isinstance(item, Table):
                self.tables[name] = item
            else:
                save_figure(item, self.out / "figures" / f"{name}.svg")


def _sentence(where: str, one: Answer, by: str = "") -> str:
    verdict = "cannot be told from the image alone"
    if one.helps or one.harms:
        verdict = f"finds {'more' if one.helps else 'less'} than the image alone"
    return (
        f"{where}: MDF-Net {verdict}{by}; average precision at IoBB 0.5 changes by "
        f"{format_interval(one.gain, one.low, one.high, signed=True)} ({counted(one.seeds, 'seed')}; intervals over "
        f"patients{' and seeds' if one.seeds > 1 else ''})."
    )


def _arm_sections(
    pages: _Page, config: Config, settings: Settings, studies: Studies, found: Mapping[str, Measured]
) -> list[str]:
    informative = found[INFORMATIVE]
    tested = f"{len(informative.truth.cases)} tested images, {len(informative.truth.label)} boxes"
    summary = [_sentence("Vitals that tell lesions apart which look alike", answer(informative), ", as it must")]
    rows = [_forest_row("vitals inform", informative, model) for model in informative.gains["iobb"].models[1:]]
    if UNINFORMATIVE in found:
        nothing = answer(found[UNINFORMATIVE])
        by = "" if nothing.helps or nothing.harms else ", as it must be"
        summary.append(_sentence("Vitals that tell nothing, on the same images", nothing, by))
        rows.append(_forest_row("vitals say nothing", found[UNINFORMATIVE], DUAL))
    oracle = _oracle(config, settings, studies)
    caption = f"{tested}; means over {counted(informative.gains['iobb'].seeds, 'seed')}, 95 % percentile intervals."
    items: dict[str, Figure | Table] = {
        "gains": forest_figure(
            rows, xlabel="gain of AP at IoBB 0.5 over Mask R-CNN", caption=caption, reference=0.0,
            reference_label="no gain", heading="gain [95 %]",
        ),
        "models": table_of(informative, beside=PUBLISHED_MODELS, caption=f"Vitals inform. {caption}"),
    }  # fmt: skip
    if UNINFORMATIVE in found:
        items["models_uninformative"] = table_of(found[UNINFORMATIVE], caption=f"Vitals say nothing. {caption}")
    items["lesions"] = _lesion_table(informative, oracle)
    pages.add(
        "Two arms",
        [
            (
                "Both arms have the same images and boxes. Three of five kinds of lesion look alike; in one arm vitals "
                "tell them apart, in the other they are those of another patient. Resamples draw patients and seeds."
            ),
            "The last column has the study's results on MIMIC, one training each and 102 boxes: another cohort.",
        ],
        items,
    )
    _curves(pages, studies.found[INFORMATIVE], informative, "")
    _pictures(pages, studies.found[INFORMATIVE], "")
    return summary


def _whole_study(
    pages: _Page, title: str, study: DetectorStudy, measured: Measured, *, beside: Mapping[str, Any]
) -> None:
    name = title.lower()
    caption = f"{len(measured.truth.cases)} tested images; {counted(measured.gains['iobb'].seeds, 'seed')}."
    pages.add(title, [], {f"{name}_models": table_of(measured, beside=beside, caption=caption)})
    _curves(pages, study, measured, f"{name}_")
    _pictures(pages, study, f"{name}_")


def _forest_row(group: str, measured: Measured, model: str) -> ForestRow:
    one = answer(measured, model=model)
    text = str(format_interval(one.gain, one.low, one.high, signed=True))
    return ForestRow(NAMES[model], group, one.gain, one.low, one.high, text)


def _lesion_table(measured: Measured, oracle: Measured) -> Table:
    gains = measured.gains["iobb"]
    rows = []
    for k, lesion in enumerate((*measured.truth.classes, "mean")):
        row: list[Any] = [lesion.replace("_", " ")]
        row += [float(gains.value[at, k]) for at in range(len(gains.models))]
        row += [float(oracle.gains["iobb"].value[at, k]) for at in (0, 1)]
        if k < len(LESIONS):
            row += [f"{PUBLISHED_MODELS[model].precision[k] / 100:.3f}" for model in (BASELINE, DUAL)]
        else:
            row += [f"{PUBLISHED_MODELS[model].overall[0] / 100:.3f}" for model in (BASELINE, DUAL)]
        rows.append(row)
    best = ["best possible, image alone", "best possible, with vitals"]
    paper = [f"paper, {NAMES[model]}" for model in (BASELINE, DUAL)]
    columns = ["lesion", *(NAMES[model] for model in gains.models), *best, *paper]
    caption = "Average precision at IoBB 0.5 by lesion; best possible: all boxes found, ordered by the true posterior."
    return Table(columns, rows, caption)


def _oracle(config: Config, settings: Settings, studies: Studies) -> Measured:
    """What the tested cases of the informative arm allow, without and with their vitals."""
    import pandas as pd

    study = studies.found[INFORMATIVE]
    whole: Synthetic = chest_opacities(
        settings.cases, size=settings.size, seed=config.seed, vitals="informative", strength=settings.strength
    )
    tested = sorted(set(study.truth["case_id"]))
    parts = []
    for name, vitals in (("image", False), ("both", True)):
        own = oracle_detections(whole, vitals=vitals)
        parts.append(own[own["case_id"].isin(tested)].assign(model=name, seed=0))
    return measure(
        study.truth, pd.concat(parts), ["image", "both"], [0], classes=study.plan.cohort.box_classes, resamples=10
    )


def _curves(pages: _Page, study: DetectorStudy, measured: Measured, prefix: str) -> None:
    models = [model for model in measured.gains["iobb"].models if model in NAMES]
    tested = f"{len(measured.truth.cases)} tested images"
    items: dict[str, Figure | Table] = {}
    for overlap, name in MEASURES.items():
        curves = {}
        for model in models:
            of_seeds = curve_of(measured.matches[overlap][model])
            curves[NAMES[model]] = Curve(
                np.array(OVERLAP_GRID), of_seeds.mean(axis=0), of_seeds.min(axis=0), of_seeds.max(axis=0)
            )
        items[f"{prefix}{overlap}"] = overlap_figure(
            curves, measure=name, caption=f"{tested}; lines are means over the seeds, bands reach from least to most."
        )
    pages.add(
        "Precision against overlap",
        [
            (
                "The paper's Figure 3b. IoBB divides by the detection alone: a small box inside of a large finding has "
                "overlap 1, so that IoU stands beside it."
            )
        ],
        items,
    )
    courses = {NAMES[model]: _course(study, model) for model in models}
    pages.add(
        "Training and validation",
        ["The paper's Figure 3a, which shows the test set; here the validation cases, that also choose the epoch."],
        {
            f"{prefix}generalisation": generalisation_figure(
                courses, metric="sum of the losses", caption="A line a training; a dot is the epoch that was kept."
            )
        },
    )
    counts = {NAMES[model]: measured.counts(model) for model in models}
    told = "; ".join(f"{NAMES[model]} {own.tp} / {own.fp} / {own.fn}" for model, own in PUBLISHED_COUNTS.items())
    pages.add(
        "Boxes found and missed",
        [f"The study's own counts, found / false / missed: {told}."],
        {
            f"{prefix}counts": count_table(
                counts,
                classes=[name.replace("_", " ") for name in measured.truth.classes],
                score=COUNTED,
                overlap=f"IoBB {HIT:g}",
                caption=f"{tested}, training of the first seed.",
            )
        },
    )


def _course(study: DetectorStudy, model: str) -> Generalisation:
    """Sum of the losses over the epochs of all trainings of a model."""
    trainings = [task for task in study.done if task.model == model]
    histories = [study.history(task) for task in trainings]
    epochs = max(len(lines) for lines in histories)
    names = [name for name in histories[0][0] if f"validation_{name}" in histories[0][0] and name != "loss"]
    sums = np.full((2, len(histories), epochs), np.nan)
    for row, lines in enumerate(histories):
        for line in lines:
            sums[0, row, line["epoch"]] = sum(line[name] for name in names)
            sums[1, row, line["epoch"]] = sum(line[f"validation_{name}"] for name in names)
    best = [int(study.record(task)["facts"]["best_epoch"]) + 1 for task in trainings]
    return Generalisation(np.arange(1, epochs + 1), sums[0], sums[1], best)


def _pictures(pages: _Page, study: DetectorStudy, prefix: str) -> None:
    models = [model for model in (BASELINE, DUAL) if model in trained_models(study)]
    shown = prediction_section(study, models)
    pages.add("What was found", shown.text, {f"{prefix}{name}": item for name, item in shown.items.items()})
    staged = stage_section(study, models[-1])
    pages.add("Stage by stage", staged.text, {f"{prefix}{name}": item for name, item in staged.items.items()})
    task = study.done[0]
    boxes, extent = _training_boxes(study)
    fitted = read_anchors({name: study.anchors(task)[name] for name in ("sizes", "ratios", "strides")})
    best = {
        "published": anchor_recall(PUBLISHED, boxes, extent).best,
        "of these detectors": anchor_recall(fitted, boxes, extent).best,
    }
    pages.add(
        "Anchors",
        ["What no training can make up for: a box that no anchor meets is seldom proposed."],
        {f"{prefix}anchors": anchor_figure(best, caption=f"{len(boxes)} boxes of the training cases.")},
    )


def _training_boxes(study: DetectorStudy) -> tuple[np.ndarray, tuple[int, int]]:
    """Boxes of the training cases of the first split, in the pixels that detectors see."""
    record = study.record(study.done[0])
    extent = tuple(int(part) for part in record["config"]["image_size"])
    cohort = study.plan.cohort
    split = study.plan.splits.splits[0]
    image = record["inputs"]["image"]
    boxes = []
    own: Any = cohort.boxes
    for row in np.flatnonzero(np.isin(np.array(cohort.case_id), list(split.train))).tolist():
        if len(own[row].corners):
            height, width = np.shape(cohort.sources[image][row])[:2]
            boxes.append(own[row].corners * np.array([extent[1] / width, extent[0] / height] * 2))
    return np.concatenate(boxes), (extent[0], extent[1])


def _fusion_section(pages: _Page, settings: Settings, studies: Studies) -> None:
    measured = measure_study([studies.found[INFORMATIVE], studies.found["fusion"]], resamples=settings.resamples)
    seeds = measured.gains["iobb"].seeds
    caption = f"{len(measured.truth.cases)} tested images, {counted(seeds, 'seed')}, vitals that inform."
    pages.add(
        "Ways of fusing",
        [
            (
                "The same fusion modules serve detectors of two stages and of one. Gains are over Mask R-CNN, image "
                f"alone. {'One seed: differences of a few points are noise.' if seeds == 1 else ''}"
            )
        ],
        {"fusion": table_of(measured, caption=caption)},
    )


def _feature_section(pages: _Page, settings: Settings, studies: Sequence[DetectorStudy]) -> None:
    measured = measure_study(studies, resamples=settings.resamples)
    gains = measured.gains["iobb"]
    rows, precision = [], {}
    known = {name: DUAL if name == "all" else name for name in FEATURE_SETS}
    for name in (name for name, model in known.items() if model in gains.models):
        at = gains.models.index(DUAL if name == "all" else name)
        printed = PUBLISHED_ABLATION[ABLATION_OF[name]]
        low, high = (end[at, -1] for end in gains.gain_interval[:2])
        precision[name] = tuple(float(value) for value in 100 * gains.value[at, :-1])
        rows.append(
            [
                name,
                *(float(value) for value in gains.value[at, :-1]),
                float(gains.value[at, -1]),
                format_interval(gains.gain[at, -1], low, high, signed=True),
                f"{printed.overall[0]:.1f} / {printed.overall[1]:.1f}",
            ]
        )
    lesions = [name.replace("_", " ") for name in measured.truth.classes]
    caption = f"MDF-Net, {len(measured.truth.cases)} tested images, {counted(gains.seeds, 'seed')}; AP at IoBB 0.5."
    table = Table(["features", *lesions, "mean", "gain over Mask R-CNN", "paper: AP / AR, %"], rows, caption)
    both_readings = (
        "The row that the study prints as all without gender came from a run without blood pressures, pain and "
        "acuity as well; both readings are here, and stand beside the same printed figure."
    )
    text = [both_readings]
    items: dict[str, Figure | Table] = {"features": table}
    if "gender" in precision and any(name.startswith("gender + ") for name in precision):
        relevance = relevance_table(precision)
        ranked = rank_correlation(relevance)
        text.append(
            f"Radiologists' relevance and the gain of each feature over gender alone: Spearman {ranked.rho:.2f} "
            f"(p {p_text(ranked.p_value)}, {ranked.cells} cells, which depend on each other)."
        )
        features = list(dict.fromkeys(relevance["feature"]))
        items["relevance"] = relevance_figure(
            np.array([RELEVANCE[name] for name in features]),
            _grid(relevance, features, "gain"),
            [name.split("_")[0] for name in features],
            lesions,
            caption=f"The paper's Figure 4a. Gain over gender alone; {caption}",
        )
    else:
        text.append("What a feature adds to gender is not told: those detectors were not trained.")
    items["correlation"] = _correlation(studies[0].plan.cohort)
    pages.add("Clinical features", text, items)


def _grid(table: Any, features: Sequence[str], column: str) -> np.ndarray:
    """A column of a table of features and lesions, features by lesions."""
    return table.pivot(index="feature", columns="lesion", values=column).loc[list(features), list(LESIONS)].to_numpy()


def _correlation(cohort: Any) -> Figure:
    import pandas as pd

    told = cohort.table[[name for name in LESIONS if name in cohort.table]]
    if len(told.columns) < len(LESIONS):
        marks = [[int((own.classes == k).any()) for k in range(len(LESIONS))] for own in cohort.boxes]
        whole = pd.DataFrame(marks, columns=list(LESIONS), index=cohort.table.index)
        cohort = dataclasses.replace(
            cohort,
            table=cohort.table.assign(**{name: whole[name] for name in LESIONS}),
            roles={**cohort.roles, **dict.fromkeys(LESIONS, "group")},
        )
    table = correlation_table(cohort, resamples=200)
    features = list(dict.fromkeys(table["feature"]))
    return correlation_figure(
        _grid(table, features, "r"),
        [name.split("_")[0] for name in features],
        [name.replace("_", " ") for name in LESIONS],
        caption=f"The paper's Figure 4b. Pearson's correlation over {len(cohort)} cases.",
    )


def _real_section(pages: _Page, name: str, title: str, study: DetectorStudy, measured: Measured) -> None:
    recall = [study.anchors(task)["recall"] for task in study.done]
    text = [
        (
            f"{len(measured.truth.cases)} tested images with {len(measured.truth.label)} boxes; anchors reach "
            f"{min(recall):.0%} to {max(recall):.0%} of the training boxes."
        )
    ]
    if name == "lungs":
        text.append("Both lungs are always there: this shows that real images and gaps in the table go through.")
    items: dict[str, Figure | Table] = {name: table_of(measured, caption=f"{title}; age and sex are read.")}
    if name == "jsrt":
        items["jsrt_groups"] = _nodule_table(study, measured)
    pages.add(title, text, items)


def _nodule_table(study: DetectorStudy, measured: Measured) -> Table:
    """Nodules found by their size and place, all folds together."""
    from fusion_jax.evaluation.detection import hits_and_misses

    table: Any = study.plan.cohort.table
    rows = []
    cases = np.array(measured.truth.cases)
    for column in ("nodule_size", "nodule_lobe"):
        for level in dict.fromkeys(table[column]):
            if level == "none":
                continue
            own = np.isin(cases[measured.truth.case], table.index[table[column] == level])
            row: list[Any] = [f"{column.split('_')[1]}: {level}", int(own.sum())]
            for model in measured.matches["iobb"]:
                matches = measured.matches["iobb"][model][0]
                right, _ = hits_and_misses(matches, overlap=HIT)
                found = np.isin(table.loc[cases[matches.case[right]], column].to_numpy(), [level]).sum()
                row.append(int(found))
            rows.append(row)
    names = [f"found by {NAMES[model]}" for model in measured.matches["iobb"]]
    return Table(["nodules", "there", *names], rows, "Nodules hit at IoBB 0.5 by any of an image's ten detections.")


def _settings_section(config: Config, settings: Settings, studies: Studies) -> Section:
    rows = [[part, len(study.done), len(study.failed), studies.seconds[part]] for part, study in studies.found.items()]
    table = Table(["part", "trainings", "failed", "seconds, over all calls"], rows, f"Preset {config.preset}.")
    trained = {**settings.training, **settings.detector}
    return Section(
        "How it was run",
        [
            f"{settings.cases} synthetic images of {settings.size} x {settings.size} pixels, strength of the vitals "
            f"{settings.strength:g}, fixed beforehand by the power run. "
            + ", ".join(f"{name} {value}" for name, value in trained.items()),
            f"Features of a case: {', '.join(TRIAGE)}.",
        ],
        [table],
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
