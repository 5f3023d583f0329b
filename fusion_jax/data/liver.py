"""The surface of the left hepatic lobe, found in the mask of a liver.

A cirrhotic liver has a nodular surface, best seen along the left lobe. From the mask come the lobe, its surface, two
landmarks of an axial section (centre of the section, tip of the lobe), and an image of three adjacent slices turned
so that the line from centre to tip lies along its rows and scaled by that line's length: turning the patient about the
cranio-caudal axis changes the image by the error of interpolation only, wherever the lobe turns with the patient.

    liver = liver_mask(labels == 5, spacing)
    plane = cantlie_plane(liver, labels == 4, labels == 8, spacing)      # or sagittal_plane(liver, spacing)
    lobe = left_lobe(liver, plane, spacing)
    axis = lobe_axis(liver, lobe, spacing, section=lobe_sections(liver, lobe)[0])
    image = surface_crop(ct, axis, fill=-1000.0)

`left_lobe_image` does all of it for images that were read from files. Volumes are in canonical order (feet to head,
front to back, patient's right to left); in-plane positions are `(h, w)` in pixels, directions `(h, w)` in millimetres.

Wang et al. 2023 leave open which sections are used, how large the box is and whether the background is masked. Here:
the section with the largest lobe (all others on request), a square box of 1.2 times the distance from centre to tip,
and the background kept, because the surface shows as the contrast to what lies beside it.
"""

import logging
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from fusion_jax.data.image import Image

__all__ = [
    "DividingPlane",
    "LobeAxis",
    "box_corners",
    "cantlie_plane",
    "left_lobe",
    "left_lobe_image",
    "liver_mask",
    "lobe_axis",
    "lobe_sections",
    "lobe_surface",
    "sagittal_plane",
    "surface_crop",
]

logger = logging.getLogger(__name__)

LEAST_ML, MOST_ML = 50.0, 20_000.0  # from a newborn's liver to a polycystic one; outside, a label or a unit is wrong
LEAST_SHARE = 0.9  # of the mask in its largest component; crumbs of a segmentation hold a few per cent
LEAST_LANDMARKS_MM = 10.0  # a direction between nearer centres is noise
LEAST_LENGTH = 4.0  # pixels from centre to tip; the direction of a shorter axis is that of the pixel grid
SLICES = 3


class DividingPlane(NamedTuple):
    """A plane along the cranio-caudal axis with the left lobe on one side.

    Attributes:
      point: where it crosses every axial section, `(h, w)` in pixels.
      left: unit normal that points to the left lobe, `(h, w)`, millimetres.
    """

    point: tuple[float, float]
    left: tuple[float, float]


class LobeAxis(NamedTuple):
    """Landmarks of one axial section.

    Attributes:
      section: index of the slice.
      centre: centre of mass of the liver's section, `(h, w)` in pixels.
      tip: point of the boundary of the left lobe that is farthest from the centre, `(h, w)` in pixels.
      spacing: of pixels, `(dy, dx)` in mm.
    """

    section: int
    centre: tuple[float, float]
    tip: tuple[float, float]
    spacing: tuple[float, float]

    @property
    def length(self) -> float:
        """Distance from centre to tip, mm."""
        return float(np.hypot(*_offset(self)))

    @property
    def angle(self) -> float:
        """Degrees from the direction to the patient's left towards the front; a crop is turned back by as much."""
        down, left = _offset(self)
        return math.degrees(math.atan2(-down, left))


