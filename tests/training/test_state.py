"""One step: what is differentiated, what moves once, and where its keys come from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.arrays import Batch, Model, Outputs
from fusion_jax.training import (
    FitState,
    Objective,
    Optimiser,
    initial_state,
    make_optimiser,
    make_step,
    named_key,
    run_key,
)
from tests.helpers import assert_close

X = np.array([[1.0], [2.0], [4.0], [9.0]], np.float32)


def batch(valid=(True, True, True, False)):
    return Batch({"x": X}, {}, np.array(valid), {}, np.array([3, 1, 0, -1], np.int32))


def apply(variables, batch, *, train, key=None):
    """Half the mean of w·x, which draws once a step and counts its calls in the running statistics."""
    stats = variables["batch_stats"]
    noise = jax.random.uniform(key) if train else jnp.zeros(())
    outputs = Outputs(batch.inputs["x"] * variables["params"]["w"], {}, {"noise": noise})
    return outputs, {**variables, "batch_stats": {"calls": stats["calls"] + 1}} if train else variables


MODEL = Model(
    lambda key, batch: {
        "params": {"w": jnp.full((), 3.0)},
        "batch_stats": {"calls": jnp.zeros(())},
        "encoding": {"mean": jnp.full(2, 7.0)},
    },
    apply,
)


def _loss(own, outputs, batch):
    valid = jnp.asarray(batch.valid, jnp.float32)
    mean = jnp.sum(outputs.logits[:, 0] * valid) / jnp.sum(valid)
    return own["s"] * mean, {"noise": outputs.features["noise"], "mean": mean}


OBJECTIVE = Objective(lambda: {"s": jnp.full((), 2.0)}, _loss)


def started(optimiser):
    return initial_state(MODEL, optimiser, OBJECTIVE)(run_key(0), batch())


def test_parameters_of_model_and_objective_follow_their_gradients():
    optimiser = optax.sgd(0.1)
    state, info = make_step(MODEL, optimiser, OBJECTIVE)(started(optimiser), batch(), run_key(0))
    # loss = s w mean(x), with mean(x) = 7/3 over the valid rows: dw = s 7/3 and ds = w 7/3.
    assert_close(state.variables["params"]["w"], 3.0 - 0.1 * 2.0 * 7 / 3, 1e-6)
    assert_close(state.variables["objective"]["s"], 2.0 - 0.1 * 3.0 * 7 / 3, 1e-6)
    assert_close(info["loss"], 2.0 * 3.0 * 7 / 3, 1e-6)
    assert_close(info["gradient_norm"], np.hypot(2.0, 3.0) * 7 / 3, 1e-6)
    assert "learning_rate" not in info
    assert int(state.step) == 1


def test_running_statistics_move_once_and_other_collections_stay():
    optimiser = optax.sgd(0.1)
    state, _ = make_step(MODEL, optimiser, OBJECTIVE)(started(optimiser), batch(), run_key(0))
    assert float(state.variables["batch_stats"]["calls"]) == 1.0
    np.testing.assert_array_equal(state.variables["encoding"]["mean"], np.full(2, 7.0))


def test_state_keeps_structure_shapes_and_dtypes_so_that_it_can_be_donated():
    optimiser = make_optimiser(Optimiser(weight_decay=0.1, clip_norm=1.0), 3, 2)
    state = started(optimiser)
    after, info = jax.eval_shape(make_step(MODEL, optimiser, OBJECTIVE), state, batch(), run_key(0))
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert describe(after) == describe(state)
    assert isinstance(after, FitState)
    assert {leaf.shape for leaf in info.values()} == {()}


def test_dropout_differs_from_step_to_step_and_repeats_with_the_key():
    optimiser = optax.sgd(0.0)
    step = make_step(MODEL, optimiser, OBJECTIVE)
    state = started(optimiser)
    drawn = {
        (key, count): float(step(state._replace(step=jnp.int32(count)), batch(), run_key(key))[1]["noise"])
        for key in (0, 1)
        for count in (0, 1)
    }
    assert len(set(drawn.values())) == 4
    assert float(step(state, batch(), run_key(0))[1]["noise"]) == drawn[0, 0]


def test_augmentation_gets_the_key_of_the_epoch_whatever_the_step():
    optimiser = optax.sgd(0.0)
    keys = []

    def augment(batch, key):
        keys.append(key)
        return batch._replace(inputs={"x": batch.inputs["x"] * 2.0})

    step = make_step(MODEL, optimiser, OBJECTIVE, augment=augment)
    state = started(optimiser)
    for count in (0, 5):
        _, info = step(state._replace(step=jnp.int32(count)), batch(), run_key(4))
        assert_close(info["mean"], 2.0 * 3.0 * 7 / 3, 1e-6)
    assert keys[0] == keys[1] == named_key(run_key(4), "augment")


def test_jit_equals_eager():
    optimiser = make_optimiser(Optimiser("sgd"), 3, 2)
    step, state = make_step(MODEL, optimiser, OBJECTIVE), started(optimiser)
    eager, info = step(state, batch(), run_key(1))
    jitted, other = jax.jit(step)(state, batch(), run_key(1))
    assert_close(jax.device_get(jitted), jax.device_get(eager), 1e-5)
    assert_close(jax.device_get(other), jax.device_get(info), 1e-5)


def test_objectives_without_parameters_have_an_empty_collection():
    optimiser = optax.sgd(0.1)
    objective = Objective(dict, lambda own, outputs, batch: (jnp.mean(outputs.logits), {}))
    state = initial_state(MODEL, optimiser, objective)(run_key(0), batch())
    assert state.variables["objective"] == {}
    after, _ = make_step(MODEL, optimiser, objective)(state, batch(), run_key(0))
    assert_close(after.variables["params"]["w"], 3.0 - 0.1 * 4.0, 1e-6)


@pytest.mark.parametrize(("repeat", "fold"), [(0, 1), (1, 0), (1, 1)])
def test_every_run_has_a_key_of_its_own(repeat, fold):
    assert run_key(3, repeat, fold) != run_key(3, 0, 0)
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), repeat), fold)
    assert run_key(3, repeat, fold) == expected
