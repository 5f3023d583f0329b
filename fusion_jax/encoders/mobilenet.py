"""MobileNetV3, small and large, for images in two and three dimensions with any number of channels.

Modules are named after their part: a block has `expand_conv` and `expand_bn`, `depthwise_conv` and `depthwise_bn`, then
`se_reduce` and `se_expand` (squeeze and excitation), and `project_conv` and `project_bn`; `stem_conv`, `stem_bn`,
`head_conv` and `head_bn` stand before and after the blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.cnn import as_images, check_strides, project
from fusion_jax.encoders.initial import he_normal
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.ops.pool import global_average_pool

__all__ = ["MobileNetV3", "MobileNetV3Large", "MobileNetV3Maps", "MobileNetV3Small"]

Size = Literal["small", "large"]

COARSEST = 32
"""Pixels a position of the last map."""


class _BlockDesign(NamedTuple):
    window: int
    wide: int
    out: int
    excite: bool
    swish: bool
    strides: int


_LARGE = (
    _BlockDesign(3, 16, 16, excite=False, swish=False, strides=1),
    _BlockDesign(3, 64, 24, excite=False, swish=False, strides=2),
    _BlockDesign(3, 72, 24, excite=False, swish=False, strides=1),
    _BlockDesign(5, 72, 40, excite=True, swish=False, strides=2),
    _BlockDesign(5, 120, 40, excite=True, swish=False, strides=1),
    _BlockDesign(5, 120, 40, excite=True, swish=False, strides=1),
    _BlockDesign(3, 240, 80, excite=False, swish=True, strides=2),
    _BlockDesign(3, 200, 80, excite=False, swish=True, strides=1),
    _BlockDesign(3, 184, 80, excite=False, swish=True, strides=1),
    _BlockDesign(3, 184, 80, excite=False, swish=True, strides=1),
    _BlockDesign(3, 480, 112, excite=True, swish=True, strides=1),
    _BlockDesign(3, 672, 112, excite=True, swish=True, strides=1),
    _BlockDesign(5, 672, 160, excite=True, swish=True, strides=2),
    _BlockDesign(5, 960, 160, excite=True, swish=True, strides=1),
    _BlockDesign(5, 960, 160, excite=True, swish=True, strides=1),
)
_SMALL = (
    _BlockDesign(3, 16, 16, excite=True, swish=False, strides=2),
    _BlockDesign(3, 72, 24, excite=False, swish=False, strides=2),
    _BlockDesign(3, 88, 24, excite=False, swish=False, strides=1),
    _BlockDesign(5, 96, 40, excite=True, swish=True, strides=2),
    _BlockDesign(5, 240, 40, excite=True, swish=True, strides=1),
    _BlockDesign(5, 240, 40, excite=True, swish=True, strides=1),
    _BlockDesign(5, 120, 48, excite=True, swish=True, strides=1),
    _BlockDesign(5, 144, 48, excite=True, swish=True, strides=1),
    _BlockDesign(5, 288, 96, excite=True, swish=True, strides=2),
    _BlockDesign(5, 576, 96, excite=True, swish=True, strides=1),
    _BlockDesign(5, 576, 96, excite=True, swish=True, strides=1),
)


class _Design(NamedTuple):
    blocks: tuple[_BlockDesign, ...]
    embedding: int


DESIGNS: dict[str, _Design] = {"small": _Design(_SMALL, 1024), "large": _Design(_LARGE, 1280)}
"""Howard et al. 2019, Tables 1 and 2."""


def divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, but not less than nine tenths of `channels`.

    Example:
      >>> divisible_by_8(18), divisible_by_8(11), divisible_by_8(3)
      (24, 16, 8)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class _Block(nn.Module):
    """Widen, look at neighbours channel by channel, weigh the channels, narrow; added to what came in if that fits."""

    design: _BlockDesign
    norm: NormKind
    train: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, mask: ArrayLike | None) -> Array:
        design = self.design
        activation = nn.hard_swish if design.swish else nn.relu
        layer = partial(_layer, norm=self.norm, train=self.train, mask=mask)
        y = x
        if design.wide != x.shape[-1]:
            y = activation(layer(y, design.wide, 1, "expand"))
        y = layer(y, design.wide, design.window, "depthwise", strides=design.strides, groups=design.wide)
        y = activation(y)
        if design.excite:
            squeezed = global_average_pool(y.astype(jnp.float32))
            weights = nn.Dense(divisible_by_8(design.wide // 4), dtype=self.dtype, name="se_reduce")(squeezed)
            weights = nn.Dense(design.wide, dtype=self.dtype, name="se_expand")(nn.relu(weights))
            y = y * nn.hard_sigmoid(weights).reshape(len(y), *(1,) * (y.ndim - 2), -1)
        y = layer(y, design.out, 1, "project")
        return x + y if x.shape == y.shape and design.strides == 1 else y


class MobileNetV3(nn.Module):
    """MobileNetV3 without its classifier: few products, for small machines.

    Parameters in 2-D with three channels: small 927,008 with 576 features, or 1,517,856 with the hidden layer of the
    classifier; large 2,971,952 with 960, or 4,202,032. `MobileNetV3Small` and `MobileNetV3Large` fill in the size.

    Attributes:
      size: "small" or "large".
      norm: as in `Norm`; epsilon 1e-3 and momentum 0.99, as published. Without norm every convolution has a bias.
      width: factor of all channels, which are rounded to multiples of 8.
      embedding: end with the hidden layer of the published classifier, 1,024 (small) or 1,280 (large) features.
      projection: width of a dense layer with ReLU that follows; none unless given.
      dtype: of the computation. Parameters, statistics and features are float32.

    Example:
      >>> encoder = MobileNetV3Small(width=0.25)
      >>> jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x, train=False)[0],
      ...                jnp.zeros((2, 32, 32, 1))).shape
      (2, 144)

    References:
      Howard et al. 2019, "Searching for MobileNetV3". The order of activation, squeeze and excitation, and padding by
      half a window, are those of torchvision.
    """

    size: Size = "small"
    norm: NormKind = "batch"
    width: float = 1.0
    embedding: bool = False
    projection: int | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    epsilon = 1e-3
    momentum = 0.99

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Features of the images; rows that `mask` leaves out do not enter the statistics of batch norm.

        Raises:
          ValueError: `x` is not one of `(b, h, w, c)` and `(b, d, h, w, c)`, or `size` is unknown.
        """
        *_, x = _maps(self, x, _Block, COARSEST, train, mask).values()
        features = global_average_pool(x.astype(jnp.float32))
        if self.embedding:
            width = DESIGNS[self.size].embedding
            features = nn.hard_swish(nn.Dense(width, dtype=self.dtype, name="embedding")(features))
        return project(features, self.projection, self.dtype)


