"""Calibration: equal to the packages it could have used, honest about chance, and about who the patients are."""

import re

import jax
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kstest

from fusion_jax.data.collections.breast import breast_mri_predictions
from fusion_jax.evaluation.calibration import (
    _shared_units,
    calibration,
    calibration_rows,
    calibration_statistics,
    prediction_histogram,
    reliability_bins,
)
from fusion_jax.evaluation.recalibration import apply, logistic_fit, prior_shift
from tests.helpers import assert_close

ESTIMATES = ("brier", "scaled_brier", "observed_minus_expected", "observed_over_expected", "intercept", "slope")
N = 400
QUICK = {"resamples": 400, "simulations": 400}


def simulate(n, seed=0, shift=-0.5):
    """Labels, and the logits with which they were drawn."""
    rng = np.random.default_rng([seed, n])
    logit = rng.normal(shift, 1.2, size=n)
    return (rng.random(n) < expit(logit)).astype(int), logit


@pytest.fixture(scope="module")
def perfect():
    labels, logit = simulate(N, seed=1)
    return calibration(labels, expit(logit), **QUICK)


@pytest.fixture(scope="module")
def doubled():
    labels, logit = simulate(N, seed=1)
    return calibration(labels, expit(2 * logit), **QUICK)


def holds(estimate, value):
    return estimate.interval.low <= value <= estimate.interval.high


def test_a_perfectly_calibrated_model_is_found_to_be_one(perfect):
    assert holds(perfect.slope, 1)
    assert holds(perfect.intercept, 0)
    assert holds(perfect.observed_minus_expected, 0)
    assert holds(perfect.observed_over_expected, 1)
    for distance in (perfect.ici, perfect.quantile_error, perfect.width_error):
        assert 0 < distance.value < distance.upper
        assert 0.3 * distance.expected < distance.value
        assert distance.p_value > 0.05
    assert perfect.quantile_error.debiased < perfect.quantile_error.value
    observed = perfect.curve.observed
    covered = (observed.interval.low <= perfect.curve.predicted) & (perfect.curve.predicted <= observed.interval.high)
    assert covered.mean() > 0.9
    assert (perfect.n, perfect.patients, perfect.unit, perfect.clipped) == (N, N, "rows", 0)


def test_twice_too_sure_has_slope_one_half(doubled, perfect):
    assert holds(doubled.slope, 0.5)
    assert doubled.slope.value == pytest.approx(perfect.slope.value / 2, rel=1e-8)
    assert doubled.slope.interval.high < 1
    for distance in (doubled.ici, doubled.quantile_error, doubled.width_error):
        assert distance.value > distance.upper
        assert distance.p_value == 1 / 401
    # Far from the diagonal nothing is left to correct.
    assert doubled.quantile_error.debiased == pytest.approx(doubled.quantile_error.value, rel=0.15)
    assert doubled.scaled_brier.value < perfect.scaled_brier.value
    # The logit of the curve is half the logit of the prediction.
    middle = (doubled.curve.predicted > 0.05) & (doubled.curve.predicted < 0.95)
    halved = expit(0.5 * np.log(doubled.curve.predicted / (1 - doubled.curve.predicted)))
    assert np.abs(doubled.curve.observed.value - halved)[middle].max() < 0.1


def test_intercept_and_slope_equal_statsmodels(doubled):
    import statsmodels.api as sm

    labels, logit = simulate(N, seed=1)
    binomial = sm.families.Binomial()
    intercept = sm.GLM(labels, np.ones(N), family=binomial, offset=2 * logit).fit(tol=1e-12)
    slope = sm.GLM(labels, sm.add_constant(2 * logit), family=binomial).fit(tol=1e-12)
    assert doubled.intercept.value == pytest.approx(intercept.params[0], rel=1e-8)
    assert doubled.slope.value == pytest.approx(slope.params[1], rel=1e-8)
    # The percentile interval is about as wide as Wald's, which the model-based error gives.
    width = doubled.slope.interval.high - doubled.slope.interval.low
    assert width == pytest.approx(2 * 1.96 * slope.bse[1], rel=0.25)


