r"""Normalisation by the batch or by groups of channels, blind to padding and to absent sources.

.. math:: y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

Batches have a fixed number of rows: the last one of an epoch is padded, and a case may lack a source. Such rows hold
zeros, and statistics that counted them would depend on how many there happen to be.
"""

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float

__all__ = ["Norm", "NormKind"]

NormKind = Literal["batch", "group", "none"]


class Norm(nn.Module):
    r"""Batch norm, group norm or none, over the last axis of `x`; statistics and parameters are in float32.

    .. math:: y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Parameters are `scale` and `bias`, running statistics `mean` and `var` in `batch_stats`, as in
    `flax.linen.BatchNorm`, whose running variance is biased. Where jit shards the batch over a mesh, the moments are
    those of all devices.

    Attributes:
      kind: "batch" takes the moments of each channel over the batch while training, and the running ones otherwise;
        "group" those of groups of channels within each case, always; "none" leaves `x` alone and has no parameters.
      groups: of channels; the greatest common divisor with the number of channels is taken. Groups of one channel
        forget the contrast of each image.
      momentum: weight of the old running statistics. PyTorch's `momentum` is one minus this.
      epsilon: added to the variance.
      affine: whether there are a scale and a bias, :math:`\gamma` and :math:`\beta`; 1 and 0 otherwise.
      dtype: of the output.

    Example:
      >>> x = jnp.array([[1.0], [3.0], [0.0]])
      >>> norm, mask = Norm(), jnp.array([True, True, False])
      >>> y, variables = norm.init_with_output(jax.random.key(0), x, train=True, mask=mask)
      >>> y.ravel()[:2].round(3).tolist()
      [-1.0, 1.0]

    References:
      Ioffe and Szegedy 2015; Wu and He 2018 (groups). The running variance is unbiased, as in PyTorch.
    """

    kind: NormKind = "batch"
    groups: int = 32
    momentum: float = 0.9
    epsilon: float = 1e-5
    affine: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *n c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b *n c"]:
        """`x` normalised.

        Args:
          x: shape `(b, ..., c)`.
          train: whether batch norm takes the moments of this batch and moves the running ones.
          mask: which rows count, shape `(b,)`; all of them unless given. A batch with fewer than two values a channel
            is normalised by the running moments, and leaves them alone.

        Raises:
          ValueError: an unknown `kind`.
        """
        x = jnp.asarray(x)
        if self.kind not in get_args(NormKind):
            raise ValueError(f"Norm: kind is {self.kind!r}; expected one of {', '.join(get_args(NormKind))}.")
        if self.kind == "none":
            return x.astype(self.dtype)
        # Half precision has too few digits for a sum over a batch of images.
        x = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
        if self.kind == "batch":
            standardised = self._by_batch(x, train, mask)
        else:
            mean, variance = self._group_moments(x)
            standardised = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if not self.affine:
            return standardised.astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32).astype(x.dtype)
        return (standardised * _last(scale, x.ndim) + _last(bias, x.ndim)).astype(self.dtype)

    def _by_batch(self, x: Array, train: bool, mask: ArrayLike | None) -> Array:
        """`x` with mean 0 and variance 1 in every channel; moves the running moments while training."""
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:], jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:], jnp.float32)
        running = running_mean.value.astype(x.dtype), running_variance.value.astype(x.dtype)
        if not train:
            mean, variance = (_last(moment, x.ndim) for moment in running)
            return (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        rows = None if mask is None else jnp.asarray(mask).reshape(-1, *(1,) * (x.ndim - 1))
        standardised, mean, variance, count = _standardise(self.epsilon, x, rows, running)
        if not self.is_initializing():
            unbiased = variance * (count / jnp.maximum(count - 1, 1))
            for variable, old, new in zip((running_mean, running_variance), running, (mean, unbiased), strict=True):
                moved = jnp.where(count > 1, self.momentum * old + (1 - self.momentum) * new, old)
                variable.value = jax.lax.stop_gradient(moved).astype(jnp.float32)
        return standardised

    def _group_moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and variance of the group of every channel within each case, shapes `(b, 1, ..., c)`."""
        groups = math.gcd(self.groups, x.shape[-1])
        grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 3), keepdims=True)
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])

        def of_channels(moment: Array) -> Array:
            return jnp.broadcast_to(moment, (*moment.shape[:3], grouped.shape[3])).reshape(shape)

        return of_channels(mean), of_channels(variance)


# Written out, because the derivative of the formula goes over the batch more often: forward and backward at
# 8 x 56 x 56 x 256 take 20 ms of CPU time, and took 24. As a `custom_jvp` it has derivatives of every order.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardise(
    epsilon: float, x: Array, rows: Array | None, running: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """`x` by the moments of the rows that count, these moments, `(c,)`, and how many values they are of.

    With fewer than two values the running moments are taken.
    """
    axes = tuple(range(x.ndim - 1))
    cases = jnp.asarray(x.shape[0], x.dtype) if rows is None else jnp.sum(rows, dtype=x.dtype)
    count = cases * math.prod(x.shape[1:-1])
    # Once over the batch, from a value near the mean: the mean of squares less the square of the mean loses every digit
    # of a variance that is small beside the mean, as in images that were not centred.
    middle = x[(slice(None), *(slice(size // 2, size // 2 + 1) for size in x.shape[1:-1]))]
    near = jnp.sum(middle, axes, where=rows, keepdims=True) / jnp.maximum(cases, 1)
    shifted = x - near
    mean = jnp.sum(shifted, axes, where=rows) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.square(shifted), axes, where=rows) / jnp.maximum(count, 1)
    variance = jnp.where(count > 1, jnp.maximum(squares - jnp.square(mean), 0), running[1])
    mean = jnp.where(count > 1, mean + near.reshape(-1), running[0])
    standardised = (x - _last(mean, x.ndim)) * jax.lax.rsqrt(_last(variance, x.ndim) + epsilon)
    return standardised, mean, variance, count


@_standardise.defjvp
def _standardise_jvp(epsilon: float, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    x, rows, _ = primals
    change = tangents[0]
    y, mean, variance, count = _standardise(epsilon, *primals)
    axes = tuple(range(x.ndim - 1))
    live = jnp.where(count > 1, 1 / jnp.maximum(count, 1), 0)
    inverse = 1 / (variance + epsilon)
    # From `x`, which is kept anyway; keeping `y` too would be one more array to write and to read.
    centred = x - _last(mean, x.ndim)
    change_of_mean = jnp.sum(change, axes, where=rows) * live
    change_of_variance = 2 * jnp.sum(centred * change, axes, where=rows) * live
    slope = _last(change_of_variance * inverse / 2, x.ndim)
    change_of_y = (change - _last(change_of_mean, x.ndim) - centred * slope) * _last(jnp.sqrt(inverse), x.ndim)
    return (y, mean, variance, count), (change_of_y, change_of_mean, change_of_variance, jnp.zeros_like(count))


def _last(vector: Array, axes: int) -> Array:
    """`(c,)` as `(1, ..., 1, c)`."""
    return vector.reshape((1,) * (axes - 1) + (-1,))
