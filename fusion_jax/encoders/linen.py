"""From a Flax Linen module to a `Model`: the only place where `init` and `apply` of a module are called."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from fusion_jax.arrays import Batch, Key, Model, Outputs, Variables
from fusion_jax.training.keys import named_key

__all__ = ["as_model", "count_parameters"]

STATISTICS = "batch_stats"


def as_model(module: nn.Module) -> Model:
    """The model of a module `module(inputs, *, present, valid, train) -> Outputs`.

    `init` runs under one jit, without which every parameter would be a program of its own. `apply` changes no
    collection but `batch_stats`, and that only while training; others, whoever they belong to, pass through. Dropout
    draws from `named_key(key, "dropout")`, dropped sources from `named_key(key, "sources")`. Outputs are cast to
    float32.

    Args:
      module: reads `inputs` and `present`, mappings from source to array, and `valid`. Where it has `sources`, names,
        or `encoders`, a mapping from the names, these must be in the batch.

    Returns:
      The model. Its functions raise ValueError for a batch that lacks a source, and for dropout without a key.

    Example:
      >>> class Mean(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, inputs, *, present, valid, train):
      ...         return Outputs(nn.Dense(1)(inputs["age"]), {}, {"age": inputs["age"]})
      >>> batch = Batch({"age": jnp.ones((2, 1))}, {}, jnp.ones(2, bool), {"age": jnp.ones(2, bool)}, jnp.arange(2))
      >>> model = as_model(Mean())
      >>> variables = model.init(jax.random.key(0), batch)
      >>> outputs, variables = model.apply(variables, batch, train=False)
      >>> outputs.logits.shape, count_parameters(variables)
      ((2, 1), 2)
    """

    def init(key: Key, batch: Batch) -> Variables:
        _check_sources(module, batch)

        def initial(key: Key, inputs: Mapping, present: Mapping, valid: Any) -> Variables:
            rngs = {"params": named_key(key, "params")}
            return dict(module.init(rngs, inputs, present=present, valid=valid, train=False))

        return jax.jit(initial)(key, dict(batch.inputs), dict(batch.present), batch.valid)

    def apply(variables: Variables, batch: Batch, *, train: bool, key: Key | None = None) -> tuple[Outputs, Variables]:
        _check_sources(module, batch)
        rngs = {} if key is None else {name: named_key(key, name) for name in ("dropout", "sources")}
        # Flax takes mappings only; what else is kept beside them is not the module's.
        collections = {name: value for name, value in variables.items() if isinstance(value, Mapping)}
        try:
            found = module.apply(
                collections,
                batch.inputs,
                present=batch.present,
                valid=batch.valid,
                train=train,
                rngs=rngs if train else {},
                mutable=[STATISTICS] if train else False,
            )
        except errors.InvalidRngError as error:
            raise ValueError(
                f"{type(module).__name__} draws random numbers (dropout or dropped sources) and got no key. "
                "Call `apply(variables, batch, train=True, key=key)`."
            ) from error
        outputs, moved = found if train else (found, {})
        outputs = jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.float32), outputs)
        return outputs, {**variables, **({STATISTICS: moved[STATISTICS]} if moved.get(STATISTICS) else {})}

    return Model(init, apply)


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Number of trained parameters: entries of all arrays in `params`; running statistics do not count.

    Shapes suffice, as `jax.eval_shape` gives them.

    Example:
      >>> count_parameters({"params": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}})
      9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _check_sources(module: nn.Module, batch: Batch) -> None:
    """Every source of the module is in the batch: a missing one would fail with a bare key, deep inside."""
    wanted = getattr(module, "sources", None) or getattr(module, "encoders", None) or ()
    lacking = [name for name in wanted if name not in batch.inputs or name not in batch.present]
    if lacking:
        raise ValueError(
            f"{type(module).__name__} reads {_listed(wanted)}; the batch holds {_listed(batch.inputs)} and lacks "
            f"{_listed(lacking)}. Add the source to the cohort, or leave its encoder out of the model."
        )


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "no source"
