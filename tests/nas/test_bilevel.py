"""Gradients through one step of training, against problems with a known answer and against autodiff of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from fusion_jax.nas.bilevel import dominant_eigenvalue, first_order_gradient, second_order_gradient, unrolled
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from tests.helpers import assert_close


def toy_train(weights, architecture):
    return 0.5 * (weights - architecture) ** 2


def toy_valid(weights, architecture):
    return 0.5 * (weights - 1.0) ** 2


def network_loss(x, y):
    """Squared error of a mixture of three hidden layers; `architecture` mixes them."""

    def loss(weights, architecture):
        mix = jax.nn.softmax(architecture["normal"])
        hidden = sum(
            mix[i] * act(x @ weights["hidden"][i] + weights["bias"][None])
            for i, act in enumerate((jnp.tanh, jnp.sin, lambda a: a))
        )
        return jnp.mean((hidden @ weights["out"] - y) ** 2) + 0.1 * jnp.sum(architecture["edges"] ** 2 * mix[0])

    return loss


@pytest.fixture(scope="module")
def problem(key):
    keys = jax.random.split(key, 10)
    weights = {
        "hidden": [jax.random.normal(k, (4, 5)) for k in keys[:3]],
        "bias": jax.random.normal(keys[3], (5,)),
        "out": jax.random.normal(keys[4], (5, 1)),
    }
    architecture = {"normal": jax.random.normal(keys[5], (3,)), "edges": jnp.ones(2)}
    losses = [network_loss(jax.random.normal(k, (8, 4)), jax.random.normal(k, (8, 1)) + 1) for k in keys[6:8]]
    buffer = jax.tree.map(lambda leaf: 0.3 * jnp.cos(leaf), weights)
    return *losses, weights, architecture, buffer


def test_the_first_order_sees_nothing_of_a_loss_that_only_weights_enter():
    loss, gradient = first_order_gradient(toy_valid, jnp.array(0.25), jnp.array(0.7))
    assert float(gradient) == 0.0
    assert float(loss) == 0.5 * 0.75**2


@pytest.mark.parametrize("product", ["exact", "finite-difference"])
@pytest.mark.parametrize(("theta", "alpha", "rate"), [(0.25, 0.7, 0.1), (-2.0, 3.0, 0.5), (1.0, 1.0, 0.3)])
def test_the_second_order_of_the_toy_problem_is_its_closed_form(theta, alpha, rate, product):
    ahead = theta - rate * (theta - alpha)
    loss, gradient = second_order_gradient(
        toy_train, toy_valid, jnp.array(theta), jnp.array(alpha), rate=jnp.array(rate), product=product
    )
    np.testing.assert_allclose(float(gradient), rate * (ahead - 1.0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(float(loss), 0.5 * (ahead - 1.0) ** 2, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("rate", "end"), [(0.5, 1.0), (0.0, -0.5)])
def test_the_toy_search_finds_the_optimum_only_if_it_looks_ahead(rate, end):
    @jax.jit
    def alternate(weights, architecture):
        _, gradient = second_order_gradient(toy_train, toy_valid, weights, architecture, rate=jnp.array(rate))
        architecture = architecture - 0.5 * gradient
        return weights - 0.5 * jax.grad(toy_train)(weights, architecture), architecture

    weights, architecture = jnp.array(2.0), jnp.array(-0.5)
    for _ in range(100):
        weights, architecture = alternate(weights, architecture)
    np.testing.assert_allclose(float(architecture), end, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_unrolled_is_the_step_of_the_optimiser_that_trains_the_weights(problem, steps):
    train_loss, _, weights, architecture, _ = problem
    settings = Optimiser("sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.1, schedule="cosine")
    optimiser = make_optimiser(settings, steps_per_epoch=2, epochs=3)
    state = optimiser.init(weights)

    @jax.jit
    def move(weights, state):
        gradient = jax.grad(train_loss)(weights, architecture)
        updates, state = optimiser.update(gradient, state, weights)
        return gradient, (optax.apply_updates(weights, updates), state)

    buffer = None
    for number in range(steps):
        before = weights
        gradient, (weights, state) = move(weights, state)
        ahead = unrolled(
            before,
            gradient,
            buffer,
            rate=jnp.array(0.05 * 0.5 * (1 + np.cos(np.pi * number / 6)), jnp.float32),
            momentum=0.9,
            weight_decay=jax.tree.map(lambda leaf: 0.1 if leaf.ndim > 1 else 0.0, before),
        )
        assert_close(ahead, weights, 1e-6)
        [buffer] = [
            part.trace
            for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.TraceState))
            if isinstance(part, optax.TraceState)
        ]


def test_exact_second_order_is_autodiff_through_the_optimisers_step(problem):
    train_loss, valid_loss, weights, architecture, buffer = problem
    optimiser = optax.chain(optax.add_decayed_weights(0.05), optax.trace(0.8), optax.scale(-0.1))
    state: Any = optimiser.init(weights)
    state = (state[0], state[1]._replace(trace=buffer), state[2])

    def after_step(architecture):
        gradient = jax.grad(train_loss)(weights, architecture)
        updates, _ = optimiser.update(gradient, state, weights)
        return valid_loss(optax.apply_updates(weights, updates), architecture)

    @jax.jit
    def both():
        found = second_order_gradient(
            train_loss,
            valid_loss,
            weights,
            architecture,
            momentum_buffer=buffer,
            rate=jnp.array(0.1),
            momentum=0.8,
            weight_decay=0.05,
        )
        return (
            found,
            jax.value_and_grad(after_step)(architecture),
            first_order_gradient(valid_loss, weights, architecture),
        )

    (loss, gradient), (reference_loss, reference), (_, first) = both()
    assert_close(loss, reference_loss, 1e-5)
    assert_close(gradient, reference, 1e-5)
    # It is another gradient than that of the first order, by more than rounding.
    assert float(jnp.max(jnp.abs(first["normal"] - gradient["normal"]))) > 1e-2


def test_the_finite_difference_agrees_with_the_exact_product(problem):
    train_loss, valid_loss, weights, architecture, buffer = problem
    exact, approximate = (
        jax.jit(second_order_gradient, static_argnums=(0, 1), static_argnames=("momentum", "product"))(
            train_loss,
            valid_loss,
            weights,
            architecture,
            momentum_buffer=buffer,
            rate=jnp.array(0.1),
            momentum=0.8,
            product=product,
        )[1]
        for product in ("exact", "finite-difference")
    )
    assert_close(approximate, exact, 1e-3)


def test_a_gradient_of_zero_has_a_product_of_zero():
    flat = lambda weights, architecture: 0.0 * weights * architecture  # noqa: E731
    _, gradient = second_order_gradient(
        toy_train, flat, jnp.array(0.3), jnp.array(0.2), rate=jnp.array(0.1), product="finite-difference"
    )
    assert float(gradient) == 0.0


def test_an_unknown_product_is_refused(unchecked):
    with pytest.raises(ValueError, match="'rough'; expected 'exact' or 'finite-difference'"):
        second_order_gradient(toy_train, toy_valid, jnp.array(0.3), jnp.array(0.2), rate=0.1, product="rough")


def test_the_dominant_eigenvalue_is_that_of_the_hessian(problem, key):
    _, valid_loss, weights, architecture, _ = problem
    flat, restore = ravel_pytree(architecture)

    def slope(flat):
        return jax.grad(lambda flat: valid_loss(weights, restore(flat)))(flat)

    @jax.jit
    def product(vector):
        return restore(jax.jvp(slope, (flat,), (ravel_pytree(vector)[0],))[1])

    exact = np.linalg.eigvalsh(np.asarray(jax.jit(jax.jacfwd(slope))(flat)))[-1]
    assert_close(dominant_eigenvalue(product, architecture, key, iterations=5), exact, 1e-4)


def test_lanczos_finds_the_largest_of_many_eigenvalues_in_few_products(key):
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(140, 140)))[0]
    values = np.concatenate([rng.normal(size=139) * 0.1, [2.0]])
    matrix = jnp.asarray((rotation * values) @ rotation.T, jnp.float32)
    found = [dominant_eigenvalue(lambda v: matrix @ v, jnp.zeros(140), key, iterations=n) for n in (2, 8, 140)]
    assert found[0] <= found[1] * (1 + 1e-6)
    assert_close(found[1], 2.0, 1e-3)
    assert_close(found[2], 2.0, 1e-5)


def test_a_product_that_is_not_finite_gives_nan(key):
    assert np.isnan(dominant_eigenvalue(lambda vector: vector / 0.0, jnp.ones(3), key, iterations=2))
    with pytest.raises(ValueError, match="iterations is 0"):
        dominant_eigenvalue(lambda vector: vector, jnp.ones(3), key, iterations=0)
