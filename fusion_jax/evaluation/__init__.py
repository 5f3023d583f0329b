"""Predictions in, numbers out: metrics with intervals over patients, paired tests, calibration, survival, boxes.

`evaluate` says everything that a table of predictions holds; the functions below are its parts, and work on arrays. The
names are imported on first use. `delong`, `calibration` and the average precision of boxes are found in the modules of
that name (`detection` for the last), which would hide them here.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import homes_of, lazy_attributes

if TYPE_CHECKING:
    from fusion_jax.evaluation.assembly import Calibrated, Evaluation, evaluate
    from fusion_jax.evaluation.benefit import Benefit, fusion_benefit
    from fusion_jax.evaluation.classification import METRICS, classification_metrics, metric_value
    from fusion_jax.evaluation.comparisons import Comparison, compare_pairs
    from fusion_jax.evaluation.decision import decision_curve, metrics_at_prevalence
    from fusion_jax.evaluation.delong import delong_interval, delong_test, smallest_detectable_difference
    from fusion_jax.evaluation.detection_gain import precision_gains
    from fusion_jax.evaluation.detection_matching import match_boxes
    from fusion_jax.evaluation.estimates import Estimate, judge
    from fusion_jax.evaluation.folds import per_fold, within_fold_auc
    from fusion_jax.evaluation.froc import froc_curve, sensitivity_at
    from fusion_jax.evaluation.importance import merge_related, permutation_importance, rank_product, related_columns
    from fusion_jax.evaluation.multiclass import multiclass_metrics, one_versus_rest
    from fusion_jax.evaluation.paired import benjamini_hochberg, clustered_mcnemar, corrected_t_test, holm, mcnemar
    from fusion_jax.evaluation.panel import Panel, View, make_panel
    from fusion_jax.evaluation.permutation import merge_models, permutation_test
    from fusion_jax.evaluation.proportions import clopper_pearson_interval, clustered_proportion, wilson_interval
    from fusion_jax.evaluation.protocol import Protocol
    from fusion_jax.evaluation.recalibration import prior_shift, recalibrate
    from fusion_jax.evaluation.reclassification import changed_sides
    from fusion_jax.evaluation.resampling import (
        bca_interval,
        bootstrap,
        jackknife,
        make_design,
        percentile_interval,
        z_test,
    )
    from fusion_jax.evaluation.shuffling import benefit_null, pairing_index, reliance
    from fusion_jax.evaluation.survival import survival_metrics
    from fusion_jax.evaluation.survival_groups import risk_groups, survival_by_group
    from fusion_jax.evaluation.survival_resampled import compare_survival
    from fusion_jax.evaluation.thresholds import carried_over, decide, given, read_off

_HOMES = {
    "assembly": (
        "Calibrated",
        "Evaluation",
        "evaluate",
    ),
    "benefit": (
        "Benefit",
        "fusion_benefit",
    ),
    "classification": (
        "METRICS",
        "classification_metrics",
        "metric_value",
    ),
    "comparisons": (
        "Comparison",
        "compare_pairs",
    ),
    "decision": (
        "decision_curve",
        "metrics_at_prevalence",
    ),
    "delong": (
        "delong_interval",
        "delong_test",
        "smallest_detectable_difference",
    ),
    "detection_gain": ("precision_gains",),
    "detection_matching": ("match_boxes",),
    "estimates": (
        "Estimate",
        "judge",
    ),
    "folds": (
        "per_fold",
        "within_fold_auc",
    ),
    "froc": (
        "froc_curve",
        "sensitivity_at",
    ),
    "importance": (
        "merge_related",
        "permutation_importance",
        "rank_product",
        "related_columns",
    ),
    "multiclass": (
        "multiclass_metrics",
        "one_versus_rest",
    ),
    "paired": (
        "benjamini_hochberg",
        "clustered_mcnemar",
        "corrected_t_test",
        "holm",
        "mcnemar",
    ),
    "panel": (
        "Panel",
        "View",
        "make_panel",
    ),
    "permutation": (
        "merge_models",
        "permutation_test",
    ),
    "proportions": (
        "clopper_pearson_interval",
        "clustered_proportion",
        "wilson_interval",
    ),
    "protocol": ("Protocol",),
    "recalibration": (
        "prior_shift",
        "recalibrate",
    ),
    "reclassification": ("changed_sides",),
    "resampling": (
        "bca_interval",
        "bootstrap",
        "jackknife",
        "make_design",
        "percentile_interval",
        "z_test",
    ),
    "shuffling": (
        "benefit_null",
        "pairing_index",
        "reliance",
    ),
    "survival": ("survival_metrics",),
    "survival_groups": (
        "risk_groups",
        "survival_by_group",
    ),
    "survival_resampled": ("compare_survival",),
    "thresholds": (
        "carried_over",
        "decide",
        "given",
        "read_off",
    ),
}

__all__ = [
    "METRICS",
    "Benefit",
    "Calibrated",
    "Comparison",
    "Estimate",
    "Evaluation",
    "Panel",
    "Protocol",
    "View",
    "bca_interval",
    "benefit_null",
    "benjamini_hochberg",
    "bootstrap",
    "carried_over",
    "changed_sides",
    "classification_metrics",
    "clopper_pearson_interval",
    "clustered_mcnemar",
    "clustered_proportion",
    "compare_pairs",
    "compare_survival",
    "corrected_t_test",
    "decide",
    "decision_curve",
    "delong_interval",
    "delong_test",
    "evaluate",
    "froc_curve",
    "fusion_benefit",
    "given",
    "holm",
    "jackknife",
    "judge",
    "make_design",
    "make_panel",
    "match_boxes",
    "mcnemar",
    "merge_models",
    "merge_related",
    "metric_value",
    "metrics_at_prevalence",
    "multiclass_metrics",
    "one_versus_rest",
    "pairing_index",
    "per_fold",
    "percentile_interval",
    "permutation_importance",
    "permutation_test",
    "precision_gains",
    "prior_shift",
    "rank_product",
    "read_off",
    "recalibrate",
    "related_columns",
    "reliance",
    "risk_groups",
    "sensitivity_at",
    "smallest_detectable_difference",
    "survival_by_group",
    "survival_metrics",
    "wilson_interval",
    "within_fold_auc",
    "z_test",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    __getattr__ = lazy_attributes(__name__, homes_of(__name__, _HOMES))


def __dir__() -> list[str]:
    return sorted(__all__)
