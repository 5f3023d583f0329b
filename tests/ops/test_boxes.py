from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from fusion_jax.ops.boxes import (
    box_area,
    box_giou,
    box_iobb,
    box_iou,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
)
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
HEAD = (10.0, 10.0, 5.0, 5.0)
OVERLAPS = (box_iou, box_iobb, box_giou)
DEGENERATE = np.array([[3.0, 3.0, 3.0, 9.0], [3.0, 3.0, 9.0, 3.0], [9.0, 9.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])


def random_boxes(*shape, rng=RNG, extent=60.0):
    corner = rng.uniform(0, 100, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, extent, (*shape, 2))], axis=-1)


def slow_overlaps(a, b):
    """IoU, IoBB and GIoU of every pair, in Python."""
    found = np.zeros((3, len(a), len(b)))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            inside = max(0, min(p[2], q[2]) - max(p[0], q[0])) * max(0, min(p[3], q[3]) - max(p[1], q[1]))
            area_p, area_q = (p[2] - p[0]) * (p[3] - p[1]), (q[2] - q[0]) * (q[3] - q[1])
            hull = (max(p[2], q[2]) - min(p[0], q[0])) * (max(p[3], q[3]) - min(p[1], q[1]))
            union = area_p + area_q - inside
            found[:, i, j] = inside / union, inside / area_p, inside / union - (hull - union) / hull
    return found


coordinate = st.integers(0, 40).map(float)
box = st.tuples(coordinate, coordinate, st.integers(1, 30), st.integers(1, 30)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)
some_boxes = st.lists(box, min_size=3, max_size=3).map(np.stack)
jitted = jax.jit(lambda a, b: jnp.stack([overlap(a, b) for overlap in OVERLAPS]))
codec = jax.jit(lambda b, a: decode_boxes(encode_boxes(b, a, weights=HEAD), a, weights=HEAD))


# Overlaps.


@pytest.mark.usefixtures("x64")
def test_overlaps_equal_brute_force():
    a, b = random_boxes(7), random_boxes(5)
    assert_close(jitted(a, b), slow_overlaps(a, b), 1e-14)
    assert_close(box_area(a), (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]), 1e-15)


@pytest.mark.usefixtures("x64")
@given(some_boxes, some_boxes)
def test_algebra_of_overlaps(a, b):
    iou, iobb, giou = np.asarray(jitted(a, b))
    reverse_iou, reverse_iobb, reverse_giou = np.asarray(jitted(b, a))
    assert (iou == reverse_iou.T).all()
    assert_close(giou, reverse_giou.T, 1e-15)
    assert (iou >= 0).all()
    assert (iou <= iobb).all()
    assert (iobb <= 1).all()
    assert (giou <= iou + 1e-15).all()
    assert (giou > -1).all()
    assert_close(iobb * np.asarray(box_area(a))[:, None], (reverse_iobb * np.asarray(box_area(b))[:, None]).T, 1e-14)
    alone = np.asarray(jitted(a, a))
    assert (np.diagonal(alone, axis1=1, axis2=2) == 1).all()


@pytest.mark.usefixtures("x64")
@given(some_boxes, st.lists(st.floats(0, 0.45), min_size=4, max_size=4), st.integers(-20, 20))
def test_a_box_inside_the_truth_has_iobb_one_and_shifts_change_nothing(truth, margins, shift):
    extent = truth[:, [2, 3, 2, 3]] - truth[:, [0, 1, 0, 1]]
    inside = truth + np.array([1, 1, -1, -1]) * np.array(margins) * extent
    found = np.asarray(box_iobb(inside, truth))
    assert_close(np.diag(found), np.ones(3), 1e-12)
    iou = np.asarray(box_iou(inside, truth))
    assert_close(np.diag(iou), np.asarray(box_area(inside)) / np.asarray(box_area(truth)), 1e-12)
    assert_close(jitted(inside + shift, truth + shift), jitted(inside, truth), 1e-10)


def test_iobb_of_a_box_around_the_truth_is_the_ratio_of_areas_and_of_a_distant_one_zero():
    truth = np.array([[10.0, 10.0, 20.0, 30.0]], np.float32)
    around = np.array([[0.0, 0.0, 40.0, 40.0], [21.0, 10.0, 30.0, 30.0], [20.0, 10.0, 30.0, 30.0]], np.float32)
    assert box_iobb(around, truth)[:, 0].tolist() == [200 / 1600, 0.0, 0.0]


def test_leading_axes_are_pairs_of_stacks():
    a, b = random_boxes(2, 3, 4).astype(np.float32), random_boxes(2, 3, 5).astype(np.float32)
    for overlap in OVERLAPS:
        assert_close(overlap(a, b), jax.vmap(jax.vmap(overlap))(a, b), 1e-6)
        assert overlap(a, b).shape == (2, 3, 4, 5)


