"""From boxes to a trained detector and back to the pixels of the images."""

import dataclasses
import json
import logging
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from fusion_jax.data import Split, preprocessed
from fusion_jax.detection.inputs import own_boxes
from fusion_jax.detection.judging import judge
from fusion_jax.detection.recipe import DetectionRecipe, check, make_detection_recipe, prepare
from fusion_jax.detection.trained import find, load_detector, stages_of
from fusion_jax.encoders.stored import load_arrays
from tests.detection.squares import TINY, squares
from tests.helpers import assert_close

KEY = jax.random.key(0)

SMALL: dict[str, Any] = {**TINY, "config": {**TINY["config"], "masks": False, "spatialise": "repeat"}, "epochs": 30}
"""The clinical map without a trunk of its own: a third of the time to compile."""


def everybody(cohort, validation=()):
    train = tuple(case for case in cohort.case_id if case not in validation)
    return Split(0, 0, train, tuple(validation), ())


def ap_of(cohort, table):
    index = {case: row for row, case in enumerate(cohort.case_id)}
    codes = {name: code for code, name in enumerate(cohort.box_classes)}
    boxes = table[["x0", "y0", "x1", "y1"]].to_numpy(float)
    case, label = (
        table[name].map(codes_of).to_numpy(np.int64) for name, codes_of in (("case_id", index), ("class", codes))
    )
    return judge(cohort.boxes, boxes, case, label, table["score"].to_numpy(), classes=len(codes)).ap


class Trained(NamedTuple):
    cohort: Any
    recipe: DetectionRecipe
    folder: Any
    table: Any


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cohort, folder = squares(), tmp_path_factory.mktemp("mdf-net")
    recipe = make_detection_recipe("mdf-net", SMALL)
    recipe.fit(cohort, everybody(cohort), KEY, folder)
    return Trained(cohort, recipe, folder, recipe.predict(folder, cohort, np.arange(12)))


def test_a_few_images_are_learnt_by_heart(trained):
    assert ap_of(trained.cohort, trained.table) > 0.95


def test_boxes_are_in_the_pixels_of_each_image(trained):
    tall = trained.table[trained.table["case_id"] == "c00"]  # 128 rows, read at 64
    assert tall["y1"].max() > 64
    assert trained.table["model"].unique().tolist() == ["mdf-net"]
    assert list(trained.table) == ["case_id", "patient_id", "x0", "y0", "x1", "y1", "class", "score", "model"]


def test_the_folder_says_what_was_trained(trained):
    record = load_detector(trained.folder)
    assert make_detection_recipe(record["name"], record["arguments"]) == trained.recipe
    facts = record["facts"]
    assert facts["fixed_epochs"]
    assert facts["epochs"] == 30
    assert facts["initialisation"] == {"image": {"kind": "random"}}  # a repeated vector has no trunk of its own
    assert set(facts["objective"]["alpha"]) == {"objectness", "proposal_boxes", "classes", "boxes"}
    assert record["inputs"]["clinical"]["missing"] == "mean"
    line = json.loads((trained.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"boxes", "alpha_boxes", "classes", "alpha_classes", "loss"} <= set(line)
    anchors = json.loads((trained.folder / "anchors.json").read_text())
    assert anchors["recall"] == facts["anchor_recall"] == 1.0
    assert anchors["boxes"] == 16


def test_rows_come_in_the_order_they_are_asked_for_and_boxes_are_not_looked_at(trained):
    blind = dataclasses.replace(trained.cohort, boxes=None)
    found = find(trained.folder, blind, np.array([5, 0, 5]))
    assert list(dict.fromkeys(found.rows.tolist())) == [5, 0]
    for row, case in ((5, "c05"), (0, "c00")):
        own = found.table[found.table["case_id"] == case].iloc[: (found.rows == row).sum() // (1 + (row == 5))]
        expected = trained.table[trained.table["case_id"] == case]
        assert own["class"].tolist() == expected["class"].tolist()
        assert_close(own[["x0", "y1", "score"]].to_numpy(), expected[["x0", "y1", "score"]].to_numpy(), 1e-4)
    assert found.masks is None


def test_cases_without_an_image_are_left_out_of_prediction(trained, caplog):
    present = dict(trained.cohort.present) | {"xray": ~np.isin(np.arange(12), [4, 7])}
    lacking = dataclasses.replace(trained.cohort, present=present)
    found = find(trained.folder, lacking)
    assert "2 of 12 cases have no 'xray' and are left out, case c04 first" in caplog.text
    assert found.images == 10
    kept = trained.table[~trained.table["case_id"].isin(["c04", "c07"])]
    assert found.table["case_id"].tolist() == kept["case_id"].tolist()
    assert_close(found.table["score"].to_numpy(), kept["score"].to_numpy(), 1e-4)
    nothing = dataclasses.replace(lacking, present=dict(present) | {"xray": np.zeros(12, bool)})
    with pytest.raises(ValueError, match="case c00 has no 'xray' \\(12 such cases\\)"):
        find(trained.folder, nothing)


def test_the_stages_of_an_image_are_in_its_pixels(trained):
    viewed = stages_of(trained.folder, trained.cohort, 3)
    expected = trained.table[trained.table["case_id"] == "c03"]
    assert viewed.detections["class"].tolist() == expected["class"].tolist()
    assert_close(viewed.detections["score"].to_numpy(), expected["score"].to_numpy(), 1e-4)
    assert viewed.proposals[:, 3].max() > 64  # of 128 rows, read at 64
    assert len(viewed.proposal_score) == len(viewed.proposals) >= len(expected)
    assert set(viewed.maps) == {"image", "clinical", "fused"}
    assert viewed.maps["fused"].shape == (8, 12, 32)
    assert viewed.masks is None


def test_another_name_and_size_of_the_image_do_not_matter(trained):
    renamed = dataclasses.replace(
        trained.cohort,
        sources={"film": trained.cohort.sources["xray"], "clinical": trained.cohort.sources["clinical"]},
        present={"film": trained.cohort.present["xray"], "clinical": trained.cohort.present["clinical"]},
    )
    assert_close(find(trained.folder, renamed).table["score"].to_numpy(), trained.table["score"].to_numpy(), 1e-4)
    larger = preprocessed(trained.cohort, {"xray": [{"op": "resize", "size": [128, 192]}]})
    found = find(trained.folder, larger).table
    assert ap_of(larger, found) > 0.8


def test_a_killed_training_goes_on_to_the_same_bits(trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.epoch == 2:
            raise Killed

    recipe = dataclasses.replace(trained.recipe, epochs=4)
    for name, report in (("whole", None), ("killed", kill)):
        (tmp_path / name).mkdir()
        try:
            recipe.fit(trained.cohort, everybody(trained.cohort), KEY, tmp_path / name, report=report)
        except Killed:
            assert not (tmp_path / name / "recipe.json").exists()
            recipe.fit(trained.cohort, everybody(trained.cohort), KEY, tmp_path / name)
    whole, killed = (load_arrays(tmp_path / name / "weights.npz") for name in ("whole", "killed"))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole, killed)))


