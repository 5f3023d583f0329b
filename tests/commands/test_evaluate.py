"""`fusion-jax evaluate` turns files into a folder with a report, tables and a record, or says what is wrong."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture

from fusion_jax.commands.main import main

FAST = ["--resamples", "100", "--permutations", "100"]


def cohort_folder(folder, labels):
    """A cohort of small images with ages and sites."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    ids = [f"c{i:02d}" for i in range(len(labels))]
    for case in ids:
        Picture.fromarray(rng.integers(0, 255, (12, 12)).astype(np.uint8)).save(folder / "images" / f"{case}.png")
    table = pd.DataFrame({"case_id": ids, "age": rng.integers(30, 80, len(ids)), "sex": ["f", "m"] * (len(ids) // 2)})
    table.assign(label=labels).to_csv(folder / "cases.csv", index=False)
    (folder / "cohort.toml").write_text(
        'name = "small"\ntable = "cases.csv"\n[ids]\ncase = "case_id"\npatient = "case_id"\n[roles]\n'
        'input = ["age", "sex"]\nlabel = "label"\n[sources.image]\nfiles = "images/{case_id}.png"\n'
    )
    return folder


def write_predictions(path, spread, labels, seed, **columns):
    """Out-of-fold probabilities of two folds and two repeats, with validation rows."""
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in (0, 1):
        for fold in (0, 1):
            for split in ("test", "validation"):
                rows = np.flatnonzero(np.arange(len(labels)) // 2 % 2 == (fold if split == "test" else 1 - fold))
                chances = 1 / (1 + np.exp(-3 * (labels[rows] - 0.5) - rng.normal(0, spread, len(rows))))
                part = {"case_id": [f"c{i:02d}" for i in rows], "label": labels[rows], "score": chances}
                parts.append(pd.DataFrame(part | {"split": split, "fold": fold, "repeat": repeat} | columns))
    pd.concat(parts).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of a whole run: two models, repeats, folds, validation rows, subgroups, gallery, prevalence."""
    folder = tmp_path_factory.mktemp("evaluate")
    labels = np.arange(80) % 2
    cohort = cohort_folder(folder / "cohort", labels)
    image = write_predictions(folder / "image.csv", 2.5, labels, 1)
    fused = write_predictions(folder / "fused.csv", 1.0, labels, 2)
    words = ["evaluate", f"Image-Only={image}", f"Fused={fused}", "--single", "Image-Only", "--cohort", str(cohort)]
    words += ["--subgroups", "age", "sex", "--gallery", "2", "--prevalence", "0.1", "--margin", "0.2", *FAST]
    assert main([*words, "--out", str(folder / "out")]) == 0
    return folder / "out"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_the_report_the_tables_and_the_record(evaluated):
    names = {path.name for path in evaluated.iterdir()}
    assert names == {
        "report.html", "evaluation.json", "estimates.csv", "comparisons.csv", "verdicts.csv", "reclassification.csv",
        "subgroups.csv", "folds.csv", "cases.csv", "model_card.md", "tables",
    }  # fmt: skip
    tables = {path.stem for path in (evaluated / "tables").iterdir()}
    assert {
        "discrimination",
        "verdicts",
        "differences",
        "decisions",
        "calibration",
        "tripod_ai",
        "claim_2024",
    } <= tables
    record = json.loads((evaluated / "evaluation.json").read_text())
    assert record["models"] == ["Image-Only", "Fused"]
    assert record["rows"] == 80
    assert record["config"]["resamples"] == 100
    assert set(record["record"]["versions"]) >= {"jax", "numpy"}


def test_every_estimate_has_its_n_its_interval_and_its_method(evaluated):
    rows = rows_of(evaluated / "estimates.csv")
    assert {row["training"] for row in rows} == {"ensemble of 2 trainings"}
    for row in rows:
        assert int(row["rows"]) > 0
        assert row["method"]
        if not row["method"].startswith(("none", "DeLong")):
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_the_report_is_one_page_that_asks_nothing_of_a_network(evaluated):
    page = (evaluated / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "<script" not in page
    for heading in (
        "How well do the scores tell cases apart?", "Did fusion help?", "Decisions at a threshold",
        "Calibration and clinical use", "Folds, partitions and seeds", "Subgroups", "Cases", "Methods and conditions",
        "Reporting checklists", "Model card: Fused",
    ):  # fmt: skip
        assert f"{heading}</h2>" in page, heading
    assert "conditional on the trained models" in page
    assert "author to complete" in page


def test_thresholds_come_from_validation_rows_and_the_prevalence_is_the_one_given(evaluated):
    rules = {row["rule"]: row["where it comes from"] for row in rows_of(evaluated / "tables" / "thresholds.csv")}
    assert set(rules) == {"0.5", "carried over", "test ROC"}
    assert "10.0 %" in (evaluated / "tables" / "prevalence.md").read_text()


def test_cases_are_listed_with_their_outcome(evaluated):
    rows = rows_of(evaluated / "cases.csv")
    assert len(rows) == 160
    assert {row["outcome, threshold 0.5"] for row in rows} <= {"TP", "FP", "FN", "TN"}


def test_trainings_can_be_judged_one_by_one(tmp_path, capsys):
    labels = np.arange(80) % 2
    image = write_predictions(tmp_path / "image.csv", 2.5, labels, 1)
    fused = write_predictions(tmp_path / "fused.csv", 1.0, labels, 2)
    words = ["evaluate", image, fused, "--single", "image", "--trainings", "each", "--scores", "score", *FAST]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "estimates.csv")
    assert {row["training"] for row in rows} == {"repeat 0", "repeat 1"}
    each = rows_of(tmp_path / "out" / "tables" / "trainings_each.csv")
    p_values = [float(row["p"]) for row in each if row["training"].startswith("repeat") and row["model"] == "fused"]
    assert float(each[-1]["p"]) == pytest.approx(min(1, 2 * np.median(p_values)))
    assert "repeat 1" in capsys.readouterr().out


def test_p_values_of_all_trainings_pay_for_the_number_of_fused_models():
    from fusion_jax.evaluation.assembly import evaluate
    from fusion_jax.evaluation.panel import make_panel
    from fusion_jax.evaluation.protocol import Protocol
    from fusion_jax.records.predictions import check_predictions
    from fusion_jax.reporting.evaluation.results import combined_p_values

    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    frames = [
        pd.DataFrame({"case_id": np.arange(40), "model": model, "label": label, "score": 3 * rng.normal(size=40)})
        for model in ("image", "late", "early")
    ]
    protocol = Protocol(singles=("image",), resamples=100, permutations=100, curves=False)
    one = evaluate(make_panel(check_predictions({"p": pd.concat(frames)})), protocol)
    late, early = one.benefits

    def training(first, second):
        return one._replace(benefits=(late._replace(p_value=first), early._replace(p_value=second)))

    found = combined_p_values([training(0.01, 0.01), training(0.01, 0.3), training(0.9, np.nan)])
    assert found == pytest.approx({"late": 0.04, "early": 0.6})


def test_more_sites_than_a_table_can_show_stop_nothing(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"case_id": np.arange(60), "label": np.arange(60) % 2, "site": np.arange(60) % 20})
    frame.assign(score=rng.normal(size=60)).to_csv(tmp_path / "cnn.csv", index=False)
    assert main(["evaluate", str(tmp_path / "cnn.csv"), *FAST, "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "subgroups.csv").exists()


def refused(capsys, *words):
    assert main(["evaluate", *words]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_used_is_refused_in_one_message(tmp_path, capsys):
    good = tmp_path / "good.csv"
    pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "score": [0.1, 0.9]}).to_csv(good, index=False)
    bad = tmp_path / "bad.csv"
    pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "score": [0.1, None]}).to_csv(bad, index=False)
    missing = tmp_path / "missing.csv"
    assert "missing.csv: no such file" in refused(capsys, str(missing))
    assert "column 'score' holds 'nan' in row 3" in refused(capsys, str(bad))
    assert "no column 'prob', which --score names" in refused(capsys, str(good), "--score", "prob")
    assert "'CNN', which is no model of these files; they are 'good'" in refused(capsys, str(good), "--single", "CNN")
    assert "--margin is -1" in refused(capsys, str(good), "--margin", "-1")
    assert "--subgroups needs a table to join" in refused(capsys, str(good), "--subgroups", "age")
    assert "--gallery shows images of a cohort" in refused(capsys, str(good), "--gallery", "3")
    assert "was given twice" in refused(capsys, str(good), str(good))
    assert "is a file" in refused(capsys, str(good), "--out", str(bad))
    other = tmp_path / "other" / "good.csv"
    other.parent.mkdir()
    good.rename(tmp_path / "first.csv").read_bytes()
    pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "score": [0.1, 0.9]}).to_csv(other, index=False)
    (tmp_path / "good.csv").write_bytes(other.read_bytes())
    assert "two files stand for the model 'good'" in refused(capsys, str(tmp_path / "good.csv"), str(other))
