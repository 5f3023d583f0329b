"""The cohorts of the detection experiment: MIMIC for who holds it, two public collections, and synthetic X-rays.

Hsieh et al.; specs/mdf_net.md, section 2. The study's images need credentials; `mimic_cohort` makes its cohort from the
raw tables and images. The functions give images as they are stored: the recipe brings them to its size.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fusion_jax.data import (
    Boxes,
    Cohort,
    Columns,
    Image,
    Lazy,
    Splits,
    UnreadableFile,
    monte_carlo,
    preprocessed,
)
from fusion_jax.data.collections import load
from fusion_jax.data.folder import existing
from fusion_jax.data.images.pipeline import chest_radiograph
from fusion_jax.data.mimic import ABNORMALITIES, VITALS, MimicJoin, join_all, read_reflacx, read_table
from fusion_jax.data.synthetic import LESIONS, TRIAGE, chest_opacities, chest_xray
from fusion_jax.data.tabular import Category, Column, Number
from fusion_jax.detection.study import draw_detection_splits

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "COVID_COLUMNS",
    "JSRT_COLUMNS",
    "MimicFolders",
    "covid_cohort",
    "five_folds",
    "join_mimic",
    "jsrt_cohort",
    "make_cohort",
    "mimic_cohort",
    "mimic_images",
    "paper_split",
    "patient_split",
    "synthetic_cohort",
]

logger = logging.getLogger("experiments.chest_xray_detection.cohort")

COLUMNS: tuple[Column, ...] = (
    *(Number(name, unit="years" if name == "age_years" else "", scale="none", impute="mean") for name in TRIAGE[:-1]),
    Category("gender", levels=("F", "M"), reference="F", impute="mode"),
)
"""Ten features in the published order, raw; female is 0. The paper fills gaps with means over all rows; here they are
those of the training cases."""

JSRT_COLUMNS: tuple[Column, ...] = (
    Number("age_years", unit="years", impute="mean"),
    Category("sex", levels=("Female", "Male"), reference="Female", impute="mode"),
)
COVID_COLUMNS: tuple[Column, ...] = (
    Number("age_num", unit="years", impute="mean"),
    Category("sex", levels=("F", "M"), reference="F", impute="mode"),
)

PUBLISHED_PARTS = (468, 101, 101)
"""Instances of training, validation and test."""

CERTAINTY = "{}_certainty"

NODULE_SIZES = {"up to 10 mm": (0, 10), "11 to 20 mm": (10, 20), "above 20 mm": (20, np.inf)}


def make_cohort(n: int = 670, *, size: int = 512, seed: int = 0) -> Cohort:
    """Synthetic radiographs `(size, size, 3)` on ImageNet's scale, with the published numbers of five abnormalities."""
    cohort = chest_xray(n, size=size, seed=seed).cohort
    return preprocessed(cohort, {"image": chest_radiograph(size=size, white=1)})


@functools.lru_cache(maxsize=8)
def synthetic_cohort(
    arm: Literal["published", "informative", "uninformative"] = "informative",
    n: int = 400,
    size: int = 128,
    seed: int = 0,
    strength: float = 2.0,
) -> Cohort:
    """Synthetic radiographs with boxes and vitals.

    Args:
      arm: "informative" and "uninformative" share images and boxes of a seed, and differ in whether the vitals tell
        three kinds of lesion apart that look alike (`fusion_jax.data.synthetic.chest_opacities`); "published" has the
        numbers of the study, and vitals that tell as little as its correlations say.
      n: images.
      size: pixels of a side.
      seed: of all draws.
      strength: of the vitals, in the first two arms.
    """
    if arm == "published":
        return chest_xray(n, size=size, seed=seed).cohort.only("image", "clinical")
    return chest_opacities(n, size=size, seed=seed, vitals=arm, strength=strength).cohort.only("image", "clinical")


def jsrt_cohort() -> Cohort:
    """197 radiographs of JSRT, 123 with the box of one nodule; age and sex are the inputs.

    Size and place of the nodule stand in the table for tables by subgroup, and reach no model: `nodule_size`,
    `nodule_lobe` and `nodule_side` (the patient's), "none" without a nodule.
    """
    cohort = load("jsrt").only("image", "clinical")
    table: Any = cohort.table
    places = table["position"].fillna("")
    size = np.full(len(cohort), "none", dtype=object)
    for name, (above, up_to) in NODULE_SIZES.items():
        size[(table["nodule_size_mm"] > above) & (table["nodule_size_mm"] <= up_to)] = name
    lobe = places.str.extract(r"(upper|middle|lower) lobe", expand=False)
    side = places.str.extract(r"^(l|r)(?:\.|eft|ight)", expand=False).map({"l": "left", "r": "right"})
    nodule = table["label"] != "non-nodule"
    table = table.assign(
        nodule_size=size,
        nodule_lobe=lobe.fillna("unknown").where(nodule, "none"),
        nodule_side=side.fillna("unknown").where(nodule, "none"),
    )
    groups = dict.fromkeys(("nodule_size", "nodule_lobe", "nodule_side"), "group")
    return dataclasses.replace(cohort, table=table, roles={**cohort.roles, **groups})