def liver_mask(mask: Bool[np.ndarray, "d h w"], spacing: tuple[float, float, float]) -> Bool[np.ndarray, "d h w"]:
    """The largest component of a liver's mask, if it is plausible.

    Crumbs beside it, together below a tenth of the mask, are removed with a logged warning. The mask may end at the
    first or last slice, where a scan was cut, but not at the four sides, where its outline would not be the liver's.

    Args:
      mask: where the liver is, shape `(d, h, w)`.
      spacing: `(dz, dy, dx)` in mm.

    Returns:
      The component, connected by faces, shape `(d, h, w)`.

    Raises:
      ValueError: if the mask is empty, in several large parts, at a side of the volume, or of a volume that no liver
        has (below 50 ml, above 20 l).

    Example:
      >>> mask = np.zeros((40, 60, 60), dtype=bool)
      >>> mask[10:30, 10:40, 10:50] = True
      >>> mask[0, 0, 0] = True
      >>> int(mask.sum() - liver_mask(mask, (3.0, 2.0, 2.0)).sum())
      1
    """
    steps = _checked_spacing(spacing)
    if not mask.any():
        raise ValueError(f"liver mask of shape {mask.shape}: no voxel is set. Check which label is the liver's.")
    liver, parts = _largest_component(mask)
    largest, total = int(liver.sum()), int(mask.sum())
    if largest < LEAST_SHARE * total:
        raise ValueError(
            f"liver mask: {parts} components, the largest with {largest / total:.0%} of {total} voxels; expected one "
            f"liver with at least {LEAST_SHARE:.0%}. Correct the segmentation, or pass the component that is the liver."
        )
    if parts > 1:
        logger.warning("liver mask: removed %d small components, %d voxels", parts - 1, total - largest)
    volume = largest * math.prod(steps) / 1000
    if not LEAST_ML <= volume <= MOST_ML:
        raise ValueError(
            f"liver mask: a volume of {volume:.3g} ml at a spacing of {steps} mm; expected {LEAST_ML:g} to "
            f"{MOST_ML:g} ml. Check which label is the liver's, and that spacing is (dz, dy, dx) in millimetres."
        )
    # The first voxel axis may be cut, the others may not.
    for side, face in zip(
        ("front", "back", "right", "left"), (liver[:, 0], liver[:, -1], liver[:, :, 0], liver[:, :, -1]), strict=True
    ):
        if face.any():
            raise ValueError(
                f"liver mask: {int(face.sum())} voxels lie at the {side} side of the volume; the outline there is the "
                "volume's, not the liver's. Use a reconstruction that holds the whole section, or crop with a margin."
            )
    return liver


def sagittal_plane(liver: Bool[np.ndarray, "d h w"]) -> DividingPlane:
    """The sagittal plane through the centre of mass of the liver, where there are no landmarks.

    A stand-in: it turns with the volume's axes and not with the patient, so an image made with it is invariant only
    as long as the tip of the left lobe is the farthest point on the plane's left (on an analytic liver, ±60 degrees).

    Args:
      liver: mask of the liver, shape `(d, h, w)`.

    Example:
      >>> sagittal_plane(np.ones((2, 3, 5), dtype=bool))
      DividingPlane(point=(1.0, 2.0), left=(0.0, 1.0))
    """
    row, column = _section_centre(liver)
    return DividingPlane((row, column), (0.0, 1.0))


