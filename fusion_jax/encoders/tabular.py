"""Encoders of clinical values, shape `(b, f)`: fully connected, convolution over bits, and none at all.

None of them couples one row of the batch with another, so `mask` is taken for the sake of the common signature and
changes nothing; what enters the fusion of an absent source is the operator's affair.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.encoders.layers import Conv

__all__ = ["MLP", "Activation", "BitConv", "PassThrough"]

Activation = Literal["relu", "gelu", "silu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


class MLP(nn.Module):
    r"""Fully connected layers, each followed by an activation; an encoder of clinical values or the head of a fusion.

    .. math:: h_0 = x, \qquad h_i = a(W_i h_{i-1} + b_i)

    Parameters are `Dense_0/kernel`, `(f, widths[0])`, `Dense_0/bias` and so on; without widths there are none.

    Attributes:
      widths: outputs of each layer.
      dropout: fraction of the outputs of a layer that is dropped in training, after its activation.
      input_dropout: fraction of the inputs that is dropped in training.
      dropout_after: "all" layers, or the "last" alone.
      activation: the function `a`.
      dtype: of the computation; parameters and the result are float32.

    Example:
      >>> encoder = MLP((1024, 512), dropout=0.25, dropout_after="last")
      >>> features, variables = encoder.init_with_output(jax.random.key(0), jnp.zeros((2, 33)), train=False)
      >>> features.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))
      ((2, 512), 559616)

    References:
      Holste et al. 2021, Figure 1: dropout once in the clinical network, after every layer in the image network and in
      the fusion head, whose input is dropped too; specs/breast_mri_fusion.md, section 4.
    """

    widths: Sequence[int]
    dropout: float = 0.0
    input_dropout: float = 0.0
    dropout_after: Literal["all", "last"] = "all"
    activation: Activation = "relu"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, "b"] | None = None
    ) -> Float[Array, "b g"]:
        """Features of each row.

        Args:
          x: values, shape `(b, f)`.
          train: whether dropout acts, with the key "dropout".
          mask: see the module; unused.

        Returns:
          Features, float32, shape `(b, widths[-1])`.

        Raises:
          ValueError: `x` is no table, a width is not positive, or an attribute has no such choice.
        """
        x = _table(self, x)
        if any(width < 1 for width in self.widths):
            raise ValueError(f"MLP: widths are {tuple(self.widths)}; expected at least one output in every layer.")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"MLP: {name} is {getattr(self, name)}; expected a fraction, at least 0 and below 1.")
        if self.dropout_after not in ("all", "last"):
            raise ValueError(f"MLP: dropout_after is {self.dropout_after!r}; expected 'all' or 'last'.")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"MLP: activation is {self.activation!r}; expected one of {', '.join(_ACTIVATIONS)}.")
        h = nn.Dropout(self.input_dropout, deterministic=not train)(x.astype(self.dtype))
        for layer, width in enumerate(self.widths, start=1):
            h = _ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(h))
            if self.dropout_after == "all" or layer == len(self.widths):
                h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return h.astype(jnp.float32)


class BitConv(nn.Module):
    """One convolution over clinical bits, ReLU, and all its outputs as features.

    Parameters are `conv/kernel` and `conv/bias`, and `out/kernel` and `out/bias` where there is an `out`.

    Attributes:
      filters: channels of the convolution.
      kernel: its window, one number; zeros beyond the ends, so that there are as many positions as bits.
      layout: bits in a "sequence", or as a square "map", row by row: nine bits are a 3 × 3 image.
      out: outputs of a fully connected layer with ReLU behind it; None for none.
      dtype: of the computation; parameters and the result are float32.

    Example:
      >>> features, _ = BitConv().init_with_output(jax.random.key(0), jnp.zeros((2, 9)), train=False)
      >>> features.shape
      (2, 144)

    References:
      Wang W. et al. 2020, model C; specs/hcc_fusion.md, section 4 and reading H4.
    """

    filters: int = 16
    kernel: int = 3
    layout: Literal["sequence", "map"] = "sequence"
    out: int | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, "b"] | None = None
    ) -> Float[Array, "b g"]:
        """Features of each row.

        Args:
          x: bits, shape `(b, f)`; any values are taken.
          train: changes nothing here.
          mask: see the module; unused.

        Returns:
          Features, float32, shape `(b, f * filters)`, position by position, or `(b, out)`.

        Raises:
          ValueError: `x` is no table, or its columns fill no square under `layout="map"`.
        """
        x = _table(self, x)
        bits = x.shape[-1]
        side = math.isqrt(bits)
        if self.layout not in ("sequence", "map"):
            raise ValueError(f"BitConv: layout is {self.layout!r}; expected 'sequence' or 'map'.")
        if self.layout == "map" and side**2 != bits:
            raise ValueError(
                f"BitConv: {bits} bits fill no square; layout='map' needs {side**2} or {(side + 1) ** 2}. "
                "Take layout='sequence'."
            )
        sizes = (bits,) if self.layout == "sequence" else (side, side)
        h = Conv(self.filters, self.kernel, dtype=self.dtype, name="conv")(x.reshape(-1, *sizes, 1))
        h = nn.relu(h).reshape(len(x), -1)
        if self.out is not None:
            h = nn.relu(nn.Dense(self.out, dtype=self.dtype, name="out")(h))
        return h.astype(jnp.float32)


class PassThrough(nn.Module):
    """The values themselves, in float32: shallow features of a source, or no head at all.

    Example:
      >>> PassThrough().apply({}, jnp.ones((2, 3)), train=False).shape
      (2, 3)
    """

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, "b"] | None = None
    ) -> Float[Array, "b f"]:
        """`x`, shape `(b, f)`.

        Raises:
          ValueError: `x` is no table; an image needs an encoder.
        """
        return _table(self, x).astype(jnp.float32)


def _table(module: nn.Module, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(
            f"{type(module).__name__}: x has shape {x.shape}; expected clinical values or features, (b, f) with f > 0. "
            "Give an image an image encoder."
        )
    return x
