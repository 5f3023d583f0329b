"""DeLong equals pROC, its clustered form equals Obuchowski's sums, and nothing is claimed that cannot be known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.data.collections.breast import breast_mri_predictions
from fusion_jax.evaluation.classification import (
    auc,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    youden_point,
)
from fusion_jax.evaluation.delong import delong, delong_interval, delong_test, smallest_detectable_difference


@pytest.fixture(scope="module")
def proc():
    """What pROC 1.18 found; made by proc_values.R beside it."""
    return json.loads(Path(__file__).with_name("proc_values.json").read_text(encoding="utf-8"))


def with_ties():
    i = np.arange(300)
    labels = ((7 * i * i + 3 * i) % 10 < 4).astype(int)
    return labels, np.stack([(37 * i) % 101 + 30 * labels, (53 * i + 11) % 97 + 18 * labels], axis=1)


def published():
    table = breast_mri_predictions()
    scores = table.pivot_table(index="case_id", columns="model", values="score").to_numpy()
    return table.groupby("case_id")["label"].first().to_numpy(), scores


@pytest.mark.parametrize(("name", "data"), [("ties", with_ties), ("breast_mri", published)])
def test_everything_equals_proc(proc, name, data):
    labels, scores = data()
    expected, found = proc[name], delong(labels, scores)
    assert len(labels) == expected["n"]
    near = {"rel": 1e-9}
    assert found.auc == pytest.approx(expected["auc"], **near)
    assert np.diag(found.covariance) == pytest.approx(expected["variance"], **near)
    assert found.covariance[0, 1] == pytest.approx(expected["covariance"], **near)
    for level, suffix in ((0.95, ""), (0.99, "_99")):
        interval = delong_interval(found, level)
        assert interval.low == pytest.approx(expected[f"low{suffix}"], **near)
        assert interval.high == pytest.approx(expected[f"high{suffix}"], **near)
    test = delong_test(found)
    assert test.z[0, 1] == pytest.approx(expected["z"], **near)
    assert test.p_value[0, 1] == pytest.approx(expected["p_value"], rel=1e-7)
    assert test.low[0, 1] == pytest.approx(expected["difference_low"], **near)
    assert test.high[0, 1] == pytest.approx(expected["difference_high"], **near)
    for model in range(2):
        one = scores[:, model]
        held = expected["specificity_at_sensitivity_95"][model], expected["sensitivity_at_specificity_95"][model]
        assert specificity_at_sensitivity(labels, one, 0.95).specificity == pytest.approx(held[0], **near)
        assert sensitivity_at_specificity(labels, one, 0.95).sensitivity == pytest.approx(held[1], **near)
        best = youden_point(labels, one)
        assert best.sensitivity + best.specificity == pytest.approx(expected["youden_sum"][model], **near)


def by_sums(labels, scores, patients):
    """Obuchowski 1997, written out pair by pair and patient by patient."""
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (
        scores[labels == 1][:, None] == scores[labels == 0]
    )
    area, above, below = wins.mean(), wins.mean(axis=1), wins.mean(axis=0)
    of_positives, of_negatives = patients[labels == 1], patients[labels == 0]
    first = second = cross = 0.0
    for patient in np.unique(patients):
        v = sum(above[of_positives == patient] - area)
        w = sum(below[of_negatives == patient] - area)
        first, second, cross = first + v * v, second + w * w, cross + v * w
    m, n = len(above), len(below)
    i10, i01, i = len(np.unique(of_positives)), len(np.unique(of_negatives)), len(np.unique(patients))
    s10, s01 = i10 / ((i10 - 1) * m) * first, i01 / ((i01 - 1) * n) * second
    s11 = i / (i - 1) * cross
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def clustered_cohort(patients, seed, shift=1.0, within=1.0):
    """Two rows a patient, of both classes in every fifth, correlated scores of two models that are equally good."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.random((patients, 1)) < 0.35, 2, axis=1).astype(int)
    labels[:, 1] ^= rng.random(patients) < 0.2
    own = within * rng.normal(size=(patients, 1, 1))
    scores = own + rng.normal(size=(patients, 2, 1)) + rng.normal(size=(patients, 2, 2)) + shift * labels[..., None]
    own_of_model = within * rng.normal(size=(patients, 1, 2))
    return labels.ravel(), (scores + own_of_model).reshape(-1, 2), np.repeat(np.arange(patients), 2)


