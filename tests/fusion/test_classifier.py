"""The composable classifier: order, absent sources, heads, stopped gradients, dropped sources; fused probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.arrays import Batch
from fusion_jax.encoders import MLP, PassThrough, SmallCNN, as_model, count_parameters
from fusion_jax.fusion import AverageFusion, FusionClassifier, ProbabilityFusion, drop_sources
from fusion_jax.fusion.operators import OPERATORS, add, concatenate
from tests.helpers import assert_close

ROWS = 6


class Centred(nn.Module):
    """An encoder with running statistics over the rows that count, and a parameter."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if train:
            rows = jnp.ones(len(x), bool) if mask is None else mask
            count = jnp.maximum(jnp.sum(rows), 1).astype(x.dtype)
            mean.value = jnp.sum(jnp.where(rows[:, None], x, 0.0), axis=0) / count
        return nn.Dense(3, name="dense")(x - mean.value[None])


def make_batch(key, *, rows=ROWS, image=False):
    """Three sources; source 2 absent in row 0, source 1 in row 1; the last row is padding."""
    widths = {"pet": 5, "age": 1, "blood": 4}
    keys = dict(zip(widths, jax.random.split(key, 3), strict=True))
    inputs = {name: jax.random.normal(keys[name], (rows, width)) for name, width in widths.items()}
    if image:
        inputs["pet"] = jax.random.normal(keys["pet"], (rows, 8, 8, 1))
    valid = jnp.arange(rows) != rows - 1
    present = {"pet": valid, "age": valid & (jnp.arange(rows) != 1), "blood": valid & (jnp.arange(rows) != 0)}
    inputs = {name: jnp.where(present[name].reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0) for name, x in inputs.items()}
    return Batch(inputs, {"label": jnp.arange(rows, dtype=jnp.int32) % 2}, valid, present, jnp.arange(rows))


@pytest.fixture(scope="module")
def batch():
    return make_batch(jax.random.key(3))


def encoders():
    return {"pet": MLP((3,)), "blood": Centred(), "age": PassThrough()}


def members():
    return {
        "pet": FusionClassifier({"pet": MLP((3,))}),
        "labs": FusionClassifier({"blood": PassThrough(), "age": PassThrough()}),
    }


MODULES = {
    "classifier": FusionClassifier(encoders(), head=MLP((4,)), classes=2, source_heads=("age", "pet")),
    "single": FusionClassifier({"pet": MLP((3,))}),
    "dropped sources": FusionClassifier(encoders(), source_dropout=0.5),
    "probabilities": ProbabilityFusion(members(), head=MLP((4,))),
    "average": AverageFusion(members()),
    "average of logits": AverageFusion(members(), scale="logit"),
}


@pytest.fixture(scope="module")
def ready(batch, filled):
    """Model and variables of every module."""
    found = {}
    for name, module in MODULES.items():
        model = filled(as_model(module))
        found[name] = model, model.init(jax.random.key(1), batch)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_order_of_keys_means_nothing(name, ready, batch):
    model, variables = ready[name]
    expected, _ = model.apply(variables, batch, train=False)
    turned = batch._replace(
        inputs={source: batch.inputs[source] for source in sorted(batch.inputs)},
        present={source: batch.present[source] for source in sorted(batch.present, reverse=True)},
    )
    found, _ = model.apply(variables, turned, train=False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jitted = jax.jit(lambda batch: model.apply(variables, batch, train=False)[0])
    assert_close(jitted(turned), expected)


@pytest.mark.parametrize("name", MODULES)
def test_what_absent_rows_hold_changes_nothing(name, ready, batch):
    model, variables = ready[name]

    def spoil(value):
        inputs = {
            source: jnp.where((batch.present[source] & batch.valid)[:, None], x, value)
            for source, x in batch.inputs.items()
        }
        # Padding says of itself that a source is there; `valid` overrules it.
        return batch._replace(inputs=inputs, present={s: m | ~batch.valid for s, m in batch.present.items()})

    def loss(params, batch):
        key = jax.random.key(5)
        outputs, moved = model.apply({**variables, "params": params}, batch, train=True, key=key)
        heads = sum(jnp.sum(z**2) for z in outputs.source_logits.values())
        return jnp.sum(jnp.where(batch.valid[:, None], outputs.logits, 0.0) ** 2) + heads, (outputs, moved)

    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, (outputs, moved) = run(variables["params"], spoil(0.0))
    for value in (jnp.nan, 1e6):
        found = run(variables["params"], spoil(value))
        jax.tree.map(np.testing.assert_array_equal, found, (gradient, (outputs, moved)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, outputs, moved)))


