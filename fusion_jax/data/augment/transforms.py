"""What an augmentation is made of: transforms of place, transforms of values, and groups of them.

A transform is a value: frozen, hashable, equal to another with the same numbers, so that a recipe is a static argument
of a compiled function and a line of a config. It draws from the key it is given and holds no state. `p` is the
probability of being applied; what is not applied costs the same and changes no bit.

Axes are the spatial ones, `(h, w)` or `(d, h, w)`, counted from 0, or from the last with -1. A range is a pair
`(low, high)` from which a number is drawn uniformly; where one number is welcome it stands for `(-number, number)`.
"""

import abc
import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, Bool, Float, Key
from fusion_jax.ops import affine_matrix, elastic_displacement

__all__ = [
    "AffineJitter",
    "AllOf",
    "Blur",
    "Contrast",
    "Elastic",
    "Flip",
    "GaussianBlur",
    "Noise",
    "OneOf",
    "QuarterTurns",
    "Rescale",
    "Rotate",
    "Scale",
    "Transform",
    "Translate",
]

Range = float | tuple[float, float]
Affine = tuple[Float[Array, "axes axes"], Float[Array, "axes"]]
PRODUCT = jax.lax.Precision.HIGHEST
PLANES = {2: ((0, 1),), 3: ((1, 2), (0, 2), (0, 1))}
"""The plane in which a turn about each axis happens; a 2-D image has one."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """Anything that a recipe can hold.

    Attributes:
      p: probability of being applied, for a member of a group once the group has chosen it.
    """

    p: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"{type(self).__name__}: p is {self.p!r}; expected a probability from 0 to 1.")

    @property
    def moves(self) -> bool:
        """Whether places change, so that every source, mask and box of a case has to follow one draw."""
        return isinstance(self, AffineTransform | Elastic)


class AffineTransform(Transform, abc.ABC):
    """A transform of place that is one matrix."""

    @abc.abstractmethod
    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Matrix and offset from positions of the output to positions of the input, as `affine_warp` takes them."""


class ValueTransform(Transform, abc.ABC):
    """A transform of values that leaves everything in its place."""

    @abc.abstractmethod
    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """The image with other values, at least single precision."""


# Places


@dataclasses.dataclass(frozen=True)
class Flip(AffineTransform):
    """Mirrors one axis, bit for bit.

    Attributes:
      axis: the spatial axis; -1, the last, is left and right of an image and of a volume.

    Example:
      >>> Flip(-1) == Flip(p=0.5), hash(Flip()) == hash(Flip(0))
      (True, False)
    """

    axis: int = -1
    p: float = dataclasses.field(default=0.5, kw_only=True)

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Mirror about the centre; nothing is drawn."""
        axis = spatial_axis(self, self.axis, len(sizes))
        return affine_matrix(sizes, flip=[i == axis for i in range(len(sizes))], scale=jnp.ones_like(spacing))


@dataclasses.dataclass(frozen=True)
class Rotate(AffineTransform):
    """Turns about the centre; in millimetres, where the sample has a spacing.

    Attributes:
      limit: angle in degrees, a range or one number for both directions.
      axis: the axis that stays, in 3-D; 0 is the body axis of a volume in canonical order. 2-D has one rotation.
    """

    limit: Range
    axis: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "limit", self.limit)

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Rotation by one drawn angle."""
        angle = jnp.deg2rad(drawn(key, bounds(self, "limit", self.limit), spacing))
        if len(sizes) == 3:
            angle = jnp.zeros_like(spacing).at[spatial_axis(self, self.axis, 3)].set(angle)
        return affine_matrix(sizes, rotation=angle, spacing=spacing)


