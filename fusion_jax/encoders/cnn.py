"""A small convolutional network for small images and few cases."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.ops.pool import global_average_pool, global_max_pool, max_pool

__all__ = ["SmallCNN"]

GROUPS = 4
"""Groups of channels in group norm. With 32 and so few channels every group would be one channel, which forgets how
strong its response is: what a tumour's brightness is told by."""


class SmallCNN(nn.Module):
    """Convolution of 3, norm and ReLU for each of `widths`, halving the image in between; then pooled over positions.

    For images of 16 to 64 positions an axis, in two or three dimensions; the number of axes and of channels is that of
    the input. With one channel and the default widths it has 23,408 parameters in 2-D, 69,776 in 3-D.

    Attributes:
      widths: channels of the convolutions.
      norm: as in `Norm`; group norm is the same in training and use, and does not mind small batches.
      maximum: also give the largest value of every channel: twice as many features.
      projection: width of a dense layer with ReLU that follows; none unless given.
      dtype: of the computation. Parameters and features are float32.

    Example:
      >>> encoder = SmallCNN(widths=(4, 8))
      >>> encoder.init_with_output(jax.random.key(0), jnp.zeros((2, 16, 16, 1)), train=False)[0].shape
      (2, 8)
    """

    widths: tuple[int, ...] = (16, 32, 64)
    norm: NormKind = "group"
    maximum: bool = False
    projection: int | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    epsilon = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *sizes c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Features of the images; rows that `mask` leaves out do not enter the statistics of batch norm.

        Raises:
          ValueError: `x` is not one of `(b, h, w, c)` and `(b, d, h, w, c)`.
        """
        x = as_images(x, type(self).__name__).astype(self.dtype)
        for i, width in enumerate(self.widths, start=1):
            if i > 1:
                x = max_pool(x, [min(size, 2) for size in x.shape[1:-1]])
            x = Conv(width, 3, padding=1, use_bias=self.norm == "none", dtype=self.dtype, name=f"conv{i}")(x)
            x = Norm(self.norm, GROUPS, epsilon=self.epsilon, dtype=self.dtype, name=f"bn{i}")(
                x, train=train, mask=mask
            )
            x = nn.relu(x)
        x = x.astype(jnp.float32)
        pooled = [global_average_pool(x), *([global_max_pool(x)] if self.maximum else [])]
        return project(jnp.concatenate(pooled, axis=-1), self.projection, self.dtype)


def as_images(x: ArrayLike, name: str) -> Array:
    """`x`, if it is a batch of images in two or three dimensions, channels last."""
    x = jnp.asarray(x)
    if x.ndim not in (4, 5) or 0 in x.shape[1:]:
        raise ValueError(
            f"{name}: x has shape {x.shape}; expected images (b, h, w, c) or (b, d, h, w, c) with at least one "
            "position and one channel. A table of numbers goes through an MLP."
        )
    return x


def project(features: Array, width: int | None, dtype: jax.typing.DTypeLike) -> Array:
    """Dense layer with ReLU, named `projection`, to `width` features if there is one; float32."""
    if width is None:
        return features.astype(jnp.float32)
    return nn.relu(nn.Dense(width, dtype=dtype, name="projection")(features)).astype(jnp.float32)


def check_strides(wanted: tuple[int, ...], there: tuple[int, ...], name: str) -> None:
    """Whether a network has maps of these strides, named finest first."""
    if not wanted or set(wanted) - set(there) or list(wanted) != sorted(set(wanted)):
        raise ValueError(f"{name}: strides are {wanted}; expected some of {there}, finest first.")
