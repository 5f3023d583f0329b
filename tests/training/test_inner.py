"""Inner splits: patients of training alone, whole, in their shares; none where there are too few."""

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, k_fold
from fusion_jax.training.inner import LEAST, inner_split


def make_cohort(patients, cases=2, positive=0.5, **others):
    """Patients with several cases each, all of one class."""
    label = (np.arange(patients) < positive * patients).astype(int)
    return Cohort.from_arrays(
        {"clinical": np.zeros((patients * cases, 1))},
        label=np.repeat(label, cases),
        case_id=[f"c{row:04d}" for row in range(patients * cases)],
        patient_id=np.repeat([f"p{number:04d}" for number in range(patients)], cases),
        **others,
    )


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(240, positive=0.3)


def test_parts_share_no_patient_and_hold_training_cases_alone(cohort):
    for split in k_fold(cohort, 4, seed=1).splits:
        inner = inner_split(cohort, split, seed=0)
        fitted, looked = set(cohort.patient_id[inner.train_rows]), set(cohort.patient_id[inner.validation_rows])
        tested = set(cohort.patient_id[split.rows(cohort).test])
        assert not fitted & looked
        assert not (fitted | looked) & tested
        assert sorted([*inner.train_rows, *inner.validation_rows]) == split.rows(cohort).train.tolist()
        assert len(looked) == 36  # a fifth of 180
        assert not inner.is_fixed


def test_classes_keep_their_shares(cohort):
    inner = inner_split(cohort, k_fold(cohort, 4, seed=1).splits[0], seed=0)
    assert np.bincount(cohort.label[inner.validation_rows]).tolist() == [50, 22]  # cases of 25 and 11 patients


def test_draw_follows_from_seed_repeat_and_fold(cohort):
    one, other = k_fold(cohort, 4, seed=1).splits[:2]
    first = inner_split(cohort, one, seed=0)
    assert np.array_equal(first.validation_rows, inner_split(cohort, one, seed=0).validation_rows)
    assert not np.array_equal(first.validation_rows, inner_split(cohort, one, seed=1).validation_rows)
    moved = inner_split(cohort, one._replace(fold=other.fold), seed=0)
    assert not np.array_equal(first.validation_rows, moved.validation_rows)


def test_cohort_without_the_test_cases_gives_the_same_patients(cohort):
    split = k_fold(cohort, 4, seed=1).splits[2]
    whole = inner_split(cohort, split, seed=0)
    part = cohort.take(split.rows(cohort).train)
    alone = inner_split(part, split, seed=0)
    assert [part.case_id[row] for row in alone.validation_rows] == [
        cohort.case_id[row] for row in whole.validation_rows
    ]


def test_too_few_patients_mean_a_fixed_epoch_and_cases_do_not_count_for_patients():
    small = make_cohort(60, cases=10)  # 22 or 23 training patients of either class, 225 cases
    split = k_fold(small, 4, seed=0).splits[0]
    inner = inner_split(small, split, seed=0)
    assert inner.is_fixed
    assert len(inner.train_rows) == len(split.train)
    assert f"class 1 has 22 of them and {LEAST} are needed" in inner.reason
    assert "fixed epoch" in inner.reason
    assert not inner_split(small, split, least=22, seed=0).is_fixed


def test_validation_of_the_split_itself_is_taken(cohort):
    split = k_fold(cohort, 4, seed=1, validation=0.25).splits[0]
    inner = inner_split(cohort, split, seed=0)
    assert inner.validation_rows.tolist() == split.rows(cohort).validation.tolist()
    assert inner.train_rows.tolist() == split.rows(cohort).train.tolist()
    assert "45 patients that the split itself" in inner.reason


def test_near_duplicates_stay_together(cohort):
    groups = [f"g{int(patient[1:]) // 4}" for patient in cohort.patient_id]
    inner = inner_split(cohort, k_fold(cohort, 4, seed=1, groups=groups).splits[0], seed=0, groups=groups)
    fitted, looked = ({groups[row] for row in rows} for rows in inner[:2])
    assert looked
    assert not fitted & looked


def test_events_stand_in_for_classes():
    event = np.tile([1, 0, 0, 0], 60)
    table = pd.DataFrame({"months": np.arange(240.0) + 1, "progression": event})
    roles = {"months": "time", "progression": "event"}
    cohort = Cohort.from_arrays({"clinical": np.zeros((240, 1))}, table=table, roles=roles)
    split = k_fold(cohort, 4, seed=0).splits[0]
    assert "an event has 45 of them and 50 are needed" in inner_split(cohort, split, seed=0).reason
    inner = inner_split(cohort, split, least=40, seed=0)
    assert event[inner.validation_rows].sum() == 9


def test_what_cannot_be_divided_is_refused(cohort):
    split = k_fold(cohort, 4, seed=1).splits[0]
    with pytest.raises(ValueError, match=r"fraction of 1.0 .* between 0 and 1"):
        inner_split(cohort, split, fraction=1.0, seed=0)
    with pytest.raises(ValueError, match="no training case"):
        inner_split(cohort, split._replace(train=()), seed=0)
    with pytest.raises(ValueError, match="no case 'x'"):
        inner_split(cohort, Split(0, 0, ("x",), (), ()), seed=0)
    ones = tuple(case for case, label in zip(cohort.case_id, cohort.label, strict=True) if label == 1)
    with pytest.raises(ValueError, match="all training cases are of class 1"):
        inner_split(cohort, Split(0, 0, ones, (), ()), seed=0)
