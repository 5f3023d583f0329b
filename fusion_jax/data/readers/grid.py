"""The place of a grid in the patient, and the turn that brings any grid into canonical order."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["LPS_TO_RAS", "CanonicalGrid", "canonical_grid", "ras_from_lps"]

# Canonical axes d, h, w: the world axis each lies closest to, and whether it runs with it (to the head is +z; to the
# back and to the left are -y and -x).
WORLD_AXES = ((2, 1), (1, -1), (0, -1))

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From coordinates of DICOM and ITK (x to the left, y to the back, z to the head) to RAS+."""


class CanonicalGrid(NamedTuple):
    """How three stored axes become `(d, h, w)`, without interpolation.

    Attributes:
      axes: stored axis that becomes d, h and w.
      flipped: whether d, h and w then run against the stored order.
      shape: `(d, h, w)`.
      spacing: `(dz, dy, dx)` in mm.
      affine: from `(d, h, w, 1)` to `(x, y, z, 1)` in mm, RAS+.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]

    def arrange(self, values: Shaped[np.ndarray, "i j k ..."]) -> Shaped[np.ndarray, "d h w ..."]:
        """`values` in canonical order, contiguous; later axes stay last."""
        turned = np.transpose(values, (*self.axes, *range(3, values.ndim)))
        return np.ascontiguousarray(turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)])


def canonical_grid(shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]) -> CanonicalGrid:
    """The canonical grid of a stored one: each stored axis goes to the body axis it lies closest to.

    Oblique grids stay oblique: axes are exchanged and turned round, values stay what they are.

    Args:
      shape: lengths of the three stored axes.
      affine: from stored index `(i, j, k, 1)` to mm, RAS+.

    Raises:
      ValueError: if the affine is not finite, has another last row than (0, 0, 0, 1), or flattens the grid.

    Example:
      >>> grid = canonical_grid((64, 48, 20), np.diag([2.0, 2.0, 5.0, 1.0]))
      >>> grid.shape, grid.spacing, grid.axes, grid.flipped
      ((20, 48, 64), (5.0, 2.0, 2.0), (2, 1, 0), (False, True, True))
    """
    affine = np.asarray(affine, np.float64)
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError(f"its affine is {affine.tolist()}; expected finite numbers over the row 0, 0, 0, 1")
    lengths = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
    if not ((lengths > 1e-9) & (lengths < 1e9)).all():
        raise ValueError(f"its affine gives the spacing {lengths.tolist()} mm; expected lengths above zero")
    directions = affine[:3, :3] / lengths
    if abs(np.linalg.det(directions)) < 1e-3:
        raise ValueError("two axes of its affine are parallel; expected three directions")
    axes = max(_PERMUTATIONS, key=lambda order: _closeness(directions, order))
    signs = [sign * directions[world, axis] for axis, (world, sign) in zip(axes, WORLD_AXES, strict=True)]
    flipped = (signs[0] < 0, signs[1] < 0, signs[2] < 0)
    stored_from_canonical = np.zeros((4, 4))
    stored_from_canonical[3, 3] = 1
    for canonical, (axis, flip) in enumerate(zip(axes, flipped, strict=True)):
        stored_from_canonical[axis, canonical] = -1 if flip else 1
        stored_from_canonical[axis, 3] = shape[axis] - 1 if flip else 0
    return CanonicalGrid(
        axes=axes,
        flipped=(bool(flipped[0]), bool(flipped[1]), bool(flipped[2])),
        shape=(shape[axes[0]], shape[axes[1]], shape[axes[2]]),
        spacing=(float(lengths[axes[0]]), float(lengths[axes[1]]), float(lengths[axes[2]])),
        affine=affine @ stored_from_canonical + 0.0,  # + 0.0 turns -0.0 into 0.0
    )


_PERMUTATIONS = ((2, 1, 0), (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1))


def _closeness(directions: Float[np.ndarray, "3 3"], order: tuple[int, int, int]) -> float:
    # Rounded, so that a grid at exactly 45 degrees goes the same way on every machine.
    return round(math.fsum(abs(directions[world, axis]) for axis, (world, _) in zip(order, WORLD_AXES, strict=True)), 9)


def ras_from_lps(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The affine of DICOM and ITK (x to the left, y to the back) as one to RAS+.

    Example:
      >>> np.diag(ras_from_lps(np.eye(4))).tolist()
      [-1.0, -1.0, 1.0, 1.0]
    """
    return LPS_TO_RAS @ affine