@dataclasses.dataclass(frozen=True)
class QuarterTurns(AffineTransform):
    """Turns by 90, 180 or 270 degrees, each as likely; bit for bit where the two axes are equally long.

    With `p=0.75` all four orientations are equally likely. The shape stays: of a longer axis the ends are cut.

    Attributes:
      axis: the axis that stays, in 3-D.
    """

    axis: int = 0
    p: float = dataclasses.field(default=0.75, kw_only=True)

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Rotation by a drawn number of quarter turns."""
        axes = len(sizes)
        low, high = PLANES[axes][spatial_axis(self, self.axis, 3) if axes == 3 else 0]
        turns = jax.random.randint(key, (), 1, 4)
        # From a table: the cosine of 90 degrees is -4e-8 in single precision, and bits would change.
        cosine = jnp.asarray([1, 0, -1, 0], spacing.dtype)[turns]
        sine = jnp.asarray([0, 1, 0, -1], spacing.dtype)[turns]
        matrix = jnp.eye(axes, dtype=spacing.dtype).at[jnp.asarray([low, high]), jnp.asarray([low, high])].set(cosine)
        matrix = matrix.at[low, high].set(sine).at[high, low].set(-sine)
        matrix = matrix * spacing[None, :] / spacing[:, None]
        centre = (jnp.asarray(sizes, spacing.dtype) - 1) / 2
        return matrix, centre - jnp.matmul(matrix, centre, precision=PRODUCT)


@dataclasses.dataclass(frozen=True)
class Scale(AffineTransform):
    """Enlarges or shrinks about the centre, all axes alike; the number of positions stays.

    Attributes:
      factors: range of the factor; above 1 enlarges.
    """

    factors: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "factors", self.factors, above=0)

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Scaling by one drawn factor."""
        return affine_matrix(sizes, scale=drawn(key, self.factors, spacing), spacing=spacing)


