"""An evaluation as a report: sections, words, and the evidence for checklists and model cards."""

from fusion_jax.reporting.evaluation.evidence import checklist_evidence, model_facts
from fusion_jax.reporting.evaluation.report import Findings, evaluation_sections
from fusion_jax.reporting.evaluation.words import people, primary_estimates, verdict

__all__ = [
    "Findings",
    "checklist_evidence",
    "evaluation_sections",
    "model_facts",
    "people",
    "primary_estimates",
    "verdict",
]
