"""Cohorts of the portal hypertension experiment: the patients' own folder, synthetic ones, and a real stand-in.

Wang Y. et al. 2023; specs/fusion_quality.md, section 2: 198 patients, 119 with a pressure gradient of 5 mmHg or more,
whose CT is not public. Every cohort here has the source `image` (three channels), the source `clinical` (markers in
native units) and one label.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusion_jax.data import (
    Cohort,
    Image,
    Lazy,
    clinical_inputs,
    monte_carlo,
    open_cohort,
    open_shards,
    preprocessed,
    write_shards,
)
from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.data.images.intensity import window
from fusion_jax.data.images.pipeline import pet_suv
from fusion_jax.data.liver import left_lobe_image
from fusion_jax.data.splits import Splits
from fusion_jax.data.synthetic import LIVER_LABELS, Synthetic, dial, portal_hypertension_ct

__all__ = [
    "LobeSurface",
    "dialled",
    "make_cohort",
    "other_livers",
    "prepared",
    "sarcoma",
    "split_patients",
    "user_cohort",
    "with_markers",
    "with_surfaces",
]

LOW_HU, HIGH_HU = -100.0, 240.0

MIDDLE_GRADE = 2.0

MASKS = ("liver", "gallbladder", "vena_cava")
"""Mask sources of a user's folder; the first is needed, the others tell left from right."""


@dataclasses.dataclass(frozen=True)
class LobeSurface:
    """Surface of the left hepatic lobe of a patient: three adjacent slices, turned to a common axis, as channels.

    Reads the source `ct`, and either `labels` of the synthetic liver or the masks `MASKS`.
    """

    cohort: Cohort
    size: int

    def __call__(self, row: int) -> Image:
        masks = self._masks(row)
        surface = left_lobe_image(
            self.cohort.image("ct", row),
            masks["liver"],
            gallbladder=masks.get("gallbladder"),
            vena_cava=masks.get("vena_cava"),
            size=(self.size, self.size),
        )
        return window(surface, low=LOW_HU, high=HIGH_HU)

    def _masks(self, row: int) -> dict[str, Image]:
        if "labels" not in self.cohort.sources:
            there = [name for name in MASKS if name in self.cohort.sources and self.cohort.present[name][row]]
            return {name: self.cohort.image(name, row) for name in there}
        labels = self.cohort.image("labels", row)
        values = {
            "liver": [LIVER_LABELS["liver"], LIVER_LABELS["left lateral segment"]],
            "gallbladder": [LIVER_LABELS["gallbladder"]],
            "vena_cava": [LIVER_LABELS["inferior vena cava"]],
        }
        return {
            name: labels._replace(values=np.isin(labels.values, own).astype(np.uint8)) for name, own in values.items()
        }

    def identity(self) -> str:
        """Which images these are; hashes the volumes, so it is asked only where a fingerprint is."""
        return f"{self.cohort.fingerprint} {self.size}"


def with_surfaces(cohort: Cohort, size: int) -> Cohort:
    """The cohort with the source `image`, and `clinical` if it has it, in place of its volumes."""
    surfaces = LobeSurface(cohort, size)
    source = Lazy(surfaces, np.arange(len(cohort)), "image", surfaces.identity)
    kept = [name for name in ("image", "clinical") if name == "image" or name in cohort.sources]
    return cohort.with_source("image", source).only(*kept)


def with_markers(cohort: Cohort) -> Cohort:
    """The cohort with its input columns as numbers in native units, the source `clinical`.

    The positional encoding of the paper takes numbers as they come, so that nothing is fitted here.

    Raises:
      ValueError: a column that holds words or gaps.
    """
    import pandas as pd

    names = cohort.columns("input")
    numbers = {}
    for name in names:
        cells = cohort.table[name]
        found = np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise ValueError(
                f"{cohort.name}: column {name!r} holds {str(cells.iloc[bad[0]])!r} in case {cohort.case_id[bad[0]]} "
                f"({len(bad)} such cells); the encoding needs a number for every patient. Fill it in, leave the "
                "patient out, or give the column another role in cohort.toml."
            )
        numbers[name] = found
    values = np.stack(list(numbers.values()), axis=1).astype(np.float32)
    return cohort.with_source("clinical", values)


