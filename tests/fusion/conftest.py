"""Variables without a compiler: what a model's `init` would give in shape, with values that no fresh layer has."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Model


def fill(shapes: Any) -> Any:
    """Normal numbers over the root of the fan-in, the same for the same shapes."""
    rng = np.random.default_rng(len(jax.tree.leaves(shapes)))
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) / max(a.shape[:1], default=1) ** 0.5, a.dtype), shapes
    )


@pytest.fixture(scope="session")
def filled() -> Callable[[Model], Model]:
    """The model with an `init` that compiles nothing."""

    def replace(model: Model) -> Model:
        return model._replace(init=lambda key, batch: fill(jax.eval_shape(model.init, key, batch)))

    return replace
