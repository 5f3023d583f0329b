"""What a reader returns, and the one error of a file that no reader can use."""

import os
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["READING", "Image", "UnreadableFile"]

READING: ContextVar[str] = ContextVar("reading", default="")
"""Cohort, source and case whose image is being read, with a colon after them: for the log of what is done to it."""


class Image(NamedTuple):
    """Values on a regular grid, channels last, with the place of the grid in the patient.

    Volumes lie in canonical order: `d` runs from feet to head, `h` from front to back, `w` from the patient's right to
    the left, so that `values[k, ..., 0]` drawn with row 0 on top is the usual axial view.

    Attributes:
      values: shape `(h, w, c)` of an image in the plane, `(d, h, w, c)` of a volume; any real dtype.
      spacing: distance of voxel centres in mm, `(dy, dx)` or `(dz, dy, dx)`; None where the file does not say.
      affine: of a volume, the matrix from voxel index `(d, h, w, 1)` to `(x, y, z, 1)` in mm, where x grows to the
        patient's right, y to the front and z to the head (RAS+, as in NIfTI), shape `(4, 4)`; None where unknown.
      unit: "HU", "SUV", "label" of a mask, or "" where values have no unit.
    """

    values: Shaped[np.ndarray, "*space c"]
    spacing: tuple[float, ...] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    unit: str = ""

    def __repr__(self) -> str:
        """Shape, dtype, voxel size and unit, without the values."""
        shape = " x ".join(map(str, self.values.shape))
        size = "" if self.spacing is None else f", {' x '.join(f'{step:.4g}' for step in self.spacing)} mm"
        return f"Image({shape} {self.values.dtype}{size}{f', {self.unit}' if self.unit else ''})"


class UnreadableFile(ValueError):
    """A file that is not what its reader expects: damaged, truncated, of another kind, or too large.

    Attributes:
      path: the file.
      found: what is wrong with it.
      advice: what to do about it.

    Example:
      >>> print(UnreadableFile("ct.nii.gz", "ends after 12 of 40 slices", "Copy it again."))
      ct.nii.gz: ends after 12 of 40 slices. Copy it again.
    """

    def __init__(self, path: str | os.PathLike[str], found: str, advice: str) -> None:
        super().__init__(f"{os.fspath(path)}: {found}. {advice}")
        self.path = Path(path)
        self.found = found
        self.advice = advice

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        # Loader workers send their errors to the main process by pickle, which would call the class with one message.
        return type(self), (self.path, self.found, self.advice)
