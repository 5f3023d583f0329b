"""Where the voxels lie: resampling, resizing, cropping, padding and flipping of one image.

Every function keeps spacing and affine right: what lay at a place in mm still lies there. Voxel centres, not corners,
have integer indices; voxel 0 reaches from −0.5 to 0.5, and `n` voxels from −0.5 to `n − 0.5`: the field of view.
"""

import logging
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fusion_jax.data.image import READING, Image
from fusion_jax.data.images.operation import Count, NonNegative, Positive, operation
from fusion_jax.data.images.voxels import as_floats, inside, occupied

__all__ = [
    "AIR_HU",
    "Axis",
    "Method",
    "axis_number",
    "crop_or_pad",
    "crop_to_mask",
    "cut",
    "flip",
    "linear_weights",
    "onto",
    "resample",
    "resize",
]

Method: TypeAlias = Literal["nearest", "linear", "cubic", "half"]
"""How to read between voxels. `half` is for masks: linear interpolation of each label, inside where it reaches 0.5."""

Axis: TypeAlias = Literal["d", "h", "w"]

AIR_HU = -1024.0
"""Fill of CT beyond its field of view: the least value of a 12-bit scale, air in every window."""

MAX_VOXELS = 2**30
"""A larger result is taken for a mistake in the unit of the spacing."""

POINT_SPREAD = 1 / (8 * math.log(2))
"""Variance of a Gaussian whose full width at half maximum is one voxel."""

VOXEL_SPREAD = 1 / 12
"""Variance of a voxel; linear interpolation then has that of counting whole old voxels in the new one."""

# Grids carry rounding of about 1e-6 mm, which must not cost or add a voxel.
SLACK = 1e-5

logger = logging.getLogger("fusion_jax.data.images.geometry")


@operation
def resample(
    image: Image,
    *,
    spacing: Positive | tuple[Positive, ...],
    method: Method | None = None,
    antialias: bool = True,
) -> Image:
    r"""The image on a grid of another spacing over the same field of view.

    The new grid is the smallest that covers the field of view, about the same centre: along an axis of `n` voxels

    .. math:: m = \lceil n\, s_{\text{old}} / s_{\text{new}} \rceil, \qquad
        x_i = \frac{n - 1}{2} + \frac{s_{\text{new}}}{s_{\text{old}}} \left(i - \frac{m - 1}{2}\right)

    so opposite faces stand out by the same amount, less than half a new voxel. Beyond the outermost voxel centres the
    edge value goes on.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`, with its spacing.
      spacing: new distance of voxel centres in mm, one number or one an axis.
      method: by default `nearest` for masks (unit `label`) and `linear` for all else. `nearest` keeps the dtype, ties
        go up; `cubic` may overshoot; `half` makes a uint8 mask, or keeps the dtype of a label map.
      antialias: where voxels grow, smooth first with the Gaussian that widens a voxel's point spread to the new voxel,
        :math:`\sigma = \sqrt{(k^2 - 1) / (8 \ln 2)}` old voxels for voxels `k` times as wide. Not for `nearest`; for
        `half` by the variance of the voxel itself, :math:`(k^2 - 1) / 12`, since more would shrink small regions.

    Returns:
      The image, spacing exactly as asked.

    Raises:
      ValueError: the image has no spacing; `spacing` has another number of axes, or asks for more than 2³⁰ voxels.

    Example:
      >>> image = Image(np.arange(8.0).reshape(1, 8, 1), spacing=(1.0, 1.0))
      >>> resample(image, spacing=(1.0, 2.0), antialias=False).values.ravel().tolist()
      [0.5, 2.5, 4.5, 6.5]

    References:
      Point spread: Cardoso et al. 2015, doi:10.1007/978-3-319-24571-3_81. Grid about the same centre and masks at one
      half: Zwanenburg et al. 2020, Image Biomarker Standardisation Initiative, doi:10.1148/radiol.2020191145.
    """
    shape, affine, wanted = _respaced(image, spacing)
    matrix = np.diag([new / old for new, old in zip(wanted, _spacing(image), strict=True)])
    centre = (np.array(image.values.shape[:-1]) - 1) / 2
    offset = centre - matrix @ (np.array(shape) - 1) / 2
    values = _read_at(image, matrix, offset, shape, method, antialias)
    return image._replace(values=values, spacing=wanted, affine=affine)


