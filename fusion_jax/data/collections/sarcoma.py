"""PET-CT of soft-tissue sarcoma: the sample that comes with the package, and the volumes it was made from."""

import os
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Arrays, Cohort, Lazy
from fusion_jax.data.collections.files import checked_file, collection_folder, stated_identity
from fusion_jax.data.collections.readers import StoredVolume
from fusion_jax.data.collections.tables import by_role, clinical_source, read_cases
from fusion_jax.data.samples import CLINICAL_INPUTS, soft_tissue_sarcoma

__all__ = ["soft_tissue_sarcoma_cohort", "sts_petct"]

LABELS = ("distant_metastases", "lung_metastases")
# What is known at diagnosis or was measured on the images, and is no input: strata, covariates, scanner settings.
STRATA = ("mskcc_type", "tumour_volume_ml", "suv_max", "suv_mean", "hu_mean", "pet_spacing_in_plane_mm")
UNITS = {"age_years": "years", "tumour_volume_ml": "ml", "suv_max": "SUV", "suv_mean": "SUV", "hu_mean": "HU"}


def soft_tissue_sarcoma_cohort(*, paper_cohort: bool = False) -> Cohort:
    """The bundled sample of 51 patients on a 4 mm grid: PET, CT, tumour mask and clinical columns.

    Label: `distant_metastases` (24 of 51), after it `lung_metastases` (19). Inputs are what is known at diagnosis; what
    follows from the course or dates it is `never`, and so is `paper_cohort_48`, which was decided by a recurrence.

    Args:
      paper_cohort: only the 48 patients without local or regional recurrence.

    Example:
      >>> cohort = soft_tissue_sarcoma_cohort()
      >>> len(cohort), int(cohort.label.sum()), cohort.columns("input"), list(cohort.sources)
      (51, 24, ('age_years', 'sex', 'grade'), ['pet', 'ct', 'mask', 'clinical'])

    References:
      As `fusion_jax.data.soft_tissue_sarcoma`.
    """
    sample = soft_tissue_sarcoma(paper_cohort=paper_cohort)
    table = _labels_first(sample.table)
    roles = by_role(input=CLINICAL_INPUTS, label=LABELS, group=STRATA)
    clinical, known = clinical_source(table, roles)
    place: dict[str, Any] = {
        "spacing": [sample.spacing] * len(table), "affine": list(sample.affine)
    }  # fmt: skip
    return Cohort.from_arrays(
        {
            "pet": Arrays([volume[..., None] for volume in sample.pet], unit="SUV", **place),
            "ct": Arrays([volume[..., None] for volume in sample.ct], unit="HU", **place),
            "mask": Arrays([volume[..., None] for volume in sample.mask], "mask", unit="label", **place),
            "clinical": clinical,
        },
        table=table,
        roles=roles,
        name="soft_tissue_sarcoma",
        units=UNITS,
    ).with_source("clinical", clinical, known)


def sts_petct() -> Cohort:
    """The volumes of the 51 patients at the spacing of the scanner, from `$FUSION_JAX_DATA/sts_petct`.

    CT with its mask and PET with its mask lie on two grids; the affines say how they meet. CT and PET come as float32.
    Roles as in `soft_tissue_sarcoma_cohort`.

    Raises:
      FileNotFoundError: the collection is not at hand.
      UnreadableFile: a file is not the one that SHA256SUMS lists.

    References:
      Vallières et al. 2015, doi:10.7937/K9/TCIA.2015.7GO2GSKS; CC BY 3.0; known quirks in the collection's README.
    """
    folder = collection_folder("sts_petct")
    table = read_cases(checked_file(folder, "clinical.csv"), "patient_id", (*CLINICAL_INPUTS, *LABELS))
    measured: Any = read_cases(checked_file(folder, "volumes.csv"), "patient_id", ("suv_max_gtv", "gtv_volume_ml_ct"))
    names = {"gtv_volume_ml_ct": "tumour_volume_ml", "suv_max_gtv": "suv_max"}
    names |= {"suv_mean_gtv": "suv_mean", "hu_mean_gtv": "hu_mean"}
    table = _labels_first(table.join(measured[list(names)].rename(columns=names), validate="1:1"))
    roles = by_role(input=CLINICAL_INPUTS, label=LABELS, group=[name for name in STRATA if name in table.columns])
    clinical, known = clinical_source(table, roles)
    files = tuple(f"volumes/{case}.npz" for case in table.index)

    identity = stated_identity(folder)

    def volume(key: str, dtype: str, unit: str) -> Lazy:
        read = StoredVolume(os.fspath(folder), files, key, f"{key.removesuffix('_mask')}_affine", dtype, unit)
        kind = "mask" if unit == "label" else "image"
        return Lazy(read, np.arange(len(table)), kind, f"{identity} {key} {dtype}")

    return Cohort.from_arrays(
        {
            "pet": volume("pet", "float32", "SUV"),
            "ct": volume("ct", "float32", "HU"),
            "pet_mask": volume("pet_mask", "uint8", "label"),
            "ct_mask": volume("ct_mask", "uint8", "label"),
            "clinical": clinical,
        },
        table=table,
        roles=roles,
        name="sts_petct",
        units=UNITS,
    ).with_source("clinical", clinical, known)


def _labels_first(table: Any) -> Any:
    """The first label column is the one that a cohort's `label` reads."""
    return table[[*LABELS, *(column for column in table.columns if column not in LABELS)]]
