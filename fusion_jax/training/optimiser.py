"""Optimisers as settings: what a paper's recipe states, and the optax transformation that it means.

The learning rate of a step is the product of the base rate, the schedule at that step, the scale that the host sets
(the plateau rule of `fit`) and the factor of the parameter's group. The scale and the count of steps are leaves of the
optimiser's state, so that a checkpoint holds them and no change of rate compiles anything.
"""

import dataclasses
import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from fusion_jax.arrays import Array

__all__ = [
    "Optimiser",
    "Plateau",
    "RateState",
    "learning_rate_of",
    "make_optimiser",
    "require_learning_rate",
    "scale_learning_rate",
]

State = TypeVar("State")

SHOWN = 5
"""Names that a message lists."""


class Plateau(NamedTuple):
    """When to lower the learning rate: once more than `patience` epochs pass without a better metric.

    Attributes:
      patience: epochs without improvement that are let pass.
      factor: what the rate is multiplied with.
      least: smallest scale, relative to the base rate.
    """

    patience: int
    factor: float
    least: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """An optimiser and its learning rate over the epochs.

    Attributes:
      name: "adam", "adamw" or "sgd".
      learning_rate: base rate.
      momentum: of SGD; 0 for none.
      betas, epsilon: of Adam and AdamW.
      weight_decay: AdamW decays the weights apart from the gradient, Adam and SGD add the decay to the gradient.
      decayed: "kernels" for matrices and kernels alone; "all" for biases, norms and single numbers as well, as PyTorch
        does unless told otherwise.
      schedule: "constant"; "step" (times `decay_factor` every `decay_every` epochs); "cosine" (to `least_rate` at the
        last epoch); "plateau" (times `decay_factor` once more than `decay_every` epochs pass without a better metric).
      warmup: epochs of linear increase from 0, before the schedule starts.
      decay_every, decay_factor: see `schedule`.
      least_rate: smallest rate of "cosine" and "plateau", relative to the base rate.
      clip_norm: largest norm of the gradient over all trained parameters; None for no clipping.
      rates: path of a group of parameters to a factor of its rate, such as `{"encoders_image": 0.1}`; 0 freezes it.
        Paths are the parameter's names joined by "/", the longest that fits a parameter wins, and those of the
        objective start with "objective". Running statistics of a frozen group still move.

    Raises:
      ValueError: a number that cannot be.

    Example:
      >>> Optimiser("sgd", learning_rate=1e-3, schedule="step").decay_every
      20
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    betas: Sequence[float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decayed: Literal["kernels", "all"] = "kernels"
    schedule: Literal["constant", "step", "cosine", "plateau"] = "constant"
    warmup: float = 0.0
    decay_every: int = 20
    decay_factor: float = 0.1
    least_rate: float = 0.0
    clip_norm: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field, choices in {
            "name": ("adam", "adamw", "sgd"),
            "schedule": ("constant", "step", "cosine", "plateau"),
            "decayed": ("kernels", "all"),
        }.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} of the optimiser is {getattr(self, field)!r}; expected {', '.join(choices)}."
                )
        # JSON gives lists, which differ from tuples when settings are compared.
        object.__setattr__(self, "betas", tuple(self.betas))
        limits: Mapping[str, tuple[bool, str]] = {
            "learning_rate": (0 < self.learning_rate < float("inf"), "more than 0"),
            "momentum": (0 <= self.momentum < 1, "0 or more and less than 1"),
            "betas": (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two, each in [0, 1)"),
            "epsilon": (self.epsilon > 0, "more than 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup": (self.warmup >= 0, "0 or more epochs"),
            "decay_every": (self.decay_every >= 1, "1 or more epochs"),
            "decay_factor": (0 < self.decay_factor < 1, "more than 0 and less than 1"),
            "least_rate": (0 <= self.least_rate <= 1, "from 0 to 1, as a part of the base rate"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "more than 0, or None"),
            "rates": (all(factor >= 0 for factor in self.rates.values()), "factors of 0 or more"),
        }
        for field, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"{field} of the optimiser is {getattr(self, field)!r}; expected {expected}.")

    @property
    def plateau(self) -> Plateau | None:
        """The rule that `fit` applies, or None for the other schedules."""
        if self.schedule != "plateau":
            return None
        return Plateau(self.decay_every, self.decay_factor, self.least_rate)


class RateState(NamedTuple):
    """State of the learning rate, one leaf each of shape `()`.

    Attributes:
      steps: so far.
      scale: set by the host, see `scale_learning_rate`.
      rate: of the last step.
    """

    steps: Int[Array, ""]
    scale: Float[Array, ""]
    rate: Float[Array, ""]


def make_optimiser(settings: Optimiser, steps_per_epoch: int, epochs: int) -> optax.GradientTransformation:
    """The optax transformation that the settings mean.

    Args:
      settings: of the recipe.
      steps_per_epoch: batches of an epoch; schedules count epochs.
      epochs: most epochs of the run, at which "cosine" ends.

    Returns:
      A transformation over a tree with the collections `params` and `objective`, or over parameters alone. Its `init`
      raises ValueError for a path in `rates` that no parameter has.

    Raises:
      ValueError: no steps or no epochs, or a warm-up that never ends.

    Example:
      >>> optimiser = make_optimiser(Optimiser("sgd", learning_rate=0.5, momentum=0.0), steps_per_epoch=1, epochs=1)
      >>> state = optimiser.init({"w": jnp.ones(2)})
      >>> optimiser.update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})[0]["w"].tolist()
      [-0.5, -0.5]
    """
    if steps_per_epoch < 1 or epochs < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch} and epochs {epochs}; expected 1 or more of each.")
    if settings.schedule == "cosine" and settings.warmup >= epochs:
        raise ValueError(f"warmup is {settings.warmup} of {epochs} epochs; expected fewer, or more epochs.")
    mask = _decayed if settings.decayed == "kernels" else None
    decay = optax.add_decayed_weights(settings.weight_decay, mask=mask) if settings.weight_decay else None
    if settings.name == "sgd":
        parts = [decay, optax.trace(settings.momentum) if settings.momentum else None]
    else:
        adam = optax.scale_by_adam(settings.betas[0], settings.betas[1], eps=settings.epsilon)
        parts = [adam, decay] if settings.name == "adamw" else [decay, adam]
    if settings.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    parts.append(_scale_by_rate(_schedule(settings, steps_per_epoch, epochs)))
    chain = [part for part in parts if part is not None]
    if not settings.rates:
        return optax.chain(*chain)
    chain.append(_scale_by_group(settings.rates))
    groups: dict[Hashable, optax.GradientTransformation] = {
        "trained": optax.chain(*chain),
        "frozen": optax.set_to_zero(),
    }

    def labels(tree: Any) -> Any:
        factors = _factors(settings.rates, tree)
        return jax.tree.map(lambda factor: "trained" if factor else "frozen", factors)

    return optax.partition(groups, labels)


def learning_rate_of(opt_state: Any) -> Float[Array, ""] | None:
    """Learning rate of the last step, from the state of an optimiser or any tree that holds it; None without one."""
    found = _rates(opt_state)
    return found[0].rate if found else None


def scale_learning_rate(state: State, scale: float) -> State:
    """The state with every learning rate in it multiplied by `scale`, counted from the base rate.

    Args:
      state: any tree that holds the state of an optimiser from `make_optimiser`.
      scale: of the rate; it replaces an earlier one.

    Raises:
      ValueError: the state holds no such optimiser.

    Example:
      >>> optimiser = make_optimiser(Optimiser("sgd", learning_rate=0.5, momentum=0.0), steps_per_epoch=1, epochs=1)
      >>> state = scale_learning_rate(optimiser.init({"w": jnp.ones(())}), 0.1)
      >>> float(optimiser.update({"w": jnp.ones(())}, state)[0]["w"])
      -0.05
    """
    require_learning_rate(state)

    def scaled(leaf: Any) -> Any:
        return leaf._replace(scale=jnp.full_like(leaf.scale, scale)) if _is_rate(leaf) else leaf

    return jax.tree.map(scaled, state, is_leaf=_is_rate)


def require_learning_rate(state: Any) -> None:
    """Refuse a state, or shapes of one, without a learning rate that can be scaled.

    Raises:
      ValueError: there is none.
    """
    if not _rates(state):
        raise ValueError(
            "the state holds no learning rate that can be scaled; expected an optimiser from `make_optimiser`. Use "
            "one, or leave the plateau rule out."
        )


def _rates(state: Any) -> list[RateState]:
    return [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_rate) if _is_rate(leaf)]


def _is_rate(leaf: Any) -> bool:
    return isinstance(leaf, RateState)


def _schedule(settings: Optimiser, steps_per_epoch: int, epochs: int) -> Callable[[Int[Array, ""]], Array]:
    """Learning rate at a step, before the scale of the host."""

    def rate(count: Int[Array, ""]) -> Array:
        epoch = count.astype(jnp.float32) / steps_per_epoch
        after = jnp.maximum(epoch - settings.warmup, 0.0)
        if settings.schedule == "step":
            # Whole numbers: in float32, epoch 20 of step decay may lie a hair below 20.
            steps = jnp.maximum(count - round(settings.warmup * steps_per_epoch), 0)
            factor = settings.decay_factor ** (steps // (settings.decay_every * steps_per_epoch)).astype(jnp.float32)
        elif settings.schedule == "cosine":
            part = jnp.minimum(after / (epochs - settings.warmup), 1.0)
            factor = settings.least_rate + (1.0 - settings.least_rate) * 0.5 * (1.0 + jnp.cos(jnp.pi * part))
        else:
            factor = jnp.ones(())
        # The first step has a rate already, the last of the warm-up the whole one.
        warm = jnp.minimum((count + 1).astype(jnp.float32) / max(settings.warmup * steps_per_epoch, 1.0), 1.0)
        return settings.learning_rate * factor * warm

    return rate


def _scale_by_rate(schedule: Callable[[Int[Array, ""]], Array]) -> optax.GradientTransformation:
    def init(params: Any) -> RateState:
        count = jnp.zeros((), jnp.int32)
        return RateState(count, jnp.ones(()), jnp.asarray(schedule(count), float))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RateState]:
        rate = schedule(state.steps) * state.scale
        updates = jax.tree.map(lambda update: -rate.astype(update.dtype) * update, updates)
        return updates, RateState(state.steps + 1, state.scale, rate)

    return optax.GradientTransformation(init, update)


def _scale_by_group(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Inside a partition the frozen leaves are masked, and their paths with them.
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * _factor(rates, path)[0], updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _decayed(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def _name(path: tuple[Any, ...]) -> str:
    """Names of a leaf joined by "/", without the collection that holds all the model's."""
    parts = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    return "/".join(parts[1:] if parts[0] == "params" else parts)


def _factor(rates: Mapping[str, float], path: tuple[Any, ...]) -> tuple[float, str | None]:
    """Factor of a leaf, and the path in `rates` that gave it."""
    name = _name(path) + "/"
    fitting = [prefix for prefix in rates if name.startswith(prefix.rstrip("/") + "/")]
    longest = max(fitting, key=len, default=None)
    return (1.0, None) if longest is None else (rates[longest], longest)


def _factors(rates: Mapping[str, float], tree: Any) -> Any:
    """Factor of every leaf.

    Raises:
      ValueError: a path that no parameter has.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for prefix in rates:
        if not any(f"{name}/".startswith(prefix.rstrip("/") + "/") for name in names):
            depth = prefix.rstrip("/").count("/") + 1
            groups = sorted({"/".join(name.split("/")[:depth]) for name in names})
            close = difflib.get_close_matches(prefix, groups, SHOWN, 0.6) or groups[:SHOWN]
            raise ValueError(
                f"rates of the optimiser name {prefix!r}, which no parameter is under; expected the start of a "
                f"parameter's path, such as {', '.join(close)}."
            )
    return jax.tree_util.tree_map_with_path(lambda path, _: _factor(rates, path)[0], tree)
