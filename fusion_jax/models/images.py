"""Images on their way to a network: kept once read, checked for shape, and scaled by what the training cases say."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fusion_jax.data.cohort import Cohort, Lazy
from fusion_jax.data.image import Image

__all__ = ["ImageScale", "check_shapes", "fit_scale", "remembered", "scaled"]

SAMPLED = 256
"""Training images that a scale is fitted to, and images beyond memory whose shape is looked at, at most."""


class _Remembered:
    """A reader that keeps what it has read, until a share of the memory is used."""

    def __init__(self, read: Callable[[int], Image], budget: "_Budget") -> None:
        self.read, self.budget = read, budget
        self.kept: dict[int, Image] = {}

    def __call__(self, row: int) -> Image:
        found = self.kept.get(row)
        if found is None:
            found = self.read(row)
            if self.budget.take(found.values.nbytes):
                found.values.setflags(write=False)
                self.kept[row] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read for themselves; what is kept here would be copied into each.
        return {"read": self.read, "budget": _Budget(self.budget.left), "kept": {}}


class _Budget:
    """Bytes that may still be kept."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self.left:
                return False
            self.left -= size
            return True

    def __getstate__(self) -> dict[str, int]:
        return {"left": self.left}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["left"])


def remembered(cohort: Cohort, *, gigabytes: float) -> Cohort:
    """The cohort with every image kept in memory once it has been read, as far as the memory goes.

    Parts of the cohort (`take`) share what is kept, so that folds do not read an image twice; nothing is read now.

    Args:
      cohort: any.
      gigabytes: of memory for all images together.
    """
    budget = _Budget(int(gigabytes * 1e9))
    sources = {}
    for name, source in cohort.sources.items():
        if isinstance(source, Lazy) and not isinstance(source.read, _Remembered):
            source = dataclasses.replace(source, read=_Remembered(source.read, budget))
        sources[name] = source
    return dataclasses.replace(cohort, sources=sources)


def check_shapes(cohort: Cohort, names: Sequence[str], *, most: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the images, one a source, before anything is compiled.

    Args:
      cohort: to be trained on.
      names: of image sources.
      most: images that are looked at, spread over the cohort; all unless given.

    Raises:
      ValueError: two images of a source that differ in shape or are not finite; the message names the cases.
    """
    shapes = {}
    for name in names:
        rows = np.flatnonzero(cohort.present[name])
        if not len(rows):
            raise ValueError(f"{cohort.name}: no training case has {name!r}; expected at least one. Remove the source.")
        if most is not None and len(rows) > most:
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
        first = cohort.image(name, int(rows[0])).values.shape
        for row in map(int, rows):
            values = cohort.image(name, row).values
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(
                    f"{cohort.name}: {name} of case {cohort.case_id[row]} holds NaN or infinity; expected finite "
                    "numbers. Clip them in `preprocess`, or mark the image absent for this case."
                )
            if values.shape != first:
                raise ValueError(
                    f"{cohort.name}: {name} of case {cohort.case_id[row]} has shape {values.shape}, that of case "
                    f"{cohort.case_id[int(rows[0])]} {first}; expected one shape for all. Bring them to it in "
                    "`preprocess` (resample, crop_or_pad or resize)."
                )
        shapes[name] = first
    return shapes


@dataclasses.dataclass(frozen=True)
class ImageScale:
    """Mean and standard deviation of every channel of a source over the training cases.

    Attributes:
      centre, spread: one number a channel; the spread of a constant channel is 1.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]


def fit_scale(cohort: Cohort, name: str, rows: Int[np.ndarray, "n"]) -> ImageScale:
    """Scale of a source, from at most 256 of the rows spread evenly.

    Example:
      >>> cohort = Cohort.from_arrays({"ct": np.array([0.0, 2.0]).reshape(2, 1, 1, 1)}, label=[0, 1])
      >>> fit_scale(cohort, "ct", np.arange(2))
      ImageScale(centre=(1.0,), spread=(1.0,))
    """
    rows = rows[cohort.present[name][rows]]
    if len(rows) > SAMPLED:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int))]
    count, total, squares = 0, 0.0, 0.0
    for row in map(int, rows):
        values = np.asarray(cohort.image(name, row).values, np.float64)
        values = values.reshape(-1, values.shape[-1])
        count += len(values)
        total, squares = total + values.sum(axis=0), squares + np.square(values).sum(axis=0)
    centre = np.asarray(total) / count
    variance = np.maximum(np.asarray(squares) / count - np.square(centre), 0.0)
    rounding = np.square(centre) * 1e-12
    spread = np.where(variance > rounding, np.sqrt(variance), 1.0)
    return ImageScale(tuple(centre.tolist()), tuple(spread.tolist()))


def scaled(cohort: Cohort, name: str, scale: ImageScale) -> Cohort:
    """The cohort with a source as `(x - centre) / spread`, float32, when it is read.

    Raises:
      ValueError: another number of channels.
    """
    source = cohort.sources[name]
    reader = _Scaled(cohort, name, scale)
    lazy = Lazy(reader, np.arange(len(cohort)), source.kind, lambda: f"{source.fingerprint()} {scale}")
    return cohort.with_source(name, lazy, cohort.present[name])


@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled:
    cohort: Cohort
    name: str
    scale: ImageScale

    def __call__(self, row: int) -> Image:
        image = self.cohort.image(self.name, row)
        channels = image.values.shape[-1]
        if channels != len(self.scale.centre):
            raise ValueError(f"has {channels} channels; expected {len(self.scale.centre)}, as in training.")
        centre, spread = (np.asarray(part, np.float32) for part in (self.scale.centre, self.scale.spread))
        values = (np.asarray(image.values, np.float32) - centre) / spread
        return image._replace(values=values, unit="")
