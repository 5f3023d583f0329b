"""Cohorts of the detection experiment, the numbers that the study printed, and the statistics beside them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from scipy.stats import pearsonr, spearmanr

from experiments.chest_xray_detection.cohort import (
    COLUMNS,
    COVID_COLUMNS,
    JSRT_COLUMNS,
    covid_cohort,
    five_folds,
    join_mimic,
    jsrt_cohort,
    mimic_cohort,
    mimic_images,
    paper_split,
    patient_split,
    synthetic_cohort,
)
from experiments.chest_xray_detection.correlation import (
    PUBLISHED_CORRELATIONS,
    clinical_numbers,
    correlation_table,
    published_gains,
    rank_correlation,
    relevance_table,
)
from experiments.chest_xray_detection.features import (
    ABLATION_OF,
    FEATURE_SETS,
    PUBLISHED_ABLATION,
    PUBLISHED_COUNTS,
    PUBLISHED_MODELS,
    RELEVANCE,
    columns_of,
)
from experiments.chest_xray_detection.made_up import write_made_up
from fusion_jax.data import Batches, UnreadableFile, check_leakage, encode
from fusion_jax.data.address import open_address
from fusion_jax.data.synthetic import LESIONS, TRIAGE
from fusion_jax.data.tabular import columns_from_json
from tests.helpers import real_data

# MIMIC


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return write_made_up(tmp_path_factory.mktemp("mimic"), 45, size=64, seed=2)


@pytest.fixture(scope="module")
def mimic(made_up):
    return mimic_cohort(*made_up[0])


def test_readings_within_a_stay_become_cases_and_the_others_are_counted(mimic, made_up):
    assert [step.cases for step in mimic.flow.steps] == [66, 66, 61, 54]
    assert mimic.flow.notes == ("66 readings of 52 images became 54 of 45",)
    assert len(mimic) == 45 + 9
    assert len(set(mimic.patient_id)) == len(set(made_up[1].patient_id))
    assert mimic.table["dicom_id"].nunique() == 45


def rows_of_source(mimic, cohort):
    """Row of the synthetic cohort that each reading was made from."""
    return [int(dicom[4:8], 16) for dicom in mimic.table["dicom_id"]]


def test_boxes_labels_and_vitals_come_through_the_raw_tables(mimic, made_up):
    cohort = made_up[1]
    source = rows_of_source(mimic, cohort)
    assert sorted(set(source)) == list(range(45))
    vitals = list(TRIAGE[1:9])
    pd.testing.assert_frame_equal(
        mimic.table[vitals].reset_index(drop=True), cohort.table[vitals].iloc[source].reset_index(drop=True)
    )
    labels = list(LESIONS)
    np.testing.assert_array_equal(mimic.table[labels], cohort.table[labels].iloc[source])
    for row, own in enumerate(source):
        np.testing.assert_allclose(mimic.boxes[row].corners, cohort.boxes[own].corners, rtol=1e-12)
        np.testing.assert_array_equal(mimic.boxes[row].classes, cohort.boxes[own].classes)
    first = cohort.table.assign(patient=cohort.patient_id).drop_duplicates("patient").set_index("patient")
    of = first.loc[cohort.patient_id[source]]
    assert mimic.table["age_years"].tolist() == of["age_years"].tolist()
    assert mimic.table["gender"].tolist() == of["gender"].tolist()
    certain = mimic.table[[f"{lesion}_certainty" for lesion in LESIONS]].to_numpy()
    np.testing.assert_array_equal(certain > 0, mimic.table[labels] == 1)
    assert certain.max() == 5


def test_images_are_those_of_the_layout(mimic, made_up):
    cohort = made_up[1]
    for row in (0, 7, 50):
        image = mimic.sources["image"][row]
        assert image.dtype == np.uint8
        own = cohort.sources["image"][rows_of_source(mimic, cohort)[row]] * 255
        assert np.abs(image - own).mean() < 3  # what JPEG loses
    joined = join_mimic(*made_up[0])
    files = mimic_images(joined)
    assert len(files) == 45
    assert all((Path(made_up[0].cxr) / name).is_file() for name in files)
    assert files[0].startswith("files/p10/p1000")


def test_two_readings_of_an_image_stay_with_one_patient(mimic):
    twice = mimic.table["dicom_id"].duplicated(keep=False).to_numpy()
    assert twice.sum() == 18
    for split in five_folds(mimic, seed=1).splits:
        check_leakage(mimic, split)


def test_unified_readings_merge_the_boxes_of_an_image(made_up, mimic):
    unified = mimic_cohort(*made_up[0], readings="unified")
    assert len(unified) == 45
    assert unified.case_id == tuple(dict.fromkeys(mimic.table["dicom_id"]))
    counts = dict.fromkeys(unified.case_id, 0)
    for dicom, boxes in zip(mimic.table["dicom_id"], mimic.boxes, strict=True):
        counts[dicom] += len(boxes.corners)
    assert [len(boxes.corners) for boxes in unified.boxes or ()] == list(counts.values())


def test_columns_are_encoded_in_the_published_order(mimic):
    [split] = patient_split(mimic).splits
    ready, fitted = encode(mimic, split, COLUMNS)
    assert fitted.names == (*TRIAGE[:-1], "gender=M")
    batch = Batches(ready, np.arange(4), 4, seed=(0,), sampler="sequential").at(0)
    assert batch.inputs["clinical"].shape == (4, 10)
    assert batch.inputs["image"].shape == (4, 64, 64, 1)
    men = (mimic.table["gender"] == "M").to_numpy()[:4]
    np.testing.assert_array_equal(batch.inputs["clinical"][:, 9], men)


def test_what_is_missing_is_named(made_up, tmp_path):
    folders = made_up[0]
    with pytest.raises(FileNotFoundError, match=r"mimic-cxr-2\.0\.0-metadata\.csv\.gz: no such file, nor mimic"):
        mimic_cohort(*folders._replace(cxr=str(tmp_path)))
    table = Path(folders.cxr) / "mimic-cxr-2.0.0-metadata.csv.gz"
    (tmp_path / table.name).write_bytes(table.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"\(54 of 54 readings lack theirs\)\. Download .*`mimic_images`"):
        mimic_cohort(*folders._replace(cxr=str(tmp_path)))
    files = mimic_images(join_mimic(*folders))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / name)
    with pytest.raises(UnreadableFile, match=r"has \(32, 32\) rows and columns, REFLACX states \(64, 64\)"):
        mimic_cohort(*folders._replace(cxr=str(tmp_path))).image("image", 0)


def test_more_cases_than_days_are_refused(tmp_path):
    with pytest.raises(ValueError, match="301 cases; expected at most 300"):
        write_made_up(tmp_path, 301)


# Splits


def test_the_published_split_has_the_published_sizes_and_lets_patients_cross():
    cohort = synthetic_cohort("published", 670, 64)
    [split] = paper_split(cohort).splits
    assert [len(split.train), len(split.validation), len(split.test)] == [468, 101, 101]
    with pytest.raises(ValueError, match="patient"):
        check_leakage(cohort, split)
    check_leakage(cohort, split, patients="may cross")
    patients = dict(zip(cohort.case_id, cohort.patient_id, strict=True))
    parts = [{patients[case] for case in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) > len(set(cohort.patient_id))
    [safe] = patient_split(cohort).splits
    check_leakage(cohort, safe)
    np.testing.assert_allclose(np.divide([len(safe.train), len(safe.test)], 670), [0.7, 0.15], atol=0.03)


# Cohorts


def test_arms_share_images_and_boxes_and_cohorts_are_kept():
    first, second = (synthetic_cohort(arm, 40, 64, 3) for arm in ("informative", "uninformative"))
    np.testing.assert_array_equal(first.sources["image"][5], second.sources["image"][5])
    assert list(first.sources) == ["image", "clinical"]
    assert synthetic_cohort("informative", 40, 64, 3) is first
    assert synthetic_cohort("informative", 40, 64, 4).fingerprint != first.fingerprint


def test_cohorts_are_opened_by_their_address(made_up, mimic):
    folder = "experiments.chest_xray_detection.cohort"
    opened = open_address(
        {"function": f"{folder}:synthetic_cohort", "arguments": {"arm": "uninformative", "n": 40, "size": 64}}
    )
    assert opened is synthetic_cohort(arm="uninformative", n=40, size=64)
    opened = open_address({"function": f"{folder}:mimic_cohort", "arguments": made_up[0]._asdict()})
    assert opened.fingerprint == mimic.fingerprint


@pytest.fixture
def collections(monkeypatch):
    for name in ("jsrt", "covid_cxr"):
        folder = real_data(name)
    monkeypatch.setenv("FUSION_JAX_DATA", str(folder.parent))


@pytest.mark.usefixtures("collections")
def test_jsrt_has_a_nodule_in_123_images_with_size_and_place():
    cohort = jsrt_cohort()
    assert len(cohort) == 197
    assert sum(len(boxes.corners) for boxes in cohort.boxes or ()) == 123
    groups: Any = cohort.table[["nodule_size", "nodule_lobe", "nodule_side"]]
    assert (groups == "none").sum().tolist() == [74, 74, 74]
    assert (groups["nodule_side"] == "unknown").sum() == 0
    assert set(cohort.columns("input")) == {"age_years", "sex"}
    tested = []
    for split in five_folds(cohort).splits:
        check_leakage(cohort, split)
        tested += split.test
        ready, fitted = encode(cohort, split, JSRT_COLUMNS)
        assert fitted.names == ("age_years", "sex=Male")
        assert np.isfinite(ready.sources["clinical"][0]).all()
    assert sorted(tested) == sorted(cohort.case_id)


@pytest.mark.usefixtures("collections")
def test_both_lungs_are_boxed_on_50_images_of_the_covid_collection():
    cohort = covid_cohort()
    assert (len(cohort), len(set(cohort.patient_id))) == (50, 33)
    assert {len(boxes.corners) for boxes in cohort.boxes or ()} == {2}
    assert cohort.columns("label") == ()
    assert cohort.present["clinical"].sum() == 44
    [split] = five_folds(cohort).splits[:1]
    batch = Batches(encode(cohort, split, COVID_COLUMNS)[0], np.arange(4), 4, seed=(0,)).at(0)
    assert batch.target["box_valid"].sum() == 8


# What was printed


def test_printed_means_are_the_means_of_the_printed_rows():
    for name, row in {**PUBLISHED_MODELS, **PUBLISHED_ABLATION}.items():
        assert len(row.precision) == len(row.recall) == len(LESIONS)
        # Rows have two digits.
        np.testing.assert_allclose([np.mean(row.precision), np.mean(row.recall)], row.overall, atol=0.011, err_msg=name)


def test_found_and_missed_boxes_are_the_102_of_the_test_cases():
    assert {counts.tp + counts.fn for counts in PUBLISHED_COUNTS.values()} == {102}
    assert set(PUBLISHED_COUNTS) == set(PUBLISHED_MODELS)


def test_sets_of_features_are_the_printed_ten_with_both_readings_of_one():
    assert len(FEATURE_SETS) == 11
    assert len(PUBLISHED_ABLATION) == 10
    assert set(ABLATION_OF.values()) == set(PUBLISHED_ABLATION)
    without = [names for label, names in FEATURE_SETS.items() if ABLATION_OF[label] == "all \\ gender"]
    assert [len(names) for names in without] == [9, 5]
    assert not any("gender" in names for names in without)
    for label, names in FEATURE_SETS.items():
        declared = columns_from_json(columns_of(names), where="test")
        assert tuple(column.name for column in declared) == names, label
    assert set(RELEVANCE) == set(TRIAGE)
    assert all(RELEVANCE[name][:2] == (0.1, 0.1) for name in TRIAGE)


def test_a_feature_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no feature 'bmi'; expected some of age_years, temperature_f"):
        columns_of(["bmi"])


# Correlations


@pytest.fixture(scope="module")
def published():
    return synthetic_cohort("published", 670, 64)


def test_correlations_are_pearsons_over_the_cases_that_have_the_vital(published):
    table = correlation_table(published, resamples=200)
    assert len(table) == len(LESIONS) * len(TRIAGE)
    numbers = clinical_numbers(published)
    for row in table.iloc[::7].to_dict("records"):
        values = numbers[row["feature"]]
        there = values.notna()
        expected = pearsonr(values[there], published.table.loc[there, row["lesion"]]).statistic
        assert row["r"] == pytest.approx(expected, abs=1e-5)
        assert row["cases"] == there.sum()
        assert row["low"] < row["r"] < row["high"]
    assert max(table["patients"].tolist()) == 540
    female = (published.table["gender"] == "F").to_numpy()
    np.testing.assert_array_equal(numbers["female"], female)


def test_intervals_hold_the_printed_correlations_that_the_cohort_was_made_with(published):
    table: Any = correlation_table(published, resamples=1000).set_index(["lesion", "feature"])
    inside = [
        table.loc[pair, "low"] <= value <= table.loc[pair, "high"] for pair, value in PUBLISHED_CORRELATIONS.items()
    ]
    assert sum(inside) >= 6
    width = float(np.median(table["high"] - table["low"]))
    assert 0.12 < width < 0.2  # 4 / sqrt(600) = 0.16
    printed = table["published"].dropna()
    assert dict(printed) == dict(PUBLISHED_CORRELATIONS)


def test_readings_of_one_image_do_not_narrow_the_interval(published):
    rows = np.arange(200)
    once = published.take(rows)
    doubled = published.take(rows)
    table = pd.concat([doubled.table, doubled.table.set_axis([f"{name}b" for name in doubled.case_id], axis=0)])
    doubled = dataclasses.replace(
        doubled,
        table=table,
        patient_id=np.tile(once.patient_id, 2),
        sources={"clinical": dataclasses.replace(once.sources["clinical"], length=400)},
        present={"clinical": np.ones(400, bool)},
        boxes=None,
    )
    first, second = (correlation_table(one, resamples=300).to_dict("list") for one in (once, doubled))
    for column in ("r", "low", "high"):
        np.testing.assert_allclose(first[column], second[column], atol=1e-4)
    assert first["patients"] == second["patients"]
    assert [2 * count for count in first["cases"]] == second["cases"]


def test_certainties_are_taken_where_readers_gave_them(mimic):
    table = correlation_table(mimic, resamples=50).set_index(["lesion", "feature"])
    vital = mimic.table["resprate_per_min"]
    there = vital.notna()
    expected = pearsonr(vital[there], mimic.table.loc[there, "pulmonary_edema_certainty"]).statistic
    assert table.loc[("pulmonary_edema", "resprate_per_min"), "r"] == pytest.approx(expected, abs=1e-5)


def test_gains_of_the_printed_ablation_go_with_relevance():
    table = relevance_table(published_gains())
    assert len(table) == 20
    temperature = table[(table["feature"] == "temperature_f") & (table["lesion"] == "pleural_abnormality")]
    assert temperature[["relevance", "gain"]].to_numpy().tolist() == [[0.9, pytest.approx(28.19 - 12.13)]]
    found = rank_correlation(table)
    assert found.rho == pytest.approx(spearmanr(table["relevance"], table["gain"]).statistic)
    assert found.rho == pytest.approx(0.637, abs=1e-3)
    assert found.cells == 20
    assert found.p_value < 0.02
    flat = rank_correlation(table.assign(gain=0.0))
    assert np.isnan(flat.rho)


def test_an_ablation_without_gender_alone_is_refused():
    with pytest.raises(
        ValueError, match=r"the ablation holds all; expected 'gender' and at least one of gender \+ age"
    ):
        relevance_table({"all": (1.0,) * 5})
