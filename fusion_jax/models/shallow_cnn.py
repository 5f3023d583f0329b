"""Three convolutions with max-pools and a few dense layers: the network behind the stand-ins of `published`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.cnn import as_images
from fusion_jax.encoders.initial import he_normal
from fusion_jax.encoders.layers import Conv
from fusion_jax.ops.pool import max_pool

__all__ = ["DenseHead", "ShallowCNN"]


class ShallowCNN(nn.Module):
    """Convolution, max-pool and leaky ReLU for each of `widths`, without padding; then all positions in one row.

    In two or three dimensions, as the input has. With one channel of 180 × 180 and the default widths 9,472 parameters
    and 512 features. Images have at least 23 positions an axis; where a max-pool is wider than what is left it shrinks
    to that, so that crops of 23 to 64 positions pass as well.

    Attributes:
      widths: channels of the convolutions.
      windows: of the convolutions, and of the max-pools behind them.
      strides: likewise.
      slope: of the leaky ReLU below zero.
      dtype: of the computation. Parameters and features are float32.

    Example:
      >>> features, variables = ShallowCNN().init_with_output(
      ...     jax.random.key(0), jnp.zeros((1, 180, 180, 1)), train=False)
      >>> features.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))
      ((1, 512), 9472)

    References:
      The network of MaastrichtU-CDS/hn_cnn, which follows Diamant et al. 2019; specs/mm_nas.md, section 8.
    """

    widths: Sequence[int] = (8, 16, 32)
    windows: Sequence[int] = (3, 3, 4)
    strides: Sequence[int] = (1, 2, 3)
    slope: float = 0.01
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Features of the images.

        Raises:
          ValueError: `x` is no batch of images, or of too small ones; or settings of unequal lengths.
        """
        if not len(self.widths) == len(self.windows) == len(self.strides):
            raise ValueError(
                f"ShallowCNN: {len(self.widths)} widths, {len(self.windows)} windows and {len(self.strides)} strides; "
                "expected one of each for every convolution."
            )
        x = as_images(x, type(self).__name__).astype(self.dtype)
        sizes = x.shape[1:-1]
        layers = zip(self.widths, self.windows, self.strides, strict=True)
        for i, (width, window, stride) in enumerate(layers, start=1):
            if min(x.shape[1:-1]) < window:
                raise ValueError(
                    f"ShallowCNN: images of {' x '.join(map(str, sizes))} positions leave "
                    f"{' x '.join(map(str, x.shape[1:-1]))} before convolution {i}, whose window is {window}. Take "
                    "larger crops or a finer grid, or fewer or smaller windows."
                )
            x = Conv(
                width, window, stride, "VALID", dtype=self.dtype, kernel_init=he_normal, name=f"conv{i}"
            )(x)  # fmt: skip
            x = max_pool(x, [min(window, size) for size in x.shape[1:-1]], strides=stride)
            x = nn.leaky_relu(x, self.slope)
        return x.reshape(len(x), -1).astype(jnp.float32)


class DenseHead(nn.Module):
    """Dense layers, each with leaky ReLU and a dropout of its own behind it.

    Attributes:
      widths: outputs of each layer.
      dropouts: fraction of these outputs that is dropped in training.
      slope: of the leaky ReLU below zero.
      dtype: of the computation; parameters and the result are float32.

    Example:
      >>> head = DenseHead()
      >>> head.init_with_output(jax.random.key(0), jnp.zeros((2, 512)), train=False)[0].shape
      (2, 32)

    References:
      As for `ShallowCNN`.
    """

    widths: Sequence[int] = (128, 64, 32)
    dropouts: Sequence[float] = (0.3, 0.2, 0.1)
    slope: float = 0.01
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b g"]:
        """Features of each row.

        Raises:
          ValueError: not one dropout a layer.
        """
        if len(self.widths) != len(self.dropouts):
            raise ValueError(
                f"DenseHead: {len(self.widths)} widths and {len(self.dropouts)} dropouts; expected one a layer."
            )
        h = jnp.asarray(x).astype(self.dtype)
        for width, dropout in zip(self.widths, self.dropouts, strict=True):
            h = nn.leaky_relu(nn.Dense(width, dtype=self.dtype)(h), self.slope)
            h = nn.Dropout(dropout, deterministic=not train)(h)
        return h.astype(jnp.float32)
