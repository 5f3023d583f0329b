from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.detection.anchors import Anchors, anchors_per_level, make_anchors
from fusion_jax.detection.postprocessing import paste_masks, postprocess, postprocess_anchors
from fusion_jax.detection.proposals import Proposals
from tests.helpers import assert_close

IMAGE = (80, 100)
P, K = 30, 3
DESIGN = Anchors(((16.0,), (40.0,)), (0.5, 2.0), (16, 32))
LEVELS = anchors_per_level(DESIGN, *IMAGE)

found_by = jax.jit(partial(postprocess, image_size=IMAGE))
most_by = jax.jit(partial(postprocess, image_size=IMAGE, score_threshold=0.25, overlap=0.6, size=60))
found_by_anchors = jax.jit(partial(postprocess_anchors, image_size=IMAGE, levels=LEVELS, before=40))


def head(seed, spread=2.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (P, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (P, 2))], axis=1).astype(np.float32)
    logits = (spread * rng.normal(size=(P, K + 1))).astype(np.float32)
    deltas = rng.normal(size=(P, K + 1, 4)).astype(np.float32)
    return logits, deltas, Proposals(jnp.asarray(boxes), jnp.zeros(P), jnp.asarray(rng.random(P) < 0.9))


def slow_iou(a, b):
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return inside / (sum(areas) - inside) if inside > 0 else 0.0


def slow_decode(delta, box, weights):
    dx, dy, dw, dh = (float(d) / w for d, w in zip(delta, weights, strict=True))
    x0, y0, x1, y1 = map(float, box)
    x, y = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
    w, h = (x1 - x0) * np.exp(min(dw, np.log(62.5))), (y1 - y0) * np.exp(min(dh, np.log(62.5)))
    return np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [IMAGE[1], IMAGE[0], IMAGE[1], IMAGE[0]])


def slow_best(candidates, overlap, size):
    """(score, label, source, box) that stay, class by class, by falling score."""
    kept = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate[0]):
        if all(k[1] != candidate[1] or slow_iou(k[3], candidate[3]) <= overlap for k in kept):
            kept.append(candidate)
    return kept[:size]


def slow_postprocess(logits, deltas, proposals, threshold=0.05, overlap=0.2, size=10):
    candidates = []
    for p in range(P):
        odds = np.exp(logits[p].astype(np.float64))
        for k in range(1, K + 1):
            box = slow_decode(deltas[p, k], proposals.boxes[p], (10, 10, 5, 5))
            score = odds[k] / odds.sum()
            if proposals.valid[p] and score > threshold and (box[2:] - box[:2]).min() >= 0.01:
                candidates.append((score, k - 1, p, box))
    return slow_best(candidates, overlap, size)


def check(found, expected, size):
    count = len(expected)
    assert found.boxes.shape == (size, 4)
    assert found.valid.tolist() == [place < count for place in range(size)]
    assert found.label.tolist() == [entry[1] for entry in expected] + [0] * (size - count)
    assert found.source.tolist() == [entry[2] for entry in expected] + [0] * (size - count)
    assert found.label.dtype == found.source.dtype == jnp.int32
    assert_close(found.score[:count], np.array([entry[0] for entry in expected]), 1e-5)
    assert_close(found.boxes[:count], np.array([entry[3] for entry in expected]).reshape(-1, 4), 1e-5)
    assert not found.boxes[count:].any()
    assert not found.score[count:].any()


# Two stages.


@pytest.mark.parametrize("seed", range(3))
def test_detections_equal_a_loop_over_proposals_and_classes(seed):
    logits, deltas, proposals = head(seed)
    expected = slow_postprocess(logits, deltas, proposals)
    assert len(expected) == 10
    check(found_by(logits, deltas, proposals), expected, 10)


def test_thresholds_and_number_of_detections_are_the_callers():
    case = head(3)
    expected = slow_postprocess(*case, threshold=0.25, overlap=0.6, size=60)
    assert 10 < len(expected) < 60
    check(most_by(*case), expected, 60)


def test_one_proposal_can_be_found_in_two_classes():
    _, _, proposals = head(3)
    one = proposals._replace(valid=jnp.arange(P) == 4)
    found = found_by(np.zeros((P, K + 1), np.float32), np.zeros((P, K + 1, 4), np.float32), one)
    assert found.valid.sum() == K
    assert sorted(found.label[:K].tolist()) == [0, 1, 2]
    assert found.source[:K].tolist() == [4] * K
    assert_close(found.score[:K], np.full(K, 0.25), 1e-6)


