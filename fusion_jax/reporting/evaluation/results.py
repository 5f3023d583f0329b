"""The folder of an evaluation: report, tables, model card, checklists, and every number in full precision."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.paired import holm
from fusion_jax.evaluation.reclassification import outcome_names
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.reporting.checklists import CLAIM_2024, TRIPOD_AI, fill
from fusion_jax.reporting.evaluation.evidence import checklist_evidence, model_facts
from fusion_jax.reporting.evaluation.report import evaluation_sections
from fusion_jax.reporting.evaluation.words import primary_estimates, verdict
from fusion_jax.reporting.html import Section, Table, write_report
from fusion_jax.reporting.model_card import model_card_section, write_model_card
from fusion_jax.reporting.tables import format_interval, format_p, write_tables
from fusion_jax.wording import counted

__all__ = ["Additions", "combined_p_values", "write_evaluation"]


class Additions(NamedTuple):
    """What a report says beside an evaluation of predictions.

    Attributes:
      title: of the page; "" for that of an evaluation.
      summary: findings after those of the evaluation.
      first: sections before those of the evaluation.
      last: sections after them, before what is for authors.
      tables: name to table, for files.
      evidence: for the checklists, in place of what an evaluation says.
    """

    title: str = ""
    summary: Sequence[str] = ()
    first: Sequence[Section] = ()
    last: Sequence[Section] = ()
    tables: Mapping[str, Table] = {}
    evidence: Mapping[str, str] = {}


def write_evaluation(
    out: Path,
    found: Sequence[Evaluation],
    *,
    paths: Sequence[str],
    config: Mapping[str, Any],
    additions: Additions | None = None,
) -> Path:
    """Write everything into a folder, and say where the report is.

    Args:
      out: the folder.
      found: one evaluation, or one for every training.
      paths: of the tables of predictions.
      config: what was asked for, as JSON holds it.
      additions: to the report.
    """
    more = additions or Additions()
    first = found[0]
    record = run_record()
    files = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    findings = evaluation_sections(first)
    summary, sections = list(findings.summary), list(findings.sections)
    tables = dict(findings.tables) | dict(more.tables)
    if len(found) > 1:
        tables["trainings_each"] = _each_table(found)
        sections.insert(0, _each_section(found, tables["trainings_each"]))
        summary[0] = f"{counted(len(found), 'training')} of every model, each judged by itself. " + summary[0]
    # What an evaluation cannot say stands last among its sections.
    sections = [*more.first, *sections[:-1], *more.last, sections[-1]]
    software = _software(record)
    evidence = checklist_evidence(first, files=files, software=software) | dict(more.evidence)
    for name, checklist in (("tripod_ai", TRIPOD_AI), ("claim_2024", CLAIM_2024)):
        tables[name] = fill(checklist, evidence)
    shown = first.benefits[0].model if first.benefits else first.view.models[-1]
    facts = model_facts(first, shown, software=software)
    sections.append(model_card_section(shown, facts))
    sections.append(
        Section(
            "Reporting checklists",
            [
                (
                    "Filled where this run proves an answer; the rest is for the author. Items are paraphrased: keep "
                    "the publications at hand."
                )
            ],
            [tables["tripod_ai"], tables["claim_2024"]],
        )
    )

    for name, table in tables.items():
        write_tables(out / "tables", name, table)
    write_model_card(out / "model_card.md", shown, facts)
    _write_numbers(out, found)
    write_json(
        out / "evaluation.json",
        {
            "config": config,
            "record": record,
            "files": files,
            "rows": len(first.panel),
            "patients": first.panel.patient_count,
            "level": first.panel.level,
            "classes": first.panel.classes,
            "models": first.view.models,
            "trainings": [one.view.name for one in found],
            "verdicts": {one.view.name or "all": verdict(one) for one in found},
            "notes": [*first.notes, *first.rule_notes, *first.calibration_notes],
            "warnings": first.warnings,
        },
    )
    report = out / "report.html"
    write_report(
        report,
        title=more.title or "Evaluation of " + _title(first.view.models),
        summary=[*summary, *more.summary],
        sections=sections,
        record=record,
    )
    return report


def _title(models: Sequence[str]) -> str:
    return " and ".join(models) if len(models) < 3 else counted(len(models), "model")


def _software(record: Mapping[str, Any]) -> str:
    versions = record["versions"]
    revision = f" (revision {record['revision'][:12]})" if record.get("revision") else ""
    others = ", ".join(f"{name} {versions[name]}" for name in ("jax", "numpy", "scipy") if versions.get(name))
    return f"fusion_jax {versions['fusion_jax']}{revision}, {others}"


def _write_numbers(out: Path, found: Sequence[Evaluation]) -> None:
    """Every number in full precision, one row each, with the training that it is of."""

    def write(name: str, rows_of: Iterable[tuple[str, Any]]) -> None:
        rows = [{"training": training} | row._asdict() for training, row in rows_of]
        if rows:
            write_csv(out / f"{name}.csv", rows)

    write("estimates", ((one.view.name, row) for one in found if one.judged for row in one.judged.estimates))
    write("comparisons", ((one.view.name, row) for one in found for row in one.comparisons))
    write(
        "verdicts",
        ((one.view.name, row._replace(singles=" | ".join(row.singles))) for one in found for row in one.benefits),
    )
    write("reclassification", ((one.view.name, row) for one in found for row in one.changes))
    write("subgroups", ((one.view.name, _withheld(row)) for one in found for row in one.cells))
    write("folds", (("", row) for row in found[0].folds))
    cases = [row for one in found for row in _case_rows(one)]
    if cases:
        write_csv(out / "cases.csv", cases)


def _withheld(cell: Any) -> Any:
    """A small cell keeps its counts to itself in files too."""
    return cell._replace(rows=None, events=None, patients=None) if cell.withheld else cell


def _case_rows(found: Evaluation) -> list[dict[str, Any]]:
    """Score and outcome of every row by every model: which cases are the failures."""
    panel = found.panel
    if panel.labels is None or len(panel.classes) != 2:
        return []
    rows = []
    outcomes = {rule.name: [outcome_names(panel.labels, d) for d in rule.decisions] for rule in found.rules}
    for index, unit in enumerate(panel.units):
        for number, model in enumerate(found.view.models):
            rows.append(
                {
                    "training": found.view.name,
                    panel.level: unit,
                    "model": model,
                    "label": panel.classes[panel.labels[index]],
                    "score": float(found.view.scores[number, index]),
                    **{f"outcome, threshold {rule}": of[number][index] for rule, of in outcomes.items()},
                }
            )
    return rows


def _each_section(found: Sequence[Evaluation], table: Table) -> Section:
    text = [
        (
            "Every training was judged by itself on the same rows. Trainings are no further patients: their p-values "
            "are combined as twice their median, which holds whatever their dependence (Rüger 1978), and adjusted by "
            "Holm over the fused models."
        ),
        f"Figures and tables below are of the first, {found[0].view.name}; numbers of all are in the CSV files.",
    ]
    return Section("Training by training", text, [table])


def combined_p_values(found: Sequence[Evaluation]) -> dict[str, float]:
    """Of every fused model twice the median p-value over trainings, adjusted by Holm over the models."""
    by_model: dict[str, list[float]] = {}
    for one in found:
        for benefit in one.benefits:
            by_model.setdefault(benefit.model, []).append(benefit.p_value)
    # A training without a p-value shows nothing.
    medians = [float(np.median(np.nan_to_num(p_values, nan=1.0))) for p_values in by_model.values()]
    adjusted = holm(np.minimum(1.0, 2 * np.array(medians)))
    return dict(zip(by_model, adjusted.tolist(), strict=True))


def _each_table(found: Sequence[Evaluation]) -> Table:
    """The primary metric in every training, and the verdicts with their combined p-values."""
    models = found[0].view.models
    rows: list[list[Any]] = []
    for one in found:
        first = primary_estimates(one)
        benefits = {benefit.model: benefit for benefit in one.benefits}
        for model in models:
            row, benefit = first.get(model), benefits.get(model)
            rows.append(
                [
                    one.view.name,
                    model,
                    "–" if row is None else format_interval(row.value, row.low, row.high),
                    "–" if benefit is None else format_interval(benefit.gain, benefit.low, benefit.high, signed=True),
                    format_p(math.nan if benefit is None else benefit.p_value),
                ]
            )
    rows += [["all", model, "–", "–", format_p(p)] for model, p in combined_p_values(found).items()]
    return Table(
        ("training", "model", found[0].protocol.primary, "gain over the hardest single source", "p"),
        rows,
        "Every training by itself; last rows: twice the median p-value over trainings, adjusted by Holm over the fused "
        "models.",
    )