class MobileNetV3Maps(nn.Module):
    """The feature maps of a MobileNetV3 before pooling, for networks that say where something is.

    Modules and parameters have the names of `MobileNetV3`, up to the coarsest stride asked for. The map of a stride is
    the last one before the next halving; that of stride 32 comes after the convolution behind the blocks.

    Attributes:
      strides: of the maps, pixels a position, finest first, of 2, 4, 8, 16 and 32.
      size, norm, width, dtype: as in `MobileNetV3`.
      remat: keep only what enters each block, and compute the rest of it again for the gradient.

    Example:
      >>> trunk = MobileNetV3Maps(strides=(16, 32), width=0.25)
      >>> maps = jax.eval_shape(lambda x: trunk.init_with_output(jax.random.key(0), x, train=False)[0],
      ...                       jnp.zeros((2, 64, 64, 3)))
      >>> [one.shape for one in maps]
      [(2, 4, 4, 16), (2, 2, 2, 144)]
    """

    strides: tuple[int, ...] = (32,)
    size: Size = "small"
    norm: NormKind = "batch"
    width: float = 1.0
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> tuple[Float[Array, "b ..."], ...]:
        """Maps of the images in the order of `strides`, in `dtype`; rows that `mask` leaves out move no statistics.

        Raises:
          ValueError: as `MobileNetV3`, or there is no map of a stride.
        """
        check_strides(self.strides, tuple(2**power for power in range(1, 6)), type(self).__name__)
        maps = _maps(self, x, nn.remat(_Block) if self.remat else _Block, max(self.strides), train, mask)
        return tuple(maps[stride] for stride in self.strides)


MobileNetV3Small = partial(MobileNetV3, size="small")
MobileNetV3Large = partial(MobileNetV3, size="large")


def _maps(
    network: MobileNetV3 | MobileNetV3Maps,
    images: ArrayLike,
    block_type: Callable[..., nn.Module],
    coarsest: int,
    train: bool,
    mask: ArrayLike | None,
) -> dict[int, Array]:
    """Stride to the last map before the next halving; to be called inside the network, whose modules these are."""
    if network.size not in DESIGNS:
        raise ValueError(f"MobileNetV3: size is {network.size!r}; expected one of {', '.join(get_args(Size))}.")
    x = as_images(images, f"MobileNetV3 {network.size}").astype(network.dtype)
    layer = partial(_layer, norm=network.norm, train=train, mask=mask)
    x = nn.hard_swish(layer(x, divisible_by_8(16 * network.width), 3, "stem", strides=2))
    maps: dict[int, Array] = {}
    stride = 2
    for i, block in enumerate(DESIGNS[network.size].blocks):
        if block.strides == 2:
            maps[stride] = x
            if stride == coarsest:
                return maps
            stride *= 2
        wide, out = divisible_by_8(block.wide * network.width), divisible_by_8(block.out * network.width)
        scaled = block._replace(wide=wide, out=out)
        x = block_type(scaled, network.norm, train, network.dtype, name=f"block_{i}")(x, mask)
    maps[stride] = nn.hard_swish(layer(x, 6 * x.shape[-1], 1, "head"))
    return maps


def _layer(
    x: Array,
    width: int,
    window: int,
    name: str,
    *,
    strides: int = 1,
    groups: int = 1,
    norm: NormKind,
    train: bool,
    mask: ArrayLike | None,
) -> Array:
    """Convolution `<name>_conv`, padded by half a window on both sides, and norm `<name>_bn`."""
    x = Conv(
        width,
        window,
        strides,
        window // 2,
        feature_group_count=groups,
        use_bias=norm == "none",
        dtype=x.dtype,
        kernel_init=he_normal,
        name=f"{name}_conv",
    )(x)
    normalise = Norm(norm, momentum=MobileNetV3.momentum, epsilon=MobileNetV3.epsilon, dtype=x.dtype, name=f"{name}_bn")
    return normalise(x, train=train, mask=mask)
