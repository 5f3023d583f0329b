"""Early recurrence of liver cancer from three-phase CT and clinical factors (Wang W. et al. 2020).

python -m experiments.hcc_recurrence.run                                  # 765 synthetic slices of 167 patients
python -m experiments.hcc_recurrence.run --selection global               # as the paper selects, on all patients
python -m experiments.hcc_recurrence.run --cohort DIR                     # your slices, see README.md
python -m experiments.hcc_recurrence.run --preset paper --weights FILE --weights-sha256 HEX
python -m experiments.hcc_recurrence.tables                               # real tables; survival

The README has what was measured, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PRESETS", "Config", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What a preset fixes.

    Attributes:
      size: side of the image in pixels.
      patients: of the synthetic cohort, and `slice_size`, side of its slices in pixels.
      encoder: of the images; None for the paper's ResNet-50.
      training: arguments that all networks share.
      folds: of the cross-validation; those that the cohort names, where it names as many.
      seeds: of the trainings.
      trees: of a forest.
      models: that are trained; all of them where empty.
      clinical_cohorts: synthetic cohorts on which the clinical model is repeated.
      resamples: of the patients.
    """

    size: int
    encoder: Mapping[str, Any] | None
    training: Mapping[str, Any]
    patients: int = 167
    slice_size: int = 256
    folds: int = 10
    seeds: tuple[int, ...] = (0,)
    trees: int = 500
    models: tuple[str, ...] = ()
    clinical_cohorts: int = 12
    resamples: int = 2000


PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "paper": Settings(
            size=224,
            encoder=None,
            # Images bring ImageNet's mean and standard deviation, as its weights expect.
            training={"batch_size": 16, "epochs": 50, "learning_rate": 1e-4, "standardise": False},
        ),
        "cpu": Settings(
            size=32,
            encoder={"name": "cnn", "widths": [8, 16, 32], "maximum": True},
            # A small network from scratch learns nothing at the rate of fine-tuning.
            training={"batch_size": 32, "epochs": 12, "learning_rate": 3e-3, "standardise": False},
        ),
    }
)
"""The optimiser is Adam at a constant rate, and the last epoch is taken: the paper names no other choice."""


@dataclass(frozen=True)
class Config:
    """Models A to D, the joint loss, image-only, clinical and radiomic baselines on ten folds of patients.

    Attributes:
      cohort: "synthetic", or your folder with cohort.toml.
      preset: "cpu", or the published recipe in full: "paper".
      selection: of clinical factors by chi-squared: on the training patients of every fold, or "global", on all
        patients before they are split, as the paper did; its scores are too good.
      features: CSV of radiomic features with a column case_id; by default, measurements of the lesions.
      mirp: compute radiomic features with mirp (the `radiomics` extra) in their place; half a second a phase and slice.
      weights: file of ImageNet weights of the trunk, `.safetensors` or PyTorch's; for `--preset paper`.
      weights_sha256: SHA-256 that the file has to have.
      weights_origin: where it came from, for the record.
      init: "random" trains the paper's trunk without weights, which has to be said.
      seed: of patients and of folds that the cohort does not name.
      workers: processes that train side by side.
      out: folder of the results; every cohort, preset and selection gets its own inside.
    """

    cohort: str = "synthetic"
    preset: Literal["cpu", "paper"] = "cpu"
    selection: Literal["fold", "global"] = "fold"
    features: Path | None = None
    mirp: bool = False
    weights: Path | None = None
    weights_sha256: str | None = None
    weights_origin: str = ""
    init: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    workers: int = 1
    out: Path = field(default=Path("results/hcc_recurrence"))
