"""Cohorts of the liver cancer experiment: synthetic, since the study's CT is not public; the user's; and real tables.

Wang W. et al. 2020; specs/hcc_fusion.md. Patients, classes and slices of Table 2 hold exactly at 167 patients.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from fusion_jax.data import Arrays, Boxes, Cohort, Columns, Image, Lazy, open_cohort, open_shards, write_shards
from fusion_jax.data.collections.files import checked_file, collection_folder
from fusion_jax.data.images.intensity import normalise_channels, window
from fusion_jax.data.images.phases import stack_phases
from fusion_jax.data.images.pipeline import IMAGENET_MEAN, IMAGENET_STD
from fusion_jax.data.synthetic import PHASES, liver_cancer_ct
from fusion_jax.models.measurements import Measurement, measure
from fusion_jax.models.radiomics import RadiomicSettings, radiomic_features
from fusion_jax.records import write_csv

__all__ = [
    "AlignedPhases",
    "chemoembolisation",
    "make_cohort",
    "measured_lesions",
    "patients_of",
    "prepared",
    "radiomics_by_mirp",
    "user_phases",
]

LOW_HU, HIGH_HU = -70.0, 180.0

LESION_PIXELS = 48
"""Side of the lesion that is measured."""

MEASURED: tuple[Measurement, ...] = (
    "log_volume", "mean", "deviation", "minimum", "maximum", "median", "skewness", "kurtosis"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AlignedPhases:
    """Lesion of a slice in three phases, aligned by the centres of its boxes and stacked as channels."""

    cohort: Cohort
    size: int

    def __call__(self, row: int) -> Image:
        return normalised(self.lesion(row, self.size))

    def lesion(self, row: int, size: int) -> Image:
        """In HU."""
        return _stacked(self.cohort, row, self._phases(row), size)

    def both(self, row: int) -> tuple[Image, Image]:
        """As the network sees it, and in HU at `LESION_PIXELS`; the slices are read once."""
        phases = self._phases(row)
        image, lesion = (_stacked(self.cohort, row, phases, size) for size in (self.size, LESION_PIXELS))
        return normalised(image), lesion

    def _phases(self, row: int) -> list[Image]:
        return [self.cohort.image(name, row) for name in PHASES]

    def identity(self) -> str:
        """Which images these are; hashes the phases, so it is asked only where a fingerprint is."""
        return f"{self.cohort.fingerprint} {self.size}"


def _stacked(cohort: Cohort, row: int, phases: list[Image], size: int) -> Image:
    boxes: Boxes = cohort.boxes[row] if cohort.boxes else Boxes(np.zeros((0, 4)), np.zeros(0, int))
    named = [cohort.box_classes[code] for code in boxes.classes]
    if sorted(named) != sorted(PHASES):
        raise ValueError(
            f"{cohort.name}: case {cohort.case_id[row]} has boxes in {', '.join(named) or 'no phase'}; expected one "
            f"in each of {', '.join(PHASES)}."
        )
    return stack_phases(phases, boxes.corners[[named.index(phase) for phase in PHASES]], size=size)


def normalised(lesion: Image) -> Image:
    """Windowed to 0 … 1, then with ImageNet's mean and standard deviation."""
    return normalise_channels(window(lesion, low=LOW_HU, high=HIGH_HU), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def make_cohort(n: int = 167, *, size: int = 224, seed: int = 0) -> Cohort:
    """Slices of `n` patients, `(size, size, 3)`: the lesion in the plain, arterial and portal phase."""
    return with_lesions(liver_cancer_ct(n, seed=seed).cohort, size)


def with_lesions(phases: Cohort, size: int) -> Cohort:
    """The cohort with the aligned lesion as `image`, read when it is asked for."""
    aligned = AlignedPhases(phases, size)
    source = Lazy(aligned, np.arange(len(phases)), "image", aligned.identity)
    return dataclasses.replace(
        phases.with_source("image", source).only("image", "clinical"), boxes=None, box_classes=()
    )


def patients_of(cohort: Cohort) -> Cohort:
    """One case a patient, the first slice, with the clinical factors alone."""
    first = np.unique(cohort.patient_id, return_index=True)[1]
    rows = np.sort(first)
    return dataclasses.replace(cohort.take(rows).only("clinical"), boxes=None, box_classes=())


def user_phases(folder: Path) -> Cohort:
    """A user's folder: slices as cases, with `nc`, `art`, `pv` and a box in each, or a ready `image` of three channels.

    Raises:
      ValueError: the cohort lacks what the experiment reads.
    """
    cohort = open_cohort(folder)
    ready = "image" in cohort.sources
    lacking = [] if ready else [f"the source {name!r}" for name in PHASES if name not in cohort.sources]
    if not ready and not lacking and (cohort.boxes is None or set(cohort.box_classes) != set(PHASES)):
        lacking.append(f"boxes of the classes {', '.join(PHASES)}")
    lacking += [] if cohort.columns("input") else ["clinical factors as input columns"]
    lacking += [] if cohort.columns("label") and len(cohort.classes) == 2 else ["a label with two classes"]
    if lacking:
        raise ValueError(
            f"{folder}: the cohort has the sources {', '.join(cohort.sources) or 'none'} and lacks "
            f"{', '.join(lacking)}. Expected a case a slice; the README of this experiment has such a cohort.toml."
        )
    if "clinical" in cohort.sources:
        return cohort
    return cohort.with_source("clinical", Columns(cohort.columns("input"), len(cohort)))


def prepared(
    make: Callable[[], Cohort], folder: Path, size: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Cohort, Path | None]:
    """The cohort of `folder` with the source `image`, and a table of measurements of the lesions, both made once.

    Args:
      make: gives slices in three phases with boxes, or with a ready `image`; of the latter nothing is measured.
      folder: to write to on the first call.
      size: side of the image in pixels.
      progress: told how many of how many slices have been read.
    """
    shards, table = folder / "cohort", folder / "measurements.csv"
    if not (shards / "cohort.json").is_file():
        slices = make()
        if "image" in slices.sources:
            write_shards(slices.only("image", "clinical"), shards, progress=progress)
        else:
            aligned, images, lesions = AlignedPhases(slices, size), [], []
            for row in range(len(slices)):
                image, lesion = aligned.both(row)
                images.append(image)
                lesions.append(lesion)
                if progress is not None:
                    progress(row + 1, len(slices))
            write_csv(table, measured_lesions(slices, lesions))
            values = np.stack([image.values for image in images]).astype(np.float32)
            found = slices.with_source("image", Arrays(values, "image", [image.spacing for image in images]))
            found = dataclasses.replace(found.only("image", "clinical"), boxes=None, box_classes=())
            write_shards(found, shards)
    return open_shards(shards), table if table.is_file() else None


def measured_lesions(slices: Cohort, lesions: list[Image]) -> dict[str, list[Any]]:
    """Size and first-order statistics of each phase inside the ellipse that the lesion's box holds; 22 numbers.

    Stands for the radiomic features of the paper, which are not listed there. `radiomics_by_mirp` has textures too.
    """
    rows, spacing = np.arange(len(lesions)), [lesion.spacing for lesion in lesions]
    ellipse = _ellipse()[..., None].astype(np.uint8)
    # Readers, not arrays: what they give is measured once, and not once a number.
    parts = {phase: Lazy(_Channel(lesions, channel), rows) for channel, phase in enumerate(PHASES)}
    mask = Lazy(_Same(ellipse, spacing), rows, "mask")
    crops = Cohort.from_arrays({**parts, "lesion": mask}, case_id=slices.case_id, name=slices.name)
    values, names = measure(crops, rows, MEASURED)
    return {"case_id": list(slices.case_id)} | {
        name.replace("lesion:log_volume", "lesion:log_area"): values[:, column].tolist()
        for column, name in enumerate(names)
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Channel:
    """One phase of lesions."""

    lesions: list[Image]
    channel: int

    def __call__(self, row: int) -> Image:
        lesion = self.lesions[row]
        return lesion._replace(values=lesion.values[..., [self.channel]])


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """One mask for all lesions, each with its spacing."""

    values: np.ndarray
    spacing: list[Any]

    def __call__(self, row: int) -> Image:
        return Image(self.values, self.spacing[row])


def radiomics_by_mirp(make: Callable[[], Cohort], path: Path, report: Callable[[int, int], None] | None = None) -> None:
    """Write a table of radiomic features of the lesions, three phases side by side; takes the `radiomics` extra.

    First-order, GLCM, GLRLM, GLSZM and NGTDM by slice, 16 grey levels, inside the ellipse of the lesion's box; the
    ellipse is the same in all phases, and so is its shape.

    Args:
      make: gives slices in three phases with boxes.
      path: of the table.
      report: told how many of how many slices are done.

    Raises:
      ImportError: mirp is not installed.
    """
    slices = make()
    aligned = AlignedPhases(slices, LESION_PIXELS)
    lesions = [aligned.lesion(row, LESION_PIXELS) for row in range(len(slices))]
    spacing = [lesion.spacing for lesion in lesions]
    parts: dict[str, Any] = {
        phase: Arrays([lesion.values[..., [channel]] for lesion in lesions], spacing=spacing)
        for channel, phase in enumerate(PHASES)
    }
    mask = Arrays([_ellipse()[..., None].astype(np.uint8)] * len(lesions), "mask", spacing)
    crops = Cohort.from_arrays({**parts, "lesion": mask}, case_id=slices.case_id, name=slices.name)
    settings = RadiomicSettings(bins=16, by_slice=True, families=("statistics", "glcm", "glrlm", "glszm", "ngtdm"))
    radiomic_features(crops, path, settings, report=report)


def _ellipse() -> Float[np.ndarray, "h w"]:
    axis = (np.arange(LESION_PIXELS) + 0.5) / LESION_PIXELS * 2 - 1
    return (np.square(axis)[:, None] + np.square(axis)[None, :] <= 1).astype(float)


def chemoembolisation(*, outcome: Literal["progression", "death"]) -> Cohort:
    """84 real patients before chemoembolisation: time in weeks to progression, or overall survival.

    From `$FUSION_JAX_DATA/hcc_tables` (TCIA HCC-TACE-Seg, doi:10.7937/TCIA.5FNA-0924). Half of the tumour sizes are
    missing. What is known only after the treatment is no input.
    """
    import pandas as pd

    table: Any = pd.read_csv(
        checked_file(collection_folder("hcc_tables"), "hcc_tace_clinical.csv"), dtype={"patient_id": str}
    )
    table = table.set_index("patient_id").rename_axis("case_id")
    time, event = (
        ("TTP", "Censored_0_progressed_1") if outcome == "progression" else ("OS", "Death_1_StillAliveorLostToFU_0")
    )
    roles: Any = dict.fromkeys(BEFORE_TREATMENT, "input") | {time: "time", event: "event"}
    return Cohort.from_arrays(
        {"clinical": Columns(BEFORE_TREATMENT, len(table))},
        table=table[[*BEFORE_TREATMENT, time, event]],
        roles=roles,
        name=f"chemoembolisation, {outcome}",
        units={"age": "years", "Tr_Size": "cm", "AFP": "ng/ml", time: "weeks"},
    )


BEFORE_TREATMENT = (
    "age", "Sex", "hepatitis", "Alcohol", "Diabetes", "Evidence_of_cirh", "Pathology", "CPS", "Tr_Size", "tumor_nodul",
    "Vascular_invasion", "Metastasis", "Lymphnodes", "Portal_Vein_Thrombosis", "T_involvment", "AFP", "Okuda", "TNM",
    "BCLC",
)  # fmt: skip