def cantlie_plane(
    liver: Bool[np.ndarray, "d h w"],
    gallbladder: Bool[np.ndarray, "d h w"],
    vena_cava: Bool[np.ndarray, "d h w"],
    spacing: tuple[float, float, float],
) -> DividingPlane:
    """The plane from the inferior vena cava to the gallbladder (Cantlie's line), which divides the two lobes.

    Along the cranio-caudal axis, through the centres of mass of both; of the vena cava only the slices that hold liver
    count. The plane turns with the patient about that axis, and so does every image made with it.

    Args:
      liver, gallbladder, vena_cava: masks, shape `(d, h, w)`.
      spacing: `(dz, dy, dx)` in mm.

    Raises:
      ValueError: if a landmark is empty, no slice holds liver and vena cava, or both lie within 10 mm of each other.

    Example:
      >>> liver = np.ones((4, 40, 40), dtype=bool)
      >>> front, back = np.zeros((2, 4, 40, 40), dtype=bool)
      >>> front[:, 5, 20], back[:, 30, 20] = True, True
      >>> cantlie_plane(liver, front, back, (2.0, 2.0, 2.0))
      DividingPlane(point=(30.0, 20.0), left=(0.0, 1.0))

    References:
      Couinaud's right and left liver, divided by the plane of the middle hepatic vein, which runs along this line.
    """
    _, *steps = _checked_spacing(spacing)
    for name, mask in (("gallbladder", gallbladder), ("vena cava", vena_cava)):
        _check_shape(name, mask, liver)
        if not mask.any():
            raise ValueError(
                f"{name} mask: no voxel is set, so Cantlie's line is not defined. Check its label; where the organ is "
                "absent, as after cholecystectomy, use a mask of the left lobe, or `sagittal_plane`."
            )
    beside_liver = vena_cava & np.any(liver, axis=(1, 2), keepdims=True)
    if not beside_liver.any():
        raise ValueError("vena cava mask: no slice holds both liver and vena cava. Check the labels of both.")
    back, front = _section_centre(beside_liver), _section_centre(gallbladder)
    down, right_to_left = (np.array(front) - back) * steps
    distance = math.hypot(down, right_to_left)
    if distance < LEAST_LANDMARKS_MM:
        raise ValueError(
            f"gallbladder and vena cava: centres {distance:.1f} mm apart in the axial plane; expected at least "
            f"{LEAST_LANDMARKS_MM:g} mm. Check both labels, and that spacing is in millimetres."
        )
    # A quarter turn: where the line runs to the front, the normal points to the left.
    return DividingPlane(back, (float(right_to_left / distance), float(-down / distance)))


def left_lobe(
    liver: Bool[np.ndarray, "d h w"], plane: DividingPlane, spacing: tuple[float, float, float]
) -> Bool[np.ndarray, "d h w"]:
    """The largest connected part of the liver on the left of a plane.

    Args:
      liver: mask of the liver, shape `(d, h, w)`.
      plane: from `cantlie_plane` or `sagittal_plane`.
      spacing: `(dz, dy, dx)` in mm.

    Raises:
      ValueError: if there is no liver on the left of the plane.

    Example:
      >>> liver = np.ones((2, 3, 5), dtype=bool)
      >>> left_lobe(liver, sagittal_plane(liver), (1.0, 1.0, 1.0))[0, 0].tolist()
      [False, False, False, True, True]
    """
    _, dy, dx = _checked_spacing(spacing)
    row, column = np.ogrid[: liver.shape[1], : liver.shape[2]]
    side = (row - plane.point[0]) * dy * plane.left[0] + (column - plane.point[1]) * dx * plane.left[1]
    lobe = liver & (side > 0)
    if not lobe.any():
        raise ValueError(
            f"no liver on the left of the plane through {plane.point} with normal {plane.left}. "
            "Check the labels of the landmarks and the orientation of the volume."
        )
    return _largest_component(lobe)[0]


