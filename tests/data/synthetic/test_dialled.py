import itertools
import pickle
import re

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from fusion_jax.data.synthetic import (
    Signal,
    area_under_curve,
    auc_of_d_prime,
    bayes_auc,
    d_prime,
    dial,
    log_likelihood_ratio,
)

BOTH = {"image": 0.0, "clinical": 0.0}


def agrees(auc, expected, errors=4.0):
    return abs(auc.value - expected) < errors * auc.standard_error


# The bound


@pytest.mark.parametrize(
    "signal",
    [
        Signal({"image": 1.0, "clinical": 0.6}),
        Signal({"image": 1.0, "clinical": 0.6}, redundant=0.8, noisy_redundant=0.4, prevalence=0.1),
        Signal({"a": 0.3, "b": 0.0, "c": 1.2}, noisy_redundant=0.7),
    ],
)
def test_monte_carlo_agrees_with_the_closed_form(signal):
    for size in range(1, len(signal.unique) + 1):
        for sources in itertools.combinations(signal.unique, size):
            auc = bayes_auc(signal, sources, n=50_000)
            assert auc.standard_error < 0.003
            assert agrees(auc, auc_of_d_prime(d_prime(signal, sources)))


def test_a_million_cases_are_the_default():
    auc = bayes_auc(Signal({"image": 1.0}))
    assert auc.standard_error < 0.0005
    assert agrees(auc, auc_of_d_prime(1.0))


def test_fusion_cannot_help_where_sources_are_identically_redundant():
    signal = Signal(BOTH, redundant=1.2)
    one, both = bayes_auc(signal, ["image"], n=50_000), bayes_auc(signal, n=50_000)
    assert one == both
    assert agrees(both, auc_of_d_prime(1.2))


def test_noisily_redundant_sources_add_in_quadrature():
    signal = Signal({"a": 0.0, "b": 0.0, "c": 0.0}, noisy_redundant=0.8)
    assert d_prime(signal, ["a"]) == pytest.approx(0.8)
    assert d_prime(signal) == pytest.approx(0.8 * np.sqrt(3))
    both, one = bayes_auc(signal, ["a", "b"], n=50_000), bayes_auc(signal, ["a"], n=50_000)
    assert agrees(both, auc_of_d_prime(0.8 * np.sqrt(2)))
    assert both.value > one.value + 10 * one.standard_error


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_synergy_is_seen_by_all_sources_together_only(names):
    signal = Signal(dict.fromkeys(names, 0.0), synergy=1.5)
    for size in range(1, len(names)):
        for sources in itertools.combinations(names, size):
            assert bayes_auc(signal, sources, n=10_000).value == 0.5
    together = bayes_auc(signal, n=50_000)
    assert together.value > 0.8
    # No single coordinate or pair of three separates the classes either, whatever is made of it.
    _, truth = dial(4_000, unique=dict.fromkeys(names, 0.0), synergy=1.5)
    for name in names:
        for statistic in (truth.hidden[name][:, 3], np.abs(truth.hidden[name][:, 3])):
            assert agrees(area_under_curve(statistic, truth.label[:, 0] == 1), 0.5)


def test_the_likelihood_ratio_is_that_of_the_densities():
    """Against the mixture over signs, written out term by term."""
    signal = Signal({"a": 0.7, "b": 0.2, "c": 0.0}, redundant=0.5, noisy_redundant=0.3, synergy=1.1)
    _, truth = dial(40, unique=signal.unique, redundant=0.5, noisy_redundant=0.3, synergy=1.1, dimension=4)
    density = np.zeros((2, 40))
    x = {name: truth.hidden[name] for name in signal.unique}
    for y in (0, 1):
        c = y - 0.5
        linear = norm.pdf(x["a"][:, 1] - 0.5 * c)
        for name, own in signal.unique.items():
            linear = linear * norm.pdf(x[name][:, 0] - own * c) * norm.pdf(x[name][:, 2] - 0.3 * c)
        for signs in itertools.product((-1, 1), repeat=3):
            if np.prod(signs) == 2 * y - 1:
                terms = [norm.pdf(x[name][:, 3] - 1.1 * t) for name, t in zip(signal.unique, signs, strict=True)]
                density[y] += linear * np.prod(terms, axis=0) / 4
    assert truth.together is not None
    np.testing.assert_allclose(truth.together[:, 0], np.log(density[1] / density[0]), rtol=1e-9)


def test_strong_signs_stay_finite():
    coordinates = {name: np.array([[0.0, 0.0, 0.0, 500.0]]) for name in BOTH}
    assert np.isfinite(log_likelihood_ratio(Signal(BOTH, synergy=5.0), coordinates)).all()


# Models against the bound


def halves(cohort):
    x = np.concatenate([source.values for source in cohort.sources.values()], axis=1)
    # The shared coordinate is in both sources; twice the same number makes a singular covariance.
    np.testing.assert_array_equal(x[:, 1], x[:, 7])
    x = np.delete(x, 7, axis=1)
    return x[::2], x[1::2], cohort.label[::2], cohort.label[1::2]