def test_clustered_variance_equals_obuchowskis_sums():
    labels, scores, patients = clustered_cohort(30, seed=1)
    scores = np.round(scores, 1)
    found = delong(labels, scores, patients)
    assert found.clustered
    assert found.patients == 30
    for model in range(2):
        assert found.covariance[model, model] == pytest.approx(by_sums(labels, scores[:, model], patients), rel=1e-10)


def test_the_variance_of_a_difference_is_that_of_the_covariances():
    labels, scores, patients = clustered_cohort(60, seed=2)
    for found in (delong(labels, scores), delong(labels, scores, patients)):
        c = found.covariance
        assert found.difference_variance[0, 1] == pytest.approx(c[0, 0] + c[1, 1] - 2 * c[0, 1], rel=1e-10)


def test_one_row_a_patient_is_plain_delong():
    labels, scores = with_ties()
    names = np.array([f"patient {row}" for row in np.random.default_rng(0).permutation(len(labels))])
    plain, named = delong(labels, scores), delong(labels, scores, names)
    assert not named.clustered
    for one, other in zip(plain, named, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_every_patient_twice_is_worth_the_single_copy():
    labels, scores = with_ties()
    patients = np.arange(len(labels))
    single = delong(labels, scores)
    twice = delong(np.tile(labels, 2), np.tile(scores, (2, 1)), np.tile(patients, 2))
    np.testing.assert_allclose(twice.auc, single.auc, rtol=1e-12)
    np.testing.assert_allclose(twice.covariance, single.covariance, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(delong_test(twice).p_value, delong_test(single).p_value, rtol=1e-9)
    as_if_independent = delong(np.tile(labels, 2), np.tile(scores, (2, 1)))
    assert (as_if_independent.standard_error < 0.75 * single.standard_error).all()


def test_identical_models_differ_by_nothing():
    labels, scores = with_ties()
    same = np.stack([scores[:, 0], scores[:, 0], np.exp(scores[:, 0] / 50.0)], axis=1)  # a third of the same ranking
    for patients in (None, np.arange(300) // 3):
        test = delong_test(delong(labels, same, patients))
        assert (test.difference == 0).all()
        assert (test.z == 0).all()
        assert (test.p_value == 1).all()
        assert (test.low == 0).all()
        assert (test.high == 0).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 4), st.integers(0, 5)), min_size=4, max_size=25
    )
)
def test_invariances_hold_with_ties(rows):
    labels, first, second, patients = np.array(rows).T
    if not 0 < labels.sum() < len(labels):
        return
    scores = np.stack([first, second], axis=1)
    found, turned = delong(labels, scores, patients), delong(1 - labels, -scores, patients)
    np.testing.assert_allclose(found.auc, [auc(labels, first), auc(labels, second)], rtol=1e-12)
    np.testing.assert_allclose(turned.auc, found.auc, rtol=1e-12)
    np.testing.assert_allclose(turned.covariance, found.covariance, atol=1e-12)
    test = delong_test(found)
    np.testing.assert_array_equal(test.z, -test.z.T)
    np.testing.assert_array_equal(test.p_value, test.p_value.T)
    for scale in ("area", "logit"):
        interval = delong_interval(found, scale=scale)
        known = ~np.isnan(interval.low)
        assert (interval.low[known] >= 0).all()
        assert (interval.high[known] <= 1).all()
        assert (interval.low[known] <= found.auc[known] + 1e-12).all()


def test_the_logit_interval_is_the_back_transform_of_a_symmetric_one():
    labels, scores = with_ties()
    found = delong(labels, scores)
    interval = delong_interval(found, scale="logit")
    low, high = (np.log(end / (1 - end)) for end in (interval.low, interval.high))
    np.testing.assert_allclose((low + high) / 2, np.log(found.auc / (1 - found.auc)), rtol=1e-12)
    np.testing.assert_allclose((high - low) / 2, 1.959963985 * found.standard_error / (found.auc * (1 - found.auc)))


