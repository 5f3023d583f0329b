"""What is measured on images inside a mask, case by case: volume and first-order statistics."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Cohort, Lazy
from fusion_jax.data.image import Image

__all__ = ["MEASUREMENTS", "Measurement", "Measurements", "measurable", "measure"]

Measurement = Literal[
    "log_volume", "volume", "mean", "deviation", "minimum", "maximum", "median", "skewness", "kurtosis"
]

MEASUREMENTS: tuple[Measurement, ...] = ("log_volume", "mean", "deviation", "maximum")
"""Those that are taken unless others are named."""

OF_THE_MASK = ("log_volume", "volume")

KEPT = 4096
"""Cases and pairs of image and mask that are remembered, so that every fold does not read the images again."""


class Measurements:
    """Measurements of the cases of cohorts, each taken once as long as the process lives."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._kept: OrderedDict[Any, dict[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, cohort: Cohort, row: int, mask: str, image: str | None) -> dict[str, float]:
        """Everything that can be measured on one case, by name."""
        sources = [cohort.sources[name] for name in (mask, image) if name is not None]
        keys = [
            (source.read, int(source.rows[row]))
            for source in sources
            if isinstance(source, Lazy) and isinstance(source.read, Hashable)
        ]
        key = tuple(keys) if len(keys) == len(sources) else None
        if key is not None:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
        found = _of_case(cohort, row, mask, image)
        if key is not None:
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found


_measured = Measurements()


def measurable(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """Masks of the cohort, and the images on the grid of each, by the first case that has both.

    Example:
      >>> ball = np.pad(np.ones((2, 2, 2, 1)), [(1, 1)] * 3 + [(0, 0)])[None]
      >>> from fusion_jax.data.cohort import Arrays
      >>> measurable(Cohort.from_arrays({"ct": ball, "tumour": Arrays(ball, "mask")}, label=[1]))
      {'tumour': ('ct',)}
    """
    masks = [name for name, source in cohort.sources.items() if source.kind == "mask"]
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    return {mask: tuple(image for image in images if _same_grid(cohort, mask, image)) for mask in masks}


def measure(
    cohort: Cohort,
    rows: Int[np.ndarray, "n"],
    names: Sequence[Measurement] = MEASUREMENTS,
    *,
    sources: Sequence[str] = (),
) -> tuple[Float[np.ndarray, "n m"], tuple[str, ...]]:
    r"""Measurements of cases: of every mask its volume, of every image on its grid the values inside it.

    Volumes are in mm\ :sup:`3` where the image has a spacing and in voxels where not; `log_volume` is the natural
    logarithm. Statistics are of the first channel, `deviation` with n - 1, `kurtosis` less 3.

    Args:
      cohort: with a mask source; whatever is not 0 is inside.
      rows: of the cohort.
      names: what to measure.
      sources: images to measure on; all by default.

    Returns:
      values: NaN where a case has no mask, no image or nothing inside.
      names: of the columns, such as `mask:log_volume` and `pet:maximum`.

    Raises:
      ValueError: the cohort has no mask, or a named image is on the grid of none.

    Example:
      >>> ball = np.pad(np.ones((2, 2, 2, 1)), [(1, 1)] * 3 + [(0, 0)])[None]
      >>> from fusion_jax.data.cohort import Arrays
      >>> cohort = Cohort.from_arrays({"ct": 5 * ball, "tumour": Arrays(ball, "mask")}, label=[1])
      >>> values, columns = measure(cohort, np.array([0]), ("volume", "mean"))
      >>> columns, values.tolist()
      (('tumour:volume', 'ct:mean'), [[8.0, 5.0]])
    """
    pairs = measurable(cohort)
    if not pairs:
        raise ValueError(
            f"{cohort.name}: no source of kind 'mask', inside which something could be measured. Add the mask of the "
            "lesion as a source, give a table of measurements, or choose models without measurements."
        )
    for name in sources:
        if not any(name in images for images in pairs.values()):
            raise ValueError(
                f"{cohort.name}: {name!r} is no image on the grid of a mask; expected one of "
                f"{', '.join(sorted({image for images in pairs.values() for image in images})) or 'none'}."
            )
    columns: list[str] = []
    values: list[list[float]] = []
    for mask, images in pairs.items():
        shown = [image for image in images if not sources or image in sources]
        single = len(pairs) == 1
        own = [name for name in names if name in OF_THE_MASK]
        columns += [f"{mask}:{name}" for name in own]
        values += [[_value(cohort, int(row), mask, None, name) for row in rows] for name in own]
        for image in shown:
            inside = [name for name in names if name not in OF_THE_MASK]
            columns += [f"{image}:{name}" if single else f"{image} in {mask}:{name}" for name in inside]
            values += [[_value(cohort, int(row), mask, image, name) for row in rows] for name in inside]
    return np.array(values, float).reshape(len(columns), len(rows)).T, tuple(columns)


def _value(cohort: Cohort, row: int, mask: str, image: str | None, name: str) -> float:
    there = all(cohort.present[source][row] for source in (mask, image) if source is not None)
    return _measured(cohort, row, mask, image)[name] if there else float("nan")


def _of_case(cohort: Cohort, row: int, mask: str, image: str | None) -> dict[str, float]:
    from scipy import stats

    region = cohort.image(mask, row)
    inside = np.asarray(region.values)[..., 0] > 0
    count = int(inside.sum())
    voxel = float(np.prod(region.spacing)) if region.spacing is not None else 1.0
    nan = float("nan")
    if image is None:
        return {"volume": count * voxel, "log_volume": float(np.log(count * voxel)) if count else nan}
    shown = np.asarray(cohort.image(image, row).values)[..., 0]
    if shown.shape != inside.shape:
        raise ValueError(
            f"{cohort.name}: case {cohort.case_id[row]}: {image} has shape {shown.shape}, {mask} {inside.shape}; "
            "expected one grid. Put the mask onto the image in `preprocess`."
        )
    values = shown[inside].astype(np.float64)
    varied = len(values) > 1 and np.ptp(values) > 0
    return {
        "mean": float(values.mean()) if count else nan,
        "deviation": float(values.std(ddof=1)) if count > 1 else nan,
        "minimum": float(values.min()) if count else nan,
        "maximum": float(values.max()) if count else nan,
        "median": float(np.median(values)) if count else nan,
        "skewness": float(stats.skew(values)) if varied else nan,
        "kurtosis": float(stats.kurtosis(values)) if varied else nan,
    }


def _same_grid(cohort: Cohort, mask: str, image: str) -> bool:
    both = np.flatnonzero(cohort.present[mask] & cohort.present[image])
    if not len(both):
        return False
    first, second = (cohort.image(name, int(both[0])) for name in (mask, image))
    if first.values.shape[:-1] != second.values.shape[:-1]:
        return False
    return _same_place(first, second)


def _same_place(first: Image, second: Image) -> bool:
    if first.affine is None or second.affine is None:
        return True
    return bool(np.allclose(first.affine, second.affine, atol=1e-3))
