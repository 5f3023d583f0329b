import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import CLINICAL_INPUTS, OUTCOME_COLUMNS, clinical_inputs, samples, soft_tissue_sarcoma
from tests.helpers import ROOT, assert_close

RESAMPLED = ("STS_001", "STS_019", "STS_031")
"""Patients compared with the source: an ordinary one, the smallest tumour, one whose PET is shorter than its CT."""


@pytest.fixture(scope="module")
def sample():
    return soft_tissue_sarcoma()


@pytest.fixture
def source() -> Path:
    """The folder of the original volumes, where there is one."""
    folder = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data") / "sts_petct"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set FUSION_JAX_DATA to compare the sample with the volumes it was made from")
    return folder


def clinical_table(**columns):
    complete = {"age_years": [50, 61], "sex": ["Male", "Female"], "grade": ["Low", "High"]} | columns
    return pd.DataFrame(complete, index=pd.Index(["STS_001", "STS_002"], name="patient_id"))


# The sample


def test_all_patients_are_there_once_and_in_order(sample):
    assert sample.patient_id == tuple(f"STS_{number:03d}" for number in range(1, 52))
    assert tuple(sample.table.index) == sample.patient_id
    assert {len(field) for field in (sample.pet, sample.ct, sample.mask, sample.affine)} == {51}


def test_volumes_of_a_patient_share_one_grid(sample):
    for pet, ct, mask, affine in zip(sample.pet, sample.ct, sample.mask, sample.affine, strict=True):
        assert pet.shape == ct.shape == mask.shape
        assert (pet.dtype, ct.dtype, mask.dtype) == (np.float32, np.float32, np.bool_)
        # (d, h, w) run to the head, to the back and to the left: +z, -y and -x in RAS+.
        np.testing.assert_array_equal(affine[:3, :3], [[0, 0, -4], [0, -4, 0], [4, 0, 0]])
    assert sample.spacing == (4.0, 4.0, 4.0)


def test_values_are_plausible_hounsfield_units_and_suv(sample):
    for patient, pet, ct, mask in zip(sample.patient_id, sample.pet, sample.ct, sample.mask, strict=True):
        assert np.isfinite(pet).all(), patient
        assert 0 <= pet.min() <= pet.max() < 60, patient
        assert -1000 <= ct.min() <= ct.max() <= 3071, patient
        # Soft tissue, fat or tissue with bone, never air or lung.
        assert -100 < ct[mask].mean() < 150, patient


def test_the_sample_keeps_the_figures_of_full_resolution(sample):
    inside = [(pet[mask], ct[mask]) for pet, ct, mask in zip(sample.pet, sample.ct, sample.mask, strict=True)]
    volume = np.array([mask.sum() * 0.064 for mask in sample.mask])  # ml
    suv = np.array([pet.mean(dtype=np.float64) for pet, _ in inside])
    hu = np.array([ct.mean(dtype=np.float64) for _, ct in inside])
    table = sample.table
    np.testing.assert_allclose(volume, table["tumour_volume_ml"], rtol=0.04)
    np.testing.assert_allclose(suv, table["suv_mean"], rtol=0.04)
    error = np.abs(hu - table["hu_mean"].to_numpy())
    # STS_035 has cortical bone inside its contour, which 4 mm cubes mix with what lies outside.
    assert error[sample.patient_id.index("STS_035")] < 12
    assert np.sort(error)[-2] < 2.5
    assert min(mask.sum() for mask in sample.mask) == 262


def test_suv_is_a_multiple_of_its_step(sample):
    steps = np.concatenate([pet.ravel() for pet in sample.pet]) * 128
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_the_paper_cohort_is_the_48_without_recurrence(sample):
    cohort = soft_tissue_sarcoma(paper_cohort=True)
    assert set(sample.patient_id) - set(cohort.patient_id) == {"STS_020", "STS_034", "STS_051"}
    assert np.sum(cohort.table["distant_metastases"].to_numpy()) == 24
    assert not cohort.table["local_or_regional_recurrence"].to_numpy().any()
    for name, pet, mask in zip(cohort.patient_id, cohort.pet, cohort.mask, strict=True):
        i = sample.patient_id.index(name)
        np.testing.assert_array_equal(pet, sample.pet[i])
        np.testing.assert_array_equal(mask, sample.mask[i])


def test_missing_cells_stay_missing(sample):
    missing = sample.table.isna().sum()
    assert missing[missing > 0].to_dict() == {"grade": 3, "days_diagnosis_to_outcome": 24}
    # The sheet's word for an uneventful course is a value.
    assert (sample.table["outcome_text"] == "none").sum() == 24


def test_masks_on_ct_and_pet_are_together_but_for_the_two_known_patients(sample):
    distance = dict(sample.table["mask_centroid_distance_mm"])
    assert distance.pop("STS_019") == pytest.approx(7.25)
    assert distance.pop("STS_031") == pytest.approx(1.58)
    assert max(distance.values()) < 0.4


def test_tumours_take_up_more_than_their_surroundings(sample):
    """PET and mask lie on each other: a flipped axis would break this in most patients."""
    higher = [pet[mask].mean() > pet[~mask].mean() for pet, mask in zip(sample.pet, sample.mask, strict=True)]
    assert all(higher)
    mirrored = [
        np.corrcoef(pet[:, ::-1].ravel(), mask.ravel())[0, 1] < np.corrcoef(pet.ravel(), mask.ravel())[0, 1]
        for pet, mask in zip(sample.pet, sample.mask, strict=True)
    ]
    assert sum(mirrored) >= 45


