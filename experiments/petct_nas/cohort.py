"""The cohorts of the architecture search: 48 real patients, who come with the package on a grid of 4 mm.

Peng et al. 2020; specs/mm_nas.md. Soft-tissue sarcoma, Vallières et al. 2015; 24 developed distant metastases.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.data import Cohort, preprocessed
from fusion_jax.data.cohort import Arrays
from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.data.images.pipeline import ct_body, pet_suv
from fusion_jax.data.samples import soft_tissue_sarcoma

__all__ = ["FEATURES", "address", "make_cohort", "study_cohort"]

FEATURES = Path(__file__).parent / "radiomics.csv"
"""Radiomic features of PET and CT inside the contour, of these patients; the README says how they were computed."""

LABEL = "distant_metastases"

SLICES = ("pet_slice", "ct_slice", "pet_inside", "ct_inside")


def make_cohort(*, spacing: float = 8.0, shape: tuple[int, int, int] = (36, 28, 28)) -> Cohort:
    """PET and CT of the tumour as `(d, h, w, 1)` in [0, 1], centred on it.

    The paper's volumes of 112 x 112 x 144 voxels stand for about the same field at 2 mm.
    """
    around = [{"op": "resample", "spacing": spacing}, {"op": "crop_or_pad", "mask": "mask.file", "size": list(shape)}]
    steps = {"pet": [*around, *pet_suv()], "ct": [*around, *ct_body()]}
    return preprocessed(soft_tissue_sarcoma_cohort(paper_cohort=True), steps).only("pet", "ct", "clinical")


def address(permutation: int | None = None, *, spacing: float = 6.0, size: int = 32) -> dict[str, Any]:
    """By which every training opens `study_cohort`."""
    arguments: dict[str, Any] = {"spacing": spacing, "size": size}
    if permutation is not None:
        arguments["permutation"] = permutation
    return {"function": "experiments.petct_nas.cohort:study_cohort", "arguments": arguments}


@functools.cache
def study_cohort(*, spacing: float = 6.0, size: int = 32, permutation: int | None = None) -> Cohort:
    """Everything that a model of the study reads.

    Sources:
      pet, ct: cubes of `size` voxels of `spacing` mm, centred on the tumour, in [0, 1], `(d, h, w, 1)`.
      pet_marked, ct_marked: the same with the contour as a second channel.
      pet_slice, ct_slice: the axial slice with most tumour, 64 x 64 at 4 mm.
      pet_inside, ct_inside: that slice without what lies outside the contour.
      pet_volume, mask: SUV and contour on the grid of 4 mm, on which volume and SUVmax are measured.
      radiomics: the features of `FEATURES`.
      clinical: age, sex and grade.

    Args:
      spacing, size: of the cubes.
      permutation: seed by which labels are dealt out anew among the patients, for a cohort without any signal.
    """
    cohort = soft_tissue_sarcoma_cohort(paper_cohort=True)
    sample = soft_tissue_sarcoma(paper_cohort=True)
    place: dict[str, Any] = {"spacing": [sample.spacing] * len(cohort), "affine": list(sample.affine)}
    cohort = cohort.with_source("pet_volume", cohort.sources["pet"])
    # What lies outside the contour becomes 0 SUV and air.
    for name, volumes, unit, outside in (("pet", sample.pet, "SUV", 0.0), ("ct", sample.ct, "HU", -1000.0)):
        inside = [
            np.where(m, v, outside).astype(np.float32)[..., None] for v, m in zip(volumes, sample.mask, strict=True)
        ]
        cohort = cohort.with_source(f"{name}_inside", Arrays(inside, unit=unit, **place))
    contour = [mask.astype(np.float32)[..., None] for mask in sample.mask]
    cohort = cohort.with_source("contour", Arrays(contour, unit="", **place))
    for name, of in (("pet_slice", "pet"), ("ct_slice", "ct")):
        cohort = cohort.with_source(name, cohort.sources[of])
    around = [{"op": "resample", "spacing": spacing}, {"op": "crop_or_pad", "mask": "mask.file", "size": [size] * 3}]
    section = [{"op": "largest_slice", "mask": "mask.file"}, {"op": "crop_or_pad", "size": [64, 64]}]
    cohort = preprocessed(
        cohort,
        {
            "pet": [*around, *pet_suv()],
            "ct": [*around, *ct_body()],
            "contour": around,
            "pet_slice": [*section, *pet_suv()],
            "ct_slice": [*section, *ct_body()],
            "pet_inside": [*section, *pet_suv()],
            "ct_inside": [*section, *ct_body()],
        },
    )
    rows = range(len(cohort))
    shown = {name: [np.asarray(cohort.sources[name][row]) for row in rows] for name in ("pet", "ct", "contour")}
    for name in ("pet", "ct"):
        both = [np.concatenate(pair, axis=-1) for pair in zip(shown[name], shown["contour"], strict=True)]
        # Read again and again by every training, and small.
        cohort = cohort.with_source(name, Arrays(np.stack(shown[name])))
        cohort = cohort.with_source(f"{name}_marked", Arrays(np.stack(both).astype(np.float32)))
    for name in SLICES:
        cohort = cohort.with_source(name, Arrays(np.stack([np.asarray(cohort.sources[name][row]) for row in rows])))
    cohort = cohort.with_source("radiomics", Arrays(_features(cohort), "array"))
    if permutation is not None:
        dealt = np.random.default_rng(permutation).permutation(cohort.table[LABEL].to_numpy())
        cohort = dataclasses.replace(cohort, table=cohort.table.assign(**{LABEL: dealt}))
    return dataclasses.replace(cohort, name="soft-tissue sarcoma, PET-CT").only(
        *("pet", "ct", "pet_marked", "ct_marked", *SLICES, "pet_volume", "mask", "radiomics", "clinical")
    )


def _features(cohort: Cohort) -> np.ndarray:
    import pandas as pd

    table = pd.read_csv(FEATURES, dtype={"case_id": str}).set_index("case_id")
    return table.loc[list(cohort.case_id)].to_numpy(np.float32)
