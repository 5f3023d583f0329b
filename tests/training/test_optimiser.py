"""Settings mean what recipes mean by them: checked against the recursions written out in NumPy float64."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.training import Optimiser, make_optimiser, scale_learning_rate
from fusion_jax.training.optimiser import learning_rate_of
from tests.helpers import assert_close

START = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "bias": np.array([0.3, -0.7], np.float32)}
GRADIENTS = [
    {name: np.random.default_rng(number).normal(size=leaf.shape).astype(np.float32) for name, leaf in START.items()}
    for number in range(6)
]


def run(settings, *, steps=6, steps_per_epoch=2, epochs=3, start=START, gradients=GRADIENTS):
    """Parameters after some steps, and the rate of each."""
    optimiser = make_optimiser(settings, steps_per_epoch, epochs)

    @jax.jit
    def step(params, state, gradient):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

    params, state, rates = start, optimiser.init(start), []
    for gradient in gradients[:steps]:
        params, state = step(params, state, gradient)
        rates.append(learning_rate_of(state))
    return params, np.asarray(rates)


def rates(settings, *, steps, steps_per_epoch, epochs):
    one = {"w": np.zeros((), np.float32)}
    return run(
        settings, steps=steps, steps_per_epoch=steps_per_epoch, epochs=epochs, start=one, gradients=[one] * steps
    )[1]


@pytest.mark.parametrize(("decayed", "of_bias"), [("kernels", 0.0), ("all", 0.01)])
def test_sgd_has_momentum_and_adds_the_decay_to_the_gradient_of_kernels(decayed, of_bias):
    found, _ = run(Optimiser("sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01, decayed=decayed))
    for name, decay in (("kernel", 0.01), ("bias", of_bias)):
        value, velocity = START[name].astype(float), 0.0
        for gradient in GRADIENTS:
            velocity = 0.9 * velocity + gradient[name] + decay * value
            value = value - 0.1 * velocity
        assert_close(found[name], value, 1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_decays_through_the_gradient_and_adamw_apart_from_it(name):
    found, _ = run(Optimiser(name, learning_rate=0.1, weight_decay=0.05, betas=(0.8, 0.99), epsilon=1e-6))
    for leaf, decay in (("kernel", 0.05), ("bias", 0.0)):
        value, mean, square = START[leaf].astype(float), 0.0, 0.0
        for number, gradients in enumerate(GRADIENTS, start=1):
            gradient = gradients[leaf] + (decay * value if name == "adam" else 0.0)
            mean, square = 0.8 * mean + 0.2 * gradient, 0.99 * square + 0.01 * gradient**2
            update = (mean / (1 - 0.8**number)) / (np.sqrt(square / (1 - 0.99**number)) + 1e-6)
            value = value - 0.1 * (update + (decay * value if name == "adamw" else 0.0))
        assert_close(found[leaf], value, 2e-6)


def test_step_decay_falls_at_whole_epochs():
    found = rates(
        Optimiser(learning_rate=1e-3, schedule="step", decay_every=20, decay_factor=0.1),
        steps=3 * 61,
        steps_per_epoch=3,
        epochs=80,
    )
    expected = np.array([1e-3 * 0.1 ** (step // 3 // 20) for step in range(3 * 61)])
    assert_close(found, expected, 1e-6)


def test_cosine_ends_at_the_least_rate_after_a_linear_warm_up():
    settings = Optimiser(learning_rate=0.5, schedule="cosine", warmup=2, least_rate=0.1)
    found = rates(settings, steps=41, steps_per_epoch=4, epochs=10)
    assert_close(found[:8], 0.5 * np.arange(1, 9) / 8, 1e-6)
    assert_close(found[24], 0.5 * (0.1 + 0.9 * 0.5), 1e-5)  # half of the eight epochs after the warm-up
    assert_close(found[40], 0.05, 1e-5)
    assert (np.diff(found[8:]) < 0).all()


def test_a_constant_rate_is_constant():
    assert set(rates(Optimiser(learning_rate=0.25), steps=7, steps_per_epoch=2, epochs=2)) == {0.25}


def test_the_host_scales_the_rate_without_a_new_program():
    optimiser = make_optimiser(Optimiser("sgd", learning_rate=0.5, momentum=0.0, schedule="plateau"), 1, 9)
    state = optimiser.init(START)
    traces = []

    @jax.jit
    def update(state):
        traces.append(1)
        return optimiser.update(GRADIENTS[0], state, START)

    for scale in (1.0, 0.1, 0.1, 0.01):
        state = scale_learning_rate(state, scale)
        updates, state = update(state)
        assert_close(updates["bias"], -0.5 * scale * GRADIENTS[0]["bias"], 1e-6)
        assert_close(learning_rate_of(state), 0.5 * scale, 1e-6)
    assert len(traces) == 1


def test_gradients_are_clipped_to_a_norm():
    found, _ = run(Optimiser("sgd", learning_rate=1.0, momentum=0.0, clip_norm=0.5), steps=1)
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=float)) for leaf in GRADIENTS[0].values()))
    assert norm > 0.5
    assert_close(found["kernel"], START["kernel"] - 0.5 / norm * GRADIENTS[0]["kernel"], 1e-6)


TREE = {
    "params": {
        "encoders_image": {"conv": {"kernel": np.full((2, 2), 2.0, np.float32)}, "norm": np.ones(2, np.float32)},
        "encoders_image_more": np.ones((2, 2), np.float32),
        "head": np.ones((2, 2), np.float32),
    },
    "objective": {"s": np.ones((), np.float32)},
}


def moved(rates, **settings):
    """How far each leaf moves in one step of size 1 with gradients of 1."""
    optimiser = make_optimiser(Optimiser("sgd", learning_rate=1.0, momentum=0.0, rates=rates, **settings), 1, 1)
    ones = jax.tree.map(np.ones_like, TREE)
    updates, _ = optimiser.update(ones, optimiser.init(TREE), TREE)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): -float(np.mean(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }


def test_groups_of_parameters_have_rates_of_their_own():
    found = moved({"encoders_image": 0.1, "encoders_image/conv": 0.5, "objective": 2.0})
    assert found == pytest.approx(
        {
            "params/encoders_image/conv/kernel": 0.5,
            "params/encoders_image/norm": 0.1,
            "params/encoders_image_more": 1.0,  # a name that only starts alike is another group
            "params/head": 1.0,
            "objective/s": 2.0,
        }
    )


def test_frozen_groups_do_not_move_decay_or_count_in_the_norm():
    found = moved({"encoders_image": 0.0}, clip_norm=3.0, weight_decay=0.5)
    assert found["params/encoders_image/conv/kernel"] == found["params/encoders_image/norm"] == 0.0
    # Nine leaves of 1 are left: a norm of 3, which is not clipped; kernels decay by 0.5.
    assert found["params/head"] == pytest.approx(1.5)
    assert found["objective/s"] == pytest.approx(1.0)


def test_frozen_groups_have_no_moments():
    def count(rates):
        state = make_optimiser(Optimiser("adam", rates=rates), 1, 1).init(TREE)
        return sum(np.size(leaf) for leaf in jax.tree.leaves(state))

    assert count({"head": 1.0}) - count({"encoders_image": 0.0}) == 2 * 6


def test_a_group_that_does_not_exist_is_refused_with_those_that_do():
    optimiser = make_optimiser(Optimiser(rates={"encoder_image": 0.0}), 1, 1)
    with pytest.raises(ValueError, match=r"'encoder_image', which no parameter is under.*encoders_image"):
        optimiser.init(TREE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, r"name of the optimiser is 'lion'; expected adam, adamw, sgd"),
        ({"schedule": "linear"}, "schedule of the optimiser is 'linear'"),
        ({"learning_rate": 0.0}, "learning_rate of the optimiser is 0.0; expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"betas": (0.9,)}, "betas"),
        ({"decay_factor": 1.5}, "decay_factor"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"rates": {"head": -1.0}}, "rates"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimiser(**settings)


def test_a_schedule_needs_epochs():
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        make_optimiser(Optimiser(), 0, 1)
    with pytest.raises(ValueError, match=r"warmup is 5\.0 of 5 epochs"):
        make_optimiser(Optimiser(schedule="cosine", warmup=5.0), 1, 5)


def test_only_states_with_a_rate_can_be_scaled():
    with pytest.raises(ValueError, match=r"no learning rate that can be scaled.*make_optimiser"):
        scale_learning_rate(optax.sgd(0.1).init({"w": jnp.ones(2)}), 0.1)


def test_settings_come_back_from_json():
    settings = Optimiser("sgd", betas=(0.5, 0.9), rates={"head": 0.5}, clip_norm=5.0)
    assert Optimiser(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
