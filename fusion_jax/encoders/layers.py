"""Flax layers over the kernels of `fusion_jax.ops`, with the parameters of their namesakes in `flax.linen`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Float
from fusion_jax.encoders.initial import Initializer, lecun_normal
from fusion_jax.ops.conv import Method, conv, conv_transpose
from fusion_jax.ops.windows import Padding, PerAxis

__all__ = ["Conv", "ConvTranspose"]


class _Convolution(nn.Module):
    """What both layers share: attributes, parameters and dtypes.

    Parameters are `kernel`, `(*kernel_size, c // groups, features)`, and `bias`, `(features,)`, in `param_dtype`;
    the computation runs in `dtype`, or in the dtype of the input if that is None.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: PerAxis = 1
    padding: Padding = "SAME"
    kernel_dilation: PerAxis = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: Initializer = lecun_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    method: Method = "auto"

    def _convolve(self, function: Callable[..., Array], x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        axes = x.ndim - 2
        window = (self.kernel_size,) * axes if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        if len(window) != axes:
            raise ValueError(
                f"{type(self).__name__}: x has shape {x.shape}, and kernel_size {window} needs "
                f"(b, *sizes, c) with {len(window)} spatial sizes."
            )
        groups = self.feature_group_count
        if groups < 1 or x.shape[-1] % groups:
            raise ValueError(
                f"{type(self).__name__}: {x.shape[-1]} channels do not divide into feature_group_count={groups}."
            )
        shape = (*window, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        dtype = x.dtype if self.dtype is None else self.dtype
        y = function(
            x.astype(dtype),
            kernel.astype(dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            groups=groups,
            method=self.method,
            precision=self.precision,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + jnp.asarray(bias, dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Conv(_Convolution):
    """Convolution over 1, 2 or 3 spatial axes, channels last; `flax.linen.Conv` with quick CPU kernels.

    Names, layout and initial values of the parameters are those of `flax.linen.Conv`, so weights move between the two.
    Other than there, exactly one axis of cases comes first, a kernel size given as one number holds for every axis,
    half precision stays half precision unless `dtype` says otherwise, and `CIRCULAR`, `CAUSAL` and `REFLECT` padding,
    input dilation and masks of the kernel are missing.

    Attributes:
      features: output channels.
      kernel_size: window, one number or one an axis.
      strides: as in `fusion_jax.ops.conv.conv`, like `padding`, `kernel_dilation` (its `dilation`),
        `feature_group_count` (its `groups`), `method` and `precision`.
      use_bias: whether a bias is added.
      dtype: dtype of the computation; None for that of the input.
      param_dtype: dtype of the parameters.
      kernel_init: initial values of the kernel.
      bias_init: initial values of the bias.

    Example:
      >>> layer = Conv(features=8, kernel_size=3, strides=2)
      >>> variables = layer.init(jax.random.key(0), jnp.zeros((1, 6, 6, 6, 2)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (8,), 'kernel': (3, 3, 3, 2, 8)}
    """

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b *sizes c"]) -> Float[Array, "b *outputs features"]:
        """`x` convolved, in `dtype`."""
        return self._convolve(conv, x)


class ConvTranspose(_Convolution):
    """Transposed convolution, channels last; `flax.linen.ConvTranspose` with quick CPU kernels.

    Parameters as in `flax.linen.ConvTranspose` with `transpose_kernel=False`. PyTorch's kernel is this one mirrored
    along every spatial axis. Attributes as for `Conv`; `padding` as in `fusion_jax.ops.conv.conv_transpose`.

    Example:
      >>> layer = ConvTranspose(features=8, kernel_size=2, strides=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 6, 6, 2)))[0].shape
      (1, 12, 12, 8)
    """

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b *sizes c"]) -> Float[Array, "b *outputs features"]:
        """`x` convolved, in `dtype`."""
        return self._convolve(conv_transpose, x)