def covid_cohort() -> Cohort:
    """The radiographs of the COVID-19 collection on which both lungs were boxed, with age and sex.

    A check that real images, boxes and gaps in the table go through, and nothing else: both lungs are always there.
    """
    cohort = load("covid_cxr")
    cohort = cohort.take(np.flatnonzero(cohort.table["lungs_boxed"].to_numpy(bool)))
    inputs = tuple(column.name for column in COVID_COLUMNS)
    roles = {name: role for name, role in cohort.roles.items() if role == "group"} | dict.fromkeys(inputs, "input")
    known: Any = cohort.table[list(inputs)].notna()
    cohort = dataclasses.replace(cohort.only("image"), roles=roles)
    return cohort.with_source("clinical", Columns(inputs, len(cohort)), known.any(axis=1).to_numpy())


def five_folds(cohort: Cohort, *, seed: int = 0, validation: float = 0.15) -> Splits:
    """Five folds of patients, those with a box spread evenly, with a part of the others for choosing the epoch."""
    return draw_detection_splits(cohort, folds=5, seed=seed, fractions=(0.8 * (1 - validation), 0.8 * validation, 0.2))


def patient_split(cohort: Cohort, *, seed: int = 0) -> Splits:
    """Training, validation and test in the published proportions, patients kept together."""
    return monte_carlo(cohort, seed=seed, fractions=_fractions(), by=())


def paper_split(cohort: Cohort, *, seed: int = 0) -> Splits:
    """The published way: instances drawn at random, 468, 101 and 101 of 670, so that patients and images cross.

    Such a split leaks; `check_leakage` accepts it only when told that patients may cross.
    """
    return monte_carlo(cohort, seed=seed, fractions=_fractions(), by=(), patients="may cross")


def _fractions() -> tuple[float, float, float]:
    train, validation, test = (part / sum(PUBLISHED_PARTS) for part in PUBLISHED_PARTS)
    return train, validation, test


# MIMIC


class MimicFolders(NamedTuple):
    """Where the four data sets lie, as their archives unpack.

    Attributes:
      cxr: of MIMIC-CXR-JPG, with `mimic-cxr-2.0.0-metadata.csv.gz` and `files/`.
      ed: `ed` of MIMIC-IV-ED, with `edstays.csv.gz` and `triage.csv.gz`.
      patients: the table `hosp/patients.csv.gz` of MIMIC-IV.
      reflacx: `main_data` of REFLACX.
    """

    cxr: str
    ed: str
    patients: str
    reflacx: str


def mimic_cohort(
    cxr: str,
    ed: str,
    patients: str,
    reflacx: str,
    *,
    tolerance_days: float = 0,
    repair: bool = False,
    readings: Literal["apart", "unified"] = "apart",
) -> Cohort:
    """Readings of REFLACX whose X-ray was taken during an emergency stay, with boxes, vitals, age and gender.

    Every reading is a case; two readings of one image, and all images of a patient, belong to one patient.

    Args:
      cxr, ed, patients, reflacx: see `MimicFolders`.
      tolerance_days: of an X-ray outside of all stays from the start of the nearest; 0 is the published rule.
      repair: temperatures in °C become °F, and pain is held to 0 to 10; the study left both as they are.
      readings: "unified" merges the readings of an image to one case, with the boxes of all.

    Returns:
      Cohort of grey images in the size of the original, with the columns of `chest_xray` and `<lesion>_certainty`.

    Raises:
      FileNotFoundError: a table or an image is missing; `mimic_images` lists the images that are needed.
      ValueError: tables that do not fit together.
    """
    return _cohort_of(
        join_mimic(cxr, ed, patients, reflacx, tolerance_days=tolerance_days, repair=repair), cxr, readings
    )


def join_mimic(
    cxr: str, ed: str, patients: str, reflacx: str, *, tolerance_days: float = 0, repair: bool = False
) -> MimicJoin:
    """The tables of `mimic_cohort` joined, with the flow of readings and patients; no image is looked for."""
    read, ellipses = read_reflacx(reflacx)
    return join_all(
        reflacx=read,
        ellipses=ellipses,
        cxr=read_table(_table(cxr, "mimic-cxr-2.0.0-metadata"), "cxr"),
        edstays=read_table(_table(ed, "edstays"), "edstays"),
        triage=read_table(_table(ed, "triage"), "triage"),
        patients=read_table(patients, "patients"),
        tolerance_days=tolerance_days,
        repair=repair,
    )


