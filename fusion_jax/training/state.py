"""One training step as a pure function: what is carried from step to step, what is minimised, and the step itself.

Nothing here is jitted; whoever runs the step jits it once, outermost: `jax.jit(step, donate_argnums=0)`. `fit` does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fusion_jax.arrays import Array, Batch, Key, Model, Outputs, Variables
from fusion_jax.training.keys import named_key
from fusion_jax.training.optimiser import learning_rate_of

__all__ = ["FitState", "Objective", "Step", "initial_state", "make_step"]

Step = Callable[[Any, Any, Key], tuple[Any, dict[str, Array]]]
"""`step(state, batch, key) -> (state, info)`; `key` belongs to the epoch, and the state counts the steps."""

TRAINED = ("params", "objective")
"""Collections that the optimiser moves."""


class Objective(NamedTuple):
    """What training minimises.

    Attributes:
      init: parameters of the objective itself, such as learned loss weights; `{}` for most. They are kept in
        `variables["objective"]` and trained with the model's.
      loss: `loss(parameters, outputs, batch) -> (mean over the valid rows, scalars by name)`.
    """

    init: Callable[[], Any]
    loss: Callable[[Any, Outputs, Batch], tuple[Array, dict[str, Array]]]


class FitState(NamedTuple):
    """What is carried from step to step.

    Attributes:
      variables: collections of the model, and `objective`.
      opt_state: of the optimiser over the collections `params` and `objective`.
      step: number of steps so far, int32, shape `()`.
    """

    variables: Variables
    opt_state: Any
    step: Array


def initial_state(
    model: Model, optimiser: optax.GradientTransformation, objective: Objective
) -> Callable[[Key, Batch], FitState]:
    """The state that training starts from, as a function of key and batch.

    Args:
      model: to be trained; pretrained weights belong in its `init`.
      optimiser: over a tree with the collections `params` and `objective`.
      objective: whose own parameters are trained along.

    Returns:
      `init(key, batch) -> FitState`, pure, not jitted. Of the batch only shapes and dtypes matter.

    Example:
      >>> model = Model(
      ...     lambda key, batch: {"params": {"w": jnp.zeros(())}}, lambda variables, batch, **_: (batch, variables)
      ... )
      >>> objective = Objective(dict, lambda own, outputs, batch: (outputs, {}))
      >>> init = initial_state(model, optax.sgd(0.1), objective)
      >>> int(init(jax.random.key(0), Batch({}, {}, True, {}, 0)).step)
      0
    """

    def init(key: Key, batch: Batch) -> FitState:
        variables = {**model.init(key, batch), "objective": objective.init()}
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimiser.init(_trained(variables))
        return FitState(variables, opt_state, jnp.zeros((), jnp.int32))

    return init


def make_step(
    model: Model,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    augment: Callable[[Batch, Key], Batch] | None = None,
) -> Step:
    """Step for `fit`: one forward pass, one backward pass, one update.

    Running statistics move once a step, whatever the objective sums.

    Args:
      model: to be trained.
      optimiser: the one that `initial_state` got.
      objective: what to minimise.
      augment: `augment(batch, key) -> batch`, run inside the step. Its key is that of the epoch, so that
        `case_keys(key, 0, batch.index)` gives what follows from epoch and case, whatever the batch.

    Returns:
      `step(state, batch, key) -> (state, info)`, pure, not jitted, for a key of the epoch. `info` holds scalars:
      `loss`, `gradient_norm` (before clipping), `learning_rate` where the optimiser is from `make_optimiser`, and those
      of the objective.

    Example:
      >>> def apply(variables, batch, *, train, key=None):
      ...     return Outputs(batch.inputs["x"] * variables["params"]["w"], {}, {}), variables
      >>> model = Model(lambda key, batch: {"params": {"w": jnp.ones(())}}, apply)
      >>> objective = Objective(dict, lambda own, outputs, batch: (jnp.mean(outputs.logits), {}))
      >>> batch = Batch({"x": jnp.ones((2, 1))}, {}, jnp.ones(2, bool), {}, jnp.arange(2))
      >>> state = initial_state(model, optax.sgd(0.1), objective)(jax.random.key(0), batch)
      >>> state, info = make_step(model, optax.sgd(0.1), objective)(state, batch, jax.random.key(0))
      >>> float(state.variables["params"]["w"]), float(info["loss"])
      (0.9, 1.0)
    """

    def step(state: FitState, batch: Batch, key: Key) -> tuple[FitState, dict[str, Array]]:
        if augment is not None:
            batch = augment(batch, named_key(key, "augment"))
        dropout = named_key(jax.random.fold_in(key, state.step), "dropout")
        trained = _trained(state.variables)

        def loss_of(trained: dict[str, Any]) -> tuple[Array, tuple[dict[str, Array], Variables]]:
            outputs, variables = model.apply({**state.variables, **trained}, batch, train=True, key=dropout)
            loss, scalars = objective.loss(trained["objective"], outputs, batch)
            return loss, (scalars, variables)

        (loss, (scalars, variables)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        with jax.numpy_dtype_promotion("standard"):
            norm = optax.tree.norm(gradients)
            updates, opt_state = optimiser.update(gradients, state.opt_state, trained)
            trained = cast("dict[str, Any]", optax.apply_updates(trained, updates))
        rate = learning_rate_of(opt_state)
        info = {**scalars, "loss": loss, "gradient_norm": norm} | ({} if rate is None else {"learning_rate": rate})
        return FitState({**variables, **trained}, opt_state, state.step + 1), info

    return step


def _trained(variables: Variables) -> dict[str, Any]:
    return {name: variables[name] for name in TRAINED}
