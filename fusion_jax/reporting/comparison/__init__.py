"""A comparison of models as a report: the evaluation of their predictions, with what else is known of the models."""

from fusion_jax.reporting.comparison.report import comparison_additions, write_comparison

__all__ = ["comparison_additions", "write_comparison"]
