"""A region of a DICOM RT Structure Set as a mask."""

import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.dicom import read_dataset
from fusion_jax.data.readers.grid import LPS_TO_RAS
from fusion_jax.data.readers.guard import reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size
from fusion_jax.data.readers.reference import Grid, Reference, reference_grid

if TYPE_CHECKING:
    import pydicom

__all__ = ["crossings", "peek_rtstruct", "read_rtstruct", "region_names"]

CONTOURS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def region_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the regions (ROI) of a structure set, in the order of the file.

    Raises:
      UnreadableFile: no structure set, or damaged.

    Example:
      >>> region_names("rtstruct.dcm")  # doctest: +SKIP
      ('GTV_Mass', 'GTV_Edema')
    """
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return tuple(name for _, name, _ in _regions(path, dataset))


def read_rtstruct(
    path: str | os.PathLike[str],
    *,
    image: Reference,
    region: str | None = None,
    pattern: str | None = None,
    tolerance: float = 0.25,
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """One region of an RT structure set as a mask of 0 and 1 on the grid of an image.

    A voxel belongs to the region if its centre lies inside an odd number of the contours of its slice (even-odd rule),
    so that an inner contour is a hole, drawn as one or joined to the outer by a channel of no width. A contour belongs
    to the slice nearest to its plane; slices between contours stay empty.

    Args:
      path: the file.
      image: the image on whose grid the mask shall lie: an `Image` or header, or the path of its DICOM series (a
        relative one starts at the folder of `path`).
      region: name of the region, as written.
      pattern: instead of `region`, a regular expression that one name alone contains, in any case.
      tolerance: how far from its slice a contour may lie, as a part of the distance of slices.
      max_voxels: most values the mask may hold.

    Raises:
      ValueError: not exactly one of `region` and `pattern`, or an image without a grid.
      UnreadableFile: damaged, no or several such regions (the names are listed), a region without closed contours, or
        contours beside the slices or outside of the image.
      ImportError: pydicom is not installed.

    Example:
      >>> mask = read_rtstruct("rtstruct.dcm", pattern="^gtv.*mass", image="ct")  # doctest: +SKIP
      >>> mask.values.dtype, mask.unit  # doctest: +SKIP
      (dtype('uint8'), 'label')

    References:
      DICOM PS3.3 C.8.8.6.
    """
    _check_choice(region, pattern)
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        number, name, uid = _chosen(path, dataset, region, pattern)
    grid = reference_grid(path, image, uid)
    check_size(path, grid.shape, max_voxels)
    with reading(path):
        contours = _contours(path, dataset, number, name)
        values = _filled(path, name, contours, grid, tolerance)
    return Image(np.ascontiguousarray(values[..., None]), grid.spacing, grid.affine, "label")


def peek_rtstruct(
    path: str | os.PathLike[str],
    *,
    image: Reference,
    region: str | None = None,
    pattern: str | None = None,
    tolerance: float = 0.25,
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_rtstruct` with the same arguments would return, without filling its contours.

    Raises:
      ValueError, UnreadableFile, ImportError: see `read_rtstruct`.
    """
    del tolerance
    _check_choice(region, pattern)
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        _, _, uid = _chosen(path, dataset, region, pattern)
    grid = reference_grid(path, image, uid)
    check_size(path, grid.shape, max_voxels)
    return ImageHeader((*grid.shape, 1), np.dtype(np.uint8), grid.spacing, grid.affine, "label")


def _check_choice(region: str | None, pattern: str | None) -> None:
    if (region is None) == (pattern is None):
        raise ValueError(f"region is {region!r} and pattern is {pattern!r}; expected one of them to choose a region.")
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}.") from error


