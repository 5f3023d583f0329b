import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from fusion_jax.ops.conv import CHOICES, choose, conv, conv_transpose
from fusion_jax.ops.conv_formulations import FORMULATIONS, Geometry
from fusion_jax.ops.windows import padding_pairs
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
CHANNELS, OUT = 4, 8


class Case(NamedTuple):
    axes: int
    kernel: int
    stride: int
    dilation: int
    groups: int
    even: bool
    padding: str

    def __str__(self):
        parity = "even" if self.even else "odd"
        return f"{self.axes}d-k{self.kernel}-s{self.stride}-d{self.dilation}-g{self.groups}-{parity}-{self.padding}"


FACTORS = ((1, 2, 3), (1, 3, 5, 7), (1, 2, 3), (1, 2), (1, CHANNELS), (False, True), ("SAME", "VALID", "explicit"))
GRID = [Case(*levels) for levels in itertools.product(*FACTORS)]


def covering(rows, strength):
    """Rows such that any `strength` factors show all of their combinations; greedy, the same every time."""
    groups = list(itertools.combinations(range(len(FACTORS)), strength))
    covers = {row: {(g, tuple(row[i] for i in g)) for g in groups} for row in rows}
    missing = set().union(*covers.values())
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(covers[row] & missing))
        chosen.append(best)
        missing -= covers[best]
    return chosen


CASES = covering(GRID, 3)


