"""The experiment end to end at small size, and that what it claims is computed."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.fusion_quality import cohort, validation
from experiments.fusion_quality.config import BANDWIDTHS, GAMMAS, Config
from experiments.fusion_quality.run import run
from fusion_jax.data import CLINICAL_INPUTS, OUTCOME_COLUMNS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    config = Config(keys=2, iterations=200, curve_points=21, permutations=49, resamples=20, largest_size=300, out=out)
    assert run(config) == out / "report.html"
    return out


def _numbers(results: Path) -> dict:
    return json.loads((results / "results.json").read_text())


def test_the_gap_is_smallest_at_one_in_the_paper_like_setting_and_at_half_for_a_narrow_kernel(results):
    minimum = {
        (row["rescaling"], row["bandwidth"]): row["pooled_minimum_at"]
        for row in _numbers(results)["validation"]["sweep"]
        if row["process"] == "white"
    }
    assert minimum["none", 0.5] == 1.0
    assert minimum["none", 0.2] == 0.5
    assert len(minimum) == 3 * len(BANDWIDTHS)


def test_every_figure_of_the_specification_is_within_its_tolerance(results):
    table = _numbers(results)["validation"]["table"]
    assert len(table) == len(GAMMAS) * 18
    assert [row for row in table if not row["within_tolerance"]] == []


def test_the_tolerance_would_refuse_a_gap_of_the_wrong_reading():
    assert abs(0.222 - 0.393) > validation.tolerance(spread=0.01, expected=0.393)


def test_the_pooled_gap_is_v_shaped_in_every_setting(results):
    assert all(row["v_shaped"] for row in _numbers(results)["validation"]["sweep"])


def test_report_stands_alone_and_carries_every_figure(results):
    page = (results / "report.html").read_text()
    assert "not a medical device" in page
    assert 'src="http' not in page
    assert len(list((results / "figures").glob("*.svg"))) == 9


def test_cohort_is_the_48_patients_with_24_events(results):
    numbers = _numbers(results)["cohort"]
    assert (numbers["patients"], numbers["events"], numbers["missing_grade"]) == (48, 24, 2)
    with (results / "cohort_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert all(float(row["after/sizes/clinical"]) > 10 * float(row["before/sizes/clinical"]) for row in rows)


def test_encoding_brings_the_clinical_share_of_energy_near_a_third(results):
    with (results / "cohort_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    before, after = (
        np.median([float(row[f"{stage}/energy_shares/clinical"]) for row in rows]) for stage in ("before", "after")
    )
    assert before < 1e-3
    assert 0.2 < after < 0.5


def test_no_outcome_is_an_input():
    assert not set(CLINICAL_INPUTS) & set(OUTCOME_COLUMNS)


def test_scaling_is_by_cohort_and_ignores_missing_values():
    values = np.array([[1.0, 2.0], [3.0, 99.0]])
    weights = np.array([[1.0, 1.0], [1.0, 0.0]])
    scaled = cohort._by_cohort(values, weights)
    assert scaled[1, 1] == 0.0
    np.testing.assert_allclose(scaled[weights > 0], (np.array([1.0, 2.0, 3.0]) - 2.0) / np.sqrt(2 / 3))


def test_areas_from_ranks_equal_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 5, (4, 30)).astype(float)
    outcome = np.tile(np.arange(30) % 3 == 0, (4, 1))
    expected = [roc_auc_score(o, v) for o, v in zip(outcome, values, strict=True)]
    np.testing.assert_allclose(cohort._areas(values, outcome), expected)


def test_adjusted_odds_ratio_sees_through_a_confounder():
    generator = np.random.default_rng(1)
    volume = generator.normal(size=200)
    outcome = generator.random(200) < 1 / (1 + np.exp(-2 * volume))
    bias = volume + 0.1 * generator.normal(size=200)
    config = Config(resamples=50, permutations=99)
    row = cohort.relate("bias", bias, outcome, np.column_stack([volume, generator.normal(size=200)]), config)
    assert row["auc_interval"][0] > 0.7
    low, high = row["adjusted_interval"]
    assert low < 1.0 < high


def test_a_missing_grade_takes_its_block_out_of_the_encoding():
    encode = jax.jit(jax.vmap(cohort.masked_positional_encoding, in_axes=(0, None, None)), static_argnums=2)
    clinical = np.array([[60.0, 1.0, 0.0], [50.0, 0.0, 3.0]])
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    values, mass = cohort._encoded(encode, clinical, weights, 12, 18)
    assert mass.sum(axis=1).tolist() == [8.0, 12.0]
    assert (values[0, 12:] == 0).all()
