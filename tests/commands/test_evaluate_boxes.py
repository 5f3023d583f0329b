"""`fusion-jax evaluate-boxes` from end to end."""

import csv
import dataclasses
import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from fusion_jax.commands._evaluate_boxes.measure import corrected_interval
from fusion_jax.commands._evaluate_boxes.read import read_boxes
from fusion_jax.commands.evaluate_boxes import Config, run
from fusion_jax.evaluation.detection import (
    PrecisionData,
    View,
    average_precision,
    make_precision_data,
    weighted_average_precision,
    with_mean,
)
from fusion_jax.evaluation.detection_matching import AREAS, Matches, match_boxes
from fusion_jax.evaluation.resampling import bootstrap, jackknife, make_design, percentile_interval

CLASSES = ["consolidation", "mass"]
HEADER = ["case_id", "patient_id", "x0", "y0", "x1", "y1", "class"]
CASES = 24


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two images a patient, every third without a box; `exact` finds all boxes, `noisy` half of them and others."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    truth, exact, noisy = [], [], []
    for number in range(CASES):
        case, patient = f"{number:03d}", f"p{number // 2}"
        boxes = rng.uniform(0, 100, (0 if number % 3 == 0 else 1 + number % 2, 2)).round(1)
        truth += [] if len(boxes) else [[case, patient, "", "", "", "", ""]]
        for index, (x, y) in enumerate(boxes.tolist()):
            name = CLASSES[(number + index) % 2]
            corners = [x, y, x + 20, y + 30 + 100 * index]
            truth.append([case, patient, *corners, name])
            exact.append([case, *corners, name, 0.9 - 0.01 * number])
            if (number + index) % 4 < 2:
                noisy.append([case, x + 3, y, x + 22, y + 30 + 100 * index, name, 0.8 - 0.01 * number])
        x, y = rng.uniform(0, 100, 2).tolist()
        noisy.append([case, x, y, x + 40, y + 15, CLASSES[number % 2], 0.5 + 0.01 * number])
    found = ["case_id", "x0", "y0", "x1", "y1", "class", "score"]
    write(folder / "truth.csv", HEADER, truth)
    write(folder / "exact.csv", found, exact)
    write(folder / "noisy.csv", found, noisy)
    return folder


def ask(*words: Any) -> int:
    return run(tyro.cli(Config, args=[str(word) for word in words]))


class Run(NamedTuple):
    """What a finished run left behind."""

    folder: Any
    rows: list[dict[str, str]]
    content: dict[str, Any]
    report: str

    def value(self, model: str, metric: str, *, overlap: str = "iou", name: str = "all classes") -> tuple[float, ...]:
        wanted = {"model": model, "metric": metric, "overlap": overlap, "class": name}
        [row] = [row for row in self.rows if wanted.items() <= row.items()]
        return tuple(float(row[part] or "nan") for part in ("estimate", "low", "high"))


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "boxes"
    files = [study / "exact.csv", study / "noisy.csv"]
    options = ["--out", out, "--overlap", "both", "--resamples", 150, "--sides", 30, 60]
    assert ask(*files, "--truth", study / "truth.csv", *options) == 0
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return Run(out, read(out / "metrics.csv"), content, (out / "report.html").read_text(encoding="utf-8"))


