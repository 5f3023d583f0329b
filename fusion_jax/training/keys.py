"""Where the randomness of a run comes from: one key for seed, repeat and fold, and names folded into it.

The name of the model is no part of the key, so that compared models see the same order of cases and the same
augmentation. What is drawn for a case follows from the epoch and the case, never from its place in a batch.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Key

__all__ = ["is_key", "key_from_data", "named_key", "run_key"]


def run_key(seed: int, repeat: int = 0, fold: int = 0) -> Key:
    """Key of one run of a cross-validation.

    Args:
      seed, repeat, fold: which run, each from 0.

    Example:
      >>> bool(run_key(0, repeat=1) == run_key(0, fold=1))
      False
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), repeat), fold)


def named_key(key: Key, name: str) -> Key:
    """The part of a key that belongs to one purpose: the key with the CRC-32 of the name folded in.

    Args:
      key: of the run, the epoch or the step.
      name: of the purpose, such as "dropout".

    Example:
      >>> key = run_key(0)
      >>> bool(named_key(key, "dropout") == named_key(key, "augment"))
      False
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def is_key(leaf: Any) -> bool:
    """Whether a leaf of a tree is a typed key, or the shape of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_from_data(data: Any, like: Any) -> Key:
    """The key that consists of these numbers, as `jax.random.key_data` gave them.

    Args:
      data: whole numbers.
      like: a key of the same kind, or the shape of one.

    Example:
      >>> key = run_key(0)
      >>> bool(key_from_data(jax.random.key_data(key), jax.eval_shape(lambda: key)) == key)
      True
    """
    kinds = []
    # The kind can be asked of arrays only; under a trace, a shape is one.
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(data), impl=kinds[0])
