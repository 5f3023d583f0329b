"""Residual networks for images in two and three dimensions, with any number of channels.

Version 1.5: the 3 x 3 convolution of a bottleneck halves the image, not the 1 x 1 before it. Modules are named after
torchvision's, so that its weights move by one rule: `layer1.0.conv1` is `layer1_0/conv1`, `layer1.0.downsample.0` and
`.1` are `layer1_0/downsample_conv` and `layer1_0/downsample_bn`, and `bn1` keeps its name with every kind of norm.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.cnn import as_images, check_strides, project
from fusion_jax.encoders.initial import he_normal
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.ops.pool import global_average_pool, max_pool
from fusion_jax.ops.windows import PerAxis, per_axis

__all__ = ["ResNet", "ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152", "ResNetMaps"]


class _Design(NamedTuple):
    blocks: tuple[int, ...]
    bottleneck: bool


DESIGNS = {
    18: _Design((2, 2, 2, 2), bottleneck=False),
    34: _Design((3, 4, 6, 3), bottleneck=False),
    50: _Design((3, 4, 6, 3), bottleneck=True),
    101: _Design((3, 4, 23, 3), bottleneck=True),
    152: _Design((3, 8, 36, 3), bottleneck=True),
}
"""Blocks of every stage (He et al. 2016, Table 1)."""

STAGES = 4


def _convolve(x: Array, width: int, window: PerAxis, strides: PerAxis, norm: NormKind, name: str) -> Array:
    """Padded by half a window on both sides, as PyTorch has it: SAME pads even sizes otherwise."""
    return Conv(
        width,
        window,
        strides,
        [size // 2 for size in per_axis(window, x.ndim - 2, "stem_window")],
        use_bias=norm == "none",
        dtype=x.dtype,
        kernel_init=he_normal,
        name=name,
    )(x)


class _Block(nn.Module):
    """Two convolutions of 3, or 1, 3 and 1 to four times the width; added to what came in.

    `train` is an attribute so that rematerialisation has no static argument.
    """

    width: int
    strides: int
    bottleneck: bool
    norm: NormKind
    train: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, mask: ArrayLike | None) -> Array:
        out = 4 * self.width if self.bottleneck else self.width
        windows = (1, 3, 1) if self.bottleneck else (3, 3)
        widths = (self.width,) * (len(windows) - 1) + (out,)
        strides = (1, self.strides, 1) if self.bottleneck else (self.strides, 1)

        def normalise(x: Array, name: str) -> Array:
            norm = Norm(self.norm, epsilon=ResNet.epsilon, dtype=self.dtype, name=name)
            return norm(x, train=self.train, mask=mask)

        y = x
        for i, (width, window, stride) in enumerate(zip(widths, windows, strides, strict=True), start=1):
            y = y if i == 1 else nn.relu(y)
            y = normalise(_convolve(y, width, window, stride, self.norm, f"conv{i}"), f"bn{i}")
        if x.shape != y.shape:
            x = normalise(_convolve(x, out, 1, self.strides, self.norm, "downsample_conv"), "downsample_bn")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Residual network of `depth` layers without its classifier, version 1.5.

    `ResNet18`, `ResNet34`, `ResNet50`, `ResNet101` and `ResNet152` fill in the depth. Parameters in 2-D with three
    channels: 11,176,512; 21,284,672; 23,508,032; 42,500,160; 58,143,808. With one channel 6,272 fewer.

    Attributes:
      depth: 18, 34, 50, 101 or 152.
      norm: as in `Norm`. Without norm every convolution has a bias.
      width: channels of the stem; the features are 8 times as many, or 32 times from depth 50 on.
      projection: width of a dense layer with ReLU that follows; none unless given.
      small_images: begin with a convolution of 3 at full resolution, for images of 16 to 64 positions an axis; the
        published beginning, a convolution of 7 with stride 2 and a max-pool, leaves a quarter of the resolution.
      stem_window: of the first convolution, one number or one an axis, where it is neither 3 nor 7.
      stem_strides: of the first convolution likewise; `(1, 2, 2)` keeps the slices of a CT whose spacing is wide.
      remat: keep only what enters each block, and compute the rest of it again for the gradient: less memory, about a
        third more time.
      dtype: of the computation. Parameters, statistics and features are float32.

    Example:
      >>> encoder = ResNet18(width=8, small_images=True)
      >>> jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x, train=False)[0],
      ...                jnp.zeros((2, 16, 16, 16, 1))).shape
      (2, 64)

    References:
      He et al. 2016, "Deep residual learning for image recognition".
    """

    depth: int = 50
    norm: NormKind = "batch"
    width: int = 64
    projection: int | None = None
    small_images: bool = False
    stem_window: PerAxis | None = None
    stem_strides: PerAxis | None = None
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    epsilon = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Features of the images; rows that `mask` leaves out do not enter the statistics of batch norm.

        Raises:
          ValueError: `x` is not one of `(b, h, w, c)` and `(b, d, h, w, c)`, or there is no network of this depth.
        """
        window, strides = (3, 1) if self.small_images else (7, 2)
        window = window if self.stem_window is None else self.stem_window
        strides = strides if self.stem_strides is None else self.stem_strides
        *_, x = _stages(self, x, window, strides, not self.small_images, STAGES, train, mask)
        return project(global_average_pool(x.astype(jnp.float32)), self.projection, self.dtype)


class ResNetMaps(nn.Module):
    """The feature maps of a residual network before pooling, for networks that say where something is.

    Modules and parameters have the names of `ResNet`, up to the coarsest stride asked for.

    Attributes:
      strides: of the maps, pixels a position, finest first, of 4, 8, 16 and 32.
      depth, norm, width, remat, dtype: as in `ResNet`.

    Example:
      >>> trunk = ResNetMaps(strides=(8, 16), depth=18, width=8)
      >>> maps = jax.eval_shape(lambda x: trunk.init_with_output(jax.random.key(0), x, train=False)[0],
      ...                       jnp.zeros((2, 64, 64, 3)))
      >>> [one.shape for one in maps]
      [(2, 8, 8, 16), (2, 4, 4, 32)]
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)
    depth: int = 50
    norm: NormKind = "batch"
    width: int = 64
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> tuple[Float[Array, "b ..."], ...]:
        """Maps of the images in the order of `strides`, in `dtype`; rows that `mask` leaves out move no statistics.

        Raises:
          ValueError: as `ResNet`, or there is no map of a stride.
        """
        there = tuple(4 * 2**stage for stage in range(STAGES))
        check_strides(self.strides, there, type(self).__name__)
        maps = _stages(self, x, 7, 2, True, there.index(max(self.strides)) + 1, train, mask)
        return tuple(maps[there.index(stride)] for stride in self.strides)


