import hashlib
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fusion_jax.data.cohort import Columns
from fusion_jax.data.collections import (
    breast_mri_predictions,
    collections,
    files,
    hcc_survival,
    load,
    soft_tissue_sarcoma_cohort,
)
from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.samples import OUTCOME_COLUMNS, soft_tissue_sarcoma
from fusion_jax.data.shards import open_shards
from tests.helpers import real_data

LOCAL = ("sts_petct", "jsrt", "covid_cxr", "ham10000_small")


@pytest.fixture
def real(monkeypatch):
    """Loads a collection from the real data, or skips."""

    def load_real(name):
        folder = real_data(name)
        monkeypatch.setenv("FUSION_JAX_DATA", str(folder.parent))
        return load(name)

    return load_real


# What comes with the package


def test_the_sarcoma_cohort_holds_the_sample():
    sample, cohort = soft_tissue_sarcoma(), soft_tissue_sarcoma_cohort()
    assert cohort.case_id == sample.patient_id == tuple(cohort.patient_id)
    for row in (0, 50):
        images = cohort[row].images
        np.testing.assert_array_equal(images["pet"].values[..., 0], sample.pet[row])
        np.testing.assert_array_equal(images["ct"].values[..., 0], sample.ct[row])
        np.testing.assert_array_equal(images["mask"].values[..., 0], sample.mask[row])
        np.testing.assert_array_equal(images["pet"].affine, sample.affine[row])
        assert {image.spacing for image in images.values()} == {(4.0, 4.0, 4.0)}
        assert [images[name].unit for name in ("pet", "ct", "mask")] == ["SUV", "HU", "label"]
    np.testing.assert_array_equal(cohort.label, sample.table["distant_metastases"])


def test_no_outcome_of_the_sarcoma_sheet_is_an_input_or_a_stratum():
    cohort = soft_tissue_sarcoma_cohort()
    for column in OUTCOME_COLUMNS:
        assert cohort.role(column) in ("label", "never"), column
    assert cohort.role("outcome_text") == cohort.role("paper_cohort_48") == "never"
    assert set(cohort.inputs.columns) == {"age_years", "sex", "grade"}


def test_the_paper_cohort_has_48_patients_half_of_them_with_metastases():
    cohort = soft_tissue_sarcoma_cohort(paper_cohort=True)
    assert (len(cohort), int(cohort.label.sum())) == (48, 24)


def test_the_sarcoma_cohort_loads_in_under_a_second():
    load("soft_tissue_sarcoma")
    began = time.process_time()
    load("soft_tissue_sarcoma")
    assert time.process_time() - began < 1


def test_the_hcc_table_is_the_source():
    folder = real_data("hcc_tables")
    cohort = hcc_survival()
    source = pd.read_csv(folder / "hcc_survival_uci.csv", index_col="case_id")
    pd.testing.assert_frame_equal(cohort.table, source, check_index_type=False, check_names=False)


def test_the_hcc_table_keeps_its_gaps():
    cohort = hcc_survival()
    cells = cohort.inputs.to_numpy(dtype=float)
    assert 0.08 < np.isnan(cells).mean() < 0.12
    assert cohort.columns("label") == ("survived_1_year",)
    assert np.bincount(cohort.label).tolist() == [50, 82]
    assert cohort.units["albumin"] == "g/dl"
    assert not cohort.inputs.columns.intersection(["survived_1_year"]).any()


@pytest.mark.parametrize(("model", "auc"), [("Image-Only", 0.849128), ("Learned Feature Fusion", 0.897873)])
def test_published_breast_predictions_give_the_published_auc(model, auc):
    table = breast_mri_predictions()
    own = table[table["model"] == model]
    assert roc_auc_score(own["label"], own["score"]) == pytest.approx(auc, abs=5e-7)
    assert (len(own), int(own["label"].sum())) == (4909, 1006)


def test_breast_predictions_are_of_the_same_cases_for_both_models():
    table = breast_mri_predictions()
    assert list(table.columns) == ["case_id", "model", "label", "score", "split"]
    assert not table.duplicated(["case_id", "model"]).any()
    labels = table.pivot(index="case_id", columns="model", values="label")
    assert np.all(labels["Image-Only"] == labels["Learned Feature Fusion"])


