"""What the models came to: best runs and ensembles, paired tests, and tables beside those of the paper."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.breast_mri.importance import FOUR, PAPER_MEDIANS
from experiments.breast_mri.study import ALONE, LEARNED, TABULAR, WITHOUT, Study
from fusion_jax.evaluation.assembly import Evaluation, evaluate
from fusion_jax.evaluation.comparisons import BOOTSTRAP
from fusion_jax.evaluation.importance import Importance, RankProduct, rank_product
from fusion_jax.evaluation.panel import View
from fusion_jax.models.comparison import Comparison
from fusion_jax.records import read_json_lines
from fusion_jax.reporting.html import Section, Table
from fusion_jax.reporting.tables import format_interval, format_p
from fusion_jax.training.cross_validation import Task
from fusion_jax.wording import counted

__all__ = ["PAPER", "Best", "best_runs", "importance_section", "side_section", "table_section", "tests_section"]

AUC, SPECIFICITY = "auc", "specificity_at_sensitivity"

PAPER: Mapping[str, tuple[str, str, str, str]] = {
    "Image-Only": (".849 [.834, .864]", "30.1 [23.1, 37.0]", ".860 [.845, .873]", "33.2 [27.4, 39.7]"),
    "Non-Image-Only": (".807 [.791, .823]", "27.7 [22.3, 33.9]", ".806 [.790, .821]", "29.5 [20.5, 34.4]"),
    "Probability Fusion [P,P]": (".888 [.875, .899]", "48.2 [42.2, 53.5]", ".888 [.876, .899]", "51.3 [45.2, 56.2]"),
    "Feature Fusion [L,S]": (".894 [.882, .905]", "46.5 [40.5, 51.1]", ".901 [.890, .913]", "47.3 [42.6, 55.0]"),
    LEARNED: (".898 [.885, .909]", "49.1 [38.8, 55.3]", ".903 [.891, .914]", "50.3 [44.2, 59.0]"),
    "L+L": (".895 [.883, .906]", "49.0 [41.3, 55.4]", ".902 [.890, .913]", "49.1 [40.7, 57.3]"),
    "L×L": (".893 [.881, .905]", "50.8 [45.7, 55.0]", ".896 [.884, .907]", "50.3 [42.8, 56.9]"),
}  # fmt: skip
"""AUC and specificity at 95 % sensitivity in percent, of the best run and of five runs; Holste et al. 2021, Table 2."""

IMAGE, PROBABILITY, FEATURE = "Image-Only", "Probability Fusion [P,P]", "Feature Fusion [L,S]"

PAIRS: Sequence[tuple[str, str, str, str]] = (
    *((model, IMAGE, "< .001", "< .01") for model in (PROBABILITY, FEATURE, LEARNED, "L+L", "L×L")),
    (LEARNED, PROBABILITY, ".003", "> .5"),
    (LEARNED, FEATURE, ".247", "> .5"),
    (LEARNED, "L+L", "> .05", "> .5"),
    (LEARNED, "L×L", "> .05", "> .5"),
)
"""Pairs that the paper tests, with its p-values for AUC and specificity."""


class Best(NamedTuple):
    """The training of every model that did best on validation cases.

    Attributes:
      seeds: of it, by model.
      validation_auc: of it, by model: the largest of its epochs, on validation cases as they are.
      evaluation: of these trainings.
    """

    seeds: Mapping[str, int]
    validation_auc: Mapping[str, float]
    evaluation: Evaluation


def best_runs(comparison: Comparison) -> Best:
    """Choose the training of every model by its validation cases, never by the test (reading B7), and judge it."""
    made, panel = comparison.plan, comparison.panel
    found: dict[str, tuple[float, int]] = {}
    for model in comparison.models:
        runs = [(_validation_auc(comparison, model, seed), -place) for place, seed in enumerate(made.seeds)]
        value, place = max(runs)
        found[model] = value, -place
    chosen = {}
    for model, (_, place) in found.items():
        seed = made.seeds[place]
        # Trainings of one split differ by the seed alone.
        [chosen[model]] = [
            run for run in panel.runs[model] if len(made.seeds) == 1 or run.name.split()[-1] == str(seed)
        ]
    models = tuple(chosen)
    view = View(
        "best run on validation cases",
        models,
        np.stack([chosen[model].scores for model in models]),
        chosen[models[0]].folds,
        {model: run.validation for model, run in chosen.items()},
    )
    return Best(
        {model: made.seeds[place] for model, (_, place) in found.items()},
        {model: value for model, (value, _) in found.items()},
        evaluate(panel, comparison.evaluation.protocol, view=view),
    )


def _validation_auc(comparison: Comparison, model: str, seed: int) -> float:
    [split] = comparison.plan.splits.splits
    path = comparison.plan.task_folder(Task(model, split.repeat, split.fold, seed)) / "metrics.jsonl"
    lines = read_json_lines(path)
    values = [float(line["validation_auc"]) for line in lines if line.get("validation_auc") is not None]
    return max((value for value in values if not np.isnan(value)), default=float("nan"))


def figure(found: Evaluation, model: str, metric: str) -> str:
    """A metric of a model with its interval; the specificity in percent."""
    if found.judged is None:
        raise ValueError("predictions without labels have no AUC; expected those of a classification.")
    one = next(
        each for each in found.judged.estimates if (each.model, each.metric, each.of_class) == (model, metric, "")
    )
    if metric == AUC:
        return format_interval(one.value, one.low, one.high)
    return format_interval(100 * one.value, 100 * one.low, 100 * one.high, 1)


def difference(found: Evaluation, first: str, second: str, metric: str) -> tuple[str, str]:
    """Difference of two models with its interval, and the p-value of the paired bootstrap z-test."""
    for one in found.comparisons:
        if one.metric != metric or one.rule or one.test != BOOTSTRAP or {one.first, one.second} != {first, second}:
            continue
        ends = (one.low, one.high) if one.first == first else (-one.high, -one.low)
        value = one.difference if one.first == first else -one.difference
        scale, digits = (1, 3) if metric == AUC else (100, 1)
        shown = format_interval(scale * value, scale * ends[0], scale * ends[1], digits, signed=True)
        return shown, format_p(one.p_value)
    return "–", "–"


def who(found: Evaluation, study: Study) -> str:
    """Number of test cases, patients and positive cases."""
    panel = found.panel
    positive = int(np.sum(panel.labels == 1)) if panel.labels is not None else 0
    patients = "" if panel.patient_count in (None, len(panel)) else f" of {panel.patient_count} patients"
    return f"n = {len(panel)} test cases{patients}, {positive} positive ({study.what})"


def table_section(comparison: Comparison, best: Best, study: Study, tables: dict[str, Table]) -> Section:
    """The paper's table of results, with ours beside it."""
    ensemble = comparison.evaluation
    rows: list[list[str]] = []
    for model in comparison.models:
        paper = PAPER.get(model, ("–",) * 4)
        ours = (
            figure(best.evaluation, model, AUC),
            figure(best.evaluation, model, SPECIFICITY),
            figure(ensemble, model, AUC),
            figure(ensemble, model, SPECIFICITY),
        )
        rows.append([model, *(cell for pair in zip(ours, paper, strict=True) for cell in pair)])
    runs = len(comparison.plan.seeds)
    heads = ("best run: AUC", "best run: specificity", f"{runs} runs: AUC", f"{runs} runs: specificity")
    papers = ("best run: AUC", "best run: specificity", "5 runs: AUC", "5 runs: specificity")
    tables["holste_table"] = Table(
        ("model", *(cell for head, theirs in zip(heads, papers, strict=True) for cell in (head, f"paper, {theirs}"))),
        rows,
        f"{who(ensemble, study)}. Specificity at 95 % sensitivity in percent; intervals: 95 % percentile bootstrap of "
        "patients. The paper's columns are of its own 4,909 test breasts.",
    )
    seeds = ", ".join(f"{model} {seed}" for model, seed in best.seeds.items())
    copies = _copies(comparison)
    text = [
        (
            "The best run of a model is that with the largest AUC on validation cases, which choose the epoch as well "
            f"and are judged as they are; by its seed: {seeds}. The columns of {runs} runs are of their mean "
            "probability."
        )
    ]
    if copies:
        text.append(f"Test images are judged by {copies} augmented copies, without the image as it is.")
    if study.best:
        image, table, both = study.best
        text.append(
            f"The truth of this cohort: no model can exceed an AUC of about {image:.3f} from the image, {table:.3f} "
            f"from the features and {both:.3f} from both; fusion can help."
        )
    return Section("Table 2 of the paper", text, [tables["holste_table"]])