@operation
def onto(
    image: Image,
    reference: Image,
    *,
    spacing: Positive | tuple[Positive, ...] | None = None,
    method: Method | None = None,
    antialias: bool = True,
    fill: float | None = None,
) -> Image:
    """The image on the grid of another one, by the affines of both; PET on the grid of CT, for instance.

    With `spacing`, the grid is that of `resample(reference, spacing=spacing)`: `onto` for one source and `resample` for
    the other bring both to one common grid with one interpolation each.

    Args:
      image: volume with its affine.
      reference: volume whose grid to take; its values are not used.
      spacing: of the result in mm; by default that of the reference.
      method: as in `resample`.
      antialias: as in `resample`.
      fill: value beyond the field of view of `image`; by default −1024 for HU, 0 otherwise. Between the outermost
        voxel centre and the border of the field of view the edge value goes on.

    Returns:
      The image with grid, spacing and affine of the reference; channels and unit are its own.

    Raises:
      ValueError: an affine is missing, or the fields of view do not meet.

    Example:
      >>> pet = Image(np.full((2, 2, 2, 1), 5.0), (2.0,) * 3, np.diag([2.0, 2.0, 2.0, 1.0]), "SUV")
      >>> ct = Image(np.zeros((5, 1, 1, 1)), (1.0,) * 3, np.eye(4), "HU")
      >>> onto(pet, ct).values.ravel().tolist()
      [5.0, 5.0, 5.0, 5.0, 0.0]
    """
    source, target = _affine("image", image), _affine("reference", reference)
    shape, wanted = reference.values.shape[:-1], reference.spacing
    if spacing is not None:
        shape, moved, wanted = _respaced(reference, spacing)
        target = target if moved is None else moved
    index_map = np.linalg.inv(source) @ target
    matrix, offset = index_map[:3, :3], index_map[:3, 3]
    matrix = np.where(np.abs(matrix) < 1e-9 * np.abs(matrix).max(), 0.0, matrix)
    seen = _in_view(matrix, offset, shape, image.values.shape[:-1])
    if not seen.any():
        raise ValueError(
            f"the image at {np.round(source[:3, 3], 1).tolist()} mm and the reference at "
            f"{np.round(target[:3, 3], 1).tolist()} mm do not meet; expected fields of view that overlap. "
            "See whether both belong to one examination, and their affines."
        )
    values = _read_at(image, matrix, offset, shape, method, antialias)
    values[~np.broadcast_to(seen, shape)] = _fill(image, fill, values.dtype)
    return image._replace(values=values, spacing=wanted, affine=target)


@operation
def resize(image: Image, *, size: Count | tuple[Count, ...], antialias: bool = True) -> Image:
    r"""The image with a given number of voxels over the same field of view.

    Output :math:`i` of :math:`m` is read at :math:`(i + \tfrac12)\, n/m - \tfrac12`, as in PyTorch
    (`align_corners=False`) and Pillow. Height and width are scaled each by its own factor: the aspect is not kept.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`.
      size: voxels of the result, one number or one an axis.
      antialias: when shrinking, widen the linear kernel to :math:`n/m` voxels so that all count, as in Pillow's
        `BILINEAR` and PyTorch's `antialias=True`; without it some voxels count for nothing.

    Returns:
      The image with the spacing and affine of the new voxels. Masks (unit `label`) by nearest voxel, as Pillow's
      `NEAREST` and PyTorch's `nearest-exact`; all else linearly.

    Raises:
      ValueError: `size` has another number of axes; the image is empty or not finite.

    Example:
      >>> image = Image(np.array([[[0.0], [1.0]]]), spacing=(1.0, 1.0))
      >>> larger = resize(image, size=(1, 4))
      >>> larger.values.ravel().tolist(), larger.spacing
      ([0.0, 0.25, 0.75, 1.0], (1.0, 0.5))
    """
    shape = image.values.shape[:-1]
    sizes = _per_axis("size", size, len(shape))
    label = image.unit == "label"
    values = image.values if label else as_floats(image)
    for axis, (n, m) in enumerate(zip(shape, sizes, strict=True)):
        if n == m:
            continue
        if label:
            values = values.take(((np.arange(m) + 0.5) * n / m).astype(int), axis=axis)
        else:
            weights = linear_weights(n, int(m), 0.0, n, antialias=antialias).astype(values.dtype)
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    steps = np.array(shape) / np.array(sizes)
    spacing = image.spacing and tuple((np.array(image.spacing) * steps).tolist())
    affine = _moved(image, np.diag(steps), (steps - 1) / 2)
    return image._replace(values=np.ascontiguousarray(values), spacing=spacing, affine=affine)


