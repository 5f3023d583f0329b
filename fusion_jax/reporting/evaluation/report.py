"""One evaluation as sections of a report: every number with its n, its interval, and what that leaves out."""

from collections.abc import Mapping
from typing import NamedTuple

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.classification import METRICS
from fusion_jax.evaluation.estimates import MetricKey, larger_is_better, title
from fusion_jax.reporting.evaluation.decisions import decisions, probabilities
from fusion_jax.reporting.evaluation.ranking import differences, discrimination
from fusion_jax.reporting.evaluation.spread import stability, subgroups
from fusion_jax.reporting.evaluation.survival import survival_section, survival_summary
from fusion_jax.reporting.evaluation.words import people, primary_estimates, verdict
from fusion_jax.reporting.html import Section, Table
from fusion_jax.reporting.tables import format_interval, format_percent
from fusion_jax.wording import counted, listed

__all__ = ["Findings", "evaluation_sections"]


class Findings(NamedTuple):
    """An evaluation in words, tables and figures.

    Attributes:
      summary: what a reader should take home, warnings first.
      sections: of the report.
      tables: name to table, for files.
    """

    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    tables: Mapping[str, Table]


def evaluation_sections(found: Evaluation) -> Findings:
    """Everything that an evaluation found, for `write_report` and `write_tables`."""
    tables: dict[str, Table] = {}
    sections = [
        part
        for part in (
            discrimination(found, tables),
            differences(found, tables),
            decisions(found, tables),
            probabilities(found, tables),
            stability(found, tables),
            subgroups(found, tables),
            survival_section(found, tables),
            _methods(found),
        )
        if part is not None
    ]
    return Findings(_summary(found), tuple(sections), tables)


def _summary(found: Evaluation) -> tuple[str, ...]:
    who = f"{counted(len(found.view.models), 'model')} judged on the same {people(found)}"
    who += f"; scores are of the {found.view.name}." if found.view.name.startswith("ensemble") else "."
    lines = [who]
    if found.judged is not None:
        first = primary_estimates(found)
        name = title(MetricKey(found.protocol.primary), found.protocol)
        shown = [
            f"{model} {format_interval(first[model].value, first[model].low, first[model].high)}"
            for model in found.view.models
            if model in first
        ]
        if shown:
            lines.append(f"{name}: {'; '.join(shown)}.")
    return (*lines, *survival_summary(found), *verdict(found), *found.warnings)


def _methods(found: Evaluation) -> Section:
    protocol, panel = found.protocol, found.panel
    unit = {
        None: f"Every {panel.level} was taken as independent: the table names no patients.",
        False: "Every patient has one row.",
        True: "Patients have several rows: patients were resampled with all their rows, in strata of the labels that "
        "they have; DeLong's variance, proportions and McNemar's test are the clustered ones.",
    }[None if panel.patients is None else panel.clustered]
    text = [
        (
            f"Unit of inference: the patient. {unit} Rows of further repeats, seeds, slices and augmented copies never "
            "count as further patients."
        ),
        (
            f"Resampling: {protocol.resamples:,} resamples, seed {protocol.seed}, the same for all models and metrics; "
            f"{'percentile' if protocol.interval == 'percentile' else 'BCa'} intervals of "
            f"{format_percent(protocol.level, 0)}. All of them are conditional on the trained models. Intervals are "
            "read off the resamples, p-values from a normal test on their spread; near the limit the two can disagree."
        ),
        (
            "Not adjusted: for the number of metrics, tests and subgroups; for predictors; for choices that were made "
            "before these predictions were written."
            + (
                " P-values of differences are adjusted over pairs of models, and those of verdicts over fused models."
                if found.comparisons
                else ""
            )
        ),
    ]
    text += found.notes
    better = [key.metric for key in (found.judged.values if found.judged else ()) if not larger_is_better(key.metric)]
    if better:
        text.append(f"Smaller is better for {listed([METRICS[name].title() for name in dict.fromkeys(better)])}.")
    return Section("Methods and conditions", text, ())