def test_every_number_has_its_interval_and_its_n(done):
    assert {row["images"] for row in done.rows} == {str(CASES)}
    for row in done.rows:
        if row["estimate"]:
            assert float(row["low"]) <= float(row["high"]), row
    assert (done.content["images"], done.content["patients"]) == (CASES, CASES // 2)
    assert done.content["boxes"]["all classes"] == 24
    assert done.content["interval"] == "95 % BCa, 150 resamples of the patients"


FOUND = ["case_id", "x0", "y0", "x1", "y1", "class", "score"]


def test_a_file_of_detections_without_rows_is_a_model_that_found_nothing(study, tmp_path):
    nothing = write(tmp_path / "nothing.csv", FOUND, [])
    truth, [model], _ = read_boxes(Config((nothing,), truth=study / "truth.csv"))
    assert (model.model, model.boxes.shape, model.score.shape) == ("nothing", (0, 4), (0,))
    assert len(truth.boxes) == 24


@pytest.mark.slow
def test_a_detector_that_found_nothing_is_judged(study, tmp_path):
    nothing = write(tmp_path / "nothing.csv", FOUND, [])
    files = ["--truth", study / "truth.csv", "--out", tmp_path / "out", "--resamples", 150]
    assert ask(nothing, study / "exact.csv", *files) == 0
    found = Run(tmp_path / "out", read(tmp_path / "out" / "metrics.csv"), {}, "")
    assert found.value("nothing", "AP") == (0, 0, 0)
    assert found.value("nothing", "FN")[0] == 24
    assert "0 detections" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_false_alarms_are_counted_where_no_image_has_a_box(study, tmp_path):
    rows = [[f"{number:03d}", f"p{number // 2}", *[""] * 5] for number in range(CASES)]
    truth = write(tmp_path / "truth.csv", HEADER, rows)
    options = ["--truth", truth, "--classes", *CLASSES, "--out", tmp_path / "out", "--resamples", 20]
    assert ask(study / "noisy.csv", *options) == 0
    found = Run(tmp_path / "out", read(tmp_path / "out" / "metrics.csv"), {}, "")
    assert found.value("noisy", "FP")[0] > 0
    assert not list((tmp_path / "out").rglob("precision_recall*"))


def test_columns_are_asked_for_where_nothing_was_found_and_a_truth_needs_rows(study, tmp_path):
    strange = write(tmp_path / "strange.csv", ["case_id", "score"], [])
    options = ["--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"strange\.csv: no column x0, y0, x1, y1, class"):
        ask(strange, "--truth", study / "truth.csv", *options)
    with pytest.raises(ValueError, match="a header and no rows"):
        ask(study / "exact.csv", "--truth", write(tmp_path / "truth.csv", HEADER, []), *options)


def test_boxes_that_are_all_found_have_an_average_precision_of_1(done):
    for metric in ("AP", "AP50", "AP75", "AR100", "recall50", "FROC score", "case AUC", "precision", "F1"):
        assert done.value("exact", metric) == (1, 1, 1), metric
    assert done.value("exact", "FN") == (0, 0, 0)
    tp, fp, fn = (done.value("noisy", metric)[0] for metric in ("TP", "FP", "FN"))
    assert tp + fn == 24
    assert done.value("noisy", "FP per image")[0] == pytest.approx(fp / CASES)
    low, high = done.value("noisy", "AP")[1:]
    assert 0 <= low < done.value("noisy", "AP")[0] < high < 1


def test_iou_stands_beside_iobb_and_is_not_larger(done):
    for name in (*CLASSES, "all classes"):
        assert done.value("noisy", "AP", name=name)[0] <= done.value("noisy", "AP", overlap="iobb", name=name)[0]
    assert "read it beside IoU" in done.report


def test_sizes_divide_the_boxes(done):
    small, medium, large = (done.value("exact", f"AP_{name}") for name in ("small", "medium", "large"))
    assert small == medium == (1, 1, 1)
    assert np.isnan(large).all()  # no box of this size


def test_models_are_compared_on_the_same_draws(done):
    of_iou, of_iobb = done.content["comparisons"]
    assert (of_iou["first"], of_iou["second"], of_iou["overlap"]) == ("exact", "noisy", "iou")
    assert of_iou["difference"] == pytest.approx(1 - done.value("noisy", "AP")[0])
    assert of_iou["low"] <= of_iou["difference"] <= of_iou["high"]
    assert of_iou["p_value"] == of_iou["p_value_holm"] < 0.001
    assert of_iobb["difference"] <= of_iou["difference"]
    assert "exact has the higher AP" in done.report


def test_files_and_figures_are_there(done):
    names = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
    figures = ["average_precision", "froc", "average_precision_by_overlap", "precision_recall_exact"]
    assert {f"figures/{name}.svg" for name in figures} <= names
    assert {"summary.csv", "summary.md", "summary.tex", "curves.csv"} <= names
    curves = read(done.folder / "curves.csv")
    at_half = [row for row in curves if row["curve"] == "AP by overlap" and row["x"] == "0.5"]
    assert float(at_half[1]["y"]) == pytest.approx(done.value("noisy", "AP50")[0])
    assert "fusion-jax evaluate-boxes exact.csv noisy.csv --truth truth.csv --overlap both" in done.report


def write_coco(folder):
    truth = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}],
        "categories": [{"id": 1, "name": "mass"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in (1, 2)],
    }
    found = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, 10, side], "score": score}
        for i, side, score in ((1, 10, 0.9), (1, 9, 0.8), (2, 10, 0.3), (3, 10, 0.6), (3, 9, 0.04))
    ]
    for name, content in (("truth", truth), ("found", found)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    options = ["--score", 0.5, "--min-score", 0.05, "--max-detections", 1, "--resamples", 20, "--out", folder / "out"]
    return [folder / "found.json", "--truth", folder / "truth.json", *options]


def test_coco_files_are_read_and_faint_detections_left_out(tmp_path):
    config = tyro.cli(Config, args=[str(word) for word in write_coco(tmp_path)])
    truth, [model], notes = read_boxes(config)
    assert (truth.cases, truth.classes, model.model) == (("1", "2", "3"), ("mass",), "found")
    assert model.score.tolist() == [0.9, 0.8, 0.3, 0.6]
    assert notes == ["found: 1 detection of 5 with a score below 0.05 were left out."]
    with pytest.raises(ValueError, match="lists all images and categories; leave --cases and --classes out"):
        read_boxes(dataclasses.replace(config, classes=("mass",)))


@pytest.mark.slow
def test_a_score_and_a_limit_of_coco_files(tmp_path, capsys):
    assert ask(*write_coco(tmp_path)) == 0
    assert "3 images, 2 boxes, IoU" in capsys.readouterr().out
    rows = {row["metric"]: row["estimate"] for row in read(tmp_path / "out" / "metrics.csv") if row["class"] == "mass"}
    assert [rows[name] for name in ("TP", "FP", "FN")] == ["1.0", "1.0", "1.0"]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 detection of 5 with a score below 0.05" in report
    assert "up to 2 detections of an image and class; the 1 of the highest scores" in report
    assert "take images as independent" in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", 0.52], "--threshold is 0.52; expected a multiple of 0.05"),
        (["--sides", 96, 32], "--sides is 96 32; expected two ascending"),
        (["--resamples", 1], "--resamples is 1; expected 2 or more"),
        (["--cases", "few.csv"], r"truth.csv: row 2: its case is not in the list of cases: 000"),
        (["--classes", "mass"], r"truth.csv: row \d: a class that is not among mass"),
    ],
)
def test_settings_that_cannot_be_are_named(study, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "few.csv", ["case_id"], [["001"]])
    with pytest.raises(ValueError, match=message):
        ask(study / "exact.csv", "--truth", study / "truth.csv", *options)
    assert not (tmp_path / "results").exists()