def test_breast_predictions_are_the_source():
    folder = real_data("breast_mri_preds")
    table = breast_mri_predictions()
    for model, name in {"Image-Only": "image_only", "Learned Feature Fusion": "learned_feature_fusion_concat"}.items():
        source = pd.read_csv(folder / f"preds_{name}.csv")
        np.testing.assert_array_equal(table.loc[table["model"] == model, "score"], source["y_prob"])


def test_a_changed_bundled_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SAMPLE_FILES", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hcc_survival_uci\.csv\.gz is missing. Install fusion-jax again"):
        load("hcc_survival")
    (tmp_path / "hcc_survival_uci.csv.gz").write_bytes(b"other")
    with pytest.raises(UnreadableFile, match=r"hcc_survival_uci\.csv\.gz: has SHA-256 [0-9a-f]{64}, expected"):
        load("hcc_survival")


# The catalogue


def test_without_the_variable_the_list_says_why_and_loading_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSION_JAX_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    listed = {entry.name: entry for entry in collections()}
    assert {name for name, entry in listed.items() if entry.bundled} == {"soft_tissue_sarcoma", "hcc_survival"}
    for name in LOCAL:
        assert "set FUSION_JAX_DATA" in listed[name].missing
        with pytest.raises(
            FileNotFoundError, match=rf"{name}: \.\./shared/data/{name} is not there.*set FUSION_JAX_DATA"
        ):
            load(name)
    assert not any(entry.missing for entry in listed.values() if entry.bundled)


def test_a_folder_without_the_collection_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSION_JAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"jsrt: {re.escape(str(tmp_path))}.*is not there"):
        load("jsrt")


def test_a_wrong_name_gets_the_close_one():
    with pytest.raises(ValueError, match=r"no collection 'jstr'; expected one of .* Did you mean 'jsrt'"):
        load("jstr")


@pytest.mark.parametrize("name", LOCAL)
def test_the_list_states_the_true_number_of_cases(name, real):
    assert len(real(name)) == next(entry.n for entry in collections() if entry.name == name)