def arguments(case):
    """Operands in float64, the size of an axis just above what the widest kernel needs, and the keywords."""
    span = (case.kernel - 1) * case.dilation + 1
    size = max(span, 6) + (span % 2 == case.even)
    sizes = tuple(size + 2 * i for i in range(case.axes))
    pads = [(1, 2), (0, 1), (2, 0)][: case.axes] if case.padding == "explicit" else case.padding
    x = RNG.normal(size=(2, *sizes, CHANNELS))
    w = RNG.normal(size=(*(case.kernel,) * case.axes, CHANNELS // case.groups, OUT))
    keywords = {"strides": case.stride, "padding": pads, "dilation": case.dilation, "groups": case.groups}
    return x, w, keywords


def lax_conv(x, w, *, strides=1, padding="SAME", dilation=1, groups=1):
    axes = x.ndim - 2
    space = "DHW"[-axes:]
    return lax.conv_general_dilated(
        x,
        w,
        (strides,) * axes,
        padding,
        rhs_dilation=(dilation,) * axes,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )


def derivatives(function, x, w, keywords, seed=1):
    """Value, both gradients, and Hessian products in both orders of a loss that is not linear in the output."""
    shape = jax.eval_shape(lambda x, w: function(x, w, **keywords), x, w).shape
    rng = np.random.default_rng(seed)
    c, dx, dw = (rng.normal(size=s).astype(x.dtype) for s in (shape, x.shape, w.shape))

    @jax.jit
    def all_of_them(x, w, c, dx, dw):
        def loss(x, w):
            y = function(x, w, **keywords)
            return jnp.sum(c * y + y * y / 8), y

        def gradient(x, w):
            return jax.grad(loss, (0, 1), has_aux=True)(x, w)

        (grads, y), (forward, _) = jax.jvp(gradient, (x, w), (dx, dw))

        def product(x, w):
            return sum(map(jnp.vdot, gradient(x, w)[0], (dx, dw)))

        return y, grads, forward, jax.grad(product, (0, 1))(x, w)

    y, grads, forward, reverse = all_of_them(x, w, c, dx, dw)
    return {"y": y, "dx": grads[0], "dw": grads[1], "jvp of grad": forward, "grad of grad": reverse}


def check(function, reference, x, w, keywords, x64=False):
    with jax.enable_x64(True):
        expected = derivatives(reference, x, w, keywords)
        expected = jax.tree.map(np.asarray, expected)
        if x64:
            assert_close(derivatives(function, x, w, keywords), expected, 1e-10)
            return
    found = derivatives(function, x.astype(np.float32), w.astype(np.float32), keywords)
    for name, tolerance in [("y", 2e-5), ("dx", 1e-4), ("dw", 1e-4), ("jvp of grad", 1e-4), ("grad of grad", 1e-4)]:
        assert_close(found[name], expected[name], tolerance)


@pytest.fixture
def unoptimised():
    """The formulas are under test, not XLA: half of the time to compile. The full grid runs optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("unoptimised")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_derivatives_equal_lax(case):
    x, w, keywords = arguments(case)
    check(conv, lax_conv, x, w, keywords)


@pytest.mark.usefixtures("unoptimised")
@pytest.mark.parametrize("case", covering(GRID, 2), ids=str)
def test_values_and_derivatives_equal_lax_in_double_precision(case):
    x, w, keywords = arguments(case._replace(kernel=min(case.kernel, 3)))
    check(conv, lax_conv, x, w, keywords, x64=True)


@pytest.mark.slow
@pytest.mark.parametrize("rest", list(itertools.product(*FACTORS[1:5])), ids=str)
@pytest.mark.parametrize("axes", FACTORS[0])
def test_values_and_derivatives_equal_lax_over_the_full_grid(axes, rest):
    for even, padding in itertools.product(*FACTORS[5:]):
        x, w, keywords = arguments(Case(axes, *rest, even, padding))
        check(conv, lax_conv, x, w, keywords)
        check(conv, lax_conv, x, w, keywords, x64=True)


@settings(max_examples=15)
@given(st.data())
def test_unequal_axes_and_any_groups_equal_lax(data):
    axes = data.draw(st.integers(1, 3))

    def each(smallest, largest):
        return tuple(data.draw(st.integers(smallest, largest)) for _ in range(axes))

    window, strides, dilation, sizes = each(1, 3), each(1, 3), each(1, 2), each(5, 7)
    pads = [tuple(data.draw(st.integers(0, 2)) for _ in range(2)) for _ in range(axes)]
    groups, inputs, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    x = RNG.normal(size=(2, *sizes, groups * inputs)).astype(np.float32)
    w = RNG.normal(size=(*window, inputs, groups * out)).astype(np.float32)
    space = "DHW"[-axes:]
    expected, pull = jax.vjp(
        lambda x, w: lax.conv_general_dilated(
            x,
            w,
            strides,
            pads,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            feature_group_count=groups,
        ),
        x,
        w,
    )
    y, pull_ours = jax.vjp(
        lambda x, w: conv(x, w, strides=strides, padding=pads, dilation=dilation, groups=groups), x, w
    )
    assert_close(y, expected, 2e-5)
    cotangent = RNG.normal(size=y.shape).astype(np.float32)
    assert_close(pull_ours(cotangent), pull(cotangent), 1e-4)


METHODS = [
    ("direct", (6, 7), 3, 1, 1),
    ("direct", (6, 7), 3, 2, 4),
    ("phases", (6, 7), 3, 2, 1),
    ("phases", (9,), 3, 3, 4),
    ("matmul", (9,), 3, 2, 2),
    ("matmul", (6, 7, 8), 3, 2, 1),
    ("matmul", (6, 7), 3, 2, 4),
    ("narrow", (6, 7), 3, 1, 1),
    ("narrow", (9,), 2, 1, 1),
    ("narrow", (6, 7, 5), 3, 1, 1),
    ("shift", (6, 7), 3, 2, 4),
    ("planes", (6, 7, 8), 3, 2, 1),
    ("planes", (6, 7, 8), 3, 1, 2),
    ("folded", (6, 7, 8), 3, 2, 1),
]


@pytest.mark.parametrize(("method", "sizes", "window", "stride", "groups"), METHODS)
def test_every_method_can_be_forced_and_equals_lax(method, sizes, window, stride, groups):
    x = RNG.normal(size=(2, *sizes, CHANNELS))
    w = RNG.normal(size=(*(window,) * len(sizes), CHANNELS // groups, OUT))
    keywords = {"strides": stride, "dilation": 1, "groups": groups, "padding": "SAME"}
    check(lambda x, w, **how: conv(x, w, method=method, **how), lax_conv, x, w, keywords)


@pytest.mark.parametrize("padding", ["VALID", "SAME", [(0, 3), (5, 1)]])
@pytest.mark.parametrize("dilation", [1, 3])
def test_outputs_move_by_the_taps_whatever_the_padding(padding, dilation):
    x, w = RNG.normal(size=(2, 8, 9, 5)), RNG.normal(size=(3, 2, 5, 2))
    keywords = {"strides": 1, "dilation": dilation, "groups": 1, "padding": padding}
    check(lambda x, w, **how: conv(x, w, method="narrow", **how), lax_conv, x, w, keywords)


@pytest.mark.parametrize("windows", [1, 5, 9, 40])
def test_matrix_products_in_several_blocks_equal_one(windows, monkeypatch):
    """Blocks of so many windows cut rows, planes and cases, with a rest and without."""
    x, w = RNG.normal(size=(3, 7, 6, 5, 2)).astype(np.float32), RNG.normal(size=(3, 3, 3, 2, 3)).astype(np.float32)
    monkeypatch.setattr("fusion_jax.ops.conv_formulations.BLOCK_VALUES", 54 * windows)

    @partial(jax.jit, static_argnames="method")
    def both(x, w, method):
        y, pull = jax.vjp(lambda x, w: conv(x, w, strides=2, method=method), x, w)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    assert_close(both(x, w, "matmul"), both(x, w, "direct"), 1e-5)


TRANSPOSED = [
    ((5,), (3,), 2, "SAME", 1),
    ((5, 4), (2, 2), 2, "SAME", 1),
    ((5, 4), (2, 2), 2, "VALID", 1),
    ((5, 4), (4, 3), (2, 1), "VALID", 1),
    ((5, 4), (3, 3), (3, 2), [(1, 2), (0, 1)], 1),
    ((4, 3, 3), (2, 3, 1), (2, 1, 3), "SAME", 1),
    ((5, 4), (3, 2), (2, 3), "SAME", 2),
]


@pytest.mark.parametrize(("sizes", "window", "strides", "padding", "dilation"), TRANSPOSED)
def test_transposed_convolution_equals_lax(sizes, window, strides, padding, dilation):
    axes = len(sizes)
    x, w = RNG.normal(size=(2, *sizes, 3)), RNG.normal(size=(*window, 3, 4))
    keywords = {"strides": (strides,) * axes if isinstance(strides, int) else strides, "padding": padding}

    def reference(x, w):
        space = "DHW"[-axes:]
        numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
        return lax.conv_transpose(x, w, **keywords, rhs_dilation=(dilation,) * axes, dimension_numbers=numbers)

    check(lambda x, w: conv_transpose(x, w, **keywords, dilation=dilation), reference, x, w, {})


def test_grouped_transposed_convolution_equals_one_per_group():
    x, w = RNG.normal(size=(2, 4, 5, 6)).astype(np.float32), RNG.normal(size=(3, 3, 2, 9)).astype(np.float32)
    parts = [conv_transpose(x[..., 2 * g : 2 * g + 2], w[..., 3 * g : 3 * g + 3], strides=2) for g in range(3)]
    assert_close(conv_transpose(x, w, strides=2, groups=3), jnp.concatenate(parts, -1), 1e-6)


SMALL = {
    "matmul": ((2, 5, 6, 4), (1, 1, 4, 3), 1),
    "direct": ((2, 5, 6, 4), (3, 3, 4, 3), 1),
    "grouped": ((2, 5, 6, 4), (3, 3, 2, 6), 2),
    "shift": ((2, 5, 6, 4), (3, 3, 1, 8), 4),
    "volume": ((2, 4, 5, 4, 2), (3, 3, 3, 2, 3), 1),
}


@pytest.fixture(params=sorted(SMALL))
def small(request):
    x_shape, w_shape, groups = SMALL[request.param]
    x, w = RNG.normal(size=x_shape).astype(np.float32), RNG.normal(size=w_shape).astype(np.float32)
    return x, w, groups


@pytest.mark.parametrize(("x_axis", "w_axis"), [(0, None), (2, None), (None, -2), (1, -2), (-1, 0)])
def test_vmap_equals_a_loop_for_values_and_gradients(small, x_axis, w_axis):
    x, w, groups = small
    xs = x if x_axis is None else np.stack([x, 2 * x[::-1], x - 1], x_axis)
    ws = w if w_axis is None else np.stack([w, w[::-1], w + 1], w_axis)

    def both(x, w):
        y, pull = jax.vjp(lambda x, w: conv(x, w, groups=groups), x, w)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    batched = jax.jit(jax.vmap(both, (x_axis, w_axis)))(xs, ws)
    single = jax.jit(both)
    looped = [
        single(
            x if x_axis is None else np.take(xs, i, x_axis),
            w if w_axis is None else np.take(ws, i, w_axis),
        )
        for i in range(3)
    ]
    assert_close(batched, jax.tree.map(lambda *rows: np.stack(rows), *looped), 1e-5)


def test_transposed_convolution_maps_and_differentiates_like_a_loop():
    xs, ws = RNG.normal(size=(3, 2, 4, 5, 4)).astype(np.float32), RNG.normal(size=(3, 3, 2, 2, 6)).astype(np.float32)

    def both(x, w):
        y, pull = jax.vjp(lambda x, w: conv_transpose(x, w, strides=2, groups=2), x, w)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    for axes in ((0, 0), (0, None), (None, 0)):
        x, w = (a[0] if axis is None else a for a, axis in zip((xs, ws), axes, strict=True))
        batched = jax.jit(jax.vmap(both, axes))(x, w)
        single = jax.jit(both)
        looped = [
            single(*(a if axis is None else a[i] for a, axis in zip((x, w), axes, strict=True))) for i in range(3)
        ]
        assert_close(batched, jax.tree.map(lambda *rows: np.stack(rows), *looped), 1e-5)


@pytest.mark.parametrize("method", ["folded", "planes", "shift", "matmul", "narrow", "phases"])
def test_a_forced_method_maps_over_inputs_and_kernels(method):
    """One channel in one group: what every method can compute, until mapping makes more groups of it."""
    xs, ws = (
        RNG.normal(size=(3, 2, 4, 4, 4, 1)).astype(np.float32),
        RNG.normal(size=(3, 2, 2, 2, 1, 2)).astype(np.float32),
    )

    def both(method, x, w):
        y, pull = jax.vjp(partial(conv, method=method), x, w)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    for axes in ((0, 0), (0, None), (None, 0)):
        x, w = (a[0] if axis is None else a for a, axis in zip((xs, ws), axes, strict=True))
        found, expected = (jax.jit(jax.vmap(partial(both, name), axes))(x, w) for name in (method, "direct"))
        assert_close(found, expected, 1e-5)


def test_per_example_hessian_products_equal_a_loop():
    xs, w = RNG.normal(size=(3, 1, 5, 6, 2)).astype(np.float32), RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)

    def product(x, w):
        gradient = jax.grad(lambda w: jnp.sum(jnp.tanh(conv(x, w))))
        return jax.jvp(gradient, (w,), (jnp.ones_like(w),))[1]

    batched = jax.jit(jax.vmap(product, (0, None)))(xs, w)
    assert_close(batched, np.stack([jax.jit(product)(x, w) for x in xs]), 1e-4)


def test_jit_eager_and_rematerialised_results_are_equal(small):
    x, w, groups = small

    def loss(x, w):
        return jnp.sum(jnp.tanh(conv(x, w, groups=groups)))

    eager = jax.grad(loss, (0, 1))(x, w)
    assert_close(jax.jit(jax.grad(loss, (0, 1)))(x, w), eager, 1e-5)
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(x, w), eager, 1e-5)


def test_one_shape_is_traced_and_compiled_once():
    traces = []

    @jax.jit
    def step(x, w):
        traces.append(x.shape)
        return jax.grad(lambda w: conv(x, w).sum())(w)

    x, w = np.ones((1, 4, 4, 4, 2), np.float32), np.ones((3, 3, 3, 2, 2), np.float32)
    for scale in (1, 2, 3):
        step(scale * x, w)
    assert len(traces) == 1
    assert step._cache_size() == 1


def test_an_exported_gradient_holds_the_formulations_of_every_platform():
    x, w = np.ones((1, 6, 6, 4), np.float32), RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)
    function = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.square(conv(x, w, groups=4))), (0, 1)))
    exported = export.export(function, platforms=("cpu", "cuda", "tpu"))(x, w)
    assert_close(exported.call(x, w), function(x, w), 1e-6)
    only = {name: export.export(function, platforms=(name,))(x, w).mlir_module() for name in ("cpu", "cuda", "tpu")}
    assert "stablehlo.convolution" not in only["cpu"]
    assert "stablehlo.convolution" in only["cuda"]
    assert "stablehlo.convolution" in only["tpu"]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_program_exported_for_any_number_of_cases_gives_their_values(name):
    x_shape, w_shape, groups = SMALL[name]
    x, w = RNG.normal(size=x_shape).astype(np.float32), RNG.normal(size=w_shape).astype(np.float32)
    function = jax.jit(partial(conv, groups=groups))
    (b,) = export.symbolic_shape("b")
    any_number = jax.ShapeDtypeStruct((b, *x_shape[1:]), x.dtype)
    exported = export.export(function)(any_number, jax.ShapeDtypeStruct(w_shape, w.dtype))
    more = np.concatenate([x, x, x])
    assert_close(exported.call(more, w), function(more, w), 1e-5)


def test_precision_reaches_every_product():
    x, w = np.ones((1, 6, 6, 6, 4), np.float32), np.ones((3, 3, 3, 4, 4), np.float32)
    for method in ("direct", "phases", "matmul", "narrow", "planes", "folded"):
        function = jax.grad(lambda x, w, how=method: conv(x, w, method=how, precision="highest").sum(), (0, 1))
        text = jax.jit(function).lower(x, w).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
        assert products
        assert all("HIGHEST" in line for line in products), method


def test_cases_sharded_over_two_devices_give_the_same_values_and_gradients(small):
    x, w, groups = small
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    step = jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(jnp.tanh(conv(x, w, groups=groups))), (0, 1)))
    assert_close(step(jax.device_put(x, rows), w), step(x, w), 1e-4)


def test_shard_map_gives_the_same_values_and_gradients(small, monkeypatch):
    x, w, groups = small
    # Products of several blocks too: what a loop carries must vary over devices from its start.
    monkeypatch.setattr("fusion_jax.ops.conv_formulations.BLOCK_VALUES", 200)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def loss(x, w):
        return jnp.sum(jnp.tanh(conv(x, w, groups=groups)))

    def shard(x, w):
        return jax.lax.psum(loss(x, w), "data")

    mapped = jax.shard_map(shard, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec())
    assert_close(jax.jit(jax.grad(mapped, (0, 1)))(x, w), jax.grad(loss, (0, 1))(x, w), 1e-4)


def test_a_mesh_with_explicit_axes_is_refused_with_the_way_out():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, w = np.ones((2, 5, 5, 4), np.float32), np.ones((3, 3, 1, 4), np.float32)
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        with pytest.raises(ValueError, match=r"explicit axes is not supported; .*AxisType.Auto"):
            conv(rows, w, groups=4)


def test_half_precision_stays_half_precision_and_close(small):
    x, w, groups = small

    def both(x, w):
        y, pull = jax.vjp(lambda x, w: conv(x, w, groups=groups), x, w)
        return y, pull(jnp.ones_like(y))

    halves = jax.jit(both)(jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(halves))
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float32), halves), jax.jit(both)(x, w), 2e-2)


def test_more_cases_leave_the_others_alone(small):
    x, w, groups = small
    more = np.concatenate([x, np.full((3, *x.shape[1:]), 7, np.float32)])

    def masked(x, w):
        y = conv(x, w, groups=groups)
        return jnp.sum(jnp.tanh(y[:2])), y[:2]

    padded, alone = (jax.value_and_grad(masked, 1, has_aux=True)(a, w) for a in (more, x))
    assert_close(padded, alone, 1e-6)


@pytest.mark.parametrize(
    ("x", "w", "shape"),
    [
        ((0, 5, 5, 2), (3, 3, 2, 4), (0, 5, 5, 4)),
        ((2, 0, 5, 2), (3, 3, 2, 4), (2, 0, 5, 4)),
        ((2, 5, 5, 2), (3, 3, 2, 0), (2, 5, 5, 0)),
        ((2, 5, 5, 0), (3, 3, 0, 4), (2, 5, 5, 4)),
    ],
)
def test_empty_operands_give_zeros_and_zero_gradients(x, w, shape):
    x, w = np.ones(x, np.float32), np.ones(w, np.float32)
    y, pull = jax.vjp(conv, x, w)
    assert y.shape == shape
    assert not np.any(y)
    assert [a.shape for a in pull(jnp.ones_like(y))] == [x.shape, w.shape]
    assert not any(map(np.any, pull(jnp.ones_like(y))))
    for axes in ((0, None), (None, 0), (0, 0)):
        xs, ws = (a if axis is None else np.stack([a, a]) for a, axis in zip((x, w), axes, strict=True))
        mapped = jax.vmap(jax.grad(lambda x, w: jnp.sum(conv(x, w)), (0, 1)), axes)(xs, ws)
        assert [a.shape for a in mapped] == [(2, *x.shape), (2, *w.shape)]


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("groups", [1, 4])
def test_mapping_over_nothing_gives_nothing_of_the_right_shape(axes, groups):
    x, w = np.ones((2, 5, 5, 4), np.float32), np.ones((3, 3, 4 // groups, 8), np.float32)
    xs, ws = (a if axis is None else np.zeros((0, *a.shape), a.dtype) for a, axis in zip((x, w), axes, strict=True))
    assert jax.vmap(partial(conv, groups=groups), axes)(xs, ws).shape == (0, 2, 5, 5, 8)
    gradients = jax.vmap(jax.grad(lambda x, w: jnp.sum(conv(x, w, groups=groups)), (0, 1)), axes)(xs, ws)
    assert [a.shape for a in gradients] == [(0, *x.shape), (0, *w.shape)]


@pytest.mark.parametrize("method", ["planes", "folded", "phases"])
def test_nothing_is_read_beyond_an_input_that_is_cut(method):
    """Phases of a strided gradient cut rows off; negative padding made XLA read other memory there."""
    x, w, keywords = arguments(Case(3, 3, 2, 1, 1, False, "explicit"))
    x, w = x.astype(np.float32), w.astype(np.float32)
    y, pull = jax.vjp(lambda x: lax_conv(x, w, **keywords), x)
    cotangent = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    [found] = jax.vjp(lambda x: conv(x, w, **keywords, method=method), x)[1](cotangent)
    assert_close(found, pull(cotangent)[0], 1e-5)


def test_a_window_larger_than_the_input_has_no_output():
    x, w = np.ones((3, 1, 2, 2, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    valid = partial(conv, padding="VALID")
    assert valid(x[0], w).shape == (1, 0, 0, 1)
    assert jax.vmap(valid, (0, None))(x, w).shape == (3, 1, 0, 0, 1)
    assert jax.vmap(jax.grad(lambda w, x: valid(x, w).sum()), (None, 0))(w, x).shape == (3, *w.shape)


def test_nan_reaches_the_outputs_that_see_it_and_no_other(small):
    x, w, groups = small
    spoiled = x.copy()
    spoiled[0] = np.nan
    y = conv(spoiled, w, groups=groups)
    assert np.isnan(y[0]).all()
    assert_close(y[1], conv(x, w, groups=groups)[1], 1e-6)


IMAGE, KERNEL = np.ones((2, 5, 5, 4), np.float32), np.ones((3, 3, 4, 6), np.float32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [conv, conv_transpose])
@pytest.mark.parametrize(
    ("x", "kernel", "keywords", "error", "message"),
    [
        (IMAGE[0, 0], KERNEL, {}, ValueError, "x has shape .*expected .*1, 2 or 3 spatial sizes"),
        (IMAGE, KERNEL[0], {}, ValueError, "kernel has shape"),
        (IMAGE, KERNEL[:0], {}, ValueError, "window size must be at least 1"),
        (IMAGE, KERNEL[:, :, :3], {}, ValueError, "expects 3 channels in each of 1 groups"),
        (IMAGE, KERNEL, {"groups": 3}, ValueError, "do not divide into groups=3"),
        (IMAGE, KERNEL, {"groups": 0}, ValueError, "do not divide into groups=0"),
        (IMAGE.astype(int), KERNEL, {}, TypeError, "x is int32"),
        (IMAGE, jnp.asarray(KERNEL, jnp.bfloat16), {}, TypeError, "kernel bfloat16"),
        (IMAGE, KERNEL, {"strides": (1, 2, 3)}, ValueError, "strides has 3 values for 2 spatial axes"),
        (IMAGE, KERNEL, {"dilation": 0}, ValueError, "dilation is 0"),
        (IMAGE, KERNEL, {"padding": "same"}, ValueError, "padding is 'same'"),
        (IMAGE, KERNEL, {"method": "fft"}, ValueError, "method is 'fft'; expected 'auto' or one of"),
        (IMAGE, KERNEL, {"method": "planes"}, ValueError, "needs 3 spatial axes"),
        (IMAGE, KERNEL, {"method": "narrow", "strides": 2}, ValueError, "needs strides of 1"),
        (IMAGE, KERNEL, {"method": "shift"}, ValueError, "needs as many groups as channels"),
    ],
)
def test_what_cannot_be_convolved_is_refused_before_compilation(function, x, kernel, keywords, error, message):
    with pytest.raises(error, match=message):
        function(x, kernel, **keywords)


def test_the_table_of_choices_is_what_runs():
    """Every row is taken by some convolution and says why, and accelerators go the direct way."""

    def geometry(axes, window, groups=1, stride=1):
        ones, strides = (1,) * axes, (stride,) * axes
        pads = padding_pairs("SAME", (8,) * axes, (window,) * axes, strides, ones)
        return Geometry((8,) * axes, (window,) * axes, strides, ones, pads, groups)

    asked = [
        ("kernel_gradient", geometry(2, 1), "matmul"),
        ("kernel_gradient", geometry(1, 3, groups=16), "direct"),
        ("forward", geometry(3, 3, groups=16), "shift"),
        ("forward", geometry(2, 3, groups=4), "matmul"),
        ("kernel_gradient", geometry(3, 7), "planes"),
        ("input_gradient", geometry(3, 3), "folded"),
        ("forward", geometry(2, 3), "narrow"),
        ("input_gradient", geometry(2, 3, stride=2), "phases"),
        ("forward", geometry(2, 3, stride=2), "direct"),
    ]
    for (role, case, expected), choice in zip(asked, CHOICES, strict=True):
        assert choose(role, case, 16, 3, "cpu") == choice.method == expected
        assert choose(role, case, 16, 3, "cuda") == choose(role, case, 16, 3, "tpu") == "direct"
        assert choice.method in FORMULATIONS
        assert choice.reason
    assert choose("forward", geometry(3, 7), 1, 1, "cpu") == "folded", "one channel is a dense convolution"
    assert choose("forward", geometry(2, 3), 16, 4, "cpu") == "direct", "as many products as windows gain nothing"
    assert choose("input_gradient", geometry(2, 1, stride=2), 16, 16, "cpu") == "matmul"
    assert choose("forward", geometry(2, 1), 16, 3, "cpu") == "direct", "XLA's own matrix product"


def test_the_kernel_gradient_of_a_depthwise_convolution_holds_no_convolution():
    """XLA's loop for it is 190 times slower: a change of the lowering that brings it back must not go unseen."""
    x, w = np.ones((1, 8, 8, 8, 4), np.float32), np.ones((3, 3, 3, 1, 4), np.float32)
    text = jax.jit(jax.grad(lambda w: conv(x, w, groups=4).sum())).lower(w).compile().as_text()
    assert text is not None
    assert " convolution(" not in text
