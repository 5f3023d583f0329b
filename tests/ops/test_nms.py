from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from fusion_jax.ops.nms import nms, soft_nms
from tests.helpers import assert_close

P, SIZE = 300, 200
"""More boxes than are compared at a time, in neither loop a multiple."""


def slow_iou(a, b):
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return inside / (sum(areas) - inside) if inside > 0 else 0.0


def slow_nms(boxes, scores, threshold, classes=None, valid=None):
    """Plain greedy suppression in float64: rows that stay, by falling score."""
    boxes = np.asarray(boxes, np.float64)
    classes = np.zeros(len(scores)) if classes is None else classes
    takes_part = ~np.isnan(scores) if valid is None else valid & ~np.isnan(scores)
    kept = []
    for row in np.argsort(-np.asarray(scores), kind="stable"):
        rivals = [k for k in kept if classes[k] == classes[row]]
        if takes_part[row] and all(slow_iou(boxes[k], boxes[row]) <= threshold for k in rivals):
            kept.append(int(row))
    return kept


def random_case(seed, count=P, extent=60, levels=50):
    """Whole pixels, so that every overlap is exact in single precision, and scores with ties."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, extent, (count, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(-levels, levels, count) / levels).astype(np.float32)
    return boxes, scores, rng.integers(0, 3, count).astype(np.int32), rng.random(count) < 0.8


def rows_of(kept):
    """Valid rows, after checking the convention of the others."""
    rows, valid = np.asarray(kept.rows), np.asarray(kept.valid)
    assert rows.dtype == np.int32
    count = int(valid.sum())
    assert valid[:count].all()
    assert (rows[count:] == 0).all()
    return rows[:count].tolist()


suppress = jax.jit(nms, static_argnames="size")
soften = jax.jit(soft_nms, static_argnames=("size", "method"))


# Against brute force.


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_suppression_equals_brute_force(seed, threshold):
    boxes, scores, classes, valid = random_case(seed)
    expected = slow_nms(boxes, scores, threshold, classes, valid)
    found = rows_of(suppress(boxes, scores, threshold=threshold, size=P, valid=valid, classes=classes))
    assert found == expected
    assert threshold in (0.0, 1.0) or 128 < len(expected) < valid.sum()


case = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 12),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 4),
        st.integers(0, 1),
    ),
    min_size=40,
    max_size=40,
)


@given(case, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.lists(st.booleans(), min_size=40, max_size=40))
def test_suppression_equals_brute_force_with_ties_everywhere(drawn, threshold, valid):
    drawn, valid = np.array(drawn), np.array(valid)
    boxes = np.concatenate([drawn[:, :2], drawn[:, :2] + drawn[:, 2:4]], axis=1).astype(np.float32)
    scores, classes = drawn[:, 4].astype(np.float32), drawn[:, 5].astype(np.int32)
    found = suppress(boxes, scores, threshold=threshold, size=40, valid=valid, classes=classes)
    assert rows_of(found) == slow_nms(boxes, scores, threshold, classes, valid)


@pytest.mark.parametrize("falling", [True, False])
def test_a_chain_in_which_every_box_suppresses_the_next_keeps_every_other(falling):
    """The longest dependence there is: each decision waits for the one before."""
    start = np.arange(P, dtype=np.float32) * 4
    boxes = np.stack([start, np.zeros(P, np.float32), start + 7, np.ones(P, np.float32)], axis=1)
    scores = np.arange(P, dtype=np.float32) * (-1 if falling else 1)
    found = rows_of(suppress(boxes, scores, threshold=0.2, size=P))
    assert found == list(range(0, P, 2) if falling else range(P - 1, -1, -2))


def test_a_smaller_size_gives_the_first_rows():
    boxes, scores, classes, valid = random_case(2)
    whole = slow_nms(boxes, scores, 0.5, classes, valid)
    for size in (1, 5, SIZE):
        found = suppress(boxes, scores, threshold=0.5, size=size, valid=valid, classes=classes)
        assert found.rows.shape == found.valid.shape == (size,)
        assert rows_of(found) == whole[:size]


def test_overlap_of_exactly_the_threshold_stays():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert rows_of(nms(boxes, scores, threshold=0.5, size=2)) == [0, 1]
    assert rows_of(nms(boxes, scores, threshold=np.nextafter(np.float32(0.5), np.float32(0)), size=2)) == [0]


# Classes.


def test_suppression_by_class_is_suppression_of_each_class_also_far_from_the_origin():
    boxes, scores, classes, _ = random_case(3, extent=30)
    boxes = boxes + np.float32(2**22)  # half a pixel is all that is left: an offset by class would round them together
    found = rows_of(suppress(boxes, scores, threshold=0.3, size=P, classes=classes))
    for one in range(3):
        rows = np.flatnonzero(classes == one)
        assert [r for r in found if classes[r] == one] == rows[slow_nms(boxes[rows], scores[rows], 0.3)].tolist()
    assert found != slow_nms(boxes, scores, 0.3)


def test_a_class_number_does_not_matter_only_its_equality():
    boxes, scores, classes, _ = random_case(4)
    renamed = np.array([-(2**31), 0, 2**31 - 1])[classes].astype(np.int32)
    a, b = (suppress(boxes, scores, threshold=0.3, size=P, classes=c) for c in (classes, renamed))
    assert rows_of(a) == rows_of(b)


# Padding, ties and broken rows.


def test_rows_that_are_not_valid_change_nothing_whatever_they_hold():
    boxes, scores, classes, _ = random_case(5, count=P - 60)
    expected = rows_of(suppress(boxes, scores, threshold=0.5, size=SIZE, classes=classes))
    for junk_box, junk_score in ((0.0, 9.0), (np.nan, 9.0), (np.inf, np.nan), (1e30, np.inf)):
        padded = np.concatenate([boxes, np.full((60, 4), junk_box, np.float32)])
        padded_scores = np.concatenate([scores, np.full(60, junk_score, np.float32)])
        valid, classes_ = np.arange(P) < P - 60, np.concatenate([classes, np.zeros(60, np.int32)])
        found = suppress(padded, padded_scores, threshold=0.5, size=SIZE, valid=valid, classes=classes_)
        assert rows_of(found) == expected


def test_equal_scores_keep_the_lower_row_first():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [20, 0, 29, 9], [20, 0, 29, 9]], np.float32)
    for scores in ([0.5] * 4, [0.0, -0.0, 0.0, -0.0], [np.inf] * 4, [-np.inf] * 4):
        assert rows_of(nms(boxes, np.array(scores, np.float32), threshold=0.5, size=4)) == [0, 2]


def test_nan_scores_and_broken_boxes_never_stay_and_suppress_nothing():
    boxes = np.array([[0, 0, 9, 9]] * 5, np.float32)
    boxes[2, 1], boxes[3, 2] = np.nan, np.inf
    scores = np.array([0.1, np.nan, 0.9, 0.8, 0.2], np.float32)
    assert rows_of(nms(boxes, scores, threshold=0.5, size=5)) == [4]
    assert rows_of(nms(boxes, np.full(5, np.nan, np.float32), threshold=0.5, size=5)) == []


def test_degenerate_boxes_stay():
    boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [9, 9, 0, 0], [0, 0, 9, 9]], np.float32)
    scores = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    assert rows_of(nms(boxes, scores, threshold=0.0, size=4)) == [0, 1, 2, 3]


def test_scores_below_their_threshold_take_no_part():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]], np.float32)
    scores = np.array([0.05, 0.5, np.nextafter(np.float32(0.05), np.float32(0))], np.float32)
    assert rows_of(nms(boxes, scores, threshold=0.95, size=3, score_threshold=np.float32(0.05))) == [1, 0]
    assert rows_of(nms(boxes, scores, threshold=0.95, size=3, score_threshold=0.6)) == []


@pytest.mark.parametrize("method", [partial(nms, threshold=0.5), soft_nms])
def test_no_boxes_give_no_rows(method):
    found = method(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), size=3)
    assert rows_of(found) == []
    assert found.rows.shape == (3,)
    nothing_valid = method(np.ones((4, 4), np.float32), np.ones(4, np.float32), size=3, valid=np.zeros(4, bool))
    assert rows_of(nothing_valid) == []


# Transformations.


def test_vmap_over_images_equals_a_loop():
    """Images of different depth: loops that run together must not disturb those that are done."""
    cases = [random_case(seed, extent=extent) for seed, extent in ((6, 60), (7, 4), (8, 200))]
    boxes, scores, classes, valid = (np.stack(part) for part in zip(*cases, strict=True))
    valid[1] = np.arange(P) < 7
    together = jax.jit(jax.vmap(lambda b, s, c, v: nms(b, s, threshold=0.4, size=SIZE, classes=c, valid=v)))(
        boxes, scores, classes, valid
    )
    for image in range(3):
        one = jax.tree.map(lambda a, image=image: a[image], together)
        expected = slow_nms(boxes[image], scores[image], 0.4, classes[image], valid[image])[:SIZE]
        assert rows_of(one) == expected


def test_jit_equals_eager():
    boxes, scores, classes, valid = random_case(9)
    settings = {"size": 40, "valid": valid, "classes": classes}
    assert_close(nms(boxes, scores, threshold=0.5, **settings), suppress(boxes, scores, threshold=0.5, **settings), 0.0)
    positive = np.abs(scores)
    assert_close(soft_nms(boxes, positive, **settings), soften(boxes, positive, **settings), 1e-6)


def test_one_shape_is_traced_once():
    traces = []

    @jax.jit
    def counted(boxes, scores, threshold):
        traces.append(1)
        return nms(boxes, scores, threshold=threshold, size=SIZE)

    for seed in range(3):
        boxes, scores, _, _ = random_case(seed)
        counted(boxes, scores, np.float32(0.1 * seed))
    assert len(traces) == 1


def test_images_sharded_over_devices_give_the_same():
    cases = [random_case(seed) for seed in (10, 11)]
    boxes, scores, _, _ = (np.stack(part) for part in zip(*cases, strict=True))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.device_put((boxes, scores), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    found = jax.jit(jax.vmap(lambda b, s: nms(b, s, threshold=0.5, size=SIZE)))(*shards)
    for image in range(2):
        one = jax.tree.map(lambda a, image=image: a[image], found)
        assert rows_of(one) == slow_nms(boxes[image], scores[image], 0.5)[:SIZE]


def test_a_loss_on_the_boxes_that_stay_is_differentiable():
    boxes, scores, _, _ = random_case(12)

    def loss(boxes, scores):
        kept = nms(boxes, scores, threshold=0.5, size=SIZE)
        return jnp.sum(jnp.where(kept.valid, scores[kept.rows], 0)) + jnp.sum(boxes[kept.rows])

    in_boxes, in_scores = jax.jit(jax.grad(loss, argnums=(0, 1)))(boxes, scores)
    staying = np.zeros(P)
    staying[slow_nms(boxes, scores, 0.5)[:SIZE]] = 1
    assert_close(in_scores, staying, 0.0)
    assert np.isfinite(np.asarray(in_boxes)).all()


def test_half_and_double_precision_work():
    boxes, scores, classes, _ = random_case(13)
    half = jnp.asarray(boxes, jnp.bfloat16), jnp.asarray(scores, jnp.bfloat16)
    expected = slow_nms(np.asarray(half[0]), np.asarray(half[1], np.float64), 0.5, classes)
    assert rows_of(suppress(*half, threshold=0.5, size=P, classes=classes)) == expected
    with jax.enable_x64(True):
        fine = boxes.astype(np.float64) + 1e-9 * np.random.default_rng(0).normal(size=(P, 4))
        fine_scores = scores + 1e-12 * np.arange(P)
        found = jax.jit(partial(nms, threshold=0.5, size=P))(fine, fine_scores, classes=classes)
        assert rows_of(found) == slow_nms(fine, fine_scores, 0.5, classes)
        assert soft_nms(fine, np.abs(fine_scores), size=3).score.dtype == np.float64


# Soft suppression.


def slow_soft_nms(boxes, scores, size, method, *, sigma=0.5, threshold=0.3, classes=None, valid=None, lowest=-np.inf):
    scores = np.array(scores, np.float64)
    classes = np.zeros(len(scores)) if classes is None else classes
    left = [r for r in range(len(scores)) if valid is None or valid[r]]
    picked = []
    while left and len(picked) < size:
        best = max(left, key=lambda r: (scores[r], -r))
        if scores[best] < lowest:
            break
        left.remove(best)
        picked.append((best, scores[best]))
        for row in left:
            overlap = slow_iou(boxes[best].astype(np.float64), boxes[row].astype(np.float64))
            if classes[row] == classes[best]:
                linear = 1 - overlap if overlap >= threshold else 1.0
                scores[row] *= np.exp(-(overlap**2) / sigma) if method == "gaussian" else linear
    return [row for row, _ in picked], np.array([score for _, score in picked])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_soft_suppression_equals_brute_force(method):
    boxes, scores, classes, valid = random_case(20, count=60, extent=150)
    boxes, scores = boxes.astype(np.float64), np.abs(scores.astype(np.float64))
    for settings in ({}, {"classes": classes, "valid": valid}):
        rows, expected = slow_soft_nms(boxes, scores, 50, method, **settings)
        found = soften(boxes, scores, size=50, method=method, **settings)
        assert rows_of(found) == rows
        assert_close(found.score[: len(rows)], expected, 1e-12)
        assert (np.diff(found.score) <= 0).all()
    rows, expected = slow_soft_nms(boxes, scores, 50, method, sigma=0.2, threshold=0.6, lowest=0.3)
    found = soften(boxes, scores, size=50, method=method, sigma=0.2, threshold=0.6, score_threshold=0.3)
    assert rows_of(found) == rows
    assert 5 < len(rows) < 50
    assert_close(found.score, np.concatenate([expected, np.zeros(50 - len(rows))]), 1e-12)


def test_a_narrow_gaussian_is_hard_suppression_of_all_that_touch():
    boxes, scores, classes, _ = random_case(21)
    scores = np.abs(scores) + np.float32(0.01)
    soft = soften(boxes, scores, size=P, method="gaussian", sigma=1e-9, classes=classes, score_threshold=1e-3)
    hard = suppress(boxes, scores, threshold=0.0, size=P, classes=classes)
    # Overlaps of a few pixels in thousands still survive a Gaussian of this width in single precision: none here.
    assert rows_of(soft) == rows_of(hard)


def test_rows_that_are_not_valid_leave_soft_scores_and_their_gradients_alone():
    boxes, scores, _, _ = random_case(22, count=40, extent=150)
    scores = np.abs(scores)

    @jax.jit
    def loss(boxes, scores):
        return jnp.sum(jnp.square(soft_nms(boxes, scores, size=20, valid=jnp.arange(len(scores)) < 40).score))

    padded = np.concatenate([boxes, np.full((9, 4), np.nan, np.float32)]), np.append(scores, [np.nan] * 9).astype("f4")
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(boxes, scores)
    padded_value, padded_gradients = jax.value_and_grad(loss, argnums=(0, 1))(*padded)
    assert_close(padded_value, value, 1e-6)
    for found, expected in zip(padded_gradients, gradients, strict=True):
        assert_close(found[:40], expected, 1e-5)
        assert not np.asarray(found[40:]).any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_gradients_of_soft_scores_equal_finite_differences(method):
    rng = np.random.default_rng(23)
    corner = rng.uniform(0, 20, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (6, 2))], axis=1)
    scores = rng.uniform(0.2, 1, 6)
    scored = jax.jit(lambda b, s: soft_nms(b, s, size=6, method=method, threshold=0.1).score)
    check_grads(scored, (boxes, scores), order=2, modes=("fwd", "rev"), rtol=1e-4)


# Errors.


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_say_what_is_wrong():
    boxes, scores = np.ones((2, 4), np.float32), np.ones(2, np.float32)
    with pytest.raises(ValueError, match="threshold is 70; expected an intersection over union"):
        nms(boxes, scores, threshold=70, size=2)
    with pytest.raises(ValueError, match="threshold is nan"):
        soft_nms(boxes, scores, threshold=np.nan, size=2)
    with pytest.raises(ValueError, match="size is 0"):
        nms(boxes, scores, threshold=0.5, size=0)
    with pytest.raises(TypeError, match=r"size is 2\.5"):
        soft_nms(boxes, scores, size=2.5)
    with pytest.raises(ValueError, match="method is 'hard'; expected 'gaussian' or 'linear'"):
        soft_nms(boxes, scores, size=2, method="hard")
    with pytest.raises(ValueError, match=r"sigma is 0\.0; expected a positive width"):
        soft_nms(boxes, scores, size=2, sigma=0.0)
