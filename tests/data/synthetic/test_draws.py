import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fusion_jax.data.synthetic.draws import (
    case_stream,
    checked_n,
    class_counts,
    column_stream,
    normal_scores,
    proportional,
    shuffled_levels,
    spread_over,
)

some_counts = st.lists(st.integers(0, 5_000), min_size=1, max_size=12).filter(any)


@given(some_counts, st.integers(0, 20_000))
def test_proportional_counts_sum_and_stay_within_one_of_their_quota(counts, n):
    shares = proportional(counts, n)
    assert shares.sum() == n
    assert (np.abs(shares - np.array(counts) * n / sum(counts)) < 1 + 1e-6).all()
    np.testing.assert_array_equal(proportional(counts, sum(counts)), counts)


@pytest.mark.parametrize("counts", [[0, 0], [-1, 2], [np.nan, 1.0]])
def test_counts_that_mean_nothing_are_refused(counts):
    with pytest.raises(ValueError, match="expected numbers of at least 0"):
        proportional(counts, 3)


@given(some_counts, st.data())
def test_class_counts_keep_both_margins(counts, data):
    positives = data.draw(st.integers(0, sum(counts)))
    odds = data.draw(st.lists(st.floats(0.02, 50), min_size=len(counts), max_size=len(counts)))
    by_class = class_counts(np.array(counts), odds, positives)
    np.testing.assert_array_equal(by_class.sum(axis=0), counts)
    assert by_class[1].sum() == positives
    assert by_class.min() >= 0


def test_class_counts_have_the_wanted_odds():
    (n00, n01), (n10, n11) = class_counts(np.array([60_000, 40_000]), [1.0, 5.0], 30_000)
    assert n11 * n00 / (n10 * n01) == pytest.approx(5, rel=1e-3)


def test_streams_of_case_purpose_column_and_seed_differ():
    """NumPy takes [1, 2] and [1, 2, 0] for one seed: a trap for streams that only add a position."""
    streams = [
        *(case_stream(seed, index) for seed in (0, 1) for index in (0, 1, 2)),
        *(case_stream(0, index, purpose) for index in (0, 1) for purpose in ("a", "b")),
        *(column_stream(seed, name) for seed in (0, 1) for name in ("a", "b")),
    ]
    first = [stream.integers(2**62) for stream in streams]
    assert len(set(first)) == len(first)


def test_a_case_draws_the_same_numbers_again():
    np.testing.assert_array_equal(case_stream(5, 7, "x").random(4), case_stream(5, 7, "x").random(4))


@pytest.mark.parametrize("n", [5, 48, 1_000])
def test_normal_scores_are_as_normal_as_can_be(n):
    scores = normal_scores(n, column_stream(0, "z"))
    assert abs(scores.mean()) < 1e-12
    assert kstest(scores, "norm").statistic == pytest.approx(0.5 / n)
    assert (np.diff(scores) < 0).any()


def test_levels_come_as_often_as_asked():
    levels = shuffled_levels(np.array([3, 0, 5]), column_stream(0, "x"))
    np.testing.assert_array_equal(np.bincount(levels), [3, 0, 5])


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 6))
def test_things_are_spread_over_all_groups(groups, more, most):
    sizes = spread_over(groups + more, groups, column_stream(1, "g"), most)
    assert sizes.sum() == groups + more
    assert sizes.min() >= 1
    assert sizes.max() <= max(most, -(-(groups + more) // groups))


@pytest.mark.parametrize(("n", "error"), [(3, ValueError), (4.0, TypeError), (True, TypeError)])
def test_a_number_of_cases_that_means_nothing_is_refused(n, error):
    with pytest.raises(error, match="somewhere"):
        checked_n(n, 4, "somewhere")
