"""A DICOM Segmentation as a mask."""

import itertools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.dicom import (
    decoded,
    frame_shape,
    functional_group,
    functional_plane,
    numbers,
    read_dataset,
)
from fusion_jax.data.readers.grid import LPS_TO_RAS, CanonicalGrid, canonical_grid
from fusion_jax.data.readers.guard import reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size
from fusion_jax.data.readers.reference import Grid, Reference, reference_grid
from fusion_jax.data.readers.slices import Plane, stack_planes

if TYPE_CHECKING:
    import pydicom

__all__ = ["peek_dicom_seg", "read_dicom_seg", "segment_names"]


def segment_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Number and label of every segment of a DICOM Segmentation.

    Raises:
      UnreadableFile: no DICOM Segmentation, or damaged.

    Example:
      >>> segment_names("seg.dcm")  # doctest: +SKIP
      {1: 'Liver', 2: 'Tumour'}
    """
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return _segments(path, dataset)


def read_dicom_seg(
    path: str | os.PathLike[str],
    *,
    segment: int | str | None = None,
    image: Reference | None = None,
    tolerance_mm: float = 0.1,
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """One segment of a DICOM Segmentation: 0 and 1 (uint8) where it is binary, 0 to 1 (float32) where fractional.

    Args:
      path: the file.
      segment: number or label; may be left out where there is one.
      image: the image on whose grid the mask shall lie: an `Image` or header, or the path of its DICOM series (a
        relative one starts at the folder of `path`). Without it, the grid reaches from the first to the last frame of
        the file, and slices that it leaves out are empty.
      tolerance_mm: of the positions of frames.
      max_voxels: most values the mask may hold.

    Raises:
      UnreadableFile: damaged, no or several such segments, frames beside the grid or at distances of no grid.
      ImportError: pydicom is not installed.

    Example:
      >>> read_dicom_seg("seg.dcm", segment="Tumour", image="ct").unit  # doctest: +SKIP
      'label'

    References:
      DICOM PS3.3 A.51 and C.8.20.
    """
    dataset = read_dataset(path, pixels=True)
    with reading(path):
        layout = _layout(path, dataset, segment, image, tolerance_mm, max_voxels)
        header = layout.header
        frames = decoded(path, dataset).reshape(frame_shape(path, dataset, max_voxels))[..., 0]
        fractional = header.dtype.kind == "f"
        maximum = int(dataset.get("MaximumFractionalValue") or 0) if fractional else 1
        own = np.zeros(layout.stack, header.dtype)
        for frame, slot in layout.slots:
            if maximum < 1 or frames[frame].max() > maximum:
                raise UnreadableFile(
                    path,
                    f"holds {frames[frame].max()} where {maximum} is the most",
                    "The file is damaged: export it again.",
                )
            own[slot] = frames[frame] / np.float32(maximum) if fractional else frames[frame]
        values = np.zeros(header.shape, header.dtype)
        values[layout.window] = layout.grid.arrange(own[..., None])
    return Image(values, header.spacing, header.affine, header.unit)


def peek_dicom_seg(
    path: str | os.PathLike[str],
    *,
    segment: int | str | None = None,
    image: Reference | None = None,
    tolerance_mm: float = 0.1,
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_dicom_seg` with the same arguments would return, without reading pixels.

    Raises:
      UnreadableFile, ImportError: see `read_dicom_seg`.
    """
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return _layout(path, dataset, segment, image, tolerance_mm, max_voxels).header