@dataclasses.dataclass(frozen=True)
class Translate(AffineTransform):
    """Shifts along every axis, each by a draw of its own.

    Attributes:
      limit: shift in mm where the sample has a spacing, in positions where it has none; a range or one number for both
        directions.
    """

    limit: Range

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "limit", self.limit)

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Shift by one drawn vector."""
        shift = drawn(key, bounds(self, "limit", self.limit), spacing, (len(sizes),))
        return affine_matrix(sizes, translation=shift, spacing=spacing)


@dataclasses.dataclass(frozen=True)
class AffineJitter(AffineTransform):
    r"""Moves corners of a central square, each by a draw of its own, and everything else along with them.

    With corners :math:`P` at :math:`\pm s` from the centre, :math:`s` a third of the shortest axis, and
    :math:`\epsilon \sim U(-l, l)` along every axis, the affine map takes :math:`P` to :math:`P + \epsilon`: three
    corners in 2-D, four in 3-D.

    Attributes:
      limit: largest shift :math:`l` of a corner along an axis, in positions.

    References:
      The argument `alpha_affine` of the elastic transform of albumentations 0.4 to 1.3.
    """

    limit: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.limit < math.inf:
            raise ValueError(f"AffineJitter: limit is {self.limit!r}; expected a finite number from 0, in positions.")

    def affine(self, key: Key, sizes: Sequence[int], spacing: Float[Array, "axes"]) -> Affine:
        """Affine map of the drawn corners."""
        axes, third = len(sizes), min(sizes) // 3
        # Differences of moved corners are (2s, 0), (0, 2s) plus at most 2l an entry: below s / axes no map folds.
        if self.limit * axes >= third:
            raise ValueError(
                f"AffineJitter: limit is {self.limit!r} positions for an image of {tuple(sizes)} positions; expected "
                f"less than {third / axes:g}, a {3 * axes}th of the shortest axis, or the image may be turned inside "
                "out. Give a smaller limit."
            )
        signs = np.where(np.arange(axes)[None, :] < np.arange(axes, -1, -1)[:, None], 1.0, -1.0)
        corners = jnp.asarray((np.asarray(sizes) - 1) / 2 + third * signs, spacing.dtype)
        moved = corners + drawn(key, (-self.limit, self.limit), spacing, corners.shape)
        steps, moved_steps = (points[:-1] - points[1:] for points in (corners, moved))
        matrix = jnp.matmul(steps.T, jnp.linalg.inv(moved_steps.T), precision=PRODUCT)
        return matrix, corners[0] - jnp.matmul(matrix, moved[0], precision=PRODUCT)


@dataclasses.dataclass(frozen=True)
class Elastic(Transform):
    r"""Smooth random displacement, :math:`\alpha\, (G_\sigma * \epsilon)` with :math:`\epsilon \sim U(-1, 1)`.

    :math:`\alpha` is that of Simard and of albumentations, not a displacement in pixels: away from the border the
    displacement has standard deviation :math:`\alpha \lVert G_\sigma \rVert_2 / \sqrt 3`, in 2-D about
    :math:`0.163\, \alpha / \sigma` pixels, and at :math:`\alpha = 1, \sigma = 5` only 0.03 pixels. Unlike there, it is
    as large at the border. Above about :math:`\alpha = 2 \sigma^2` the image folds over itself, and boxes with it.

    The field has the same law everywhere and in every direction; it is therefore drawn on the grid of the result and
    added after all matrices, wherever the transform stands in the recipe.

    Attributes:
      alpha: factor :math:`\alpha`.
      sigma: standard deviation of the Gaussian :math:`G_\sigma`, in positions.

    Example:
      >>> round(Elastic(alpha=100.0, sigma=5.0).deviation(2), 2)
      3.26

    References:
      Simard et al. 2003, section 2.
    """

    alpha: float
    sigma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha < math.inf and 0 < self.sigma < math.inf):
            raise ValueError(
                f"Elastic: alpha is {self.alpha!r} and sigma {self.sigma!r}; expected a finite alpha from 0 and a "
                "sigma above 0, in positions."
            )

    def deviation(self, axes: int) -> float:
        """Standard deviation of the displacement along one axis, in positions."""
        reach = math.ceil(4 * self.sigma)
        taps = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / self.sigma))
        norm = np.linalg.norm(taps) / taps.sum()
        return float(self.alpha * norm**axes / math.sqrt(3))

    def displacement(
        self, key: Key, sizes: Sequence[int], applied: Bool[Array, ""], dtype: np.dtype
    ) -> Float[Array, "axes *n"]:
        """Drawn displacement in positions, zero unless applied."""
        deviation = jnp.where(applied, jnp.asarray(self.deviation(len(sizes)), dtype), 0)
        return elastic_displacement(key, sizes, magnitude=deviation, smoothness=self.sigma)


# Values


@dataclasses.dataclass(frozen=True)
class Blur(ValueTransform):
    """Mean over a square window of drawn size; beyond the border the image is mirrored about its last position.

    Attributes:
      sizes: odd sizes to draw from, in positions.
    """

    sizes: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or not all(isinstance(size, int) and size > 0 and size % 2 for size in self.sizes):
            raise ValueError(f"Blur: sizes is {self.sizes!r}; expected odd positive integers, one or several.")

    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Mean over the window, along one axis after the other."""
        reach = jnp.asarray([size // 2 for size in self.sizes])[jax.random.randint(key, (), 0, len(self.sizes))]
        widest = max(self.sizes) // 2

        def kernel(distance: Array) -> Array:
            return (jnp.abs(distance) <= reach).astype(x.dtype) / (2 * reach + 1).astype(x.dtype)

        return filtered(x, [smoothing(self, kernel, size, widest) for size in x.shape[:-1]])


@dataclasses.dataclass(frozen=True)
class GaussianBlur(ValueTransform):
    """Gaussian of drawn width; beyond the border the image is mirrored about its last position.

    Attributes:
      sigma: range of the standard deviation, in positions; the window ends at four of them.

    References:
      `scipy.ndimage.gaussian_filter` with mode `mirror`.
    """

    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "sigma", self.sigma, above=0)

    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Gaussian filter, along one axis after the other."""
        sigma = drawn(key, self.sigma, x)
        widest = int(4 * self.sigma[1] + 0.5)

        def taps(distance: Array) -> Array:
            inside = jnp.abs(distance).astype(x.dtype) <= jnp.floor(4 * sigma + 0.5)
            return jnp.where(inside, jnp.exp(-0.5 * jnp.square(distance.astype(x.dtype) / sigma)), 0)

        total = jnp.sum(taps(jnp.arange(-widest, widest + 1)))
        return filtered(
            x, [smoothing(self, lambda distance: taps(distance) / total, size, widest) for size in x.shape[:-1]]
        )


@dataclasses.dataclass(frozen=True)
class Rescale(ValueTransform):
    r"""Resolution of another grid: resized to :math:`\lfloor s n \rfloor` positions and back, field of view unchanged.

    Nothing moves, so masks and boxes stay; to zoom is `Scale`. Both ways are linear without antialiasing, as in
    `fusion_jax.ops.resize`: the image becomes a little softer, also with a factor above 1.

    Attributes:
      factors: range of the factor :math:`s`.
    """

    factors: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "factors", self.factors, above=0)

    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Both resizings in one product along every axis."""
        factor = drawn(key, self.factors, x)
        return filtered(x, [_there_and_back(factor, size) for size in x.shape[:-1]])


@dataclasses.dataclass(frozen=True)
class Contrast(ValueTransform):
    r"""Stretches values about a pivot, :math:`y = m + f (x - m)`.

    Attributes:
      factors: range of the factor :math:`f`.
      about: the pivot :math:`m`, a value or "mean", the mean of the image of each channel.
      clip: values to stay within, where the images have a range.
    """

    factors: tuple[float, float]
    about: float | Literal["mean"] = "mean"
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self, "factors", self.factors)
        if isinstance(self.about, str) and self.about != "mean":
            raise ValueError(f"Contrast: about is {self.about!r}; expected a number or 'mean'.")
        if self.clip is not None:
            bounds(self, "clip", self.clip)

    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Stretched values."""
        factor = drawn(key, self.factors, x)
        if self.about == "mean":
            pivot = jnp.broadcast_to(jnp.mean(x, axis=tuple(range(x.ndim - 1)), keepdims=True), x.shape)
        else:
            pivot = jnp.asarray(self.about, x.dtype)
        stretched = pivot + factor * (x - pivot)
        return stretched if self.clip is None else jnp.clip(stretched, *self.clip)


@dataclasses.dataclass(frozen=True)
class Noise(ValueTransform):
    """Adds independent Gaussian noise to every value.

    Attributes:
      deviation: range of the standard deviation, in the unit of the image.
    """

    deviation: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if bounds(self, "deviation", self.deviation)[0] < 0:
            raise ValueError(f"Noise: deviation is {self.deviation!r}; expected a range from 0.")

    def values(self, key: Key, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Noisy values."""
        width_key, noise_key = jax.random.split(key)
        return x + drawn(width_key, self.deviation, x) * jax.random.normal(noise_key, x.shape, x.dtype)


