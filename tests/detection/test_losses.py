from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch
from fusion_jax.detection.losses import (
    binary_cross_entropy,
    box_regression_loss,
    classification_loss,
    focal_loss,
    giou_loss,
    homoscedastic,
    l1_loss,
    mask_loss,
    objectness_loss,
    smooth_l1,
    summed,
)
from tests.helpers import assert_close

B, P, K = 3, 7, 4


def case(seed=0):
    """Float64 values of a batch of which some candidates count and some are positive."""
    rng = np.random.default_rng(seed)
    valid = rng.random((B, P)) < 0.7
    corner = rng.uniform(0, 50, (2, B, P, 2))
    return SimpleNamespace(
        logits=rng.normal(size=(B, P)) * 3,
        class_logits=rng.normal(size=(B, P, K)) * 3,
        deltas=rng.normal(size=(2, B, P, 4)),
        boxes=np.concatenate([corner, corner + rng.uniform(1, 40, (2, B, P, 2))], axis=-1),
        masks=rng.normal(size=(B, P, 5, 6)) * 2,
        mask_targets=rng.random((B, P, 5, 6)),
        labels=rng.integers(0, K, (B, P)).astype(np.int32),
        positive=(rng.random((B, P)) < 0.4) & valid,
        valid=valid,
    )


def slow_bce(z, y):
    p, y = 1 / (1 + np.exp(-z)), np.asarray(y, np.float64)
    return -y * np.log(p) - (1 - y) * np.log1p(-p)


def slow_smooth_l1(d, beta=1 / 9):
    return 0.5 * d**2 / beta if abs(d) < beta else abs(d) - 0.5 * beta


def rows(mask):
    return list(zip(*np.nonzero(mask), strict=True))


LOSSES = {
    "objectness": lambda c, a: objectness_loss(a, c.positive, c.valid),
    "boxes": lambda c, a: box_regression_loss(a, c.deltas[1], c.positive, c.valid),
    "classes": lambda c, a: classification_loss(a, c.labels, c.valid),
    "masks": lambda c, a: mask_loss(a, c.mask_targets, c.positive),
    "focal": lambda c, a: focal_loss(a, c.labels, c.positive, c.valid),
    "l1": lambda c, a: l1_loss(a, c.deltas[1], c.positive, c.valid),
    "giou": lambda c, a: giou_loss(a, c.boxes[1], c.positive, c.valid),
}


def predicted_of(c):
    """What each loss is differentiated by."""
    return {
        "objectness": c.logits,
        "boxes": c.deltas[0],
        "classes": c.class_logits,
        "masks": c.masks,
        "focal": c.class_logits,
        "l1": c.deltas[0],
        "giou": c.boxes[0],
    }


@jax.jit
def losses_of(fields):
    c = SimpleNamespace(**fields)
    return {name: loss(c, predicted_of(c)[name]) for name, loss in LOSSES.items()}


@jax.jit
def losses_and_gradients(fields, predicted):
    c = SimpleNamespace(**fields)
    return {name: jax.value_and_grad(loss, argnums=1)(c, predicted[name]) for name, loss in LOSSES.items()}


# Of single entries.


def test_smooth_l1_equals_its_definition_and_meets_at_beta():
    d = np.array([-3.0, -0.2, -1 / 9, -0.05, 0.0, 0.01, 0.11, 0.12, 2.0])
    assert_close(smooth_l1(d), np.array([slow_smooth_l1(value) for value in d]), 1e-6)
    assert_close(smooth_l1(d, beta=0.0), np.abs(d), 1e-6)
    below, above = (jnp.float32(0.5 * (1 + sign * 1e-6)) for sign in (-1, 1))
    assert abs(float(smooth_l1(above, beta=0.5) - smooth_l1(below, beta=0.5))) < 1e-5
    slope = jax.vmap(jax.grad(lambda d: smooth_l1(d, beta=0.5)))
    assert_close(slope(jnp.array([-2.0, -0.25, 0.0, 0.25, 0.5, 2.0])), np.array([-1, -0.5, 0, 0.5, 1, 1]), 1e-6)


def test_smooth_l1_refuses_a_negative_beta():
    with pytest.raises(ValueError, match=r"beta is -0\.1"):
        smooth_l1(jnp.ones(2), beta=-0.1)


def test_cross_entropy_of_single_logits_never_overflows():
    z, y = np.array([-2.0, 0.0, 0.3, 5.0]), np.array([1.0, 0.5, 0.0, 0.25])
    assert_close(binary_cross_entropy(z, y), slow_bce(z, y), 1e-6)
    assert binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0])).tolist() == [1e4, 1e4]
    gradient = jax.grad(lambda z: binary_cross_entropy(z, jnp.zeros(3)).sum())(jnp.array([-1e4, 0.0, 1e4]))
    assert gradient.tolist() == [0.0, 0.5, 1.0]


