"""Fusion operators: one contract over all of them, then each one's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.fusion.operators import (
    OPERATORS,
    Concatenate,
    CrossAttention,
    FiLM,
    Gated,
    LowRankBilinear,
    add,
    average,
    concatenate,
    cross_attention,
    film,
    gated,
    masked_softmax,
    multiply,
)
from tests.helpers import assert_close

SMALL = {
    "gated": Gated(width=6),
    "low_rank_bilinear": LowRankBilinear(rank=6),
    "cross_attention": CrossAttention(width=6, heads=2),
}
CASES = {name: SMALL.get(name, operator) for name, operator in OPERATORS.items()} | {
    "concatenate, learned": Concatenate(missing=0.3)
}
EQUAL_WIDTHS = ("add", "multiply", "average")
NAMES = ("pet", "age", "ct", "blood")
ROWS = 5


def sources_of(name, count, key, *, rows=ROWS):
    """Sources in no alphabetical order, each absent in a row of its own; the last row has none."""
    order = NAMES[:count]
    widths = [4] * count if name in EQUAL_WIDTHS else [4, 1, 3, 2][:count]
    keys = jax.random.split(key, count)
    features = {s: jax.random.normal(k, (rows, w)) for s, k, w in zip(order, keys, widths, strict=True)}
    present = {s: jnp.arange(rows) != number for number, s in enumerate(order)}
    present = {s: mask & (jnp.arange(rows) != rows - 1) for s, mask in present.items()}
    return order, features, present


def prepared(name, count, key):
    operator = CASES[name]
    order, features, present = sources_of(name, count, key)
    settings = {"order": order, "learn_missing": name.endswith("learned")}
    shapes = jax.eval_shape(lambda *args: operator.init(*args, **settings), key, features, present)
    # Values that no fresh layer has, so that no parameter is left out of a comparison.
    rng = np.random.default_rng(count)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)

    def fuse(variables, features, present):
        return operator.apply(variables, features, present, **settings)

    return fuse, variables, features, present


@pytest.mark.parametrize("count", [1, 2, pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("name", CASES)
def test_contract(name, count, key):
    fuse, variables, features, present = prepared(name, count, key)

    @jax.jit
    def run(variables, features, present):
        """The fused vectors, and gradients with respect to everything."""

        def total(variables, features):
            fused = fuse(variables, features, present)
            return jnp.sum(jnp.sin(fused)), fused

        gradients, fused = jax.grad(total, argnums=(0, 1), has_aux=True)(variables, features)
        return fused, gradients

    expected = run(variables, features, present)
    fused, (_, of_features) = expected

    # Finite, in single precision, one vector a row; also in the last row, which has no source at all.
    assert fused.dtype == jnp.float32
    assert fused.shape[0] == ROWS
    assert fused.ndim == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))

    # The order of a mapping's keys means nothing.
    turned = {s: features[s] for s in sorted(features)}, {s: present[s] for s in reversed(present)}
    jax.tree.map(np.testing.assert_array_equal, run(variables, *turned), expected)

    # Whatever stands where a source is absent changes nothing, and no gradient goes there.
    for stranger in (np.nan, 1e30):
        spoilt = {s: jnp.asarray(np.where(np.asarray(present[s])[:, None], x, stranger)) for s, x in features.items()}
        jax.tree.map(np.testing.assert_array_equal, run(variables, spoilt, present), expected)
    for source, gradient in of_features.items():
        there = np.asarray(present[source])
        assert not np.asarray(gradient)[~there].any()
        assert np.asarray(gradient)[there].any()

    if count == 3:
        eager = fuse(variables, features, present)
        assert_close(fused, eager)
        np.testing.assert_array_equal(fuse(variables, *turned), eager)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_apart_and_half_precision_leaves_in_single(name, key):
    fuse, variables, features, present = prepared(name, 3, key)
    turned = jax.tree.map(lambda a: a[::-1], (features, present))
    half = {s: x.astype(jnp.bfloat16) for s, x in features.items()}

    @jax.jit
    def run(variables):
        return fuse(variables, features, present), fuse(variables, *turned), fuse(variables, half, present)

    fused, reversed_rows, rounded = run(variables)
    assert_close(reversed_rows[::-1], fused)
    assert rounded.dtype == jnp.float32
    assert_close(rounded, fused, rtol=5e-2)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_in_its_dtype(name, key):
    fuse, variables, features, present = prepared(name, 2, key)
    operator = CASES[name].clone(dtype=jnp.bfloat16)

    @jax.jit
    def run(variables):
        return fuse(variables, features, present), operator.apply(variables, features, present, order=NAMES[:2])

    fused, half = run(variables)
    assert half.dtype == jnp.float32
    assert_close(half, fused, rtol=5e-2)
    assert (np.asarray(half) != np.asarray(fused)).any()


# Each formula.

TWO = {"image": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "age": jnp.array([[5.0, 7.0], [11.0, 13.0]])}
ORDER = ("image", "age")
BOTH = {"image": jnp.array([True, True]), "age": jnp.array([True, False])}


def test_elementwise_operators_by_hand():
    def fuse(operator):
        return operator.apply({}, TWO, BOTH, order=ORDER).tolist()

    assert fuse(concatenate) == [[1, 2, 5, 7], [3, 4, 0, 0]]
    assert fuse(Concatenate(missing=0.5)) == [[1, 2, 5, 7], [3, 4, 0.5, 0.5]]
    assert fuse(add) == [[6, 9], [6, 8]]  # the second row counts its one source twice
    assert fuse(multiply) == [[5, 14], [3, 4]]
    assert fuse(average) == [[3, 4.5], [3, 4]]


def test_elementwise_operators_without_any_source():
    nobody = {name: jnp.zeros(2, bool) for name in TWO}
    assert not np.asarray(add.apply({}, TWO, nobody, order=ORDER)).any()
    assert not np.asarray(average.apply({}, TWO, nobody, order=ORDER)).any()
    assert (np.asarray(multiply.apply({}, TWO, nobody, order=ORDER)) == 1).all()


def test_the_order_of_concatenation_is_the_models():
    fused = concatenate.apply({}, TWO, BOTH, order=("age", "image"))
    assert fused[0].tolist() == [5, 7, 1, 2]


def test_only_learned_stand_ins_have_parameters(key):
    assert concatenate.init(key, TWO, BOTH, order=ORDER) == {}
    fused, variables = Concatenate(missing=0.5).init_with_output(key, TWO, BOTH, order=ORDER, learn_missing=True)
    assert fused[1].tolist() == [3, 4, 0.5, 0.5]
    assert variables["params"]["missing_age"].tolist() == [0.5, 0.5]


def initialised(operator, key):
    """Fused vectors of both rows and the parameters, in one program."""
    return jax.jit(lambda key: operator.init_with_output(key, TWO, BOTH, order=ORDER))(key)


def dense(params, name, x):
    layer = params[name]
    return np.asarray(x) @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0.0))


def test_gates_are_a_softmax_over_the_sources_that_are_there(key):
    operator = Gated(width=3)
    fused, variables = initialised(operator, key)
    params = variables["params"]
    image, age = np.asarray(TWO["image"]), np.asarray(TWO["age"]) * [[1], [0]]
    seen = np.concatenate([image, age], axis=1)
    gates = np.exp([dense(params, f"gate_{name}", seen) for name in ORDER])
    gates[1, 1] = 0
    gates /= gates.sum(axis=0)
    hidden = np.tanh([dense(params, "value_image", image), dense(params, "value_age", age)])
    assert_close(fused, (gates * hidden).sum(axis=0))


def test_film_scales_and_shifts_the_conditioned_source(key):
    fused, variables = initialised(film, key)
    image, age = np.asarray(TWO["image"]), np.asarray(TWO["age"])
    scale, shift = (dense(variables["params"], f"{what}_age", age) for what in ("scale", "shift"))
    assert_close(fused[0], (image * (1 + scale) + shift)[0])
    # The biases are zero at first; with others an absent source still changes nothing.
    moved = jax.tree.map(lambda a: a + 1.0, variables)
    assert_close(film.apply(moved, TWO, BOTH, order=ORDER)[1], image[1])
    other, variables = initialised(FiLM(conditioned="age"), key)
    assert set(variables["params"]) == {"scale_image", "shift_image"}
    assert other.shape == (2, 2)


def test_low_rank_bilinear_is_a_product_with_constant_factors(key):
    fused, variables = initialised(LowRankBilinear(rank=3), key)
    params = variables["params"]
    image, age = dense(params, "factor_image", TWO["image"]), dense(params, "factor_age", TWO["age"])
    assert_close(fused, np.stack([(image * age)[0], image[1]]))  # the constant is 1 at first
    moved = jax.tree.map(lambda a: a, variables)
    moved["params"]["factor_age"]["bias"] = jnp.array([2.0, 3.0, 4.0])
    assert_close(LowRankBilinear(rank=3).apply(moved, TWO, BOTH, order=ORDER)[1], image[1] * [2, 3, 4])


def test_attention_of_a_lonely_source_is_its_own_value(key):
    operator = CrossAttention(width=4, heads=2)
    fused, variables = initialised(operator, key)
    params = variables["params"]
    tokens = np.stack([dense(params, f"token_{name}", np.asarray(TWO[name])) for name in ORDER], axis=1)
    alone = tokens[1, 0] + dense(params, "out", dense(params, "value", tokens[1, 0]))
    assert_close(fused[1], alone)

    query, k, value = (dense(params, name, tokens[0]).reshape(2, 2, 2) for name in ("query", "key", "value"))
    scores = np.exp(np.einsum("ihf,jhf->hij", query, k) / np.sqrt(2.0))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    seen = np.einsum("hij,jhf->ihf", weights, value).reshape(2, 4)
    assert_close(fused[0], (tokens[0] + dense(params, "out", seen)).mean(axis=0))


def test_masked_softmax_is_stable_and_sums_to_one():
    scores = jnp.array([[1e30, 0.0, -1e30], [1e4, 1e4, 3e4]])
    mask = jnp.array([[True, True, True], [True, True, False]])
    assert masked_softmax(scores, mask).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(masked_softmax(x, mask)[:, 0])))(scores)
    assert np.isfinite(gradient).all()
    assert_close(gradient[1], jnp.array([0.25, -0.25, 0.0]))


# Errors.


@pytest.mark.parametrize("operator", [add, multiply, average])
def test_unequal_widths_name_sources_and_widths(operator):
    features = {"image": jnp.ones((2, 3)), "age": jnp.ones((2, 1))}
    with pytest.raises(ValueError, match=r"one width; found image 3, age 1\. Give the encoders one"):
        operator.apply({}, features, BOTH, order=ORDER)


def test_what_cannot_be_fused_is_named():
    with pytest.raises(ValueError, match="no features or no mask of source 'ct'; expected both for image, ct"):
        concatenate.apply({}, TWO, BOTH, order=("image", "ct"))
    with pytest.raises(ValueError, match="no source to fuse"):
        concatenate.apply({}, TWO, BOTH, order=())
    image = {"image": jnp.ones((2, 4, 4, 1)), "age": TWO["age"]}
    with pytest.raises(ValueError, match=r"source 'image' have shape \(2, 4, 4, 1\); expected \(b, f\)"):
        gated.apply({}, image, BOTH, order=ORDER)


def test_settings_that_cannot_be_are_named(key):
    with pytest.raises(ValueError, match="conditioned is 'ct'; expected one of image, age"):
        FiLM(conditioned="ct").init(key, TWO, BOTH, order=ORDER)
    with pytest.raises(ValueError, match="width 6 does not divide among 4 heads"):
        CrossAttention(width=6, heads=4).init(key, TWO, BOTH, order=ORDER)
    assert cross_attention.width % cross_attention.heads == 0
