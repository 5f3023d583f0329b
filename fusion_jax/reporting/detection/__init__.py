"""Pictures of detections, of what happens inside a detector, and figures of how good it is."""

from fusion_jax.reporting.detection.marks import ClinicalValue, Marks, clinical_values
from fusion_jax.reporting.detection.measures import (
    Generalisation,
    anchor_figure,
    correlation_figure,
    count_table,
    generalisation_figure,
    overlap_figure,
    relevance_figure,
)
from fusion_jax.reporting.detection.predictions import ShownCase, prediction_figure
from fusion_jax.reporting.detection.stages import best_anchors, stage_figure

__all__ = [
    "ClinicalValue",
    "Generalisation",
    "Marks",
    "ShownCase",
    "anchor_figure",
    "best_anchors",
    "clinical_values",
    "correlation_figure",
    "count_table",
    "generalisation_figure",
    "overlap_figure",
    "prediction_figure",
    "relevance_figure",
    "stage_figure",
]