@pytest.mark.parametrize(
    ("model", "strengths"),
    [
        (LogisticRegression(), {"redundant": 0.5, "noisy_redundant": 0.6}),
        (QuadraticDiscriminantAnalysis(), {"synergy": 1.5}),
    ],
)
def test_a_good_model_comes_close_to_the_bound_and_not_past_it(model, strengths):
    unique = {"image": 0.8, "clinical": 0.4} if "redundant" in strengths else BOTH
    cohort, _ = dial(20_000, unique=unique, **strengths, dimension=6)
    train, test, label, truth = halves(cohort)
    auc = area_under_curve(model.fit(train, label).predict_proba(test)[:, 1], truth == 1)
    bound = bayes_auc(Signal(unique, **strengths), n=200_000).value
    assert bound - 0.03 < auc.value < bound + 3 * auc.standard_error


def test_the_cohorts_own_evidence_agrees_with_the_population():
    strengths = {"redundant": 0.5, "noisy_redundant": 0.6, "synergy": 1.0}
    unique = {"image": 0.8, "clinical": 0.4}
    _, truth = dial(5_000, unique=unique, **strengths, dimension=4, prevalence=0.2)
    for source in (None, *unique):
        population = bayes_auc(Signal(unique, **strengths), None if source is None else [source], n=50_000)
        assert agrees(truth.auc(source), population.value)


# The cohort


def test_the_shared_coordinate_is_one_number_and_the_others_are_not():
    _, truth = dial(500, unique=BOTH, redundant=1.0, noisy_redundant=1.0)
    image, clinical = truth.hidden["image"], truth.hidden["clinical"]
    np.testing.assert_array_equal(image[:, 1], clinical[:, 1])
    others = np.concatenate([np.delete(image, 1, axis=1), np.delete(clinical, 1, axis=1)], axis=1)
    correlation = np.corrcoef(np.concatenate([others, image[:, [1]]], axis=1).T) - np.eye(15)
    assert np.abs(correlation).max() < 0.35


def test_a_picture_holds_exactly_its_coordinates():
    cohort, truth = dial(30, unique={"image": 1.0}, dimension=9, images={"image": 31}, seed=2)
    source = cohort.sources["image"]
    lone = dial(30, unique={"image": 1.0}, dimension=9, images={"image": 31}, seed=2).truth.hidden["image"]
    np.testing.assert_array_equal(lone, truth.hidden["image"])
    cell, profile = 10, np.sin(np.pi * (np.arange(10) + 0.5) / 10)
    bump = np.outer(profile, profile)
    for row in range(30):
        image = source[row][..., 0].astype(np.float64)
        for j in range(9):
            y, x = (cell * k for k in divmod(j, 3))
            seen = (image[y : y + cell, x : x + cell] * bump).sum() / np.square(bump).sum()
            assert seen == pytest.approx(truth.hidden["image"][row, j], abs=1e-6)
    assert np.std(source[0] - source[1]) > 0.25


@pytest.mark.parametrize(("n", "prevalence", "positive"), [(10, 0.5, 5), (11, 0.3, 3), (1000, 0.013, 13)])
def test_prevalence_is_met_to_the_nearest_case(n, prevalence, positive):
    cohort, _ = dial(n, unique=BOTH, prevalence=prevalence)
    assert cohort.label.sum() == positive


def test_noise_of_a_case_does_not_depend_on_the_other_cases():
    few, many = (dial(n, unique={"image": 0.0}, seed=4).truth.hidden["image"] for n in (10, 50))
    np.testing.assert_array_equal(few, many[:10])


def test_pictures_can_be_read_in_another_process():
    cohort, _ = dial(6, unique=BOTH, images={"image": 16})
    again = pickle.loads(pickle.dumps(cohort.sources["image"]))  # noqa: S301 - what a loader's worker does
    np.testing.assert_array_equal(again[4], cohort.sources["image"][4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unique": {}}, "unique names no source"),
        ({"unique": {"image": -1.0}}, "unique['image'] is -1.0; expected a strength of at least 0"),
        ({"unique": BOTH, "redundant": np.inf}, "redundant is inf"),
        ({"unique": {"image": 1.0}, "synergy": 1.0}, "synergy of a single source"),
        ({"unique": BOTH, "prevalence": 1.0}, "prevalence is 1.0; expected a share between 0 and 1"),
        ({"unique": BOTH, "dimension": 3}, "source 'image': dimension 3; expected at least 4"),
        ({"unique": BOTH, "dimension": {"ct": 8}}, "dimension names 'ct'; the sources are 'image', 'clinical'"),
        ({"unique": BOTH, "images": {"image": 8}}, "images['image'] is 8 pixels; expected at least 9 for 8 blobs"),
        ({"unique": BOTH, "images": {"pet": 32}}, "images names 'pet'"),
    ],
)
def test_what_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dial(10, **arguments)


def test_sources_that_the_signal_does_not_have_are_named():
    with pytest.raises(ValueError, match="source 'pet': the signal has 'image', 'clinical'"):
        bayes_auc(Signal(BOTH), ["pet"])
    with pytest.raises(ValueError, match="no source is seen"):
        bayes_auc(Signal(BOTH), [])
