"""`fusion-jax detect train` and `detect predict` from end to end, on a small folder of images and on COCO's files."""

import contextlib
import csv
import io
import json
import shutil

import pandas as pd
import pytest

from fusion_jax.commands._detect.asked import read_detectors
from fusion_jax.commands._detect.screen import print_anchors
from fusion_jax.commands.detect_train import Config
from fusion_jax.commands.main import main
from fusion_jax.data import open_cohort
from fusion_jax.data.coco import write_coco
from fusion_jax.detection.study import open_detector_study
from tests.data.folders import CONFIG, write_folder

TINY = {
    "image_size": [32, 32],
    "anchors": {"sizes": [[5, 8]], "ratios": [1], "strides": [4]},
    "optimiser": "adam",
    "learning_rate": 0.003,
    "augment": "none",
    "config": {
        "backbone": "cnn",
        "width": 0.25,
        "channels": 8,
        "hidden": 8,
        "mask_hidden": 4,
        "mask_rois": 2,
        "rpn_batch": 16,
        "roi_batch": 8,
        "rpn_before_train": 32,
        "rpn_before": 16,
        "rpn_after_train": 16,
        "rpn_after": 8,
        "score_threshold": 0.01,
    },
}
OPTIONS = ["--resamples", "20", "--no-compilation-cache"]


def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("detect")
    write_folder(place / "data", n=16, size=64, config=CONFIG.replace('never = ["name"]\n', ""))
    (place / "models.json").write_text(json.dumps({"settings": TINY}))
    words = ["--config", place / "models.json", "--out", place / "out", "--validation", "0.25", "--test", "0.25"]
    return (
        place,
        words,
        ask("detect", "train", place / "data", "--model", "retinanet-1d", "--epochs", 2, *words, *OPTIONS),
    )


def test_training_ends_with_the_report_of_evaluate_boxes(study):
    place, _, (code, out, err) = study
    assert (code, err) == (0, "")
    assert "nodules: 16 images of 16 patients, 0 without a box. Boxes: 16 nodule." in out
    assert "retinanet-1d: image + age, sex" in out
    assert "Cases: 8 train, 4 validation, 4 test." in out
    assert "reach" in out  # the anchors' ceiling
    assert f"Report: {place / 'out' / 'evaluation' / 'report.html'}" in out
    assert (place / "out" / "evaluation" / "report.html").exists()
    assert {row["case_id"] for row in rows(place / "out" / "truth.csv")} == set(
        json.loads((place / "out" / "splits.json").read_text())["splits"][0]["test"]
    )
    assert not list((place / "out").rglob("checkpoints"))


def test_what_anchors_reach_is_told_of_trainings_in_other_processes(study, capsys):
    place, _, (_, out, _) = study
    trained = open_detector_study(place / "out")
    print_anchors(trained)
    text = capsys.readouterr().out
    recall = trained.anchors(trained.done[0])["recall"]
    assert f"retinanet-1d: anchors reach {recall:.0%} of the training boxes" in text
    assert text.startswith("Warning") == (recall < 0.9)
    assert f"reach {recall:.0%} of" in out


def test_asked_again_nothing_is_trained_twice(study):
    place, words, _ = study
    weights = next((place / "out" / "tasks").rglob("weights.npz"))
    before = weights.stat().st_mtime_ns
    code, out, err = ask("detect", "train", place / "data", "--model", "retinanet-1d", "--epochs", 2, *words, *OPTIONS)
    assert (code, err) == (0, "")
    assert "1 training, 0 to do" in out
    assert weights.stat().st_mtime_ns == before
    code, _, err = ask("detect", "train", place / "data", "--model", "retinanet-1d", "--epochs", 3, *words, *OPTIONS)
    assert code == 2
    assert "models.retinanet-1d.arguments.epochs was 2 and is 3" in err


