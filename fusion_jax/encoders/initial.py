r"""Initial values of kernels: normal with a variance that follows from the number of inputs or outputs.

.. math:: \operatorname{Var} w = \frac{g}{n}

where :math:`n` counts the taps times the inputs, or the outputs, of the kernel and :math:`g` is the gain. The values
are those of `jax.nn.initializers.variance_scaling`, bit for bit. They are drawn as one row and then brought into shape,
because XLA:CPU takes seven times as long to compile a draw of four axes (20 kernels in one program: 18 s of CPU time,
and 2.6 s in rows).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Array, Key

__all__ = ["Initializer", "he_normal", "lecun_normal"]

Initializer = Callable[..., Array]

# Standard deviation of a normal distribution that is cut off at two standard deviations.
_TRUNCATED = 0.87962566103423978


def lecun_normal(key: Key, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
    """Truncated normal with variance 1 / inputs: `flax.linen.initializers.lecun_normal()`.

    Args:
      key: of the parameter.
      shape: `(*window, inputs, outputs)`.
      dtype: floating.

    Example:
      >>> kernel = lecun_normal(jax.random.key(0), (3, 3, 4, 8))
      >>> bool((kernel == jax.nn.initializers.lecun_normal()(jax.random.key(0), (3, 3, 4, 8))).all())
      True

    References:
      LeCun et al. 1998, "Efficient BackProp".
    """
    row = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
    deviation = math.sqrt(1 / math.prod(shape[:-1])) / _TRUNCATED
    return (row * jnp.asarray(deviation, dtype)).reshape(shape)


def he_normal(key: Key, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
    """Normal with variance 2 / outputs, which keeps the size of gradients through ReLU; torchvision's for convolutions.

    Arguments as for `lecun_normal`.

    Example:
      >>> he_normal(jax.random.key(0), (3, 3, 4, 8)).shape
      (3, 3, 4, 8)

    References:
      He et al. 2015, "Delving deep into rectifiers", Eq. 14.
    """
    row = jax.random.normal(key, (math.prod(shape),), dtype)
    deviation = math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))
    return (row * jnp.asarray(deviation, dtype)).reshape(shape)