def test_loading_needs_neither_jax_nor_tensorflow_datasets():
    code = (
        "import sys; from fusion_jax.data.collections import load; load('soft_tissue_sarcoma'); "
        "sys.exit('jax' in sys.modules or 'tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What is read from $FUSION_JAX_DATA


def test_sarcoma_volumes_lie_in_canonical_order_with_masks_on_the_uptake(real):
    cohort = real("sts_petct")
    measured = pd.read_csv(real_data("sts_petct") / "volumes.csv", index_col="patient_id")
    for row in (0, 19, 50):
        images = cohort[row].images
        for name in ("pet", "ct"):
            image, mask = images[name], images[f"{name}_mask"]
            assert image.values.shape == mask.values.shape
            assert image.values.dtype == np.float32
            assert mask.values.dtype == np.uint8
            step = image.affine[:3, :3]
            assert step[2, 0] > 0 > step[0, 2]
            assert step[1, 1] < 0
            np.testing.assert_allclose(np.abs(step[[2, 1, 0], [0, 1, 2]]), image.spacing)
        inside = images["ct_mask"].values > 0
        volume = inside.sum() * np.prod(images["ct"].spacing) / 1000
        figures = measured.loc[cohort.case_id[row]]
        assert volume == pytest.approx(figures["gtv_volume_ml_ct"], abs=0.01)
        assert images["ct"].values[inside].mean() == pytest.approx(figures["hu_mean_gtv"], abs=0.01)
        uptake = images["pet"].values[images["pet_mask"].values > 0]
        assert uptake.max() == pytest.approx(figures["suv_max_gtv"], abs=0.01)


def test_voxels_of_the_sarcoma_volumes_stay_where_their_affine_puts_them(real):
    cohort = real("sts_petct")
    with np.load(real_data("sts_petct") / "volumes" / "STS_002.npz", allow_pickle=False) as file:
        stored, affine = file["ct"], file["ct_affine"]
    image = cohort.image("ct", 1)
    for ijk in np.random.default_rng(1).integers(0, stored.shape, (20, 3)):
        mm = affine @ (*ijk, 1)
        d, h, w, _ = np.rint(np.linalg.solve(image.affine, mm)).astype(int)
        assert image.values[d, h, w, 0] == stored[tuple(ijk)]


def test_the_full_volumes_and_the_sample_are_of_the_same_patients(real):
    full, sample = real("sts_petct"), soft_tissue_sarcoma_cohort()
    assert full.case_id == sample.case_id
    np.testing.assert_array_equal(full.label, sample.label)
    assert full.columns("input") == sample.columns("input")
    for column in OUTCOME_COLUMNS:
        assert full.role(column) in ("label", "never"), column


def test_jsrt_has_boxes_on_its_nodules_and_masks_on_its_lungs(real):
    cohort = real("jsrt")
    assert cohort.classes == ("non-nodule", "benign", "malignant")
    assert np.bincount(cohort.label).tolist() == [74, 43, 80]
    assert set(cohort.inputs.columns) == {"age_years", "sex"}
    assert cohort.inputs["age_years"].isna().sum() == 1
    boxed = np.array([len(boxes.corners) for boxes in cohort.boxes])
    np.testing.assert_array_equal(boxed, cohort.label > 0)
    inside = 0
    for row in np.flatnonzero(boxed):
        x0, y0, x1, y1 = cohort.boxes[row].corners[0]
        assert 0 <= x0 < x1 <= 224
        assert 0 <= y0 < y1 <= 224
        # 1.6 mm a pixel: the box is as wide as the nodule, where it is not cut by the edge.
        size = cohort.table["nodule_size_mm"].iloc[row] / 1.6
        assert max(x1 - x0, y1 - y0) == pytest.approx(size, abs=0.02)
        mask = cohort.image("mask", int(row)).values
        inside += int(mask[int((y0 + y1) / 2), int((x0 + x1) / 2), 0] > 0)
    assert inside > 110
    # The patient's right lung lies on the left of the picture.
    columns = np.arange(224)
    for row in range(0, 197, 20):
        mask = cohort.image("mask", row).values[..., 0]
        right, left = ((mask == code).sum(axis=0) @ columns / (mask == code).sum() for code in (1, 2))
        assert right < left


def test_covid_labels_come_from_findings_and_outcomes_stay_out(real):
    cohort = real("covid_cxr")
    assert len(set(cohort.patient_id)) == 133
    assert [int((cohort.label == code).sum()) for code in (1, 0, -1)] == [163, 67, 18]
    never = (
        "finding",
        "survival",
        "went_icu",
        "intubation_present",
        "filename",
        "url",
        "date",
        "license",
        "clinical_notes",
    )
    for column in (*never, "brixia_S_Global", "severity_opacity_mean", "orig_width", "age"):
        assert cohort.role(column) == "never", column
    assert int(cohort.present["clinical"].sum()) == cohort.inputs.notna().any(axis=1).sum() < 248
    assert cohort.site is not None
    assert (cohort.site == "radiopaedia.org").sum() == 102
    # One patient, one site: leaving a site out leaves no patient on both sides.
    assert max(pd.Series(cohort.site).groupby(cohort.patient_id).nunique().tolist()) == 1


def test_covid_lung_boxes_are_named_by_the_patients_side(real):
    cohort = real("covid_cxr")
    count = np.array([len(boxes.corners) for boxes in cohort.boxes])
    assert (int((count > 0).sum()), int(count.sum())) == (50, 100)
    np.testing.assert_array_equal(count > 0, cohort.table["lungs_boxed"])
    right = np.concatenate(
        [boxes.corners[boxes.classes == cohort.box_classes.index("right_lung")] for boxes in cohort.boxes]
    )
    left = np.concatenate(
        [boxes.corners[boxes.classes == cohort.box_classes.index("left_lung")] for boxes in cohort.boxes]
    )
    assert (right[:, 0] < left[:, 0]).all()


def test_ham10000_reads_one_image_at_a_time_from_its_archive(real, monkeypatch):
    cohort = real("ham10000_small")
    assert np.bincount(cohort.label).tolist() == [4308, 567, 483, 253, 180, 77, 60]
    assert cohort.role("dx_type") == cohort.role("mask_area_px") == "never"
    assert cohort.inputs.isna().sum().to_dict() == {"age": 40, "sex": 39, "localization": 165}
    read = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: read.append(name) or original(self, name))
    image = cohort.image("image", 17)
    assert read == [f"{cohort.case_id[17]}.jpg"]
    assert (image.values.shape, image.values.dtype) == ((150, 200, 3), np.uint8)