def test_what_is_predicted_can_be_judged(study):
    place, _, _ = study
    code, out, err = ask("detect", "predict", place / "out", place / "data", "--out", place / "found.csv", OPTIONS[-1])
    assert (code, err) == (0, "")
    assert "in 16 images of nodules by retinanet-1d" in out
    assert "12 of these cases" in out
    assert "have the ids of cases that the detector was trained or chosen on" in out
    found = rows(place / "found.csv")
    assert max(float(row["x1"]) for row in found) > 32  # in the pixels of the files
    boxes = pd.read_csv(place / "data" / "boxes.csv", dtype=str)
    boxes.rename(columns={"label": "class"}).to_csv(place / "truth.csv", index=False)
    code, _, err = ask(
        "evaluate-boxes", place / "found.csv", "--truth", place / "truth.csv", "--out", place / "judged", *OPTIONS
    )
    assert (code, err) == (0, "")
    code, _, _ = ask(
        "detect", "predict", place / "out", place / "data", "--out", place / "few.csv", "--min-score", "2", OPTIONS[-1]
    )
    assert code == 0
    assert rows(place / "few.csv") == []


def as_coco(place, folder):
    """The options that name the cohort as COCO's JSON with its images and a clinical table."""
    cohort = open_cohort(place / "data")
    write_coco(folder / "new.json", cohort)
    content = json.loads((folder / "new.json").read_text())
    for image in content["images"]:
        name = f"{image['id']}.png"
        image["file_name"] = name
        shutil.copyfile(place / "data" / "images" / name, folder / name)
    (folder / "new.json").write_text(json.dumps(content))
    cohort.table[["age", "sex"]].to_csv(folder / "vitals.csv", index_label="image_id")
    return ["--coco", folder / "new.json", "--table", folder / "vitals.csv"]


def test_files_of_coco_are_read_and_written(study, tmp_path):
    place, _, _ = study
    coco = as_coco(place, tmp_path)
    code, _, err = ask("detect", "predict", place / "out", *coco, "--out", tmp_path / "found.json", OPTIONS[-1])
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "found.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    code, _, err = ask(
        "evaluate-boxes",
        tmp_path / "found.json",
        "--truth",
        tmp_path / "new.json",
        "--out",
        tmp_path / "judged",
        *OPTIONS,
    )
    assert (code, err) == (0, "")
    code, _, err = ask("detect", "predict", place / "out", "--coco", tmp_path / "new.json", "--out", tmp_path / "a.csv")
    assert code == 2
    assert "age" in err


def test_new_images_of_coco_need_no_categories_and_too_few_are_refused_beforehand(study, tmp_path):
    place, _, _ = study
    coco = as_coco(place, tmp_path)
    content = json.loads((tmp_path / "new.json").read_text())
    classes = [category["name"] for category in content["categories"]]
    found = tmp_path / "found.json"
    for categories in ([], [{"id": 4, "name": "another"}]):
        (tmp_path / "new.json").write_text(json.dumps({**content, "annotations": [], "categories": categories}))
        code, _, err = ask("detect", "predict", place / "out", *coco, "--out", found, OPTIONS[-1])
        if categories:
            assert code == 2
            assert f"the detector finds {', '.join(classes)}" in " ".join(err.split())
            assert not found.exists()
        else:
            assert (code, err) == (0, "")
            assert {row["category_id"] for row in json.loads(found.read_text())} <= set(range(1, 1 + len(classes)))
            found.unlink()


@pytest.mark.slow
def test_a_detector_is_trained_on_files_of_coco(study, tmp_path):
    place, words, _ = study
    coco = as_coco(place, tmp_path)
    code, _, err = ask("detect", "train", *coco, *words[:2], "--model", "retinanet-1d", "--epochs", 2, "--workers", 2,
                         "--seeds", 0, 1, "--out", tmp_path / "out", *OPTIONS)  # fmt: skip
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "evaluation" / "report.html").exists()
    assert {row["case_id"] for row in rows(tmp_path / "out" / "truth.csv")} <= set(open_cohort(place / "data").case_id)


