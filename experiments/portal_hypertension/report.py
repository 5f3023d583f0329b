"""The page of a run: Table 1, Figures 6 and 7, the claim under every head, and what they say."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as ScreenTable

from experiments.portal_hypertension import figures
from experiments.portal_hypertension.claim import Claim
from experiments.portal_hypertension.config import Config
from experiments.portal_hypertension.study import FEATURES, Opened
from experiments.portal_hypertension.table import PAPER, Table1, trained_folders
from experiments.portal_hypertension.words import sentences
from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.reporting.evaluation.words import verdict
from fusion_jax.reporting.figures import save_figure
from fusion_jax.reporting.html import Figure, Section, Table, write_report

__all__ = ["answers", "screen", "write_results"]

SHORT = {
    "ridge": "ridge, chosen penalty",
    "fixed": "ridge, one penalty",
    "sgd": "linear, SGD",
    "mlp": "hidden layer, SGD",
}

HEADS = {
    "ridge": "exact ridge, penalty by validation",
    "fixed": "exact ridge, one penalty for all",
    "sgd": "linear, trained by SGD",
    "mlp": "one hidden layer of 32, trained by SGD",
}
"""Heads by the names of the report."""


def write_results(
    config: Config,
    out: Path,
    opened: Opened,
    table: Table1,
    claims: Mapping[str, Claim],
    exact: Evaluation,
    tuned: Table1 | None,
    seconds: float,
) -> Path:
    """Report, figures and numbers."""
    record = run_record()
    patients = len(set(opened.cohort.patient_id))
    splits = len(table.plan.splits.splits)
    sections = [
        _table_section(opened, table, patients, splits),
        _quality_section(table, patients, splits),
        _glance_section(claims),
        *(_claim_section(name, claim) for name, claim in claims.items()),
    ]
    if tuned is not None:
        sections.append(_tuned_section(tuned))
    names = iter(range(1, 100))
    for section in sections:
        for item in section.items:
            if isinstance(item, Figure):
                save_figure(item, out / "figures" / f"{next(names):02d}.svg")
    write_csv(out / "table1.csv", [row._asdict() for row in table.rows])
    write_json(
        out / "results.json",
        {
            "config": {key: str(value) for key, value in dataclasses.asdict(config).items()},
            "patients": patients,
            "optimal": opened.optimal,
            "table": [_finite(row._asdict()) for row in table.rows],
            "benefits": [_finite(one._asdict()) for one in table.evaluation.benefits],
            "benefits_exact": [_finite(one._asdict()) for one in exact.benefits],
            "claims": {name: dataclasses.asdict(claim) for name, claim in claims.items()},
            "fine_tuned": None if tuned is None else [_finite(row._asdict()) for row in tuned.rows],
            "failed": dict(table.failed),
            "seconds": seconds,
            "record": record,
        },
    )
    report = out / "report.html"
    title = f"Markers beside the image: {opened.what}"
    write_report(report, title=title, summary=answers(opened, table, claims, exact), sections=sections, record=record)
    return report


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}


def answers(opened: Opened, table: Table1, claims: Mapping[str, Claim], exact: Evaluation) -> list[str]:
    """The findings, first what was asked first."""
    lines = []
    if opened.optimal:
        image, markers, both = (opened.optimal[part] for part in (FEATURES, "clinical", "both"))
        lines.append(
            f"The truth of this cohort: no model can exceed an AUC of {image:.3f} from the image, {markers:.3f} from "
            f"the markers and {both:.3f} from both."
        )
    for heads, found in (("exact heads", exact), ("Table 1", table.evaluation)):
        helped = [one.model for one in found.benefits if one.helped]
        said = f"yes ({', '.join(helped)})" if helped else "no evidence"
        lines.append(f"Did fusion help, {heads}, {len(found.panel)} patients: {said}.")
        lines += verdict(found)
    for name, claim in claims.items():
        lines += [f"{HEADS[name]}: {line}" for line in sentences(claim)]
    lines += [f"{model} could not be trained: {message}" for model, message in table.failed.items()]
    return lines


def _table_section(opened: Opened, table: Table1, patients: int, splits: int) -> Section:
    rows = []
    for row in table.rows:
        auc, accuracy = PAPER[row.model]
        rows.append(
            [
                row.model,
                row.size,
                row.gamma,
                f"{row.auc:.3f} [{row.low:.3f}, {row.high:.3f}]",
                f"{row.sd:.3f}",
                f"{row.accuracy:.3f}",
                f"{auc:.2f}",
                f"{accuracy:.2f}",
            ]
        )
    test = np.mean([len(split.test) for split in table.plan.splits.splits])
    text = [
        (
            f"{opened.what}, {patients} patients, {splits} stratified Monte-Carlo splits over patients, of whom "
            f"{test:.0f} are tested in each. AUC and accuracy are means over the splits; intervals resample patients "
            "(95 %) and do not hold how much another training set would have changed the models."
        ),
        (
            "The paper's columns are of its own patients, whose images are not public; the paper does not state the "
            "number of its splits, and one of them tests about 20 patients, 96 pairs, an AUC in steps of 0.01."
        ),
    ]
    if opened.source == FEATURES:
        text.append(
            "Image features are those of a frozen trunk; below, some of the rows are trained end to end."
            if opened.images is not None
            else "Image features are given, so that no trunk is trained."
        )
    columns = ["model", "d2*", "γ", "AUC [interval]", "sd over splits", "accuracy", "paper: AUC", "paper: accuracy"]
    return Section("Table 1", text, [Table(columns, rows, f"Ten models, n = {patients} patients, {splits} splits.")])


def _quality_section(table: Table1, patients: int, splits: int) -> Section:
    items: list[Figure | Table] = [
        figures.table_figure(
            table.rows,
            caption=(
                f"AUC with its interval and magnitude of the pooled energy gap between markers and image against γ, "
                f"n = {patients} patients, {splits} splits (the paper's Figure 7)."
            ),
        )
    ]
    shown = [
        name for name in ("image + markers", "image + PE, gamma 1", "image + PE, gamma 3") if name not in table.failed
    ]
    folders = {name: trained_folders(table, name)[0] for name in shown}
    items += figures.representative_case(
        folders,
        caption=(
            "{model}: densities of image features, markers and fused layer of the most typical tested patient of the "
            "first split, n = 1 (the paper's Figure 6)."
        ),
    )
    text = [
        (
            "Features are scaled by the training patients, source by source; bandwidth by Scott's rule. Equal energy "
            "says that no source drowns the other in the fused layer, and nothing of accuracy."
        )
    ]
    return Section("Fusion quality", text, items)


def _glance_section(claims: Mapping[str, Claim]) -> Section:
    first = next(iter(claims.values()))
    figure = figures.heads_figure(
        {name: (SHORT[name], claim) for name, claim in claims.items()},
        caption=(
            f"Mean test AUC against γ under four heads, n = {first.patients} patients, {first.splits} splits. Band: "
            "95 % interval of the encoding over patients; dotted: image alone and markers alone."
        ),
    )
    text = [
        (
            "Blocks of one size have one norm. Where the encoding of other patients rises or falls with γ, size and "
            "norm do it without information; where repetition does, the weight of the markers does it."
        )
    ]
    return Section("The claim: is γ = 1 best?", text, [figure])


def _claim_section(name: str, claim: Claim) -> Section:
    about = f"n = {claim.patients} patients, {claim.splits} splits"
    head = HEADS[name]
    rows = [
        [
            figures.NAMES[curve.control],
            gamma,
            f"{auc:.3f} [{low:.3f}, {high:.3f}]",
            f"{train - auc:.3f}",
            f"{best:.1f}",
        ]
        for curve in claim.curves
        for gamma, auc, low, high, train, best in zip(
            curve.gammas, curve.auc, curve.low, curve.high, curve.train_auc, curve.best, strict=True
        )
    ]
    pairs = [
        [
            f"γ ≈ 1 less {one.what}",
            f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]".replace("-", "\N{MINUS SIGN}"),
            f"{one.p_value:.3f}",
        ]
        for one in (*claim.peak, claim.benefit, *claim.over_controls)
    ]
    encoding = claim.curves[0]
    band = "band: 95 % interval of the encoding over patients."
    return Section(
        f"The claim under heads: {head}",
        list(sentences(claim)),
        [
            figures.claim_figure(claim, caption=f"Mean test AUC against γ, {about}; {band}"),
            figures.best_figure(
                encoding,
                splits=claim.splits,
                caption=f"Positional encoding: best γ of each split, {about}; ties are shared.",
            ),
            figures.gap_figure(claim, caption=f"Overfitting against γ, {about}."),
            Table(
                ["positional encoding, γ ≈ 1", "difference in AUC [interval]", "p"],
                pairs,
                f"Paired over patients, {about}; p-values are not corrected for the number of rows.",
            ),
            Table(
                ["block", "γ", "AUC [interval]", "training − test", "best in splits"],
                rows,
                f"Every block and size, {about}.",
            ),
        ],
    )


def _tuned_section(tuned: Table1) -> Section:
    splits = len(tuned.plan.splits.splits)
    rows = [
        [row.model, row.gamma, f"{row.auc:.3f} [{row.low:.3f}, {row.high:.3f}]", f"{row.accuracy:.3f}"]
        for row in tuned.rows
    ]
    text = ["Trunk and head trained together from the trunk's weights, in fewer epochs, splits and sizes."]
    return Section("End to end", text, [Table(["model", "γ", "AUC [interval]", "accuracy"], rows, f"{splits} splits.")])


def screen(opened: Opened, table: Table1) -> ScreenTable:
    shown = ScreenTable(title=f"{opened.what}: mean test AUC")
    for column in ("model", "AUC [95 %]", "paper"):
        shown.add_column(column)
    for row in table.rows:
        shown.add_row(row.model, f"{row.auc:.3f} [{row.low:.3f}, {row.high:.3f}]", f"{PAPER[row.model][0]:.2f}")
    return shown
