"""Radiomic features: the table and its cache with a stand-in for mirp, and mirp itself against the IBSI."""

import csv
import importlib.util
import json
import logging
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Arrays, Cohort
from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.models import radiomics
from fusion_jax.models.radiomics import FAMILIES, RadiomicSettings, radiomic_features
from fusion_jax.models.registry import make_recipe
from fusion_jax.training.executors import spawned
from tests.helpers import real_data

needs_mirp = pytest.mark.skipif(
    importlib.util.find_spec("mirp") is None, reason="needs the extra `radiomics`: pip install mirp"
)


def blobs(cases=4, *, size=6, axes=3, channels=1, seed=0, ct=True):
    """A cohort of noise with a cube as the mask; the mask of case c holds c + 2 positions an axis."""
    rng = np.random.default_rng([seed, axes])
    mask = np.zeros((cases, *(size,) * axes, 1), np.uint8)
    for case in range(cases):
        mask[(case, *(slice(1, 3 + case % 3),) * axes)] = 1
    spacing = [(2.0,) * axes] * cases
    shape = (cases, *(size,) * axes, channels)
    images = {"pet": Arrays(rng.gamma(2.0, 2.0, shape).astype(np.float32), "image", spacing, unit="SUV")}
    if ct:
        images["ct"] = Arrays(rng.normal(40, 20, shape).astype(np.float32), "image", spacing, unit="HU")
    names = [f"case/{case}" for case in range(cases)]
    return Cohort.from_arrays(
        {**images, "mask": Arrays(mask, "mask", spacing)}, label=np.arange(cases) % 2, case_id=names, name="blobs"
    )


