"""The report of a comparison: that of an evaluation, with what is known of the models before and after it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fusion_jax.models.analysis import Analysis, Training
from fusion_jax.models.comparison import PREDICTIONS, Comparison
from fusion_jax.reporting.comparison.leaning import case_section, leaning_section
from fusion_jax.reporting.comparison.models import answer_section, models_section
from fusion_jax.reporting.comparison.patients import patients_section
from fusion_jax.reporting.comparison.quality import quality_section
from fusion_jax.reporting.comparison.training import gap_section, null_section, training_section
from fusion_jax.reporting.evaluation.results import Additions, write_evaluation
from fusion_jax.reporting.html import Section, Table
from fusion_jax.wording import counted, listed

__all__ = ["comparison_additions", "write_comparison"]


def write_comparison(comparison: Comparison, analysis: Analysis) -> Path:
    """Write report, tables, model card and numbers into the folder of a comparison, and say where the report is."""
    made = comparison.plan
    config = {
        "cohort": made.address,
        "models": {model: choice._asdict() for model, choice in made.choices.items()},
        "seeds": made.seeds,
        "splits": made.splits.hash,
        "protocol": dataclasses.asdict(made.protocol),
    }
    return write_evaluation(
        made.folder,
        [comparison.evaluation],
        paths=[str(made.folder / PREDICTIONS)],
        config=config,
        additions=comparison_additions(comparison, analysis),
    )


def comparison_additions(comparison: Comparison, analysis: Analysis) -> Additions:
    """What the report of a comparison says beside the evaluation of its predictions."""
    tables: dict[str, Table] = {}
    first = (
        answer_section(comparison, tables),
        patients_section(comparison, tables),
        models_section(comparison, analysis, tables),
    )
    last = (
        quality_section(comparison, analysis, tables),
        leaning_section(comparison, analysis, tables),
        null_section(analysis, tables),
        gap_section(comparison, analysis, tables),
        training_section(analysis),
        case_section(comparison, analysis),
        _left_out(analysis),
    )
    return Additions(
        title=f"Comparison on {comparison.plan.cohort.name}",
        summary=_summary(comparison, analysis),
        first=[section for section in first if section is not None],
        last=[section for section in last if section is not None],
        tables=tables,
        evidence=_evidence(comparison),
    )


def _summary(comparison: Comparison, analysis: Analysis) -> list[str]:
    made = comparison.plan
    lines = [f"The check of the cohort found: {remark}" for remark in made.remarks]
    failed = list(dict.fromkeys(one.task.model for one in comparison.failed))
    if failed:
        lines.append(
            f"Left out, since a training failed: {listed(failed, 8)}. Errors are listed under Models; `fusion-jax "
            "compare` with the same --out tries them again."
        )
    bare = _bare_sources(comparison)
    if bare and comparison.fused:
        lines.append(
            f"No model of {listed(bare)} alone was compared, so that no verdict says whether fusion beats "
            f"{'it' if len(bare) == 1 else 'them'}."
        )
    fixed = _fixed_epochs(analysis.trainings)
    if fixed:
        lines.append(
            f"The last epoch was taken instead of the best one for {listed(fixed, 6)}: too few patients to set some "
            "aside for stopping."
        )
    return lines


def _bare_sources(comparison: Comparison) -> list[str]:
    """Sources that fused models read, and no model alone; masks go with their image."""
    made = comparison.plan
    sources = made.cohort.sources
    bare = {
        model: [name for name in made.sources[model] if sources[name].kind != "mask"] for model in comparison.models
    }
    read = {name for model in comparison.fused for name in bare[model]}
    alone = {names[0] for names in bare.values() if len(names) == 1}
    return [name for name in sources if name in read - alone]


def _fixed_epochs(trainings: Mapping[str, tuple[Training, ...]]) -> list[str]:
    """Models that were trained in epochs without validation cases."""
    return [
        model
        for model, some in trainings.items()
        if any(one.history and not one.facts.get("cases", {}).get("validation") for one in some)
    ]


def _left_out(analysis: Analysis) -> Section | None:
    if not analysis.left_out:
        return None
    return Section("Analyses that were left out", list(analysis.left_out), ())


def _evidence(comparison: Comparison) -> dict[str, str]:
    """Answers for the checklists that only who has drawn the splits can give."""
    splits = comparison.plan.splits
    return {
        "partitions": f"{splits.kind} over patients, {counted(len(splits.splits), 'split')}, the same for all models "
        f"(splits.json, SHA-256 {splits.hash[:16]}); validation cases are an inner part of the training patients",
        "partition_disjoint": "Patients in several parts of a split were looked for and refused"
        + ("" if splits.settings.get("patients") != "may cross" else ", but the protocol let them cross"),
    }