def lobe_surface(liver: Bool[np.ndarray, "d h w"], lobe: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """Voxels of the lobe with a face to the outside of the liver.

    The plane between the lobes is no surface, nor is the face of the volume where the scan ends inside the liver.

    Args:
      liver, lobe: masks of the liver and of its left lobe, shape `(d, h, w)`.

    Example:
      >>> liver = np.ones((3, 4, 4), dtype=bool)
      >>> int(lobe_surface(liver, liver).sum())
      0
      >>> liver[:, :, 3] = False
      >>> np.flatnonzero(lobe_surface(liver, liver)[0, 0]).tolist()
      [2]
    """
    from scipy import ndimage

    _check_shape("left lobe", lobe, liver)
    return lobe & ~ndimage.binary_erosion(liver, border_value=1)


def lobe_sections(liver: Bool[np.ndarray, "d h w"], lobe: Bool[np.ndarray, "d h w"]) -> tuple[int, ...]:
    """Axial slices that can be the middle of three, by area of the lobe, largest first.

    They hold the lobe, and they and both neighbours hold liver. Where the scan ends inside the liver and the largest
    section lies next to the end, a warning is logged: beyond may have been a larger one.

    Args:
      liver, lobe: masks of the liver and of its left lobe, shape `(d, h, w)`.

    Returns:
      Slice indices; equal areas from feet to head.

    Raises:
      ValueError: if there is no such slice.

    Example:
      >>> lobe = np.zeros((6, 4, 4), dtype=bool)
      >>> lobe[1:5, 1, 1], lobe[3, 2, 1] = True, True
      >>> lobe_sections(lobe, lobe)
      (3, 2)
    """
    _check_shape("left lobe", lobe, liver)
    holds: np.ndarray = np.any(liver, axis=(1, 2))
    area = np.count_nonzero(lobe, axis=(1, 2))
    eligible = np.zeros_like(holds)
    eligible[1:-1] = holds[:-2] & holds[1:-1] & holds[2:] & (area[1:-1] > 0)
    if not eligible.any():
        raise ValueError(
            f"left lobe: no slice of {len(liver)} holds it between two slices with liver (the lobe is in "
            f"{np.count_nonzero(area)}, the liver in {np.count_nonzero(holds)}); three adjacent slices are needed."
        )
    order = np.argsort(-area, kind="stable")
    sections = tuple(int(section) for section in order if eligible[section])
    cut = {"lower": holds[0] and sections[0] == 1, "upper": holds[-1] and sections[0] == len(liver) - 2}
    for end in (name for name, at in cut.items() if at):
        logger.warning(
            "left lobe: the largest section is slice %d of %d and the scan ends inside the liver at its %s end; "
            "a larger section may lie beyond",
            sections[0],
            len(liver),
            end,
        )
    return sections


def lobe_axis(
    liver: Bool[np.ndarray, "d h w"],
    lobe: Bool[np.ndarray, "d h w"],
    spacing: tuple[float, float, float],
    *,
    section: int,
) -> LobeAxis:
    """Centre of the liver's section and tip of its left lobe.

    The boundary of the section is taken half-way between its pixels and their neighbours outside. The tip lies in the
    mean direction of those of its points that are, to within a pixel, as far from the centre as the farthest, and as
    far as that one: the farthest point alone jumps along a blunt tip by pixels when the volume is turned.

    Args:
      liver, lobe: masks of the liver and of its left lobe, shape `(d, h, w)`.
      spacing: `(dz, dy, dx)` in mm.
      section: index of the slice.

    Raises:
      ValueError: if the section holds no boundary of the lobe, or the axis is too short to have a direction.

    Example:
      >>> row, column = np.ogrid[:11, :31]
      >>> liver = ((row - 5) ** 2 / 16 + (column - 15) ** 2 / 144 <= 1)[None]
      >>> lobe = left_lobe(liver, sagittal_plane(liver), (1.0, 1.0, 1.0))
      >>> lobe_axis(liver, lobe, (1.0, 1.0, 1.0), section=0)
      LobeAxis(section=0, centre=(5.0, 15.0), tip=(5.0, 27.5), spacing=(1.0, 1.0))

    References:
      Wang et al. 2023, Figure 2: the longest axial distance across the liver on the patient's left; "left" is the side
      of the lobe here.
    """
    _check_shape("left lobe", lobe, liver)
    _, dy, dx = _checked_spacing(spacing)
    if not 0 <= section < len(liver):
        raise ValueError(f"section {section}: the volume has slices 0 to {len(liver) - 1}.")
    steps = np.array((dy, dx))
    boundary = _boundary(liver[section], lobe[section])
    if not len(boundary):
        raise ValueError(
            f"section {section}: no boundary of the liver belongs to the left lobe. Take a slice of `lobe_sections`."
        )
    centre = np.array(_section_centre(liver[section : section + 1]))
    offsets = (boundary - centre) * steps
    distances = np.hypot(*offsets.T)
    farthest = distances.argmax()
    length = distances[farthest]
    if length < LEAST_LENGTH * steps.max():
        raise ValueError(
            f"section {section}: the tip of the left lobe is {length:.1f} mm from the centre of the liver, within "
            f"{LEAST_LENGTH:g} pixels; too near to give a direction. Take another slice of `lobe_sections`."
        )
    # A second prong that happens to reach as far must not turn the axis to between both.
    near = np.hypot(*(offsets - offsets[farthest]).T) < length / 4
    direction = offsets[near & (distances >= length - steps.max())].mean(axis=0)
    tip = centre + direction / np.hypot(*direction) * length / steps
    return LobeAxis(section, (float(centre[0]), float(centre[1])), (float(tip[0]), float(tip[1])), (dy, dx))


def surface_crop(
    volume: Real[np.ndarray, "d h w"],
    axis: LobeAxis,
    *,
    size: tuple[int, int] = (224, 224),
    margin: float = 0.1,
    half_width: float = 0.6,
    fill: float,
) -> Float[np.ndarray, "rows columns 3"]:
    r"""Three adjacent slices in the frame of the lobe: centre at the left, tip at the right, both on the middle row.

    With the unit vector :math:`u` from centre :math:`c` to tip, its quarter turn :math:`v` (towards the back where
    :math:`u` points to the left) and :math:`L` the distance, the box holds

    .. math:: c + a u + b v, \qquad -m L \le a \le (1 + m) L, \qquad -q L \le b \le q L.

    Never mirrored. Linear interpolation inside each slice, none between slices; no low-pass filter, so a pixel should
    not be much larger than a voxel. The default box is square.

    Args:
      volume: shape `(d, h, w)`; HU for CT.
      axis: from `lobe_axis`.
      size: rows and columns.
      margin: :math:`m`, room beyond centre and tip, as a share of their distance.
      half_width: :math:`q`, room on each side of the axis, as a share of that distance.
      fill: value outside of the volume: -1000 for CT, 0 for a mask.

    Returns:
      Slices `section - 1`, `section` and `section + 1` as channels, float32, shape `(*size, 3)`.

    Raises:
      ValueError: if a slice is not in the volume, or a size or share is out of range.

    Example:
      >>> volume = np.broadcast_to(np.arange(50.0), (3, 40, 50))
      >>> axis = LobeAxis(section=1, centre=(20.0, 10.0), tip=(20.0, 40.0), spacing=(1.0, 1.0))
      >>> surface_crop(volume, axis, size=(1, 3), margin=0.0, fill=0.0)[0, :, 1].tolist()
      [15.0, 25.0, 35.0]
    """
    from scipy import ndimage

    if not 1 <= axis.section <= len(volume) - 2:
        raise ValueError(
            f"section {axis.section} of {len(volume)} slices: its neighbours are needed as channels. "
            "Take a slice of `lobe_sections`."
        )
    if min(size) < 1:
        raise ValueError(f"size {size}: expected rows and columns of at least 1.")
    down, along = _grid(axis, size, margin, half_width)
    positions = np.stack((down, along))
    slices = volume[axis.section - 1 : axis.section + 2].astype(np.float32)
    channels = [ndimage.map_coordinates(plane, positions, order=1, cval=fill) for plane in slices]
    return np.stack(channels, axis=-1)


def box_corners(axis: LobeAxis, *, margin: float = 0.1, half_width: float = 0.6) -> Float[np.ndarray, "4 2"]:
    """Corners of the box of `surface_crop` in the section.

    Args:
      axis: from `lobe_axis`.
      margin, half_width: as in `surface_crop`.

    Returns:
      `(h, w)` in pixels, from the first row and column of the crop clockwise as the crop is seen.

    Example:
      >>> axis = LobeAxis(section=1, centre=(20.0, 10.0), tip=(20.0, 40.0), spacing=(1.0, 1.0))
      >>> box_corners(axis).round().tolist()
      [[2.0, 7.0], [2.0, 43.0], [38.0, 43.0], [38.0, 7.0]]
    """
    _check_box(margin, half_width)
    along = np.array((-margin, 1 + margin, 1 + margin, -margin))
    across = np.array((-half_width, -half_width, half_width, half_width))
    return np.stack(_place(axis, along, across), axis=-1)


def left_lobe_image(
    image: Image,
    liver: Image,
    *,
    gallbladder: Image | None = None,
    vena_cava: Image | None = None,
    lobe: Image | None = None,
    section: int | None = None,
    size: tuple[int, int] = (224, 224),
    margin: float = 0.1,
    half_width: float = 0.6,
    fill: float = -1000.0,
) -> Image:
    """The left lobe's surface of one patient, from volume and masks on one grid.

    Left is told, in this order, by a mask of the lobe, by gallbladder and vena cava (`cantlie_plane`), or by the
    volume's axes (`sagittal_plane`).

    Args:
      image: volume with one channel, HU for CT.
      liver: mask of the liver: 0, and one other value inside.
      gallbladder, vena_cava: masks of the landmarks; both or none.
      lobe: mask of the left lobe; what lies outside the liver is ignored.
      section: middle slice; the first of `lobe_sections` unless given.
      size, margin, half_width, fill: as in `surface_crop`.

    Returns:
      Shape `(*size, 3)`, float32, in the unit of `image`; spacing of its pixels; no affine, as it is turned.

    Raises:
      ValueError: if grids differ, a mask holds several labels, or as in the functions that this one calls.

    Example:
      >>> values = np.zeros((20, 40, 60, 1), dtype=np.float32)
      >>> values[5:15, 10:30, 10:50] = 60.0
      >>> ct = Image(values, (4.0, 4.0, 4.0), None, "HU")
      >>> surface = left_lobe_image(ct, Image((values > 0).astype(np.uint8), ct.spacing, None, "label"))
      >>> surface.values.shape, surface.unit, round(surface.spacing[0], 2)
      ((224, 224, 3), 'HU', 0.47)
    """
    if image.values.ndim != 4 or image.values.shape[3] != 1:
        raise ValueError(f"image of shape {image.values.shape}: expected a volume with one channel, (d, h, w, 1).")
    if image.spacing is None or len(image.spacing) != 3:
        raise ValueError(f"image: spacing is {image.spacing}; expected (dz, dy, dx) in mm.")
    dz, dy, dx = image.spacing
    spacing = (dz, dy, dx)
    inside = liver_mask(_as_mask("liver", liver, image), spacing)
    if lobe is not None:
        left = _as_mask("left lobe", lobe, image) & inside
        if not left.any():
            raise ValueError("left lobe mask: no voxel lies inside the liver. Check its label.")
    elif gallbladder is not None and vena_cava is not None:
        landmarks = _as_mask("gallbladder", gallbladder, image), _as_mask("vena cava", vena_cava, image)
        left = left_lobe(inside, cantlie_plane(inside, *landmarks, spacing), spacing)
    elif gallbladder is None and vena_cava is None:
        left = left_lobe(inside, sagittal_plane(inside), spacing)
    else:
        given, absent = ("gallbladder", "vena cava") if vena_cava is None else ("vena cava", "gallbladder")
        raise ValueError(f"mask of the {given} without the {absent}: Cantlie's line needs both. Give both or none.")
    middle = lobe_sections(inside, left)[0] if section is None else section
    axis = lobe_axis(inside, left, spacing, section=middle)
    values = surface_crop(image.values[..., 0], axis, size=size, margin=margin, half_width=half_width, fill=fill)
    rows, columns = size
    pixel = (2 * half_width * axis.length / rows, (1 + 2 * margin) * axis.length / columns)
    return Image(values, pixel, None, image.unit)


def _largest_component(mask: Bool[np.ndarray, "d h w"]) -> tuple[Bool[np.ndarray, "d h w"], int]:
    """The largest part of a mask that is not empty, connected by faces, and how many there are."""
    from scipy import ndimage

    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    sizes = np.bincount(labels.ravel())
    return labels == sizes[1:].argmax() + 1, len(sizes) - 1


def _offset(axis: LobeAxis) -> tuple[float, float]:
    """From centre to tip, mm."""
    return (axis.tip[0] - axis.centre[0]) * axis.spacing[0], (axis.tip[1] - axis.centre[1]) * axis.spacing[1]


def _place(axis: LobeAxis, along: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points given along and across the axis as shares of its length."""
    (down, left), (dy, dx) = _offset(axis), axis.spacing
    rows = axis.centre[0] + (along * down + across * left) / dy
    columns = axis.centre[1] + (along * left - across * down) / dx
    return rows, columns


def _grid(
    axis: LobeAxis, size: tuple[int, int], margin: float, half_width: float
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]]:
    """Where the centres of the crop's pixels lie in the section."""
    _check_box(margin, half_width)
    rows, columns = size
    along = (np.arange(columns) + 0.5) / columns * (1 + 2 * margin) - margin
    across = ((np.arange(rows) + 0.5) / rows * 2 - 1) * half_width
    return _place(axis, *np.meshgrid(along, across))


def _check_box(margin: float, half_width: float) -> None:
    if not (0 <= margin < math.inf and 0 < half_width < math.inf):
        raise ValueError(
            f"margin {margin} and half_width {half_width}: expected shares of the distance from centre to tip, "
            "margin at least 0 and half_width above 0."
        )


def _boundary(section: Bool[np.ndarray, "h w"], lobe: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "points 2"]:
    """Points half-way between pixels of the lobe and 4-neighbours outside of the liver, `(h, w)` in pixels."""
    points = []
    padded, own = np.pad(section, 1), np.pad(lobe & section, 1)
    for axis in (0, 1):
        for step in (1, -1):
            at = np.argwhere(own & ~np.roll(padded, -step, axis)).astype(float) - 1
            at[:, axis] += step / 2
            points.append(at)
    return np.concatenate(points)


def _section_centre(mask: Bool[np.ndarray, "d h w"]) -> tuple[float, float]:
    """In-plane centre of mass, pixels."""
    area = np.count_nonzero(mask, axis=0)
    total = area.sum()
    row = area.sum(axis=1) @ np.arange(mask.shape[1]) / total
    column = area.sum(axis=0) @ np.arange(mask.shape[2]) / total
    return float(row), float(column)


def _as_mask(name: str, mask: Image, image: Image) -> Bool[np.ndarray, "d h w"]:
    """The mask as booleans, if it lies on the grid of the image and marks one thing."""
    if mask.values.shape != image.values.shape:
        raise ValueError(
            f"{name} mask: shape {mask.values.shape}, the image has {image.values.shape}; expected one grid. "
            "Resample the mask onto the image, nearest neighbour."
        )
    for field, own, other in (("spacing", mask.spacing, image.spacing), ("affine", mask.affine, image.affine)):
        # A thousandth of a millimetre: what float32 headers leave of equal grids.
        if own is not None and other is not None and not np.allclose(own, other, rtol=0, atol=1e-3):
            raise ValueError(
                f"{name} mask: {field} {np.round(own, 3).tolist()} differs from the image's "
                f"{np.round(other, 3).tolist()}. Resample the mask onto the image, nearest neighbour."
            )
    labels = np.unique(mask.values)
    if len(inside := labels[labels != 0]) > 1:
        shown = ", ".join(f"{label:g}" for label in inside[:5].astype(float))
        raise ValueError(
            f"{name} mask: holds {len(inside)} labels ({shown}{', …' if len(inside) > 5 else ''}); expected one. "
            "Pick the label of the organ first: `image._replace(values=image.values == label)`."
        )
    return mask.values[..., 0] != 0


def _checked_spacing(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    if len(spacing) != 3 or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"spacing {spacing}: expected three distances in mm above 0, (dz, dy, dx).")
    dz, dy, dx = (float(step) for step in spacing)
    return dz, dy, dx


def _check_shape(name: str, mask: np.ndarray, liver: np.ndarray) -> None:
    if mask.shape != liver.shape:
        raise ValueError(f"{name} mask: shape {mask.shape}, the liver's mask has {liver.shape}; expected one grid.")