def test_what_cannot_be_known_is_nan():
    single_event = delong(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 2]))
    assert single_event.auc.tolist() == [0.5]
    assert math.isnan(single_event.covariance[0, 0])
    assert math.isnan(delong_interval(single_event).low[0])
    one_patient = delong(np.array([0, 0, 1, 1]), np.array([1, 2, 2, 3]), ["a", "b", "c", "c"])
    assert math.isnan(one_patient.covariance[0, 0])
    perfect = delong(np.array([0, 0, 1, 1]), np.array([[1, 1], [2, 1], [3, 1], [4, 1]]))
    interval, test = delong_interval(perfect), delong_test(perfect)
    assert math.isnan(interval.low[0])  # an area of 1 in four cases is not known to be 1
    assert (interval.low[1], interval.high[1]) == (0.5, 0.5)  # a constant score ranks nothing, whatever the cases
    assert math.isnan(test.p_value[0, 1])
    assert math.isnan(test.low[0, 1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delong(np.ones(12, int), np.arange(12)), "labels: only class 1 occurs in 12 rows; an AUC needs both"),
        (lambda: delong(np.zeros(0, int), np.zeros(0)), "labels: no rows; an AUC needs rows of both classes"),
        (lambda: delong(np.array([0, 1]), np.array([[0, 1], [np.inf, 2]])), "scores: inf in row 1"),
        (lambda: delong(np.array([0, 1]), np.array([0, 1]), ["a"]), "patients: 1 ids for 2 rows"),
        (lambda: delong(np.array([0, 1]), np.array([0, 1]), ["a", None]), "patients: no id in row 1"),
        (lambda: delong(np.array([0, 1]), np.array([0, 1]), [1.0, np.nan]), "patients: no id in row 1"),
        (lambda: delong_interval(delong(*with_ties()), 95), "level: 95; expected a fraction"),
        (lambda: delong_interval(delong(*with_ties()), scale="probit"), "scale: 'probit'; expected 'area' or 'logit'"),
        (lambda: smallest_detectable_difference(0.1, power=80), "power 80 at level 0.05"),
        (lambda: smallest_detectable_difference(-0.1), "standard error: -0.1"),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_detectable_difference_is_found_as_often_as_it_says():
    rng = np.random.default_rng(0)
    difference = smallest_detectable_difference(0.02, power=0.8, level=0.05)
    assert difference == pytest.approx(0.02 * (1.959964 + 0.841621), rel=1e-6)
    found = np.abs(rng.normal(difference, 0.02, 20_000) / 0.02) > 1.959964
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(smallest_detectable_difference(np.array([0.0, 0.02, np.nan])), [0, difference, np.nan])


def false_positives(rounds, patients, **options):
    """How often two equally good models are said to differ, with patients as clusters and with rows as cases."""
    clustered = independent = 0
    for seed in range(rounds):
        labels, scores, owners = clustered_cohort(patients, seed=[7, seed], **options)
        clustered += delong_test(delong(labels, scores, owners)).p_value[0, 1] < 0.05
        independent += delong_test(delong(labels, scores)).p_value[0, 1] < 0.05
    return clustered / rounds, independent / rounds


def test_ten_copies_of_every_case_do_not_make_a_difference_significant():
    rejected = stacked = 0
    for seed in range(200):
        rng = np.random.default_rng([3, seed])
        labels = np.repeat([0, 1], 30)
        scores = rng.normal(size=(60, 2)) + rng.normal(size=(60, 1)) + labels[:, None]
        ten = np.tile(labels, 10), np.tile(scores, (10, 1)) + 0.3 * rng.normal(size=(600, 2))
        rejected += delong_test(delong(*ten, np.tile(np.arange(60), 10))).p_value[0, 1] < 0.05
        stacked += delong_test(delong(*ten)).p_value[0, 1] < 0.05
    assert rejected / 200 < 0.1  # four standard errors above 0.05 are 0.11
    assert stacked / 200 > 0.3


@pytest.mark.slow
def test_two_rows_a_patient_keep_their_level_and_coverage():
    clustered, independent = false_positives(2000, 100, within=1.5)
    assert clustered == pytest.approx(0.05, abs=0.015)
    assert independent != pytest.approx(0.05, abs=0.025)
    inside = {"area": 0, "logit": 0}
    truth = delong(*clustered_cohort(200_000, seed=5)[:2]).auc[0]
    for seed in range(2000):
        labels, scores, owners = clustered_cohort(60, seed=[11, seed])
        found = delong(labels, scores[:, 0], owners)
        for scale in inside:
            interval = delong_interval(found, scale=scale)
            inside[scale] += bool(interval.low[0] <= truth <= interval.high[0])
    assert inside["area"] / 2000 == pytest.approx(0.95, abs=0.02)
    assert inside["logit"] / 2000 == pytest.approx(0.95, abs=0.015)
