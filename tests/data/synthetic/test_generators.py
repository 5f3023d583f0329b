"""What every generator promises."""

import pickle

import numpy as np
import pytest

from fusion_jax.data.synthetic import (
    breast_mri,
    chest_xray,
    liver_cancer_ct,
    portal_hypertension_ct,
    sarcoma_pet_ct,
)

SMALL = {
    "breast": (lambda seed: breast_mri(70, size=48, seed=seed)),
    "chest": (lambda seed: chest_xray(60, size=64, seed=seed)),
    "hcc": (lambda seed: liver_cancer_ct(30, size=64, seed=seed)),
    "liver": (lambda seed: portal_hypertension_ct(10, shape=(16, 45, 55), spacing=(10.0, 4.0, 4.0), seed=seed)),
    "sarcoma": (lambda seed: sarcoma_pet_ct(6, shape=(12, 24, 24), spacing=(10.0, 5.0, 5.0), seed=seed)),
}
LARGE = {
    "breast": (lambda: breast_mri(40_000, seed=1)),
    "chest": (lambda: chest_xray(6_000, seed=1)),
    "hcc": (lambda: liver_cancer_ct(3_000, seed=1)),
    "liver": (lambda: portal_hypertension_ct(40_000, seed=1)),
    "sarcoma": (lambda: sarcoma_pet_ct(40_000, seed=1)),
}


@pytest.fixture(scope="module", params=SMALL)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def small(kind):
    return SMALL[kind](3)


@pytest.fixture(scope="module")
def large(kind):
    return LARGE[kind]()


def images(cohort):
    return [name for name, source in cohort.sources.items() if source.kind != "table"]


def test_a_case_is_the_same_in_any_order_and_in_another_process(small):
    cohort, _ = small
    last = len(cohort) - 1
    for name in images(cohort):
        source = cohort.sources[name]
        alone = pickle.loads(pickle.dumps(source))[last]  # noqa: S301 - what a loader's worker does
        source[0]
        np.testing.assert_array_equal(source[last], alone)
        np.testing.assert_array_equal(source.take(np.array([last, 0]))[0], alone)


def test_the_seed_decides(kind, small):
    again, other = SMALL[kind](3), SMALL[kind](4)
    assert again.cohort.fingerprint == small.cohort.fingerprint != other.cohort.fingerprint
    name = images(small.cohort)[0]
    assert (small.cohort.sources[name][0] != other.cohort.sources[name][0]).any()


def test_cases_differ(small):
    cohort, _ = small
    for name in images(cohort):
        if cohort.sources[name].kind == "image":
            assert not np.array_equal(cohort.sources[name][0], cohort.sources[name][len(cohort) - 1])


def test_images_are_finite_with_a_channel_axis_and_their_place(small):
    cohort, _ = small
    for name in images(cohort):
        image = cohort.image(name, 1)
        assert image.values.dtype == (np.uint8 if cohort.sources[name].kind == "mask" else np.float32)
        assert np.isfinite(image.values).all()
        if image.values.ndim == 4:
            assert len(image.spacing) == 3
            lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
            np.testing.assert_allclose(lengths, image.spacing)
            # To the head, to the back and to the patient's left: +z, -y and -x in RAS+.
            assert (np.sign(image.affine[:3, :3]) == [[0, 0, -1], [0, -1, 0], [1, 0, 0]]).all()


def test_labels_are_those_of_the_truth(small):
    cohort, truth = small
    assert truth.targets == cohort.columns("label")
    np.testing.assert_array_equal(cohort.table[list(truth.targets)].to_numpy(), truth.label)
    assert cohort.classes == ("0", "1")
    assert (np.bincount(cohort.label) > 0).all()


def test_nothing_hidden_is_an_input(small):
    cohort, truth = small
    assert not set(truth.hidden) & set(cohort.columns("input"))
    assert not set(truth.targets) & set(cohort.columns("input"))


def test_evidence_is_a_likelihood_ratio(large):
    r"""Of any, E[exp(l) | 0] = 1 = E[exp(-l) | 1]; a wrong sign, scale or double counting breaks it."""
    _, truth = large
    joint = {} if truth.together is None else {"together": truth.together}
    for source, evidence in {**truth.evidence, **joint}.items():
        for k in range(len(truth.targets)):
            positive = truth.label[:, k] == 1
            for ratio in (np.exp(evidence[~positive, k]), np.exp(-evidence[positive, k])):
                # Weights have heavy tails: the error is taken from the sample.
                error = ratio.std() / np.sqrt(len(ratio)) * (2.2 if "fold" in large.cohort.table else 1)
                assert abs(ratio.mean() - 1) < 5 * error + 0.01, (source, k, ratio.mean(), error)


def test_more_sources_tell_more(large):
    _, truth = large
    if truth.together is not None:
        together = truth.auc()
        assert together.value > max(truth.auc(source).value for source in truth.evidence)


def test_patients_do_not_cross_splits(small):
    cohort, _ = small
    for column in {"split", "fold"} & set(cohort.table.columns):
        groups = dict(zip(cohort.patient_id, cohort.table[column], strict=True))
        assert [groups[patient] for patient in cohort.patient_id] == list(cohort.table[column])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: breast_mri(20), "breast_mri: 20 cases; expected at least 60"),
        (lambda: breast_mri(60, size=8), "size 8 pixels; expected at least 32"),
        (lambda: chest_xray(10), "chest_xray: 10 cases"),
        (lambda: chest_xray(60, size=8), "size 8 pixels; expected at least 64"),
        (lambda: liver_cancer_ct(10), "liver_cancer_ct: 10 cases"),
        (lambda: liver_cancer_ct(30, size=8), "size 8 pixels over 380 mm"),
        (lambda: portal_hypertension_ct(3), "portal_hypertension_ct: 3 cases"),
        (lambda: portal_hypertension_ct(20, shape=(8, 8, 8)), "the grid spans .* mm; expected at least 150"),
        (lambda: sarcoma_pet_ct(2), "sarcoma_pet_ct: 2 cases"),
        (lambda: sarcoma_pet_ct(4, shape=(8, 8, 8)), "the grid spans .* mm; expected at least 120"),
        (lambda: sarcoma_pet_ct(4, uptake=-1.0), "uptake is -1.0; expected a d' of at least 0"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
