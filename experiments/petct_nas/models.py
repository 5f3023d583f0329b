"""The models of the study, fixed before anything was trained.

Rows of the paper's tables, sanity rows, the control of random cells, and the variants among which one is chosen inside
the training patients of every fold.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.petct_nas.cohort import FEATURES
from experiments.petct_nas.config import Settings
from fusion_jax.models.published import STAND_INS

__all__ = ["CHOICE", "PAPER", "SANITY", "SEARCHED", "SINGLES", "Printed", "Row", "rows_of", "variants_of"]

SEARCHED = "3-D MM-NAS"
CHOICE = "chosen in the fold"
SANITY = ("tumour volume", "SUVmax", "volume + SUVmax")
SINGLES = ("2-D CT CNN", "2-D PET CNN", "3-D CT CNN", "3-D PET CNN", "tumour volume", "SUVmax", "clinical (forest)")


class Printed(NamedTuple):
    """What the paper prints of a row, with the counts that its rates imply.

    Attributes:
      accuracy, sensitivity, specificity, precision, f1, auc: as printed.
      true_positive, true_negative: of 24 patients each.
    """

    accuracy: float
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    auc: float
    true_positive: int
    true_negative: int


PAPER: Mapping[str, Printed] = {
    "HC + RF": Printed(0.750, 0.792, 0.708, 0.731, 0.760, 0.726, 19, 17),
    "DLHN": Printed(0.729, 0.792, 0.667, 0.703, 0.745, 0.698, 19, 16),
    "3DMCL": Printed(0.854, 0.917, 0.792, 0.815, 0.863, 0.854, 22, 19),
    "2-D MM-NAS": Printed(0.750, 0.833, 0.667, 0.714, 0.769, 0.711, 20, 16),
    "3-D MM-NAS": Printed(0.896, 0.917, 0.875, 0.880, 0.898, 0.896, 22, 21),
    "2-D CT CNN": Printed(0.583, 0.708, 0.458, 0.567, 0.630, 0.503, 17, 11),
    "2-D PET CNN": Printed(0.729, 0.542, 0.917, 0.867, 0.667, 0.656, 13, 22),
    "2-D PET-CT CNN": Printed(0.729, 0.792, 0.667, 0.703, 0.745, 0.698, 19, 16),
    "3-D CT CNN": Printed(0.667, 0.667, 0.667, 0.667, 0.667, 0.684, 16, 16),
    "3-D PET CNN": Printed(0.771, 0.750, 0.792, 0.783, 0.766, 0.734, 18, 19),
    "3-D PET-CT CNN": Printed(0.792, 0.792, 0.792, 0.792, 0.792, 0.773, 19, 19),
}
"""Peng et al. 2020, Tables 1 and 2; the counts: specs/mm_nas.md, section 7."""


class Row(NamedTuple):
    """A model and what its images are.

    Attributes:
      choice: recipe and arguments.
      images: grid, crop and rule for the slice, in words.
      note: such as that widths are not published.
    """

    choice: dict[str, Any]
    images: str
    note: str = ""


def rows_of(settings: Settings, order: str) -> dict[str, Row]:
    """All rows but the choice, by their names in the tables.

    Args:
      settings: of the preset.
      order: of the bilevel gradient.
    """
    cube = f"cube of {settings.size}³ voxels of {settings.spacing:g} mm around the tumour, zeros beyond the image"
    section = "axial slice with most tumour, 64² at 4 mm, zeros beyond the image"
    inside = "inside the contour at 4 mm"
    volume = ["pet", "ct"]
    flat = ["pet_slice", "ct_slice"]
    rows = {
        "HC + RF": Row(
            _forest(settings, screen="lasso-1se"), inside, "selected in the fold (LASSO, one standard error)"
        ),
        "HC + RF, all features": Row(_forest(settings), inside, "293 features of mirp; the paper's list is not known"),
        "LASSO + RF": Row(_forest(settings, screen="lasso"), inside, "as for liver cancer (Wang et al. 2020)"),
        "DLHN": Row(
            _network(settings, "DLHN", {"pet": "pet_inside", "ct": "ct_inside"}),
            f"{section}, inside the contour",
            STAND_INS["DLHN"],
        ),
        "3DMCL": Row(_network(settings, "3DMCL"), f"{cube}; {inside}", STAND_INS["3DMCL"]),
        "2-D MM-NAS": Row(_searched(settings, order, flat), section),
        SEARCHED: Row(_searched(settings, order, volume), cube),
        "3-D random cells": Row(_searched(settings, order, volume, control="random"), cube, "control of the search"),
        "3-D MM-NAS + clinical": Row(_searched(settings, order, [*volume, "clinical"]), cube),
    }
    for axes, words, renamed in (("2-D", section, {"pet": "pet_slice", "ct": "ct_slice"}), ("3-D", cube, {})):
        for images in ("CT", "PET", "PET-CT"):
            name = f"{axes} {images} CNN"
            rows[name] = Row(_network(settings, name, renamed), words, STAND_INS[name])
    rows |= {
        "tumour volume": Row(_logistic(["log_volume"]), inside),
        "SUVmax": Row(_logistic(["maximum"]), inside),
        "volume + SUVmax": Row(_logistic(["log_volume", "maximum"]), inside),
        "clinical (forest)": Row({"recipe": "random-forest", "arguments": {"trees": settings.trees}}, "none"),
    }
    return rows


def variants_of(settings: Settings, order: str) -> dict[str, dict[str, Any]]:
    """What may be chosen inside a fold; committed before the first run.

    Deep and hand-crafted features, alone and with age, sex and grade; the searched network sees the contour as well.
    """
    rows = rows_of(settings, order)
    both = {"features": "all", "images": ["pet_volume"], "measurements": ["log_volume", "maximum"]}
    return {
        "volume + SUVmax, logistic": rows["volume + SUVmax"].choice,
        "volume + SUVmax + clinical, logistic": {
            "recipe": "logistic-regression",
            "arguments": {**both, "strength": 0.1},
        },
        "volume + SUVmax + clinical, forest": {
            "recipe": "random-forest",
            "arguments": {**both, "trees": settings.trees},
        },
        "HC + RF": rows["HC + RF"].choice,
        "HC + RF, all features": rows["HC + RF, all features"].choice,
        "3-D PET-CT CNN": rows["3-D PET-CT CNN"].choice,
        "MM-NAS, contour, clinical": _searched(settings, order, ["pet_marked", "ct_marked", "clinical"]),
    }


def _forest(settings: Settings, **more: Any) -> dict[str, Any]:
    arguments = {"features": "measurements", "table": str(FEATURES), "trees": settings.trees, "leaf": 1, **more}
    return {"recipe": "random-forest", "arguments": arguments}


def _logistic(measurements: list[str]) -> dict[str, Any]:
    arguments = {
        "features": "measurements",
        "images": ["pet_volume"],
        "measurements": measurements,
        "strength": 0.1,
    }
    return {"recipe": "logistic-regression", "arguments": arguments}


def _network(settings: Settings, model: str, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    arguments = {**settings.networks, "model": model, **({"rename": dict(renamed)} if renamed else {})}
    return {"recipe": "published", "arguments": arguments}


def _searched(settings: Settings, order: str, inputs: list[str], **more: Any) -> dict[str, Any]:
    arguments = {**settings.search, "order": order, "retrain": dict(settings.retrain), "inputs": inputs, **more}
    return {"recipe": "mm-nas", "arguments": arguments}
