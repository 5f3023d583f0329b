"""Many trainings of one small model in one program: folds, seeds and settings of equal shape, vectorised.

What costs a small model its time is not arithmetic but the thousands of short calls. Here every training is one row of
a stacked state, the cases stay on the device, and an epoch is one step of a scan, so that hundreds of epochs are one
call. Trainings that stop early keep their best state while the others go on.

On a CPU this is for dense models: a convolution inside a scan, or mapped over its kernels, is 10 to 30 times slower
there, and `cross_validate` runs such trainings side by side instead. On accelerators it serves all models.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from fusion_jax.arrays import Array, Batch, Model, Outputs, Variables
from fusion_jax.data.sampling import Sampler, epoch_order
from fusion_jax.training.keys import named_key, run_key
from fusion_jax.training.state import FitState, Objective, initial_state, make_step

__all__ = ["ManyFits", "Metric", "batch_auc", "fit_many", "predict_many"]

Metric = Callable[[Outputs, Batch], Array]
"""A number for the valid cases of a batch, computed inside the program."""

ORDER_SIZE = 2**24
"""Row numbers of all trainings that are sent to the device at once."""


class ManyFits(NamedTuple):
    """What has become of `t` trainings.

    Attributes:
      variables: of the best epoch of each training (the last one without validation), stacked along a new first axis.
      best_epoch: from 0, shape `(t,)`.
      metric: of the validation cases after every epoch, shape `(t, e)`; NaN after the end of a training, and without
        validation.
      loss: mean over the training cases of every epoch, shape `(t, e)`; NaN after the end of a training, and from where
        it has diverged: the others go on.
    """

    variables: Variables
    best_epoch: Int[np.ndarray, "t"]
    metric: Float[np.ndarray, "t e"]
    loss: Float[np.ndarray, "t e"]

    def training(self, number: int) -> Variables:
        """Variables of one training."""
        return jax.tree.map(lambda leaf: leaf[number], self.variables)


def batch_auc(outputs: Outputs, batch: Batch) -> Float[Array, ""]:
    r"""Area under the ROC curve of the valid cases of a batch, ties counted half; NaN where a class is missing.

    Args:
      outputs: logits of shape `(b, 1)`, or `(b, 2)` whose difference ranks the cases.
      batch: with the target `label`, 0 or 1.

    Example:
      >>> outputs = Outputs(jnp.array([[0.1], [0.4], [0.35], [0.8]]), {}, {})
      >>> batch = Batch({}, {"label": jnp.array([0, 0, 1, 1])}, jnp.ones(4, bool), {}, jnp.arange(4))
      >>> float(batch_auc(outputs, batch))
      0.75
    """
    logits = outputs.logits
    score = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    positive = batch.valid & (batch.target["label"] == 1)
    negative = batch.valid & (batch.target["label"] == 0)
    others = jnp.sort(jnp.where(negative, score, jnp.inf))
    count = jnp.sum(negative)
    below = jnp.searchsorted(others, score, side="left") + jnp.searchsorted(others, score, side="right")
    halves = jnp.sum(jnp.where(positive, below, 0)).astype(score.dtype)
    pairs = (jnp.sum(positive) * count).astype(score.dtype)
    # A training that has blown up ranks nobody.
    usable = (pairs > 0) & jnp.all(jnp.where(batch.valid, jnp.isfinite(score), True))
    return jnp.where(usable, halves / (2 * jnp.maximum(pairs, 1)), jnp.nan)


def fit_many(
    model: Model,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    cases: Batch,
    train_rows: Sequence[Int[np.ndarray, "_"]],
    validation_rows: Sequence[Int[np.ndarray, "_"]] | None = None,
    *,
    seeds: Sequence[tuple[int, int, int]],
    epochs: int,
    batch_size: int | None = None,
    sampler: Sampler = "shuffle",
    metric: Metric = batch_auc,
    mode: Literal["max", "min"] = "max",
    patience: int | None = None,
    min_epochs: int = 0,
) -> ManyFits:
    """Train one model many times, on other rows and with other seeds, in one program.

    Each training is the one that `fit` would run on those rows with that seed: the same order of cases, keys, steps and
    rules for the best epoch and the end (but no plateau schedule), equal within rounding. Trainings whose *inputs*
    differ, such as those scaled on their own training cases, read rows of their own: concatenate the tables.

    Args:
      model: the same for all; dense, unless there is an accelerator.
      optimiser: from `make_optimiser`, with any schedule but "plateau".
      objective: what to minimise.
      cases: all cases of all trainings, as one batch.
      train_rows: rows of `cases` that each training fits, `t` arrays; their numbers may differ a little.
      validation_rows: rows that its best epoch is chosen on; None for the last epoch.
      seeds: seed, repeat and fold of every training.
      epochs: most of them.
      batch_size: cases of a step; by default all training rows.
      sampler: order of an epoch.
      metric: of the validation cases; an epoch where it is NaN is never best.
      mode: whether a larger or a smaller metric is better.
      patience: a training ends once more than so many epochs pass without improvement; None never.
      min_epochs: epochs that are run in any case.

    Returns:
      States of the best epochs, and what was measured.

    Raises:
      ValueError: numbers of trainings that disagree, rows that are not there, a training without cases, or a model with
        convolutions on a CPU.

    Example:
      >>> x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
      >>> cases = Batch({"x": x}, {"label": (x[:, 0] > 0).astype(np.int32)}, np.ones(8, bool), {}, np.arange(8))
      >>> def apply(variables, batch, *, train, key=None):
      ...     return Outputs(batch.inputs["x"] * variables["params"]["w"], {}, {}), variables
      >>> model = Model(lambda key, batch: {"params": {"w": jax.random.normal(key, ())}}, apply)
      >>> def loss(own, outputs, batch):
      ...     sign = jnp.where(batch.target["label"] == 1, -1.0, 1.0)
      ...     return jnp.mean(jax.nn.softplus(sign * outputs.logits[:, 0])), {}
      >>> rows = [np.array([0, 2, 5, 7]), np.array([1, 3, 4, 6])]
      >>> objective, seeds = Objective(dict, loss), [(0, 0, 0), (0, 0, 1)]
      >>> many = fit_many(model, optax.adam(0.1), objective, cases, rows, seeds=seeds, epochs=50)
      >>> many.variables["params"]["w"].shape, bool((many.loss[:, -1] < many.loss[:, 0]).all())
      ((2,), True)
    """
    _check(cases, train_rows, validation_rows, seeds, epochs, batch_size, mode)
    longest = max(map(len, train_rows))
    size = batch_size or longest
    steps = -(-longest // size)
    labels = cases.target.get("label")
    validated = validation_rows is not None
    held = _padded(validation_rows if validation_rows is not None else [np.zeros(0, np.int64)] * len(seeds))
    keys = _keys(tuple(seeds))
    table = jax.tree.map(jnp.asarray, cases)

    init, advance = _programs(model, optimiser, objective, metric, mode, patience, min_epochs, validated)
    carry = init(keys, table, jnp.zeros((size,), jnp.int32))
    chunk = max(1, min(epochs, ORDER_SIZE // (len(seeds) * steps * size)))
    measured, losses = [], []
    for first in range(0, epochs, chunk):
        orders = np.full((len(seeds), chunk, steps * size), -1, np.int32)
        for number, (rows, seed) in enumerate(zip(train_rows, seeds, strict=True)):
            own = None if labels is None else np.asarray(labels)[rows]
            for epoch in range(first, min(first + chunk, epochs)):
                order = epoch_order(np.asarray(rows), sampler, seed=seed, epoch=epoch, label=own)
                orders[number, epoch - first, : len(order)] = order
        carry, (found, loss) = advance(
            carry,
            table,
            keys,
            orders.reshape(len(seeds), chunk, steps, size),
            held,
            jnp.int32(first),
            jnp.int32(epochs),
        )
        measured.append(np.asarray(found))
        losses.append(np.asarray(loss))
        if not np.asarray(carry.active).any():
            break

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(parts, axis=1)[:, :epochs]
        return np.pad(joined, ((0, 0), (0, epochs - joined.shape[1])), constant_values=np.nan)

    variables = carry.best
    if validated:
        # Where the metric was never a number, the last epoch is kept, as by `fit`.
        variables = jax.vmap(_where)(carry.best_metric > -jnp.inf, carry.best, carry.state.variables)
    return ManyFits(variables, np.asarray(carry.best_epoch), whole(measured), whole(losses))


def predict_many(
    model: Model, variables: Variables, cases: Batch, rows: Sequence[Int[np.ndarray, "_"]]
) -> Float[np.ndarray, "t p k"]:
    """Logits of every training for rows of its own.

    Args:
      model: that was trained.
      variables: stacked, from `fit_many`.
      cases: as in `fit_many`, or others of the same sources.
      rows: of each training, `t` arrays.

    Returns:
      Logits in the order of the rows; NaN where a training has fewer rows than the longest.
    """
    table = jax.tree.map(jnp.asarray, cases)
    filled = _padded(rows)
    logits = np.array(_predict(model)(variables, table, filled))
    logits[np.asarray(filled) < 0] = np.nan
    return logits


class _Carry(NamedTuple):
    """Of one training, from epoch to epoch."""

    state: FitState
    best: Variables
    best_metric: Array
    best_epoch: Array
    waited: Array
    active: Array


@functools.lru_cache(maxsize=8)
def _programs(
    model: Model,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    metric: Metric,
    mode: str,
    patience: int | None,
    min_epochs: int,
    validated: bool,
) -> tuple[Callable[..., _Carry], Callable[..., tuple[_Carry, tuple[Array, Array]]]]:
    """Start of all trainings, and some epochs of all of them; compiled once for every shape."""
    start = initial_state(model, optimiser, objective)
    step = make_step(model, optimiser, objective)
    sign = 1.0 if mode == "max" else -1.0

    def init(key: Array, table: Batch, rows: Array) -> _Carry:
        batch = _take(table, rows)
        state = start(named_key(key, "init"), batch)
        _refuse_convolutions(model, state.variables, batch)
        worst = jnp.asarray(-jnp.inf, jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        return _Carry(state, state.variables, worst, zero, zero, jnp.ones((), bool))

    def training(
        carry: _Carry, table: Batch, key: Array, orders: Array, held: Array, first: Array, epochs: Array
    ) -> tuple[_Carry, tuple[Array, Array]]:
        watched = _take(table, held)

        def epoch(carry: _Carry, given: tuple[Array, Array]) -> tuple[_Carry, tuple[Array, Array]]:
            order, number = given
            own = jax.random.fold_in(named_key(key, "steps"), number)
            active = carry.active & (number < epochs)

            def one(state: FitState, rows: Array) -> tuple[FitState, tuple[Array, Array]]:
                batch = _take(table, rows)
                moved, info = step(state, batch, own)
                count = jnp.sum(batch.valid)
                # A step without cases, which shorter trainings have at the end of an epoch, is none.
                state = _where(active & (count > 0), moved, state)
                weight = count.astype(jnp.float32)
                return state, (jnp.where(count > 0, info["loss"], 0.0) * weight, weight)

            state, (losses, weights) = jax.lax.scan(one, carry.state, order)
            loss = jnp.where(active, jnp.sum(losses) / jnp.sum(weights), jnp.nan)
            if validated:
                outputs, _ = model.apply(state.variables, watched, train=False)
                found = jnp.asarray(metric(outputs, watched), jnp.float32)
                better = active & (sign * found > carry.best_metric)
            else:
                found, better = jnp.asarray(jnp.nan, jnp.float32), active
            waited = jnp.where(better, 0, carry.waited + 1)
            ends = jnp.zeros((), bool)
            if validated and patience is not None:
                ends = (waited > patience) & (number + 1 >= min_epochs)
            moved = _Carry(
                state,
                _where(better, state.variables, carry.best),
                jnp.where(better, sign * found, carry.best_metric),
                jnp.where(better | (active & jnp.isneginf(carry.best_metric)), number, carry.best_epoch),
                waited,
                active & ~ends,
            )
            return moved, (jnp.where(active, found, jnp.nan), loss)

        numbers = first + jnp.arange(orders.shape[0], dtype=jnp.int32)
        return jax.lax.scan(epoch, carry, (orders, numbers))

    many = jax.vmap(training, in_axes=(0, None, 0, 0, 0, None, None))
    return jax.jit(jax.vmap(init, in_axes=(0, None, None))), jax.jit(many, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def _predict(model: Model) -> Callable[[Variables, Batch, Array], Array]:
    def logits(variables: Variables, table: Batch, rows: Array) -> Array:
        return model.apply(variables, _take(table, rows), train=False)[0].logits

    return jax.jit(jax.vmap(logits, in_axes=(0, None, 0)))


def _take(table: Batch, rows: Int[Array, "b"]) -> Batch:
    """The batch of some rows; padding, −1, as `Batches` has it."""
    there = jnp.maximum(rows, 0)
    valid = (rows >= 0) & table.valid[there]
    present = {name: valid & own[there] for name, own in table.present.items()}

    def values(name: str, array: Array) -> Array:
        mask = present.get(name, valid)
        return jnp.where(mask.reshape(-1, *(1 for _ in array.shape[1:])), array[there], 0)

    inputs = {name: values(name, array) for name, array in table.inputs.items()}
    target = jax.tree.map(lambda array: array[there], table.target)
    return Batch(inputs, target, valid, present, jnp.where(valid, table.index[there], -1))


def _where(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _padded(rows: Sequence[Int[np.ndarray, "_"]]) -> Array:
    filled = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
    for number, own in enumerate(rows):
        filled[number, : len(own)] = own
    return jnp.asarray(filled)


def _check(
    cases: Batch,
    train_rows: Sequence[Int[np.ndarray, "_"]],
    validation_rows: Sequence[Int[np.ndarray, "_"]] | None,
    seeds: Sequence[tuple[int, int, int]],
    epochs: int,
    batch_size: int | None,
    mode: str,
) -> None:
    numbers = {"train_rows": len(train_rows), "seeds": len(seeds)}
    if validation_rows is not None:
        numbers["validation_rows"] = len(validation_rows)
    if len(set(numbers.values())) > 1 or not len(seeds):
        said = ", ".join(f"{name}: {count}" for name, count in numbers.items())
        raise ValueError(f"trainings by {said}; expected one entry for each training, and at least one.")
    if epochs < 1 or (batch_size is not None and batch_size < 1) or mode not in ("max", "min"):
        raise ValueError(
            f"epochs {epochs}, batch_size {batch_size}, mode {mode!r}; expected 1 or more, and max or min."
        )
    total = len(cases.valid)
    for what, parts in (("train_rows", train_rows), ("validation_rows", validation_rows or ())):
        for number, rows in enumerate(parts):
            if not len(rows) or np.min(rows) < 0 or np.max(rows) >= total:
                raise ValueError(f"{what}[{number}]: expected at least one row, and all of them from 0 to {total - 1}.")


def _refuse_convolutions(model: Model, variables: Variables, batch: Batch) -> None:
    """While the first program is traced, so that nothing slow has been compiled yet."""
    if jax.default_backend() != "cpu":
        return
    traced = str(jax.make_jaxpr(lambda v, b: model.apply(v, b, train=False)[0].logits)(variables, batch))
    if "conv_general_dilated" in traced or "fusion_jax_conv" in traced:
        raise ValueError(
            "the model has convolutions, which are 10 to 30 times slower on a CPU when many trainings share a program. "
            "Run them with `cross_validate`, or on an accelerator; or train heads on features computed once."
        )


@functools.lru_cache(maxsize=8)
def _keys(seeds: tuple[tuple[int, int, int], ...]) -> Array:
    """Of all trainings; hundreds of small calls, which a sweep over settings need not repeat."""
    return jnp.stack([run_key(*seed) for seed in seeds])
