"""Detection with clinical data: two-stage and one-stage detectors whose maps and RoIs read the patient's table.

The names are imported on first use: anchors are designed and commands answer without JAX.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import homes_of, lazy_attributes

if TYPE_CHECKING:
    from fusion_jax.detection.anchors import (
        PUBLISHED,
        AnchorRecall,
        Anchors,
        anchor_recall,
        anchors_per_cell,
        anchors_per_level,
        fit_anchors,
        make_anchors,
        read_anchors,
    )
    from fusion_jax.detection.config import PUBLISHED_DETECTORS, DetectorConfig, named_config
    from fusion_jax.detection.detector import load_trunk, make_detector
    from fusion_jax.detection.losses import (
        binary_cross_entropy,
        box_regression_loss,
        classification_loss,
        focal_loss,
        giou_loss,
        homoscedastic,
        l1_loss,
        mask_loss,
        objectness_loss,
        smooth_l1,
        summed,
    )
    from fusion_jax.detection.matching import Matched, Sampled, match, sample
    from fusion_jax.detection.postprocessing import Detections, paste_masks, postprocess, postprocess_anchors
    from fusion_jax.detection.proposals import Proposals, add_truth, propose
    from fusion_jax.detection.recipe import DetectionRecipe, make_detection_recipe
    from fusion_jax.detection.study import DetectorStudy, compare_detectors, open_detector_study
    from fusion_jax.detection.tables import detection_table, truth_table
    from fusion_jax.detection.trained import find, load_detector, stages_of

_HOMES = {
    "config": (
        "PUBLISHED_DETECTORS",
        "DetectorConfig",
        "named_config",
    ),
    "detector": (
        "load_trunk",
        "make_detector",
    ),
    "recipe": (
        "DetectionRecipe",
        "make_detection_recipe",
    ),
    "study": (
        "DetectorStudy",
        "compare_detectors",
        "open_detector_study",
    ),
    "trained": (
        "find",
        "load_detector",
        "stages_of",
    ),
    "tables": (
        "detection_table",
        "truth_table",
    ),
    "anchors": (
        "PUBLISHED",
        "AnchorRecall",
        "Anchors",
        "anchor_recall",
        "anchors_per_cell",
        "anchors_per_level",
        "fit_anchors",
        "make_anchors",
        "read_anchors",
    ),
    "losses": (
        "binary_cross_entropy",
        "box_regression_loss",
        "classification_loss",
        "focal_loss",
        "giou_loss",
        "homoscedastic",
        "l1_loss",
        "mask_loss",
        "objectness_loss",
        "smooth_l1",
        "summed",
    ),
    "matching": ("Matched", "Sampled", "match", "sample"),
    "postprocessing": ("Detections", "paste_masks", "postprocess", "postprocess_anchors"),
    "proposals": ("Proposals", "add_truth", "propose"),
}

__all__ = [
    "PUBLISHED",
    "PUBLISHED_DETECTORS",
    "AnchorRecall",
    "Anchors",
    "DetectionRecipe",
    "Detections",
    "DetectorConfig",
    "DetectorStudy",
    "Matched",
    "Proposals",
    "Sampled",
    "add_truth",
    "anchor_recall",
    "anchors_per_cell",
    "anchors_per_level",
    "binary_cross_entropy",
    "box_regression_loss",
    "classification_loss",
    "compare_detectors",
    "detection_table",
    "find",
    "fit_anchors",
    "focal_loss",
    "giou_loss",
    "homoscedastic",
    "l1_loss",
    "load_detector",
    "load_trunk",
    "make_anchors",
    "make_detection_recipe",
    "make_detector",
    "mask_loss",
    "match",
    "named_config",
    "objectness_loss",
    "open_detector_study",
    "paste_masks",
    "postprocess",
    "postprocess_anchors",
    "propose",
    "read_anchors",
    "sample",
    "smooth_l1",
    "stages_of",
    "summed",
    "truth_table",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    __getattr__ = lazy_attributes(__name__, homes_of(__name__, _HOMES))


def __dir__() -> list[str]:
    return sorted(__all__)