def test_other_settings_are_refused_in_the_folder_of_a_training(trained):
    other = dataclasses.replace(trained.recipe, epochs=31)
    with pytest.raises(ValueError, match="epochs"):
        other.fit(trained.cohort, everybody(trained.cohort), KEY, trained.folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask-rcnn", "msf-net-3d", "mdf-net", "retinanet-dual"])
def test_every_kind_of_detector_learns_with_masks_and_validation(name, tmp_path):
    cohort = squares(24)
    recipe = make_detection_recipe(name, {**TINY, "epochs": 40, "batch_size": 3})
    # With one or two boxes an early epoch hits them all by luck, and is taken.
    recipe.fit(cohort, everybody(cohort, cohort.case_id[16:]), KEY, tmp_path)
    found = find(tmp_path, cohort)
    assert ap_of(cohort.take(np.arange(16)), found.table[found.rows < 16]) > 0.9
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    aps = [line["validation_ap"] or 0.0 for line in lines]
    facts = load_detector(tmp_path)["facts"]
    assert facts["best_epoch"] == int(np.argmax(aps))
    assert facts["validation_ap"] == max(aps)
    assert {"validation_ap_bright", "validation_ar", "validation_classes"} <= set(lines[-1])
    if not name.startswith("retina"):
        assert found.masks is not None
        assert found.masks.shape == (len(found.table), 28, 28)
        assert found.masks[0].mean() > 0.5  # a filled rectangle


def test_few_anchors_that_fit_are_told_before_anything_is_compiled(caplog):
    cohort = squares()
    recipe = make_detection_recipe("mask-rcnn", {**TINY, "anchors": "published"})
    with caplog.at_level(logging.WARNING, "fusion_jax.detection"):
        prepared = prepare(recipe, cohort, everybody(cohort))
    assert prepared.recall.overall < 0.9
    assert prepared.config.anchors.strides == (32,)
    assert "reach" in caplog.text
    assert 'Fit them: {"anchors": "fit"}' in caplog.text


def test_anchors_are_fitted_to_training_boxes_alone():
    cohort = squares()
    recipe = make_detection_recipe("mask-rcnn", TINY)
    split = everybody(cohort, ("c00", "c01"))
    seen = prepare(recipe, cohort, split)
    boxes = [
        own._replace(corners=own.corners * 0 + [0, 0, 60, 5]) if row < 2 else own
        for row, own in enumerate(own_boxes(cohort))
    ]
    other = prepare(recipe, dataclasses.replace(cohort, boxes=boxes), split)
    assert seen.config.anchors == other.config.anchors
    assert seen.recall.overall == other.recall.overall


def test_fitted_anchors_of_a_pyramid_stand_on_all_its_maps():
    cohort = squares()
    config = {**TINY["config"], "pyramid": True}
    prepared = prepare(make_detection_recipe("mask-rcnn", {**TINY, "config": config}), cohort, everybody(cohort))
    assert prepared.config.anchors.strides == (8, 16, 32)
    assert prepared.recall.overall > 0.9
    published = make_detection_recipe("mask-rcnn", {**TINY, "config": config, "anchors": "published"})
    with pytest.raises(ValueError, match="has a pyramid, and the published anchors stand on one map"):
        check(published, cohort, everybody(cohort))


def test_the_last_class_may_have_no_training_box():
    cohort = dataclasses.replace(squares(), box_classes=("bright", "dark", "grey"))
    prepared = prepare(make_detection_recipe("mask-rcnn", TINY), cohort, everybody(cohort))
    recall = prepared.anchors_record()["recall_by_class"]
    assert recall["bright"] > 0.9
    assert recall["grey"] is None


def test_cases_without_an_image_are_left_out_of_training():
    cohort = squares()
    present = dict(cohort.present) | {"xray": np.arange(12) != 4}
    prepared = prepare(
        make_detection_recipe("mdf-net", SMALL), dataclasses.replace(cohort, present=present), everybody(cohort)
    )
    assert prepared.left_out == 1
    assert "c04" not in prepared.split.train
    assert prepared.max_boxes == 4


def test_a_json_recipe_is_read_back():
    arguments = {"epochs": 3, "image_size": [64, 64], "anchors": {"sizes": [[8]], "ratios": [1], "strides": [8]}}
    recipe = make_detection_recipe("retinanet-1d", arguments)
    assert make_detection_recipe(recipe.name, recipe.arguments()) == recipe
    assert recipe.arguments() == arguments


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mdfnet", {}, "no detector 'mdfnet'; did you mean 'mdf-net'"),
        ("mdf-net", {"epoch": 3}, "no argument 'epoch'; did you mean 'epochs'"),
        ("mdf-net", {"epochs": 0}, "epochs is 0; expected at least 1"),
        ("mdf-net", {"image_size": [64]}, "image_size is \\(64,\\); expected rows and columns"),
        ("mdf-net", {"anchors": "fitted"}, "anchors is 'fitted'; expected 'published', 'fit'"),
        ("mdf-net", {"config": {"numeric": 3}}, "config has 'numeric', which follows from the clinical columns"),
        ("mdf-net", {"window": [1, 1]}, "window is \\(1.*expected the value that becomes 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_detection_recipe(name, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["agee"]}, "no input column 'agee'; did you mean 'age'"),
        ({"image_size": [70, 96]}, "image_size has 70 rows; expected a multiple of 32, .* such as 64"),
        ({"config": {"backbon": "cnn"}}, "'backbon'.*did you mean 'backbone'"),
        ({"image": "ct"}, "no image 'ct'; it has xray"),
    ],
)
def test_a_cohort_that_does_not_fit_is_refused_without_reading_an_image(arguments, message, monkeypatch):
    cohort = squares()
    recipe = make_detection_recipe("mdf-net", {"image_size": [64, 96], **arguments})
    monkeypatch.setattr(type(cohort), "image", None)
    with pytest.raises(ValueError, match=message):
        check(recipe, cohort, everybody(cohort))


