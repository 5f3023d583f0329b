"""Portal hypertension from the liver's surface and three blood markers, and the claim that gamma = 1 is best.

python -m experiments.portal_hypertension.run                        # 1,386 synthetic livers
python -m experiments.portal_hypertension.run --cohort sarcoma       # 48 real patients as a stand-in
python -m experiments.portal_hypertension.run --cohort dial          # features of known linear signal
python -m experiments.portal_hypertension.run --cohort DIR           # your CT with liver masks, see README.md
python -m experiments.portal_hypertension.run --preset paper --cohort DIR --weights FILE --weights-sha256 HEX

The README has what was measured, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PAPER_GAMMAS", "PRESETS", "Config", "Settings"]

PAPER_GAMMAS = (0.09375, 0.1875, 0.375, 1.0, 1.5, 3.0)
"""d2* / d1 of Table 1, where d1 is 2,048; 1.0 stands for 2,046 coordinates."""


@dataclass(frozen=True)
class Settings:
    """What a preset fixes.

    Attributes:
      size: side of an image in pixels.
      livers: synthetic patients; `other_livers` are those that the synthetic trunk is trained on.
      encoder: of the images, as recipes take it.
      training: arguments of the recipes.
      fractions: of the patients in training, validation and test.
      table_splits: Monte-Carlo splits of Table 1, the first of `splits`, those of the claim.
      gammas: of the claim; Table 1 has `PAPER_GAMMAS`.
      trained_gammas: of the claim under heads that are trained.
      head_training: of those heads: learning rate, batch size, epochs, patience.
      resamples: of the patients.
    """

    size: int
    livers: int
    other_livers: int
    encoder: Mapping[str, Any]
    training: Mapping[str, Any]
    head_training: Mapping[str, Any]
    table_splits: int
    splits: int = 20
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    gammas: tuple[float, ...] = (*PAPER_GAMMAS, 6.0)
    trained_gammas: tuple[float, ...] = PAPER_GAMMAS
    resamples: int = 2000


RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "head": [],
        "dropout": 0.0,
        "optimiser": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "schedule": "step",
        "decay_every": 20,
        "decay_factor": 0.1,
        "smoothing": 0.1,
        "batch_size": 8,
        "epochs": 80,
        "patience": 15,
        "quality": "final",
    }
)
"""Wang et al. 2023 where it is stated; else specs/fusion_quality.md, section 7."""

# Four times the batch and the learning rate: as far a step for a patient, in a quarter of the steps.
QUICK = {"batch_size": 32, "learning_rate": 4e-3, "epochs": 40, "patience": 10}

PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "paper": Settings(
            size=224,
            livers=198,
            other_livers=0,
            encoder={"name": "resnet152"},
            training={**RECIPE, "augment": "horizontal-flip"},
            head_training={"learning_rate": 1e-3, "batch_size": 8, "epochs": 80, "patience": 15},
            table_splits=20,
        ),
        "cpu": Settings(
            size=64,
            livers=1386,
            other_livers=594,
            encoder={"name": "cnn", "widths": [8, 16, 32], "maximum": True, "projection": 64},
            training={**RECIPE, **QUICK},
            head_training=QUICK,
            table_splits=20,
        ),
    }
)


@dataclass(frozen=True)
class Config:
    """Table 1, Figures 6 and 7 of Wang et al. 2023, and a test of their central claim.

    Attributes:
      cohort: "livers" (synthetic), "sarcoma" (real stand-in), "dial" (known linear signal), or your folder with
        cohort.toml.
      preset: "cpu", or the published recipe in full: "paper".
      weights: file of ImageNet weights of the trunk, `.safetensors` or PyTorch's; for `--preset paper`.
      weights_sha256: SHA-256 that the file has to have.
      weights_origin: where it came from, for the record.
      init: "random" trains the paper's trunk without weights, which has to be said.
      splits: Monte-Carlo splits of the claim, at least 20; by default those of the preset.
      table_splits: Monte-Carlo splits of Table 1; by default those of the preset.
      seed: of patients, splits and trainings.
      out: folder of the results; every cohort and preset gets its own inside.
    """

    cohort: str = "livers"
    preset: Literal["cpu", "paper"] = "cpu"
    weights: Path | None = None
    weights_sha256: str | None = None
    weights_origin: str = ""
    init: Literal["pretrained", "random"] = "pretrained"
    splits: int | None = None
    table_splits: int | None = None
    seed: int = 0
    out: Path = field(default=Path("results/portal_hypertension"))
