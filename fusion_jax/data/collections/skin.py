"""Dermatoscopic images of HAM10000, one a lesion."""

import os
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Boxes, Cohort, Lazy
from fusion_jax.data.collections.files import checked_file, collection_folder, stated_identity
from fusion_jax.data.collections.readers import ZipImages
from fusion_jax.data.collections.tables import by_role, clinical_source, read_cases

__all__ = ["ham10000_small"]

CLASSES = ("nv", "bkl", "mel", "bcc", "akiec", "vasc", "df")


def ham10000_small() -> Cohort:
    """5,928 dermatoscopic images of 200 × 150 pixels, one a lesion, with age, sex, body site and seven diagnoses.

    From `$FUSION_JAX_DATA/ham10000_small`. Label: `dx`, in the order of frequency. `dx_type` (how the diagnosis was
    settled) betrays the label and is `never` an input, like the area of the mask. "unknown" sex or site is missing.
    Which lesions are of one patient was not published: the patient is the lesion.

    Raises:
      FileNotFoundError: the collection is not at hand.
      UnreadableFile: a file is not the one that SHA256SUMS lists.

    References:
      Tschandl et al. 2018, doi:10.1038/sdata.2018.161; non-commercial, with attribution.
    """
    folder = collection_folder("ham10000_small")
    corners = ["box_x_min", "box_y_min", "box_x_max", "box_y_max"]
    inputs = ["age", "sex", "localization"]
    table: Any = read_cases(checked_file(folder, "clinical.csv"), "image_id", ("lesion_id", "dx", *inputs, *corners))
    for column in ("sex", "localization"):
        table[column] = table[column].where(table[column] != "unknown")
    roles = by_role(input=inputs, label=["dx"])
    clinical, known = clinical_source(table, roles)
    read = ZipImages(os.fspath(folder), "images.zip", tuple(f"{case}.jpg" for case in table.index))
    return Cohort.from_arrays(
        {"image": Lazy(read, np.arange(len(table)), "image", stated_identity(folder)), "clinical": clinical},
        table=table,
        patient_id=table["lesion_id"].tolist(),
        roles=roles,
        name="ham10000_small",
        units={"age": "years"},
        levels={"dx": CLASSES},
        boxes=[Boxes(box[None].astype(np.float64), np.zeros(1, np.int32)) for box in table[corners].to_numpy()],
        box_classes=("lesion",),
    ).with_source("clinical", clinical, known)
