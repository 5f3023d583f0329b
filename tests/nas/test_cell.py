"""Cells: many edges at once give what each operation alone gives, and what is computed again is the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.encoders.linen import count_parameters
from fusion_jax.nas import cell as cells
from fusion_jax.nas.cell import DerivedCell, EdgesOfMap, MixedCell, derived_cell_parameters, mixed_cell_parameters
from fusion_jax.nas.genotype import DARTS_V1, edge_count, edges_of
from fusion_jax.nas.operations import OPERATIONS, FactorisedReduce, Op, ReluConvNorm
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def filled(module, *arguments, **options):
    """Variables of the right shapes without a compiler, kernels at the size that keeps maps near one."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, train=False, **options))

    def fill(path, leaf):
        if path[0].key == "batch_stats":
            return jnp.zeros(leaf.shape) if path[-1].key == "mean" else jnp.ones(leaf.shape)
        return normal(*leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(fill, shapes)


def edge_kernels(fan, params, name, edge):
    """Parameters of one `Op` out of those of all edges that leave a map."""
    own = {key: kernel for key, kernel in params.items() if key.split("_")[0] == name}
    widths = {key: kernel.shape[-1] // fan.edges for key, kernel in own.items()}
    cut = {key: kernel[..., widths[key] * edge : widths[key] * (edge + 1)] for key, kernel in own.items()}
    # "here" before "next", and the depthwise kernel of each stage before the pointwise one.
    order = sorted(cut, key=lambda key: (key[-1:] if key[-1:].isdigit() else "", key))
    layers = {f"Conv_{number}": {"kernel": cut[key]} for number, key in enumerate(order)}
    return {"FactorisedReduce_0": layers} if name == "skip" and layers else layers


def edge_by_edge(fan, variables, x, weights, mask=None):
    """What `EdgesOfMap` brings, from an `Op` for every operation on every edge."""
    brought = []
    for edge in range(fan.edges):
        total = 0.0
        for column, name in enumerate(fan.operations):
            op = Op(name, fan.channels, fan.stride, fan.norm, affine=False)
            params = edge_kernels(fan, variables["params"], name, edge)
            y, _ = op.apply({"params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
            total = total + y * weights[edge, column]
        brought.append(total)
    return brought


def fan_of(**settings):
    defaults = {
        "edges": 2,
        "channels": 4,
        "stride": 1,
        "operations": OPERATIONS,
        "norm": "group",
        "remat": "none",
        "partial": 1,
        "dtype": jnp.float32,
    }
    return EdgesOfMap(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("sizes", "settings", "dense"),
    [
        ((5, 4), {}, True),
        ((5, 4), {"stride": 2, "norm": "batch"}, True),
        pytest.param(
            (5, 4), {"stride": 2, "operations": ("none", "dil5", "sep3", "conv3")}, True, marks=pytest.mark.slow
        ),
        pytest.param((5, 4), {"norm": "batch", "edges": 3}, True, marks=pytest.mark.slow),
        pytest.param((5, 4), {"channels": 5, "norm": "none"}, False, marks=pytest.mark.slow),
        pytest.param((6, 5), {"stride": 2, "channels": 5}, False, marks=pytest.mark.slow),
        pytest.param((4, 5, 3), {}, True, marks=pytest.mark.slow),
        pytest.param((4, 5, 3), {}, False, marks=pytest.mark.slow),
        pytest.param((4, 5, 3), {"stride": 2}, True, marks=pytest.mark.slow),
        pytest.param((4, 5, 3), {"stride": 2}, False, marks=pytest.mark.slow),
    ],
)
def test_all_edges_of_a_map_at_once_are_the_edges_one_by_one(sizes, settings, dense, monkeypatch):
    if not dense:
        for limit in ("NARROW", "FIRST_WORK", "SECOND_WORK"):
            monkeypatch.setattr(cells, limit, 0)
    fan = fan_of(**settings)
    x, weights, beta = normal(2, *sizes, fan.channels), normal(fan.edges, len(fan.operations)), normal(fan.edges)
    mask = jnp.array([True, False]) if fan.norm == "batch" else None
    variables = filled(fan, x, weights, beta, mask=mask)

    def both(variables, x, weights, beta):
        together, _ = fan.apply(variables, x, weights, beta, train=True, mask=mask, mutable=["batch_stats"])
        apart = edge_by_edge(fan, variables, x, weights * beta[:, None], mask)
        return together, apart

    # Of one tensor each, so that the tolerance is that of the whole.
    together, apart = jax.jit(both)(variables, x, weights, beta)
    rows = slice(None) if mask is None else slice(0, 1)
    assert_close([y[rows] for y in together], [y[rows] for y in apart], 2e-5)


@pytest.mark.slow
def test_derivatives_at_once_are_those_of_the_edges_one_by_one():
    fan = fan_of(stride=2, operations=("sep3", "dil5", "max_pool"))
    x, weights, beta = normal(1, 5, 4, 4), normal(2, 3), jnp.ones(2)
    variables = filled(fan, x, weights, beta, mask=None)
    towards = normal(2, 1, 3, 2, 4)

    def loss(function):
        return lambda params, x, weights: jnp.vdot(jnp.stack(function({"params": params}, x, weights)), towards)

    def together(variables, x, weights):
        return fan.apply(variables, x, weights, beta, train=True, mask=None)

    def gradients(params, x, weights):
        return [jax.grad(loss(f), (0, 1, 2))(params, x, weights) for f in (together, partial(edge_by_edge, fan))]

    found, expected = jax.jit(gradients)(variables["params"], x, weights)
    assert_close(found, expected, 1e-4)


# Whole cells


def cell_by_hand(cell, variables, inputs, weights, beta=None):
    """The sum of the definition: an `Op` for every operation of every edge."""
    params = variables["params"]
    total, stride = len(inputs), 2 if cell.reduction else 1
    maps = []
    for number, x in enumerate(inputs):
        layer = FactorisedReduce if cell.reduction_before and number == 0 else ReluConvNorm
        [own] = params[f"input{number}"].values()
        maps.append(layer(cell.channels, cell.norm, affine=False).apply({"params": own}, x, train=True))
    edges = edges_of(cell.nodes, total)
    for node in range(total, total + cell.nodes):
        y = 0.0
        for row, (source, target) in enumerate(edges):
            if target != node:
                continue
            leaving = [other for other, (origin, _) in enumerate(edges) if origin == source]
            fan = fan_of(
                edges=len(leaving),
                channels=cell.channels,
                stride=stride if source < total else 1,
                operations=cell.operations,
            )
            own = {"params": params[f"map{source}"]}
            brought = edge_by_edge(fan, own, maps[source], weights[jnp.array(leaving)])[leaving.index(row)]
            y = y + (brought if beta is None else brought * beta[row])
        maps.append(y)
    return jnp.concatenate(maps[total:], axis=-1)


@pytest.mark.parametrize(("reduction", "before", "inputs"), [(False, True, 2), (True, False, 3)])
def test_a_cell_is_its_definition(reduction, before, inputs):
    operations = ("none", "skip", "conv3", "sep3")
    cell = MixedCell(2, 4, reduction=reduction, reduction_before=before, operations=operations)
    maps = [normal(1, 7, 5, 6) if before and number == 0 else normal(1, 4, 3, 6) for number in range(inputs)]
    edges = edge_count(2, inputs)
    weights, beta = normal(edges, 4), normal(edges)
    variables = filled(cell, maps, weights, beta)
    found, expected = jax.jit(
        lambda variables, maps, weights, beta: (
            cell.apply(variables, maps, weights, beta, train=True),
            cell_by_hand(cell, variables, maps, weights, beta),
        )
    )(variables, maps, weights, beta)
    assert found.shape == (1, *((2, 2) if reduction else (4, 3)), 8)
    assert_close(found, expected, 2e-5)


def test_one_hot_weights_leave_a_single_operation_and_uniform_ones_the_mean():
    cell = MixedCell(1, 4, operations=("none", "skip", "max_pool", "conv3"))
    maps = [normal(1, 4, 3, 4), normal(1, 4, 3, 4)]
    variables = filled(cell, maps, jnp.zeros((2, 4)))
    run = jax.jit(lambda weights: cell.apply(variables, maps, weights, train=True))
    alone = [run(jax.nn.softmax(jnp.full((2, 4), -1e9).at[:, number].set(1e9))) for number in range(4)]
    assert not alone[0].any()
    assert_close(run(jnp.full((2, 4), 0.25)), sum(alone) / 4, 1e-6)
    derived = DerivedCell((("skip", 0), ("skip", 1)), (2,), 4, norm="group")
    own = {
        name: {"ReluConvNorm_0": {**layer["ReluConvNorm_0"], "Norm_0": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}}
        for name, layer in variables["params"].items()
        if name.startswith("input")
    }
    assert_close(alone[1], derived.apply({"params": own}, maps, train=True), 1e-6)


@pytest.mark.parametrize(
    ("norm", "operations"),
    [
        ("group", ("none", "skip", "conv3")),
        pytest.param("batch", ("none", "skip", "max_pool", "conv3", "sep3"), marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_again_on_the_way_back_gives_the_same(norm, operations):
    maps, weights, towards = [normal(2, 4, 3, 6)], normal(3, len(operations)), normal(2, 4, 3, 8)
    mask = jnp.array([True, True])

    def made(remat):
        cell = MixedCell(2, 4, operations=operations, norm=norm, remat=remat)

        def loss(params, weights):
            y, moved = cell.apply({"params": params}, maps, weights, train=True, mask=mask, mutable=["batch_stats"])
            return jnp.vdot(y, towards), moved

        return cell, jax.value_and_grad(loss, (0, 1), has_aux=True)

    plain, program = made("none")
    params = filled(plain, maps, weights)["params"]
    (value, moved), gradients = jax.jit(program)(params, weights)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))
    for remat in ("operation", "edge", "cell"):
        _, again = made(remat)
        (same, moved_again), same_gradients = jax.jit(again)(params, weights)
        assert_close((same, same_gradients), (value, gradients), 1e-5)
        # Running statistics of one map are kept together or apart, and are the same numbers.
        assert sum(map(jnp.sum, jax.tree.leaves(moved_again))) == pytest.approx(
            float(sum(map(jnp.sum, jax.tree.leaves(moved)))), abs=1e-4
        )


@pytest.mark.parametrize(
    "operations", [("max_pool", "conv3"), ("none", "max_pool", "conv3"), ("conv3", "sep3", "dil5")]
)
def test_every_operation_has_running_statistics_of_its_own(operations):
    maps, weights = [normal(2, 4, 3, 6)], normal(1, len(operations))

    def held(remat):
        cell = MixedCell(1, 4, operations=operations, norm="batch", remat=remat)
        found = jax.eval_shape(lambda: cell.init(jax.random.key(0), maps, weights, train=False))
        return sum(leaf.size for leaf in jax.tree.leaves(found["batch_stats"]))

    assert held("operation") == held("cell") == held("none")


def test_rematerialisation_keeps_less():
    operations = ("none", "max_pool", "conv3", "dil3")
    maps, weights = [jnp.zeros((1, 12, 12, 8))] * 2, jnp.full((5, 4), 0.25)
    kept = {}
    for remat in ("none", "operation", "edge", "cell"):
        cell = MixedCell(2, 8, operations=operations, remat=remat)
        params = filled(cell, maps, weights)["params"]
        # What `jax.vjp` closes over is what the way back needs.
        way_back = jax.eval_shape(
            lambda params, cell=cell: jax.vjp(lambda p: cell.apply({"params": p}, maps, weights, train=True), params)[
                1
            ],
            params,
        )
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(way_back)) - count_parameters({"params": params})
    assert kept["none"] > 5 * kept["operation"]
    assert kept["none"] > 5 * kept["edge"]
    assert kept["edge"] > kept["cell"]


# Partial channels


@pytest.mark.parametrize("reduction", [False, True])
def test_of_partial_channels_the_rest_goes_around_and_all_are_shuffled(reduction):
    cell = MixedCell(1, 4, operations=("none", "conv3"), partial=2, reduction=reduction, norm="none")
    maps = [normal(1, 4, 5, 4), normal(1, 4, 5, 4)]
    weights = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    beta = jnp.array([0.25, 0.75])
    variables = filled(cell, maps, weights, beta)
    found = cell.apply(variables, maps, weights, beta, train=True)
    around = 0.0
    for number, x in enumerate(maps):
        [own] = variables["params"][f"input{number}"].values()
        y = ReluConvNorm(4, "none", affine=False).apply({"params": own}, x, train=True)[..., 2:]
        if reduction:
            padded = np.pad(y, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=-np.inf)
            y = padded.reshape(1, 2, 2, 3, 2, 2).max((2, 4))
        around = around + beta[number] * y
    # "none" everywhere: the first of every pair is nothing, the second one of the channels that went around.
    assert not found[..., ::2].any()
    assert_close(found[..., 1::2], around, 1e-6)


# Sizes


@pytest.mark.parametrize("sizes", [(7, 4), (5, 4, 6), (1, 1)])
@pytest.mark.parametrize("reduce_at", ["edges", "preprocess"])
def test_sizes_and_parameters(sizes, reduce_at):
    half = tuple(-(-size // 2) for size in sizes)
    quarter = tuple(-(-size // 2) for size in half)
    maps = [jax.ShapeDtypeStruct((2, *shape, width), jnp.float32) for shape, width in ((sizes, 6), (half, 5))]
    mixed = MixedCell(3, 4, reduction=True, reduction_before=True, reduce_at=reduce_at)
    initial = partial(mixed.init_with_output, jax.random.key(0), train=False)
    y, variables = jax.eval_shape(initial, maps, jax.ShapeDtypeStruct((9, 10), jnp.float32))
    assert y.shape == (2, *quarter, 12)
    assert count_parameters(variables) == mixed_cell_parameters(mixed, (6, 5), len(sizes))
    derived = DerivedCell(
        DARTS_V1.reduce, (2, 5), 4, reduction=True, reduction_before=True, reduce_at=reduce_at, norm="batch"
    )
    y, variables = jax.eval_shape(partial(derived.init_with_output, jax.random.key(0), train=False), maps)
    assert y.shape == (2, *quarter, 8)
    assert count_parameters(variables) == derived_cell_parameters(derived, (6, 5), len(sizes))


def test_kernels_are_drawn_as_wide_as_their_inputs_ask():
    fan = fan_of(edges=3, channels=8)
    x = jnp.zeros((1, 4, 4, 4, 8))
    variables = jax.jit(
        lambda: fan.init(jax.random.key(1), x, jnp.zeros((3, 10)), jnp.ones(3), train=False, mask=None)
    )()
    deviations = {name: float(jnp.std(kernel)) for name, kernel in variables["params"].items()}
    for name, inputs in (("conv5", 125 * 8), ("conv3", 27 * 8), ("sep5_depthwise_0", 125), ("dil3_pointwise_0", 8)):
        assert deviations[name] == pytest.approx(inputs**-0.5, rel=0.15)


# Dropped paths


def test_dropped_paths_leave_cases_without_an_edge_and_never_a_skip():
    cell = DerivedCell((("max_pool", 0), ("skip", 1)), (2,), 4, norm="none", drop_path=0.25)
    maps = [normal(64, 2, 2, 4), normal(64, 2, 2, 4)]
    variables = filled(cell, maps)
    kept = jax.jit(lambda: cell.apply(variables, maps, train=False))()
    run = jax.jit(lambda key: cell.apply(variables, maps, train=True, rngs={"dropout": key}))
    found = run(jax.random.key(0))
    [own] = variables["params"]["input1"].values()
    skip = jax.jit(lambda: ReluConvNorm(4, "none").apply({"params": own}, maps[1], train=True))()
    pooled = kept - skip
    scale = np.asarray(jnp.sum((found - skip) * pooled, (1, 2, 3)) / jnp.sum(pooled**2, (1, 2, 3)))
    assert set(np.round(scale * 3).astype(int)) == {0, 4}
    assert np.mean(scale > 0) == pytest.approx(0.75, abs=0.15)


# Refusals


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"operations": ("none", "sep7")}, (5, 2), "unknown operation sep7; expected some of none, skip"),
        ({"operations": ("none",)}, (5, 1), "one besides 'none'"),
        ({}, (4, 10), r"weights have shape \(4, 10\); 2 inputs, 2 nodes and 10 operations need \(5, 10\)"),
        ({"partial": 3}, (5, 10), "partial is 3 and does not divide 4 channels"),
        ({"remat": "some"}, (5, 10), "remat is 'some'; expected one of none, operation, edge, cell"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_do_not_fit_are_refused(settings, weights, message):
    cell = MixedCell(2, 4, **settings)
    with pytest.raises(ValueError, match=message):
        cell.init(jax.random.key(0), [jnp.zeros((1, 4, 4, 4))] * 2, jnp.zeros(weights), train=False)
