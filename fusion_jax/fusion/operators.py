r"""Fusion operators: from the features of several sources to one vector a case, whichever sources a case has.

An operator is a Flax module `operator(features, present, order=names, learn_missing=False) -> (b, f)`. The order of the
sources comes from `order`, never from the mappings, whose keys jit sorts. Whatever stands in a row of an absent source
is not looked at, forward or backward; what takes its place is each operator's own rule:

==================  ==========================================================================================
operator            an absent source
==================  ==========================================================================================
concatenate         a constant; with `learn_missing` a learned vector
add                 left out of the sum, which is scaled by (sources) / (sources present)
multiply            the factor 1
average             left out of the mean
gated               left out of the softmax over sources
film                leaves the conditioned source as it is
low_rank_bilinear   the constant factor
cross_attention     left out of the softmax, and asks nothing
==================  ==========================================================================================

The lower-case names are the operators with their default settings, to be handed as `fuse=`; the classes take settings.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float

__all__ = [
    "OPERATORS",
    "Add",
    "Average",
    "Concatenate",
    "CrossAttention",
    "FiLM",
    "Gated",
    "LowRankBilinear",
    "Multiply",
    "Operator",
    "add",
    "average",
    "concatenate",
    "cross_attention",
    "film",
    "gated",
    "low_rank_bilinear",
    "masked_softmax",
    "multiply",
]

Features = Mapping[str, Float[ArrayLike, "b ..."]]
Masks = Mapping[str, Bool[ArrayLike, "b"]]


def masked_softmax(
    scores: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"], *, axis: int = -1
) -> Float[Array, "*s"]:
    r"""Softmax over the entries that count, :math:`m_i e^{x_i} / \sum_j m_j e^{x_j}`; zeros where none counts.

    Args:
      scores: any shape.
      mask: which entries count, of the same shape.
      axis: that sums to 1.

    Example:
      >>> masked_softmax(jnp.array([0.0, 0.0, 9.0]), jnp.array([True, True, False])).tolist()
      [0.5, 0.5, 0.0]
      >>> masked_softmax(jnp.array([1.0, 2.0]), jnp.array([False, False])).tolist()
      [0.0, 0.0]
    """
    scores, mask = jnp.asarray(scores), jnp.asarray(mask)
    floor = jnp.finfo(scores.dtype).min
    scores = jnp.where(mask, scores, floor)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - peak), 0.0)
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


class Operator(nn.Module):
    """What every operator shares: its arguments and their checks.

    Attributes:
      dtype: of the computation; parameters and the result are float32.
    """

    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, present: Masks, *, order: Sequence[str], learn_missing: bool = False
    ) -> Float[Array, "b f"]:
        """The fused vector of each case.

        Args:
          features: source to its features, each `(b, f)`.
          present: source to which rows have it, each `(b,)`.
          order: names of the sources, in the order of the model.
          learn_missing: whether what stands for an absent source may be learned, as it can where sources are dropped in
            training.

        Returns:
          Fused features, float32, shape `(b, f)`; finite for a row that has no source.

        Raises:
          ValueError: no source, one without features or mask, or features that do not fit the operator.
        """
        names = tuple(order)
        if not names:
            raise ValueError(f"{type(self).__name__}: no source to fuse; expected at least one name in order.")
        for name in names:
            if name not in features or name not in present:
                raise ValueError(
                    f"{type(self).__name__}: no features or no mask of source {name!r}; expected both for "
                    f"{', '.join(names)}."
                )
            shape = jnp.shape(features[name])
            if len(shape) != 2:
                raise ValueError(
                    f"{type(self).__name__}: features of source {name!r} have shape {shape}; expected (b, f). Its "
                    "encoder must end in a vector a case."
                )
        masks = [jnp.asarray(present[name]) for name in names]
        values = [
            jnp.where(mask[:, None], jnp.asarray(features[name]).astype(self.dtype), 0.0)
            for name, mask in zip(names, masks, strict=True)
        ]
        return self.combine(names, values, masks, learn_missing).astype(jnp.float32)

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """The operator itself, on features that are zero where the source is absent."""
        raise NotImplementedError

    def _equal_widths(self, names: tuple[str, ...], values: list[Array]) -> None:
        widths = {name: value.shape[1] for name, value in zip(names, values, strict=True)}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(
                f"{type(self).__name__} needs features of one width; found {found}. Give the encoders one projection, "
                "or take an operator that projects (gated, low_rank_bilinear, cross_attention) or concatenate."
            )


class Concatenate(Operator):
    r"""Features one after the other, :math:`[g_1; \dots; g_s]`.

    Attributes:
      missing: what stands in every coordinate of an absent source; where it is learned, its initial value.

    Example:
      >>> features = {"image": jnp.ones((1, 2)), "age": jnp.full((1, 1), 3.0)}
      >>> present = {"image": jnp.array([True]), "age": jnp.array([False])}
      >>> concatenate.apply({}, features, present, order=("image", "age")).tolist()
      [[1.0, 1.0, 0.0]]
    """

    missing: float = 0.0

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        initial = nn.initializers.constant(self.missing)
        parts = []
        for name, value, mask in zip(names, values, masks, strict=True):
            width = value.shape[1:]
            stand_in = self.param(f"missing_{name}", initial, width) if learn_missing else jnp.full(width, self.missing)
            parts.append(jnp.where(mask[:, None], value, stand_in.astype(value.dtype)[None]))
        return jnp.concatenate(parts, axis=1)


class Add(Operator):
    r"""Sum over the sources, :math:`\frac{s}{\sum_i m_i} \sum_i m_i g_i`: of one size, however many are there.

    Example:
      >>> features = {"image": jnp.ones((1, 2)), "age": jnp.full((1, 2), 3.0)}
      >>> present = {"image": jnp.array([True]), "age": jnp.array([False])}
      >>> add.apply({}, features, present, order=("image", "age")).tolist()
      [[2.0, 2.0]]
    """

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        self._equal_widths(names, values)
        count = _count(masks, values[0].dtype)
        return sum(values[1:], values[0]) * (len(names) / count)[:, None]


class Average(Operator):
    r"""Mean over the sources that are there, :math:`\sum_i m_i g_i / \sum_i m_i`.

    Example:
      >>> features = {"image": jnp.ones((1, 2)), "age": jnp.full((1, 2), 3.0)}
      >>> present = {"image": jnp.array([True]), "age": jnp.array([True])}
      >>> average.apply({}, features, present, order=("image", "age")).tolist()
      [[2.0, 2.0]]
    """

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        self._equal_widths(names, values)
        return sum(values[1:], values[0]) / _count(masks, values[0].dtype)[:, None]


class Multiply(Operator):
    r"""Product over the sources, :math:`\prod_i g_i^{m_i}`.

    Example:
      >>> features = {"image": jnp.full((1, 2), 2.0), "age": jnp.full((1, 2), 3.0)}
      >>> present = {"image": jnp.array([True]), "age": jnp.array([True])}
      >>> multiply.apply({}, features, present, order=("image", "age")).tolist()
      [[6.0, 6.0]]
    """

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        self._equal_widths(names, values)
        product = jnp.ones_like(values[0])
        for value, mask in zip(values, masks, strict=True):
            product = product * jnp.where(mask[:, None], value, 1.0)
        return product


class Gated(Operator):
    r"""Sources weighed against each other, coordinate by coordinate, by gates that see all of them.

    .. math:: h_i = \tanh(W_i g_i + b_i), \qquad z = \mathrm{softmax}_i(V_i [g_1; \dots; g_s] + c_i), \qquad
              f = \sum_i z_i \odot h_i

    Attributes:
      width: of the fused vector.

    Example:
      >>> features = {"image": jnp.ones((2, 5)), "age": jnp.ones((2, 1))}
      >>> present = {"image": jnp.array([True, False]), "age": jnp.array([True, True])}
      >>> fused, _ = Gated(width=8).init_with_output(jax.random.key(0), features, present, order=("image", "age"))
      >>> fused.shape
      (2, 8)

    References:
      Arevalo et al. 2017, gated multimodal unit, with a softmax where the sources are more than two.
    """

    width: int = 64

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        seen = jnp.concatenate(values, axis=1)
        hidden = [
            jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name=f"value_{name}")(value))
            for name, value in zip(names, values, strict=True)
        ]
        scores = [nn.Dense(self.width, dtype=self.dtype, name=f"gate_{name}")(seen) for name in names]
        mask = jnp.stack(masks, axis=1)[:, :, None]
        stacked = jnp.stack(scores, axis=1)
        gates = masked_softmax(stacked, jnp.broadcast_to(mask, stacked.shape), axis=1)
        return jnp.sum(gates * jnp.stack(hidden, axis=1), axis=1)


class FiLM(Operator):
    r"""Feature-wise linear modulation of one source by the others.

    .. math:: f = g_0 \odot \Bigl(1 + \sum_{i>0} m_i \gamma_i(g_i)\Bigr) + \sum_{i>0} m_i \beta_i(g_i)

    with linear :math:`\gamma_i, \beta_i`, so that a source that is absent changes nothing.

    Attributes:
      conditioned: name of the source that is modulated; the first of the model unless given.

    Example:
      >>> features = {"image": jnp.ones((1, 5)), "age": jnp.ones((1, 1))}
      >>> present = {"image": jnp.array([True]), "age": jnp.array([False])}
      >>> film.init_with_output(jax.random.key(0), features, present, order=("image", "age"))[0].tolist()
      [[1.0, 1.0, 1.0, 1.0, 1.0]]

    References:
      Perez et al. 2018, Eq. 1, with the scale as a change from 1.
    """

    conditioned: str | None = None

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        conditioned = names[0] if self.conditioned is None else self.conditioned
        if conditioned not in names:
            raise ValueError(f"FiLM: conditioned is {conditioned!r}; expected one of {', '.join(names)}.")
        base = values[names.index(conditioned)]
        scale, shift = jnp.ones_like(base), jnp.zeros_like(base)
        for name, value, mask in zip(names, values, masks, strict=True):
            if name == conditioned:
                continue
            gamma = nn.Dense(base.shape[1], dtype=self.dtype, name=f"scale_{name}")(value)
            beta = nn.Dense(base.shape[1], dtype=self.dtype, name=f"shift_{name}")(value)
            scale = scale + jnp.where(mask[:, None], gamma, 0.0)
            shift = shift + jnp.where(mask[:, None], beta, 0.0)
        return base * scale + shift


class LowRankBilinear(Operator):
    r"""Product of linear projections with a constant, all interactions of the sources in `rank` terms.

    .. math:: f = \prod_i (U_i^\top g_i + c_i)

    The constants, 1 at first, keep the terms of lower order, so that every source also counts alone. The linear layer
    behind the operator completes the low-rank form.

    Attributes:
      rank: number of terms, the width of the fused vector.

    Example:
      >>> features = {"image": jnp.ones((2, 5)), "age": jnp.ones((2, 1))}
      >>> present = {"image": jnp.array([False, True]), "age": jnp.array([False, True])}
      >>> fused, _ = LowRankBilinear(rank=3).init_with_output(
      ...     jax.random.key(0), features, present, order=("image", "age"))
      >>> fused[0].tolist()
      [1.0, 1.0, 1.0]

    References:
      Kim et al. 2017 (low-rank bilinear pooling); Liu et al. 2018 (any number of sources, the constant factor).
    """

    rank: int = 64

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        product = jnp.ones((len(values[0]), self.rank), self.dtype)
        for name, value in zip(names, values, strict=True):
            ones = nn.initializers.ones_init()
            product = product * nn.Dense(self.rank, dtype=self.dtype, bias_init=ones, name=f"factor_{name}")(value)
        return product


class CrossAttention(Operator):
    r"""Attention among the sources, one token a source; the mean of the tokens that are there.

    .. math:: t_i = W_i g_i + b_i, \qquad
              u_i = t_i + O \sum_j \mathrm{softmax}_j\Bigl(\frac{(Q t_i)^\top K t_j}{\sqrt{d}}\Bigr) V t_j, \qquad
              f = \frac{\sum_i m_i u_i}{\sum_i m_i}

    The softmax runs over the sources that are there, the own one among them, in every head by itself.

    Attributes:
      width: of the tokens and of the fused vector.
      heads: number of heads, which divides `width`.

    Example:
      >>> features = {"image": jnp.ones((2, 5)), "age": jnp.ones((2, 1))}
      >>> present = {"image": jnp.array([True, False]), "age": jnp.array([True, True])}
      >>> operator = CrossAttention(width=8, heads=2)
      >>> operator.init_with_output(jax.random.key(0), features, present, order=("image", "age"))[0].shape
      (2, 8)

    References:
      Vaswani et al. 2017, Eq. 1.
    """

    width: int = 64
    heads: int = 4

    def combine(
        self, names: tuple[str, ...], values: list[Array], masks: list[Array], learn_missing: bool
    ) -> Float[Array, "b f"]:
        """See the class."""
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"CrossAttention: width {self.width} does not divide among {self.heads} heads; take a multiple."
            )
        tokens = jnp.stack(
            [
                nn.Dense(self.width, dtype=self.dtype, name=f"token_{name}")(value)
                for name, value in zip(names, values, strict=True)
            ],
            axis=1,
        )
        b, s, _ = tokens.shape
        query, key, value = (
            nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(tokens).reshape(b, s, self.heads, -1)
            for name in ("query", "key", "value")
        )
        mask = jnp.stack(masks, axis=1)
        scores = jnp.einsum("bihf,bjhf->bhij", query, key) / float(query.shape[-1]) ** 0.5
        weights = masked_softmax(scores, jnp.broadcast_to(mask[:, None, None, :], scores.shape))
        seen = jnp.einsum("bhij,bjhf->bihf", weights, value).reshape(b, s, self.width)
        updated = tokens + nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="out")(seen)
        # The token of an absent source is its bias, no zero, so it must be left out by name.
        return jnp.sum(jnp.where(mask[:, :, None], updated, 0.0), axis=1) / _count(masks, updated.dtype)[:, None]


concatenate = Concatenate()
add = Add()
multiply = Multiply()
average = Average()
gated = Gated()
film = FiLM()
low_rank_bilinear = LowRankBilinear()
cross_attention = CrossAttention()

OPERATORS: Mapping[str, Operator] = {
    "concatenate": concatenate,
    "add": add,
    "multiply": multiply,
    "average": average,
    "gated": gated,
    "film": film,
    "low_rank_bilinear": low_rank_bilinear,
    "cross_attention": cross_attention,
}
"""Every operator by name, with its default settings; `OPERATORS[name].clone(width=8)` changes them."""


def _count(masks: list[Array], dtype: jax.typing.DTypeLike) -> Array:
    """Number of sources of each row, at least 1, shape `(b,)`."""
    return jnp.maximum(jnp.sum(jnp.stack(masks, axis=1), axis=1), 1).astype(dtype)