def _regions(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> list[tuple[int, str, object]]:
    """Number, name and FrameOfReferenceUID of every region."""
    if dataset.get("Modality") != "RTSTRUCT":
        raise UnreadableFile(path, f"is {dataset.get('Modality')}, not a structure set (RTSTRUCT)", "Give an RTSTRUCT.")
    if not dataset.get("StructureSetROISequence"):
        raise UnreadableFile(
            path, "lists no regions (StructureSetROISequence)", "It is empty or truncated: export it again."
        )
    return [
        (int(item.ROINumber), str(item.get("ROIName") or ""), item.get("ReferencedFrameOfReferenceUID"))
        for item in dataset.StructureSetROISequence
    ]


def _chosen(
    path: str | os.PathLike[str], dataset: "pydicom.Dataset", region: str | None, pattern: str | None
) -> tuple[int, str, object]:
    regions = _regions(path, dataset)
    if pattern is None:
        found = [one for one in regions if one[1] == region]
    else:
        found = [one for one in regions if re.search(pattern, one[1], re.IGNORECASE)]
    if len(found) != 1:
        wanted = f"named {region!r}" if pattern is None else f"that match {pattern!r}"
        which = f" ({', '.join(repr(one[1]) for one in found)})" if found else ""
        raise UnreadableFile(
            path,
            f"has {len(found)} regions {wanted}{which}; it holds {', '.join(repr(one[1]) for one in regions)}",
            "Choose one by its name with `region`.",
        )
    return found[0]


def _contours(
    path: str | os.PathLike[str], dataset: "pydicom.Dataset", number: int, name: str
) -> list[Float[np.ndarray, "n 3"]]:
    """Contours of a region, in mm, RAS+."""
    contours = []
    for item in dataset.get("ROIContourSequence") or []:
        if int(item.ReferencedROINumber) != number:
            continue
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType"))
            if kind not in CONTOURS:
                raise UnreadableFile(
                    path, f"region {name!r} holds a contour of type {kind}", "Expected closed contours (CLOSED_PLANAR)."
                )
            points = np.array(contour.get("ContourData"), np.float64)
            if points.ndim != 1 or points.size % 3 or points.size < 9 or not np.isfinite(points).all():
                raise UnreadableFile(
                    path,
                    f"region {name!r} holds a contour of {points.size} coordinates",
                    "Expected x, y, z of at least three points.",
                )
            contours.append(points.reshape(-1, 3) @ LPS_TO_RAS[:3, :3])
    if not contours:
        raise UnreadableFile(
            path, f"region {name!r} holds no contours", "Choose another region, or leave the mask out."
        )
    return contours


def _filled(
    path: str | os.PathLike[str], name: str, contours: list[Float[np.ndarray, "n 3"]], grid: Grid, tolerance: float
) -> UInt8[np.ndarray, "d h w"]:
    to_index = np.linalg.inv(grid.affine)
    indices = [points @ to_index[:3, :3].T + to_index[:3, 3] for points in contours]
    # The axis of the grid that contours stand across: along it, the points of a contour lie together.
    spread = np.max([np.ptp(points, axis=0) for points in indices], axis=0)
    axis = int(np.argmin(spread))
    if spread[axis] > 2 * tolerance:
        raise UnreadableFile(
            path,
            f"region {name!r} has contours that cross {spread[axis]:.2f} slices of the image",
            "Give the series that it was drawn on: contours lie in its slices.",
        )
    plane = [other for other in range(3) if other != axis]
    size = tuple(grid.shape[other] for other in plane)
    counts: dict[int, Any] = {}
    for points in indices:
        place = float(points[:, axis].mean())
        slot = round(place)
        if abs(place - slot) > tolerance:
            raise UnreadableFile(
                path,
                f"region {name!r} has a contour at slice {place:.2f} of the image, between two slices",
                "Give the series that it was drawn on, or allow more with `tolerance`.",
            )
        if not 0 <= slot < grid.shape[axis]:
            raise UnreadableFile(
                path,
                f"region {name!r} has a contour at slice {slot} of an image with slices 0 to {grid.shape[axis] - 1}",
                "Give the series that it was drawn on.",
            )
        counts[slot] = counts.get(slot, 0) + crossings(points[:, plane], (size[0], size[1]))
    mask = np.zeros(grid.shape, np.uint8)
    across = np.moveaxis(mask, axis, 0)
    for slot, count in counts.items():
        across[slot] = np.cumsum(count, axis=1)[:, :-1] % 2
    if not mask.any():
        raise UnreadableFile(
            path, f"region {name!r} holds no voxel centre of the image", "Give the series that it was drawn on."
        )
    return mask


def crossings(points: Float[np.ndarray, "n 2"], shape: tuple[int, int]) -> Int[np.ndarray, "h places"]:
    """How many edges of a closed polygon lie between each pixel centre of a row and the one before it.

    The running sum along a row counts the edges to the left of a centre; where it is odd, the centre is inside. Counts
    of several polygons may be added. An edge belongs to the rows from its upper end (included) to its lower (excluded),
    and a centre on an edge to the right of it, so that polygons which share an edge share no centre.

    Args:
      points: corners as (row, column) in pixels, whole numbers at the centres.
      shape: rows and columns of the image.

    Example:
      >>> square = np.array([[0.5, 0.5], [0.5, 2.5], [2.5, 2.5], [2.5, 0.5]])
      >>> (np.cumsum(crossings(square, (4, 4)), axis=1)[:, :-1] % 2).tolist()
      [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    rows, columns = shape
    counts = np.zeros((rows, columns + 1), np.int64)
    ends = np.roll(points, -1, axis=0)
    for (row_a, column_a), (row_b, column_b) in zip(points, ends, strict=True):
        if row_a > row_b:
            row_a, column_a, row_b, column_b = row_b, column_b, row_a, column_a
        # Clipped to the image before they become integers: a damaged file may hold any number.
        first, last = (int(np.clip(np.ceil(row), 0, rows)) for row in (row_a, row_b))
        if first >= last:
            continue
        crossed = np.arange(first, last)
        at = column_a + (crossed - row_a) * (column_b - column_a) / (row_b - row_a)
        np.add.at(counts, (crossed, np.clip(np.ceil(at), 0, columns).astype(int)), 1)
    return counts