def _stages(
    network: ResNet | ResNetMaps,
    images: ArrayLike,
    window: PerAxis,
    strides: PerAxis,
    pooled: bool,
    stages: int,
    train: bool,
    mask: ArrayLike | None,
) -> list[Array]:
    """What leaves each of the first stages; to be called inside the network, whose modules these are."""
    if network.depth not in DESIGNS:
        raise ValueError(f"ResNet: depth is {network.depth}; expected one of {', '.join(map(str, DESIGNS))}.")
    design = DESIGNS[network.depth]
    x = as_images(images, f"ResNet-{network.depth}").astype(network.dtype)
    x = _convolve(x, network.width, window, strides, network.norm, "conv1")
    x = nn.relu(Norm(network.norm, epsilon=ResNet.epsilon, dtype=network.dtype, name="bn1")(x, train=train, mask=mask))
    if pooled:
        x = max_pool(x, 3, strides=2, padding=1)
    block_type = nn.remat(_Block) if network.remat else _Block
    maps = []
    for stage, blocks in enumerate(design.blocks[:stages]):
        for i in range(blocks):
            block = block_type(
                norm=network.norm,
                dtype=network.dtype,
                train=train,
                width=network.width * 2**stage,
                strides=2 if stage and not i else 1,
                bottleneck=design.bottleneck,
                name=f"layer{stage + 1}_{i}",
            )
            x = block(x, mask)
        maps.append(x)
    return maps


ResNet18 = partial(ResNet, depth=18)
ResNet34 = partial(ResNet, depth=34)
ResNet50 = partial(ResNet, depth=50)
ResNet101 = partial(ResNet, depth=101)
ResNet152 = partial(ResNet, depth=152)