def _copies(comparison: Comparison) -> int:
    """Test-time copies of an image."""
    return max(int(choice.arguments.get("test_copies", 0)) for choice in comparison.plan.choices.values())


def tests_section(comparison: Comparison, best: Best, study: Study, tables: dict[str, Table]) -> Section:
    """The paper's paired tests."""
    rows, runs = [], len(comparison.plan.seeds)
    for first, second, paper_auc, paper_specificity in PAIRS:
        if first not in comparison.models or second not in comparison.models:
            continue
        for metric, paper in ((AUC, paper_auc), (SPECIFICITY, paper_specificity)):
            rows.append(
                [
                    f"{first} − {second}",
                    "AUC" if metric == AUC else "specificity",
                    *difference(best.evaluation, first, second, metric),
                    *difference(comparison.evaluation, first, second, metric),
                    paper,
                ]
            )
    tables["holste_tests"] = Table(
        ("difference", "metric", "best run", "best run: p", f"{runs} runs", f"{runs} runs: p", "paper, best run: p"),
        rows,
        f"{who(comparison.evaluation, study)}. Paired stratified bootstrap of patients, two-sided z-test on the "
        "difference, specificity in percent; as in the paper, p-values are not corrected for their number.",
    )
    return Section("Paired tests of the paper", [], [tables["holste_tests"]])