def test_features_are_those_of_each_source_and_zero_where_it_is_absent(ready, batch):
    model, variables = ready["classifier"]
    outputs, _ = model.apply(variables, batch, train=False)
    assert {name: x.shape for name, x in outputs.features.items()} == {"pet": (6, 3), "blood": (6, 3), "age": (6, 1)}
    for name, values in outputs.features.items():
        there = np.asarray(batch.present[name])
        assert not np.asarray(values)[~there].any()
    assert_close(outputs.features["age"], batch.inputs["age"])
    dense = variables["params"]["encoders_pet"]["Dense_0"]
    assert_close(
        outputs.features["pet"][:5], jax.nn.relu(batch.inputs["pet"] @ dense["kernel"] + dense["bias"][None])[:5]
    )


def test_the_order_of_the_fusion_is_that_of_the_encoders(ready, batch):
    """Three of pet, three of blood, one of age, which is no alphabetical order."""
    model, variables = ready["classifier"]
    outputs, _ = model.apply(variables, batch, train=False)
    fused = jnp.concatenate([outputs.features[name] for name in ("pet", "blood", "age")], axis=1)
    params = variables["params"]
    hidden = jax.nn.relu(fused @ params["head"]["Dense_0"]["kernel"] + params["head"]["Dense_0"]["bias"][None])
    assert_close(outputs.logits, hidden @ params["classifier"]["kernel"] + params["classifier"]["bias"][None])


def test_heads_read_their_own_source(ready, batch):
    model, variables = ready["classifier"]
    outputs, _ = model.apply(variables, batch, train=False)
    assert set(outputs.source_logits) == {"age", "pet"}
    layer = variables["params"]["source_head_age"]
    assert_close(outputs.source_logits["age"], outputs.features["age"] @ layer["kernel"] + layer["bias"][None])
    assert outputs.logits.shape == (6, 2)


def test_only_training_moves_statistics_and_only_by_rows_that_count(ready, batch):
    model, variables = ready["classifier"]
    _, same = model.apply(variables, batch, train=False)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    _, moved = model.apply(variables, batch, train=True, key=jax.random.key(0))
    rows = np.asarray(batch.present["blood"] & batch.valid)
    expected = np.asarray(batch.inputs["blood"])[rows].mean(axis=0)
    assert_close(moved["batch_stats"]["encoders_blood"]["mean"], expected)


def gradients(model, batch, of):
    variables = model.init(jax.random.key(1), batch)

    def loss(params):
        outputs, _ = model.apply({**variables, "params": params}, batch, train=True, key=jax.random.key(2))
        return of(outputs)

    found = jax.jit(jax.grad(loss))(variables["params"])
    return {name: any(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree)) for name, tree in found.items()}


def test_stopped_fused_loss_reaches_no_encoder(batch, filled):
    names = ("pet", "blood")
    sources = {"pet": MLP((3,)), "blood": MLP((3,))}
    stopped = FusionClassifier(sources, head=MLP((4,)), source_heads=names, stop_fused_gradient=True)
    fused = gradients(filled(as_model(stopped)), batch, lambda outputs: jnp.sum(outputs.logits**2))
    assert {name for name, moved in fused.items() if moved} == {"head", "classifier"}
    pet = gradients(filled(as_model(stopped)), batch, lambda outputs: jnp.sum(outputs.source_logits["pet"] ** 2))
    assert {name for name, moved in pet.items() if moved} == {"encoders_pet", "source_head_pet"}
    free = gradients(
        filled(as_model(stopped.clone(stop_fused_gradient=False))), batch, lambda outputs: jnp.sum(outputs.logits**2)
    )
    assert {name for name, moved in free.items() if moved} == {"head", "classifier", "encoders_pet", "encoders_blood"}