def test_every_column_is_an_input_an_outcome_or_named_here(sample):
    neither = {
        *("histological_type", "mskcc_type", "site_of_primary_sts"),
        *("tumour_volume_ml", "suv_max", "suv_mean", "hu_mean", "mask_centroid_distance_mm"),
        *(f"{kind}_spacing_{where}_mm" for kind in ("pet", "ct") for where in ("in_plane", "slice")),
    }
    assert not set(CLINICAL_INPUTS) & set(OUTCOME_COLUMNS)
    assert set(CLINICAL_INPUTS) | set(OUTCOME_COLUMNS) | neither == set(sample.table.columns)
    assert {name for name in sample.table.columns if name.startswith("days_")} <= set(OUTCOME_COLUMNS)


def test_loading_needs_no_jax():
    code = "import sys; from fusion_jax.data import soft_tissue_sarcoma as s; s(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_changed_file_is_refused_by_name(tmp_path, monkeypatch):
    changed = bytearray(samples.SAMPLE_FILE.read_bytes())
    changed[len(changed) // 2] ^= 1
    path = tmp_path / "sample.npz"
    path.write_bytes(changed)
    monkeypatch.setattr(samples, "SAMPLE_FILE", path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: SHA-256 is [0-9a-f]{{64}}, expected"):
        soft_tissue_sarcoma()


def test_a_missing_file_is_named_with_the_way_out(tmp_path, monkeypatch):
    path = tmp_path / "sample.npz"
    monkeypatch.setattr(samples, "SAMPLE_FILE", path)
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))}.*missing. Install fusion-jax again"):
        soft_tissue_sarcoma()


# Clinical inputs


def test_clinical_inputs_are_coded_and_gaps_marked(sample):
    values, present, names = clinical_inputs(sample.table)
    assert names == CLINICAL_INPUTS
    assert values.dtype == np.float64
    assert values.shape == present.shape == (51, 3)
    age, sex, grade = values.T
    np.testing.assert_array_equal(age, sample.table["age_years"])
    np.testing.assert_array_equal(np.bincount(sex.astype(int)), [27, 24])
    np.testing.assert_array_equal(np.bincount(grade.astype(int)), [3, 5, 15, 28])
    without_grade = [name for name, there in zip(sample.patient_id, present[:, 2], strict=True) if not there]
    assert without_grade == ["STS_040", "STS_047", "STS_051"]
    assert present[:, :2].all()
    np.testing.assert_array_equal(values[~present], 0)


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, ""])
@pytest.mark.parametrize("column", CLINICAL_INPUTS)
def test_any_kind_of_empty_cell_is_missing(column, gap):
    table = clinical_table().astype(object)
    table.loc["STS_002", column] = gap
    values, present, _ = clinical_inputs(table)
    j = CLINICAL_INPUTS.index(column)
    assert not present[1, j]
    assert values[1, j] == 0
    assert present.sum() == 5


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("sex", "male", "'Female', 'Male'"),
        ("sex", 1, "'Female', 'Male'"),
        ("grade", "G3", "'Low', 'Intermediate', 'High'"),
        ("grade", 3.0, "'Low', 'Intermediate', 'High'"),
        ("age_years", "61", "years as a number"),
        ("age_years", -1, "years as a number"),
        ("age_years", 610, "years as a number"),
        ("age_years", np.inf, "years as a number"),
        ("age_years", True, "years as a number"),
    ],
)
def test_a_bad_cell_is_named(column, cell, expected):
    table = clinical_table().astype(object)
    table.loc["STS_002", column] = cell
    with pytest.raises(
        ValueError, match=rf"patient 'STS_002', column '{column}' holds .*{re.escape(expected)}"
    ) as error:
        clinical_inputs(table)
    assert repr(cell) in str(error.value)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"no column 'grade'; it has 'age_years', 'sex'"):
        clinical_inputs(clinical_table().drop(columns="grade"))


# Against the source


def test_the_table_equals_the_source(sample, source):
    clinical = pd.read_csv(source / "clinical.csv", index_col="patient_id")
    # Another dtype for text and flags; the cells are what counts.
    clinical["paper_cohort_48"] = clinical["paper_cohort_48"].astype(bool)
    pd.testing.assert_frame_equal(sample.table[clinical.columns], clinical, check_dtype=False)

    figures = pd.read_csv(source / "volumes.csv", index_col="patient_id")
    names = {"gtv_volume_ml_ct": "tumour_volume_ml", "suv_max_gtv": "suv_max", "suv_mean_gtv": "suv_mean"}
    for theirs, ours in (names | {"hu_mean_gtv": "hu_mean"}).items():
        np.testing.assert_array_equal(sample.table[ours], figures[theirs])
    spacing = sample.table["pet_spacing_in_plane_mm"].map("{:.4f}".format)
    assert (spacing + "x" + spacing + "x3.2700" == figures["pet_spacing_mm"]).all()


@pytest.mark.checkout
@pytest.mark.parametrize("patient", RESAMPLED)
def test_volumes_equal_the_resampled_source(sample, source, patient):
    from experiments.fusion_quality.prepare import resample_patient

    with np.load(source / "volumes" / f"{patient}.npz", allow_pickle=False) as file:
        made = resample_patient({name: file[name] for name in file.files}, patient)
    i = sample.patient_id.index(patient)
    # One step of rounding is left to the order in which another machine adds.
    assert np.abs(sample.ct[i] - made.ct).max() <= 1
    assert np.abs(sample.pet[i] - made.pet.astype(np.float32)).max() <= 1 / 64
    np.testing.assert_array_equal(sample.mask[i], made.mask)
    assert_close(sample.affine[i], made.affine, rtol=1e-12)
