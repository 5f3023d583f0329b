"""PET-CT architecture search for distant metastasis of soft-tissue sarcoma (Peng et al. 2020).

python -m experiments.petct_nas.run                   # 48 real patients on 2 cores
python -m experiments.petct_nas.run --seeds 0 1 2     # more seeds; what is trained is kept
python -m experiments.petct_nas.run --preset paper    # the published recipe, for a GPU

Expected: a variant chosen inside the folds with a pooled AUC of 0.69 [0.54, 0.84], the searched network 0.70 [0.54,
0.85], random cells 0.71; the paper reports 0.896. The README has the rest, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PRESETS", "Config", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What a preset stands for.

    Attributes:
      spacing, size: of the cubes, in mm and voxels.
      search: arguments of `mm-nas`.
      retrain: of the networks that are derived.
      networks: of all other networks.
      trees: of forests.
      folds: of the cross-validation.
      inner_folds: of the choice among variants.
      permuted_tables, permuted_networks: cohorts with permuted labels for variants without and with a network.
      resamples: of the patients.
    """

    spacing: float
    size: int
    search: Mapping[str, Any]
    retrain: Mapping[str, Any]
    networks: Mapping[str, Any]
    trees: int = 500
    folds: int = 6
    inner_folds: int = 3
    permuted_tables: int = 10
    permuted_networks: int = 1
    resamples: int = 5000


CPU = Settings(
    spacing=6.0,
    size=32,
    search=MappingProxyType(
        {
            "layout": "NR",
            "nodes": 2,
            "channels": 4,
            "stem_multiplier": 1,
            "derived_channels": 8,
            "head": [16, 16],
            "search_epochs": 12,
            "search_batch_size": 5,
            "architecture_rate": 0.05,
        }
    ),
    retrain=MappingProxyType(
        {"epochs": 25, "batch_size": 8, "learning_rate": 2e-3, "augment": "flips", "quality": "final"}
    ),
    networks=MappingProxyType(
        {"epochs": 30, "batch_size": 8, "learning_rate": 1e-3, "augment": "flips", "quality": "final"}
    ),
)

PAPER = Settings(
    spacing=2.0,
    size=112,
    search=MappingProxyType(
        {
            "layout": "NRNRNR",
            "nodes": 4,
            "channels": 4,
            "derived_channels": 8,
            "head": [64, 32],
            "search_epochs": 200,
            "search_batch_size": 1,
            "search_rate": 1e-4,
            "search_schedule": "constant",
            "architecture_rate": 5e-4,
            "remat": "edge",
        }
    ),
    retrain=MappingProxyType({"epochs": 200, "batch_size": 1, "learning_rate": 1e-3, "quality": "final"}),
    networks=MappingProxyType({"epochs": 200, "batch_size": 1, "learning_rate": 1e-3, "quality": "final"}),
)

PRESETS: Mapping[str, Settings] = MappingProxyType({"cpu": CPU, "paper": PAPER})


@dataclass(frozen=True)
class Config:
    """The published comparison, the baselines, and what may be chosen among them, on the patients of the paper.

    Attributes:
      out: folder of the results; a run that was stopped goes on where it was.
      preset: "cpu" for two cores, "paper" for the published recipe on a GPU.
      seeds: of the trainings; scores are averaged.
      order: of the bilevel gradient; the second is a run of its own.
      seed: of folds, resampling and permuted labels.
      choice: whether a variant is chosen inside every fold, which is the headline.
      permuted: whether the variants are also run on permuted labels.
      workers: processes that train side by side.
    """

    out: Path = field(default=Path("results/petct_nas"))
    preset: Literal["cpu", "paper"] = "cpu"
    seeds: tuple[int, ...] = (0,)
    order: Literal["first", "second"] = "first"
    seed: int = 0
    choice: bool = True
    permuted: bool = True
    workers: int = 2
