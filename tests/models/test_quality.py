"""Fusion quality of live features: scaled as a cohort, by training cases, and written case by case."""

import json

import numpy as np
import pandas as pd
import pytest

from fusion_jax.models.deep import features
from fusion_jax.models.quality import feature_scale, measure_quality
from fusion_jax.quality import fusion_quality
from tests.helpers import assert_close


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(0)
    return {"image": 3.0 + 2.0 * rng.normal(size=(6, 12)), "clinical": rng.normal(size=(6, 5))}


def test_a_source_has_one_scale_for_all_cases(blocks):
    scale = feature_scale(blocks)
    scaled = scale.apply(blocks)
    for name, x in scaled.items():
        assert abs(x.mean()) < 1e-12, name
        assert_close(x.std(), 1.0)
    assert_close(scaled["image"] * scale.spread["image"] + scale.centre["image"], blocks["image"])
    assert scaled["image"][0].std() != pytest.approx(1.0), "cases keep their own spread"


def test_units_of_a_source_change_nothing(blocks):
    other = blocks | {"clinical": 100 * blocks["clinical"] - 7}
    first, second = (measure_quality(x, feature_scale(x)) for x in (blocks, other))
    assert_close(second.energy_gap["image", "clinical"], first.energy_gap["image", "clinical"], rtol=1e-3)
    assert float(first.gamma["image", "clinical"][0]) == pytest.approx(5 / 12)


def test_the_grid_is_fine_enough(blocks):
    scale = feature_scale(blocks)
    found = measure_quality(blocks, scale, keep_densities=True)
    exact = fusion_quality(
        {name: x.astype(np.float32) for name, x in scale.apply(blocks).items()},
        bandwidth=scale.bandwidth,
        method="exact",
    )
    for name in blocks:
        assert_close(found.energies[name], exact.energies[name], rtol=2e-3)
        assert_close(found.overlap[name], exact.overlap[name], rtol=2e-3)


def test_one_source_or_nothing_that_varies_is_refused(blocks):
    with pytest.raises(ValueError, match=r"two sources or more; found image"):
        feature_scale({"image": blocks["image"]})
    with pytest.raises(ValueError, match=r"two different values"):
        feature_scale({"image": np.zeros((3, 4)), "clinical": np.zeros((3, 2))})


def test_every_epoch_has_a_line(trained):
    lines = [json.loads(line) for line in (trained.folder / "quality.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(line["gamma/clinical/image"] == 1.0 and line["bandwidth"] > 0 for line in lines)
    assert lines[0]["energy_gap/clinical/image"] != lines[2]["energy_gap/clinical/image"]


def test_cases_are_measured_with_the_scale_of_the_training_cases(trained, tmp_path):
    cohort = trained.tiny.cohort
    rows = trained.split.rows(cohort)
    for name in ("quality_cases.csv", "quality_densities.npz", "quality.json"):
        (trained.folder / name).unlink(missing_ok=True)
    record = trained.recipe.measure(trained.folder, cohort, rows.test)
    table = pd.read_csv(trained.folder / "quality_cases.csv", index_col="case_id")
    whole = [case for case in trained.split.test if case not in ("case_2", "case_3")]
    assert list(table.index) == whole, "a case without one of the sources has no fusion to measure"
    train = [row for row in rows.train.tolist() if row not in (2, 3)]
    scale = feature_scale(features(trained.folder, cohort, np.array(train)))
    assert_close(record["bandwidth"], scale.bandwidth)
    tested = features(trained.folder, cohort, np.array([row for row in rows.test.tolist() if row not in (2, 3)]))
    expected = measure_quality(tested, scale)
    assert_close(table["energy_gap/clinical/image"].to_numpy(), expected.energy_gap["clinical", "image"], rtol=1e-4)
    assert_close(table["total_variation/image"].to_numpy(), expected.total_variation["image"], rtol=1e-4)
    with np.load(trained.folder / "quality_densities.npz", allow_pickle=False) as densities:
        step = densities["grid"][1] - densities["grid"][0]
        for name in ("fused", "source/image", "source/clinical"):
            assert densities[name].sum() * step == pytest.approx(1, abs=1e-3)
    assert record["typical_case"] in whole
