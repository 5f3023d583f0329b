"""Detection of chest abnormalities with clinical data (Hsieh et al., MDF-Net).

python -m experiments.chest_xray_detection.run                          # synthetic, JSRT and lungs on 2 cores
python -m experiments.chest_xray_detection.run --parts arms             # the two synthetic arms alone
python -m experiments.chest_xray_detection.run --parts mimic --mimic-cxr DIR --mimic-ed DIR --mimic-patients FILE \
    --reflacx DIR --preset paper                                        # the study's own data, for who has access

Expected on the synthetic arms: MDF-Net finds far more where vitals tell lesions apart that look alike, and nothing more
where they tell nothing. The README has the figures, and how long it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PRESETS", "Config", "Part", "Settings"]

Part = Literal["arms", "fusion", "features", "jsrt", "lungs", "mimic"]


@dataclass(frozen=True)
class Settings:
    """What a preset stands for.

    Attributes:
      detector: changes of `DetectorConfig` for every detector.
      training: arguments of every recipe.
      size: pixels of a side, of synthetic images and of what detectors see of them.
      cases: of the synthetic cohorts.
      strength: of the vitals in the informative arm.
      fractions: of the patients that train, choose the epoch and are tested.
      ablation_seeds: trainings of a row of an ablation.
      nodules, lungs: arguments on JSRT and on the lungs in place of those of `training`. A left lung that is mirrored
        would be a right one, so that lungs are not.
      resamples: of patients and seeds.
    """

    detector: Mapping[str, Any]
    training: Mapping[str, Any]
    size: int
    cases: int
    strength: float
    fractions: tuple[float, float, float]
    ablation_seeds: int
    nodules: Mapping[str, Any]
    lungs: Mapping[str, Any]
    resamples: int


CPU = Settings(
    detector=MappingProxyType(
        {
            "backbone": "cnn",
            "width": 0.5,
            "channels": 32,
            "hidden": 32,
            "vector": 16,
            "spatialise": "repeat",
            "masks": False,
            "rpn_batch": 64,
            "rpn_before_train": 128,
            "rpn_before": 128,
            "rpn_after_train": 32,
            "rpn_after": 32,
            "roi_batch": 16,
        }
    ),
    training=MappingProxyType(
        {
            "optimiser": "adam",
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "batch_size": 8,
            "epochs": 16,
            "anchors": "fit",
            "overlap": "iobb",
        }
    ),
    size=96,
    cases=400,
    strength=2.0,
    fractions=(0.6, 0.1, 0.3),
    ablation_seeds=1,
    nodules=MappingProxyType({"image_size": [256, 256], "epochs": 6}),
    lungs=MappingProxyType({"epochs": 60, "augment": "none"}),
    resamples=2000,
)

PAPER = Settings(
    detector=MappingProxyType({"mask_rois": 128}),
    training=MappingProxyType({"clinical_values": "native", "overlap": "iobb"}),
    size=512,
    cases=670,
    strength=2.0,
    fractions=(468 / 670, 101 / 670, 101 / 670),
    ablation_seeds=5,
    nodules=MappingProxyType({"anchors": "fit", "image_size": [576, 576]}),
    lungs=MappingProxyType({"anchors": "fit", "augment": "none"}),
    resamples=5000,
)

PRESETS: Mapping[str, Settings] = MappingProxyType({"cpu": CPU, "paper": PAPER})


@dataclass(frozen=True)
class Config:
    """Which cohorts, which detectors, and how they are trained.

    Attributes:
      out: folder of the results; a run that was stopped goes on where it was.
      preset: "cpu" for two cores, "paper" for the published recipe on a GPU.
      parts: what is run: the two synthetic arms; on the informative one, ways of fusing and sets of clinical features;
        the nodules of JSRT and the lungs of the COVID-19 collection, where FUSION_JAX_DATA has them; MIMIC.
      seeds: of the trainings in the two arms and on MIMIC.
      seed: of cohorts, splits and resamples.
      split: of MIMIC, patients kept together or the published division of rows, which lets patients cross.
      tolerance_days: of an X-ray outside of all emergency stays from the start of the nearest; 0 is the published rule.
      mimic_cxr: folder of MIMIC-CXR-JPG, with its metadata and `files/`.
      mimic_ed: folder `ed` of MIMIC-IV-ED.
      mimic_patients: table `hosp/patients.csv.gz` of MIMIC-IV.
      reflacx: folder `main_data` of REFLACX.
      init: "random" trains the published trunks from random weights.
      weights: ImageNet weights of both trunks, MobileNetV3-small, `.safetensors` or `.pth`.
      weights_sha256: of that file.
      weights_origin: where it is from, for the report.
      workers: processes that train side by side.
    """

    out: Path = field(default=Path("results/chest_xray_detection"))
    preset: Literal["cpu", "paper"] = "cpu"
    parts: tuple[Part, ...] = ("arms", "fusion", "features", "jsrt", "lungs")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seed: int = 0
    split: Literal["patients", "paper"] = "patients"
    tolerance_days: float = 0
    mimic_cxr: Path | None = None
    mimic_ed: Path | None = None
    mimic_patients: Path | None = None
    reflacx: Path | None = None
    init: Literal["random"] | None = None
    weights: Path | None = None
    weights_sha256: str | None = None
    weights_origin: str = ""
    workers: int = 2
