import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.chest_xray_detection import study as parts
from experiments.chest_xray_detection.config import CPU, PAPER, Config
from experiments.chest_xray_detection.measures import measure
from experiments.chest_xray_detection.models import BASELINE, DUAL, feature_models, model
from experiments.chest_xray_detection.report import answer, write_results
from experiments.chest_xray_detection.run import run
from fusion_jax.data.synthetic import chest_opacities, oracle_detections
from fusion_jax.detection.recipe import make_detection_recipe
from fusion_jax.detection.study import open_detector_study
from fusion_jax.detection.tables import truth_table
from fusion_jax.training.cross_validation import Task

pytestmark = pytest.mark.checkout

REAL = {"Nodules of JSRT": "jsrt", "Lungs of the COVID-19 collection": "lungs"}

TINY = replace(
    CPU,
    detector={
        **CPU.detector,
        "width": 0.25,
        "channels": 8,
        "hidden": 8,
        "vector": 12,
        "detections": 5,
    },
    training={**CPU.training, "epochs": 1},
    size=64,
    cases=60,
    resamples=20,
)


@pytest.mark.slow
def test_the_arms_are_trained_judged_and_reported(tmp_path, monkeypatch, capsys):
    # Four programs: one detector with and one without clinical data, each with its training and its use.
    monkeypatch.setattr(parts, "PUBLISHED", (BASELINE, DUAL))
    config = Config(out=tmp_path, parts=("arms",), seeds=(0,), workers=1)
    page = run(config, TINY)
    text = page.read_text(encoding="utf-8")
    for heading in ("Two arms", "Precision against overlap", "Boxes found and missed", "Stage by stage", "Anchors"):
        assert heading in text
    stored = json.loads((page.parent / "results.json").read_text())
    assert set(stored["answers"]) == {"informative", "uninformative"}
    studies = {arm: open_detector_study(page.parent / arm) for arm in ("informative", "uninformative")}
    cohorts = {arm: one.plan.cohort for arm, one in studies.items()}
    np.testing.assert_array_equal(*(np.asarray(one.sources["image"][3]) for one in cohorts.values()))
    assert studies["informative"].plan.splits.splits == studies["uninformative"].plan.splits.splits
    # The baseline sees no difference between the arms, since there is none in the images.
    of_baseline = [one.detections[one.detections["model"] == BASELINE]["score"].to_numpy() for one in studies.values()]
    np.testing.assert_array_equal(*of_baseline)
    before = {path: path.stat().st_mtime_ns for path in page.parent.rglob("r0_f0_s0/predictions.csv")}
    run(config, TINY)
    assert before == {path: path.stat().st_mtime_ns for path in page.parent.rglob("r0_f0_s0/predictions.csv")}
    assert "MDF-Net gains" in capsys.readouterr().out


@pytest.mark.slow
def test_every_part_on_small_cohorts(tmp_path):
    page = run(
        Config(out=tmp_path, seeds=(0,)),
        replace(TINY, nodules={"image_size": [64, 64], "epochs": 1}, lungs={"epochs": 1}),
    )
    text = page.read_text(encoding="utf-8")
    for heading in ("Ways of fusing", "Clinical features", "Nodules of JSRT", "Lungs of the COVID-19 collection"):
        assert heading in text or (heading in REAL and f"{REAL[heading]}: not run" in text)


def test_a_part_without_its_detectors_is_told_and_the_others_are_written(tmp_path):
    untrained = SimpleNamespace(
        plan=SimpleNamespace(models=(BASELINE, DUAL)), done=(Task(BASELINE, 0, 0, 0),), failed=(Task(DUAL, 0, 0, 0),)
    )
    studies = parts.Studies({"jsrt": untrained}, {"mimic": "No folders."}, {"jsrt": 3.0})
    page = write_results(Config(out=tmp_path), TINY, studies, tmp_path).read_text(encoding="utf-8")
    assert "jsrt: not judged. No training of MDF-Net ended well" in page
    assert "mimic: not run. No folders." in page
    assert json.loads((tmp_path / "results.json").read_text())["answers"] == {}


def test_the_oracle_gains_with_vitals_and_the_measure_says_so():
    import pandas as pd

    whole = chest_opacities(200, size=64)
    truth = truth_table(whole.cohort)
    found = pd.concat(
        [
            oracle_detections(whole, vitals=vitals).assign(model=name, seed=0)
            for name, vitals in (("image", False), ("both", True))
        ]
    )
    measured = measure(truth, found, ["image", "both"], [0], classes=whole.cohort.box_classes, resamples=100)
    gain = answer(measured, model="both")
    assert gain.helps
    assert gain.gain == pytest.approx(0.38, abs=0.06)
    assert measured.counts("image").fn[-1] == 0
    # The same boxes: what is found does not depend on how overlap is measured.
    np.testing.assert_allclose(measured.gains["iou"].value, measured.gains["iobb"].value)


def test_every_detector_of_the_experiment_is_a_recipe():
    for settings in (CPU, PAPER):
        config = Config(init="random", preset="paper")
        for name in (BASELINE, DUAL, "retinanet-dual", "film"):
            choice = model(config, settings, name)
            make_detection_recipe(choice["recipe"], choice["arguments"])
    assert make_detection_recipe(**_recipe(PAPER)).epochs == 100
    assert make_detection_recipe(**_recipe(PAPER)).learning_rate == 1e-3
    raw = {one["name"]: one.get("scale") for one in _recipe(PAPER)["arguments"]["columns"]}
    assert raw["sbp_mmhg"] == "none"
    assert len(feature_models(Config(), CPU)) == 10


def test_the_published_recipe_wants_weights_or_says_that_it_has_none():
    with pytest.raises(ValueError, match="--init random"):
        model(Config(preset="paper"), PAPER, DUAL)


def test_mimic_without_its_folders_says_which_are_missing(tmp_path):
    with pytest.raises(ValueError, match="--parts mimic without --mimic-cxr"):
        run(Config(out=tmp_path, parts=("mimic",), init="random"), TINY)


def _recipe(settings):
    choice = model(Config(init="random", preset="paper"), settings, DUAL)
    return {"name": choice["recipe"], "arguments": choice["arguments"]}