@pytest.mark.slow
def test_baseline_and_fused_models_are_compared_with_masks(study, tmp_path):
    place, words, _ = study
    cohort = place / "data"
    code, out, err = ask(
        "detect", "train", cohort, "--models", "mask-rcnn", "mdf-net", "--folds", 2, "--epochs", 30, "--seeds", 0,
        *words[:2], "--out", tmp_path, "--validation", "0.2", *OPTIONS,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "2 splits x 1 seed x 2 models: 4 trainings, 4 to do" in out
    assert "AP of mask-rcnn − mdf-net" in out or "AP of mdf-net − mask-rcnn" in out
    task = tmp_path / "tasks" / "mdf-net" / "r0_f0_s0"
    code, _, err = ask("detect", "predict", tmp_path, cohort, "--out", tmp_path / "found.csv")
    assert code == 2
    assert "4 trainings; expected one. Name it" in err
    code, _, err = ask("detect", "predict", task, cohort, "--masks", "--out", tmp_path / "found.json", OPTIONS[-1])
    assert (code, err) == (0, "")
    first = json.loads((tmp_path / "found.json").read_text())[0]
    assert first["segmentation"]["size"] == [64, 64]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "expected a cohort (a folder with a cohort.toml, or the name of a collection) or --coco FILE; got neither.",
        ),
        (("DATA", "--coco", "x.json"), "or --coco FILE; got"),
        (("DATA", "--images", "folder"), "--images belongs to --coco FILE"),
        (("hcc_survival",), "no boxes; a detector learns from boxes around findings"),
        (("DATA", "--model", "mdfnet"), "no detector 'mdfnet'; did you mean 'mdf-net'"),
        (("DATA", "--model", "mdf-net{epochs}"), "the arguments are no JSON"),
        (("DATA", "--features", "weight"), "features: no input column 'weight'"),
        (("DATA", "--image-size", "100"), "image_size has 100 rows; expected a multiple of 32"),
        (("DATA", "--image-size", "1", "2", "3"), "expected one number, or rows and columns"),
        (("DATA", "--validation", "0.6", "--test", "0.5"), "that leave some to train on"),
        (("DATA", "--workers", "0"), "--workers is 0; expected 1 or more"),
        (("DATA", "--resamples", "1"), "--resamples is 1; expected 2 or more"),
        (("DATA", "--image", "ct"), "no image 'ct'; it has xray"),
        (("DATA", "--split", "part"), "no column 'part'"),
    ],
)
def test_input_that_cannot_be_used_is_named_and_nothing_is_trained(words, message, study, tmp_path):
    place, *_ = study
    named = [place / "data" if word == "DATA" else word for word in words]
    code, _, err = ask("detect", "train", *named, "--out", tmp_path / "out")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out" / "tasks").exists()


def test_a_test_that_no_report_could_be_written_on_is_refused(study, tmp_path):
    place, *_ = study
    shutil.copytree(place / "data", tmp_path / "data")
    table = tmp_path / "data" / "cases.csv"
    with table.open(newline="", encoding="utf-8") as file:
        header, *cells = csv.reader(file)
    for tested in (0, 1):
        parts = ["test"] * tested + ["validation"] * 3 + ["train"] * (len(cells) - 3 - tested)
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [[*header, "part"], *([*row, part] for row, part in zip(cells, parts, strict=True))]
            )
        code, _, err = ask("detect", "train", tmp_path / "data", "--split", "part", "--out", tmp_path / f"out{tested}")
        assert code == 2
        assert f"{tested} patients are tested, {tested} of their {tested} images have a box" in " ".join(err.split())


def test_options_go_before_the_settings_of_a_file(tmp_path):
    path = tmp_path / "models.json"
    models = {"mdf-net": {"recipe": "mdf-net", "arguments": {"batch_size": 2}}}
    path.write_text(json.dumps({"models": models, "settings": {"epochs": 100, "patience": 7}}))
    found, shared = read_detectors(Config(config=path, preset="quick", patience=3))
    assert (found, shared["epochs"], shared["patience"]) == (models, 5, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("OUT", "DATA", "--out", "a.txt"), "expected a name that ends in .csv, or in .json"),
        (("OUT", "DATA", "--masks"), "masks go into COCO's results"),
        (("OUT", "DATA", "--masks", "--out", "a.json"), "has none"),
        (("DATA", "DATA"), "recipe.json: not there"),
        (("OUT", "hcc_survival"), "hcc_survival: 0 images a case"),
    ],
)
def test_predictions_that_cannot_be_made_are_refused(words, message, study, tmp_path, monkeypatch):
    place, *_ = study
    monkeypatch.chdir(tmp_path)
    named = [{"DATA": place / "data", "OUT": place / "out"}.get(word, word) for word in words]
    code, _, err = ask("detect", "predict", *named)
    assert code == 2
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