class Counted:
    """Stands in for mirp: mean and number of the values inside, and how often it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, values, inside, image, settings, case, name, modality, arguments):
        self.asked.append((case, name))
        if "resegmentation_intensity_range" in arguments and modality is None:
            return {"morph_volume": float(inside.sum()), "morph_com": float("nan")}
        return {"stat_mean": float(values[inside].mean()), "cm_count": float("nan"), "morph_volume": -1.0}


@pytest.fixture
def mirp(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(radiomics, "_by_mirp", counted)
    monkeypatch.setattr(radiomics, "_extractor", lambda: (None, None))
    monkeypatch.setattr(radiomics, "_version", lambda: "0")
    return counted


def test_table_has_a_row_a_case_and_shape_once(mirp, tmp_path):
    cohort, seen = blobs(), []
    table = radiomic_features(cohort, tmp_path / "table.csv", report=lambda *done: seen.append(done))
    assert tuple(table.index) == cohort.case_id
    assert list(table.columns) == ["mask:morph_volume", "pet:stat_mean", "pet:cm_count", "ct:stat_mean", "ct:cm_count"]
    inside = cohort.sources["mask"][2][..., 0] > 0
    assert inside.sum() == 64
    assert float(table["mask:morph_volume"].iloc[2]) == 64
    assert float(table["pet:stat_mean"].iloc[2]) == pytest.approx(cohort.sources["pet"][2][..., 0][inside].mean())
    assert np.isnan(table["pet:cm_count"].to_numpy(float)).all()
    assert seen == [(number, 4) for number in range(1, 5)]


def test_table_that_is_there_is_read(mirp, tmp_path):
    first = radiomic_features(blobs(), tmp_path / "table.csv")
    count, seen = len(mirp.asked), []
    again = radiomic_features(blobs(), tmp_path / "table.csv", report=lambda *done: seen.append(done))
    assert len(mirp.asked) == count
    assert seen == [(4, 4)]
    pd.testing.assert_frame_equal(first, again)
    assert json.loads((tmp_path / "table.json").read_text())["settings"]["bins"] == 32


def test_other_settings_are_refused(mirp, tmp_path):
    radiomic_features(blobs(), tmp_path / "table.csv")
    with pytest.raises(
        ValueError, match=r"table\.csv: its features were computed with settings .*'bins': 32.*'bins': 16"
    ):
        radiomic_features(blobs(), tmp_path / "table.csv", RadiomicSettings(bins=16))
    with pytest.raises(ValueError, match=r"computed with pairs .*'ct'.*name another file"):
        radiomic_features(blobs(), tmp_path / "table.csv", images=("pet",))


def test_a_table_of_unknown_origin_is_taken_if_it_is_complete(tmp_path, caplog):
    cohort, path = blobs(), tmp_path / "given.csv"
    pd.DataFrame({"case_id": [*reversed(cohort.case_id), "other"], "x": range(5)}).to_csv(path, index=False)
    caplog.set_level(logging.INFO, logger="fusion_jax")
    assert radiomic_features(cohort, path)["x"].tolist() == [3, 2, 1, 0]  # without mirp
    assert "no record of its settings" in caplog.text
    pd.DataFrame({"case_id": ["case/0"], "x": [1.0]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"no features of 3 cases of blobs, such as case/1, and no record given\.json"):
        radiomic_features(cohort, path)
    path.write_text("id,x\na,1\n")
    with pytest.raises(ValueError, match=r"given\.csv: no column 'case_id'; its columns are id, x"):
        radiomic_features(cohort, path)


def test_only_what_changed_is_computed_again(mirp, tmp_path):
    cohort, path = blobs(), tmp_path / "table.csv"
    radiomic_features(cohort, path)
    mirp.asked.clear()
    grown = blobs(6)
    same = {name: Arrays([*cohort.sources[name].values, *grown.sources[name].values[4:]], cohort.sources[name].kind,
                         [(2.0,) * 3] * 6, unit=cohort.sources[name].unit) for name in cohort.sources}  # fmt: skip
    changed = Cohort.from_arrays(same, label=grown.label, case_id=grown.case_id, name="blobs")
    assert len(radiomic_features(changed, path)) == 6
    assert {case for case, _ in mirp.asked} == {"case/4", "case/5"}
    mirp.asked.clear()
    changed.sources["pet"].values[0][1, 1, 1] += 1
    radiomic_features(changed, path)
    assert {case for case, _ in mirp.asked} == {"case/0"}


def test_an_interrupted_call_goes_on_where_it_stopped(mirp, tmp_path, monkeypatch):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        radiomic_features(blobs(), tmp_path / "table.csv", report=stop)
    assert not (tmp_path / "table.csv").exists()
    mirp.asked.clear()
    # A damaged file is made anew.
    (tmp_path / "table.cases" / "case%2F0.json").write_text("{")
    assert len(radiomic_features(blobs(), tmp_path / "table.csv")) == 4
    assert {case for case, _ in mirp.asked} == {"case/0", "case/2", "case/3"}


def test_bad_cases_are_named_after_all_others_were_kept(mirp, tmp_path):
    cohort = blobs()
    cohort.sources["mask"].values[1][:] = 0
    cohort.sources["pet"].values[3][2, 2, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"no radiomic features of 2 of 4 cases; case case/1: mask is empty.*case/1, case/3"
    ):
        radiomic_features(cohort, tmp_path / "table.csv")
    assert len(list((tmp_path / "table.cases").iterdir())) == 2
    assert not (tmp_path / "table.csv").exists()


def test_an_absent_image_leaves_gaps_and_channels_have_numbers(mirp, tmp_path):
    cohort = blobs(channels=2, ct=False)
    cohort.present["pet"][0] = False
    table = radiomic_features(cohort, tmp_path / "table.csv", RadiomicSettings(families=("statistics",)))
    assert list(table.columns) == ["pet[0]:stat_mean", "pet[0]:cm_count", "pet[1]:stat_mean", "pet[1]:cm_count"]
    assert table["pet[0]:stat_mean"].isna().tolist() == [True, False, False, False]
    assert not np.isclose(table["pet[0]:stat_mean"], table["pet[1]:stat_mean"]).any()


def test_images_with_masks_of_their_own_say_in_which(mirp, tmp_path):
    one, other = blobs(2, ct=False), blobs(2, size=8, ct=False)
    sources = {"pet": one.sources["pet"], "pet_mask": one.sources["mask"]}
    sources |= {"ct": other.sources["pet"], "ct_mask": other.sources["mask"]}
    cohort = Cohort.from_arrays(sources, label=[0, 1], name="two grids")
    table = radiomic_features(cohort, tmp_path / "table.csv")
    assert "pet in pet_mask:stat_mean" in table
    assert "ct in ct_mask:stat_mean" in table
    assert not [name for name in table if "pet in ct_mask" in name]


def test_other_workers_open_the_cohort_by_its_address(mirp, tmp_path, monkeypatch):
    opened = []

    def open_address(address):
        opened.append(address)
        return blobs()

    monkeypatch.setattr(radiomics, "open_address", open_address)
    radiomics._opened.cache_clear()
    factory, seen = partial(ThreadPoolExecutor, 2), []
    table = radiomic_features(
        blobs(),
        tmp_path / "table.csv",
        RadiomicSettings(bin_width={"ct": 25.0}, intensity_range={"pet": (0.0, 9.0)}),
        address={"folder": "there"},
        executor_factory=factory,
        report=lambda *done: seen.append(done),
    )
    assert opened[0] == {"folder": "there"}
    assert sorted(seen) == [(number, 4) for number in range(1, 5)]
    here = radiomic_features(
        blobs(), tmp_path / "here.csv", RadiomicSettings(bin_width={"ct": 25.0}, intensity_range={"pet": (0.0, 9.0)})
    )
    pd.testing.assert_frame_equal(table, here)
    with pytest.raises(ValueError, match=r"blobs: other processes get no arrays; give the `address`"):
        radiomic_features(blobs(), tmp_path / "other.csv", executor_factory=factory)


def test_a_dead_worker_is_reported(mirp, tmp_path):
    class Dying(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            raise BrokenProcessPool("killed")

    with pytest.raises(RuntimeError, match=r"a worker died.*0 of 4 cases done.*Call again with fewer workers"):
        radiomic_features(
            blobs(), tmp_path / "table.csv", address={"folder": "there"}, executor_factory=partial(Dying, 1)
        )


def test_what_cannot_be_measured_is_refused_before_anything_is_computed(tmp_path):
    cohort, path = blobs(), tmp_path / "table.csv"
    with pytest.raises(ValueError, match="no source of kind 'mask'"):
        radiomic_features(cohort.only("pet"), path)
    with pytest.raises(ValueError, match="'mri' is no image on the grid of a mask; there is 'ct', 'pet'"):
        radiomic_features(cohort, path, images=("mri",))
    with pytest.raises(ValueError, match="the settings name an image 'pett'; did you mean 'pet'"):
        radiomic_features(cohort, path, RadiomicSettings(bin_width={"pett": 0.5}))


def test_without_mirp_the_install_command_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mirp", None)
    with pytest.raises(ImportError, match=re.escape('pip install "fusion-jax[radiomics]"')):
        radiomic_features(blobs(), tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing": 0.0}, "spacing is 0.0; expected millimetres"),
        ({"bins": 1}, "bins is 1; expected at least 2"),
        ({"bin_width": {"ct": -1.0}}, "bin_width of 'ct' is -1.0"),
        ({"intensity_range": {"ct": (1.0, 0.0)}}, r"intensity_range of 'ct' is \(1.0, 0.0\)"),
        ({"families": ()}, "families is empty"),
        ({"families": ("glcmm",)}, "no 'glcmm'; did you mean 'glcm'"),
    ],
)
def test_impossible_settings_are_refused(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        RadiomicSettings(**settings)


def test_a_forest_reads_the_table(mirp, tmp_path):
    cohort = blobs(12)
    radiomic_features(cohort, tmp_path / "table.csv")
    from fusion_jax.data import k_fold
    from fusion_jax.training.keys import run_key

    recipe = make_recipe(
        "random-forest",
        {"features": "measurements", "table": str(tmp_path / "table.csv"), "screen": "lasso", "trees": 5},
    )
    split = k_fold(cohort, 2, seed=0).splits[0]
    recipe.fit(cohort, split._replace(test=()), run_key(0), tmp_path / "fit")
    found = recipe.predict(tmp_path / "fit", cohort, split.rows(cohort).test)
    assert found.shape == (6, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)


def test_random_numbers_of_others_are_left_alone():
    state = random.getstate()
    with radiomics._quiet():
        random.seed(1)
    assert random.getstate() == state


# With mirp itself.


def ibsi_name(column):
    """IBSI tag of a column of ours: mirp adds distance, level difference and discretisation, and names the merging."""
    name = column.split(":")[1]
    for part in ("_fbn_n6", "_d1", "_a0.0"):
        name = name.replace(part, "")
    name = name.replace("_3d_v_mrg", "_3D_comb").replace("_2d_s_mrg", "_2D_comb")
    return re.sub("_([23])d$", r"_\1D", name)


def rounded(value, digits=3):
    return round(value, digits - 1 - math.floor(math.log10(abs(value)))) if value else value


@needs_mirp
@pytest.mark.parametrize("by_slice", [False, True])
def test_features_of_the_digital_phantom_are_those_of_the_ibsi(by_slice, tmp_path):
    from fusion_jax.data.readers import read_nifti

    folder = real_data("ibsi")
    phantom, mask = (read_nifti(folder / "digital_phantom" / f"{name}.nii.gz") for name in ("phantom", "mask"))
    cohort = Cohort.from_arrays(
        {
            "phantom": Arrays(phantom.values[None], "image", [phantom.spacing]),
            "mask": Arrays(mask.values[None], "mask", [mask.spacing]),
        },
        label=[0],
        name="digital phantom",
    )
    # Six bins between 1 and 6 leave the phantom's whole numbers as they are.
    settings = RadiomicSettings(bins=6, by_slice=by_slice, families=(*FAMILIES, "spatial"))
    table = radiomic_features(cohort, tmp_path / "table.csv", settings)
    with (folder / "reference_values" / "ibsi_1_dig_phantom.csv").open(newline="") as file:
        printed = {row["tag"]: row for row in csv.DictReader(file, delimiter=";") if row["reference value"]}
    compared = 0
    for column in table.columns:
        row = printed[ibsi_name(column)]
        value, tolerance = float(row["reference value"]), float(row["tolerance"])
        error = abs(rounded(float(table[column].iloc[0])) - value)
        assert error <= tolerance + 1e-9 * abs(value), f"{column}: {table[column].iloc[0]}, printed {value}"
        compared += 1
    assert compared == 161


@needs_mirp
def test_mirp_prints_nothing_and_sees_the_mask(tmp_path, capfd):
    cohort = soft_tissue_sarcoma_cohort().take([1])
    settings = RadiomicSettings(bin_width={"pet": 0.5, "ct": 25.0}, families=("morphology", "statistics", "glcm"))
    handlers = list(logging.getLogger().handlers)
    table = radiomic_features(cohort, tmp_path / "table.csv", settings)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    inside = cohort.image("mask", 0).values[..., 0] > 0
    assert table["mask:morph_vol_approx"].iloc[0] == pytest.approx(inside.sum() * 4.0**3)
    assert table["pet:stat_max"].iloc[0] == pytest.approx(cohort.image("pet", 0).values[..., 0][inside].max())


@needs_mirp
def test_spacing_range_and_unit_reach_mirp(tmp_path):
    cohort = blobs(2, size=8)
    plain, fine, narrow = (
        radiomic_features(cohort, tmp_path / f"{number}.csv", settings)
        for number, settings in enumerate(
            (
                RadiomicSettings(families=("statistics", "morphology")),
                RadiomicSettings(families=("statistics", "morphology"), spacing=1.0),
                RadiomicSettings(families=("statistics",), intensity_range={"ct": (30.0, 50.0)}),
            )
        )
    )
    # A cube of 2 voxels of 2 mm; resampled to eight times as many voxels it stays about as large.
    assert plain["mask:morph_vol_approx"].iloc[0] == 64.0
    assert fine["mask:morph_vol_approx"].iloc[0] == pytest.approx(64.0, rel=0.3)
    assert not np.isclose(plain["ct:stat_mean"].iloc[0], fine["ct:stat_mean"].iloc[0])
    assert np.min(narrow["ct:stat_min"]) >= 30
    assert np.max(narrow["ct:stat_max"]) <= 50
    least = plain["ct:stat_min"].to_numpy(float)
    np.testing.assert_array_equal(least, np.round(least))  # HU are whole numbers


@needs_mirp
def test_what_mirp_cannot_measure_names_case_and_image(tmp_path):
    cohort = blobs(1)
    settings = RadiomicSettings(families=("statistics", "glcm"), intensity_range={"ct": (5000.0, 6000.0)})
    with pytest.raises(ValueError, match=r"case case/0: ct: nothing of mask lies between 5000 and 6000"):
        radiomic_features(cohort, tmp_path / "table.csv", settings)
    unitless = Cohort.from_arrays(
        {"mri": Arrays(cohort.sources["pet"].values, "image"), "mask": Arrays(cohort.sources["mask"].values, "mask")},
        label=[0],
    )
    with pytest.raises(ValueError, match="a bin width needs a least value, and the unit of mri is unknown"):
        radiomic_features(unitless, tmp_path / "table.csv", RadiomicSettings(bin_width={"mri": 5.0}))
    with pytest.raises(ValueError, match=r"mask has no spacing, so that it cannot be resampled to 1\.0 mm"):
        radiomic_features(unitless, tmp_path / "table.csv", RadiomicSettings(spacing=1.0))


@needs_mirp
def test_slices_are_measured_in_the_plane(tmp_path):
    table = radiomic_features(blobs(2, size=12, axes=2, ct=False), tmp_path / "table.csv")
    assert any("_2d_" in name for name in table)
    assert not any("_3d_" in name for name in table)


@needs_mirp
@pytest.mark.slow
def test_spawned_workers_compute_the_same_table(tmp_path):
    settings = RadiomicSettings(families=("statistics", "glcm"))
    address = {"function": "fusion_jax.data.collections:soft_tissue_sarcoma_cohort"}
    cohort = soft_tissue_sarcoma_cohort()
    here = radiomic_features(cohort, tmp_path / "here.csv", settings)
    there = radiomic_features(cohort, tmp_path / "there.csv", settings, address=address, executor_factory=spawned(2))
    pd.testing.assert_frame_equal(here, there)