# Each against a loop in float64.


def test_two_stage_losses_equal_loops_over_the_sampled_candidates():
    c = case()
    sampled, positives = rows(c.valid), rows(c.positive)
    assert 3 < len(positives) < len(sampled) < B * P
    expected = np.mean([slow_bce(c.logits[r], c.positive[r]) for r in sampled])
    found = losses_of(vars(c))
    assert_close(found["objectness"], expected)
    difference = c.deltas[0] - c.deltas[1]
    expected = sum(slow_smooth_l1(d) for r in positives for d in difference[r]) / len(sampled)
    assert_close(found["boxes"], expected)
    softmax = np.exp(c.class_logits) / np.exp(c.class_logits).sum(axis=-1, keepdims=True)
    expected = np.mean([-np.log(softmax[r][c.labels[r]]) for r in sampled])
    assert_close(found["classes"], expected)
    expected = np.mean([slow_bce(c.masks[r], c.mask_targets[r]) for r in positives])
    assert_close(found["masks"], expected)


def slow_giou(a, b):
    inside = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inside
    hull = (np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])).prod()
    return inside / union - (hull - union) / hull


def test_one_stage_losses_equal_loops_over_the_images():
    c, alpha, gamma = case(1), 0.25, 2.0
    focal, l1, giou = [], [], []
    for image in range(B):
        positives = max(c.positive[image].sum(), 1)
        total = 0.0
        for p, k in np.ndindex(P, K):
            if c.valid[image, p]:
                right = c.positive[image, p] and c.labels[image, p] == k
                probability = 1 / (1 + np.exp(-c.class_logits[image, p, k]))
                p_t = probability if right else 1 - probability
                total += -(alpha if right else 1 - alpha) * (1 - p_t) ** gamma * np.log(p_t)
        focal.append(total / positives)
        which = c.positive[image]
        l1.append(np.abs(c.deltas[0] - c.deltas[1])[image][which].sum() / positives)
        giou.append(sum(1 - slow_giou(a, b) for a, b in c.boxes[:, image, which].swapaxes(0, 1)) / positives)
    found = losses_of(vars(c))
    assert_close(found["focal"], np.mean(focal))
    assert_close(found["l1"], np.mean(l1))
    assert_close(found["giou"], np.mean(giou))


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    c = case(2)
    target = (c.labels[..., None] == np.arange(K)) & c.positive[..., None]
    per_image = np.where(c.valid[..., None], slow_bce(c.class_logits, target), 0).sum(axis=(1, 2))
    expected = 0.5 * np.mean(per_image / np.maximum(c.positive.sum(axis=1), 1))
    found = jax.jit(partial(focal_loss, alpha=0.5, gamma=0.0))(c.class_logits, c.labels, c.positive, c.valid)
    assert_close(found, expected)


def test_focal_loss_has_finite_gradients_at_any_logit():
    z = jnp.array([[[-200.0, 200.0, 0.0, 60.0]]])
    yes = jnp.ones((1, 1), bool)
    slope = jax.jit(jax.value_and_grad(lambda z, labels: focal_loss(z, labels, yes, yes)))
    for label in range(4):
        value, gradient = slope(z, jnp.full((1, 1), label, jnp.int32))
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


# What every loss owes its caller.


def test_padded_images_and_candidates_change_nothing():
    """Images and candidates of NaN that do not count, appended."""
    c = case(3)

    def padded(values, axis):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (0, 2)
        filler = np.nan if values.dtype.kind == "f" else 0
        return np.pad(values, widths, constant_values=filler)

    for axis in (0, 1):
        pairs = ("deltas", "boxes")  # predicted and true, in front
        more = {field: padded(values, axis + (field in pairs)) for field, values in vars(c).items()}
        assert_close(losses_of(more), losses_of(vars(c)), 1e-6)


@pytest.mark.parametrize("sampled", [True, False])
def test_without_positives_losses_and_gradients_are_finite(sampled):
    """Images without boxes; and batches in which nothing counts, whose losses are exactly 0."""
    c = case(4)
    c.positive = np.zeros((B, P), bool)
    c.valid = np.full((B, P), sampled)
    predicted = {name: np.asarray(values, np.float32).copy() for name, values in predicted_of(c).items()}
    if not sampled:
        for values in predicted.values():
            values.flat[0] = np.nan
    for name, (value, gradient) in losses_and_gradients(vars(c), predicted).items():
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value), name
        assert jnp.isfinite(gradient).all(), name
        if name in ("boxes", "masks", "l1", "giou") or not sampled:
            assert value == 0, name
            assert not gradient.any(), name
        else:
            assert value > 0, name


