"""The searched and the derived network: counts, wiring, what they are blind to, and refusals."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.arrays import Batch
from fusion_jax.encoders.linen import as_model, count_parameters
from fusion_jax.nas import supernet
from fusion_jax.nas.cell import MixedCell
from fusion_jax.nas.genotype import DARTS_OPERATIONS, DARTS_V1, DARTS_V2, Genotype, derive, random_genotype
from fusion_jax.nas.supernet import (
    DerivedNet,
    SuperNet,
    architecture_shapes,
    derived_parameters,
    mixing_weights,
    supernet_parameters,
)
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
CIFAR = "N" * 6 + "R" + "N" * 6 + "R" + "N" * 6
SMALL = {"layout": "NR", "nodes": 1, "channels": 4, "stem_stride": 1, "head": (), "remat": "none"}
FEW = ("none", "skip", "conv3")


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def batch_of(sizes, names=("pet", "ct"), rows=2, channels=1, **tables):
    inputs = {name: normal(rows, *sizes, channels) for name in names}
    inputs |= {name: normal(rows, width) for name, width in tables.items()}
    there = jnp.ones(rows, bool)
    return Batch(inputs, {}, there, dict.fromkeys(inputs, there), jnp.arange(rows))


def shapes(net, batch):
    return jax.eval_shape(as_model(net).init, jax.random.key(0), batch)


def filled(net, batch):
    """Variables without a compiler."""

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape)
        if path[-1].key in ("bias", "mean"):
            return normal(*leaf.shape) / 10
        return normal(*leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))

    return jax.tree_util.tree_map_with_path(fill, shapes(net, batch))


@lru_cache
def _program(net):
    return jax.jit(as_model(net).apply, static_argnames="train")


def run(net, variables, batch, **options):
    return _program(net)(variables, batch, **{"train": False, **options})[0]


# Counts


@pytest.mark.parametrize(("genotype", "parameters"), [(DARTS_V1, 3_169_414), (DARTS_V2, 3_349_342)])
def test_published_genotypes_have_their_published_parameters(genotype, parameters):
    # Liu et al. 2018, Table 1: 3.3 million for either, 20 cells of 36 channels on CIFAR-10; the exact numbers are those
    # that their code prints without the auxiliary head.
    net = DerivedNet(genotype, ("image",), layout=CIFAR, channels=36, stem_stride=1, outputs=10, head=(), norm="batch")
    variables = shapes(net, batch_of((32, 32), ("image",), channels=3))
    assert count_parameters(variables) == parameters == derived_parameters(net, 3, 2)


@pytest.mark.parametrize(
    ("settings", "sizes", "channels"),
    [
        ({}, (12, 10, 9), 1),
        ({"sources": ("pet",), "clinical": ("age",), "layout": "NNR", "nodes": 2, "channels": 5}, (9, 8), 2),
        ({"sources": ("pet", "ct", "mr"), "layout": "NR", "partial": 2, "norm": "batch", "head": (7,)}, (8, 8), 1),
        ({"layout": "NRR", "nodes": 2, "norm": "none", "reduce_at": "preprocess", "head": ()}, (8, 8), 1),
        ({"operations": DARTS_OPERATIONS, "outputs": 1, "stem_multiplier": 1, "stem_stride": 1}, (6, 6), 1),
    ],
)
def test_parameters_of_the_searched_network_are_the_closed_form(settings, sizes, channels):
    net = SuperNet(**{"sources": ("pet", "ct"), **settings})
    batch = batch_of(sizes, ("pet", "ct", "mr"), channels=channels, age=3)
    variables = shapes(net, batch)
    assert count_parameters(variables) == supernet_parameters(net, channels, len(sizes), clinical=3 * len(net.clinical))
    assert jax.tree.map(jnp.shape, variables["architecture"]) == architecture_shapes(net)
    drawn = random_genotype(np.random.default_rng(0), net.nodes, net.operations, max(2, len(net.sources)))
    common = {name: getattr(net, name) for name in ("sources", "clinical", "layout", "channels", "norm", "head")}
    derived = DerivedNet(drawn, **common, auxiliary=True, reduce_at=net.reduce_at)
    expected = derived_parameters(derived, channels, len(sizes), clinical=3 * len(net.clinical))
    assert count_parameters(shapes(derived, batch)) == expected


def test_logits_start_small_and_what_none_weighs_has_no_parameters():
    net = SuperNet(("pet", "ct"), **SMALL, operations=FEW)
    batch = batch_of((4, 4))
    variables = as_model(net).init(jax.random.key(0), batch)
    tables = np.concatenate([np.ravel(table) for table in variables["architecture"].values()])
    assert 0 < np.abs(tables).max() < 5e-3
    without = SuperNet(("pet", "ct"), **SMALL, operations=("skip", "conv3"))
    assert jax.tree.map(jnp.shape, shapes(without, batch)["params"]) == jax.tree.map(jnp.shape, variables["params"])


# Wiring


def wiring(net, names):
    """Which cell took which maps, from the names of what made them."""
    taken, made = [], {}

    def interceptor(function, arguments, options, context):
        module = context.module
        if isinstance(module, MixedCell) and context.method_name == "__call__":
            taken.append([made[id(x)] for x in arguments[0]])
        y = function(*arguments, **options)
        made[id(y)] = module.name
        kept.append(y)
        return y

    kept = []
    hidden = supernet._hidden  # what a stem gives goes through it, and is another array afterwards

    def named(x, mask):
        y = hidden(x, mask)
        made[id(y)] = made.get(id(x))
        kept.extend((x, y))
        return y

    supernet._hidden = named
    try:
        with nn.intercept_methods(interceptor):
            shapes(net, batch_of((8, 8), names))
    finally:
        supernet._hidden = hidden
    return taken


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ("pet", "ct"),
            [["stem_pet_norm", "stem_ct_norm"], ["stem_sum_norm", "cell0"], ["cell0", "cell1"], ["cell1", "cell2"]],
        ),
        (("pet",), [["stem_pet_norm"] * 2, ["stem_pet_norm", "cell0"], ["cell0", "cell1"], ["cell1", "cell2"]]),
        (
            ("pet", "ct", "mr"),
            [
                ["stem_pet_norm", "stem_ct_norm", "stem_mr_norm"],
                ["stem_sum_norm", "cell0"],
                ["cell0", "cell1"],
                ["cell1", "cell2"],
            ],
        ),
    ],
)
def test_the_first_cell_sees_the_images_and_the_second_their_sum(names, expected):
    net = SuperNet(names, **{**SMALL, "layout": "NRNR"}, operations=FEW)
    assert wiring(net, names) == expected


def test_the_sum_stem_sees_the_sum_of_the_images():
    net = SuperNet(("pet", "ct"), **SMALL, operations=FEW)
    batch = batch_of((4, 4))
    variables = filled(net, batch)
    # Only the sum reaches the output where the first cell's kernels and skips are silenced.
    kernels = jax.tree.map(jnp.zeros_like, variables["params"]["cell0"])
    variables["params"] = {**variables["params"], "cell0": kernels}
    swapped = batch._replace(inputs={"pet": batch.inputs["ct"], "ct": batch.inputs["pet"]})
    assert_close(run(net, variables, batch).logits, run(net, variables, swapped).logits, 1e-5)
    other = batch._replace(inputs={"pet": batch.inputs["ct"], "ct": batch.inputs["ct"]})
    assert not np.allclose(run(net, variables, batch).logits, run(net, variables, other).logits, atol=1e-3)


def test_swapping_the_images_and_everything_that_belongs_to_them_changes_nothing():
    net = SuperNet(("pet", "ct"), **SMALL, operations=FEW)
    batch = batch_of((4, 4))
    variables = filled(net, batch)
    outputs = run(net, variables, batch)
    assert not np.allclose(outputs.logits[0], outputs.logits[1])

    def exchange(names, tree):
        first, second = names
        renamed = {**tree}
        for name in tree:
            for old, new in ((first, second), (second, first)):
                if name == old or name.startswith(f"{old}_"):
                    renamed[name.replace(old, new)] = tree[name]
        return renamed

    params = exchange(("stem_pet", "stem_ct"), variables["params"])
    # In the first cell the maps of the two inputs change places, and with them the rows of the table.
    cell = exchange(("map0", "map1"), exchange(("input0", "input1"), params["cell0"]))
    table = variables["architecture"]["normal"]
    turned = {
        **variables,
        "params": {**params, "cell0": cell},
        "architecture": {**variables["architecture"], "normal": table[::-1]},
    }
    swapped = batch._replace(inputs={"pet": batch.inputs["ct"], "ct": batch.inputs["pet"]})
    again = run(net, turned, swapped)
    assert_close(again.logits, outputs.logits, 1e-5)
    assert_close(again.features["ct"], outputs.features["pet"], 1e-6)


# Absent sources, padding, brightness


def test_what_an_absent_image_or_a_padded_row_holds_changes_nothing():
    net = SuperNet(("pet", "ct"), clinical=("age",), **SMALL, operations=FEW, norm="batch")
    batch = batch_of((4, 4), rows=3, age=2)
    variables = filled(net, batch)
    there = jnp.array([True, False, True])
    batch = batch._replace(
        valid=jnp.array([True, True, False]),
        present={"pet": jnp.array([True, True, False]), "ct": there, "age": there},
    )
    apply = jax.jit(partial(as_model(net).apply, train=True))
    outputs, moved = apply(variables, batch)
    poisoned = {name: x.at[2].set(jnp.nan) for name, x in batch.inputs.items()}
    poisoned |= {name: poisoned[name].at[1].set(jnp.nan) for name in ("ct", "age")}
    again, moved_again = apply(variables, batch._replace(inputs=poisoned))
    assert_close(jax.tree.map(lambda a: a[:2], again), jax.tree.map(lambda a: a[:2], outputs), 0.0)
    assert_close(moved_again["batch_stats"], moved["batch_stats"], 0.0)
    assert not outputs.features["ct"][1].any()
    assert not outputs.features["age"][1].any()
    assert outputs.features["pet"][1].any()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_brightness_of_a_whole_image_is_seen(norm):
    net = DerivedNet(DARTS_V2, ("pet", "ct"), layout="N", channels=4, stem_stride=1, head=(), norm=norm)
    batch = batch_of((6, 6))
    variables = filled(net, batch)
    brighter = batch._replace(inputs={"pet": 2 * batch.inputs["pet"], "ct": batch.inputs["ct"]})
    change = run(net, variables, brighter).logits - run(net, variables, batch).logits
    assert float(jnp.abs(change).max()) > 0.01


# Mixtures


def test_draws_are_of_the_relaxed_distribution_and_only_in_training():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: mixing_weights(logits, key, 0.01)[0])(keys)
    assert_close(jnp.mean(drawn, 0), jnp.array([0.7, 0.2, 0.1]), 0.05)
    assert_close(jnp.sum(drawn, 1), jnp.ones(2000), 1e-5)
    net = SuperNet(("pet", "ct"), **SMALL, operations=FEW, mixing="gumbel", temperature=0.5)
    batch = batch_of((4, 4))
    variables = filled(net, batch)
    first, second, again = (
        run(net, variables, batch, train=True, key=jax.random.key(seed)).logits for seed in (0, 1, 0)
    )
    assert_close(again, first, 0.0)
    assert not np.allclose(first, second)
    plain = net.clone(mixing="softmax")
    assert_close(run(net, variables, batch).logits, run(plain, variables, batch).logits, 0.0)


@pytest.mark.slow
def test_the_search_follows_a_gradient_through_every_table():
    net = SuperNet(("pet", "ct", "mr"), **{**SMALL, "layout": "NNR"}, operations=FEW, partial=2)
    batch = batch_of((4, 4), ("pet", "ct", "mr"))
    variables = filled(net, batch)

    def loss(architecture):
        outputs, _ = as_model(net).apply({**variables, "architecture": architecture}, batch, train=True)
        return jnp.sum(outputs.logits**2)

    gradient = jax.jit(jax.grad(loss))(variables["architecture"])
    assert sorted(gradient) == ["first", "first_edges", "normal", "normal_edges", "reduce", "reduce_edges"]
    assert all(np.abs(table).max() > 0 for table in gradient.values())


# Derived networks


def test_a_derived_network_reads_what_was_found():
    tables = {"normal": normal(2, 3), "reduce": normal(2, 3)}
    genotype = derive(jax.tree.map(np.asarray, tables), FEW, nodes=1)
    net = DerivedNet(genotype, ("pet", "ct"), layout="NR", channels=4, auxiliary=True, outputs=3)
    outputs, _ = jax.eval_shape(
        lambda batch: as_model(net).apply(filled(net, batch), batch, train=True, key=jax.random.key(0)),
        batch_of((6, 5)),
    )
    assert outputs.logits.shape == outputs.source_logits["auxiliary"].shape == (2, 3)
    assert {name: f.shape for name, f in outputs.features.items()} == {"pet": (2, 12), "ct": (2, 12)}


def test_half_precision_is_close():
    net = SuperNet(("pet", "ct"), **SMALL, operations=("skip", "max_pool", "conv3"))
    batch = batch_of((4, 4))
    variables = filled(net, batch)
    half = run(net.clone(dtype=jnp.bfloat16), variables, batch)
    assert half.logits.dtype == jnp.float32
    assert_close(half.logits, run(net, variables, batch).logits, 0.05)


# Refusals


ONE = Genotype((("skip", 0), ("skip", 1)), (), (2,), ())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuperNet(()), "images are missing"),
        (lambda: SuperNet(("pet",), clinical=("pet",)), "no name twice"),
        (lambda: SuperNet(("pet", "ct"), layout="RN"), "layout is 'RN'; expected letters N"),
        (lambda: SuperNet(("pet", "ct"), layout="NX"), "layout is 'NX'"),
        (lambda: SuperNet(("pet", "ct"), channels=0), "channels=0"),
        (lambda: SuperNet(("pet", "ct"), mixing="hard"), "mixing is 'hard'; expected one of softmax, gumbel"),
        (lambda: SuperNet(("pet", "ct"), temperature=0.0), "temperature is 0"),
        (lambda: SuperNet(("pet", "ct"), reduce_at="end"), "reduce_at is 'end'"),
        (lambda: SuperNet(("pet", "us")), "lacks 'us'"),
        (lambda: SuperNet(("pet",), clinical=("bmi",)), "lacks bmi. Add the source to the cohort"),
        (lambda: SuperNet(("pet", "wide")), r"images differ in shape: pet \(4, 4, 1\), wide \(4, 6, 1\)"),
        (lambda: SuperNet(("pet", "age")), r"source 'age' has shape \(2, 3\); expected an image .* under `clinical`"),
        (
            lambda: SuperNet(("pet",), clinical=("ct",)),
            r"clinical source 'ct' has shape \(2, 4, 4, 1\); expected \(b, f\)",
        ),
        (lambda: DerivedNet(ONE, ("pet", "ct"), layout="NR"), "needs the cell 'reduce', which the genotype lacks"),
        (lambda: DerivedNet(DARTS_V2, ("pet", "ct", "mr"), layout="N"), "needs the cell 'first'"),
        (
            lambda: DerivedNet(DARTS_V2._replace(inputs=3), ("pet", "ct")),
            "first cell takes 3 maps, and there are 2 images",
        ),
        (lambda: DerivedNet(DARTS_V2, ("pet", "ct"), drop_path=1.0), "drop_path is 1.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_and_inputs_that_do_not_fit_are_refused(make, message):
    batch = batch_of((4, 4), ("pet", "ct", "mr"), age=3)
    batch = batch._replace(
        inputs={**batch.inputs, "wide": jnp.zeros((2, 4, 6, 1))}, present={**batch.present, "wide": batch.valid}
    )
    with pytest.raises(ValueError, match=message):
        as_model(make()).init(jax.random.key(0), batch)
