"""A recipe applied: to one case, to a batch, with keys that belong to the case and not to its place in a batch."""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Key as Keys
from jaxtyping import Shaped

from fusion_jax.arrays import Array, ArrayLike, Batch, Bool, Float, Int, Key, as_floats
from fusion_jax.data.augment.boxes import flipped_boxes, warped_boxes
from fusion_jax.data.augment.transforms import (
    PRODUCT,
    AffineTransform,
    Elastic,
    Flip,
    Transform,
    ValueTransform,
    draws,
    leaves,
    spatial_axis,
)
from fusion_jax.ops import warp

__all__ = ["Recipe", "Sample", "augment_batch", "augment_sample", "augmented", "case_keys", "swap_flag"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Transforms of one cohort, in their order, and what lies beyond the border of an image.

    All transforms of place become one map, so that an image is interpolated once; transforms of values follow, in their
    order. A recipe of flips alone interpolates nothing.

    Attributes:
      transforms: what to do.
      border: "constant" continues an image with `fill`, "edge" with its outermost values.
      fill: one value, or one a source (air in CT is -1000 HU) as a mapping or pairs; 0 for sources that are not named.
        Masks go on with 0.

    Example:
      >>> from fusion_jax.data.augment import Flip, Rotate
      >>> Recipe((Flip(), Rotate(10)), fill={"ct": -1000}).fill
      (('ct', -1000.0),)
    """

    transforms: tuple[Transform, ...] = ()
    border: Literal["constant", "edge"] = "constant"
    fill: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 0.0

    def __post_init__(self) -> None:
        transforms = tuple(self.transforms)
        if not all(isinstance(transform, Transform) for transform in transforms):
            raise TypeError(f"transforms is {self.transforms!r}; expected transforms such as Flip() and Rotate(10).")
        if self.border not in ("constant", "edge"):
            raise ValueError(f"border is {self.border!r}; expected 'constant' or 'edge'.")
        object.__setattr__(self, "transforms", transforms)
        fill = self.fill
        if isinstance(fill, Mapping):
            fill = tuple(sorted(fill.items()))
        if isinstance(fill, tuple):
            fill = tuple((str(name), float(value)) for name, value in fill)
            values = [value for _, value in fill]
        else:
            fill = float(fill)
            values = [fill]
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"fill is {self.fill!r}; expected finite values.")
        object.__setattr__(self, "fill", fill)

    def fill_of(self, source: str) -> float:
        """Value beyond the border of `source`."""
        return self.fill if isinstance(self.fill, int | float) else dict(self.fill).get(source, 0.0)


class Sample(NamedTuple):
    """What of a case follows its images, or of a batch of cases with a leading axis `b` everywhere.

    Attributes:
      images: source to image, `(*spatial, c)`, floating; all on one grid.
      masks: name to label map on that grid, `(*spatial, c)`, any dtype; the masks of several boxes are channels.
      boxes: `(m, 4)` in pixels, of 2-D images.
      box_valid: which rows of `boxes` are boxes, `(m,)`; all unless given.
      present: source to whether the case has it, `()`; True for sources that are not named; other names, of other
        kinds of source, say nothing here.
      spacing: distance of positions in mm, `(axes,)`; 1 unless given, so that millimetres are positions.
      mirrored: in a result, which axes were mirrored, `(axes,)`, for what depends on left and right.
    """

    images: Mapping[str, Any]
    masks: Mapping[str, Any] | None = None
    boxes: Any = None
    box_valid: Any = None
    present: Mapping[str, Any] | None = None
    spacing: Any = None
    mirrored: Any = None


def augment_sample(recipe: Recipe, sample: Sample, key: Key) -> Sample:
    r"""One case as the recipe shows it under `key`: images, masks and boxes moved together.

    Position :math:`o` of the result shows position :math:`A\,o + t + u(o)`, with all matrices of the recipe multiplied
    into :math:`A, t` and all elastic displacements added up in :math:`u`; images linearly, masks by the nearest
    position. Sources share what moves places; whatever changes values is drawn for each by the name of the source.

    A box becomes the box around its moved corners, with an elastic recipe around 16 moved points a side, and is cut at
    the border: turned, it is looser than the object. What is not left in the image is zeros and not valid.

    Args:
      recipe: what to do; static under `jit`.
      sample: one case, without batch axis.
      key: of the case and the epoch, see `case_keys`.

    Returns:
      Sample with the shapes and dtypes of `sample`, `box_valid` filled in where there are boxes, `mirrored` filled in.
      Images of absent sources are zeros. Differentiable in the images.

    Raises:
      ValueError: no image, images and masks on different grids, boxes of volumes, a transform that does not suit the
        size of the image.
      TypeError: an image of integers.

    Example:
      >>> from fusion_jax.data.augment import Flip
      >>> shown = augment_sample(
      ...     Recipe((Flip(p=1),)),
      ...     Sample({"xray": jnp.array([[[1.0], [2.0]]])}, boxes=jnp.array([[0.0, 0.0, 1.0, 1.0]])),
      ...     jax.random.key(0),
      ... )
      >>> shown.images["xray"].ravel().tolist(), shown.boxes.tolist(), shown.mirrored.tolist()
      ([2.0, 1.0], [[1.0, 0.0, 2.0, 1.0]], [False, True])
    """
    images, masks, sizes = _checked(sample)
    axes, dtype = len(sizes), jnp.result_type(float)
    spacing = jnp.ones(axes, dtype) if sample.spacing is None else jnp.asarray(sample.spacing, dtype)
    boxes, box_valid = sample.boxes, sample.box_valid
    if boxes is not None:
        (boxes,) = as_floats(boxes)
        box_valid = jnp.ones(boxes.shape[:-1], bool) if box_valid is None else jnp.asarray(box_valid, bool)

    of_case = draws(recipe.transforms, key)
    places = [leaf for leaf in leaves(recipe.transforms, of_case, of_case) if leaf[0].moves]
    flips = [(spatial_axis(leaf, leaf.axis, axes), applied) for leaf, _, applied in places if isinstance(leaf, Flip)]
    mirrored = jnp.zeros(axes, bool)
    for axis, applied in flips:
        mirrored = mirrored.at[axis].set(mirrored[axis] ^ applied)
    if len(flips) == len(places):
        touched = sorted({axis for axis, _ in flips})
        images = {name: _flipped(x, mirrored, touched) for name, x in images.items()}
        masks = {name: _flipped(x, mirrored, touched) for name, x in masks.items()}
        if boxes is not None:
            boxes, box_valid = flipped_boxes(boxes, box_valid, mirrored, sizes)
    else:
        matrix, offset, displacement = _map(places, sizes, spacing)
        grid = jnp.indices(sizes, dtype=dtype)
        # Products in full precision: the short ones of an accelerator would misplace by a position.
        coordinates = jnp.einsum("ij,j...->i...", matrix, grid, precision=PRODUCT) + offset.reshape(-1, *(1,) * axes)
        if displacement is not None:
            coordinates = coordinates + displacement
        coordinates = jax.lax.optimization_barrier(coordinates)
        mode = "nearest" if recipe.border == "edge" else "constant"
        images = {name: warp(x, coordinates, mode=mode, fill=recipe.fill_of(name)) for name, x in images.items()}
        masks = {name: _warped_mask(x, coordinates) for name, x in masks.items()}
        if boxes is not None:
            boxes, box_valid = warped_boxes(boxes, box_valid, matrix, offset, displacement, sizes)

    for name, x in images.items():
        of_source = draws(recipe.transforms, jax.random.fold_in(key, zlib.crc32(name.encode())))
        for transform, draw, applied in leaves(recipe.transforms, of_case, of_source):
            if isinstance(transform, ValueTransform):
                # Without it XLA computes what lies before once more for every use: the breast recipe at 224 x 224 then
                # takes twice as long to compile and to run.
                (wide,) = as_floats(jax.lax.optimization_barrier(x))
                x = jnp.where(applied, transform.values(draw, wide).astype(x.dtype), x)
        images[name] = x
        if sample.present is not None and name in sample.present:
            images[name] = jnp.where(jnp.asarray(sample.present[name], bool), x, 0)
    return sample._replace(
        images=images,
        masks=None if sample.masks is None else masks,
        boxes=boxes,
        box_valid=box_valid,
        mirrored=mirrored,
    )


def augment_batch(
    recipe: Recipe, samples: Sample, keys: Keys[Array, "b"], valid: Bool[ArrayLike, "b"] | None = None
) -> Sample:
    """`augment_sample` over a batch: a case comes out the same whatever else is in the batch.

    Args:
      recipe: what to do; static under `jit`, which the caller does once.
      samples: cases along a leading axis `b` in every field.
      keys: one a case, shape `(b,)`, from `case_keys`.
      valid: which rows are cases, shape `(b,)`; the others, padding, come out as they went in and are not mirrored.

    Returns:
      Samples, shapes and dtypes of `samples`.

    Raises:
      ValueError, TypeError: as `augment_sample`.

    Example:
      >>> from fusion_jax.data.augment import Noise
      >>> keys = case_keys(jax.random.key(0), epoch=3, index=jnp.array([7, -1]))
      >>> images = {"xray": jnp.zeros((2, 4, 4, 1))}
      >>> noisy = augment_batch(Recipe((Noise((1.0, 1.0)),)), Sample(images), keys, valid=jnp.array([True, False]))
      >>> jnp.any(noisy.images["xray"] != 0, axis=(1, 2, 3)).tolist()
      [True, False]
    """
    shown = jax.vmap(lambda sample, key: augment_sample(recipe, sample, key))(samples, keys)
    if valid is None:
        return shown
    valid = jnp.asarray(valid, bool)

    def keep(new: Array, old: ArrayLike) -> Array:
        return jnp.where(valid.reshape(-1, *(1,) * (new.ndim - 1)), new, jnp.asarray(old, new.dtype))

    box_valid = samples.box_valid
    if samples.boxes is not None and box_valid is None:
        box_valid = jnp.ones_like(shown.box_valid)
    before = samples._replace(box_valid=box_valid, mirrored=jnp.zeros_like(shown.mirrored))
    return jax.tree.map(keep, shown, before)


def augmented(recipe: Recipe, batch: Batch, keys: Keys[Array, "b"]) -> Batch:
    """A batch with its images, masks and boxes as the recipe shows them; vectors and labels stay as they are.

    Args:
      recipe: what to do; static under `jit`, which the caller does once.
      batch: as from `fusion_jax.data.Batches`; its images are on one grid.
      keys: one a case, shape `(b,)`, from `case_keys(key, epoch, batch.index)`.

    Returns:
      The batch, shapes and dtypes as before.

    Raises:
      ValueError, TypeError: as `augment_sample`.

    Example:
      >>> from fusion_jax.data.augment import Flip
      >>> inputs, there = {"xray": jnp.arange(8.0).reshape(2, 2, 2, 1), "age": jnp.ones((2, 1))}, jnp.ones(2, bool)
      >>> batch = Batch(inputs, {}, there, {"xray": there, "age": there}, jnp.arange(2))
      >>> moved = augmented(Recipe((Flip(p=1.0),)), batch, case_keys(jax.random.key(0), 0, batch.index))
      >>> moved.inputs["xray"][0, :, :, 0].tolist(), moved.inputs["age"].tolist()
      ([[1.0, 0.0], [3.0, 2.0]], [[1.0], [1.0]])
    """
    images = {name: values for name, values in batch.inputs.items() if values.ndim > 2}
    target = dict(batch.target)
    present = {name: batch.present[name] for name in images}
    sample = Sample(images, target.get("masks"), target.get("boxes"), target.get("box_valid"), present)
    shown = augment_batch(recipe, sample, keys, batch.valid)
    moved = {"masks": shown.masks, "boxes": shown.boxes, "box_valid": shown.box_valid}
    target |= {name: values for name, values in moved.items() if name in target}
    return batch._replace(inputs={**batch.inputs, **shown.images}, target=target)


def case_keys(key: Key, epoch: Int[ArrayLike, ""], index: Int[ArrayLike, "*b"]) -> Keys[Array, "*b"]:
    """Keys that belong to case and epoch: the same in any batch, at any place of it, in any order.

    Args:
      key: of the run.
      epoch: counted from 0; the number of the copy in test-time augmentation.
      index: rows of the cohort, shape `(*b,)`; -1, padding, gives a key too.

    Returns:
      One key an index, shape `(*b,)`.

    Example:
      >>> first, second = (case_keys(jax.random.key(0), 2, jnp.array(index)) for index in ([5, 9], [9, 1, 5]))
      >>> bool(first[0] == second[2]), bool(first[1] == second[0])
      (True, True)
    """
    of_epoch = jax.random.fold_in(key, jnp.asarray(epoch).astype(jnp.uint32))
    # Padding is -1, which no unsigned seed is.
    rows = jnp.asarray(index).astype(jnp.uint32)
    keys = jax.vmap(lambda row: jax.random.fold_in(of_epoch, row))(rows.reshape(-1))
    return keys.reshape(rows.shape)


def swap_flag(
    values: Float[ArrayLike, "*b t"],
    mirrored: Bool[ArrayLike, "*b"],
    column: int,
    *,
    levels: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "*b t"]:
    """Clinical values whose flag for the side follows a mirrored image.

    A flip turns a left breast into a right one; `shown.mirrored[..., -1]` says where that happened.

    Args:
      values: clinical inputs, shape `(*b, t)`.
      mirrored: cases whose left and right were exchanged, shape `(*b,)`.
      column: where the flag stands.
      levels: its two numbers, other than 0 and 1 once standardised.

    Returns:
      Values, shape and dtype of `values`, with the one level in place of the other.

    Raises:
      ValueError: no such column.

    Example:
      >>> swap_flag(jnp.array([[61.0, 1.0], [48.0, 1.0]]), jnp.array([True, False]), 1).tolist()
      [[61.0, 0.0], [48.0, 1.0]]

    References:
      specs/breast_mri_fusion.md, B3: the paper leaves the flag as it is.
    """
    values = jnp.asarray(values)
    if not -values.shape[-1] <= column < values.shape[-1]:
        raise ValueError(f"column is {column}; values have {values.shape[-1]} columns.")
    here = jnp.arange(values.shape[-1]) == column % values.shape[-1]
    swap = jnp.asarray(mirrored, bool)[..., None] & jnp.broadcast_to(here, values.shape)
    return jnp.where(swap, jnp.asarray(sum(levels), values.dtype) - values, values)


def _checked(sample: Sample) -> tuple[dict[str, Array], dict[str, Array], tuple[int, ...]]:
    """Images, masks and their common grid."""
    images = {name: jnp.asarray(x) for name, x in sample.images.items()}
    masks = {name: jnp.asarray(x) for name, x in (sample.masks or {}).items()}
    if not images:
        raise ValueError("images is empty; expected one image a source.")
    for name, x in images.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"image {name!r} is {x.dtype.name}; expected a floating dtype. Scale it to numbers first, or give a "
                "label map as a mask."
            )
    shapes = {f"image {name!r}": x.shape for name, x in images.items()}
    shapes |= {f"mask {name!r}": x.shape for name, x in masks.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if len(other) not in (3, 4):
            raise ValueError(f"{name} has shape {other}; expected (h, w, c) or (d, h, w, c), a batch in augment_batch.")
        if other[:-1] != shape[:-1]:
            raise ValueError(
                f"{name} has shape {other} and {first} {shape}; expected one grid. Resample them onto one, or augment "
                "them in calls of their own where nothing has to stay aligned."
            )
    if sample.boxes is not None and len(shape) == 4:
        raise ValueError(f"boxes are given for volumes, {first} has shape {shape}; boxes are of 2-D images.")
    if sample.boxes is None and sample.box_valid is not None:
        raise ValueError("box_valid is given without boxes.")
    return images, masks, shape[:-1]


def _map(
    places: Sequence[tuple[Transform, Key, Bool[Array, ""]]], sizes: tuple[int, ...], spacing: Float[Array, "axes"]
) -> tuple[Float[Array, "axes axes"], Float[Array, "axes"], Float[Array, "axes *n"] | None]:
    """All transforms of place as one map, from positions of the result to positions of the image."""
    identity = jnp.eye(len(sizes), dtype=spacing.dtype)
    matrix, offset, displacement = identity, jnp.zeros_like(spacing), None
    for transform, key, applied in places:
        if isinstance(transform, AffineTransform):
            step, shift = transform.affine(key, sizes, spacing)
            step, shift = jnp.where(applied, step, identity), jnp.where(applied, shift, 0)
            # The later transform is looked up first.
            offset = offset + jnp.matmul(matrix, shift, precision=PRODUCT)
            matrix = jnp.matmul(matrix, step, precision=PRODUCT)
        elif isinstance(transform, Elastic):
            field = transform.displacement(key, sizes, applied, spacing.dtype)
            displacement = field if displacement is None else displacement + field
    return matrix, offset, displacement


def _warped_mask(x: Shaped[Array, "*n c"], coordinates: Float[Array, "axes *n"]) -> Shaped[Array, "*n c"]:
    numbers = x.astype(jnp.uint8) if x.dtype == bool else x
    return warp(numbers, coordinates, method="nearest").astype(x.dtype)


def _flipped(x: Shaped[Array, "*n c"], mirrored: Bool[Array, "axes"], touched: Sequence[int]) -> Shaped[Array, "*n c"]:
    for axis in touched:
        x = jnp.where(mirrored[axis], jnp.flip(x, axis), x)
    return x
