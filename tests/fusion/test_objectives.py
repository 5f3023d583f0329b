"""Objectives: closed forms, rows that count, heads, and separate optimisers in one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_expit, log_softmax

from fusion_jax.arrays import Batch, Outputs
from fusion_jax.encoders import MLP, as_model
from fusion_jax.fusion import (
    FusionClassifier,
    binary_cross_entropy,
    cox,
    energy_gap_regularised,
    focal,
    frozen_rates,
    joint,
    multiloss,
    parameter_groups,
    softmax_cross_entropy,
    uncertainty_weighted,
)
from fusion_jax.quality import energy_gap_penalty
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from fusion_jax.training.state import initial_state, make_step
from tests.helpers import assert_close

POSITIVE_WEIGHT = 8376 / 2090
"""Of the training cases of Holste et al. 2021."""


def batch_of(label, *, valid=None, **present):
    rows = jnp.ones(len(label), bool) if valid is None else jnp.asarray(valid)
    target = {"label": jnp.asarray(label, jnp.int32)}
    there = {name: rows & jnp.asarray(mask) for name, mask in present.items()}
    return Batch({}, target, rows, there, jnp.arange(len(label)))


@partial(jax.jit, static_argnums=0)
def value_and_gradient(objective, logits, batch, heads):
    def loss(z):
        return objective.loss(objective.init(), Outputs(z, heads, {}), batch)[0]

    return jax.value_and_grad(loss)(logits)


def value(objective, logits, batch, heads=None):
    return value_and_gradient(objective, jnp.asarray(logits, jnp.float32), batch, heads or {})[0]


def gradient(objective, logits, batch):
    return value_and_gradient(objective, jnp.asarray(logits, jnp.float32), batch, {})[1]


RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(7, 3)) * 4, RNG.integers(0, 3, 7)

EVERY = {
    "binary": (binary_cross_entropy(positive_weight=3.0, smoothing=0.1), 1),
    "softmax": (softmax_cross_entropy(class_weights=(1.0, 2.0, 3.0), smoothing=0.1), 3),
    "focal, one logit": (focal(class_weights=(1.0, 3.0)), 1),
    "focal": (focal(focusing=0.5), 3),
    "cox": (cox(), 1),
}


def full_batch(valid):
    """Seven rows with labels, times and events, of which some count; NaN and strange labels where none does."""
    label = np.where(valid, LABELS % 2, -1)
    time = np.where(valid, np.arange(1.0, 8.0), np.nan)
    batch = batch_of(label, valid=valid)
    return batch._replace(
        target={**batch.target, "time": jnp.asarray(time, jnp.float32), "event": jnp.arange(7) % 2 == 0}
    )


@pytest.mark.parametrize("name", EVERY)
def test_padding_counts_nothing_and_nothing_but_padding_is_worth_0(name):
    objective, classes = EVERY[name]
    logits = LOGITS[:, :classes]
    some = np.arange(7) < 4
    poisoned = np.where(some[:, None], logits, 1e30)
    expected = value(objective, logits[:4], jax.tree.map(lambda a: a[:4], full_batch(some)))
    assert_close(value(objective, poisoned, full_batch(some)), expected)
    slope = np.asarray(gradient(objective, poisoned, full_batch(some)))
    assert np.isfinite(slope).all()
    assert slope[:4].any()
    assert not slope[4:].any()
    nobody = full_batch(np.zeros(7, bool))
    assert value(objective, logits, nobody) == 0
    assert not np.asarray(gradient(objective, logits, nobody)).any()


@pytest.mark.parametrize("name", EVERY)
def test_sure_and_wrong_logits_stay_finite(name):
    objective, classes = EVERY[name]
    for scale in (1e2, 1e4):
        logits = np.where(np.arange(classes) == 0, scale, -scale) * np.where(np.arange(7) % 2, 1, -1)[:, None]
        assert np.isfinite(value(objective, logits, full_batch(np.ones(7, bool))))
        assert np.isfinite(gradient(objective, logits, full_batch(np.ones(7, bool)))).all()


# Cross-entropies.


@pytest.mark.parametrize("label", [0, 1])
def test_binary_cross_entropy_at_zero_is_the_closed_form(label):
    weight, smoothing = POSITIVE_WEIGHT, 0.1
    assert weight == pytest.approx(4.007656, abs=1e-6)
    objective, batch = binary_cross_entropy(positive_weight=weight, smoothing=smoothing), batch_of([label])
    target = label * (1 - smoothing) + smoothing / 2
    assert_close(value(objective, [[0.0]], batch), np.float64(-(weight * target + 1 - target) * np.log(0.5)))
    assert_close(gradient(objective, [[0.0]], batch), np.array([[(1 - target) / 2 - weight * target / 2]]))


def test_binary_cross_entropy_weighs_the_positive_term_alone():
    z, label, weight, smoothing = LOGITS[:, 0], LABELS % 2, 4.0, 0.1
    target = label * 0.9 + 0.05
    expected = -np.mean(weight * target * log_expit(z) + (1 - target) * log_expit(-z))
    assert_close(
        value(binary_cross_entropy(positive_weight=weight, smoothing=smoothing), z[:, None], batch_of(label)), expected
    )
    plain = -np.mean(np.where(label, log_expit(z), log_expit(-z)))
    assert_close(value(binary_cross_entropy(), z[:, None], batch_of(label)), plain)


def test_softmax_cross_entropy_is_the_formula():
    weights, smoothing = np.array([1.0, 2.0, 5.0]), 0.2
    target = np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
    expected = -(weights * target * log_softmax(LOGITS, axis=1)).sum(axis=1).mean()
    objective = softmax_cross_entropy(class_weights=tuple(weights), smoothing=smoothing)
    assert_close(value(objective, LOGITS, batch_of(LABELS)), expected)
    plain = -log_softmax(LOGITS, axis=1)[np.arange(7), LABELS].mean()
    assert_close(value(softmax_cross_entropy(), LOGITS, batch_of(LABELS)), plain)


def test_two_classes_say_the_same_by_softmax_and_by_one_logit():
    label = LABELS % 2
    two = softmax_cross_entropy(class_weights=(1.0, 4.0), smoothing=0.1)
    one = binary_cross_entropy(positive_weight=4.0, smoothing=0.1)
    difference = LOGITS[:, 1:2] - LOGITS[:, :1]
    assert_close(value(two, LOGITS[:, :2], batch_of(label)), value(one, difference, batch_of(label)))


def test_column_1_is_class_1():
    """Eq. 1 of Wang W. et al. 2020 lists early recurrence first; here it is label 1 and column 1."""
    sure = [[-5.0, 5.0]]
    assert value(softmax_cross_entropy(), sure, batch_of([1])) < 1e-4
    assert value(softmax_cross_entropy(), sure, batch_of([0])) > 9


# Focal loss.


def test_focal_loss_is_the_formula():
    p = np.exp(log_softmax(LOGITS, axis=1))[np.arange(7), LABELS]
    weights = np.array([1.0, 2.0, 5.0])
    expected = -np.mean(weights[LABELS] * (1 - p) ** 2 * np.log(p))
    assert_close(value(focal(focusing=2.0, class_weights=tuple(weights)), LOGITS, batch_of(LABELS)), expected)
    label = LABELS % 2
    p = expit(np.where(label, 1, -1) * LOGITS[:, 0])
    expected = -np.mean((1 - p) ** 1.5 * np.log(p))
    assert_close(value(focal(focusing=1.5), LOGITS[:, :1], batch_of(label)), expected)


def test_focal_loss_without_focusing_is_cross_entropy():
    batch = batch_of(LABELS)
    assert_close(value(focal(focusing=0.0), LOGITS, batch), value(softmax_cross_entropy(), LOGITS, batch))
    assert_close(gradient(focal(focusing=0.0), LOGITS, batch), gradient(softmax_cross_entropy(), LOGITS, batch))


def test_focal_gradient_of_a_sure_case_is_finite_below_focusing_one():
    assert np.isfinite(gradient(focal(focusing=0.5), [[40.0]], batch_of([1]))).all()


# Several heads.

HEADS = {"image": jnp.asarray(LOGITS[:, 1:2], jnp.float32), "clinical": jnp.asarray(LOGITS[:, 2:3], jnp.float32)}
HALF = np.arange(7) < 3


def two_sources():
    """Every row has an image, three have clinical data."""
    return batch_of(LABELS % 2, image=np.ones(7, bool), clinical=HALF)


def by_hand():
    base = binary_cross_entropy()
    batch = two_sources()
    here = jax.tree.map(lambda a: a[:3], batch)
    fused = value(base, LOGITS[:, :1], batch)
    return float(fused), float(value(base, HEADS["image"], batch)), float(value(base, HEADS["clinical"][:3], here))


def test_joint_loss_weighs_heads_each_over_its_own_rows():
    fused, image, clinical = by_hand()
    objective = joint(binary_cross_entropy(), {"image": 0.25, "clinical": 0.25, "fused": 0.5})
    outputs = Outputs(jnp.asarray(LOGITS[:, :1], jnp.float32), HEADS, {})
    loss, scalars = objective.loss({}, outputs, two_sources())
    assert_close(loss, np.float32(0.25 * image + 0.25 * clinical + 0.5 * fused))
    assert {name: round(float(x), 5) for name, x in scalars.items()} == {
        "loss_image": round(image, 5),
        "loss_clinical": round(clinical, 5),
        "loss_fused": round(fused, 5),
    }


def test_joint_loss_of_the_fused_head_alone_is_the_single_loss_to_the_bit():
    base = softmax_cross_entropy()
    alone = joint(base, {"image": 0.0, "clinical": 0.0, "fused": 1.0})
    assert value(alone, LOGITS, batch_of(LABELS)) == value(base, LOGITS, batch_of(LABELS))
    np.testing.assert_array_equal(gradient(alone, LOGITS, batch_of(LABELS)), gradient(base, LOGITS, batch_of(LABELS)))


@pytest.mark.parametrize("weights", [(0.25, 0.25, 0.5), (0.1, 0.2, 0.7)])
def test_joint_loss_at_zero_logits_is_log_2(weights):
    zero = jnp.zeros((4, 2))
    batch = batch_of([0, 1, 1, 0], image=np.ones(4, bool), clinical=np.ones(4, bool))
    objective = joint(softmax_cross_entropy(), dict(zip(("image", "clinical", "fused"), weights, strict=True)))
    assert_close(value(objective, zero, batch, heads={"image": zero, "clinical": zero}), np.log(2.0))


def test_a_head_whose_source_nobody_has_is_worth_0():
    batch = batch_of([0, 1], image=[False, False])
    head = {"image": jnp.array([[jnp.nan], [3.0]])}
    assert value(joint(binary_cross_entropy(), {"image": 1.0}), jnp.zeros((2, 1)), batch, heads=head) == 0


def test_multiloss_sums_all_heads_with_weight_1():
    found = value(multiloss(binary_cross_entropy()), LOGITS[:, :1], two_sources(), heads=HEADS)
    assert_close(found, np.float32(sum(by_hand())))


def test_joint_works_for_survival():
    batch = full_batch(np.ones(7, bool))
    batch = batch._replace(present={"image": jnp.ones(7, bool)})
    found = value(joint(cox(), {"fused": 0.5, "image": 0.5}), LOGITS[:, :1], batch, heads={"image": HEADS["image"]})
    single = cox()
    parts = [value(single, z, batch) for z in (LOGITS[:, :1], HEADS["image"])]
    assert_close(found, (parts[0] + parts[1]) / 2)


def test_uncertainty_weights_are_kendalls_and_rest_at_twice_the_loss():
    objective = uncertainty_weighted(binary_cross_entropy(), ("fused", "image", "clinical"))
    outputs = Outputs(jnp.asarray(LOGITS[:, :1], jnp.float32), HEADS, {})
    losses = dict(zip(("fused", "image", "clinical"), by_hand(), strict=True))
    assert all(float(s) == 0 for s in objective.init()["log_variance"].values())
    s = {"fused": 0.3, "image": -0.2, "clinical": 0.0}
    loss, scalars = objective.loss({"log_variance": jax.tree.map(jnp.float32, s)}, outputs, two_sources())
    assert_close(loss, np.float32(sum(np.exp(-s[name]) * losses[name] + s[name] / 2 for name in s)))
    assert float(scalars["log_variance_image"]) == pytest.approx(-0.2)

    rest = {"log_variance": {name: jnp.log(2.0 * jnp.float32(loss)) for name, loss in losses.items()}}
    slope = jax.jit(jax.grad(lambda p: objective.loss(p, outputs, two_sources())[0]))(rest)
    assert max(abs(float(x)) for x in jax.tree.leaves(slope)) < 1e-6


def test_uncertainties_are_float32_as_the_losses_are():
    with jax.enable_x64(True):
        parameters = uncertainty_weighted(binary_cross_entropy(), ("fused", "image")).init()
    assert {value.dtype for value in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}


def test_an_uncertainty_without_rows_does_not_drift():
    objective = uncertainty_weighted(binary_cross_entropy(), ("fused", "clinical"))
    outputs = Outputs(jnp.asarray(LOGITS[:, :1], jnp.float32), HEADS, {})
    batch = batch_of(LABELS % 2, clinical=np.zeros(7, bool))
    slope = jax.jit(jax.grad(lambda p: objective.loss(p, outputs, batch)[0]))(objective.init())["log_variance"]
    assert float(slope["clinical"]) == 0
    assert float(slope["fused"]) != 0


# The energy gap.


def test_energy_gap_is_the_mean_penalty_of_the_cases_with_both_sources():
    x = RNG.normal(size=(7, 5)).astype(np.float32)
    y = RNG.normal(size=(7, 2)).astype(np.float32)
    features = {"image": jnp.asarray(x), "clinical": jnp.asarray(np.where(HALF[:, None], y, 0))}
    one = jax.jit(energy_gap_penalty)
    expected = np.mean([one(x[row], y[row], 0.5) for row in range(3)])
    base = binary_cross_entropy()
    objective = energy_gap_regularised(base, ("image", "clinical"), 0.3, bandwidth=0.5)
    outputs = Outputs(jnp.asarray(LOGITS[:, :1], jnp.float32), {}, features)

    @jax.jit
    def run(features):
        def penalty(features):
            loss, scalars = objective.loss({}, outputs._replace(features=features), two_sources())
            return scalars["energy_gap"], (loss, scalars)

        return jax.grad(penalty, has_aux=True)(features)

    slope, (loss, scalars) = run(features)
    assert_close(scalars["energy_gap"], expected)
    assert_close(loss, value(base, LOGITS[:, :1], two_sources()) + np.float32(0.3 * expected))
    for gradient_of in slope.values():
        assert np.isfinite(gradient_of).all()
        assert np.asarray(gradient_of)[:3].any()
        assert not np.asarray(gradient_of)[3:].any()


def test_energy_gap_keeps_the_scalars_of_what_it_regularises():
    inner = joint(binary_cross_entropy(), {"fused": 1.0, "image": 1.0})
    objective = energy_gap_regularised(inner, ("image", "clinical"), 0.1, bandwidth=1.0)
    features = {"image": jnp.ones((7, 3)), "clinical": jnp.ones((7, 3))}
    outputs = Outputs(jnp.zeros((7, 1)), HEADS, features)
    found = jax.eval_shape(lambda: objective.loss({}, outputs, two_sources())[1])
    assert set(found) == {"loss_fused", "loss_image", "energy_gap"}


# Training.

SOURCES = {"image": 4, "clinical": 3}


def training_batch(rows=8):
    rng = np.random.default_rng(1)
    there = jnp.ones(rows, bool)
    inputs = {name: jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for name, width in SOURCES.items()}
    label = jnp.asarray(rng.integers(0, 2, rows), jnp.int32)
    return Batch(inputs, {"label": label}, there, dict.fromkeys(SOURCES, there), jnp.arange(rows))


def disjoint_classifier(**settings):
    return FusionClassifier(
        {"image": MLP((5,)), "clinical": MLP((5,))}, head=MLP((4,)), source_heads=("image", "clinical"), **settings
    )


def test_one_adam_on_the_stopped_sum_equals_three_adams_to_the_bit(filled):
    """Holste et al. 2021, multiopt: each loss with its own optimiser over its own parameters."""
    model, batch, base = (
        as_model(disjoint_classifier(stop_fused_gradient=True)),
        training_batch(),
        binary_cross_entropy(),
    )
    free = as_model(disjoint_classifier())
    adam = optax.adam(1e-2)
    state = initial_state(model, adam, multiloss(base))(jax.random.key(0), batch)
    step = jax.jit(make_step(model, adam, multiloss(base)))

    params = state.variables["params"]
    groups = parameter_groups(params)
    names = ("fused", "image", "clinical")
    assert set(jax.tree.leaves(groups)) == set(names)

    def separate(params, states):
        """Three forward passes without any stopped gradient, each updating its own group alone."""
        moved = params
        for name in names:

            def loss(own, name=name):
                mixed = jax.tree.map(lambda group, mine, other: mine if group == name else other, groups, own, params)
                outputs, _ = free.apply({"params": mixed}, batch, train=True, key=jax.random.key(0))
                logits = outputs.logits if name == "fused" else outputs.source_logits[name]
                return base.loss({}, Outputs(logits, {}, {}), batch)[0]

            slope = jax.grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, states[name] = adam.update(slope, states[name])
                own = optax.apply_updates(params, updates)
            moved = jax.tree.map(lambda group, new, old, name=name: new if group == name else old, groups, own, moved)
        return moved, states

    states = {name: adam.init(params) for name in names}
    separate = jax.jit(separate)
    for _ in range(5):
        state, _ = step(state, batch, jax.random.key(9))
        params, states = separate(params, states)
    jax.tree.map(np.testing.assert_array_equal, state.variables["params"], params)
    start = initial_state(model, adam, multiloss(base))(jax.random.key(0), batch).variables["params"]
    assert all(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (start, params)), strict=True)
    )


def test_the_joint_gradient_of_the_clinical_head_leaves_the_image_alone(filled):
    model, batch = filled(as_model(disjoint_classifier())), training_batch()
    variables = model.init(jax.random.key(0), batch)
    objective = joint(binary_cross_entropy(), {"clinical": 1.0})

    def loss(params):
        return objective.loss({}, model.apply({"params": params}, batch, train=False)[0], batch)[0]

    slope = jax.jit(jax.grad(loss))(variables["params"])
    moved = {name for name, tree in slope.items() if any(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))}
    assert moved == {"encoders_clinical", "source_head_clinical"}


def test_the_second_stage_leaves_frozen_encoders_as_they_are(filled):
    """Weight decay would move them though their gradient is zero; the rates of zero keep it away."""
    sources = tuple(SOURCES)
    model, batch = filled(as_model(disjoint_classifier(frozen_encoders=sources))), training_batch()
    variables = model.init(jax.random.key(0), batch)
    rates = frozen_rates(variables["params"], sources)
    assert rates == {"encoders_image": 0.0, "encoders_clinical": 0.0}
    settings = Optimiser("adamw", learning_rate=1e-2, weight_decay=0.1, rates=rates)
    optimiser = make_optimiser(settings, steps_per_epoch=1, epochs=2)
    state = initial_state(model, optimiser, binary_cross_entropy())(jax.random.key(0), batch)
    before = state.variables["params"]
    state, _ = jax.jit(make_step(model, optimiser, binary_cross_entropy()))(state, batch, jax.random.key(1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, state.variables["params"])
    assert same["encoders_image"]["Dense_0"]["kernel"]
    assert not same["classifier"]["kernel"]
    with pytest.raises(ValueError, match="no encoder of ct has parameters; those that do: clinical, image"):
        frozen_rates(before, ("ct",))


def test_learned_weights_are_trained_with_the_model(filled):
    model, batch = filled(as_model(disjoint_classifier())), training_batch()
    objective = uncertainty_weighted(binary_cross_entropy(), ("fused", "image", "clinical"))
    optimiser = optax.adam(1e-2)
    state = initial_state(model, optimiser, objective)(jax.random.key(0), batch)
    state, info = jax.jit(make_step(model, optimiser, objective))(state, batch, jax.random.key(1))
    assert {"loss", "loss_fused", "log_variance_clinical"} <= set(info)
    assert all(float(s) != 0 for s in state.variables["objective"]["log_variance"].values())


# Errors.


def test_arguments_that_cannot_be_are_named():
    for settings, message in [
        (lambda: binary_cross_entropy(positive_weight=0.0), "positive_weight is 0.0; expected a number above 0"),
        (lambda: binary_cross_entropy(smoothing=1.0), "smoothing is 1.0; expected a number of at least 0 and below 1"),
        (lambda: softmax_cross_entropy(class_weights=(1.0, -1.0)), "the weight of class 1 is -1.0"),
        (lambda: focal(focusing=-1.0), "focusing is -1.0"),
        (lambda: joint(binary_cross_entropy(), {"image": -1.0}), "the weight of 'image' is -1.0"),
        (lambda: joint(binary_cross_entropy(), {"fused": 0.0}), "expected at least one above 0"),
        (lambda: uncertainty_weighted(binary_cross_entropy(), ()), "heads are"),
        (lambda: uncertainty_weighted(binary_cross_entropy(), ("a", "a")), "each once"),
        (lambda: energy_gap_regularised(focal(), ("a", "a"), 1.0, 1.0), "expected the names of two sources"),
        (lambda: energy_gap_regularised(focal(), ("a", "b"), -1.0, 1.0), "weight is -1.0"),
        (lambda: energy_gap_regularised(focal(), ("a", "b"), 1.0, 0.0), "bandwidth is 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            settings()


def test_models_and_batches_that_do_not_fit_are_named():
    three, one, batch = jnp.zeros((2, 3)), jnp.zeros((2, 1)), batch_of([0, 1])
    for objective, logits, message in [
        (binary_cross_entropy(), three, r"expected \(b, 1\). Take softmax_cross_entropy for a model with classes=3"),
        (softmax_cross_entropy(), one, "Take binary_cross_entropy for a model with classes=1"),
        (softmax_cross_entropy(class_weights=(1.0, 1.0)), three, "2 class weights for 3 classes"),
        (focal(class_weights=(1.0, 1.0, 1.0)), one, "3 class weights for 2 classes"),
        (multiloss(binary_cross_entropy()), one, "no source has a head of its own"),
        (joint(binary_cross_entropy(), {"ct": 1.0}), one, "source 'ct' has no head of its own; .*: none"),
        (energy_gap_regularised(binary_cross_entropy(), ("ct", "pet"), 1.0, 1.0), one, "no features of source 'ct'"),
    ]:
        with pytest.raises(ValueError, match=message):
            value(objective, logits, batch)
    with pytest.raises(ValueError, match="a source is called 'fused'"):
        value(multiloss(binary_cross_entropy()), one, batch, heads={"fused": one})
    survival = batch._replace(target={"time": jnp.ones(2), "event": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match="the batch has no label, only event, time"):
        value(binary_cross_entropy(), one, survival)
