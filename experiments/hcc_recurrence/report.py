"""The page of a run: that of a comparison by patients, with what the paper shows before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table as ScreenTable

from experiments.hcc_recurrence.models import CLINICAL, PAPER
from experiments.hcc_recurrence.study import (
    Claim,
    ClinicalCohorts,
    Fold,
    FoldMean,
    claims_of,
    fold_means,
    folds_of,
    is_published,
    selections,
)
from fusion_jax.data.tabular import selection_frequency
from fusion_jax.models.analysis import Analysis
from fusion_jax.models.comparison import PREDICTIONS, Comparison
from fusion_jax.records import write_csv, write_json
from fusion_jax.reporting.comparison import comparison_additions
from fusion_jax.reporting.evaluation.results import write_evaluation
from fusion_jax.reporting.evaluation.words import primary_estimates
from fusion_jax.reporting.html import Section, Table, format_number
from fusion_jax.reporting.tables import format_interval, format_p
from fusion_jax.wording import counted

__all__ = ["Study", "quality_rows", "screen", "write_results"]


class Study(NamedTuple):
    """Everything that a run found.

    Attributes:
      slices, patients: the comparison judged by slices and by patients.
      analysis: of its models.
      clinical: the clinical model on many cohorts; None where none were asked for.
      selection: "fold" or "global".
      measured: what the radiomics model read; "" without one.
      bounds: best AUC that is possible on this cohort, of the image, the factors and both; none where it is not known.
      config: of the run, as JSON holds it.
      seconds: that the run took.
    """

    slices: Comparison
    patients: Comparison
    analysis: Analysis
    clinical: ClinicalCohorts | None
    selection: str
    measured: str
    bounds: tuple[float, ...]
    config: dict[str, Any]
    seconds: float


def write_results(study: Study, out: Path) -> Path:
    """Report, tables and numbers; says where the report is."""
    comparison = study.patients
    folds = folds_of(comparison.plan.cohort, comparison.plan.splits)
    means = {"slice": fold_means(study.slices.evaluation), "patient": fold_means(comparison.evaluation)}
    claims = claims_of(comparison.evaluation)
    frequency = selection_frequency(selections(comparison.plan.cohort, comparison.plan.splits)).reset_index()
    quality = quality_rows(study)
    tables = {
        "paper_results": _paper_table(study, means, len(folds)),
        "units": _unit_table(means, folds),
        "paper_claims": _claims_table(claims, comparison),
        "selection": _selection_table(frequency, len(folds), study.selection),
        "folds": _fold_table(folds),
    }
    if quality:
        tables["balance"] = _quality_table(quality, len(folds))
    if study.clinical is not None:
        tables["clinical_cohorts"] = _clinical_table(study.clinical)
    additions = comparison_additions(comparison, study.analysis)
    additions = additions._replace(
        title=f"Early recurrence of liver cancer: {comparison.plan.cohort.name}",
        summary=[*_findings(study, claims, folds), *additions.summary],
        first=[*_sections(study, tables), *additions.first],
        tables={**additions.tables, **tables},
    )
    report = write_evaluation(
        out, [comparison.evaluation], paths=[str(out / PREDICTIONS)], config=study.config, additions=additions
    )
    write_csv(
        out / "fold_means.csv",
        [
            {"unit": unit, "model": model} | one._asdict()
            for unit, found in means.items()
            for model, one in found.items()
        ],
    )
    write_json(
        out / "results.json",
        {
            "config": study.config,
            "seconds": study.seconds,
            "folds": [fold._asdict() for fold in folds],
            "means": {
                unit: {model: _finite(one._asdict()) for model, one in found.items()} for unit, found in means.items()
            },
            "pooled": {
                model: {"auc": row.value, "low": row.low, "high": row.high}
                for model, row in primary_estimates(comparison.evaluation).items()
            },
            "claims": [_finite(claim._asdict()) for claim in claims],
            "selection": [
                {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
                for row in frequency.to_dict("records")
            ],
            "quality": quality,
            "clinical_cohorts": None if study.clinical is None else study.clinical._asdict(),
        },
    )
    return report


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}


def _findings(study: Study, claims: Sequence[Claim], folds: Sequence[Fold]) -> list[str]:
    lines = []
    if study.bounds:
        image, factors, both = study.bounds
        lines.append(
            "The cohort is synthetic, with the printed counts of patients, slices and factors: it can show what the "
            f"protocol does, and not how accurate the paper's models are. No model can exceed an AUC of {image:.3f} "
            f"from an enhanced phase, {factors:.3f} from all factors and {both:.3f} from both."
        )
    if study.selection == "global":
        lines.append(
            "Factors were selected on all patients, those that are tested among them, as in the paper: figures of "
            "models with clinical factors are too good. Select in the fold (--selection fold) for honest ones."
        )
    if is_published(folds):
        lines.append("Folds hold the patients and slices of the paper's Table 2.")
    for claim in claims:
        shown = claim.p_holm < 0.05 and claim.difference > 0
        lines.append(
            f"“{claim.what}” ({claim.better} over {claim.other}): "
            f"{'shown' if shown else 'not shown'}, difference in AUC "
            f"{format_interval(claim.difference, claim.low, claim.high, signed=True)}, p {format_p(claim.p)}, "
            f"{format_p(claim.p_holm)} after Holm over {counted(len(claims), 'claim')}."
        )
    return lines


def _sections(study: Study, tables: dict[str, Table]) -> list[Section]:
    measured = f" The radiomics model reads {study.measured}." if study.measured else ""
    sections = [
        Section(
            "The paper's table",
            [
                "Mean and sample standard deviation over folds, as the paper prints them. It does not say whether "
                "slices or patients were counted. The standard deviation of its clinical model is what 16 or 17 "
                "patients a fold give, that of its image models what 65 to 89 slices give: its rows are probably of "
                "two units, and then cannot be compared. Both are shown here for every model." + measured,
            ],
            [tables["paper_results"], tables["units"]],
        ),
        Section(
            "The paper's claims",
            ["Fixed before the trainings; the same patients for both models of a pair."],
            [tables["paper_claims"]],
        ),
        Section(
            "Folds and factors",
            [
                "Factors are tested by Pearson's chi-squared without correction, each patient counted once. "
                + (
                    "Every fold selects among its training patients."
                    if study.selection == "fold"
                    else "The paper's way was taken: one selection on all patients, which sees those that are tested. "
                    "What the folds would have selected is listed."
                )
            ],
            [tables["selection"], tables["folds"]],
        ),
    ]
    if "balance" in tables:
        sections.append(
            Section(
                "Sizes and balance of the two sources",
                [
                    (
                        "The paper's motive for few image features is the “huge gap of magnitude” between 2,048 "
                        "features and nine bits. γ is the size of the clinical part relative to the image part (Wang "
                        "Y. et al. 2023), who expect fusion to be best at 1."
                    )
                ],
                [tables["balance"]],
            )
        )
    if "clinical_cohorts" in tables:
        sections.append(
            Section(
                "The clinical model on many cohorts",
                [
                    (
                        "A single cohort of 167 patients says little about a model. A forest on the nine bits, one row "
                        "a patient, was repeated on patients drawn with the same shares of every factor. If its spread "
                        "over folds is that of the paper's clinical row, that row counted patients."
                    )
                ],
                [tables["clinical_cohorts"]],
            )
        )
    return sections


def _paper_table(study: Study, means: dict[str, dict[str, FoldMean]], folds: int) -> Table:
    pooled = primary_estimates(study.patients.evaluation)
    rows = []
    for model in study.patients.models:
        printed = PAPER.get(model)
        rows.append(
            [
                model,
                *(cell for unit in ("slice", "patient") for cell in _cells(means[unit][model])),
                format_interval(pooled[model].value, pooled[model].low, pooled[model].high),
                *(("–", "–") if printed is None else _cells(FoldMean(*printed))),
            ]
        )
    panel, slices = study.patients.panel, study.slices.panel
    return Table(
        ("model", "slices: accuracy, %", "slices: AUC", "patients: accuracy, %", "patients: AUC",
         "patients, pooled: AUC [95 %]", "paper: accuracy, %", "paper: AUC"),
        rows,
        f"{len(slices):,} slices of {len(panel)} patients, {folds} folds; mean ± sample standard deviation over folds. "
        "A patient's score is the mean probability of its slices. Pooled: all patients together, interval over "
        "patients, conditional on the trained models.",
    )  # fmt: skip


def _cells(one: FoldMean) -> tuple[str, str]:
    return f"{one.accuracy:.1f} ± {one.accuracy_sd:.1f}", f"{one.auc:.3f} ± {one.auc_sd:.3f}"


def _unit_table(means: dict[str, dict[str, FoldMean]], folds: Sequence[Fold]) -> Table:
    rows = [
        [model, *(number for unit in ("slice", "patient") for number in _spread(means[unit][model])), *_printed(model)]
        for model in means["patient"]
        if model in PAPER
    ]
    patients, slices = (np.mean([getattr(fold, name) for fold in folds]) for name in ("patients", "slices"))
    return Table(
        ("model", "slices: sd of accuracy", "slices: sd of AUC", "patients: sd of accuracy", "patients: sd of AUC",
         "paper: sd of accuracy", "paper: sd of AUC"),
        rows,
        f"Standard deviations over folds of {slices:.0f} slices or {patients:.0f} patients on average.",
    )  # fmt: skip


def _spread(one: FoldMean) -> tuple[float, float]:
    return one.accuracy_sd, one.auc_sd


def _printed(model: str) -> tuple[float, float]:
    return PAPER[model].accuracy_sd, PAPER[model].auc_sd


def _claims_table(claims: Sequence[Claim], comparison: Comparison) -> Table:
    rows = [
        [
            claim.what,
            f"{claim.better} − {claim.other}",
            format_interval(claim.difference, claim.low, claim.high, signed=True),
            format_p(claim.p),
            format_p(claim.p_holm),
            _difference(claim),
        ]
        for claim in claims
    ]
    return Table(
        ("claim", "pair", "difference in AUC [95 %]", "p", "p, Holm", "in the paper"),
        rows,
        f"{len(comparison.panel)} patients, pooled over folds; paired bootstrap over patients. In the paper: "
        "difference of its means over folds, without a test.",
    )


def _difference(claim: Claim) -> str:
    return f"{PAPER[claim.better].auc - PAPER[claim.other].auc:+.3f}".replace("-", "−")


def _selection_table(frequency: Any, folds: int, mode: str) -> Table:
    rows = [
        [row.factor, f"{row.selected} of {row.folds}", *(format_p(p) for p in (row.p_median, row.p_min, row.p_max))]
        for row in frequency.itertuples()
    ]
    used = "used in each fold" if mode == "fold" else "listed only: all folds read the factors selected on all patients"
    return Table(
        ("factor", "selected in folds", "median p", "smallest p", "largest p"),
        rows,
        f"Selection at p < .05 among the training patients of {counted(folds, 'fold')}; {used}.",
    )


def _fold_table(folds: Sequence[Fold]) -> Table:
    rows = [
        [
            fold.name,
            f"{fold.train_slices} ({fold.train_patients})",
            f"{fold.slices} ({fold.patients})",
            f"{fold.without}, {fold.recurring}",
        ]
        for fold in folds
    ]
    return Table(
        ("fold", "training slices (patients)", "test slices (patients)", "tested without, with early recurrence"),
        rows,
        f"Composition of {counted(len(folds), 'fold')}; slices follow their patient.",
    )


def quality_rows(study: Study) -> list[dict[str, Any]]:
    """Sizes of the two sources in the fused layer and their balance, mean over trainings, of every fused network."""
    import pandas as pd

    found = []
    pooled = primary_estimates(study.patients.evaluation)
    for model, trainings in study.analysis.trainings.items():
        parts = [
            pd.read_csv(path).mean(numeric_only=True) for one in trainings if (path := one.folder / CASES).exists()
        ]
        if not parts:
            continue
        mean = {str(name): float(np.mean([part[name] for part in parts])) for name in parts[0].index}
        image, clinical = mean["size/image"], mean["size/clinical"]
        pair = next(name.removeprefix("energy_gap/") for name in mean if name.startswith("energy_gap/"))
        sign = 1 if pair.startswith("image") else -1
        found.append(
            {
                "model": model,
                "image": image,
                "clinical": clinical,
                "gamma": clinical / image,
                "energy_gap": sign * mean[f"energy_gap/{pair}"],
                "scale_free_gap": sign * mean[f"scale_free_gap/{pair}"],
                "overlap_image": mean["overlap/image"],
                "overlap_clinical": mean["overlap/clinical"],
                "auc": pooled[model].value,
            }
        )
    return found


CASES = "quality_cases.csv"


def _quality_table(rows: Sequence[dict[str, Any]], folds: int) -> Table:
    return Table(
        ("model", "image features", "clinical features", "γ", "energy gap ΔE", "scale-free gap", "overlap with image",
         "overlap with clinical", "patients: AUC"),
        [list(row.values()) for row in rows],
        f"Test cases, mean over the trainings of {counted(folds, 'fold')}. The gap is positive where the image holds "
        "more energy. Clinical features vary where every fold selects for itself.",
    )  # fmt: skip


def _clinical_table(found: ClinicalCohorts) -> Table:
    def row(name: str, auc: Sequence[float], accuracy: Sequence[float], printed: tuple[str, str]) -> list[Any]:
        cells = [
            f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else values[0]
            for values, digits in ((auc, 3), (accuracy, 1))
        ]
        return [name, *cells, *printed]

    paper = PAPER[CLINICAL]
    return Table(
        ("over cohorts", "AUC", "accuracy, %", "paper: AUC", "paper: accuracy, %"),
        [
            row("mean over folds", found.auc, found.accuracy, (f"{paper.auc:.4f}", f"{paper.accuracy}")),
            row(
                "standard deviation over folds",
                found.auc_fold_sd,
                found.accuracy_fold_sd,
                (f"{paper.auc_sd}", f"{paper.accuracy_sd}"),
            ),
        ],
        f"Mean ± standard deviation over {counted(len(found.auc), 'synthetic cohort')} of 167 patients, ten folds.",
    )


def screen(study: Study) -> ScreenTable:
    """The table that a run ends with."""
    shown = ScreenTable(title=f"{study.patients.plan.cohort.name}, mean ± sd over folds")
    for column in ("model", "AUC, slices", "AUC, patients", "pooled AUC [95 %], patients", "paper"):
        shown.add_column(column)
    slices, patients = (fold_means(one.evaluation) for one in (study.slices, study.patients))
    for model, row in primary_estimates(study.patients.evaluation).items():
        printed = PAPER.get(model)
        shown.add_row(
            model,
            _cells(slices[model])[1],
            _cells(patients[model])[1],
            format_interval(row.value, row.low, row.high),
            "–" if printed is None else f"{format_number(printed.auc)} ± {printed.auc_sd}",
        )
    return shown