def test_a_cell_that_is_no_number_is_named(study, tmp_path):
    path = write(tmp_path / "bad.csv", ["case_id", *HEADER[2:], "score"], [["001", 1, "two", 3, 4, "mass", 0.5]])
    with pytest.raises(ValueError, match=r"bad.csv: column 'y0' holds 'two' in row 2"):
        ask(path, "--truth", study / "truth.csv", "--out", tmp_path)


def test_two_files_of_one_model_are_refused(study, tmp_path):
    header = ["case_id", *HEADER[2:], "score", "model"]
    paths = [write(tmp_path / f"{n}.csv", header, [["001", 1, 1, 3, 4, "mass", 0.5, "net"]]) for n in "ab"]
    with pytest.raises(ValueError, match="both hold detections of model 'net'"):
        ask(*paths, "--truth", study / "truth.csv", "--out", tmp_path)


def mean_precision(data, weights):
    return jnp.mean(with_mean(weighted_average_precision(data, weights)[0])[0, -1])


def draw_study(rng: np.random.Generator, images: int) -> Matches:
    """Detections of a detector that finds three of four boxes, at 2.5 false ones an image."""

    def anywhere(count: int) -> np.ndarray:
        corner = rng.uniform(0, 300, (count, 2))
        return np.concatenate([corner, corner + np.exp(rng.uniform(3, 5.2, (count, 2)))], axis=1)

    truth_case = np.repeat(np.arange(images), np.where(rng.random(images) < 0.6, rng.poisson(1.2, images), 0))
    truth, truth_label = anywhere(len(truth_case)), rng.integers(0, 2, len(truth_case))
    found = rng.random(len(truth)) < 0.75
    near = truth + rng.normal(0, 0.1, truth.shape) * np.tile(truth[:, 2:] - truth[:, :2], 2)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
    false_case = np.repeat(np.arange(images), rng.poisson(2.5, images))
    return match_boxes(
        truth,
        truth_case,
        truth_label,
        np.concatenate([near[found], anywhere(len(false_case))]),
        np.concatenate([truth_case[found], false_case]),
        np.concatenate([truth_label[found], rng.integers(0, 2, len(false_case))]),
        np.concatenate([rng.beta(4, 3, found.sum()), rng.beta(2, 4, len(false_case))]),
        cases=images,
        classes=2,
        areas=AREAS[:1],
    )


def of_one_shape(data: PrecisionData, images: int, size: int) -> PrecisionData:
    """Padded, so that all studies share one program."""
    ends = (images, False, size - 1, False, False, images)
    return PrecisionData(
        *(
            np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, size - part.shape[-1])], constant_values=end)
            for part, end in zip(data, ends, strict=True)
        )
    )


@pytest.mark.slow
def test_intervals_cover_the_value_of_the_population():
    """Precision is a maximum, larger in small samples: percentiles of resamples are too high and cover too rarely."""
    rng, images, studies = np.random.default_rng(1), 150, 100
    population = float(average_precision(draw_study(rng, 60_000)).of()[0].mean())
    corrected, plain = 0, 0
    for study in range(studies):
        matches = draw_study(rng, images)
        data = of_one_shape(make_precision_data([View(matches)]), images, 700)
        design = make_design(np.isin(np.arange(images), matches.truth_case).astype(int))
        draws = bootstrap(mean_precision, data, design, resamples=1000, seed=study)
        deleted = jackknife(mean_precision, data, design)
        estimate = float(average_precision(matches).of()[0].mean())
        low, high, *_ = corrected_interval(estimate, draws, deleted.values, deleted.stratum)
        corrected += low <= population <= high
        low, high, *_ = percentile_interval(draws)
        plain += low <= population <= high
    assert corrected >= 89
    assert plain < corrected
