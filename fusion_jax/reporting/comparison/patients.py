"""Who was compared on: the study's Table 1, the flow of its patients, and which sources they have."""

from typing import Any

import numpy as np

from fusion_jax.data.characteristics import characteristics
from fusion_jax.data.cohort import Cohort
from fusion_jax.models.comparison import Comparison
from fusion_jax.reporting.flow import flow_figure
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.wording import counted, listed

__all__ = ["patients_section"]

MOST_COLUMNS = 40
MOST_GROUPS = 6


def patients_section(comparison: Comparison, tables: dict[str, Table]) -> Section:
    """Cases, patients, sites, sources and their gaps, Table 1 by the outcome, and the flow diagram."""
    made = comparison.plan
    cohort = made.cohort
    patients = len(set(cohort.patient_id.tolist()))
    text = [f"{counted(len(cohort), 'case')} of {counted(patients, 'patient')}{_sites(cohort)}."]
    items: list[Figure | Table] = []
    tables["sources"] = _sources(comparison)
    items.append(tables["sources"])
    by = made.target.column
    columns = [name for name in cohort.columns("input") if name != by][:MOST_COLUMNS]
    left_out = len(cohort.columns("input")) - len(columns)
    if columns:
        grouped = bool(by) and len(set(cohort.table[by].dropna())) <= MOST_GROUPS
        try:
            found = characteristics(cohort.table, columns, by=by if grouped else (), units=dict(cohort.units))
        except ValueError as error:  # such as free text; no reason to lose a report
            text.append(f"Characteristics were left out: {error}")
        else:
            heading, rows = found.display()
            more = f" The first {len(columns)} of {len(columns) + left_out} columns." if left_out else ""
            caption = "Characteristics of the cases" + (f", by {by}" if grouped else "") + f".{more}"
            tables["characteristics"] = Table(heading, rows, caption)
            items.append(tables["characteristics"])
            text += found.notes
    if cohort.flow is not None and len(cohort.flow.steps) > 1:
        items.append(flow_figure(cohort.flow))
    return Section("Patients", text, items)


def _sites(cohort: Cohort) -> str:
    if cohort.site is None:
        return ", sites unknown"
    names, counts = np.unique(cohort.site.astype(str), return_counts=True)
    each = listed((f"{name or 'unknown'}: {count}" for name, count in zip(names, counts, strict=True)), 8)
    return f" from {counted(len(names), 'site')} ({each})"


def _sources(comparison: Comparison) -> Table:
    """Every source with the cases that lack it, and the models that read it."""
    made = comparison.plan
    rows: list[list[Any]] = []
    for name, source in made.cohort.sources.items():
        present = int(made.cohort.present[name].sum())
        reading = [model for model in comparison.models if name in made.sources[model]]
        rows.append([name, source.kind, present, len(made.cohort) - present, listed(reading, 12) or "–"])
    return Table(("source", "kind", "cases with it", "without", "read by"), rows, "Sources of the cohort.")
