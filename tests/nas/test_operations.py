"""Operations of one edge: sizes, definitions, closed forms and what they are blind to."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.encoders.linen import count_parameters
from fusion_jax.nas.operations import (
    DARTS_OPERATIONS,
    OPERATIONS,
    FactorisedReduce,
    Op,
    operation_multiply_adds,
    operation_parameters,
    pool,
    strided_halves,
)
from fusion_jax.ops.conv import conv
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def shapes(op, shape):
    initial = partial(op.init_with_output, jax.random.key(0), train=False)
    return jax.eval_shape(initial, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("sizes", [(8, 5), (1, 2), (6, 7, 4), (3, 1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_sizes_and_parameters(operation, stride, sizes):
    for affine in (False, True):
        y, variables = shapes(Op(operation, 6, stride, affine=affine), (2, *sizes, 6))
        assert y.shape == (2, *(-(-size // stride) for size in sizes), 6)
        found = count_parameters({"params": {}, **variables})
        assert found == operation_parameters(operation, 6, len(sizes), stride=stride, affine=affine)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_one_mixed_edge_has_the_parameters_of_the_closed_form(channels):
    total = sum(operation_parameters(name, channels, 3, affine=False) for name in OPERATIONS)
    assert total == 158 * channels**2 + 456 * channels
    strided = sum(operation_parameters(name, channels, 3, stride=2, affine=False) for name in OPERATIONS)
    assert strided == total + channels**2


def test_multiply_adds_count_every_weight_at_every_output():
    assert operation_multiply_adds("sep3", 4, 2) == 2 * (4 * 9 + 16)
    assert operation_multiply_adds("skip", 4, 2, stride=2) == 16 / 4
    assert operation_multiply_adds("max_pool", 4, 2) == 0


def test_candidates_are_those_of_the_papers():
    assert len(OPERATIONS) == 10
    assert set(OPERATIONS) - set(DARTS_OPERATIONS) == {"conv3", "conv5"}
    assert DARTS_OPERATIONS[0] == OPERATIONS[0] == "none"


def params_of(op, x):
    variables = jax.eval_shape(partial(op.init, jax.random.key(0), train=False), x)
    return {"params": jax.tree.map(lambda a: normal(*a.shape), dict(variables.get("params", {})))}


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_their_definition(stride):
    x = normal(1, 6, 5, 3)
    op = Op("sep5", 3, stride, norm="none", affine=False)
    variables = params_of(op, x)
    y = jnp.maximum(x, 0)
    for stage, step in ((0, stride), (1, 1)):
        deep, point = (variables["params"][f"Conv_{2 * stage + i}"]["kernel"] for i in (0, 1))
        y = conv(y, deep, strides=step, padding=2, groups=3)
        y = conv(y, point) if stage else jnp.maximum(conv(y, point), 0)
    assert_close(op.apply(variables, x, train=True), y, 1e-6)
    for name, padding, dilation in (("dil3", 2, 2), ("dil5", 4, 2)):
        op = Op(name, 3, stride, norm="none", affine=False)
        variables = params_of(op, x)
        deep, point = (variables["params"][f"Conv_{i}"]["kernel"] for i in (0, 1))
        y = conv(jnp.maximum(x, 0), deep, strides=stride, padding=padding, dilation=dilation, groups=3)
        assert_close(op.apply(variables, x, train=True), conv(y, point), 1e-6)


def test_a_skip_is_the_map_itself_and_none_is_nothing():
    x = normal(2, 3, 4, 5)
    assert Op("skip", 5).apply({}, x, train=True) is x
    assert not Op("none", 5, 2).apply({}, x, train=True).any()


@pytest.mark.parametrize("sizes", [(4, 6), (5, 3), (1, 4)])
def test_factorised_reduction_sees_every_position_and_takes_odd_sizes(sizes):
    x = jnp.abs(normal(1, *sizes, 2)) + 1
    layer = FactorisedReduce(4, norm="none", affine=False)
    variables = params_of(layer, x)

    def reached(x):
        return jnp.sum(jnp.square(jnp.asarray(layer.apply(variables, x, train=True))))

    gradient = np.asarray(jax.grad(reached)(x))
    # The second half starts one further along every axis: positions of equal parity on all axes are the ones it keeps.
    parity = np.indices(sizes).sum(0) if len(sizes) == 1 else np.ptp(np.indices(sizes) % 2, axis=0)
    assert np.all((np.abs(gradient).sum((0, -1)) > 0) == (parity == 0))
    y = layer.apply(variables, x, train=True)
    assert y.shape == (1, *(-(-size // 2) for size in sizes), 4)
    assert_close(y[..., :2], x[:, ::2, ::2] @ variables["params"]["Conv_0"]["kernel"][0, 0], 1e-6)


def test_halves_are_the_two_diagonal_phases():
    here, further = strided_halves(jnp.arange(15.0).reshape(1, 3, 5, 1))
    assert here[0, ..., 0].tolist() == [[0, 2, 4], [10, 12, 14]]
    assert further[0, ..., 0].tolist() == [[6, 8, 0], [0, 0, 0]]


def test_an_average_leaves_out_the_padding_and_a_maximum_never_takes_it():
    x = -jnp.ones((1, 2, 2, 2, 1))
    assert_close(pool("avg_pool", x, 2), -jnp.ones((1, 1, 1, 1, 1)), 0.0)
    assert_close(pool("max_pool", x, 1), x, 0.0)


def test_pools_are_normalised_in_a_search_alone():
    x = 100 + normal(1, 6, 6, 4)
    assert float(jnp.mean(Op("max_pool", 4, norm="group").apply({}, x, train=True))) > 90
    searched = Op("max_pool", 4, norm="group", affine=False).apply({}, x, train=True)
    assert float(jnp.mean(searched)) == pytest.approx(0, abs=1e-4)
    assert float(jnp.std(searched)) == pytest.approx(1, abs=1e-3)


def test_group_norm_of_four_channels_keeps_their_contrast():
    x = jnp.broadcast_to(jnp.arange(4.0), (1, 4, 4, 4)) + normal(1, 4, 4, 4) / 100
    y = Op("avg_pool", 4, norm="group", affine=False).apply({}, x, train=True)
    assert np.all(np.diff(jnp.mean(y, (0, 1, 2))) > 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("sep7", 4), "unknown operation sep7; expected some of none, skip"),
        (("conv3", 5), "expected 5 channels and stride 1 or 2"),
        (("conv3", 4, 3), "stride is 3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_operation_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Op(*settings).init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)), train=False)
