"""Array aliases and the shape letters that every signature uses.

Shape letters, the same in docstrings, annotations and einsum strings:

==========  =======================  ==========  =======================
letter      axis                     letter      axis
==========  =======================  ==========  =======================
`b`         batch (cases)            `s`         sources
`d h w`     voxels                   `g`         values of gamma
`c`         channels                 `r`         resamples
`f`         features of a source     `n`         samples or grid points
`t`         tabular columns          `p`         proposals
`k`         classes                  `m`         boxes
==========  =======================  ==========  =======================

Public functions take `Float[ArrayLike, …]` and return `Float[Array, …]`. Annotations are checked at run time in
the tests only.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

__all__ = [
    "Array",
    "ArrayLike",
    "Batch",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Model",
    "Num",
    "Outputs",
    "Sources",
    "Variables",
    "as_floats",
    "is_concrete",
    "map_in_batches",
]

Key = PRNGKeyArray
Sources = Mapping[str, ArrayLike]
Variables = dict[str, Any]
"""Collections of a model: `params`, and `batch_stats` where it has running statistics."""


class Batch(NamedTuple):
    """Cases as a model takes them: fixed shapes, padded to `b` rows, absent inputs as zeros.

    Attributes:
      inputs: source to array, `(b, f)`, `(b, h, w, c)` or `(b, d, h, w, c)`.
      target: `label` (b,) int32; `time` (b,), `event` (b,) bool; `boxes` (b, m, 4), `classes` (b, m) int32 and
        `box_valid` (b, m); `masks`, a mapping from the name of a mask source to `(b, *space, c)`; whatever of these the
        cohort has.
      valid: which rows are cases and not padding, shape `(b,)`.
      present: source to whether the case has it, shape `(b,)`; False in padding.
      index: row in the cohort, -1 for padding, int32, shape `(b,)`.
    """

    inputs: Mapping[str, Any]
    target: Mapping[str, Any]
    valid: Any
    present: Mapping[str, Any]
    index: Any

    def __repr__(self) -> str:
        """Shapes and dtypes, without the values."""
        described = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", (self.inputs, self.target))
        return f"Batch(inputs={described[0]}, target={described[1]}, index={self.index!r})"


class Outputs(NamedTuple):
    """What a model says of a batch; everything in float32, whatever the model computes in.

    Attributes:
      logits: of the fused model, shape `(b, k)`; `k` is 1 for two classes (the logit of the second) and for survival
        (the logarithm of the relative risk), and the number of classes for softmax.
      source_logits: of the sources that have a head of their own, each shape `(b, k)`; empty by default.
      features: of every source as it enters the fusion, each shape `(b, f)`; zeros where the source is absent.
    """

    logits: Any
    source_logits: Mapping[str, Any]
    features: Mapping[str, Any]


class Model(NamedTuple):
    """A model as two pure functions.

    Attributes:
      init: `init(key, batch) -> variables`.
      apply: `apply(variables, batch, *, train, key=None) -> (outputs, variables)`. The variables come back with new
        running statistics when training, and unchanged otherwise; collections that are not the model's pass through.
        `key` draws dropout and dropped sources, and is needed only while training.
    """

    init: Callable[[Key, Batch], Variables]
    apply: Callable[..., tuple[Outputs, Variables]]


def as_floats(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Arrays of one common floating dtype: the widest among the inputs, and at least single precision.

    NumPy float64 becomes float32 unless x64 is enabled, as everywhere in JAX. Python numbers take part without
    widening anything; integers become the default float; half precision is widened, since sums over features lose it.

    Example:
      >>> [a.dtype.name for a in as_floats(jnp.arange(2), 0.5)]
      ['float32', 'float32']
    """
    converted = [a if isinstance(a, int | float) else jnp.asarray(a) for a in arrays]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*converted)
        floating = jnp.issubdtype(dtype, jnp.floating)
        dtype = jnp.promote_types(dtype, jnp.float32) if floating else jnp.result_type(float)
    return tuple(jnp.asarray(a, dtype) for a in converted)


def is_concrete(*arrays: ArrayLike) -> bool:
    """Whether every value is known now, outside any trace, so that it can be looked at and refused."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def map_in_batches(function: Callable, inputs: Any, batch_size: int) -> Any:
    """`jax.vmap(function)` over the leading axis of `inputs`, `batch_size` rows at a time, in bounded memory.

    Rows are repeated to fill the last batch, so that `function` is compiled once; `jax.lax.map` with a remainder
    compiles it twice.

    Example:
      >>> map_in_batches(lambda row: row + 1, jnp.arange(3), 2).tolist()
      [1, 2, 3]
    """
    rows = jax.tree.leaves(inputs)[0].shape[0]
    if rows <= batch_size:
        return jax.vmap(function)(inputs)
    batches = -(-rows // batch_size)

    def split(array: Array) -> Array:
        filled = jnp.concatenate([array, jnp.repeat(array[-1:], batches * batch_size - rows, axis=0)])
        return filled.reshape(batches, batch_size, *array.shape[1:])

    outputs = jax.lax.map(jax.vmap(function), jax.tree.map(split, inputs))
    return jax.tree.map(lambda a: a.reshape(batches * batch_size, *a.shape[2:])[:rows], outputs)