def test_a_cohort_without_boxes_columns_or_findings_is_refused():
    cohort = squares()
    fused, alone = make_detection_recipe("mdf-net", TINY), make_detection_recipe("mask-rcnn", TINY)
    with pytest.raises(ValueError, match="squares: no boxes; a detector learns from boxes"):
        check(alone, dataclasses.replace(cohort, boxes=None), everybody(cohort))
    bare = dataclasses.replace(cohort.only("xray"), roles={})
    with pytest.raises(ValueError, match="no clinical column"):
        check(fused, bare, everybody(cohort))
    check(alone, bare, everybody(cohort))
    with pytest.raises(ValueError, match="no box in 1 training case"):
        prepare(alone, cohort, Split(0, 0, ("c11",), ("c00",), ()))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"images": {"file": "a.pth"}}, ValueError, "weights: no trunk 'images'; did you mean 'image'"),
        ({"clinical": {"file": "a.pth"}}, ValueError, "no trunk 'clinical'; there is 'image'"),
        ({"image": {"path": "a.pth"}}, ValueError, "expected file, and perhaps sha256 and origin"),
        ({"image": {"file": "no.pth"}}, FileNotFoundError, r"no\.pth: no such file; expected pretrained weights"),
    ],
)
def test_weights_that_are_not_there_are_named(weights, error, message, tmp_path):
    cohort = squares()
    recipe = make_detection_recipe("mask-rcnn", {**TINY, "weights": weights})
    with pytest.raises(error, match=message):
        recipe.fit(cohort, everybody(cohort), KEY, tmp_path)
    with pytest.raises(error, match=message):
        check(recipe, cohort, everybody(cohort))


def test_folders_without_a_detector_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe\.json: not there"):
        find(tmp_path, squares())
    (tmp_path / "recipe.json").write_text('{"format": 1, "name": "gated"}')
    with pytest.raises(ValueError, match="no record of a detector"):
        load_detector(tmp_path)
