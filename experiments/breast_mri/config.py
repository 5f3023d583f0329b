"""Seven ways to use a projection of one breast and 18 features, best runs and ensembles, and what the features do.

python -m experiments.breast_mri.run                      # synthetic breasts of known signal
python -m experiments.breast_mri.run --cohort skin        # real stand-in: melanoma in dermatoscopic images
python -m experiments.breast_mri.run --cohort DIR         # your arrays in the layout of the study, see README.md
python -m experiments.breast_mri.run --cohort DIR --preset paper

The README has what was measured, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PRESETS", "RECIPE", "Config", "Settings"]

RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "standardise": False,
        "balanced": True,
        "smoothing": 0.1,
        "optimiser": "adam",
        "learning_rate": 1e-4,
        "batch_size": 256,
        "epochs": 100,
        "patience": 20,
        "monitor": "auc",
        "augment": "projection",
        "test_augment": "projection-test-time",
        "test_copies": 5,
        "test_identity": False,
        "quality": "final",
    }
)
"""Holste et al. 2021; specs/breast_mri_fusion.md, section 5."""


@dataclass(frozen=True)
class Settings:
    """What a preset fixes.

    Attributes:
      size: side of an image in pixels, of the synthetic and the stand-in cohort.
      breasts: synthetic cases.
      lesions: cases of the stand-in, at most; None for all of them.
      encoder: of the images, as recipes take it; None for the ResNet-50 of the paper.
      training: arguments that all models share.
      models: of the paper's table.
      variants: of training both encoders.
      audit: whether models are also trained without acquisition features and on them alone.
      seeds: trainings of every model.
      side_seeds: trainings of the variants and of the audit, and of what they are compared with.
      permutations: of every feature.
      resamples: of the patients.
    """

    size: int
    breasts: int
    lesions: int | None
    encoder: Mapping[str, Any] | None
    training: Mapping[str, Any]
    models: tuple[str, ...]
    variants: tuple[str, ...]
    audit: bool = True
    seeds: int = 5
    side_seeds: int = 5
    permutations: int = 30
    resamples: int = 5000


SEVEN = (
    "Image-Only",
    "Non-Image-Only",
    "Probability Fusion [P,P]",
    "Feature Fusion [L,S]",
    "Learned Feature Fusion [L,L]",
    "L+L",
    "L×L",
)

VARIANTS = ("multiloss", "multiopt", "stage-wise")

PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "paper": Settings(
            size=224,
            breasts=17_046,
            lesions=None,
            encoder=None,
            training=RECIPE,
            models=SEVEN,
            variants=VARIANTS,
        ),
        "cpu": Settings(
            size=48,
            breasts=600,
            lesions=1200,
            encoder=MappingProxyType({"name": "cnn", "widths": [8, 16, 32], "norm": "batch"}),
            # Fewer and smaller batches, and a rate to match: a hundredth of the steps of the paper.
            training=MappingProxyType({**RECIPE, "learning_rate": 1e-3, "batch_size": 64, "epochs": 10, "patience": 5}),
            models=SEVEN,
            variants=VARIANTS,
            side_seeds=2,
            resamples=2000,
        ),
    }
)


@dataclass(frozen=True)
class Config:
    """Holste et al. 2021: seven models, five trainings each, on given training, validation and test parts.

    Attributes:
      cohort: "synthetic", "skin" (real stand-in, `FUSION_JAX_DATA`), or a folder with Train, Val and Test.
      preset: "cpu", or the published recipe in full: "paper". Its networks start from random weights, as published.
      seed: of the synthetic patients, and of the parts of the stand-in.
      workers: processes that train side by side.
      out: folder of the results; every cohort and preset gets its own inside.
    """

    cohort: str = "synthetic"
    preset: Literal["cpu", "paper"] = "cpu"
    seed: int = 0
    workers: int = 1
    out: Path = field(default=Path("results/breast_mri"))