@operation
def crop_or_pad(
    image: Image,
    mask: Image | None = None,
    *,
    size: Count | tuple[Count, ...],
    centre: tuple[float, ...] | None = None,
    fill: float | None = None,
) -> Image:
    """A window of fixed size, padded where it leaves the image.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`.
      mask: on the grid of the image, or elsewhere with affines; the window is centred on its bounding box. A mask
        that is larger than the window is cut, which the log tells.
      size: voxels of the result, one number or one an axis.
      centre: voxel index on which to centre instead, one number an axis; by default the centre of the image.
      fill: value of the padding; by default −1024 for HU, 0 otherwise.

    Returns:
      The window; where no window of this size has that centre, the one whose own lies half a voxel after it.

    Raises:
      ValueError: `size` or `centre` has another number of axes; both mask and centre are given; the mask is empty or
        does not fit; `fill` does not fit the dtype.

    Example:
      >>> row = Image(np.arange(1.0, 6.0).reshape(1, 5, 1))
      >>> crop_or_pad(row, size=(1, 3)).values.ravel().tolist()
      [2.0, 3.0, 4.0]
      >>> crop_or_pad(row, size=(1, 3), centre=(0, 0)).values.ravel().tolist()
      [0.0, 1.0, 2.0]
    """
    shape = image.values.shape[:-1]
    sizes = np.array(_per_axis("size", size, len(shape)))
    middle = (np.array(shape) - 1) / 2
    if mask is not None and centre is not None:
        raise ValueError("both a mask and a centre are given; expected one of them.")
    if centre is not None:
        middle = np.array(_per_axis("centre", centre, len(shape)), float)
    chosen = None if mask is None else inside(image, mask)
    if chosen is not None:
        first, last = _extent(chosen)
        middle = (first + last) / 2
    start = np.floor(middle - (sizes - 1) / 2 + 0.5).astype(int)
    if chosen is not None:
        kept = chosen[tuple(slice(max(0, a), max(0, a + n)) for a, n in zip(start, sizes, strict=True))].sum()
        if kept < chosen.sum():
            logger.warning(
                "%sa window of %s voxels cuts %d of %d voxels of the mask off", READING.get(), sizes.tolist(),
                chosen.sum() - kept, chosen.sum(),
            )  # fmt: skip
    return cut(image, start, start + sizes, fill=fill)


@operation
def crop_to_mask(image: Image, mask: Image, *, margin_mm: NonNegative | tuple[NonNegative, ...] = 0.0) -> Image:
    """The part of the image around a mask, with a margin; whole voxels outwards, never beyond the image.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`.
      mask: on the grid of the image, or, if both have affines, on any other: the box that encloses its voxels in mm,
        widened by the margin along the mask's axes, is laid over the image.
      margin_mm: in mm, one number or one an axis; needs spacings.

    Returns:
      The part of the image that has at least a corner in the box.

    Raises:
      ValueError: the mask is empty, or lies outside the image; spacing or affine is missing where it is needed.

    Example:
      >>> image = Image(np.arange(9.0).reshape(1, 9, 1), spacing=(1.0, 2.0))
      >>> mask = Image(np.array([0, 0, 0, 0, 1, 0, 0, 0, 0], np.uint8).reshape(1, 9, 1), (1.0, 2.0), unit="label")
      >>> crop_to_mask(image, mask, margin_mm=3.0).values.ravel().tolist()
      [2.0, 3.0, 4.0, 5.0, 6.0]
    """
    axes = image.values.ndim - 1
    if image.affine is None or mask.affine is None:
        first, last = _extent(inside(image, mask))
    else:
        first, last = _extent(occupied(mask))
    low, high = first - 0.5, last + 0.5  # faces, in voxels of the mask
    margins = np.array(_per_axis("margin_mm", margin_mm, axes), float)
    if margins.any():
        reach = margins / np.array(_spacing(mask))
        low, high = low - reach, high + reach
    if image.affine is not None and mask.affine is not None:
        low, high = _box_in(np.linalg.inv(image.affine) @ mask.affine, low, high)
    start = np.floor(low + 0.5 + SLACK).astype(int)
    stop = np.ceil(high + 0.5 - SLACK).astype(int)
    start, stop = np.maximum(start, 0), np.minimum(stop, image.values.shape[:-1])
    if (start >= stop).any():
        raise ValueError(
            "the mask lies outside the image; expected a mask that meets it. Do both belong to one examination?"
        )
    return cut(image, start, stop)