def mimic_images(joined: MimicJoin) -> tuple[str, ...]:
    """Images of the joined readings, relative to the folder of MIMIC-CXR-JPG, once each: what has to be downloaded."""
    return tuple(dict.fromkeys(_image_file(row) for row in joined.table.itertuples()))


def _table(folder: str, name: str) -> Path:
    """The table as it was downloaded, compressed or not."""
    for suffix in (".csv.gz", ".csv"):
        path = Path(folder) / f"{name}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{Path(folder) / name}.csv.gz: no such file, nor {name}.csv. Give the folder that holds it."
    )


def _image_file(row: Any) -> str:
    """`files/p10/p10000032/s50414267/<dicom>.jpg`."""
    return f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"


def _cohort_of(joined: MimicJoin, cxr: str, readings: Literal["apart", "unified"]) -> Cohort:
    table: Any = joined.table
    boxes: Any = joined.boxes
    table = table.assign(file=[_image_file(row) for row in table.itertuples()])
    certainties = [f"{label} certainty" for label in ABNORMALITIES]
    if readings == "unified":
        case_of = table["dicom_id"]
        merged = table.groupby("dicom_id", sort=False)[[*ABNORMALITIES, *certainties]].max()
        table = table.drop_duplicates("dicom_id").set_index("dicom_id", drop=False)
        table[merged.columns] = merged
        boxes = boxes.assign(id=boxes["id"].map(case_of))
    names = dict(zip(("age", *VITALS), TRIAGE[:-1], strict=True))
    names |= dict(zip(ABNORMALITIES, LESIONS, strict=True))
    names |= dict(zip(certainties, map(CERTAINTY.format, LESIONS), strict=True))
    table = table.rename(columns=names).astype(dict.fromkeys(LESIONS, int))
    files = tuple(os.path.normpath(f"{cxr}{os.sep}{name}") for name in table["file"])
    gaps = np.flatnonzero(~existing(files))
    if len(gaps):
        raise FileNotFoundError(
            f"{files[gaps[0]]}: no such file, the X-ray of reading {table.index[gaps[0]]} ({len(gaps)} of {len(files)} "
            "readings lack theirs). Download the images that `mimic_images` lists to the folder of MIMIC-CXR-JPG."
        )
    # REFLACX gives width and height of the original, in which its ellipses lie.
    sizes = tuple(zip(table["image_size_y"].astype(int), table["image_size_x"].astype(int), strict=True))
    identity = hashlib.sha256(json.dumps([table["file"].tolist(), sizes]).encode()).hexdigest()
    return Cohort.from_arrays(
        {
            "image": Lazy(_Radiographs(files, sizes), np.arange(len(files)), "image", identity),
            "clinical": Columns(TRIAGE, len(table)),
        },
        table=table.drop(columns="file").set_axis(table.index.astype(str).astype(object), axis=0),
        patient_id=table["subject_id"].tolist(),
        roles={"view": "group", **dict.fromkeys(TRIAGE, "input"), **dict.fromkeys(LESIONS, "label")},
        boxes=_boxes_within(table, boxes, sizes),
        box_classes=LESIONS,
        flow=joined.flow,
        name="MIMIC-CXR with REFLACX",
    )


def _boxes_within(table: "pd.DataFrame", boxes: "pd.DataFrame", sizes: tuple[tuple[int, int], ...]) -> list[Boxes]:
    """Boxes of every case inside of its image."""
    found = []
    for case, (height, width) in zip(table.index, sizes, strict=True):
        own: Any = boxes.loc[boxes["id"] == case]
        corners = np.clip(own[["x0", "y0", "x1", "y1"]].to_numpy(float), 0, [width, height, width, height])
        kept = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        if not kept.all():
            logger.warning("%s: %d ellipses lie outside of the image; left out", case, int((~kept).sum()))
        found.append(Boxes(corners[kept], own["class"].to_numpy(np.int32)[kept]))
    return found


@dataclasses.dataclass(frozen=True)
class _Radiographs:
    """JPEG files with the sizes in which the ellipses lie."""

    paths: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __call__(self, row: int) -> Image:
        from fusion_jax.data import read_image

        image = read_image(self.paths[row])
        if image.values.shape[:2] != self.sizes[row]:
            found = f"has {image.values.shape[:2]} rows and columns, REFLACX states {self.sizes[row]}"
            raise UnreadableFile(self.paths[row], found, "Its ellipses would lie elsewhere: take the original size.")
        return image