def test_weights_are_repeated_rows():
    labels, logit = simulate(300, seed=1)
    rows, _ = calibration_rows(labels.astype(float), expit(0.7 * logit))
    weights = np.random.default_rng(0).integers(0, 4, 300)
    repeated = np.repeat(np.arange(300), weights)
    statistics = jax.jit(calibration_statistics)
    for each, counts in ((np.arange(300), np.ones(300)), (repeated, weights)):
        found = statistics(rows, counts.astype(float))
        label, probability = rows.label[each], rows.probability[each]
        line = logistic_fit(label, np.stack([np.ones(len(each)), rows.logit[each]], axis=1)).coefficients
        curve = logistic_fit(label, rows.basis[each], ridge=0.01).coefficients
        expected = {
            "brier": np.mean((label - probability) ** 2),
            "scaled_brier": 1 - np.mean((label - probability) ** 2) / label.var(),
            "observed_minus_expected": label.mean() - probability.mean(),
            "observed_over_expected": label.sum() / probability.sum(),
            "intercept": logistic_fit(label, np.ones((len(each), 1)), offset=rows.logit[each]).coefficients[0],
            "slope": line[1],
            "curve": expit(rows.grid @ curve),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rtol=2e-4 if name == "observed_minus_expected" else 2e-5)


def test_statistics_follow_the_precision_of_the_rows(x64):
    labels, logit = simulate(60, seed=2)
    rows, _ = calibration_rows(labels.astype(float), expit(0.7 * logit), points=2)
    found = jax.jit(calibration_statistics)(rows, np.ones(60))
    assert found["slope"].dtype == np.ones(1).dtype
    assert_close(found["slope"], rows.line[1] / rows.scale, rtol=1e-10)
    assert_close(found["intercept"], rows.intercept[0], rtol=1e-10)


@pytest.mark.parametrize(("by", "strategy"), [("quantile", "quantile"), ("width", "uniform")])
def test_bins_equal_scikit_learn_and_statsmodels(by, strategy):
    from sklearn.calibration import calibration_curve
    from statsmodels.stats.proportion import proportion_confint

    labels, logit = simulate(500, seed=3)
    probabilities = expit(1.5 * logit).round(2)  # ties on the edges
    found = reliability_bins(labels, probabilities, by=by)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy=strategy)
    assert_close((found.observed, found.predicted), (observed, predicted), rtol=1e-12)
    assert_close((found.low, found.high), proportion_confint(found.events, found.n, method="wilson"), rtol=1e-10)
    assert (found.n.sum(), found.events.sum()) == (500, labels.sum())
    assert (found.patients == found.n).all()
    assert ((found.low_edge <= found.predicted) & (found.predicted <= found.high_edge)).all()


def test_the_errors_are_those_of_the_bins_and_brier_that_of_scikit_learn(doubled):
    from sklearn.metrics import brier_score_loss

    labels, logit = simulate(N, seed=1)
    probabilities = expit(2 * logit)
    for by, distance in (("quantile", doubled.quantile_error), ("width", doubled.width_error)):
        bins = reliability_bins(labels, probabilities, by=by)
        expected = np.sum(bins.n * np.abs(bins.observed - bins.predicted)) / N
        assert distance.value == pytest.approx(expected, rel=1e-12)
        assert distance.bins == len(bins.n)
    assert doubled.brier.value == pytest.approx(brier_score_loss(labels, probabilities), rel=1e-12)


def test_what_a_perfect_model_gets_equals_a_simulation_in_numpy(doubled):
    _, logit = simulate(N, seed=1)
    probabilities = expit(2 * logit)
    edges = np.quantile(probabilities, np.linspace(0, 1, 11))
    member = np.searchsorted(edges[1:-1], probabilities)[:, None] == np.arange(10)
    drawn = np.random.default_rng(0).random((2000, N)) < probabilities
    errors = np.abs((drawn - probabilities) @ member).sum(axis=1) / N
    assert doubled.quantile_error.expected == pytest.approx(errors.mean(), rel=0.05)
    assert doubled.quantile_error.upper == pytest.approx(np.quantile(errors, 0.95), rel=0.05)


def test_what_a_perfect_curve_gets_equals_fits_on_the_host(perfect):
    _, logit = simulate(N, seed=1)
    rows, _ = calibration_rows(np.resize([0.0, 1.0], N), expit(logit))
    drawn = (np.random.default_rng(0).random((200, N)) < rows.probability).astype(float)
    fits = [logistic_fit(label, rows.basis, ridge=0.01).coefficients for label in drawn]
    indices = [np.abs(expit(rows.basis @ fit) - rows.probability).mean() for fit in fits]
    assert perfect.ici.expected == pytest.approx(np.mean(indices), rel=0.08)