def importance_section(
    importances: Mapping[str, Importance], found: Evaluation, study: Study, tables: dict[str, Table]
) -> Section | None:
    """The paper's table of permutation importance; None where no model was asked."""
    if not importances:
        return None
    product = importance_ranks_of(importances)
    first = next(iter(importances.values()))
    published = set(first.names) == set(PAPER_MEDIANS) and tuple(importances) == FOUR
    paper = (
        rank_product(np.array([[PAPER_MEDIANS[name][at] for name in first.names] for at in range(4)]))
        if published
        else None
    )
    rows = []
    for place in product.order:
        name = first.names[place]
        cells = []
        for at, one in enumerate(importances.values()):
            ends = one.interval
            shown = f"{one.median[place]:.2f}"
            if ends is not None:
                shown = format_interval(float(one.median[place]), float(ends.low[place]), float(ends.high[place]), 2)
            cells.append(f"{shown} ({one.rank[place]:g})")
            if published:
                cells.append(f"{PAPER_MEDIANS[name][at]:.2f}".replace("-", "−"))
        geometric = [f"{product.mean[place]:.1f}"] + ([f"{paper.mean[place]:.1f}"] if paper is not None else [])
        rows.append([name, *cells, *geometric])
    heads = [cell for model in importances for cell in ((model, f"paper, {model}") if published else (model,))]
    fixed = max(first.fixed)
    tables["holste_importance"] = Table(
        ("feature", *heads, "mean rank", *(("paper, mean rank",) if published else ())),
        rows,
        f"{who(found, study)}. Loss of AUC in percent when a feature is exchanged between patients: median of "
        f"{first.draws.shape[1]} permutations, 95 % interval over patients, and rank by its size; best run of every "
        "model, geometric mean of the ranks.",
    )
    text = [
        (
            "Features are exchanged beside test images as they are. Dummies of a feature move together, whole rows of "
            "them, so that the reference level stays what it is. Importance is to a model, not to the disease, and "
            "features that say the same, such as those of one scanner, share theirs."
        )
    ]
    if found.panel.clustered:
        text.append(
            "Patients exchange all their cases at once, with patients of as many cases; "
            f"{counted(fixed, 'patient')} had nobody to exchange with."
        )
    return Section("Permutation importance", text, [tables["holste_importance"]])


def importance_ranks_of(importances: Mapping[str, Importance]) -> RankProduct:
    """Order of the features over the models."""
    return rank_product(np.stack([one.median for one in importances.values()]))


def side_section(side: Comparison | None, study: Study, tables: dict[str, Table]) -> list[Section]:
    """Variants of training, and the confounder audit."""
    if side is None:
        return []
    found, runs = side.evaluation, len(side.plan.seeds)

    def row(model: str, base: str) -> list[str]:
        compared: tuple[str, str] = ("–", "–")
        if base in side.models and model != base:
            compared = difference(found, model, base, AUC)
        return [model, figure(found, model, AUC), figure(found, model, SPECIFICITY), *compared]

    sections = []
    caption = (
        f"{who(found, study)}. Mean probability of {runs} runs; paired bootstrap z-test of the AUC, not corrected; "
        "specificity at 95 % sensitivity in percent."
    )
    variants = [model for model in side.models if model.startswith("[L,L] ")]
    if variants:
        tables["holste_variants"] = Table(
            ("model", "AUC", "specificity", f"less {LEARNED}", "p"),
            [row(model, LEARNED) for model in (LEARNED, *variants) if model in side.models],
            caption,
        )
        text = [
            (
                "multiloss: three losses, one optimiser. multiopt: the fused loss is kept from the encoders, which is "
                "what three optimisers over disjoint parameters come to, since Adam treats every parameter by itself. "
                "Stage-wise: encoders and their heads first, then the fusion over frozen encoders (reading B4). The "
                "paper calls its variants competitive; their numbers are in its supplement."
            )
        ]
        sections.append(Section("Variants of training", text, [tables["holste_variants"]]))
    audited = [model for model in side.models if model.endswith((WITHOUT, ALONE))]
    if audited:
        tables["holste_audit"] = Table(
            ("model", "AUC", "specificity", "less the model of all features", "p"),
            [
                row(model, model.partition(",")[0] if model.startswith(TABULAR) else LEARNED)
                for model in (TABULAR, LEARNED, *audited)
                if model in side.models
            ],
            caption,
        )
        text = [
            (
                f"Trained again without {', '.join(study.acquisition)}, and on these alone. What a model loses without "
                "them it owed to how the images were taken; an AUC above 0.5 of them alone says that the scanner tells "
                "something of the diagnosis in this cohort, which it will not do elsewhere."
            )
        ]
        sections.append(Section("Confounder audit", text, [tables["holste_audit"]]))
    return sections
