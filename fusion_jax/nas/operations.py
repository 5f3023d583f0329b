"""The candidates for one edge of a cell, each a small module, in two and three dimensions.

Names and definitions are those of specs/mm_nas.md, section 4: the operations of Liu et al. 2018 and the standard
convolutions of Peng et al. 2020. A search computes the same with other modules, many edges at once: see
`fusion_jax.nas.cell`.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.nas.genotype import DARTS_OPERATIONS, OPERATIONS, Operation
from fusion_jax.ops.pool import average_pool, max_pool
from fusion_jax.wording import listed

__all__ = [
    "DARTS_OPERATIONS",
    "OPERATIONS",
    "FactorisedReduce",
    "Op",
    "Operation",
    "ReluConvNorm",
    "check_operations",
    "norm_groups",
    "operation_multiply_adds",
    "operation_parameters",
    "pool",
    "strided_halves",
]

KINDS: dict[str, tuple[str, int, int]] = {
    "conv3": ("conv", 3, 1),
    "conv5": ("conv", 5, 1),
    "sep3": ("sep", 3, 1),
    "sep5": ("sep", 5, 1),
    "dil3": ("dil", 3, 2),
    "dil5": ("dil", 5, 2),
}
"""Convolutions: kind, edge of the kernel, dilation."""

GROUPED = 4
"""Channels of a group in group norm. Groups of one channel would forget how strong each channel is, and with the 4
channels of a small search nothing else would be left of an image's contrast."""