def test_a_score_of_exactly_the_threshold_is_no_detection():
    _, deltas, proposals = head(3)
    assert not most_by(np.zeros((P, K + 1), np.float32), deltas, proposals).valid.any()


def test_padded_and_broken_proposals_are_never_found():
    logits, deltas, proposals = head(4)
    certain, out = logits.copy(), ~np.asarray(proposals.valid)
    certain[out] = [0, 9, 9, 9]
    assert out.any()
    check(found_by(certain, deltas, proposals), slow_postprocess(logits, deltas, proposals), 10)
    broken = logits.copy()
    broken[:10] = np.nan
    rest = proposals._replace(valid=proposals.valid & (jnp.arange(P) >= 10))
    check(found_by(broken, deltas, proposals), slow_postprocess(logits, deltas, rest), 10)
    nothing = found_by(np.full_like(logits, np.nan), deltas, proposals)
    assert not nothing.valid.any()
    assert np.isfinite(nothing.boxes).all()


def test_without_proposals_there_are_no_detections():
    logits, deltas, proposals = head(5)
    found = found_by(logits, deltas, proposals._replace(valid=jnp.zeros(P, bool)))
    check(found, [], 10)


# One stage.


@pytest.mark.parametrize("seed", range(2))
def test_one_stage_detections_equal_a_loop_over_anchors_and_classes(seed):
    rng = np.random.default_rng(seed)
    anchors = make_anchors(DESIGN, *IMAGE)
    logits = (2 * rng.normal(size=(len(anchors), K)) - 1).astype(np.float32)
    deltas = (0.3 * rng.normal(size=(len(anchors), 4))).astype(np.float32)
    logits[3], deltas[3] = np.nan, np.nan
    candidates, start = [], 0
    for count in LEVELS:
        pairs = [(a, k) for a in range(start, start + count) for k in range(K) if not np.isnan(logits[a, k])]
        pairs.sort(key=lambda pair: -logits[pair])
        for a, k in pairs[:40]:
            score = 1 / (1 + np.exp(-float(logits[a, k])))
            box = slow_decode(deltas[a], anchors[a], (1, 1, 1, 1))
            if score > 0.05 and (box[2:] - box[:2]).min() >= 0.01:
                candidates.append((score, k, a, box))
        start += count
    assert {LEVELS[0] > entry[2] for entry in candidates} == {True, False}
    check(found_by_anchors(logits, deltas, anchors), slow_best(candidates, 0.5, 10), 10)


def test_levels_must_add_up_to_the_anchors():
    with pytest.raises(ValueError, match=r"levels \(2, 3\) have 5 anchors; expected 4"):
        postprocess_anchors(jnp.zeros((4, 1)), jnp.zeros((4, 4)), jnp.ones((4, 4)), IMAGE, levels=(2, 3))


# Masks.


def test_a_full_mask_fills_its_box():
    boxes = np.array([[3.0, 2.0, 13.0, 8.0], [-4.0, -4.0, 4.0, 4.0], [5.0, 5.0, 5.0, 9.0], [2.5, 1.0, 6.5, 3.0]])
    found = paste_masks(np.ones((4, 28, 28)), boxes, 12, 16)
    assert found.shape == (4, 12, 16)
    assert found.dtype == np.float32
    expected = np.zeros((4, 12, 16), bool)
    expected[0, 2:8, 3:13] = True
    expected[1, :4, :4] = True
    np.testing.assert_array_equal(found[:3] > 0.5, expected[:3])
    # Half a pixel: the centre of column 2 lies on the edge of the last box, at exactly one half.
    assert found[3, 1].round(3).tolist()[:8] == [0, 0, 0.5, 1, 1, 1, 0.5, 0]


def test_a_linear_mask_is_linear_in_the_image():
    """Inside the outermost centres of its cells: interpolation is exact there."""
    ramp = np.broadcast_to((np.arange(20) + 0.5) / 20, (20, 20))
    found = paste_masks(ramp[None], np.array([[10.0, 10.0, 60.0, 50.0]]), 64, 64)[0]
    x = (np.arange(64) + 0.5 - 10) / 50
    assert_close(found[20, 12:58], x[12:58], 1e-6)
    assert np.ptp(found[12:48, 30]) < 1e-6


def test_a_mask_at_its_own_size_is_unchanged():
    mask = np.random.default_rng(0).random((1, 7, 9))
    found = paste_masks(mask, np.array([[2.0, 3.0, 11.0, 10.0]]), 14, 15)[0]
    assert_close(found[3:10, 2:11], mask[0], 1e-6)
    assert found.sum() == pytest.approx(mask.sum(), rel=1e-5)