def make_cohort(n: int = 198, *, size: int = 224, seed: int = 0) -> Cohort:
    """Liver surfaces `(size, size, 3)` in [0, 1] and three blood markers."""
    return with_surfaces(portal_hypertension_ct(n, seed=seed).cohort, size)


def other_livers(n: int, *, size: int, seed: int) -> Cohort:
    """Liver surfaces of other synthetic patients, labelled by their relief: what a trunk may have been trained on.

    Stands for the ImageNet weights of the paper: a trunk that has seen surfaces, and no pressure gradient. The label is
    the quarter that the relief of the patient's surface, which only the truth knows, falls into.
    """
    cohort, truth = portal_hypertension_ct(n, seed=seed)
    relief = truth.hidden["nodularity_mm"]
    quarter = np.searchsorted(np.quantile(relief, (0.25, 0.5, 0.75)), relief)
    surfaces = with_surfaces(cohort, size)
    table = surfaces.table.drop(columns=["hvpg_at_least_5", "hvpg_mmhg"]).assign(relief=quarter)
    roles = {**{name: role for name, role in surfaces.roles.items() if name in table.columns}, "relief": "label"}
    return dataclasses.replace(surfaces, table=table, roles=roles, name="other synthetic livers").only("image")


def user_cohort(folder: Path, *, size: int) -> Cohort:
    """A user's folder: `ct` with the mask `liver` (and `gallbladder`, `vena_cava`), or a ready `image`; markers.

    Raises:
      ValueError: the cohort lacks what the experiment reads.
    """
    cohort = open_cohort(folder)
    ready = "image" in cohort.sources
    lacking = [] if ready else [f"the source {name!r}" for name in ("ct", "liver") if name not in cohort.sources]
    lacking += [] if cohort.columns("input") else ["columns with the role input"]
    lacking += [] if len(cohort.columns("label")) and len(cohort.classes) == 2 else ["a label with two classes"]
    if lacking:
        raise ValueError(
            f"{folder}: the cohort has the sources {', '.join(cohort.sources) or 'none'} and lacks "
            f"{', '.join(lacking)}. Expected `ct` with the mask `liver` (`gallbladder` and `vena_cava` as well tell "
            "left from right) or a ready `image`, markers as input columns, and the label; the README of this "
            "experiment has such a cohort.toml."
        )
    return cohort.only("image") if ready else with_surfaces(cohort, size).only("image")


def sarcoma(*, size: int = 64) -> Cohort:
    """The real stand-in: three adjacent axial slices of the PET where the tumour is largest; distant metastasis.

    48 patients (Vallières et al. 2015) on a grid of 4 mm; age in years, sex (0 female, 1 male) and grade (1 to 3) in
    place of the blood markers. Two patients have no grade; they get 2, the middle, whoever is trained on.
    """
    cohort = soft_tissue_sarcoma_cohort(paper_cohort=True)
    values, present, _ = clinical_inputs(cohort.table)
    steps = [
        {"op": "adjacent_slices", "mask": "mask.file", "count": 3},
        {"op": "crop_or_pad", "size": [size, size]},
        *pet_suv(),
    ]
    images = preprocessed(cohort, {"pet": steps})
    image = dataclasses.replace(
        images.only("pet"), sources={"image": images.sources["pet"]}, present={"image": images.present["pet"]}
    )
    return image.with_source("clinical", np.where(present, values, MIDDLE_GRADE).astype(np.float32))


def dialled(n: int, *, width: int, seed: int) -> Synthetic:
    """Image features and four markers whose signal is linear, in one coordinate of each, and known.

    The sources are `features` and `clinical`; either has a d' of 0.6 of its own.
    """
    return dial(n, unique={"features": 0.6, "clinical": 0.6}, dimension={"features": width, "clinical": 4}, seed=seed)


def prepared(make: Callable[[], Cohort], folder: Path, progress: Callable[[int, int], None] | None = None) -> Cohort:
    """The cohort of `folder`, made and written there on the first call: images are computed once."""
    if not (folder / "cohort.json").is_file():
        write_shards(make(), folder, progress=progress)
    return open_shards(folder)


def split_patients(
    cohort: Cohort, *, repeats: int, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> Splits:
    """Stratified Monte-Carlo splits of the patients into training, validation and test, as the paper draws them."""
    return monte_carlo(cohort, seed=seed, repeats=repeats, fractions=fractions)
