"""Every experiment has a cohort that becomes batches of the published shapes."""

import numpy as np
import pytest

from experiments.breast_mri import cohort as breast
from experiments.breast_mri.encoding import COLUMNS
from experiments.chest_xray_detection import cohort as chest
from experiments.hcc_recurrence import cohort as liver_cancer
from experiments.hcc_recurrence.encoding import NINE_BITS
from experiments.petct_nas import cohort as sarcoma
from experiments.portal_hypertension import cohort as hypertension
from fusion_jax.data import Batches, check_leakage, encode, given, k_fold
from fusion_jax.data.tabular import Number


def first_batch(cohort, split, size=4):
    check_leakage(cohort, split)
    batch = Batches(cohort, split.rows(cohort).train, size, seed=(0, 0, 0)).at(0)
    assert batch.valid.all()
    for values in batch.inputs.values():
        assert values.dtype == np.float32
        assert np.ptp(values) > 0
    return batch


def test_breast_mri():
    cohort = breast.make_cohort(400)
    [split] = given(cohort, "split").splits
    sizes = [len(part) for part in (split.train, split.validation, split.test)]
    np.testing.assert_allclose(np.divide(sizes, 400), [0.614, 0.098, 0.288], atol=0.01)
    revealed = np.asarray(cohort.table["bi_rads"] == 6)
    assert revealed.any()
    assert "extent" not in set(cohort.table.loc[revealed, "indication"])
    batch = first_batch(encode(cohort, split, COLUMNS)[0], split)
    assert batch.inputs["image"].shape == (4, 224, 224, 1)
    assert batch.inputs["clinical"].shape[1] == 33
    assert 0 <= batch.inputs["image"].min() < batch.inputs["image"].max() <= 1


def test_liver_cancer():
    cohort = liver_cancer.make_cohort(size=64)
    assert (len(cohort), len(set(cohort.patient_id))) == (765, 167)
    splits = k_fold(cohort, 10, seed=0)
    split = splits.splits[0]
    assert len(set(cohort.take(split.rows(cohort).test).patient_id)) in (16, 17)
    batch = first_batch(encode(cohort, split, NINE_BITS)[0], split)
    assert batch.inputs["image"].shape == (4, 64, 64, 3)
    assert batch.inputs["clinical"].shape == (4, 9)
    assert set(np.unique(batch.inputs["clinical"])) <= {0, 1}


def test_sarcoma():
    cohort = sarcoma.make_cohort()
    splits = k_fold(cohort, 6, seed=0)
    assert np.bincount(cohort.label).tolist() == [24, 24]
    split = splits.splits[0]
    batch = first_batch(encode(cohort, split, [Number("age_years", unit="years")])[0], split)
    assert batch.inputs["pet"].shape == batch.inputs["ct"].shape == (4, 36, 28, 28, 1)
    assert 0 <= batch.inputs["pet"].min() < batch.inputs["pet"].max() <= 1


def test_chest_xray():
    cohort = chest.make_cohort(60, size=64)
    [split] = given(cohort, "split").splits
    batch = first_batch(encode(cohort, split, chest.COLUMNS)[0], split, size=8)
    assert batch.inputs["image"].shape == (8, 64, 64, 3)
    assert batch.inputs["clinical"].shape == (8, 10)
    assert batch.target["boxes"].shape[2] == 4
    assert batch.target["box_valid"].any()
    assert batch.target["masks"]["lesion_masks"].shape == (8, 64, 64, 5)


def test_portal_hypertension():
    cohort = hypertension.make_cohort(10, size=48)
    assert hypertension.make_cohort().label.sum() == 119
    split = k_fold(cohort, 2, seed=0).splits[0]
    batch = first_batch(encode(cohort, split, [Number(name) for name in cohort.inputs.columns])[0], split)
    assert batch.inputs["image"].shape == (4, 48, 48, 3)
    assert batch.inputs["clinical"].shape == (4, 3)


@pytest.mark.parametrize("module", [breast, chest, liver_cancer, hypertension])
def test_the_same_seed_gives_the_same_cohort(module):
    n = 60
    first, again = module.make_cohort(n, size=64), module.make_cohort(n, size=64)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != module.make_cohort(n, size=64, seed=1).fingerprint
