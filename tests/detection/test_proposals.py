from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.detection.anchors import Anchors, anchors_per_level, make_anchors
from fusion_jax.detection.proposals import Proposals, add_truth, propose
from tests.helpers import assert_close

IMAGE = (96, 128)
DESIGN = Anchors(((16.0, 24.0), (40.0, 64.0)), (0.5, 1.0, 2.0), (16, 32))
LEVELS = anchors_per_level(DESIGN, *IMAGE)
SETTINGS = {"levels": LEVELS, "before": 60, "after": 50, "overlap": 0.3}

found_by = jax.jit(partial(propose, image_size=IMAGE, **SETTINGS))


def outputs(seed):
    rng = np.random.default_rng(seed)
    anchors = make_anchors(DESIGN, *IMAGE)
    scores = rng.permutation(len(anchors)).astype(np.float32) / 10 - 5
    return scores, (0.3 * rng.normal(size=(len(anchors), 4))).astype(np.float32), anchors


def slow_iou(a, b):
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return inside / (sum(areas) - inside) if inside > 0 else 0.0


def slow_propose(scores, deltas, anchors, levels, before, after, overlap, min_side=1e-3):
    """One anchor at a time, in float64."""
    height, width = IMAGE
    candidates = []
    start = 0
    for level, count in enumerate(levels):
        ranked = sorted(range(start, start + count), key=lambda row: -scores[row])
        for row in ranked[:before]:
            x0, y0, x1, y1 = map(float, anchors[row])
            dx, dy, dw, dh = map(float, deltas[row])
            x, y = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
            w, h = ((x1 - x0) * np.exp(min(dw, np.log(62.5))), (y1 - y0) * np.exp(min(dh, np.log(62.5))))
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [width, height, width, height])
            if min(box[2] - box[0], box[3] - box[1]) >= min_side:
                candidates.append((float(scores[row]), level, box))
        start += count
    kept = []
    for score, level, box in sorted(candidates, key=lambda candidate: -candidate[0]):
        if all(other != level or slow_iou(rival, box) <= overlap for _, other, rival in kept):
            kept.append((score, level, box))
    return kept[:after]


def check(found, expected, after):
    assert found.boxes.shape == (after, 4)
    assert found.valid.tolist() == [place < len(expected) for place in range(after)]
    assert_close(found.boxes[: len(expected)], np.array([box for _, _, box in expected]), 1e-5)
    assert_close(found.score[: len(expected)], np.array([score for score, _, _ in expected]), 1e-6)
    assert not found.boxes[len(expected) :].any()
    assert not found.score[len(expected) :].any()


@pytest.mark.parametrize("seed", range(3))
def test_proposals_equal_a_loop_over_anchors(seed):
    scores, deltas, anchors = outputs(seed)
    expected = slow_propose(scores, deltas, anchors, **SETTINGS)
    assert {level for _, level, _ in expected} == {0, 1}
    check(found_by(scores, deltas, anchors), expected, 50)


def test_counts_are_per_level_before_and_overall_after():
    scores, deltas, anchors = outputs(3)
    scores[LEVELS[0] :] += 100.0
    settings = SETTINGS | {"before": 12, "after": 9, "overlap": 0.8}
    expected = slow_propose(scores, deltas, anchors, **settings)
    whole = slow_propose(scores, deltas, anchors, **settings | {"after": 100})
    assert {level for _, level, _ in whole} == {0, 1}
    assert len(expected) == 9 < len(whole) <= 24
    check(jax.jit(partial(propose, image_size=IMAGE, **settings))(scores, deltas, anchors), expected, 9)


def test_boxes_without_sides_are_dropped():
    """Anchors moved out of the image are cut to nothing."""
    scores, deltas, anchors = outputs(4)
    deltas[::2, 0] = 50.0
    expected = slow_propose(scores, deltas, anchors, **SETTINGS)
    found = found_by(scores, deltas, anchors)
    check(found, expected, 50)
    sides = np.asarray(found.boxes[:, 2:] - found.boxes[:, :2])[np.asarray(found.valid)]
    assert sides.min() >= 1e-3
    deltas[:, 0] = 50.0
    assert not found_by(scores, deltas, anchors).valid.any()


def test_saturated_logits_are_still_ranked():
    """A sigmoid in single precision cannot tell 30 from 40."""
    scores, deltas, anchors = outputs(5)
    scores += 60.0
    check(found_by(scores, deltas, anchors), slow_propose(scores, deltas, anchors, **SETTINGS), 50)


def test_anchors_with_nan_propose_nothing_and_disturb_nobody():
    scores, deltas, anchors = outputs(6)
    broken = scores.argsort()[::-1][:40]
    bad_scores, bad_deltas = scores.copy(), deltas.copy()
    bad_scores[broken[:20]], bad_deltas[broken[20:], 2] = np.nan, np.nan
    found = found_by(bad_scores, bad_deltas, anchors)
    assert np.isfinite(found.boxes).all()
    without = scores.copy()
    without[broken] = -1e9
    check(found, slow_propose(without, deltas, anchors, **SETTINGS), 50)
    assert found.score[0] < scores[broken].min()
    nothing = found_by(np.full_like(scores, np.nan), deltas, anchors)
    assert not nothing.valid.any()


def test_no_gradient_passes():
    scores, deltas, anchors = outputs(7)

    def total(scores, deltas):
        found = propose(scores, deltas, anchors, IMAGE, **SETTINGS)
        return jnp.sum(found.boxes) + jnp.sum(found.score)

    for gradient in jax.jit(jax.grad(total, (0, 1)))(scores, deltas):
        assert not gradient.any()


def test_images_are_mapped_over():
    cases = [outputs(seed) for seed in range(2)]
    scores, deltas = (np.stack([case[part] for case in cases]) for part in range(2))
    mapped = jax.jit(jax.vmap(found_by, in_axes=(0, 0, None)))(scores, deltas, cases[0][2])
    for row, case in enumerate(cases):
        single = found_by(*case)
        assert_close(mapped.boxes[row], single.boxes)
        assert mapped.valid[row].tolist() == single.valid.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"levels": (10, 10)}, "20 anchors"), ({"before": 0}, "before is 0"), ({"after": 0}, "after 0")],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        propose(*outputs(0), IMAGE, **SETTINGS | settings)


def test_truth_stands_behind_the_proposals():
    proposals = Proposals(jnp.ones((2, 4)), jnp.array([2.0, 0.0]), jnp.array([True, False]))
    truth = np.array([[1, 2, 3, 4], [9, 9, 9, 9], [0, np.nan, 5, 5]], np.float32)
    found = add_truth(proposals, truth, np.array([True, False, True]))
    assert found.valid.tolist() == [True, False, True, False, False]
    assert found.boxes.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.score.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]
