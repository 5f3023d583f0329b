"""Trunks that give maps of several strides, and what brings these maps to one number of channels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.detection.config import TRUNK_STRIDES, DetectorConfig
from fusion_jax.encoders.cnn import check_strides
from fusion_jax.encoders.initial import he_normal
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.mobilenet import MobileNetV3Maps
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.encoders.resnet import ResNetMaps

__all__ = ["GROUPS", "CNNMaps", "Neck", "Pyramid", "make_neck", "make_trunk", "read_strides"]

GROUPS = 8
"""Groups of channels where group norm is chosen: of 16 channels and more, none is left alone."""

Maps = tuple[Float[Array, "b _h _w _c"], ...]


class CNNMaps(nn.Module):
    """Two convolutions of 3 for every halving of the image, each with norm and ReLU: for small images and quick runs.

    Attributes:
      strides: of the maps, pixels a position, finest first, of 4, 8, 16 and 32.
      width: channels of the first halving; doubled with each, up to eight times as many.
      norm: as in `Norm`.
      remat: keep only what enters each halving, and compute the rest of it again for the gradient.
      dtype: of the computation and of the maps.

    Example:
      >>> trunk = CNNMaps(strides=(8,), width=4)
      >>> jax.eval_shape(lambda x: trunk.init_with_output(jax.random.key(0), x, train=False)[0],
      ...                jnp.zeros((2, 32, 32, 3)))[0].shape
      (2, 4, 4, 16)
    """

    strides: tuple[int, ...] = (32,)
    width: int = 16
    norm: NormKind = "batch"
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b h w c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Maps:
        """Maps of the images in the order of `strides`; rows that `mask` leaves out move no statistics."""
        check_strides(self.strides, TRUNK_STRIDES["cnn"], type(self).__name__)
        x = jnp.asarray(x).astype(self.dtype)
        block_type = nn.remat(_Halving) if self.remat else _Halving
        maps, stride = [], 1
        while stride < max(self.strides):
            width = self.width * min(stride, 8)
            stride *= 2
            x = block_type(width, self.norm, train, self.dtype, name=f"halving_{stride}")(x, mask)
            if stride in self.strides:
                maps.append(x)
        return tuple(maps)


class _Halving(nn.Module):
    width: int
    norm: NormKind
    train: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, mask: ArrayLike | None) -> Array:
        for i, strides in enumerate((2, 1), start=1):
            conv = Conv(
                self.width,
                3,
                strides,
                1,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                kernel_init=he_normal,
                name=f"conv{i}",
            )
            norm = Norm(self.norm, GROUPS, dtype=self.dtype, name=f"bn{i}")
            x = nn.relu(norm(conv(x), train=self.train, mask=mask))
        return x


class Neck(nn.Module):
    """One convolution of 3 with bias, which brings the last map to `channels`.

    Attributes:
      channels: of the map that heads read.
      dtype: of the computation.
    """

    channels: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps) -> Maps:
        """The last of the maps."""
        return (Conv(self.channels, 3, padding=1, dtype=self.dtype, name="conv")(maps[-1]),)


class Pyramid(nn.Module):
    r"""Feature pyramid: every map is joined by the coarser ones, brought to its size.

    .. math:: P_l = W_l * (L_l * C_l + \operatorname{up}(P'_{l+1}))

    Attributes:
      levels: how many maps there shall be. Those beyond the trunk's own halve the coarsest one.
      channels: of every level.
      dtype: of the computation.

    References:
      Lin et al. 2017, "Feature Pyramid Networks", section 3.
    """

    levels: int
    channels: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps) -> Maps:
        """The levels, finest first."""
        joined: Array | None = None
        found = []
        for i, one in reversed(list(enumerate(maps))):
            lateral = Conv(self.channels, 1, dtype=self.dtype, name=f"lateral_{i}")(one)
            joined = lateral if joined is None else lateral + _enlarged(joined, lateral.shape[1], lateral.shape[2])
            found.insert(0, Conv(self.channels, 3, padding=1, dtype=self.dtype, name=f"output_{i}")(joined))
        while len(found) < self.levels:
            found.append(found[-1][:, ::2, ::2])
        return tuple(found)


def read_strides(config: DetectorConfig) -> tuple[int, ...]:
    """Strides of the maps that the trunk itself has to give.

    Example:
      >>> read_strides(DetectorConfig(classes=("nodule",)))
      (32,)
    """
    return tuple(stride for stride in config.anchors.strides if stride in TRUNK_STRIDES[config.backbone])


def make_trunk(config: DetectorConfig, strides: tuple[int, ...] | None = None) -> nn.Module:
    """The trunk of a detector, whose parameters have the names of the encoder's.

    Args:
      config: of the detector.
      strides: of its maps; those the detector reads unless given.

    Returns:
      A module `trunk(x, *, train, mask) -> maps`, finest first.
    """
    common: dict[str, Any] = {
        "strides": read_strides(config) if strides is None else strides,
        "norm": config.norm,
        "remat": config.remat,
        "dtype": jnp.dtype(config.dtype),
    }
    if config.backbone == "mobilenet-v3-small":
        return MobileNetV3Maps(size="small", width=config.width, **common)
    if config.backbone == "cnn":
        return CNNMaps(width=max(1, round(16 * config.width)), **common)
    network = partial(ResNetMaps, depth={"resnet-18": 18, "resnet-50": 50}[config.backbone])
    return network(width=max(1, round(64 * config.width)), **common)


def make_neck(config: DetectorConfig) -> nn.Module:
    """What follows the trunk of a detector: a module `neck(maps) -> maps` with the channels that heads read."""
    dtype = jnp.dtype(config.dtype)
    if config.pyramid:
        return Pyramid(len(config.anchors.strides), config.channels, dtype)
    return Neck(config.channels, dtype)


def _enlarged(x: Array, height: int, width: int) -> Array:
    """Every position twice along both axes, cut to a size that need not be even."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]
