"""Recalibration: the maps are those of the reference packages, fitted on validation rows, and refuse the rest."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from fusion_jax.evaluation.recalibration import (
    METHODS,
    Recalibration,
    ValidationRows,
    apply,
    as_logits,
    isotonic,
    logistic_fit,
    platt,
    prior_shift,
    recalibrate,
    separated,
    temperature,
)
from tests.helpers import assert_close


def simulate(n, seed=0, factor=1.0):
    """Labels and probabilities that are `factor` times too sure."""
    rng = np.random.default_rng([seed, n])
    logit = rng.normal(-0.5, 1.5, size=n)
    return (rng.random(n) < expit(logit)).astype(int), expit(factor * logit)


def log_loss(labels, probabilities):
    inside = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -np.mean(np.where(labels == 1, np.log(inside), np.log(1 - inside)))


def test_logistic_fit_equals_statsmodels_and_scikit_learn():
    import statsmodels.api as sm
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(200), rng.normal(size=(200, 2))])
    label = (rng.random(200) < expit(design @ [0.3, 2.0, -1.0])).astype(float)
    weights, offset = rng.integers(1, 4, 200).astype(float), rng.normal(size=200)
    fit = logistic_fit(label, design, weights=weights, offset=offset)
    wanted = sm.GLM(label, design, sm.families.Binomial(), freq_weights=weights, offset=offset).fit(tol=1e-12)
    assert fit.converged
    assert_close(fit.coefficients, wanted.params, rtol=1e-8)
    ridged = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, label)
    assert_close(logistic_fit(label, design, ridge=0.7).coefficients, ridged.coef_[0], rtol=1e-5)


@given(st.integers(0, 10**6), st.floats(0.01, 60), st.floats(-20, 20))
def test_logistic_fit_converges_however_far_the_start_is(seed, spread, shift):
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, spread, 50)
    label = rng.integers(0, 2, 50).astype(float)
    label[:2], label[-2:] = [0, 1], [1, 0]
    if separated(label, x):
        return
    design = np.stack([np.ones(50), x], axis=1)
    fit = logistic_fit(label, design)
    assert fit.converged
    residual = label - expit(design @ fit.coefficients)
    assert np.abs(residual @ design).max() < 1e-6 * np.abs(design).sum(axis=0).max()


def test_logistic_fit_of_separated_classes_or_a_repeated_column_is_nan():
    ones = np.ones(6)
    for design in (np.stack([ones, np.arange(6.0)], axis=1), np.stack([ones, ones], axis=1)):
        fit = logistic_fit(np.repeat([0.0, 1.0], 3), design)
        assert not fit.converged
        assert np.isnan(fit.coefficients).all()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=12))
def test_separated_means_that_no_finite_slope_fits_best(rows):
    label, score = np.array(rows).T
    if len(set(label)) < 2:
        return
    pairs = [(a, b) for a in score[label == 0] for b in score[label == 1]]
    rising, falling = all(a <= b for a, b in pairs), all(a >= b for a, b in pairs)
    assert separated(label, score.astype(float)) == (rising or falling)


def test_platt_equals_statsmodels_on_platts_targets():
    import statsmodels.api as sm

    labels, probabilities = simulate(300, factor=2.0)
    positives, negatives = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    wanted = sm.GLM(target, sm.add_constant(as_logits(probabilities)), sm.families.Binomial()).fit(tol=1e-12)
    fit = platt(labels, probabilities)
    assert_close(np.array([fit.intercept, fit.slope]), wanted.params, rtol=1e-8)
    assert (fit.n, fit.events) == (300, labels.sum())


def test_platt_stays_finite_where_the_classes_are_separated():
    fit = platt(np.repeat([0, 1], 10), np.linspace(0.05, 0.95, 20))
    assert 0 < fit.slope < 20
    done = apply(fit, np.array([0.05, 0.95]))
    assert 0.001 < done[0] < 0.1
    assert 0.9 < done[1] < 0.999


def test_temperature_has_the_least_log_loss():
    from scipy.optimize import minimize_scalar

    labels, probabilities = simulate(400, factor=2.0)
    fit = temperature(labels, probabilities)
    logits = as_logits(probabilities)
    best = minimize_scalar(lambda t: log_loss(labels, expit(logits / t)), bounds=(0.1, 10), method="bounded")
    assert 1 / fit.slope == pytest.approx(best.x, rel=1e-4)
    assert fit.intercept == 0
    assert apply(fit, np.array([0.5])) == pytest.approx(0.5)


def test_isotonic_equals_scikit_learn_inside_and_outside():
    from sklearn.isotonic import IsotonicRegression

    labels, probabilities = simulate(300, factor=2.0)
    inside = (probabilities > 0.1) & (probabilities < 0.9)
    labels, probabilities = labels[inside], probabilities[inside].round(2)
    wanted = IsotonicRegression(out_of_bounds="clip").fit(probabilities, labels)
    points = np.linspace(0, 1, 501)
    assert_close(apply(isotonic(labels, probabilities), points), wanted.predict(points), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_on_validation_rows_mends_the_test_rows(method):
    validation = simulate(4000, seed=1, factor=2.0)
    labels, probabilities = simulate(4000, seed=2, factor=2.0)
    done = apply(METHODS[method](*validation), probabilities)
    _, truth = simulate(4000, seed=2)
    assert np.abs(done - truth).mean() < 0.03 < 0.07 < np.abs(probabilities - truth).mean()
    assert log_loss(labels, done) < log_loss(labels, probabilities) - 0.03
    assert (np.diff(done[np.argsort(probabilities)]) >= 0).all()


def test_prior_shift_is_bayes_rule_and_can_be_undone():
    likelihood_ratio = np.array([0.1, 1.0, 7.0])
    before, after = (p * likelihood_ratio / (p * likelihood_ratio + 1 - p) for p in (0.3, 0.02))
    assert_close(apply(prior_shift(0.3, 0.02), before), after, rtol=1e-12)
    assert_close(apply(prior_shift(0.02, 0.3), after), before, rtol=1e-12)
    assert_close(apply(prior_shift(0.3, 0.3), before), before, rtol=1e-12)
    ends = apply(prior_shift(0.5, 0.1), np.array([0.0, 1e-9, 1 - 1e-9, 1.0]))
    assert ends[0] == 0
    assert ends[3] == pytest.approx(1, abs=1e-12)
    assert (np.diff(ends) > 0).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(-5, 5), st.floats(0.05, 3))
def test_a_line_of_positive_slope_keeps_the_order(probabilities, intercept, slope):
    ordered = np.sort(probabilities)
    done = apply(Recalibration("platt", intercept, slope), ordered)
    assert (np.diff(done) >= 0).all()
    assert ((done >= 0) & (done <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_json(method):
    fit = METHODS[method](*simulate(200, factor=2.0))
    read = Recalibration(**json.loads(json.dumps(fit._asdict())))
    points = np.linspace(0, 1, 101)
    assert (apply(read, points) == apply(fit, points)).all()


def test_every_fold_has_its_own_map():
    parts = [simulate(600, seed=3, factor=2.0), simulate(600, seed=4, factor=0.5)]
    order = np.random.default_rng(0).permutation(1200)
    labels, probabilities = (np.concatenate(each)[order] for each in zip(*parts, strict=True))
    folds = np.repeat(["r0 f0", "r0 f1"], 600)[order]
    test = np.array([0.2, 0.2, 0.9])
    done = recalibrate(
        test, np.array(["r0 f1", "r0 f0", "r0 f1"]), validation=ValidationRows(labels, probabilities, folds)
    )
    maps = [platt(*part) for part in parts]
    expected = [apply(maps[number], test[row : row + 1])[0] for row, number in ((0, 1), (1, 0), (2, 1))]
    assert_close(done.probabilities, np.array(expected), rtol=1e-8)
    assert done.fits["r0 f0"].slope == pytest.approx(0.5, abs=0.1)
    assert done.fits["r0 f1"].slope == pytest.approx(2, abs=0.4)
    assert done.warnings == ()


def test_a_reader_is_told_of_few_events_and_of_a_map_that_turns_the_order_round():
    labels, probabilities = simulate(40, seed=5)
    folds = np.zeros(40, int)
    done = recalibrate(probabilities, folds, validation=ValidationRows(1 - labels, probabilities, folds))
    few, turned = done.warnings
    assert f"fewest in fold 0: 40, {min(labels.sum(), 40 - labels.sum())} of the smaller class" in few
    assert re.search(r"slope -\d.*turns the order of the cases round", turned)


ROWS = ValidationRows(np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.6, 0.6, 0.8, 0.9]), np.array([0, 0, 0, 0, 1]))


@pytest.mark.parametrize(
    ("probabilities", "folds", "options", "message"),
    [
        ([0.5], [0], {"validation": None}, "there are no validation rows"),
        ([0.5], [0], {"validation": ValidationRows(*(part[:0] for part in ROWS))}, "there are no validation rows"),
        ([0.5], [2], {"validation": ROWS}, "fold 2 needs validation rows of both classes, and it has none"),
        ([0.5], [1], {"validation": ROWS}, "fold 1 needs validation rows of both classes, and only class 1 occurs in"),
        ([0.5], [0], {"validation": ROWS, "method": "beta"}, "method: 'beta'; expected one of platt, temperature"),
        ([1.5], [0], {"validation": ROWS}, "scores are no probabilities: 1 of 1 lie outside [0, 1]"),
        ([0.5, 0.5], [0], {"validation": ROWS}, "shape (2,) beside 1 label"),
    ],
)
def test_recalibration_without_its_rows_is_refused(probabilities, folds, options, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        recalibrate(np.array(probabilities), np.array(folds), **options)


@pytest.mark.parametrize(
    ("fit", "arguments", "message"),
    [
        (platt, ([0, 1], [0.3, 0.3]), "all 2 are 0.3; a slope needs different ones"),
        (temperature, ([0, 1], [0.3, 0.7]), "no error at 0.5 among the 2 validation rows"),
        (temperature, ([1, 0], [0.3, 0.7]), "point the wrong way or nowhere"),
        (isotonic, ([1, 1], [0.3, 0.7]), "only class 1 occurs in 2 rows; recalibration needs both classes"),
        (platt, ([0, 1], [-3.0, 0.7]), "scores are no probabilities: 1 of 2"),
    ],
)
def test_maps_that_do_not_exist_are_refused(fit, arguments, message):
    labels, probabilities = arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(np.array(labels), np.array(probabilities))


@pytest.mark.parametrize(("given_at", "wanted", "name"), [(0, 0.1, "given"), (0.1, 1, "wanted"), (20, 0.1, "given")])
def test_impossible_prevalences_are_refused(given_at, wanted, name):
    with pytest.raises(ValueError, match=f"{name}: .* expected a fraction between 0 and 1"):
        prior_shift(given_at, wanted)