def test_gradients_are_those_of_the_losses(x64):
    """Against central differences along one direction."""
    c = case(5)
    predicted = {name: jnp.asarray(values) for name, values in predicted_of(c).items()}
    direction = jax.tree.map(lambda a: np.random.default_rng(6).normal(size=a.shape), predicted)
    found = losses_and_gradients(vars(c), predicted)
    ahead, behind = (
        losses_and_gradients(vars(c), jax.tree.map(lambda a, d, s=sign: a + s * 1e-5 * d, predicted, direction))
        for sign in (1, -1)
    )
    for name in LOSSES:
        assert_close((found[name][1] * direction[name]).sum(), (ahead[name][0] - behind[name][0]) / 2e-5, 1e-7)


def test_half_precision_is_widened():
    c = case(6)
    half = {name: jnp.asarray(values, jnp.bfloat16) for name, values in predicted_of(c).items()}
    for name, loss in LOSSES.items():
        assert jax.eval_shape(lambda a, loss=loss: loss(c, a), half[name]).dtype == jnp.float32


# Objectives.

BATCH = Batch({}, {}, jnp.array([True, False]), {}, jnp.arange(2))
FOUND = SimpleNamespace(losses={"classes": jnp.float32(2.0), "boxes": jnp.float32(0.5), "masks": jnp.float32(0.0)})


def test_sum_adds_the_named_losses():
    loss, scalars = summed(("classes", "boxes")).loss({}, FOUND, BATCH)
    assert float(loss) == 2.5
    assert {name: float(value) for name, value in scalars.items()} == {"classes": 2.0, "boxes": 0.5}


@pytest.mark.parametrize("form", ["code", "paper"])
def test_homoscedastic_weighting_equals_its_formula(form):
    objective = homoscedastic(("classes", "boxes"), form=form)
    assert {name: float(value) for name, value in objective.init()["alpha"].items()} == {"classes": 1.0, "boxes": 1.0}
    alpha = {"classes": jnp.float32(0.7), "boxes": jnp.float32(-1.3)}
    loss, scalars = objective.loss({"alpha": alpha}, FOUND, BATCH)
    squares = np.array([0.7, 1.3]) ** 2
    log = np.log1p(squares) if form == "code" else np.log(squares)
    assert_close(loss, float((np.array([2.0, 0.5]) / (2 * squares) + log).sum()), 1e-6)
    assert set(scalars) == {"classes", "boxes", "alpha_classes", "alpha_boxes"}
    assert float(scalars["alpha_boxes"]) == pytest.approx(-1.3)


def test_gradient_of_the_uncertainty_is_that_of_the_spec():
    objective = homoscedastic(("classes",))
    gradient = jax.grad(lambda own: objective.loss(own, FOUND, BATCH)[0])({"alpha": {"classes": jnp.float32(1.4)}})
    assert_close(gradient["alpha"]["classes"], -2.0 / 1.4**3 + 2 * 1.4 / (1 + 1.4**2), 1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("value", [0.3, 2.0])
def test_uncertainties_come_to_rest_where_the_spec_says(form, value):
    objective = homoscedastic(("classes",), form=form)
    found = SimpleNamespace(losses={"classes": jnp.float32(value)})

    def step(_, own):
        gradient = jax.grad(lambda own: objective.loss(own, found, BATCH)[0])(own)
        return jax.tree.map(lambda value, slope: value - 0.01 * slope, own, gradient)

    rested = jax.jit(lambda own: jax.lax.fori_loop(0, 5000, step, own))(objective.init())
    square = float(rested["alpha"]["classes"]) ** 2
    expected = value / 2 if form == "paper" else (value + np.sqrt(value**2 + 8 * value)) / 4
    assert square == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_padding_is_worth_nothing():
    padding = BATCH._replace(valid=jnp.zeros(2, bool))
    for form in ("code", "paper"):
        objective = homoscedastic(("classes",), form=form)
        value, gradient = jax.value_and_grad(lambda own, o=objective: o.loss(own, FOUND, padding)[0])(objective.init())
        assert value == 0
        assert gradient["alpha"]["classes"] == 0


@pytest.mark.parametrize("make", [homoscedastic, summed])
def test_losses_that_a_detector_lacks_are_named(make):
    objective = make(("classes", "objectness"))
    with pytest.raises(ValueError, match="'objectness', but the detector gives boxes, classes, masks"):
        objective.loss(objective.init(), FOUND, BATCH)
    for names in ((), ("classes", "classes")):
        with pytest.raises(ValueError, match="each once"):
            make(names)


def test_an_unknown_form_is_refused(unchecked):
    with pytest.raises(ValueError, match="'code' or 'paper'"):
        homoscedastic(("classes",), form="kendall")