def test_frozen_encoders_neither_learn_nor_move(batch, filled):
    model = filled(as_model(FusionClassifier({"pet": MLP((3,)), "blood": Centred()}, frozen_encoders=("blood",))))
    found = gradients(model, batch, lambda outputs: jnp.sum(outputs.logits**2))
    assert {name for name, moved in found.items() if moved} == {"encoders_pet", "classifier"}
    variables = model.init(jax.random.key(1), batch)
    _, moved = model.apply(variables, batch, train=True, key=jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_fuses_an_image_with_a_table(name, key):
    batch = make_batch(key, image=True)
    sources = {"pet": SmallCNN((4,), projection=4), "blood": MLP((4,))}
    model = as_model(FusionClassifier(sources, fuse=OPERATORS[name], classes=3))
    shapes = jax.eval_shape(
        lambda key, batch: model.apply(model.init(key, batch), batch, train=True, key=key)[0], key, batch
    )
    assert shapes.logits.shape == (6, 3)
    assert shapes.logits.dtype == jnp.float32


# Dropped sources.


def test_dropping_never_takes_the_last_source():
    present = jnp.array([[True, True, True], [True, False, False], [False, True, True], [False, False, False]])
    keys = jax.random.split(jax.random.key(0), 2000)
    kept = np.asarray(jax.vmap(lambda key: drop_sources(key, present, 0.5))(keys))
    assert not (kept & ~np.asarray(present)).any()
    assert kept[:, :3].any(axis=2).all()
    # Each of three stays with 1/2, and one of them where all would go: 1/2 + 1/8 · 1/3; each of two with 1/2 + 1/8.
    sd = 0.5 / np.sqrt(2000)
    assert np.abs(kept[:, 0].mean(axis=0) - 13 / 24).max() < 4 * sd
    assert np.abs(kept[:, 2, 1:].mean(axis=0) - 5 / 8).max() < 4 * sd


def test_source_dropout_acts_in_training_alone_and_learns_a_stand_in(batch, filled):
    module = FusionClassifier(encoders(), source_dropout=0.6)
    model = filled(as_model(module))
    variables = model.init(jax.random.key(1), batch)
    assert set(variables["params"]["fuse"]) == {"missing_pet", "missing_blood", "missing_age"}
    plain = filled(as_model(FusionClassifier(encoders())))
    assert "fuse" not in plain.init(jax.random.key(1), batch)["params"]
    at_rest = [model.apply(variables, batch, train=False, key=jax.random.key(k))[0].logits for k in (0, 1)]
    np.testing.assert_array_equal(*at_rest)
    moving = [model.apply(variables, batch, train=True, key=jax.random.key(k))[0].logits for k in (0, 1)]
    assert np.abs(np.asarray(moving[0]) - np.asarray(moving[1])).max() > 0
    with pytest.raises(ValueError, match="got no key"):
        model.apply(variables, batch, train=True)


def test_a_hidden_source_is_the_same_as_an_absent_one(batch, filled):
    """With a probability near 1 only one source of each case is left in the fusion; its features are reported all."""
    module = FusionClassifier({"pet": MLP((3,)), "blood": MLP((3,))}, fuse=add, source_dropout=0.999)
    model = filled(as_model(module))
    variables = model.init(jax.random.key(1), batch)
    outputs, _ = model.apply(variables, batch, train=True, key=jax.random.key(0))
    layer = variables["params"]["classifier"]
    alone = [2.0 * outputs.features[name] @ layer["kernel"] + layer["bias"][None] for name in ("pet", "blood")]
    for row in range(1, 5):
        distance = [abs(float(one[row, 0] - outputs.logits[row, 0])) for one in alone]
        assert min(distance) < 1e-6
        assert max(distance) > 1e-6


# Fused probabilities.


def test_probability_fusion_sees_probabilities_and_one_half_for_an_absent_member(ready, batch):
    model, variables = ready["probabilities"]
    nobody = batch._replace(present=batch.present | {"age": jnp.zeros(6, bool), "blood": jnp.zeros(6, bool)})
    outputs, _ = model.apply(variables, nobody, train=False)
    pet = jax.nn.sigmoid(outputs.source_logits["pet"])
    assert_close(outputs.features["pet"][:5], pet[:5])
    assert not np.asarray(outputs.features["labs"]).any()
    params = variables["params"]
    entered = jnp.concatenate([pet, jnp.full((6, 1), 0.5)], axis=1)
    hidden = jax.nn.relu(entered @ params["head"]["Dense_0"]["kernel"] + params["head"]["Dense_0"]["bias"][None])
    expected = hidden @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]
    assert_close(outputs.logits[:5], expected[:5])


@pytest.mark.parametrize(("operator", "width"), [(concatenate, 2), (add, 1)])
def test_the_heads_input_follows_the_operator(operator, width, batch, key):
    module = ProbabilityFusion(members(), fuse=operator, head=MLP((16,)))
    shapes = jax.eval_shape(as_model(module).init, key, batch)
    assert shapes["params"]["head"]["Dense_0"]["kernel"].shape == (width, 16)


def test_members_of_two_classes_hand_on_their_softmax(batch, key, filled):
    two = {name: member.clone(classes=2) for name, member in members().items()}
    model = filled(as_model(ProbabilityFusion(two, classes=2)))
    outputs, _ = model.apply(model.init(key, batch), batch, train=False)
    assert_close(jnp.sum(outputs.features["pet"], axis=1)[:5], jnp.ones(5))
    assert_close(outputs.features["labs"][:5], jax.nn.softmax(outputs.source_logits["labs"])[:5])