def test_rows_written_twice_tell_no_more_where_patients_are_known():
    labels, logit = simulate(N, seed=4)
    probabilities, patients = expit(logit), np.arange(N)
    twice = np.random.default_rng(1).permutation(np.tile(np.arange(N), 2))
    once = calibration(labels, probabilities, patients=patients, **QUICK)
    known = calibration(labels[twice], probabilities[twice], patients=patients[twice], **QUICK)
    for name in ESTIMATES:
        ends = [np.array(getattr(found, name).interval[:2]) for found in (once, known)]
        assert_close(ends[1], ends[0], rtol=1e-3)
    assert_close(known.quantile_error[1:5], once.quantile_error[1:5], rtol=1e-4)
    assert (known.n, known.patients, known.unit) == (2 * N, N, "patients")
    bins = [
        reliability_bins(labels[rows], probabilities[rows], patients=who)
        for rows, who in ((slice(None), None), (twice, patients[twice]), (twice, None))
    ]
    assert_close((bins[1].low, bins[1].high), (bins[0].low, bins[0].high), rtol=1e-10)
    assert (bins[2].high - bins[2].low < bins[1].high - bins[1].low).all()


@pytest.mark.slow
def test_rows_written_twice_seem_to_tell_more_where_patients_are_unknown():
    labels, logit = simulate(N, seed=4)
    once = calibration(labels, expit(logit), **QUICK)
    twice = calibration(np.tile(labels, 2), expit(np.tile(logit, 2)), **QUICK)
    for name in ESTIMATES:
        once_width, twice_width = (np.ptp(getattr(found, name).interval[:2]) for found in (once, twice))
        assert twice_width == pytest.approx(once_width / np.sqrt(2), rel=0.15)
    assert twice.quantile_error.expected == pytest.approx(once.quantile_error.expected / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_of_one_patient_share_a_draw_unless_a_patient_has_both_labels(mixed):
    labels = np.repeat([0, 1, 0, 1], 2)
    labels[0] = mixed
    units = _shared_units(labels.astype(float), np.repeat(np.arange(4), 2))
    assert len(np.unique(units)) == (8 if mixed else 4)


def test_calling_the_other_class_positive_turns_the_numbers_round(perfect):
    labels, logit = simulate(N, seed=1)
    other = calibration(1 - labels, expit(-logit), **QUICK)
    assert other.slope.value == pytest.approx(perfect.slope.value, rel=1e-9)
    assert other.brier.value == pytest.approx(perfect.brier.value, rel=1e-9)
    assert other.ici.value == pytest.approx(perfect.ici.value, rel=1e-6)
    for name in ("intercept", "observed_minus_expected"):
        assert getattr(other, name).value == pytest.approx(-getattr(perfect, name).value, rel=1e-6)


def test_separated_classes_have_no_slope():
    labels = np.repeat([0, 1], N // 2)
    apart = calibration(labels, np.linspace(0.1, 0.8, N), **QUICK)
    assert np.isnan(apart.slope.value)
    assert np.isnan(apart.slope.interval.low)
    assert apart.slope.interval.undefined == QUICK["resamples"]
    assert np.isfinite([apart.intercept.value, apart.ici.value, apart.brier.value]).all()
    assert np.isfinite(apart.curve.observed.interval.low).all()


def test_one_prediction_for_everybody_has_no_slope():
    rows, predicted = calibration_rows(np.repeat([0.0, 1.0], [200, 100]), np.full(300, 0.25), points=2)
    found = jax.jit(calibration_statistics)(rows, np.ones(300))
    assert np.isnan(found["slope"])
    assert found["intercept"] == pytest.approx(np.log(0.5 / (1 / 3)), rel=1e-5)
    assert_close(found["curve"], np.full(2, 1 / 3), rtol=1e-3)
    assert predicted.tolist() == [0.25, 0.25]


def test_a_resample_of_one_class_has_neither_slope_nor_intercept():
    labels, logit = simulate(300, seed=1)
    rows, _ = calibration_rows(labels.astype(float), expit(0.7 * logit))
    found = jax.jit(calibration_statistics)(rows, (labels == 0).astype(float))
    assert np.isnan([found[name] for name in ("slope", "intercept", "scaled_brier")]).all()
    assert found["observed_over_expected"] == 0


def test_exact_zeros_and_ones_are_counted_and_harmless():
    labels, logit = simulate(N, seed=5)
    probabilities = expit(logit)
    probabilities[:4] = [0, 1, 0, 1]
    found = calibration(labels, probabilities, **QUICK)
    assert found.clipped == 4
    assert np.isfinite([(getattr(found, name).value, *getattr(found, name).interval) for name in ESTIMATES]).all()


def test_few_predictions_make_few_columns():
    labels = np.array([0, 0, 1, 0, 1, 1] * 10)
    for values, columns in (([0.2, 0.7], 2), ([0.2, 0.4, 0.7], 3)):
        rows, _ = calibration_rows(labels.astype(float), np.resize(np.repeat(values, 6), 60))
        assert rows.basis.shape[1] == columns
        assert_close(rows.basis.T @ rows.basis / 60, np.eye(columns), rtol=1e-9)
        # Where there is a column for every prediction, the curve passes through the observed fractions.
        for value in values:
            here = rows.probability == value
            fitted = expit(rows.basis @ rows.curve)[here]
            assert_close(fitted, np.full(here.sum(), rows.label[here].mean()), rtol=2e-3)


def test_the_curve_is_straight_on_the_logit_beyond_the_outer_knots():
    labels, logit = simulate(300, seed=6)
    rows, _ = calibration_rows(labels.astype(float), expit(logit))
    outside = np.flatnonzero(rows.logit < np.quantile(rows.logit, 0.05))
    fitted = (rows.basis @ rows.curve)[outside]
    line = np.polyval(np.polyfit(rows.logit[outside], fitted, 1), rows.logit[outside])
    assert_close(fitted, line, rtol=1e-8)
    assert rows.basis.shape[1] == 5


def test_histogram_counts_every_row():
    labels, logit = simulate(200)
    found = prediction_histogram(labels, expit(logit), bins=20)
    assert (found.positives.sum(), found.negatives.sum()) == (labels.sum(), 200 - labels.sum())
    assert len(found.edges) == 21


def test_published_predictions_overestimate_risk_as_balanced_training_does():
    table = breast_mri_predictions()
    for model, slope in (("Image-Only", 0.730), ("Learned Feature Fusion", 0.963)):
        part = table[table["model"] == model]
        labels, scores = part["label"].to_numpy(), part["score"].to_numpy(float)
        rows, _ = calibration_rows(labels.astype(float), scores)
        found = jax.jit(calibration_statistics)(rows, np.ones(len(labels)))
        assert found["observed_over_expected"] == pytest.approx(0.42, abs=0.002)
        assert found["slope"] == pytest.approx(slope, abs=0.001)
        assert found["intercept"] < -2
        assert found["scaled_brier"] < 0  # worse than the prevalence for everybody
        bins = reliability_bins(labels, scores)
        assert (bins.high < bins.predicted).all()
        # As if trained at a prevalence of one half: shifting to that of the cases mends most of it, not all.
        shifted = apply(prior_shift(0.5, labels.mean()), scores)
        assert 0.05 < shifted.mean() - labels.mean() < 0.1


@pytest.mark.parametrize(
    ("labels", "probabilities", "options", "message"),
    [
        ([0, 1, 1], [-2.0, 0.3, 4.0], {}, "scores are no probabilities: 2 of 3 lie outside [0, 1], from -2 to 4"),
        ([0, 1, 1], [0.1, np.nan, 0.4], {}, "1 of 3 are NaN"),
        ([1, 1, 1], [0.1, 0.2, 0.4], {}, "only class 1 occurs in 3 rows; calibration needs both classes"),
        ([0, 1, 2], [0.1, 0.2, 0.4], {}, "found 2; expected 0 and 1"),
        ([0, 1], [0.1, 0.2, 0.4], {}, "shape (3,) beside 2 labels"),
        ([0, 1], [0.1, 0.2], {"bins": 1}, "bins: 1; expected at least 2"),
        ([0, 1], [0.1, 0.2], {"points": 1}, "points: 1; expected at least 2"),
        ([0, 1], [0.1, 0.2], {"patients": ["a"]}, "patients: 1 ids for 2 rows"),
    ],
)
def test_what_cannot_be_judged_is_refused(labels, probabilities, options, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        calibration(np.array(labels), np.array(probabilities), **options)


def test_an_unknown_binning_is_refused(unchecked):
    with pytest.raises(ValueError, match="by: 'mass'; expected 'quantile'"):
        reliability_bins(np.array([0, 1]), np.array([0.1, 0.2]), by="mass")


@pytest.mark.slow
def test_p_values_of_perfect_models_are_uniform_and_debiasing_moves_towards_zero():
    found = []
    for seed in range(300):
        labels, logit = simulate(200, seed=seed)
        found.append(calibration(labels, expit(logit), resamples=2, simulations=200, seed=seed))
    for name in ("ici", "quantile_error", "width_error"):
        distances = [getattr(each, name) for each in found]
        p_values = np.array([distance.p_value for distance in distances])
        assert kstest(p_values, "uniform").pvalue > 0.001
        assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.04)
    errors = np.array([(each.quantile_error.value, each.quantile_error.debiased) for each in found])
    assert errors[:, 0].mean() > 0.04
    assert errors[:, 1].mean() < 0.6 * errors[:, 0].mean()