def test_degenerate_boxes_have_no_area_and_no_overlap():
    boxes, whole = DEGENERATE.astype(np.float32), np.array([[0.0, 0.0, 50.0, 50.0]], np.float32)
    assert box_area(boxes).tolist() == [0.0] * 4
    for overlap in (box_iou, box_iobb):
        for a, b in ((boxes, whole), (whole, boxes), (boxes, boxes)):
            assert not np.asarray(overlap(a, b)).any()
    assert np.isfinite(np.asarray(box_giou(boxes, boxes))).all()
    assert (np.asarray(box_giou(whole, boxes)) == 0).all()  # the hull is the whole, the union too


def test_gradients_through_degenerate_boxes_are_finite():
    boxes = np.concatenate([DEGENERATE, random_boxes(2)]).astype(np.float32)

    def everything(a, b):
        overlaps = sum(jnp.sum(jnp.sin(overlap(a, b))) for overlap in OVERLAPS)
        return overlaps + jnp.sum(jnp.sin(encode_boxes(a, b))) + jnp.sum(decode_boxes(encode_boxes(a, b), b))

    for gradient in jax.jit(jax.grad(everything, argnums=(0, 1)))(boxes, boxes[::-1].copy()):
        assert np.isfinite(np.asarray(gradient)).all()


def test_nan_coordinates_stay_visible():
    broken = np.array([[np.nan, 0.0, 5.0, 5.0]], np.float32)
    sound = np.array([[0.0, 0.0, 5.0, 5.0]], np.float32)
    for overlap in OVERLAPS:
        assert np.isnan(overlap(broken, sound)).all()
    assert np.isnan(encode_boxes(broken, sound)[0, [0, 2]]).all()
    assert np.isnan(encode_boxes(sound, broken)[0, [0, 2]]).all()
    assert np.isnan(clip_boxes(broken, 4, 4)[0, 0])


def test_no_boxes_give_empty_results():
    none, some = np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32)
    for overlap in OVERLAPS:
        assert overlap(none, some).shape == (0, 3)
        assert overlap(some, none).shape == (3, 0)
    for result in (
        encode_boxes(none, none),
        decode_boxes(none, none),
        clip_boxes(none, 5, 5),
        convert_boxes(none, "xyxy", "xywh"),
    ):
        assert result.shape == (0, 4)
    assert box_area(none).shape == (0,)


# Coding.


@pytest.mark.usefixtures("x64")
@given(some_boxes, some_boxes)
def test_decoding_undoes_encoding(boxes, anchors):
    assert_close(codec(boxes, anchors), boxes, 1e-13)
    assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, 1e-13)


@pytest.mark.usefixtures("x64")
def test_deltas_equal_their_formula_and_weights_scale_them():
    boxes, anchors = random_boxes(6), random_boxes(6)
    extent, anchor_extent = (b[:, 2:] - b[:, :2] for b in (boxes, anchors))
    centre, anchor_centre = ((b[:, 2:] + b[:, :2]) / 2 for b in (boxes, anchors))
    deltas = np.concatenate([(centre - anchor_centre) / anchor_extent, np.log(extent / anchor_extent)], axis=1)
    assert_close(encode_boxes(boxes, anchors), deltas, 1e-14)
    assert_close(encode_boxes(boxes, anchors, weights=(1.0, 2.0, 3.0, 4.0)), deltas * [1, 2, 3, 4], 1e-14)
    assert_close(decode_boxes(deltas * [1, 2, 3, 4], anchors, weights=(1.0, 2.0, 3.0, 4.0)), boxes, 1e-13)


def test_growth_is_limited_at_decoding_but_shrinking_is_not():
    anchor = np.array([0.0, 0.0, 16.0, 16.0], np.float32)
    deltas = np.array([0.0, 0.0, 90.0, -3.0], np.float32)
    x0, y0, x1, y1 = np.asarray(decode_boxes(deltas, anchor))
    assert_close(x1 - x0, np.float32(1000.0), 1e-6)
    assert_close(y1 - y0, 16 * np.exp(np.float32(-3.0)), 1e-5)
    assert np.asarray(jax.grad(lambda d: decode_boxes(d, anchor)[2])(deltas))[2] == 0
    x0, _, x1, _ = np.asarray(decode_boxes(deltas, anchor, limit=1.0))
    assert_close(x1 - x0, 16 * np.exp(np.float32(1.0)), 1e-6)