def test_lesions_of_ham10000_differ_from_the_skin_around_them(real):
    cohort = real("ham10000_small")
    darker = []
    for row in range(0, 5928, 400):
        values = cohort.image("image", row).values.mean(axis=-1)
        x0, y0, x1, y1 = cohort.boxes[row].corners[0].astype(int)
        inside = np.zeros(values.shape, bool)
        inside[y0:y1, x0:x1] = True
        if 0 < inside.mean() < 0.9:
            darker.append(values[inside].mean() < values[~inside].mean())
    assert np.mean(darker) > 0.8


@pytest.mark.parametrize("name", LOCAL)
def test_sources_go_to_loader_workers_and_read_the_same(name, real):
    cohort = real(name)
    for source in cohort.sources.values():
        if not isinstance(source, Columns):
            again = pickle.loads(pickle.dumps(source))  # noqa: S301 - made here
            np.testing.assert_array_equal(again[3], source[3])
            assert again.fingerprint() == source.fingerprint()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A writable copy of the smallest collection."""
    folder = tmp_path / "jsrt"
    shutil.copytree(real_data("jsrt"), folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    monkeypatch.setenv("FUSION_JAX_DATA", str(tmp_path))
    return folder


def test_a_damaged_file_is_refused_when_it_is_read(small):
    load("jsrt")
    content = bytearray((small / "images.npz").read_bytes())
    content[1000] ^= 1
    (small / "images.npz").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"images\.npz: has SHA-256 [0-9a-f]{64}, SHA256SUMS states"):
        load("jsrt")
    (small / "images.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.npz is missing. Get the collection again"):
        load("jsrt")


def test_a_file_is_hashed_once(small, monkeypatch):
    hashed = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or original(file, name))
    cohort = load("jsrt")
    for row in range(3):
        cohort.image("image", row)
    load("jsrt")
    assert sorted(hashed) == sorted(str(small / name) for name in ("clinical.csv", "images.npz"))


def test_a_file_that_is_not_listed_is_refused(small):
    sums = small / "SHA256SUMS"
    sums.write_text("\n".join(line for line in sums.read_text().splitlines() if "clinical" not in line))
    with pytest.raises(UnreadableFile, match=r"clinical\.csv: is not listed in SHA256SUMS"):
        load("jsrt")


def test_tables_and_images_in_another_order_are_refused(small):
    rows = (small / "clinical.csv").read_text().splitlines()
    content = "\n".join([rows[0], rows[2], rows[1], *rows[3:]]) + "\n"
    (small / "clinical.csv").write_text(content)
    sums = (small / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(content.encode()).hexdigest()
    sums = [f"{digest}  clinical.csv" if "clinical" in line else line for line in sums]
    (small / "SHA256SUMS").write_text("\n".join(sums))
    with pytest.raises(ValueError, match=r"images\.npz and clinical\.csv differ in their study_id or its order"):
        load("jsrt")


# Builders


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("sts_petct", marks=pytest.mark.slow),
        "jsrt",
        pytest.param("covid_cxr", marks=pytest.mark.slow),
        pytest.param("ham10000_small", marks=pytest.mark.slow),
    ],
)
def test_a_builder_writes_its_collection_and_it_comes_back(name, real, tmp_path):
    import tensorflow_datasets as tfds

    import fusion_jax.data.collections.builders  # noqa: F401 - makes the names known

    cohort = real(name)
    builder = tfds.builder(name, data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.splits["cases"].num_examples == len(cohort)
    again = open_shards(builder.data_dir)
    pd.testing.assert_frame_equal(again.table, cohort.table)
    assert (again.name, again.roles, again.levels, again.units) == (name, cohort.roles, cohort.levels, cohort.units)
    np.testing.assert_array_equal(again.patient_id, cohort.patient_id)
    for row in range(0, len(cohort), 10):
        ours, theirs = again[row], cohort[row]
        assert list(ours.images) == list(theirs.images)
        for source, image in theirs.images.items():
            np.testing.assert_array_equal(ours.images[source].values, image.values, strict=True)
            assert (ours.images[source].spacing, ours.images[source].unit) == (image.spacing, image.unit)
            np.testing.assert_array_equal(ours.images[source].affine, image.affine)
        if theirs.boxes is not None:
            np.testing.assert_array_equal(ours.boxes.corners, theirs.boxes.corners)
    assert "tensorflow" not in sys.modules
