"""Did fusion help? PET, CT and clinical data of 48 real patients with soft-tissue sarcoma.

python -m experiments.sarcoma_fusion.run

The README has what was measured, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["NETWORKS", "SINGLES", "SURVIVAL_SINGLES", "Config", "label_models", "survival_models"]

FROM_ALL = ["pet", "ct", "clinical"]
"""What a fused network reads."""

SINGLES = (
    "PET",
    "CT",
    "clinical",
    "tumour volume",
    "SUVmax",
    "clinical, logistic",
    "clinical, forest",
    "clinical, boosting",
)
"""Models of one source, all of which a fused one has to beat; of one number where it is measured on the PET."""

NETWORKS: Mapping[str, Any] = MappingProxyType(
    {
        "encoder": {"name": "cnn", "widths": [8, 16, 32], "maximum": True},
        "features": 16,
        "head": [16],
        "epochs": 40,
        "batch_size": 16,
        "augment": "flips",
        "quality": "final",
    }
)
"""Arguments of all networks: as small as 40 training patients allow, a fixed number of epochs, nothing tuned."""

MEASURED: Mapping[str, Any] = MappingProxyType(
    {"features": "measurements", "images": ["pet_volume"], "measurements": ["log_volume", "maximum"]}
)
"""Tumour volume and SUVmax."""


@dataclass(frozen=True)
class Config:
    """Image, clinical and fused models of the bundled sarcoma cohort, on the same folds, and what fusing them gained.

    Attributes:
      out: folder of the results.
      folds, repeats: of the cross-validation over patients.
      epochs: of the networks; by default those of this experiment.
      seed: of folds, trainings and resampling.
      resamples: of the patients, for intervals and tests.
      importance: permutations of every column and source.
      null: retrainings with a source of other patients.
      null_minutes: that those of one source may take; slower models are left out.
      explained: patients that are shown with a map of where the score hangs.
      workers: processes that train side by side.
      survival: whether time to metastasis is predicted as well.
    """

    out: Path = field(default=Path("results/sarcoma_fusion"))
    folds: int = 6
    repeats: int = 3
    epochs: int | None = None
    seed: int = 0
    resamples: int = 5000
    importance: int = 10
    null: int = 99
    null_minutes: float = 0.5
    explained: int = 4
    workers: int = 2
    survival: bool = True


def label_models() -> dict[str, dict[str, Any]]:
    """Models of distant metastasis: name in the tables to recipe and arguments."""
    fused = {"inputs": FROM_ALL}
    both = {**MEASURED, "features": "all"}
    return {
        "PET": _network("pet-only"),
        "CT": _network("ct-only"),
        "clinical": _network("clinical-only"),
        "PET-CT": _network("image-only", inputs=["pet", "ct"]),
        "all, concatenated": _network("concatenate", **fused),
        "all, gated": _network("gated", **fused),
        "all, probabilities": _network("probability", **fused),
        "tumour volume": _classical("logistic-regression", **_one("log_volume"), strength=0.1),
        "SUVmax": _classical("logistic-regression", **_one("maximum"), strength=0.1),
        "volume + SUVmax": _classical("logistic-regression", **MEASURED, strength=0.1),
        "clinical, logistic": _classical("logistic-regression"),
        "clinical, forest": _classical("random-forest"),
        "clinical, boosting": _classical("gradient-boosting", trees=100),
        "clinical + measured, logistic": _classical("logistic-regression", **both),
        "clinical + measured, forest": _classical("random-forest", **both),
        "clinical + measured, boosting": _classical("gradient-boosting", **both, trees=100),
    }


SURVIVAL_SINGLES = ("PET", "clinical", "tumour volume", "SUVmax", "clinical, Cox")


def survival_models() -> dict[str, dict[str, Any]]:
    """Models of the time to metastasis, all of the Cox partial likelihood."""
    # Risks are ranked within a batch, so that one holds everybody: fewer steps, of all patients.
    network = {"batch_size": 48, "epochs": 60}
    return {
        "PET": _network("pet-only", **network),
        "clinical": _network("clinical-only", **network),
        "all, concatenated": _network("concatenate", inputs=FROM_ALL, **network),
        "tumour volume": _classical("cox", **_one("log_volume"), strength=0.1),
        "SUVmax": _classical("cox", **_one("maximum"), strength=0.1),
        "volume + SUVmax": _classical("cox", **MEASURED, strength=0.1),
        "clinical, Cox": _classical("cox"),
        "clinical + measured, Cox": _classical("cox", **{**MEASURED, "features": "all"}),
    }


def _one(measurement: str) -> dict[str, Any]:
    return {**MEASURED, "measurements": [measurement]}


def _network(recipe: str, **arguments: Any) -> dict[str, Any]:
    return {"recipe": recipe, "arguments": {**NETWORKS, **arguments}}


def _classical(recipe: str, **arguments: Any) -> dict[str, Any]:
    return {"recipe": recipe, "arguments": arguments}
