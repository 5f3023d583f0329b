"""A stand-in for a SuperNet that compiles at once: two vectors, mixed on the edges of one cell with one node."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fusion_jax.arrays import Outputs
from fusion_jax.data import Cohort

OPERATIONS = ("none", "skip", "conv3")


class Mixture(nn.Module):
    """Nothing, the vector itself, or a trained layer on each of two edges; dropout and a running mean beside them."""

    sources: tuple[str, ...] = ("pet", "ct")
    operations: tuple[str, ...] = OPERATIONS
    nodes: int = 1
    layout: str = "N"
    channels: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(self, inputs: Any, *, present: Any, valid: Any, train: bool) -> Outputs:
        def initial() -> Any:
            return 1e-3 * jax.random.normal(self.make_rng("params"), (len(self.sources), len(self.operations)))

        weights = jax.nn.softmax(self.variable("architecture", "normal", initial).value, axis=-1)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        total: Any = 0.0
        for edge, source in enumerate(self.sources):
            x = inputs[source]
            layer = jnp.tanh(nn.Dense(self.channels, use_bias=False, name=source)(x))
            total = total + weights[edge, 1] * x + weights[edge, 2] * layer
        if train and not self.is_initializing():
            now = jnp.mean(total, axis=0)
            mean.value = 0.9 * mean.value + 0.1 * now
        total = nn.Dropout(self.dropout)(total, deterministic=not train)
        return Outputs(nn.Dense(2, name="head")(total - mean.value[None]), {}, {s: inputs[s] for s in self.sources})


def cohort(cases: int = 24) -> Cohort:
    """The class is the sign of a hidden number that only "ct" shows; "pet" is noise."""
    rng = np.random.default_rng(11)
    pet, ct = rng.normal(size=(2, cases, 4)).astype(np.float32)
    label = (ct[:, 0] > np.median(ct[:, 0])).astype(int)
    return Cohort.from_arrays({"pet": pet, "ct": ct}, label=label.tolist())