def averaged(filled, batch, classes, scale="probability"):
    module = AverageFusion({name: m.clone(classes=classes) for name, m in members().items()}, scale=scale)
    model = filled(as_model(module))
    return model.apply(model.init(jax.random.key(4), batch), batch, train=False)[0]


def test_average_fusion_is_the_mean_probability(batch, filled):
    absent = batch._replace(present=batch.present | {"pet": jnp.arange(6) > 1})
    one = averaged(filled, absent, 1)
    pet, labs = (np.asarray(jax.nn.sigmoid(one.source_logits[name])) for name in ("pet", "labs"))
    found = np.asarray(jax.nn.sigmoid(one.logits))
    assert_close(found[2:5], (pet + labs)[2:5] / 2)
    assert_close(found[:2], labs[:2])
    assert found[5] == 0.5  # padding

    three = averaged(filled, absent, 3)
    pet, labs = (np.asarray(jax.nn.softmax(three.source_logits[name])) for name in ("pet", "labs"))
    assert_close(jax.nn.softmax(three.logits)[2:5], (pet + labs)[2:5] / 2)
    assert_close(np.exp(three.logits[2:5]).sum(axis=1), np.ones(3))

    logits = averaged(filled, absent, 1, "logit")
    mean = (logits.source_logits["pet"] + logits.source_logits["labs"]) / 2
    assert_close(logits.logits[2:5], mean[2:5])
    assert_close(logits.logits[:2], logits.source_logits["labs"][:2])


def test_average_fusion_keeps_its_digits_where_probabilities_have_none():
    from fusion_jax.fusion.classifier import _mean_probability_logits

    sure = jnp.array([[[60.0], [60.0]], [[-90.0], [-80.0]]])
    found = _mean_probability_logits(sure, jnp.ones((2, 2, 1), bool))
    assert_close(found[:, 0], np.array([60.0, -80.0 + np.log(0.5) + np.log1p(np.exp(-10.0))]))


# Errors.


def initialise(module, batch, **changes):
    as_model(module).init(jax.random.key(0), batch._replace(**changes))


def test_settings_that_contradict_each_other_are_named(batch):
    with pytest.raises(ValueError, match="source_heads names 'ct'; its encoders are pet, blood, age"):
        initialise(FusionClassifier(encoders(), source_heads=("ct",)), batch)
    with pytest.raises(ValueError, match="frozen_encoders names 'ct'"):
        initialise(FusionClassifier(encoders(), frozen_encoders=("ct",)), batch)
    with pytest.raises(ValueError, match="nothing would train the encoder of 'blood'"):
        initialise(FusionClassifier(encoders(), source_heads=("pet",), stop_fused_gradient=True), batch)
    with pytest.raises(ValueError, match=r"source_dropout is 1.0; expected a probability, at least 0 and below 1"):
        initialise(FusionClassifier(encoders(), source_dropout=1.0), batch)
    with pytest.raises(ValueError, match="classes is 0"):
        initialise(FusionClassifier(encoders(), classes=0), batch)
    with pytest.raises(ValueError, match="no encoder"):
        initialise(FusionClassifier({}), batch)
    with pytest.raises(ValueError, match="no members"):
        initialise(ProbabilityFusion({}), batch)
    unequal = {"pet": members()["pet"], "labs": members()["labs"].clone(classes=3)}
    with pytest.raises(ValueError, match=r"unequal classes \(pet 1, labs 3\)"):
        initialise(AverageFusion(unequal), batch)


def test_a_lacking_source_is_named_without_the_adapter_too(batch):
    inputs = {"pet": batch.inputs["pet"]}
    for module in (FusionClassifier({"pet": MLP((3,)), "age": PassThrough()}), AverageFusion(members())):
        with pytest.raises(ValueError, match=r"reads .*; the batch lacks input or mask of .*age"):
            module.init(jax.random.key(0), inputs, present=batch.present, valid=batch.valid, train=False)


def test_a_mapping_is_frozen_and_sources_keep_their_order():
    module = FusionClassifier(encoders())
    assert module.sources == ("pet", "blood", "age")
    assert hash(module) == hash(FusionClassifier(encoders()))
    assert AverageFusion(members()).sources == ("pet", "blood", "age")


def test_one_source_costs_nothing_but_its_layer(batch, key):
    shapes = jax.eval_shape(as_model(FusionClassifier({"pet": PassThrough()})).init, key, batch)
    assert count_parameters(shapes) == 5 + 1