# Groups


@dataclasses.dataclass(frozen=True)
class AllOf(Transform):
    """All members in turn, each with its own `p`, or with 1 - `p` none of them.

    Attributes:
      transforms: the members.
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "transforms", _members(self, self.transforms))

    @property
    def moves(self) -> bool:
        """Whether any member changes places."""
        return any(transform.moves for transform in self.transforms)


@dataclasses.dataclass(frozen=True)
class OneOf(Transform):
    """One member, which is then applied with its own `p`, or with 1 - `p` none.

    Attributes:
      transforms: the members.
      weights: how likely each is chosen, relative to the sum; alike unless given.
    """

    transforms: tuple[Transform, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "transforms", _members(self, self.transforms))
        if self.weights is None:
            return
        if len(self.weights) != len(self.transforms) or not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(
                f"OneOf: weights is {self.weights!r} for {len(self.transforms)} transforms; expected one finite number "
                "from 0 for each."
            )
        if sum(self.weights) == 0:
            raise ValueError(f"OneOf: weights is {self.weights!r}; expected at least one above 0.")

    @property
    def moves(self) -> bool:
        """Whether any member changes places."""
        return any(transform.moves for transform in self.transforms)


class Draw(NamedTuple):
    """What one transform draws before anything else: two uniform numbers and a key."""

    chance: Float[Array, ""]
    choice: Float[Array, ""]
    key: Key


def draws(transforms: Sequence[Transform], key: Key) -> dict[str, Draw]:
    """Draws of every transform of a recipe by its place, `1.0` for the first member of the second.

    A place keeps its draws when transforms at other places are changed.
    """
    places = list(_places(transforms))
    if not places:
        return {}
    # All at once: a generator for each, one after the other, would be half of the compile time of a recipe.
    seeds = jnp.asarray([zlib.crc32(place.encode()) for place in places], jnp.uint32)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed)))(seeds)
    chances = jax.vmap(lambda one: jax.random.uniform(one, (2,), jnp.result_type(float)))(keys[:, 0])
    return {place: Draw(chances[i, 0], chances[i, 1], keys[i, 1]) for i, place in enumerate(places)}


def leaves(
    transforms: Sequence[Transform],
    case: dict[str, Draw],
    source: dict[str, Draw],
    applied: Bool[Array, ""] | None = None,
    inside: str = "",
) -> Iterator[tuple[Transform, Key, Bool[Array, ""]]]:
    """Every transform that is no group, in order, with its key and whether it is applied.

    What moves places, alone or inside a group, is decided by the draws of the case; all else by those of the source.
    """
    for place, transform in enumerate(transforms):
        path = f"{inside}{place}"
        draw = (case if transform.moves else source)[path]
        now = draw.chance < transform.p
        now = now if applied is None else applied & now
        match transform:
            case AllOf(transforms=members):
                yield from leaves(members, case, source, now, f"{path}.")
            case OneOf(transforms=members, weights=weights):
                weights = np.ones(len(members)) if weights is None else np.asarray(weights)
                ends = jnp.asarray(np.cumsum(weights)[:-1] / np.sum(weights), draw.choice.dtype)
                chosen = jnp.sum(draw.choice >= ends)
                for i, member in enumerate(members):
                    yield from leaves([member], case, source, now & (chosen == i), f"{path}.{i}.")
            case _:
                yield transform, draw.key, now


def _places(transforms: Sequence[Transform], inside: str = "") -> Iterator[str]:
    for place, transform in enumerate(transforms):
        path = f"{inside}{place}"
        yield path
        match transform:
            case AllOf(transforms=members):
                yield from _places(members, f"{path}.")
            case OneOf(transforms=members):
                for i, member in enumerate(members):
                    yield from _places([member], f"{path}.{i}.")


def spatial_axis(transform: Transform, axis: int, axes: int) -> int:
    """`axis` counted from 0, or a ValueError that names the transform."""
    if not -axes <= axis < axes:
        raise ValueError(f"{type(transform).__name__}: axis is {axis!r} for {axes} spatial axes.")
    return axis % axes


def bounds(transform: Transform, name: str, limit: Range, *, above: float = -math.inf) -> tuple[float, float]:
    """`limit` as a range, or a ValueError that names the transform and its argument."""
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    if not (above < low <= high < math.inf and math.isfinite(low)):
        wanted = f"finite numbers above {above:g}" if above > -math.inf else "finite numbers"
        raise ValueError(
            f"{type(transform).__name__}: {name} is {limit!r}; expected a range (low, high) of {wanted}, low first."
        )
    return low, high


def drawn(key: Key, limits: tuple[float, float], like: Array, shape: tuple[int, ...] = ()) -> Array:
    """Uniform numbers in the dtype of `like`."""
    return jax.random.uniform(key, shape, like.dtype, *limits)


def smoothing(transform: Transform, kernel, size: int, reach: int) -> Float[Array, "n n"]:
    """Matrix of a filter along one axis whose border is mirrored about the last position."""
    if reach >= size:
        raise ValueError(
            f"{type(transform).__name__}: the window reaches {reach} positions on an axis of {size}; expected a window "
            "that is smaller than the image. Give a smaller one."
        )
    here, there = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    mirrored = jnp.where(there > 0, kernel(-there - here), 0)
    mirrored = mirrored + jnp.where(there < size - 1, kernel(2 * (size - 1) - there - here), 0)
    return kernel(there - here) + mirrored


def filtered(x: Float[Array, "*n c"], matrices: Sequence[Float[Array, "_ _"]]) -> Float[Array, "*n c"]:
    """Product with one matrix along every spatial axis."""
    # Products, not convolutions: those along one axis are slow on XLA:CPU, and these have any width at one speed.
    for axis, matrix in enumerate(matrices):
        x = jnp.moveaxis(jnp.tensordot(matrix, x, axes=(1, axis), precision=PRODUCT), 0, axis)
    return x


def _there_and_back(factor: Float[Array, ""], size: int) -> Float[Array, "n n"]:
    """Matrix that resizes an axis to `factor` times as many positions and back."""
    between = jnp.maximum(jnp.floor(size * factor), 1)

    def neighbours(position: Array, here: Array | float, there: Array | float) -> tuple[Array, Array, Array]:
        place = jnp.clip((position + 0.5) * (here / there) - 0.5, 0, here - 1)
        lower = jnp.floor(place)
        return lower, jnp.minimum(lower + 1, here - 1), place - lower

    columns = jnp.arange(size, dtype=factor.dtype)
    matrix = jnp.zeros((size, size), factor.dtype)
    lower, upper, part = neighbours(columns, between, float(size))
    for middle, weight in ((lower, 1 - part), (upper, part)):
        first, second, share = neighbours(middle, float(size), between)
        for column, amount in ((first, weight * (1 - share)), (second, weight * share)):
            matrix = matrix + jnp.where(column[:, None] == columns[None, :], amount[:, None], 0)
    return matrix


def _members(group: Transform, transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    members = tuple(transforms)
    if not members or not all(isinstance(member, Transform) for member in members):
        raise TypeError(f"{type(group).__name__}: transforms is {transforms!r}; expected transforms, one or several.")
    return members
