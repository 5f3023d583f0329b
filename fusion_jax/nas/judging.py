"""How an epoch of a search is judged: by the loss of the validation cases, and by how sharp it is."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from fusion_jax.arrays import Array, Batch, Key, Model, Outputs, Variables
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.nas.bilevel import dominant_eigenvalue
from fusion_jax.nas.supernet import ARCHITECTURE
from fusion_jax.training.state import Objective

__all__ = ["validation_eigenvalue", "validation_loss"]

EIGENVALUE_CASES = 8
"""Validation cases whose mean loss the Hessian is of."""


def validation_loss(
    model: Model, objective: Objective, cohort: Cohort, rows: Int[np.ndarray, "n"], batch_size: int
) -> Callable[[Variables], float]:
    """Loss over all of some rows at once, which is right for objectives that compare cases with each other too.

    Args:
      model: to be evaluated, as it predicts.
      objective: of the search.
      cohort: with the rows.
      rows: to evaluate.
      batch_size: rows at a time.

    Returns:
      `evaluate(variables) -> loss`; it compiles at its first call.
    """
    batches = Batches(cohort, rows, batch_size, (0,), sampler="sequential")
    forward, total = _forward(model), _total(objective)

    def evaluate(variables: Variables) -> float:
        parts = []
        for batch in batches.iterate(stop=batches.steps_per_epoch):
            outputs = jax.device_get(forward(variables, batch))
            target = {name: values for name, values in batch.target.items() if name != "masks"}
            parts.append((outputs, batch._replace(inputs={}, target=target)))
        outputs, whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return float(total(variables["objective"], outputs, whole))

    return evaluate


def validation_eigenvalue(
    model: Model, objective: Objective, cohort: Cohort, rows: Int[np.ndarray, "n"], batch_size: int, iterations: int
) -> Callable[[Variables, Key], float]:
    """Dominant eigenvalue of the Hessian of the validation loss in the logits.

    Args:
      model, objective, cohort, rows, batch_size: as for `validation_loss`; a few cases spread over the rows are taken.
      iterations: of Lanczos.

    Returns:
      `measure(variables, key) -> eigenvalue`; it compiles at its first call.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, EIGENVALUE_CASES).round().astype(int))]
    batches = Batches(cohort, chosen, min(batch_size, len(chosen)), (0,), sampler="sequential")

    product = _hessian_product(model, objective)

    def measure(variables: Variables, key: Key) -> float:
        parts = list(batches.iterate(stop=batches.steps_per_epoch))

        def whole(vector: Any) -> Any:
            images = [product(variables, part, vector, np.float32(part.valid.sum() / len(chosen))) for part in parts]
            return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *images)

        return dominant_eigenvalue(whole, variables[ARCHITECTURE], key, iterations=iterations)

    return measure


# One program for all searches of one model, such as the folds of a cross-validation


@lru_cache(maxsize=4)
def _forward(model: Model) -> Callable[[Variables, Batch], Outputs]:
    return jax.jit(lambda variables, batch: model.apply(variables, batch, train=False)[0])


@lru_cache(maxsize=4)
def _total(objective: Objective) -> Callable[[Any, Outputs, Batch], Array]:
    return jax.jit(lambda own, outputs, batch: objective.loss(own, outputs, batch)[0])


@lru_cache(maxsize=4)
def _hessian_product(model: Model, objective: Objective) -> Callable[[Variables, Batch, Any, Any], Any]:
    @jax.jit
    def product(variables: Variables, batch: Batch, vector: Any, share: Array) -> Any:
        def loss(architecture: Any) -> Array:
            outputs, _ = model.apply({**variables, ARCHITECTURE: architecture}, batch, train=False)
            return share * objective.loss(variables["objective"], outputs, batch)[0]

        return jax.jvp(jax.grad(loss), (variables[ARCHITECTURE],), (vector,))[1]

    return product