@pytest.mark.usefixtures("x64")
def test_degenerate_extents_are_coded_as_one_pixel():
    anchor = np.array([[0.0, 0.0, 4.0, 4.0]] * 4)
    deltas = np.asarray(encode_boxes(DEGENERATE, anchor))
    assert_close(deltas[0], np.array([1 / 4, 4 / 4, np.log(1 / 4), np.log(6 / 4)]), 1e-14)
    assert_close(deltas[2], np.array([4 / 4, 4 / 4, np.log(1 / 4), np.log(1 / 4)]), 1e-14)
    boxes = random_boxes(4)
    assert_close(codec(boxes, DEGENERATE), boxes, 1e-13)


@pytest.mark.usefixtures("x64")
def test_gradients_equal_finite_differences():
    a, b = random_boxes(3), random_boxes(3)
    check_grads(jitted, (a, b), order=2, modes=("fwd", "rev"), rtol=1e-4)
    check_grads(jax.jit(encode_boxes), (a, b), order=2, modes=("fwd", "rev"), rtol=1e-4)
    check_grads(jax.jit(decode_boxes), (RNG.normal(size=(3, 4)), b), order=2, modes=("fwd", "rev"), rtol=1e-4)


# Clipping and conventions.


@pytest.mark.usefixtures("x64")
def test_clipping_equals_numpy_also_with_traced_sizes():
    boxes = random_boxes(4, 6) - 30
    expected = np.clip(boxes, 0, [50.0, 40.0, 50.0, 40.0])
    assert_close(clip_boxes(boxes, 40, 50), expected, 0.0)
    assert_close(jax.jit(clip_boxes)(boxes, np.int32(40), 50.0), expected, 0.0)
    sizes = np.array([40.0] * 4), np.array([50.0] * 4)
    assert_close(jax.vmap(clip_boxes)(boxes, *sizes), expected, 0.0)
    assert not np.asarray(box_area(clip_boxes(np.array([60.0, 60.0, 70.0, 70.0]), 40, 50))).any()


@pytest.mark.usefixtures("x64")
@given(some_boxes, st.sampled_from(["xyxy", "xywh", "cxcywh"]), st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_conversions_undo_one_another(boxes, source, target):
    there = convert_boxes(boxes, source, target)
    assert_close(convert_boxes(there, target, source), boxes, 1e-13)
    through = convert_boxes(convert_boxes(boxes, source, "xyxy"), "xyxy", target)
    assert_close(there, through, 1e-13)


def test_conversions_mean_what_they_say():
    corners = np.array([[2.0, 4.0, 6.0, 5.0]], np.float32)
    assert convert_boxes(corners, "xyxy", "xywh").tolist() == [[2.0, 4.0, 4.0, 1.0]]
    assert convert_boxes(corners, "xyxy", "cxcywh").tolist() == [[4.0, 4.5, 4.0, 1.0]]
    assert convert_boxes(np.array([4.0, 4.5, 4.0, 1.0], np.float32), "cxcywh", "xywh").tolist() == [2.0, 4.0, 4.0, 1.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("names", [("xyxy", "yxyx"), ("corners", "xyxy")])
def test_an_unknown_convention_says_what_there_is(names):
    with pytest.raises(ValueError, match="expected 'xyxy', 'xywh' or 'cxcywh'"):
        convert_boxes(np.ones(4, np.float32), *names)


# Dtypes and devices.


def test_jit_equals_eager():
    a, b = random_boxes(6).astype(np.float32), random_boxes(6).astype(np.float32)
    for function in (*OVERLAPS, encode_boxes, decode_boxes, partial(convert_boxes, source="xyxy", target="cxcywh")):
        arguments = (a,) if isinstance(function, partial) else (a, b)
        assert_close(jax.jit(function)(*arguments), function(*arguments), 1e-6)


def test_half_precision_is_widened_and_double_stays():
    boxes = jnp.asarray(np.round(random_boxes(3)), jnp.bfloat16)
    for overlap in OVERLAPS:
        assert overlap(boxes, boxes).dtype == jnp.float32
    wide = np.asarray(boxes, np.float32)
    assert_close(encode_boxes(boxes, boxes[::-1]), encode_boxes(wide, wide[::-1].copy()), 0.0)
    with jax.enable_x64(True):
        boxes = random_boxes(3)
        results = [
            box_iou(boxes, boxes),
            encode_boxes(boxes, boxes),
            decode_boxes(boxes, boxes),
            clip_boxes(boxes, 5, 5),
        ]
        assert {r.dtype for r in results} == {np.dtype("float64")}


def test_overlaps_of_boxes_sharded_over_devices_are_the_same():
    a, b = random_boxes(8).astype(np.float32), random_boxes(5).astype(np.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.device_put(a, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert_close(jitted(shard, b), jitted(a, b), 1e-6)
