"""What the report says beside the comparison: single numbers, the limits of the label, and time to metastasis."""

from collections.abc import Sequence
from typing import Any

from experiments.sarcoma_fusion.cohort import TWO_YEARS, shortly_followed
from experiments.sarcoma_fusion.single_numbers import SingleNumbers
from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.models.comparison import Comparison
from fusion_jax.reporting.evaluation.words import primary_estimates, verdict
from fusion_jax.reporting.forest_figures import ForestRow, forest_figure
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.reporting.tables import format_interval

__all__ = ["auc_figure", "limits", "numbers_section", "separable", "survival_section"]


def numbers_section(found: SingleNumbers, folds: int) -> Section:
    """The least that a network has to beat."""
    table = Table(
        ("score", "AUC [interval]"),
        [[name, format_interval(*row)] for name, row in found.rows.items()],
        "Distant metastasis, n = 48 patients, 24 with it; 95 % intervals over patients (DeLong).",
    )
    text = [
        (
            "Volume and SUVmax of the tumour as the sheet has them, and nothing trained; below them a logistic "
            f"regression of standardised log volume and SUVmax (C = 0.1, {folds} folds), mean over "
            f"{found.partitions} divisions into folds, over which its AUC has a standard deviation of "
            f"{found.spread:.3f}. Another division alone moves it by that much; another 48 patients by the interval."
        )
    ]
    return Section("What single numbers say", text, [table])


def limits(comparison: Comparison) -> list[str]:
    """What a reader has to know of the label and the images."""
    short, free = shortly_followed(comparison.plan.cohort)
    return [
        (
            f"Limit of the label: {short} of {free} patients counted as “no metastasis” were followed for less than "
            f"two years ({TWO_YEARS} days) and may have one later. The models of the time to metastasis below do "
            "justice to that; those of the label cannot."
        ),
        (
            "Images were chosen beforehand and not tuned on these folds: the frontal projection of SUV inside the "
            "tumour's contour, and the axial CT slice with most tumour, 64 x 64 at 4 mm. Volume, SUVmax and the "
            "projection all need that contour, which an expert drew; the stored CT ends 2 cm beyond it, so that the "
            "border of the slice tells the size of the tumour, too."
        ),
    ]


def separable(found: Evaluation) -> str:
    """How many pairs of models these patients can tell apart."""
    test = found.benefits[0].test
    pairs = [row for row in found.comparisons if (row.metric, row.test) == (found.protocol.primary, test)]
    told = [row for row in pairs if row.p_holm < 1 - found.protocol.level]
    alone = [row for row in pairs if row.p_value < 1 - found.protocol.level]
    rest = "the others" if told else "they"
    return (
        f"Of {len(pairs)} pairs of models {len(told)} differ in AUC after Holm's correction, {len(alone)} before it "
        f"({test}); with {found.panel.patient_count} patients {rest} cannot be told apart."
    )


def auc_figure(found: Evaluation, singles: Sequence[str]) -> Figure:
    """AUC of every model with its interval."""
    estimates = primary_estimates(found)
    groups = (
        ("one source", [m for m in estimates if m in singles]),
        ("fused", [m for m in estimates if m not in singles]),
    )
    rows = [
        ForestRow(
            model,
            group,
            float(estimates[model].value),
            float(estimates[model].low),
            float(estimates[model].high),
            format_interval(estimates[model].value, estimates[model].low, estimates[model].high),
        )
        for group, models in groups
        for model in models
    ]
    return forest_figure(
        rows,
        xlabel="AUC for distant metastasis",
        caption=f"AUC of every model, n = {found.panel.patient_count} patients, a score each "
        f"({found.view.name or 'of one training'}); 95 % intervals over patients.",
        reference=0.5,
        reference_label="chance",
        heading="AUC [interval]",
    )


def survival_section(comparison: Comparison, page: str) -> Section:
    """Harrell's C of the models of the time to metastasis."""
    found = comparison.evaluation
    survival: Any = found.survival
    harrell, interval = (part.harrell for part in (survival.comparison.estimates, survival.comparison.intervals))
    rows = [
        [model, format_interval(float(harrell[number]), float(interval.low[number]), float(interval.high[number]))]
        for number, model in enumerate(found.view.models)
    ]
    table = Table(
        ("model", "Harrell's C [interval]"),
        rows,
        f"Time to metastasis, n = {found.panel.patient_count} patients, same folds as above; 95 % intervals over "
        "patients.",
    )
    text = [
        (
            "The same images and columns, with the days from diagnosis to metastasis, or to the last follow-up, in "
            "place of the label: networks and regressions of the Cox partial likelihood (Efron's ties). "
            f"Curves, horizons and all tests are in {page}."
        ),
        *verdict(found),
    ]
    return Section("Time to metastasis", text, [table])
