"""The study of PET-CT architecture search at tiny size, and what its cohort and the printed tables are."""

import json
from types import MappingProxyType

import numpy as np
import pytest

from experiments.petct_nas import run as experiment
from experiments.petct_nas.cohort import FEATURES, study_cohort
from experiments.petct_nas.config import CPU, PAPER, Config, Settings
from experiments.petct_nas.models import CHOICE, SEARCHED, rows_of, variants_of
from experiments.petct_nas.models import PAPER as PRINTED
from fusion_jax.evaluation.classification import accuracy, confusion_counts, f1, precision, sensitivity, specificity
from fusion_jax.models.published import STAND_INS
from fusion_jax.models.registry import make_recipe

TINY = Settings(
    spacing=12.0,
    size=8,
    search=MappingProxyType(
        {
            "layout": "N",
            "nodes": 1,
            "channels": 2,
            "stem_multiplier": 1,
            "derived_channels": 2,
            "head": [],
            "space": ["none", "skip", "conv3"],
            "search_epochs": 2,
            "search_batch_size": 10,
            "architecture_rate": 0.1,
        }
    ),
    retrain=MappingProxyType({"epochs": 1, "batch_size": 12, "quality": "none"}),
    networks=MappingProxyType({"epochs": 1, "batch_size": 12, "quality": "none"}),
    trees=10,
    folds=2,
    inner_folds=2,
    permuted_tables=2,
    permuted_networks=0,
    resamples=200,
)
KEPT = ("HC + RF", SEARCHED, "3-D random cells", "tumour volume", "SUVmax", "volume + SUVmax")
VARIANTS = ("volume + SUVmax, logistic", "HC + RF, all features")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("petct")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "rows_of", lambda *given: _kept(rows_of(*given), KEPT))
        patch.setattr(experiment, "variants_of", lambda *given: _kept(variants_of(*given), VARIANTS))
        page = experiment.run(Config(out=out, workers=1), TINY)
    return page.parent


def _kept(models, names):
    return {name: models[name] for name in names}


@pytest.mark.slow
def test_the_report_has_the_tables_of_the_paper_the_choice_and_the_cells(results):
    page = (results / "report.html").read_text()
    for words in ("Headline", "Table 1: methods", "– printed", "permuted", "Cells of fold 1", "random cells"):
        assert words in page
    for name in ("table_1", "sanity", "against_the_search", "headline", "genotypes", "images"):
        assert (results / "tables" / f"{name}.csv").exists(), name
    assert (results / "figures" / "cells.svg").exists()


@pytest.mark.slow
def test_a_variant_is_chosen_among_training_patients_in_every_fold(results):
    found = sorted((results / "choice" / "tasks").glob(f"{CHOICE}*/*/choice.json"))
    assert len(found) == 2
    for path in found:
        assert json.loads(path.read_text())["winner"] in VARIANTS


@pytest.mark.slow
def test_searched_and_random_cells_are_trained_on_the_same_patients(results):
    divisions = {
        name: [json.loads(path.read_text()) for path in sorted((results / "tasks").glob(f"{name}*/*/division.json"))]
        for name in (SEARCHED, "3-D random cells")
    }
    assert len(divisions[SEARCHED]) == 2
    assert divisions[SEARCHED] == divisions["3-D random cells"]


def test_printed_rates_follow_from_the_counts_they_imply():
    labels = np.repeat([1, 0], 24).astype(np.int32)
    for model, printed in PRINTED.items():
        decisions = np.zeros(48, np.int32)
        decisions[: printed.true_positive] = 1
        decisions[24 + printed.true_negative :] = 1
        counts = confusion_counts(labels, decisions)
        rates = [metric(counts) for metric in (accuracy, sensitivity, specificity, precision, f1)]
        np.testing.assert_allclose(rates, printed[:5], atol=1e-3, err_msg=model)
    hard = PRINTED["3-D MM-NAS"]
    assert (hard.sensitivity + hard.specificity) / 2 == pytest.approx(hard.auc, abs=6e-4)


def test_the_cohort_has_every_source_on_the_grid_that_the_table_states():
    cohort = study_cohort(spacing=12.0, size=8)
    assert len(cohort) == 48
    assert int(cohort.label.sum()) == 24
    shapes = {name: np.shape(cohort.sources[name][0]) for name in ("pet", "ct_marked", "ct_slice", "pet_inside")}
    assert shapes == {
        "pet": (8, 8, 8, 1),
        "ct_marked": (8, 8, 8, 2),
        "ct_slice": (64, 64, 1),
        "pet_inside": (64, 64, 1),
    }
    for name in ("pet", "ct", "ct_slice"):
        for row in (0, 47):
            values = np.asarray(cohort.sources[name][row])
            assert values.min() >= 0
            assert values.max() <= 1
    marked = np.asarray(cohort.sources["pet_marked"][3])
    np.testing.assert_array_equal(marked[..., :1], cohort.sources["pet"][3])
    # Shares of a voxel: the contour on a coarser grid.
    assert marked[..., 1].min() >= 0
    assert 0.5 < marked[..., 1].max() <= 1


def test_radiomic_features_are_those_of_the_patient():
    import pandas as pd

    cohort = study_cohort(spacing=12.0, size=8)
    table = pd.read_csv(FEATURES, dtype={"case_id": str}).set_index("case_id")
    found = np.asarray(cohort.sources["radiomics"][5])
    np.testing.assert_allclose(found, table.loc[cohort.case_id[5]].to_numpy(np.float32))
    volume = table["mask:morph_volume"].loc[list(cohort.case_id)].to_numpy() / 1000
    stated = cohort.table["tumour_volume_ml"].to_numpy()
    # At 4 mm, and on the grid of the scanner.
    assert np.median(np.abs(volume / stated - 1)) < 0.1


def test_permuted_labels_are_dealt_among_the_same_patients():
    plain, dealt = (study_cohort(spacing=12.0, size=8, permutation=one) for one in (None, 3))
    assert plain.case_id == dealt.case_id
    assert int(dealt.label.sum()) == 24
    assert (plain.label != dealt.label).any()
    np.testing.assert_array_equal(plain.sources["pet"][7], dealt.sources["pet"][7])


def test_every_row_and_variant_of_both_presets_is_a_recipe():
    for settings in (CPU, PAPER):
        rows = rows_of(settings, "second")
        assert set(PRINTED) <= set(rows)
        for name, row in rows.items():
            make_recipe(row.choice["recipe"], row.choice["arguments"])
            assert row.images
            if name in STAND_INS:
                assert "widths not published" in row.note
        for choice in variants_of(settings, "first").values():
            make_recipe(choice["recipe"], choice["arguments"])
    assert CPU.search["search_epochs"] <= 15
