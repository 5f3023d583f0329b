from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.detection.anchors import PUBLISHED, make_anchors
from fusion_jax.detection.matching import Matched, match, sample
from tests.helpers import assert_close

P, M = 24, 5
FIRST_STAGE = {"foreground": 0.7, "background": 0.3, "low_quality": True}
SECOND_STAGE = {"foreground": 0.5, "background": 0.5, "low_quality": False}

matched_first, matched_second = (jax.jit(partial(match, **settings)) for settings in (FIRST_STAGE, SECOND_STAGE))


def slow_iou(a, b):
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return inside / (sum(areas) - inside) if inside > 0 else 0.0


def slow_match(candidates, truth, truth_valid, valid, foreground, background, low_quality):
    """Label of every candidate (1, 0 or None), its truth row and its overlap."""
    truth_rows = np.flatnonzero(truth_valid)
    overlaps = [[slow_iou(candidate, truth[row]) if take else 0.0 for row in truth_rows]
                for candidate, take in zip(candidates, valid, strict=True)]  # fmt: skip
    labels, rows, best = [], [], []
    for take, own in zip(valid, overlaps, strict=True):
        best.append(max(own, default=0.0))
        rows.append(int(truth_rows[int(np.argmax(own))]) if best[-1] > 0 else 0)
        labels.append(None if not take or background <= best[-1] < foreground else int(best[-1] >= foreground))
    if low_quality:
        for column in range(len(truth_rows)):
            highest = max(own[column] for own in overlaps)
            for candidate, own in enumerate(overlaps):
                if highest > 0 and own[column] == highest:
                    labels[candidate] = 1
    return labels, rows, best


def whole_boxes(rng, count, size=14):
    corner = rng.integers(0, 12, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, size, (count, 2))], axis=1).astype(np.float32)


def check(found, candidates, truth, truth_valid, valid, settings):
    labels, rows, best = slow_match(candidates, truth, truth_valid, valid, **settings)
    assert found.positive.tolist() == [label == 1 for label in labels]
    assert found.negative.tolist() == [label == 0 for label in labels]
    assert found.row.tolist() == rows
    assert found.row.dtype == jnp.int32
    if max(best) > 0:
        assert_close(found.overlap, np.array(best), 1e-6)


@given(st.integers(0, 2**32), st.integers(0, 2**M - 1), st.booleans())
def test_matches_equal_a_loop_over_boxes(seed, which, first):
    """Whole pixels and many ties: low-quality matches keep all that tie."""
    rng = np.random.default_rng(seed)
    candidates, truth = whole_boxes(rng, P), whole_boxes(rng, M)
    truth_valid, valid = np.array([which >> row & 1 for row in range(M)], bool), rng.random(P) < 0.8
    function, settings = (matched_first, FIRST_STAGE) if first else (matched_second, SECOND_STAGE)
    check(function(candidates, truth, truth_valid, valid=valid), candidates, truth, truth_valid, valid, settings)


def test_every_box_keeps_an_anchor_of_the_published_design():
    anchors = make_anchors(PUBLISHED, 256, 256)
    truth = np.array([[3, 5, 17, 30], [100, 90, 180, 200], [0, 0, 256, 256], [40, 200, 49, 211]], np.float32)
    everything = np.ones(len(anchors), bool)
    found = matched_first(anchors, truth, np.ones(4, bool))
    check(found, anchors, truth, np.ones(4, bool), everything, FIRST_STAGE)
    assert set(np.asarray(found.row)[np.asarray(found.positive)]) == {0, 1, 2, 3}


def test_a_low_quality_match_stands_for_the_box_it_overlaps_most():
    """The best candidate of the second box overlaps the first more: as published, the first it is."""
    truth = np.zeros((M, 4), np.float32)
    truth[:2] = [[0, 0, 10, 10], [9, 0, 19, 10]]
    candidates = np.tile(np.array([0, 0, 11, 10], np.float32), (P, 1))
    found = matched_first(candidates, truth, np.arange(M) < 2)
    assert found.positive.all()
    assert not found.row.any()


def test_padded_truth_changes_nothing():
    rng = np.random.default_rng(3)
    candidates, truth = whole_boxes(rng, P), whole_boxes(rng, M)
    valid = np.array([True, True, False, False, False])
    padded = np.where(valid[:, None], truth, np.nan).astype(np.float32)
    for function in (matched_first, matched_second):
        found, plain = function(candidates, padded, valid), function(candidates, truth[:2], np.ones(2, bool))
        jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.parametrize("boxes", [0, M])
def test_without_truth_every_candidate_is_negative(boxes):
    candidates = whole_boxes(np.random.default_rng(4), P)
    found = matched_first(candidates, np.full((boxes, 4), 5.0, np.float32), np.zeros(boxes, bool))
    assert found.negative.all()
    assert not found.positive.any()
    assert not found.row.any()


