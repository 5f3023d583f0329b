"""Bootstrap over patients: who is drawn, what is read off the draws, and whether the error rates are as promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fusion_jax.data.collections import breast_mri_predictions
from fusion_jax.evaluation import resampling
from fusion_jax.evaluation.ranked import (
    ClassificationData,
    classification_statistics,
    exact_ratio,
    make_ranked,
    weighted_auc,
)
from fusion_jax.evaluation.resampling import (
    bca_interval,
    bootstrap,
    draw_weights,
    jackknife,
    make_design,
    patients_alone,
    percentile_interval,
    z_test,
)
from tests.helpers import assert_close


def mean(data, weights):
    return jnp.sum(weights * data) / jnp.sum(weights)


def raw_weights(_, weights):
    return weights


def auc_of_models(ranked, weights):
    return jax.vmap(lambda one: weighted_auc(one, weights))(ranked)


# Who is drawn.


def test_strata_are_the_sets_of_labels_of_a_patient():
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    patients = ["b", "b", "a", "a", "c", "c", "d", "e"]
    design = make_design(labels, patients)
    assert design.cluster.tolist() == [1, 1, 0, 0, 2, 2, 3, 4]
    a, b, c, d, e = design.stratum
    assert b == d
    assert len({a, b, c, e}) == 4
    assert patients_alone(design) == 3


def test_without_patients_every_row_is_one_and_without_labels_there_is_one_stratum():
    assert make_design(np.array([3, 1, 3])).cluster.tolist() == [0, 1, 2]
    assert make_design(np.array([3, 1, 3])).stratum.tolist() == [1, 0, 1]
    assert make_design(patients=[7, 7, 2]).cluster.tolist() == [1, 1, 0]
    assert make_design(patients=[7, 7, 2]).stratum.tolist() == [0, 0]
    assert make_design(rows=3).stratum.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": np.array([0, 1]), "patients": ["a"]}, r"\[2, 1\] given; expected one number of rows"),
        ({}, "nothing given"),
        ({"pattern": np.array([], int)}, r"\[0\] given"),
        ({"patients": ["a", None, float("nan")]}, r"no id in row 1, 2 \(2 of 3 rows\).*every row counts as a patient"),
        ({"patients": np.array([1.0, 2.0, np.nan])}, "no id in row 2"),
        ({"patients": ["a", ""]}, "no id in row 1"),
    ],
)
def test_a_design_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_design(**arguments)


@pytest.fixture(scope="module")
def breasts():
    """Twelve patients with two rows each, of three label patterns and in no order."""
    patients = np.random.default_rng(3).permutation(np.repeat(np.arange(12), 2))
    seen = np.array([np.sum(patients[:row] == patients[row]) for row in range(24)])
    labels = np.where(patients < 3, 1, np.where(patients < 7, seen, 0))
    return make_design(labels, patients), labels, patients


def test_every_resample_holds_as_many_patients_of_each_pattern(breasts):
    design, labels, patients = breasts
    weights = bootstrap(raw_weights, None, design, resamples=70)
    assert weights.shape == (70, 24)
    for patient in range(12):
        first, second = weights[:, patients == patient].T
        np.testing.assert_array_equal(first, second)
    by_patient = np.stack([weights[:, patients == patient][:, 0] for patient in range(12)], axis=1)
    for members in (slice(0, 3), slice(3, 7), slice(7, 12)):
        assert set(by_patient[:, members].sum(axis=1)) == {members.stop - members.start}
    assert set((weights * labels).sum(axis=1)) == {labels.sum()}
    assert len(np.unique(weights, axis=0)) > 60


def test_patients_are_drawn_evenly():
    design = make_design(np.repeat([0, 1], [5, 30]))
    drawn = bootstrap(raw_weights, None, design, resamples=4000).sum(axis=0)
    for stratum in (drawn[:5], drawn[5:]):
        assert scipy.stats.chisquare(stratum).pvalue > 0.001


def test_draws_of_a_row_vary_as_multinomial_counts_do():
    counts = bootstrap(raw_weights, None, make_design(rows=10), resamples=4000)
    assert counts.var() == pytest.approx(0.9, rel=0.05)
    covariance = np.cov(counts.T)
    assert covariance[~np.eye(10, dtype=bool)].mean() == pytest.approx(-0.1, rel=0.05)


def test_the_first_resamples_are_the_same_however_many_there_are(breasts, monkeypatch):
    design = breasts[0]
    few, many = (bootstrap(raw_weights, None, design, resamples=r) for r in (7, 130))
    np.testing.assert_array_equal(few, many[:7])
    monkeypatch.setattr(resampling, "LARGEST_BATCH", 5)
    np.testing.assert_array_equal(bootstrap(raw_weights, None, design, resamples=130), many)
    np.testing.assert_array_equal(draw_weights(design, 100), many[100])


def test_draws_depend_on_the_seed_and_not_on_the_order_of_rows(breasts):
    design, labels, patients = breasts
    order = np.random.default_rng(0).permutation(24)
    reordered = make_design(labels[order], patients[order])
    one, other = (bootstrap(raw_weights, None, d, resamples=7, seed=5) for d in (design, reordered))
    np.testing.assert_array_equal(one[:, order], other)
    assert (bootstrap(raw_weights, None, design, resamples=7, seed=6) != one).any()


def test_the_high_product_is_exact():
    rng = np.random.default_rng(0)
    edges = np.array([0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**31, 2**32 - 1], np.uint32)
    some = np.concatenate([edges, rng.integers(0, 2**32, 300, np.uint32), rng.integers(0, 10**6, 300, np.uint32)])
    bits, size = (part.ravel() for part in np.meshgrid(some, some))
    found = resampling._high_product(jnp.asarray(bits), jnp.asarray(size))
    np.testing.assert_array_equal(found, bits.astype(np.uint64) * size.astype(np.uint64) >> np.uint64(32))


def test_a_bootstrap_without_resamples_is_refused():
    with pytest.raises(ValueError, match="resamples: 0; expected at least 1"):
        bootstrap(mean, np.arange(3.0), make_design(rows=3), resamples=0)


def test_one_program_serves_all_data_of_a_shape():
    bootstrap(mean, np.arange(6.0), make_design(rows=6), resamples=50)
    before = resampling._bootstrap._cache_size()
    bootstrap(mean, np.arange(6.0) ** 2, make_design(np.array([0, 0, 1, 1, 1, 1])), resamples=50, seed=9)
    assert resampling._bootstrap._cache_size() == before


# What is read off the draws.


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_percentiles_are_those_of_numpy_without_the_undefined_draws(level):
    draws = np.random.default_rng(0).normal(size=(57, 3, 2))
    draws[::5, 1, 1] = np.nan
    interval = percentile_interval(draws, level)
    assert_close(interval.low, np.nanquantile(draws, (1 - level) / 2, axis=0), 1e-12)
    assert_close(interval.high, np.nanquantile(draws, (1 + level) / 2, axis=0), 1e-12)
    assert interval.undefined.tolist() == [[0, 0], [0, 12], [0, 0]]


def test_draws_without_a_value_have_no_interval_and_constant_ones_no_error():
    nothing = percentile_interval(np.full(20, np.nan))
    assert np.isnan(nothing[:4]).all()
    assert nothing.undefined == 20
    assert percentile_interval(np.full(20, 0.7)) == (0.7, 0.7, 0, 0, 0)


def test_infinite_draws_are_values():
    draws = np.concatenate([np.arange(90.0), np.full(10, np.inf)])
    interval = percentile_interval(draws)
    assert interval.low == pytest.approx(2.475)
    assert interval.high == np.inf
    assert interval.high_error == 0


def test_the_monte_carlo_error_is_the_spread_of_ends_over_repetitions():
    draws = np.random.default_rng(1).normal(size=(2000, 500))
    interval = percentile_interval(draws)
    for ends, errors in ((interval.low, interval.low_error), (interval.high, interval.high_error)):
        assert errors.mean() == pytest.approx(ends.std(), rel=0.1)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_0_to_1_is_refused(level):
    with pytest.raises(ValueError, match=f"level: {level}; expected a fraction between 0 and 1"):
        percentile_interval(np.arange(5.0), level)
    with pytest.raises(ValueError, match=f"level: {level}; expected a fraction"):
        bca_interval(1.0, np.arange(5.0), np.arange(5.0), np.zeros(5, int), level)


def skewed(seed, size):
    return np.random.default_rng(seed).lognormal(size=size)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_equals_scipy_on_the_same_draws(level):
    data = skewed(0, 30)
    theirs = scipy.stats.bootstrap((data,), np.mean, confidence_level=level, method="BCa", rng=1, n_resamples=3000)
    left_out = jackknife(mean, data, make_design(rows=30))
    ours = bca_interval(data.mean(), theirs.bootstrap_distribution, left_out.values, left_out.stratum, level)
    assert_close((ours.low, ours.high), tuple(theirs.confidence_interval), 1e-5)


def difference_of_means(data, weights):
    values, group = data
    return mean(values, weights * group) - mean(values, weights * (1 - group))


def test_bca_with_strata_equals_scipy_with_several_samples():
    first, second = skewed(0, 12), skewed(1, 40)
    theirs = scipy.stats.bootstrap(
        (first, second), lambda a, b: a.mean() - b.mean(), vectorized=False, method="BCa", rng=1, n_resamples=2000
    )
    values, group = np.concatenate([first, second]), np.repeat([1.0, 0.0], [12, 40])
    left_out = jackknife(difference_of_means, (values, group), make_design(group.astype(int)))
    assert np.bincount(left_out.stratum).tolist() == [40, 12]
    ours = bca_interval(first.mean() - second.mean(), theirs.bootstrap_distribution, left_out.values, left_out.stratum)
    assert_close((ours.low, ours.high), tuple(theirs.confidence_interval), 1e-5)
    blind = bca_interval(
        first.mean() - second.mean(), theirs.bootstrap_distribution, left_out.values, np.zeros(52, int)
    )
    assert abs(blind.high - ours.high) > 1e-3


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_the_monte_carlo_error_of_bca_ends_includes_that_of_the_bias_correction(draw):
    draws = getattr(np.random.default_rng(0), draw)(size=(1000, 4000))
    symmetric = np.array([[-1.0], [0.0], [1.0]]) * np.ones(4000)
    bca, percentile = bca_interval(np.zeros(4000), draws, symmetric, np.zeros(3, int)), percentile_interval(draws)
    for one, other in ((bca.low, bca.low_error), (bca.high, bca.high_error)):
        assert other.mean() == pytest.approx(one.std(), rel=0.05)
    assert bca.low_error.mean() > 1.2 * percentile.low_error.mean()


def test_bca_is_the_percentile_interval_without_bias_or_skewness():
    draws = np.linspace(-1, 1, 2001)
    bca = bca_interval(0.0, draws, np.array([-1.0, 0.0, 1.0]), np.zeros(3, int))
    assert_close(bca[:2], percentile_interval(draws)[:2], 1e-9)


def test_bca_is_undefined_where_all_draws_lie_on_one_side():
    bca = bca_interval(2.0, np.linspace(-1, 1, 101), np.array([-1.0, 0.0, 1.0]), np.zeros(3, int))
    assert np.isnan(bca[:4]).all()


def test_a_perfect_ranking_has_a_bca_interval_of_one_point():
    assert bca_interval(1.0, np.ones(50), np.ones(9), np.zeros(9, int))[:2] == (1.0, 1.0)


def test_the_jackknife_leaves_patients_out_with_all_their_rows():
    data = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    design = make_design(np.array([0, 0, 0, 0, 1]), [0, 0, 1, 2, 3])
    left_out = jackknife(mean, data, design)
    assert left_out.exact
    assert left_out.stratum.tolist() == [0, 0, 0]
    np.testing.assert_allclose(left_out.values, [28 / 3, 27 / 4, 23 / 4], rtol=1e-6)


def test_beyond_the_limit_groups_of_one_stratum_are_left_out():
    labels = np.repeat([0, 1, 2], [300, 98, 2])
    data = skewed(0, 400)
    left_out = jackknife(raw_weights, data, make_design(labels), groups=40)
    assert not left_out.exact
    assert np.bincount(left_out.stratum).tolist() == [30, 9, 2]
    gone = left_out.values == 0
    np.testing.assert_array_equal(gone.sum(axis=0), 1)
    assert set(gone[:, labels == 0].sum(axis=1)) == {0, 10}
    for deletion, stratum in zip(gone, left_out.stratum, strict=True):
        assert set(labels[deletion]) == {stratum}


def test_groups_estimate_the_acceleration_of_single_deletions():
    data, design = skewed(2, 1500), make_design(rows=1500)
    exact = jackknife(mean, data, design)
    accelerations = []
    for seed in range(10):
        grouped = jackknife(mean, data, design, groups=300, seed=seed)
        accelerations.append(resampling._acceleration(grouped.values.astype(float), grouped.stratum))
    wanted = resampling._acceleration(exact.values.astype(float), exact.stratum)
    assert wanted == pytest.approx(scipy.stats.skew(data) / 6 / np.sqrt(1500), rel=0.02)
    assert np.mean(accelerations) == pytest.approx(wanted, abs=3 * np.sqrt(6 / 300) / 6 / np.sqrt(10))


def test_a_jackknife_of_patients_that_are_all_alone_is_refused():
    with pytest.raises(ValueError, match="every patient is alone in the stratum"):
        jackknife(mean, np.arange(2.0), make_design(np.array([0, 1])))


def test_undefined_deletions_are_left_out_of_the_acceleration():
    values = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [np.nan, 1.0]])
    assert resampling._acceleration(values, np.zeros(4, int))[0] == pytest.approx(
        resampling._acceleration(values[:3, 0], np.zeros(3, int))
    )


# The test of a difference.


def test_the_z_test_is_symmetric_and_leaves_undefined_draws_out():
    draws = np.random.default_rng(0).normal(0.1, 0.05, (400, 2))
    draws[:7, 1] = np.nan
    one, other = z_test([0.1, 0.1], draws), z_test([-0.1, -0.1], -draws)
    np.testing.assert_array_equal(one.p_value, other.p_value)
    np.testing.assert_array_equal(one.z, -other.z)
    assert one.undefined.tolist() == [0, 7]
    sd = np.nanstd(draws, axis=0, ddof=1)
    assert_close(one.sd, sd, 1e-12)
    assert_close(one.p_value, 2 * scipy.stats.norm.sf(0.1 / sd), 1e-12)


def test_models_that_never_differ_have_p_1_and_a_difference_that_never_varies_has_no_p():
    assert z_test(0.0, np.zeros(50))[:5] == (0.0, 0.0, 0.0, 1.0, 0.0)
    constant = z_test(0.25, np.full(50, 0.25))
    assert constant.sd == 0
    assert np.isnan([constant.z, constant.p_value, constant.p_error]).all()
    assert np.isnan(z_test(0.25, np.full(50, np.nan)).p_value)
    assert np.isnan(z_test(0.25, np.full(1, 0.25)).p_value)


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_the_error_of_p_is_its_spread_over_repetitions(draw):
    draws = getattr(np.random.default_rng(0), draw)(size=(500, 1000))
    test = z_test(np.full(1000, 2 * draws.std()), draws)
    assert test.p_error.mean() == pytest.approx(test.p_value.std(), rel=0.1)


# Published files.


@pytest.fixture(scope="module")
def published():
    """Labels and the scores of Image-Only and Learned Feature Fusion."""
    table = breast_mri_predictions()
    scores = np.stack([rows["score"].to_numpy() for _, rows in table.groupby("model", sort=False)])
    labels = table["label"].to_numpy()[: scores.shape[1]]
    data = ClassificationData(make_ranked(labels, scores), labels, sensitivities=exact_ratio(0.95)[None])
    design = make_design(labels)
    draws = bootstrap(classification_statistics, data, design)
    whole = jax.tree.map(np.asarray, jax.jit(classification_statistics)(data, np.ones(len(labels))))
    return data, design, whole, draws


def test_the_published_values_are_exact(published):
    whole = published[2]
    assert whole.auc.round(6).tolist() == pytest.approx([0.849128, 0.897873], abs=1e-6)
    specificity = whole.specificity_at_sensitivity[:, 0]
    assert np.rint(specificity * 3903).tolist() == [1175, 1918]
    assert (100 * specificity).round(3).tolist() == pytest.approx([30.105, 49.142], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "low", "high", "digit"),
    [
        ("auc", [0.834, 0.885], [0.864, 0.909], 0.001),
        ("specificity_at_sensitivity", [0.231, 0.388], [0.370, 0.553], 0.001),
    ],
)
def test_the_published_intervals_hold_within_their_monte_carlo_error(published, name, low, high, digit):
    interval = percentile_interval(getattr(published[3], name).reshape(5000, 2))
    # The published ends are resampled too, 5,000 times, and rounded.
    assert (np.abs(interval.low - low) <= digit / 2 + 3 * np.sqrt(2) * interval.low_error).all()
    assert (np.abs(interval.high - high) <= digit / 2 + 3 * np.sqrt(2) * interval.high_error).all()
    if name == "auc":
        assert interval.low.round(3).tolist() == low
        assert interval.high.round(3).tolist() == high


def test_fusion_differs_from_images_alone_by_the_test_of_the_paper(published):
    _, _, whole, draws = published
    auc = z_test(whole.auc[1] - whole.auc[0], draws.auc[:, 1] - draws.auc[:, 0])
    assert auc.z == pytest.approx(7.44, abs=0.3)
    assert auc.p_value < 1e-10
    both, resampled = whole.specificity_at_sensitivity[:, 0], draws.specificity_at_sensitivity[..., 0]
    specificity = z_test(both[1] - both[0], resampled[:, 1] - resampled[:, 0])
    assert specificity.p_value == pytest.approx(2.7e-4, abs=4 * specificity.p_error)
    same = z_test(0.0, draws.auc[:, 1] - draws.auc[:, 1])
    assert same.p_value == 1


# Error rates.


def equal_models(rng, patients, rows, similar):
    """Two equally good models; the rows of a patient are as alike as `similar` says. Labels, scores (2, n)."""
    label = np.repeat(np.arange(patients) % 2, rows)
    shared = np.repeat(rng.normal(size=(3, patients)), rows, axis=1)
    own = rng.normal(size=(3, patients * rows))
    common, first, second = np.sqrt(similar) * shared + np.sqrt(1 - similar) * own
    return label, label + np.stack([common + first, common + second])


def rejections(test, *, studies, patients, rows, similar, seed=0):
    rng = np.random.default_rng(seed)
    p_values = [test(*equal_models(rng, patients, rows, similar), study) for study in range(studies)]
    return np.mean(np.array(p_values) < 0.05)


def by_z_test(patients, rows, resamples):
    """P-value of the difference in AUC where `patients` times `rows` of each are taken for what they are."""
    ids = np.repeat(np.arange(patients), rows)

    def test(label, scores, seed):
        ranked = make_ranked(label, scores)
        whole = np.asarray(jax.jit(auc_of_models)(ranked, np.ones(label.size)))
        draws = bootstrap(auc_of_models, ranked, make_design(label, ids), resamples=resamples, seed=seed)
        return z_test(whole[0] - whole[1], draws[:, 0] - draws[:, 1]).p_value

    return test


def binomial_bounds(studies, rate=0.05):
    return scipy.stats.binom.ppf([0.0005, 0.9995], studies, rate) / studies


def test_the_z_test_keeps_its_level_and_rows_taken_for_patients_do_not():
    # Three rows of 40 patients, whose standard error is too small by up to the root of three if they are taken for 120.
    # The same shapes throughout, so that all studies share two programs.
    low, high = binomial_bounds(150)
    clustered = rejections(by_z_test(40, 3, 300), studies=150, patients=40, rows=3, similar=0.95)
    independent = rejections(by_z_test(120, 1, 300), studies=150, patients=120, rows=1, similar=0.5)
    mistaken = rejections(by_z_test(120, 1, 300), studies=150, patients=40, rows=3, similar=0.95)
    assert low <= clustered <= high
    assert low <= independent <= high
    assert mistaken > high


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "rows", "similar"), [(200, 1, 0.5), (100, 2, 0.9), (100, 10, 0.98)])
def test_the_z_test_keeps_its_level_over_a_thousand_studies(patients, rows, similar):
    low, high = binomial_bounds(1000)
    options = {"studies": 1000, "patients": patients, "rows": rows, "similar": similar, "seed": 1}
    assert low <= rejections(by_z_test(patients, rows, 1000), **options) <= high
    if rows > 1:
        mistaken = rejections(by_z_test(patients * rows, 1, 1000), **options)
        # Standard errors are too small by up to the root of the number of rows.
        assert 2 * high < mistaken < 2 * scipy.stats.norm.sf(1.96 / np.sqrt(rows)) + 0.05