@operation
def flip(image: Image, *, axis: Axis) -> Image:
    """The image in the opposite order along one axis; a volume's affine says so.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`.
      axis: `d`, `h` or `w`.

    Raises:
      ValueError: an image in the plane has no axis `d`.

    Example:
      >>> flip(Image(np.array([[[1], [2], [3]]])), axis="w").values.ravel().tolist()
      [3, 2, 1]
    """
    number = axis_number(image, axis)
    matrix, offset = np.eye(image.values.ndim - 1), np.zeros(image.values.ndim - 1)
    matrix[number, number], offset[number] = -1, image.values.shape[number] - 1
    values = np.ascontiguousarray(np.flip(image.values, number))
    return image._replace(values=values, affine=_moved(image, matrix, offset))


def cut(
    image: Image, start: Int[np.ndarray, "space"], stop: Int[np.ndarray, "space"], *, fill: float | None = None
) -> Image:
    """Voxels from `start` to before `stop`, which may lie beyond the image.

    Args:
      image: shape `(h, w, c)` or `(d, h, w, c)`.
      start: first voxel, one index an axis.
      stop: voxel after the last.
      fill: value beyond the image; by default −1024 for HU, 0 otherwise.

    Returns:
      A new image of shape `(*(stop - start), c)`.

    Raises:
      ValueError: `fill` does not fit the dtype of the image.

    Example:
      >>> row = Image(np.array([[[7], [8]]]))
      >>> cut(row, np.array([0, 1]), np.array([1, 4])).values.ravel().tolist()
      [8, 0, 0]
    """
    shape = np.array(image.values.shape[:-1])
    first, last = np.clip(start, 0, shape), np.clip(stop, 0, shape)
    whole = bool((start >= 0).all() and (stop <= shape).all())
    result = np.empty((*(stop - start).tolist(), image.values.shape[-1]), image.values.dtype)
    if not whole:
        result[...] = _fill(image, fill, image.values.dtype)
    there = tuple(slice(a, b) for a, b in zip(first - start, np.maximum(last, first) - start, strict=True))
    result[there] = image.values[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return image._replace(values=result, affine=_moved(image, np.eye(len(shape)), start.astype(float)))


def axis_number(image: Image, axis: Axis) -> int:
    """Position of an axis in the shape of the image.

    Raises:
      ValueError: an image in the plane has no axis `d`.
    """
    names = "dhw"[-(image.values.ndim - 1) :]
    if axis not in names:
        raise ValueError(f"the image of shape {image.values.shape} has no axis {axis!r}; it has {', '.join(names)}.")
    return names.index(axis)


def linear_weights(n: int, m: int, start: float, extent: float, *, antialias: bool) -> Float[np.ndarray, "m n"]:
    r"""Linear interpolation along one axis: :math:`m` samples of the window that begins `start` voxels from the border.

    Sample :math:`i` lies at :math:`\text{start} + (i + \tfrac12)\,\text{extent}/m - \tfrac12`; beyond the axis the edge
    value goes on.

    Args:
      n: voxels of the axis.
      m: samples.
      start: first face of the window, voxels from the first face of the axis; may be negative.
      extent: length of the window in voxels.
      antialias: widen the kernel to `extent / m` voxels where that is more than one.

    Returns:
      Rows that sum to one.

    Example:
      >>> linear_weights(4, 2, 0.0, 4.0, antialias=False).tolist()
      [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    position = start + (np.arange(m) + 0.5) * extent / m - 0.5
    return _hat_weights(n, position, max(1.0, extent / m) if antialias else 1.0)


def _hat_weights(n: int, position: Float[np.ndarray, "m"], width: float = 1.0) -> Float[np.ndarray, "m n"]:
    position = np.clip(position, 0, n - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n)) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def _read_at(
    image: Image,
    matrix: Float[np.ndarray, "k k"],
    offset: Float[np.ndarray, "k"],
    shape: tuple[int, ...],
    method: Method | None,
    antialias: bool,
) -> Shaped[np.ndarray, "*space c"]:
    """Values at `matrix @ index + offset` of the image's own indices; constant beyond its outermost voxel centres."""
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(
            f"the new grid would have {' × '.join(map(str, shape))} voxels, more than {MAX_VOXELS}; expected a spacing "
            "in mm. Look at the spacing asked for and at that of the image."
        )
    method = method or ("nearest" if image.unit == "label" else "linear")
    if method == "half":
        return _majority(image, matrix, offset, shape, antialias)
    if method == "nearest":
        # SciPy knows no float16.
        values = as_floats(image) if image.values.dtype == np.float16 else image.values
        return _interpolate(values, matrix, offset, shape, order=0)
    sigma = _sigma(matrix, POINT_SPREAD) if antialias else np.zeros(len(matrix))
    return _smooth_and_interpolate(as_floats(image), matrix, offset, shape, sigma, 1 if method == "linear" else 3)


def _majority(
    image: Image,
    matrix: Float[np.ndarray, "k k"],
    offset: Float[np.ndarray, "k"],
    shape: tuple[int, ...],
    antialias: bool,
) -> Shaped[np.ndarray, "*space c"]:
    """Each label where its own indicator, interpolated linearly, reaches one half; the lowest where two do."""
    dtype = np.dtype(np.uint8) if image.values.dtype == bool else image.values.dtype
    result = np.zeros((*shape, image.values.shape[-1]), dtype)
    sigma = _sigma(matrix, VOXEL_SPREAD) if antialias else np.zeros(len(matrix))
    for label in np.unique(image.values[image.values != 0])[::-1]:
        indicator = (image.values == label).astype(np.float32)
        fraction = _smooth_and_interpolate(indicator, matrix, offset, shape, sigma, order=1)
        result[fraction >= 0.5 - SLACK] = label
    return result


def _sigma(matrix: Float[np.ndarray, "k k"], spread: float) -> Float[np.ndarray, "k"]:
    """Standard deviation, in old voxels, of the Gaussian that widens an old voxel to a new one."""
    # Length of a new voxel along each old axis, in old voxels.
    widths = np.linalg.norm(matrix, axis=1)
    sigma = np.sqrt(np.maximum(widths**2 - 1, 0) * spread)
    return np.where(sigma < 0.05, 0.0, sigma)  # a kernel of one voxel


def _smooth_and_interpolate(
    values: Float[np.ndarray, "*space c"],
    matrix: Float[np.ndarray, "k k"],
    offset: Float[np.ndarray, "k"],
    shape: tuple[int, ...],
    sigma: Float[np.ndarray, "k"],
    order: int,
) -> Float[np.ndarray, "*shape c"]:
    from scipy import ndimage

    diagonal = np.diag(matrix)
    if order > 1 or not np.array_equal(matrix, np.diag(diagonal)):
        if sigma.any():
            values = ndimage.gaussian_filter(values, (*sigma.tolist(), 0), mode="nearest")
        return _interpolate(values, matrix, offset, shape, order=order)
    # Smoothing and linear interpolation are one matrix an axis, three times as fast on a CT: nothing is smoothed that
    # is not read. The axis that shrinks most goes first.
    for axis in np.argsort(np.array(shape) / values.shape[:-1]).tolist():
        n, m = values.shape[axis], shape[axis]
        weights = _hat_weights(n, offset[axis] + diagonal[axis] * np.arange(m))
        if sigma[axis]:
            weights = weights @ ndimage.gaussian_filter1d(np.eye(n), sigma[axis], axis=0, mode="nearest")
        values = np.moveaxis(np.tensordot(weights.astype(values.dtype), values, (1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def _interpolate(
    values: Shaped[np.ndarray, "*space c"],
    matrix: Float[np.ndarray, "k k"],
    offset: Float[np.ndarray, "k"],
    shape: tuple[int, ...],
    *,
    order: int,
) -> Shaped[np.ndarray, "*shape c"]:
    from scipy import ndimage

    diagonal = np.diag(matrix)
    separable = np.array_equal(matrix, np.diag(diagonal))
    result = np.empty((*shape, values.shape[-1]), values.dtype)
    source = values.view(np.uint8) if values.dtype == bool else values
    target = result.view(np.uint8) if values.dtype == bool else result
    for channel in range(values.shape[-1]):
        target[..., channel] = ndimage.affine_transform(
            source[..., channel],
            # One number an axis takes scipy's separable path.
            diagonal if separable else matrix,
            offset.tolist(),
            output_shape=shape,
            output=source.dtype,
            order=order,
            mode="nearest",
        )
    return result


def _in_view(
    matrix: Float[np.ndarray, "3 3"], offset: Float[np.ndarray, "3"], shape: tuple[int, ...], size: tuple[int, ...]
) -> Bool[np.ndarray, "d h w"]:
    """Whether each voxel centre lies in the field of view of an image of `size`; broadcasts to `shape`."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    seen = np.ones((1, 1, 1), bool)
    for row, origin, n in zip(matrix, offset, size, strict=True):
        position = origin + sum((step * index for step, index in zip(row, axes, strict=True) if step), np.zeros(()))
        seen = seen & (position >= -0.5 - SLACK) & (position <= n - 0.5 + SLACK)
    return seen


def _respaced(
    image: Image, spacing: float | Sequence[float]
) -> tuple[tuple[int, ...], Float[np.ndarray, "4 4"] | None, tuple[float, ...]]:
    """Shape, affine and spacing of the smallest grid of this spacing that covers the image about its centre."""
    shape = image.values.shape[:-1]
    new = np.array(_per_axis("spacing", spacing, len(shape)), float)
    steps = new / np.array(_spacing(image))
    sizes = np.maximum(1, np.ceil(np.array(shape) / steps - SLACK)).astype(int)
    affine = _moved(image, np.diag(steps), (np.array(shape) - 1) / 2 - steps * (sizes - 1) / 2)
    return tuple(sizes.tolist()), affine, tuple(new.tolist())


def _moved(
    image: Image, matrix: Float[np.ndarray, "k k"], offset: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "4 4"] | None:
    """Affine of the grid whose index `i` is index `matrix @ i + offset` of the image."""
    if image.affine is None:
        return None
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = matrix, offset
    return image.affine @ step


def _affine(name: str, image: Image) -> Float[np.ndarray, "4 4"]:
    if image.affine is None or image.values.ndim != 4:
        raise ValueError(
            f"the {name} of shape {image.values.shape} has no affine; expected volumes with affines. Read them from "
            "NIfTI, NRRD, MHA or DICOM, which say where they lie."
        )
    return image.affine


def _spacing(image: Image) -> tuple[float, ...]:
    if image.spacing is None:
        raise ValueError(
            f"the image of shape {image.values.shape} has no spacing; expected mm. Give the spacing of the source, or "
            "use an operation that counts voxels, such as `resize`."
        )
    return image.spacing


def _per_axis(name: str, value: float | Sequence[float], axes: int) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{name} holds {len(value)} numbers; expected one, or one for each of {axes} axes.")
    return tuple(value)


def _extent(mask: Bool[np.ndarray, "*space"]) -> tuple[Int[np.ndarray, "space"], Int[np.ndarray, "space"]]:
    """First and last index that the mask occupies along every axis."""
    axes = range(mask.ndim)
    lines = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return np.array([line[0] for line in lines]), np.array([line[-1] for line in lines])


def _box_in(
    affine: Float[np.ndarray, "4 4"], low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Smallest box along the axes of another grid around a box of this one."""
    corners = np.array(
        [[x, y, z, 1.0] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )
    moved = (corners @ affine.T)[:, :3]
    return moved.min(axis=0), moved.max(axis=0)


def _fill(image: Image, fill: float | None, dtype: np.dtype) -> float:
    if fill is None:
        fill = AIR_HU if image.unit == "HU" else 0.0
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        if not (float(fill).is_integer() and limits.min <= fill <= limits.max):
            raise ValueError(f"fill is {fill:g}, which {dtype} of the image cannot hold; expected a value it can.")
    return fill
