"""Images of any size on the grid of a detector, with their boxes, and detections back in the pixels of the image."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Boxes, Cohort, Lazy, Source
from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import resize
from fusion_jax.data.images.pipeline import IMAGENET_MEAN, IMAGENET_STD
from fusion_jax.data.moved_boxes import move_boxes
from fusion_jax.detection.columns import ClinicalVector
from fusion_jax.wording import counted

__all__ = ["CLINICAL", "IMAGE", "DetectorInputs", "at_size", "box_image", "fit_window", "own_boxes", "to_original"]

IMAGE, CLINICAL = "image", "clinical"
"""Names of the sources of a detector, whatever the cohort calls them."""

FULL_SCALES = ((0.0, 1.0), (0.0, 255.0), (0.0, 4095.0), (0.0, 65535.0))
"""Of fractions and of 8, 12 and 16 bits."""

SAMPLED = 256
"""Training images whose values are looked at, at most."""


class SizedReader:
    """Images of a source at one size, kept once they were read; parts of a cohort (`take`) share what is kept."""

    def __init__(self, cohort: Cohort, name: str, size: tuple[int, int], gigabytes: float) -> None:
        self.cohort, self.name, self.size = cohort, name, size
        self.left = int(gigabytes * 1e9)
        self.kept: dict[int, Image] = {}
        self.shapes: dict[int, tuple[int, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read for themselves; what is kept here would be copied into each.
        return {**self.__dict__, "kept": {}}

    def __call__(self, row: int) -> Image:
        found = self.kept.get(row)
        if found is not None:
            return found
        image = self.cohort.image(self.name, row)
        _check_plane(image)
        self.shapes[row] = (int(image.values.shape[0]), int(image.values.shape[1]))
        sized = resize(Image(image.values), size=self.size)
        sized = sized._replace(values=np.asarray(sized.values, np.float32))
        if sized.values.nbytes <= self.left:
            self.left -= sized.values.nbytes
            sized.values.setflags(write=False)
            self.kept[row] = sized
        return sized


def at_size(cohort: Cohort, name: str, size: tuple[int, int], *, gigabytes: float = 4.0) -> Cohort:
    """The cohort with one source of images resized when it is read, and kept; its boxes stay as they are.

    The aspect is not kept: every image fills the grid. A cohort that has gone through here is returned as it is, so
    that trainings on its parts read every image once.

    Args:
      cohort: with the source.
      name: of the source.
      size: rows and columns.
      gigabytes: of memory for what is kept.
    """
    source = cohort.sources[name]
    reader = source.read if isinstance(source, Lazy) else None
    if isinstance(reader, SizedReader) and reader.size == tuple(size):
        return cohort
    sized = Lazy(
        SizedReader(cohort, name, (int(size[0]), int(size[1])), gigabytes),
        np.arange(len(cohort)),
        "image",
        functools.partial(_identity, source, f"resized to {tuple(size)}"),
    )
    return cohort.with_source(name, sized, cohort.present[name])


def own_boxes(cohort: Cohort) -> Sequence[Boxes]:
    """Boxes of every case; none of any case where the cohort has no boxes."""
    if cohort.boxes is None:
        return [Boxes(np.zeros((0, 4)), np.zeros(0, np.int64))] * len(cohort)
    return cohort.boxes


def box_image(cohort: Cohort, image: str | None = None, *, boxes: bool = True) -> str:
    """The source of images that a detector reads.

    Args:
      cohort: with boxes.
      image: name of the source; by default the one that the boxes lie on, or the only one.
      boxes: whether boxes are needed, as for training.

    Raises:
      ValueError: no boxes, no such image, or several to choose among; the message names them.
    """
    if boxes and cohort.boxes is None:
        raise ValueError(
            f"{cohort.name}: no boxes; a detector learns from boxes around findings. Name their table in the cohort "
            "file ([boxes] file = ...), or give annotations as COCO's JSON (--coco)."
        )
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    if image is not None and image not in images:
        raise ValueError(f"{cohort.name}: no image {image!r}; it has {', '.join(images) or 'none'}.")
    if boxes and image is not None and cohort.boxes_of not in ("", image):
        raise ValueError(f"{cohort.name}: the boxes lie on {cohort.boxes_of!r}, not on {image!r}.")
    found = image or cohort.boxes_of
    if not found and len(images) == 1:
        found = images[0]
    if not found:
        raise ValueError(
            f"{cohort.name}: {counted(len(images), 'image')} a case ({', '.join(images) or 'none'}); expected one, or "
            'the argument `image` that names it, as in {"image": "xray"}.'
        )
    return found


def fit_window(cohort: Cohort, name: str, rows: Int[np.ndarray, "n"]) -> tuple[float, float]:
    """The values that become 0 and 1: the smallest full scale that holds the images of the training cases.

    Full scales are 1, and those of 8, 12 and 16 bits; images with negative or larger values are scaled from their
    smallest to their largest value. At most 256 images are looked at.

    Args:
      cohort: with the images.
      name: of their source.
      rows: of the training cases.

    Example:
      >>> cohort = Cohort.from_arrays({"xray": np.full((2, 4, 4, 1), 200.0)})
      >>> fit_window(cohort, "xray", np.arange(2))
      (0.0, 255.0)
    """
    if len(rows) > SAMPLED:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int))]
    values = [cohort.image(name, int(row)).values for row in rows]
    low, high = (float(getattr(np, end)([getattr(one, end)() for one in values])) for end in ("min", "max"))
    for scale in FULL_SCALES:
        if low >= scale[0] and high <= scale[1]:
            return scale
    return low, high if high > low else low + 1.0


def to_original(
    boxes: Float[np.ndarray, "n 4"], size: tuple[int, int], shape: tuple[int, int]
) -> Float[np.ndarray, "n 4"]:
    """Boxes on the grid of a detector in the pixels of the image that was resized to it.

    Args:
      boxes: on the grid.
      size: rows and columns of the grid.
      shape: rows and columns of the image.

    Example:
      >>> to_original(np.array([[8.0, 8.0, 16.0, 16.0]]), (32, 32), (64, 128)).tolist()
      [[32.0, 16.0, 64.0, 32.0]]
    """
    scale = np.tile([shape[1] / size[1], shape[0] / size[0]], 2)
    return np.clip(np.asarray(boxes, np.float64) * scale, 0, np.tile([shape[1], shape[0]], 2))


@dataclasses.dataclass(frozen=True)
class DetectorInputs:
    """How the cases of a cohort enter a detector, as it was fitted to the training cases.

    Attributes:
      image: source of the cohort.
      size: rows and columns of the grid.
      window: values that become 0 and 1 before ImageNet's mean and standard deviation.
      clinical: the clinical vector; None for a detector without one.
      classes: of the boxes.
    """

    image: str
    size: tuple[int, int]
    window: tuple[float, float]
    clinical: ClinicalVector | None
    classes: tuple[str, ...]

    def apply(self, cohort: Cohort, train: Sequence[str] = (), *, boxes: bool = True, gigabytes: float = 4.0) -> Cohort:
        """A cohort with the sources `image` and, if the detector reads it, `clinical`, ready for batches.

        Every case needs its image. Labels and times are out of reach afterwards, so that their gaps refuse nobody.

        Args:
          cohort: any with these sources.
          train: ids of the cases that were fitted on, asked for only where one is among the cohort's.
          boxes: whether boxes are moved along; left out otherwise.
          gigabytes: of memory for images, where the cohort does not keep them already.

        Raises:
          ValueError: a case without image, an image that is none, columns that are missing.
        """
        _check_present(cohort, self.image)
        rows = np.arange(len(cohort))
        cohort = at_size(cohort, self.image, self.size, gigabytes=gigabytes)
        moved = self._moved(cohort) if boxes and cohort.boxes is not None else None
        source = cohort.sources[self.image]
        sources: dict[str, Any] = {
            IMAGE: Lazy(
                _Scaled(cohort, self.image, self.window),
                rows,
                "image",
                functools.partial(_identity, source, f"from {self.window}"),
            )
        }
        present = {IMAGE: np.ones(len(cohort), bool)}
        roles = {column: role for column, role in cohort.roles.items() if role in ("input", "group")}
        found = dataclasses.replace(
            cohort, sources=sources, present=present, roles=roles, boxes=moved, boxes_of=IMAGE, box_classes=self.classes
        )
        if self.clinical is None:
            return found
        values, there = self.clinical.values(cohort, rows, train)
        return found.with_source(CLINICAL, np.where(there[:, None], values, np.float32(0)), there)

    def shape(self, cohort: Cohort, row: int) -> tuple[int, int]:
        """Rows and columns of the image of a case as the cohort has it; `cohort` went through `at_size`."""
        source: Any = cohort.sources[self.image]
        place = int(source.rows[row])
        if place not in source.read.shapes:
            cohort.image(self.image, row)  # and not the reader alone: its errors do not know the case
        return source.read.shapes[place]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "image": self.image,
            "size": list(self.size),
            "window": list(self.window),
            "clinical": None if self.clinical is None else self.clinical.to_json(),
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DetectorInputs":
        """The inputs that `to_json` described."""
        clinical = value["clinical"]
        (rows, columns), (low, high) = value["size"], value["window"]
        return cls(
            value["image"],
            (int(rows), int(columns)),
            (float(low), float(high)),
            None if clinical is None else ClinicalVector.from_json(clinical),
            tuple(value["classes"]),
        )

    def _moved(self, cohort: Cohort) -> list[Boxes]:
        codes = [self._code(cohort, name) for name in cohort.box_classes]
        moved = []
        for row, own in enumerate(own_boxes(cohort)):
            own = Boxes(np.asarray(own.corners, float), np.array([codes[k] for k in own.classes], np.int64))
            if len(own.corners):
                own = move_boxes(own, [{"op": "resize", "size": list(self.size)}], self.shape(cohort, row))
            moved.append(own)
        return moved

    def _code(self, cohort: Cohort, name: str) -> int:
        if name not in self.classes:
            raise ValueError(
                f"{cohort.name}: boxes of class {name!r}; the detector knows {', '.join(self.classes)}. Leave the "
                "boxes of other classes out."
            )
        return self.classes.index(name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled:
    """Images as three channels on ImageNet's scale."""

    cohort: Cohort
    name: str
    window: tuple[float, float]

    def __call__(self, row: int) -> Image:
        low, high = self.window
        values = np.clip((self.cohort.image(self.name, row).values - np.float32(low)) / np.float32(high - low), 0, 1)
        return Image((values - _imagenet()[0]) / _imagenet()[1])


@functools.cache
def _imagenet() -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)


def _identity(source: Source, text: str) -> str:
    return f"{source.fingerprint()} {text}"


def _check_plane(image: Image) -> None:
    shape = image.values.shape
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(
            f"has the shape {shape}; expected an image in the plane, (h, w, 1) or (h, w, 3). Take a slice or a "
            "projection, or drop channels, in `preprocess`."
        )
    if image.values.dtype.kind == "f" and not np.isfinite(image.values).all():
        raise ValueError("holds NaN or infinity; expected finite numbers. Clip them in `preprocess`.")


def _check_present(cohort: Cohort, name: str) -> None:
    if name not in cohort.sources:
        raise ValueError(
            f"{cohort.name}: no source {name!r}, which the detector reads; it has {', '.join(cohort.sources)}."
        )
    lacking = np.flatnonzero(~cohort.present[name])
    if len(lacking):
        raise ValueError(
            f"{cohort.name}: case {cohort.case_id[int(lacking[0])]} has no {name!r} ({len(lacking)} such cases); a "
            "detector looks at an image. Leave these cases out."
        )
