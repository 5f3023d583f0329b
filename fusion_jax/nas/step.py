"""One step of a search as a pure function: what is carried, how both halves move, and the step itself.

`fit` jits the step of the first order; that of the second order compiles its parts one by one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax.arrays import Array, Batch, Key, Model, Variables
from fusion_jax.nas.bilevel import (
    Gradients,
    first_order_gradient,
    joined,
    mixed_product,
    probes,
    quotient,
    through_step,
    unrolled,
)
from fusion_jax.nas.costs import Cost, expected_cost
from fusion_jax.nas.diagnostics import Collapse
from fusion_jax.nas.paired import SearchBatch
from fusion_jax.nas.supernet import ARCHITECTURE
from fusion_jax.training.keys import named_key
from fusion_jax.training.optimiser import Optimiser, learning_rate_of, make_optimiser
from fusion_jax.training.state import Objective
from fusion_jax.wording import listed

__all__ = ["SearchSettings", "SearchState", "search_state", "search_step"]

SHOWN = 8
"""Collections that a message names."""


class SearchState(NamedTuple):
    """What is carried from step to step.

    Attributes:
      variables: `params`, `batch_stats` where there are any, `objective`, and `architecture`, the logits.
      opt_state: of the optimiser of the weights, over `params` and `objective`.
      architecture_opt_state: of the optimiser of the logits.
      step: number of steps so far, int32, shape `()`.
    """

    variables: Variables
    opt_state: Any
    architecture_opt_state: Any
    step: Array


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How weights and architecture are moved.

    Attributes:
      order: "first" takes the weights as they are, "second" as one step of SGD would leave them.
      product: of the second order: "exact", or "finite-difference" as the published code has it.
      weights: optimiser of the weights; SGD without `rates` for the second order.
      architecture: optimiser of the logits.
      warmup_epochs: epochs in which the weights move alone.
      penalty: weight of the expected cost in the loss of the architecture; the cost is between 0 and 1.
      cost: what the penalty counts.
      collapse: rule that ends the search and bars architectures, see `diagnostics.eligible_epochs`.
      eigenvalue_every: epochs between two measurements of the dominant eigenvalue; 0 never. One takes
        `eigenvalue_iterations` products over eight validation cases, each about two gradients.
      eigenvalue_iterations: of Lanczos.

    Raises:
      ValueError: settings that do not fit each other.

    Example:
      >>> SearchSettings(order="second").weights.momentum
      0.9

    References:
      Peng et al. 2020 for the two rates; what they leave out is that of Liu et al. 2018; specs/mm_nas.md, section 6.
    """

    order: Literal["first", "second"] = "first"
    product: Literal["exact", "finite-difference"] = "exact"
    weights: Optimiser = dataclasses.field(
        default_factory=lambda: Optimiser("sgd", learning_rate=1e-4, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    )
    architecture: Optimiser = dataclasses.field(
        default_factory=lambda: Optimiser("adam", learning_rate=5e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    )
    warmup_epochs: int = 0
    penalty: float = 0.0
    cost: Cost = "parameters"
    collapse: Collapse = "none"
    eigenvalue_every: int = 0
    eigenvalue_iterations: int = 8

    def __hash__(self) -> int:
        # Optimisers hold a mapping, which has no hash of its own.
        return hash(repr(self))

    def __post_init__(self) -> None:
        choices: Mapping[str, tuple[str, ...]] = {
            "order": ("first", "second"),
            "product": ("exact", "finite-difference"),
            "cost": ("parameters", "multiply-adds"),
            "collapse": ("none", "skips", "eigenvalue"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} of the search is {getattr(self, name)!r}; expected {listed(allowed, 4)}.")
        limits = {
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "penalty": (0 <= self.penalty < math.inf, "0 or more"),
            "eigenvalue_every": (self.eigenvalue_every >= 0, "0 for never, or 1 and more"),
            "eigenvalue_iterations": (self.eigenvalue_iterations >= 1, "1 or more"),
        }
        for name, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"{name} of the search is {getattr(self, name)!r}; expected {expected}.")
        if self.order == "second" and (self.weights.name != "sgd" or self.weights.rates):
            raise ValueError(
                f"order is 'second' and the weights' optimiser {self.weights.name!r}"
                f"{' with rates by group' if self.weights.rates else ''}; expected 'sgd' with one rate, whose step is "
                "differentiated. Use it, or order='first'."
            )
        if self.collapse == "eigenvalue" and not self.eigenvalue_every:
            raise ValueError("collapse is 'eigenvalue' and eigenvalue_every 0; expected it to be measured, such as 1.")
        for name in ("weights", "architecture"):
            if getattr(self, name).schedule == "plateau":
                raise ValueError(f"schedule of {name} is 'plateau', which a search does not have; expected another.")


def search_state(
    model: Model, settings: SearchSettings, objective: Objective, *, steps_per_epoch: int, epochs: int
) -> Callable[[Key, SearchBatch], SearchState]:
    """The state that a search starts from, as a function of key and batch.

    Args:
      model: whose variables have the collection `architecture`.
      settings: of the search.
      objective: whose own parameters are trained with the weights.
      steps_per_epoch, epochs: of the run, for schedules.

    Returns:
      `init(key, batch) -> SearchState`, pure, not jitted; only shapes of the batch matter. It raises ValueError for a
      model without architecture.

    Example:
      >>> model = Model(lambda key, batch: {"params": jnp.ones(2), "architecture": {"normal": jnp.zeros((2, 3))}}, None)
      >>> init = search_state(model, SearchSettings(), Objective(dict, None), steps_per_epoch=1, epochs=1)
      >>> batch = Batch({}, {}, True, {}, 0)
      >>> init(jax.random.key(0), SearchBatch(batch, batch)).architecture_opt_state[1].mu["normal"].shape
      (2, 3)
    """
    weights_optimiser, architecture_optimiser = _optimisers(settings, steps_per_epoch, epochs)

    def init(key: Key, batch: SearchBatch) -> SearchState:
        variables = {**model.init(key, batch.train), "objective": objective.init()}
        if not jax.tree.leaves(variables.get(ARCHITECTURE)):
            raise ValueError(
                f"the model's variables are {listed(sorted(variables), SHOWN)} and hold no {ARCHITECTURE!r}; expected "
                "the logits of a SuperNet. Search one, or train this model with `fit` and `make_step`."
            )
        with jax.numpy_dtype_promotion("standard"):
            return SearchState(
                variables,
                weights_optimiser.init(_weights(variables)),
                architecture_optimiser.init(variables[ARCHITECTURE]),
                jnp.zeros((), jnp.int32),
            )

    return init


def search_step(
    model: Model,
    settings: SearchSettings,
    objective: Objective,
    *,
    steps_per_epoch: int,
    epochs: int,
    augment: Callable[[Batch, Key], Batch] | None = None,
    costs: Mapping[str, np.ndarray] | None = None,
) -> Callable[[SearchState, SearchBatch, Key], tuple[SearchState, dict[str, Array]]]:
    """Step for `fit`: the architecture moves on the validation batch, then the weights on the training batch.

    Running statistics move with the weights only. In the second order the step ahead has the learning rate, momentum
    and decay that the weights' own step would have, without its clipping.

    Args:
      model, settings, objective, steps_per_epoch, epochs: those that `search_state` got.
      augment: `augment(batch, key) -> batch`, applied to both batches, as in `make_step`.
      costs: from `operation_costs`; needed where the settings have a penalty.

    Returns:
      `step(state, batch, key) -> (state, info)`, pure, for a key of the epoch. In the first order jit it. In the
      second it is a sequence of programs that it compiles itself: called as it is, one gradient is compiled and serves
      three evaluations (five by finite difference); under one jit every one is compiled again. `info` holds `loss`,
      `gradient_norm` (before clipping) and `learning_rate` of the weights, `architecture_loss` and
      `architecture_gradient_norm`, and the scalars of the objective; `expected_cost` where there is a penalty.

    Raises:
      ValueError: a penalty without costs.

    References:
      Liu et al. 2018, Algorithm 1; Peng et al. 2020; specs/mm_nas.md, 5.1.
    """
    if settings.penalty and costs is None:
        raise ValueError(f"penalty is {settings.penalty} and there are no costs; expected those of `operation_costs`.")
    weights_optimiser, architecture_optimiser = _optimisers(settings, steps_per_epoch, epochs)
    warm = settings.warmup_epochs * steps_per_epoch

    loss = _loss(model, objective)
    value = _value(loss)

    @jax.jit
    def begin(state: SearchState, batch: SearchBatch, key: Key) -> tuple[_Held, _Held]:
        train, validation = batch.train, batch.validation
        if augment is not None:
            train, validation = (augment(own, named_key(key, "augment")) for own in (train, validation))
        drawn = jax.random.fold_in(key, state.step)
        return _Held(train, named_key(drawn, "train")), _Held(validation, named_key(drawn, "validation"))

    @jax.jit
    def gradients(weights: Any, architecture: Any, variables: Variables, held: _Held) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, architecture, variables, held)

    @jax.jit
    def exact(weights: Any, architecture: Any, variables: Variables, held: _Held, along: Any) -> Any:
        return mixed_product(
            lambda weights, architecture: value(weights, architecture, variables, held), weights, architecture, along
        )

    @jax.jit
    def look_ahead(state: SearchState, gradient: Any) -> Any:
        weights = _weights(state.variables)
        return unrolled(
            weights,
            gradient,
            _momentum(state.opt_state),
            rate=_next_rate(weights_optimiser, state.opt_state, weights),
            momentum=settings.weights.momentum,
            weight_decay=_decays(settings.weights, weights),
        )

    def first_order(state: SearchState, train: _Held, validation: _Held) -> tuple[Array, Any]:
        return first_order_gradient(
            lambda weights, architecture: value(weights, architecture, state.variables, validation),
            _weights(state.variables),
            state.variables[ARCHITECTURE],
        )

    def second_order(state: SearchState, train: _Held, validation: _Held) -> tuple[Array, Any, Any]:
        def of(held: _Held) -> Gradients:
            def found(weights: Any, architecture: Any) -> tuple[Array, tuple[Any, Any]]:
                (value, _), slopes = gradients(weights, architecture, state.variables, held)
                return value, slopes

            return found

        def mixed(weights: Any, architecture: Any, along: Any) -> Any:
            if settings.product == "exact":
                return exact(weights, architecture, state.variables, train, along)
            ahead, behind, width = jax.jit(probes)(weights, along)
            ahead, behind = (of(train)(at, architecture)[1][1] for at in (ahead, behind))
            return jax.jit(quotient)(ahead, behind, width)

        return through_step(
            of(train),
            of(validation),
            lambda gradient: look_ahead(state, gradient),
            mixed,
            _weights(state.variables),
            state.variables[ARCHITECTURE],
        )

    @jax.jit
    def move_architecture(state: SearchState, judged: Array, direct: Any, mixed: Any) -> tuple[Any, Any, Any]:
        architecture, slope = state.variables[ARCHITECTURE], direct
        if mixed is not None:
            slope = joined(direct, mixed, _next_rate(weights_optimiser, state.opt_state, _weights(state.variables)))
        if costs is not None and settings.penalty:
            cost, steeper = jax.value_and_grad(expected_cost)(architecture, costs)
            judged = judged + settings.penalty * cost
            slope = jax.tree.map(lambda own, more: own + settings.penalty * more, slope, steeper)
        moved, opt_state = _apply(architecture_optimiser, slope, state.architecture_opt_state, architecture)
        if warm:
            before = (architecture, state.architecture_opt_state)
            moved, opt_state = jax.tree.map(
                lambda old, new: jnp.where(state.step < warm, old, new), before, (moved, opt_state)
            )
        with jax.numpy_dtype_promotion("standard"):
            info = {"architecture_loss": judged, "architecture_gradient_norm": optax.tree.norm(slope)}
        if costs is not None and settings.penalty:
            info["expected_cost"] = expected_cost(moved, costs)
        return moved, opt_state, info

    @jax.jit
    def move_weights(state: SearchState, architecture: Any, opt: Any, info: Any, found: Any) -> Any:
        (loss, (scalars, variables)), slopes = found
        weights, opt_state = _apply(weights_optimiser, slopes, state.opt_state, _weights(state.variables))
        with jax.numpy_dtype_promotion("standard"):
            norm = optax.tree.norm(slopes)
        # `fit` looks at the gradient of the weights; an architecture that diverges has to end the search as well.
        sound = jnp.isfinite(info["architecture_gradient_norm"]) & jnp.isfinite(info["architecture_loss"])
        info = {**scalars, **info, "loss": loss, "gradient_norm": jnp.where(sound, norm, jnp.nan)}
        info["learning_rate"] = cast("Array", learning_rate_of(opt_state))
        variables = {**variables, **weights, ARCHITECTURE: architecture}
        return SearchState(variables, opt_state, opt, state.step + 1), info

    def step(state: SearchState, batch: SearchBatch, key: Key) -> tuple[SearchState, dict[str, Array]]:
        train, validation = begin(state, batch, key)
        if settings.order == "first":
            judged, direct = first_order(state, train, validation)
            mixed = None
        else:
            judged, direct, mixed = second_order(state, train, validation)
        architecture, opt_state, info = move_architecture(state, judged, direct, mixed)
        weights = _weights(state.variables)
        if settings.order == "first":
            found = jax.value_and_grad(loss, has_aux=True)(weights, architecture, state.variables, train)
        else:
            result, (slopes, _) = gradients(weights, architecture, state.variables, train)
            found = result, slopes
        return move_weights(state, architecture, opt_state, info, found)

    return step


class _Held(NamedTuple):
    """A batch, and the key of what is drawn for it."""

    batch: Batch
    key: Key


def _loss(model: Model, objective: Objective) -> Callable[[Any, Any, Variables, _Held], Any]:
    """Loss of a batch while training; statistics and what else is no weight come from `variables`."""

    def loss(
        weights: Any, architecture: Any, variables: Variables, held: _Held
    ) -> tuple[Array, tuple[dict[str, Array], Variables]]:
        whole = {**variables, **weights, ARCHITECTURE: architecture}
        outputs, moved = model.apply(whole, held.batch, train=True, key=held.key)
        value, scalars = objective.loss(weights["objective"], outputs, held.batch)
        return value, (scalars, moved)

    return loss


def _value(loss: Callable[..., tuple[Array, Any]]) -> Callable[..., Array]:
    return lambda *arguments: loss(*arguments)[0]


def _weights(variables: Variables) -> dict[str, Any]:
    return {name: variables[name] for name in ("params", "objective")}


def _optimisers(
    settings: SearchSettings, steps_per_epoch: int, epochs: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    return (
        make_optimiser(settings.weights, steps_per_epoch, epochs),
        make_optimiser(settings.architecture, steps_per_epoch, epochs),
    )


def _apply(optimiser: optax.GradientTransformation, gradients: Any, opt_state: Any, tree: Any) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimiser.update(gradients, opt_state, tree)
        return optax.apply_updates(tree, updates), opt_state


def _next_rate(optimiser: optax.GradientTransformation, opt_state: Any, weights: Any) -> Array:
    """Learning rate of the step to come: that of a step without gradient, of which the compiler keeps nothing else."""
    _, ahead = _apply(optimiser, jax.tree.map(jnp.zeros_like, weights), opt_state, weights)
    return cast("Array", learning_rate_of(ahead))


def _momentum(opt_state: Any) -> Any:
    """Momentum buffer of SGD, or None without momentum."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, optax.TraceState))
    found = [part.trace for part in leaves if isinstance(part, optax.TraceState)]
    return found[0] if found else None


def _decays(optimiser: Optimiser, weights: Any) -> Any:
    """Decay of every weight: as `make_optimiser` has it, biases and norms have none unless all weights are decayed."""
    everything = optimiser.decayed == "all"
    return jax.tree.map(lambda leaf: optimiser.weight_decay if everything or leaf.ndim > 1 else 0.0, weights)