def test_a_box_that_no_candidate_meets_makes_none_positive():
    candidates = whole_boxes(np.random.default_rng(5), P)
    found = matched_first(candidates, np.full((M, 4), [90, 90, 99, 99], np.float32), np.ones(M, bool))
    assert found.negative.all()


def test_candidates_with_nan_or_not_valid_are_neither():
    candidates = np.tile(np.array([50, 50, 60, 60], np.float32), (P, 1))
    candidates[:3] = [[0, 0, 9, 9], [0, 0, np.nan, 9], [0, 0, 9, 9]]
    truth = np.tile(candidates[:1], (M, 1))
    found = matched_first(candidates, truth, np.ones(M, bool), valid=np.arange(P) != 2)
    assert found.positive.tolist() == [True, *[False] * (P - 1)]
    assert found.negative.tolist() == [*[False] * 3, *[True] * (P - 3)]
    assert np.isfinite(found.overlap).all()


def test_overlap_of_exactly_the_thresholds():
    """From the foreground on positive, below the background negative."""
    truth, one = np.array([[0, 0, 10, 10]], np.float32), np.ones(1, bool)
    half = np.array([[0, 0, 10, 5]], np.float32)
    settings = {"foreground": 0.7, "background": 0.5, "low_quality": False}
    assert not match(half, truth, one, **settings).negative.any()
    assert match(half, truth, one, **{**settings, "background": 0.51}).negative.all()
    assert match(half, truth, one, **{**settings, "foreground": 0.5}).positive.all()


def test_thresholds_out_of_order_are_refused():
    box = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match=r"background is 0\.7 and foreground 0\.3"):
        match(box, box, np.ones(1, bool), foreground=0.3, background=0.7, low_quality=False)


# Sampling.


def matched_of(positive, negative):
    positive, negative = jnp.asarray(positive), jnp.asarray(negative)
    return Matched(jnp.zeros(len(positive), jnp.int32), positive, negative, jnp.zeros(len(positive)))


def groups(positives, negatives, candidates=100, seed=0):
    kinds = np.random.default_rng(seed).permutation(candidates)
    return matched_of(kinds < positives, (kinds >= positives) & (kinds < positives + negatives))


drawn_32 = jax.jit(partial(sample, size=32, positive_fraction=0.25))


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(3, 90, (3, 29)), (40, 60, (8, 24)), (8, 10, (8, 10)), (0, 100, (0, 32)), (50, 0, (8, 0)), (0, 0, (0, 0))],
)
def test_positives_fill_their_share_and_negatives_the_rest(key, positives, negatives, expected):
    matched = groups(positives, negatives)
    found = drawn_32(key, matched)
    rows, positive, valid = map(np.asarray, found)
    assert rows.shape == positive.shape == valid.shape == (32,)
    assert (positive.sum(), (valid & ~positive).sum()) == expected
    assert valid[: sum(expected)].all()
    assert positive[: expected[0]].all()
    assert np.asarray(matched.positive)[rows[positive]].all()
    assert np.asarray(matched.negative)[rows[valid & ~positive]].all()
    assert len(set(rows[valid])) == sum(expected)
    assert not rows[~valid].any()


def test_every_candidate_is_as_likely_as_the_others(key):
    """20,000 draws: the frequency of each of 30 positives and 70 negatives within five standard errors."""
    matched = groups(30, 70)
    found = jax.jit(jax.vmap(drawn_32, in_axes=(0, None)))(jax.random.split(key, 20_000), matched)
    counts = np.bincount(np.asarray(found.rows).ravel(), minlength=100) / 20_000
    for group, expected in ((matched.positive, 8 / 30), (matched.negative, 24 / 70)):
        error = 5 * np.sqrt(expected * (1 - expected) / 20_000)
        assert np.abs(counts[np.asarray(group)] - expected).max() < error


def test_draws_follow_the_key(key):
    matched = groups(40, 60)
    same = [drawn_32(key, matched).rows.tolist() for _ in range(2)]
    other = drawn_32(jax.random.fold_in(key, 1), matched).rows.tolist()
    assert same[0] == same[1]
    assert same[0] != other


@pytest.mark.parametrize("candidates", [0, 3])
def test_fewer_candidates_than_places_leave_places_empty(key, candidates):
    matched = matched_of(np.arange(candidates) == 0, np.arange(candidates) > 0)
    found = jax.jit(partial(sample, size=8, positive_fraction=1.0))(key, matched)
    assert found.valid.sum() == candidates
    assert found.positive.sum() == min(candidates, 1)
    assert sorted(found.rows[:candidates].tolist()) == list(range(candidates))


@pytest.mark.parametrize(("settings", "message"), [((0, 0.5), "size is 0"), ((8, 1.5), "positive_fraction is 1.5")])
def test_draws_that_cannot_be_are_refused(key, settings, message):
    with pytest.raises(ValueError, match=message):
        sample(key, groups(1, 1), size=settings[0], positive_fraction=settings[1])
