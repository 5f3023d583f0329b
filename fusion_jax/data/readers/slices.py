"""From positions of DICOM slices to one regular grid, or a refusal that names the slice."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers.grid import ras_from_lps

__all__ = ["Plane", "Stack", "stack_planes"]

DIRECTION_TOLERANCE = 1e-3
"""Largest difference of direction cosines, which scanners write with 4 to 6 digits."""


class Plane(NamedTuple):
    """Place of one slice, in DICOM's coordinates (mm; x to the left, y to the back, z to the head).

    Attributes:
      name: of the file, or of the frame in it.
      position: of the centre of the first pixel.
      along_row: direction in which the column index grows.
      along_column: direction in which the row index grows.
      spacing: `(dy, dx)` in mm.
      rows: of the slice.
      columns: of the slice.
    """

    name: str
    position: tuple[float, float, float]
    along_row: tuple[float, float, float]
    along_column: tuple[float, float, float]
    spacing: tuple[float, float]
    rows: int
    columns: int


class Stack(NamedTuple):
    """Order of slices, and the grid they make: axes (slice, row, column), affine in RAS+."""

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]


def stack_planes(
    path: str, planes: Sequence[Plane], *, thickness: float | None, tolerance_mm: float, gaps: bool = False
) -> Stack:
    """Order slices by their position along the normal and check that they make a regular grid.

    Args:
      path: of the file or folder, for messages.
      planes: the slices in any order.
      thickness: distance of slices in mm where there is one slice only; None where it is not known.
      tolerance_mm: by how much distances of slices may differ from each other, and slices lie beside the normal.
      gaps: leave out no slice; with True, places without a slice are allowed and counted in the shape, and `order`
        holds -1 for them.

    Raises:
      UnreadableFile: mixed sizes, orientations or spacings, two slices in one place, missing or unevenly spaced
        slices, slices that are shifted against each other (gantry tilt), or no distance for a single slice.
    """
    first = planes[0]
    row, column, normal = _axes(path, first)
    for other in planes[1:]:
        _check_same(path, first, other)
    positions = np.array([plane.position for plane in planes], np.float64)
    if not np.isfinite(positions).all():
        raise UnreadableFile(path, "has a slice without a finite position", "Export the series again.")
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    if len(planes) == 1:
        step = thickness
        if step is None or not (math.isfinite(step) and step > 0):
            raise UnreadableFile(path, "is one slice and gives no thickness", "Add the other slices of the series.")
        slots = np.zeros(1, int)
    else:
        step, slots = _steps(path, planes, depth[order], order, tolerance_mm, thickness if gaps else None, gaps)
        _check_tilt(path, positions[order], normal, tolerance_mm)
    filled = np.full(int(slots[-1]) + 1, -1)
    filled[slots] = order
    dy, dx = first.spacing
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * step, column * dy, row * dx], axis=1)
    affine[:3, 3] = positions[order[0]]
    return Stack(tuple(filled.tolist()), (len(filled), first.rows, first.columns), ras_from_lps(affine))


def _axes(path: str, plane: Plane) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, column = np.array(plane.along_row, np.float64), np.array(plane.along_column, np.float64)
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column), 1 + abs(row @ column)])
    if not (np.abs(lengths - 1) < 10 * DIRECTION_TOLERANCE).all():
        raise UnreadableFile(
            path,
            f"{plane.name} has ImageOrientationPatient {[*plane.along_row, *plane.along_column]}, which are no two "
            "directions at right angles",
            "Export the series again.",
        )
    if not all(math.isfinite(length) and length > 0 for length in plane.spacing):
        raise UnreadableFile(path, f"{plane.name} has the spacing {plane.spacing}", "Correct its PixelSpacing.")
    row, column = row / lengths[0], column / lengths[1]
    return row, column, np.cross(row, column)


def _check_same(path: str, first: Plane, other: Plane) -> None:
    turned = np.abs(
        np.array([*first.along_row, *first.along_column]) - np.array([*other.along_row, *other.along_column])
    )
    advice = "Take slices of one acquisition: a localiser or a reformat belongs in a folder of its own."
    if not turned.max() < DIRECTION_TOLERANCE:
        raise UnreadableFile(path, f"{first.name} and {other.name} lie in different directions", advice)
    if (first.rows, first.columns) != (other.rows, other.columns):
        raise UnreadableFile(
            path,
            f"{first.name} is {first.rows} x {first.columns} pixels, {other.name} {other.rows} x {other.columns}",
            advice,
        )
    if not np.allclose(first.spacing, other.spacing, rtol=1e-3):
        raise UnreadableFile(
            path, f"{first.name} has pixels of {first.spacing} mm, {other.name} of {other.spacing} mm", advice
        )


def _steps(
    path: str,
    planes: Sequence[Plane],
    depth: np.ndarray,
    order: np.ndarray,
    tolerance_mm: float,
    thickness: float | None,
    gaps: bool,
) -> tuple[float, np.ndarray]:
    """Distance of slices and the place of each in the grid."""
    steps = np.diff(depth)
    names = [planes[i].name for i in order]
    close = np.flatnonzero(steps <= tolerance_mm)
    if len(close):
        at = int(close[0])
        raise UnreadableFile(
            path,
            f"{names[at]} and {names[at + 1]} lie in the same place ({len(close)} such pairs)",
            "Keep one image a place: repeated time points, echoes or copies belong in folders of their own.",
        )
    usual = thickness if thickness is not None else float(np.median(steps) if not gaps else steps.min())
    counts = np.rint(steps / usual).astype(int)
    if gaps:
        uneven = np.abs(steps - counts * usual) > tolerance_mm * np.maximum(counts, 1)
        slots = np.concatenate([[0], np.cumsum(counts)])
        if not uneven.any() and (counts > 0).all():
            return float((depth[-1] - depth[0]) / slots[-1]), slots
    else:
        uneven = np.abs(steps - usual) > tolerance_mm
        if not uneven.any():
            return float((depth[-1] - depth[0]) / len(steps)), np.arange(len(planes))
    at = int(np.flatnonzero(uneven)[0])
    missing = counts[at] - 1
    looks = abs(steps[at] - counts[at] * usual) <= tolerance_mm * max(counts[at], 1) and missing > 0
    raise UnreadableFile(
        path,
        f"{names[at]} and {names[at + 1]} are {steps[at]:.3f} mm apart, the other slices {usual:.3f} mm"
        + (f": {missing} seem to be missing" if looks else ""),
        "Add the missing slices, or resample slices of varying distance to a regular grid before. Rounded positions "
        "are accepted with a larger `tolerance_mm`.",
    )


def _check_tilt(path: str, positions: np.ndarray, normal: np.ndarray, tolerance_mm: float) -> None:
    moved = positions - positions[0]
    beside = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1)
    along = abs(float(moved[-1] @ normal))
    if beside.max() > tolerance_mm:
        angle = math.degrees(math.atan2(float(beside[-1]), along))
        raise UnreadableFile(
            path,
            f"its slices are shifted against each other by up to {beside.max():.2f} mm (gantry tilt of {angle:.1f}°)",
            "Resample it to a grid at right angles first, for example with dcm2niix.",
        )