def _segments(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> dict[int, str]:
    if dataset.get("Modality") != "SEG":
        raise UnreadableFile(path, f"is {dataset.get('Modality')}, not a segmentation (SEG)", "Give a DICOM SEG.")
    if not dataset.get("SegmentSequence"):
        raise UnreadableFile(path, "lists no segments (SegmentSequence)", "It is empty or truncated: export it again.")
    return {int(item.SegmentNumber): str(item.get("SegmentLabel") or "") for item in dataset.SegmentSequence}


def _chosen(path: str | os.PathLike[str], segments: dict[int, str], segment: int | str | None) -> int:
    listed = ", ".join(f"{number} {label!r}" for number, label in segments.items())
    if segment is None:
        matches = list(segments)
    elif isinstance(segment, str):
        matches = [number for number, label in segments.items() if label == segment]
    else:
        matches = [number for number in segments if number == segment]
    if len(matches) != 1:
        what = "segments" if segment is None else f"segments {segment!r}"
        raise UnreadableFile(path, f"holds {len(matches)} {what}; it has {listed}", "Name one with `segment`.")
    return matches[0]


class _Layout(NamedTuple):
    """Where the frames of a segment lie.

    Attributes:
      slots: frame of the file and slice of `stack` for every frame of the segment.
      stack: shape of the frames' own grid, as stored.
      grid: the same in canonical order.
      header: of the mask that is returned.
      window: which voxels of the mask the frames' own grid fills.
    """

    slots: list[tuple[int, int]]
    stack: tuple[int, int, int]
    grid: CanonicalGrid
    header: ImageHeader
    window: tuple[slice, slice, slice]


def _layout(
    path: str | os.PathLike[str],
    dataset: "pydicom.Dataset",
    segment: int | str | None,
    image: Reference | None,
    tolerance_mm: float,
    max_voxels: int,
) -> _Layout:
    number = _chosen(path, _segments(path, dataset), segment)
    kind = str(dataset.get("SegmentationType"))
    if kind not in ("BINARY", "FRACTIONAL"):
        raise UnreadableFile(path, f"is of SegmentationType {kind}", "Expected BINARY or FRACTIONAL.")
    frames = [
        frame
        for frame in range(frame_shape(path, dataset, max_voxels)[0])
        if int(functional_group(path, dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        == number
    ]
    if not frames:
        raise UnreadableFile(path, f"has no frame of segment {number}", "The segment is empty: leave the mask out.")
    planes = [functional_plane(path, dataset, frame) for frame in frames]
    target = None if image is None else reference_grid(path, image, dataset.get("FrameOfReferenceUID"))
    if target is None:
        thickness = _thickness(path, functional_group(path, dataset, frames[0], "PixelMeasuresSequence"), len(planes))
    else:
        thickness = _distance(planes[0], target)
    stack = stack_planes(os.fspath(path), planes, thickness=thickness, tolerance_mm=tolerance_mm, gaps=True)
    grid = canonical_grid(stack.shape, stack.affine)
    slots = [(frames[at], slot) for slot, at in enumerate(stack.order) if at >= 0]
    check_size(path, grid.shape, max_voxels)
    dtype = np.dtype(np.uint8 if kind == "BINARY" else np.float32)
    if target is None:
        header = ImageHeader((*grid.shape, 1), dtype, grid.spacing, grid.affine, "label")
        window = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    else:
        header = ImageHeader((*target.shape, 1), dtype, target.spacing, target.affine, "label")
        window = _window(path, grid, target, tolerance_mm)
        check_size(path, target.shape, max_voxels)
    return _Layout(slots, stack.shape, grid, header, window)


def _thickness(path: str | os.PathLike[str], measures: Any, planes: int) -> float | None:
    """Distance of slices as the file says; None to take the smallest distance of its frames."""
    for name in ("SpacingBetweenSlices",) if planes > 1 else ("SpacingBetweenSlices", "SliceThickness"):
        if measures.get(name) is not None:
            return numbers(path, measures, name, 1)[0]
    return None


def _distance(plane: Plane, target: Grid) -> float:
    """Spacing of the target along the normal of the frames."""
    normal = LPS_TO_RAS[:3, :3] @ np.cross(plane.along_row, plane.along_column)
    axis = int(np.argmax(np.abs((target.affine[:3, :3] / target.spacing).T @ normal)))
    return target.spacing[axis]


def _window(
    path: str | os.PathLike[str], grid: CanonicalGrid, target: Grid, tolerance_mm: float
) -> tuple[slice, slice, slice]:
    """Voxels of the target that the grid of the frames covers one to one.

    Raises:
      UnreadableFile: it covers none so, or lies partly outside.
    """
    shape = np.array(grid.shape)
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, length - 1) for length in grid.shape))])
    places = corners @ (np.linalg.inv(target.affine) @ grid.affine).T[:, :3]
    start = np.rint(places[0]).astype(int)
    beside = np.abs(places - (start + corners[:, :3])) * target.spacing
    if beside.max() > max(tolerance_mm, 1e-3):
        raise UnreadableFile(
            path,
            f"lies up to {beside.max():.2f} mm beside the voxels of the image",
            "Give the image that was segmented; or read the mask on its own grid (without `image`) and resample it.",
        )
    if (start < 0).any() or (start + shape > np.array(target.shape)).any():
        raise UnreadableFile(
            path,
            f"covers voxels {start.tolist()} to {(start + shape - 1).tolist()} of an image of {target.shape}",
            "Give the image that was segmented.",
        )
    d, h, w = (slice(int(low), int(low + length)) for low, length in zip(start, shape, strict=True))
    return d, h, w
