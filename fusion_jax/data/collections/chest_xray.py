"""Chest radiographs: the JSRT nodules and the COVID-19 image data collection."""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from fusion_jax.data.cohort import Boxes, Cohort, Lazy
from fusion_jax.data.collections.files import checked_file, collection_folder, stated_identity
from fusion_jax.data.collections.readers import NpzStack
from fusion_jax.data.collections.tables import by_role, clinical_source, no_boxes, read_cases

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["covid_cxr", "jsrt"]

# 2048 pixels of 0.175 mm became 224.
JSRT_SPACING = (1.6, 1.6)
COVID_INPUTS = {
    "age_num": "years",
    "sex": "",
    "offset_days_num": "days",
    "temperature_num": "°C",
    # The source means per cent, but some values plainly are mmHg.
    "pO2_saturation_num": "% or mmHg",
    "leukocyte_count_num": "10^3/µl",
    "neutrophil_count_num": "10^3/µl",
    "lymphocyte_count_num": "10^3/µl",
}
LUNGS = ("right_lung", "left_lung")


def jsrt() -> Cohort:
    """197 chest radiographs, 123 with one lung nodule, with age, sex, nodule boxes, and masks of lungs and heart.

    From `$FUSION_JAX_DATA/jsrt`. Label: `non-nodule`, `benign` or `malignant`. Subtlety, size, place and diagnosis of
    the nodule are labels themselves and `never` inputs. Mask: 1 right lung, 2 left lung (the patient's), 3 heart.

    Raises:
      FileNotFoundError: the collection is not at hand.
      UnreadableFile: a file is not the one that SHA256SUMS lists.

    References:
      Shiraishi et al. 2000, doi:10.2214/ajr.174.1.1740071; van Ginneken et al. 2006, doi:10.1016/j.media.2005.02.002;
      for research and teaching, after registration with JSRT.
    """
    folder = collection_folder("jsrt")
    corners = ("box_x_min", "box_y_min", "box_x_max", "box_y_max")
    table = read_cases(checked_file(folder, "clinical.csv"), "study_id", ("age_years", "sex", "label", *corners))
    _check_order(folder, "study_id", table)
    roles = by_role(input=["age_years", "sex"], label=["label"])
    clinical, known = clinical_source(table, roles)
    there: Any = table[list(corners)].notna().all(axis=1)
    boxes = [
        Boxes(box[None].astype(np.float64), np.zeros(1, np.int32)) if has else no_boxes()
        for box, has in zip(table[list(corners)].to_numpy(), there, strict=True)
    ]
    rows = np.arange(len(table))
    where, identity = os.fspath(folder), stated_identity(folder)
    return Cohort.from_arrays(
        {
            "image": Lazy(NpzStack(where, "images.npz", "images", JSRT_SPACING), rows, "image", f"{identity} images"),
            "mask": Lazy(
                NpzStack(where, "images.npz", "masks", JSRT_SPACING, "label"), rows, "mask", f"{identity} masks"
            ),
            "clinical": clinical,
        },
        table=table,
        roles=roles,
        name="jsrt",
        units={"age_years": "years", "nodule_size_mm": "mm"},
        levels={"label": ("non-nodule", "benign", "malignant")},
        boxes=boxes,
        box_classes=("nodule",),
    ).with_source("clinical", clinical, known)


def covid_cxr() -> Cohort:
    """248 frontal chest X-rays of 133 patients with COVID-19 or another pneumonia, with sparse clinical columns.

    From `$FUSION_JAX_DATA/covid_cxr`. Label: `covid_19` (163 yes, 67 no, 18 whose finding was not named), made from
    `finding`. Site: the publication's host, from which the classes can be told to a good part; leave sites out. What
    the patient went through, the readers' scores and whatever names the source are `never` inputs. `lungs_boxed` tells
    the 50 images on which somebody drew the lungs from those on which nobody did.

    Raises:
      FileNotFoundError: the collection is not at hand.
      UnreadableFile: a file is not the one that SHA256SUMS lists.

    References:
      Cohen et al. 2020, arXiv:2006.11988 and arXiv:2003.11597; a licence an image, together non-commercial.
    """
    folder = collection_folder("covid_cxr")
    needed = ("patient_id", "finding", "view", "url", *COVID_INPUTS)
    table: Any = read_cases(checked_file(folder, "clinical.csv"), "image_id", needed)
    _check_order(folder, "image_id", table)
    drawn: Any = read_cases(
        checked_file(folder, "lung_boxes.csv"), "image_id", ("label", "x_min", "y_min", "x_max", "y_max")
    )
    named = table["finding"].notna()
    is_covid = table["finding"].str.contains("COVID-19", regex=False).astype("boolean")
    table = table.assign(covid_19=is_covid.where(named).astype("Int64"), lungs_boxed=table.index.isin(drawn.index))
    roles = by_role(input=list(COVID_INPUTS), label=["covid_19"], group=["view", "lungs_boxed"])
    clinical, known = clinical_source(table, roles)
    boxes = []
    for case in table.index:
        own = drawn.loc[drawn.index == case]
        boxes.append(
            Boxes(
                own[["x_min", "y_min", "x_max", "y_max"]].to_numpy(np.float64),
                own["label"].map(LUNGS.index).to_numpy(np.int32),
            )
            if len(own)
            else no_boxes()
        )
    read = NpzStack(os.fspath(folder), "images.npz", "images")
    return Cohort.from_arrays(
        {"image": Lazy(read, np.arange(len(table)), "image", stated_identity(folder)), "clinical": clinical},
        table=table,
        patient_id=table["patient_id"].astype(str).tolist(),
        site=[urlsplit(url).netloc if isinstance(url, str) else "unknown" for url in table["url"]],
        roles=roles,
        name="covid_cxr",
        units={column: unit for column, unit in COVID_INPUTS.items() if unit},
        boxes=boxes,
        box_classes=LUNGS,
    ).with_source("clinical", clinical, known)


def _check_order(folder: "Path", key: str, table: Any) -> None:
    """Images are found by their row, so ids of images and table must agree."""
    with np.load(checked_file(folder, "images.npz"), allow_pickle=False) as file:
        ids = [str(name) for name in file[key]]
    if ids != list(table.index):
        raise ValueError(
            f"{folder}: images.npz and clinical.csv differ in their {key} or its order; expected the same. Get the "
            "collection again."
        )
