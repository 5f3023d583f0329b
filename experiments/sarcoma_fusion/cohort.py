"""The cohort of the main job: a projection of the PET and a slice of the CT of every tumour, and its measurements.

Chosen before anything was trained, and not changed afterwards. What is measured and what the networks see of the PET
both end at the same contour, so that neither knows a tumour that the other does not.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from fusion_jax.data import Cohort, preprocessed
from fusion_jax.data.cohort import Arrays
from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.data.images.pipeline import ct_body, pet_suv
from fusion_jax.data.samples import soft_tissue_sarcoma

__all__ = ["ADDRESS", "TWO_YEARS", "make_cohort", "shortly_followed"]

ADDRESS = {"function": "experiments.sarcoma_fusion.cohort:make_cohort"}
"""Of the cohort, by which every training opens it."""

TWO_YEARS = 730
"""Days."""

TIME, EVENT = "days_to_metastasis_or_last_follow_up", "metastasis"


@functools.cache
def make_cohort() -> Cohort:
    """48 patients (Vallières et al. 2015), 24 with distant metastases, on a grid of 4 mm.

    Sources:
      pet: coronal maximum-intensity projection of SUV 0 to 20 inside the contour, `(64, 64, 1)`, 0 outside it.
      ct: the axial slice with most of the tumour, -200 to 300 HU, `(64, 64, 1)`, with 2 cm around the tumour.
      pet_volume: SUV on which volume and SUVmax are measured; no network reads it.
      mask: the contour.
      clinical: age, sex and grade.

    Roles: `distant_metastases` is the label; `days_to_metastasis_or_last_follow_up` and `metastasis` are time and event
    of the same patients. Of the sheet nothing else is an input.
    """
    cohort = soft_tissue_sarcoma_cohort(paper_cohort=True)
    sample = soft_tissue_sarcoma(paper_cohort=True)
    inside = [np.where(mask, pet, 0.0)[..., None] for pet, mask in zip(sample.pet, sample.mask, strict=True)]
    place: dict[str, Any] = {"spacing": [sample.spacing] * len(cohort), "affine": list(sample.affine)}
    cohort = cohort.with_source("pet_volume", cohort.sources["pet"])
    cohort = cohort.with_source("pet", Arrays([one.astype(np.float32) for one in inside], unit="SUV", **place))
    window = {"op": "crop_or_pad", "size": [64, 64]}
    cohort = preprocessed(
        cohort,
        {
            "pet": [{"op": "mip", "axis": "h"}, window, *pet_suv()],
            "ct": [{"op": "largest_slice", "mask": "mask.file"}, window, *ct_body()],
        },
    )
    return dataclasses.replace(_with_times(cohort), name="soft-tissue sarcoma").only(
        "pet", "ct", "pet_volume", "mask", "clinical"
    )


def shortly_followed(cohort: Cohort) -> tuple[int, int]:
    """Patients without metastasis who were followed for less than two years, and all patients without metastasis."""
    free = cohort.table[EVENT].to_numpy() == 0
    return int(np.sum(free & (cohort.table[TIME].to_numpy() < TWO_YEARS))), int(np.sum(free))


def _with_times(cohort: Cohort) -> Cohort:
    """The cohort with the days to metastasis, or to the last follow-up of patients without one."""
    event = cohort.table["distant_metastases"].astype(int)
    days = cohort.table["days_diagnosis_to_outcome"].where(event == 1, cohort.table["days_diagnosis_to_last_follow_up"])
    table = cohort.table.assign(**{TIME: days.astype(float), EVENT: event})
    roles = {**cohort.roles, TIME: "time", EVENT: "event"}
    return dataclasses.replace(cohort, table=table, roles=roles)