def norm_groups(channels: int) -> int:
    """Groups of group norm over so many channels: `GROUPED` channels each and more.

    Example:
      >>> norm_groups(4), norm_groups(12), norm_groups(10)
      (1, 3, 2)
    """
    return math.gcd(max(1, channels // GROUPED), channels)


def check_operations(operations: Sequence[str], where: str) -> None:
    """Every operation is known and stands once.

    Raises:
      ValueError: otherwise.
    """
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise ValueError(f"{where}: unknown operation {listed(unknown)}; expected some of {listed(OPERATIONS, 10)}.")
    if len(set(operations)) != len(operations) or not set(operations) - {"none"}:
        raise ValueError(
            f"{where}: operations are {listed(operations, 10) or 'missing'}; expected each once, and one besides "
            "'none'."
        )


class Op(nn.Module):
    """One operation on one edge.

    =========  ============================================================================
    none       zeros
    skip       the map itself; at stride 2 a `FactorisedReduce`
    max_pool   the largest of 3 positions an axis
    avg_pool   their mean, over the positions inside the map
    conv       ReLU, convolution, norm
    sep        twice: ReLU, depthwise convolution, pointwise convolution, norm
    dil        ReLU, depthwise convolution of dilation 2, pointwise convolution, norm
    =========  ============================================================================

    The number after a convolution is the edge of its kernel. Parameters: `Conv_0`, `Conv_1`, ... in this order, without
    bias, and `Norm_0`, ... where they are affine.

    Attributes:
      operation: see above.
      channels: of the input and the output.
      stride: 1 or 2; a map of size n becomes one of size ceil(n / 2).
      norm: kind of norm; group norm has groups of four channels or more.
      affine: whether norms have a scale and a bias. In a search they have not, because these could undo the weights of
        the mixture, and pools are followed by a norm.
      dtype: of the computation.

    Example:
      >>> op = Op("sep3", channels=4, stride=2)
      >>> x = jax.ShapeDtypeStruct((1, 5, 5, 5, 4), jnp.float32)
      >>> jax.eval_shape(lambda x: op.init_with_output(jax.random.key(0), x, train=False)[0], x).shape
      (1, 3, 3, 3, 4)

    References:
      Liu et al. 2018, section 3.1; Peng et al. 2020; specs/mm_nas.md, section 4.
    """

    operation: str
    channels: int
    stride: int = 1
    norm: NormKind = "batch"
    affine: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *n c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b *m c"]:
        """The map that the edge brings; `mask` says which rows count in the statistics of batch norm.

        Raises:
          ValueError: an unknown operation, or a map with other channels.
        """
        check_operations((self.operation, "skip") if self.operation == "none" else (self.operation,), "Op")
        x = jnp.asarray(x)
        if x.shape[-1] != self.channels or self.stride not in (1, 2):
            raise ValueError(
                f"Op {self.operation}: x has shape {x.shape} and stride is {self.stride}; expected {self.channels} "
                "channels and stride 1 or 2."
            )
        norm = _norm(self.norm, self.channels, self.affine, self.dtype)
        if self.operation == "none":
            sizes = [-(-size // self.stride) for size in x.shape[1:-1]]
            return jnp.zeros((x.shape[0], *sizes, self.channels), x.dtype)
        if self.operation == "skip":
            if self.stride == 1:
                return x
            return FactorisedReduce(self.channels, self.norm, self.affine, self.dtype)(x, train=train, mask=mask)
        if self.operation in ("max_pool", "avg_pool"):
            pooled = pool(self.operation, x, self.stride)
            return pooled if self.affine else norm()(pooled, train=train, mask=mask)
        kind, window, dilation = KINDS[self.operation]
        padding = dilation * (window // 2)
        for stride in (self.stride, 1) if kind == "sep" else (self.stride,):
            x = nn.relu(x)
            groups = 1 if kind == "conv" else self.channels
            x = Conv(
                self.channels,
                window,
                strides=stride,
                padding=padding,
                kernel_dilation=dilation,
                feature_group_count=groups,
                use_bias=False,
                dtype=self.dtype,
            )(x)
            if kind != "conv":
                x = Conv(self.channels, 1, use_bias=False, dtype=self.dtype)(x)
            x = norm()(x, train=train, mask=mask)
        return x


def _norm(kind: NormKind, channels: int, affine: bool, dtype: jax.typing.DTypeLike) -> Callable[[], Norm]:
    def make() -> Norm:
        return Norm(kind, norm_groups(channels), affine=affine, dtype=dtype)

    return make


def pool(operation: str, x: Float[Array, "b *n c"], stride: int) -> Float[Array, "b *m c"]:
    """The pooling that an operation names: 3 positions an axis, one of padding, which no mean counts.

    Example:
      >>> pool("avg_pool", jnp.array([[[1.0], [3.0], [2.0]]]), 1).ravel().tolist()
      [2.0, 2.0, 2.5]
    """
    return (max_pool if operation == "max_pool" else average_pool)(x, 3, strides=stride, padding=1)


def strided_halves(x: Float[Array, "b *n c"]) -> tuple[Float[Array, "b *m c"], Float[Array, "b *m c"]]:
    """Every second position of every axis, and every second one from the next on; zeros beyond the end.

    Example:
      >>> [half.ravel().tolist() for half in strided_halves(jnp.array([[[1.0], [2.0], [3.0]]]))]
      [[1.0, 3.0], [2.0, 0.0]]
    """
    sizes = x.shape[1:-1]
    odd = jnp.pad(x, [(0, 0), *((0, size % 2) for size in sizes), (0, 0)])
    axes = len(sizes)
    first = odd[(slice(None), *(slice(0, None, 2),) * axes)]
    return first, odd[(slice(None), *(slice(1, None, 2),) * axes)]


class FactorisedReduce(nn.Module):
    """Half the size without losing a position: ReLU, two strided 1 x 1 convolutions side by side, norm.

    The second convolution sees the positions that lie one further along every axis. Each gives half of the channels; of
    an odd number the second gives one more.

    Attributes:
      features: output channels.
      norm, affine, dtype: as for `Op`.

    Example:
      >>> layer = FactorisedReduce(6)
      >>> x = jax.ShapeDtypeStruct((1, 4, 5, 2), jnp.float32)
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False)[0], x).shape
      (1, 2, 3, 6)

    References:
      Liu et al. 2018, in their code; an odd size, which it does not take, is padded with zeros.
    """

    features: int
    norm: NormKind = "batch"
    affine: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *n c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b *m f"]:
        """The map at half its size, rounded up."""
        here, next_ = strided_halves(nn.relu(jnp.asarray(x)))
        half = self.features // 2
        halves = [
            Conv(width, 1, use_bias=False, dtype=self.dtype)(part)
            for part, width in ((here, half), (next_, self.features - half))
            if width
        ]
        y = jnp.concatenate(halves, axis=-1)
        return _norm(self.norm, self.features, self.affine, self.dtype)()(y, train=train, mask=mask)


class ReluConvNorm(nn.Module):
    """ReLU, 1 x 1 convolution, norm: what brings an input of a cell to the cell's channels.

    Attributes:
      features: output channels.
      norm, affine, dtype: as for `Op`.

    Example:
      >>> layer = ReluConvNorm(6)
      >>> x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False)[0], x).shape
      (1, 4, 4, 6)
    """

    features: int
    norm: NormKind = "batch"
    affine: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *n c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b *n f"]:
        """The map with `features` channels."""
        y = Conv(self.features, 1, use_bias=False, dtype=self.dtype)(nn.relu(jnp.asarray(x)))
        return _norm(self.norm, self.features, self.affine, self.dtype)()(y, train=train, mask=mask)


# Closed forms


def operation_parameters(operation: str, channels: int, axes: int, *, stride: int = 1, affine: bool = True) -> int:
    r"""Parameters of an operation.

    ===============  =======================  ==================
    operation        without affine norms     scales and biases
    ===============  =======================  ==================
    none, pools, skip at stride 1   0         0
    skip, stride 2   :math:`C^2`              :math:`2C`
    conv             :math:`C^2 k^D`          :math:`2C`
    sep              :math:`2(C k^D + C^2)`   :math:`4C`
    dil              :math:`C k^D + C^2`      :math:`2C`
    ===============  =======================  ==================

    Args:
      operation: its name.
      channels: :math:`C`.
      axes: :math:`D`, spatial axes.
      stride: 1 or 2.
      affine: whether norms have scale and bias.

    Example:
      >>> sum(operation_parameters(name, 16, 3, affine=False) for name in OPERATIONS)
      47744
      >>> 158 * 16**2 + 456 * 16
      47744

    References:
      specs/mm_nas.md, section 5.2.
    """
    c = channels
    if operation == "skip":
        return 0 if stride == 1 else c * c + 2 * c * affine
    if operation not in KINDS:
        return 0
    kind, window, _ = KINDS[operation]
    taps = window**axes
    if kind == "conv":
        return c * c * taps + 2 * c * affine
    return (c * taps + c * c + 2 * c * affine) * (2 if kind == "sep" else 1)


def operation_multiply_adds(operation: str, channels: int, axes: int, *, stride: int = 1) -> float:
    """Multiplications with a weight at every position of the input, on average; norms and pools are not counted.

    Args:
      operation, channels, axes, stride: as in `operation_parameters`.

    Example:
      >>> operation_multiply_adds("conv3", 4, 3), operation_multiply_adds("conv3", 4, 3, stride=2)
      (432.0, 54.0)
    """
    # Every weight is used once at every output position; all outputs of an operation lie on the strided grid.
    weights = operation_parameters(operation, channels, axes, stride=stride, affine=False)
    return weights / stride**axes
