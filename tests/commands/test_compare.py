"""`fusion-jax compare`, `predict` and `export` from end to end, on a small folder of images."""

import contextlib
import io
import json
import re
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from fusion_jax.commands._shared.models import parse_model
from fusion_jax.commands.main import main
from fusion_jax.data.folder import open_cohort
from fusion_jax.models.export import exported_inputs
from fusion_jax.models.preparation import Preparation
from fusion_jax.records.predictions import check_predictions
from tests.data.folders import CONFIG, edit, write_folder

SMALL = {"features": 4, "head": [4], "encoder": {"name": "cnn", "widths": [4]}, "epochs": 2}
MODELS = {
    "clinical": {"recipe": "clinical-only"},
    "fused": {"recipe": "concatenate"},
    "ridge": {"recipe": "logistic-regression", "arguments": {"strength": 0.1}},
}


def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A comparison that was run once for all tests: its folder, that of the cohort, and what was said."""
    place = tmp_path_factory.mktemp("study")
    config = CONFIG.replace('never = ["name"]\n', "")
    write_folder(place / "data", n=24, size=16, config=config)
    (place / "models.json").write_text(json.dumps({"models": MODELS, "settings": SMALL}))
    words = ("compare", place / "data", "--config", place / "models.json", "--folds", "2", "--resamples", "200")
    words = (*words, "--no-compilation-cache", "--out", place / "out")
    said = ask(*words, "--importance", "2", "--null", "3", "--null-minutes", "0.05", "--explained", "1")
    return place, words, said


def test_a_comparison_says_what_it_does_and_writes_a_report(study):
    place, _, (code, out, err) = study
    assert (code, err) == (0, "")
    assert "nodules: 24 cases of 24 patients, malignant: 12 no, 12 yes." in out
    assert "fused (concatenate): xray + clinical" in out
    assert "2 folds x 1 repeat x 1 seed x 3 models: 6 trainings, 6 to do." in out
    assert "fused beats" in out or "No evidence that fused beats every single source" in out
    page = text_of((place / "out/report.html").read_text(encoding="utf-8"))
    for words in (
        "Fused models against single sources",
        "all networks epochs 2",
        "random",
        "What the models lean on",
        "xray",
        "Would a model have done without the source?",
        "Training and test cases",
        "Training curves",
        "Balance of the fusion",
        "Qualitative.",
        "The last epoch was taken instead of the best one for clinical, fused",
        "No model of xray alone was compared",
    ):
        assert words in page, words
    assert "Analyses that were left out" not in page


def test_every_model_is_tested_on_the_same_folds_of_patients(study):
    place = study[0]
    table = pd.read_csv(place / "out/predictions.csv", dtype=str)
    splits = json.loads((place / "out/splits.json").read_text())
    tested = {split["fold"]: set(split["test"]) for split in splits["splits"]}
    groups: Any = table.groupby(["model", "fold"])
    for (_, fold), rows in groups:
        assert set(rows["case_id"]) == tested[int(fold)]
    found = check_predictions({"predictions.csv": table.astype({"score": float})}, positive="yes")
    assert found.models == tuple(MODELS)
    assert set(found.score_kind.values()) == {"probability"}


def test_tables_agree_with_what_can_be_computed_from_the_predictions(study):
    place = study[0]
    verdicts = pd.read_csv(place / "out/verdicts.csv").set_index("model")
    assert set(verdicts.index) == {"fused"}
    assert set(verdicts.loc["fused", "singles"].split(" | ")) == {"clinical", "ridge"}
    importance = pd.read_csv(place / "out/tables/importance.csv")
    assert set(importance[importance["model"] == "fused"]["column or source"]) == {"age", "sex", "xray", "clinical"}
    assert set(importance[importance["model"] == "ridge"]["column or source"]) == {"age", "sex", "clinical"}
    null = pd.read_csv(place / "out/tables/retraining_null.csv")
    assert set(null["model"]) == {"ridge"}
    models = pd.read_csv(place / "out/tables/models.csv").set_index("model")
    assert models.loc["fused (concatenate)", "epochs, best of run"].endswith("of 2")


def test_the_same_command_goes_on_where_it_stopped_and_another_is_refused(study, tmp_path):
    place, words, _ = study
    kept = {path: path.stat().st_mtime_ns for path in (place / "out/tasks").glob("*/r*/predictions.csv")}
    gone = place / "out/tasks/ridge/r0_f1_s0/predictions.csv"
    before = gone.read_bytes()
    gone.unlink()
    brief = (*words, "--importance", "0", "--null", "0", "--explained", "0")
    code, out, err = ask(*brief)
    assert (code, err) == (0, "")
    assert "6 trainings, 1 to do" in out
    assert gone.read_bytes() == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != gone)
    code, _, err = ask(*brief, "--folds", "3")
    assert code == 2
    assert "drawn with k = 2, and k = 3 is asked for now" in err
    code, _, err = ask(*brief, "--epochs", "3")
    assert code == 2
    assert "models.fused.arguments.epochs was 2 and is 3" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), r"nowhere is no folder, and no collection has that name; .* hcc_survival"),
        ((), r"no cohort was given; expected a folder"),
        (("hcc_survival", "--models", "gatd"), r"no recipe 'gatd'; .*gated"),
        (("hcc_survival", "--models", "gated"), r"gated"),
        (("hcc_survival", "--models", "gated{features}"), r"the arguments are no JSON"),
        (("hcc_survival", "--models", "random-forest", "random-forest"), r"names 'random-forest' twice"),
        (("hcc_survival", "--models", "cox", "--workers", "0"), r"--workers is 0"),
        (("hcc_survival", "--folds", "1"), r"--folds 1 --repeats 1; expected at least 2 and 1"),
        (("hcc_survival", "--models", "random-forest", "--subgroups", "sexx"), r"no column 'sexx' for subgroups"),
        (("hcc_survival", "--models", 'random-forest{"tree": 3}'), r"'tree'.*trees"),
        (("hcc_survival", "--models", "random-forest", "--folds", "60"), r"largest feasible k is 50"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(words, message, tmp_path):
    code, _, err = ask("compare", *words, "--out", tmp_path / "out", "--no-copies", "--no-compilation-cache")
    assert code == 2
    assert re.search(message, err.replace("\n", " ")), err
    assert not (tmp_path / "out/tasks").exists()


def test_recipes_are_listed():
    code, out, _ = ask("compare", "--list-models")
    assert code == 0
    assert "cross-attention" in out
    assert "logistic-regression" in out


def test_models_are_named_by_label_recipe_and_arguments():
    assert parse_model("gated") == ("gated", {"recipe": "gated", "arguments": {}})
    assert parse_model('a b=gated{"head": [4], "x": {"y": 1}}') == (
        "a b",
        {"recipe": "gated", "arguments": {"head": [4], "x": {"y": 1}}},
    )


def test_a_failed_training_leaves_the_others_to_be_judged(study, tmp_path):
    place = study[0]
    bad = {"bad": {"recipe": "clinical-only", "arguments": {**SMALL, "learning_rate": 1e30}}, "ridge": MODELS["ridge"]}
    (tmp_path / "models.json").write_text(json.dumps({"models": bad}))
    words = ("compare", place / "data", "--config", tmp_path / "models.json", "--out", tmp_path / "out", "--folds", "2")
    rest = ("--importance", "0", "--null", "0", "--explained", "0", "--resamples", "200", "--no-compilation-cache")
    code, out, _ = ask(*words, *rest)
    assert code == 1
    assert "Failed: bad, repeat 0, fold 0" in out
    page = text_of((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "Left out, since a training failed: bad." in page


# New cases.


def test_the_ensemble_of_a_comparison_predicts_new_cases(study, tmp_path):
    place = study[0]
    config = CONFIG.replace('never = ["name"]\n', "").replace('label = "malignant"\n', "")
    new = write_folder(tmp_path / "new", n=6, size=16, config=config)
    for name in ("cases.csv", "boxes.csv"):
        text = (new / name).read_text()
        (new / name).write_text(re.sub(r"^c0", "n0", text, flags=re.MULTILINE))
    for path in [*new.glob("images/*"), *new.glob("masks/*")]:
        path.rename(path.with_name("n" + path.name[1:]))
    out = tmp_path / "new.csv"
    code, said, err = ask("predict", place / "out", new, "--model", "fused", "--out", out, "--no-compilation-cache")
    assert (code, err) == (0, "")
    assert "6 cases of nodules by fused (2 trainings, their mean score)" in said
    assert "Warning" not in said
    whole = pd.read_csv(out)
    assert set(whole.columns) == {"case_id", "patient_id", "model", "score", "split", "site"}
    parts = []
    for fold in range(2):
        run = place / f"out/tasks/fused/r0_f{fold}_s0"
        assert ask("predict", run, new, "--out", tmp_path / "one.csv", "--no-compilation-cache")[0] == 0
        parts.append(pd.read_csv(tmp_path / "one.csv")["score"])
    np.testing.assert_allclose(whole["score"], np.mean(parts, axis=0), rtol=1e-9)


def test_cases_that_were_trained_on_are_named(study, tmp_path):
    place = study[0]
    code, said, _ = ask("predict", place / "out", place / "data", "--model", "ridge", "--out", tmp_path / "p.csv")
    assert code == 0
    assert "Warning: 24 of these cases (c000, c001, c002, c003 and 20 more) were among those" in said
    assert "label" in pd.read_csv(tmp_path / "p.csv").columns


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["age", "sex"]', '["age"]', r"column 'sex'"),
        ("[sources.xray]", "[sources.ct]", r"no source 'xray'"),
        (
            "low = 0, high = 255}",
            'low = 0, high = 255}, {op = "resize", size = [8, 8]}',
            r"shape \(8, 8, 1\).*16, 16, 1",
        ),
        ('age = "years"', 'age = "mm"', r"column 'age': 'mm' cannot be converted to 'years'"),
    ],
)
def test_another_kind_of_cohort_is_refused(old, new, message, study, tmp_path):
    place = study[0]
    folder = write_folder(tmp_path / "other", n=4, size=16, config=CONFIG.replace('never = ["name"]\n', ""))
    edit(folder / "cohort.toml", old, new)
    if "ct]" in new:
        edit(folder / "cohort.toml", 'of = "xray"', 'of = "ct"')
    code, _, err = ask("predict", place / "out", folder, "--model", "fused", "--out", tmp_path / "p.csv")
    assert code == 2
    assert re.search(message, err.replace("\n", " ")), err


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("out", (), r"a comparison of clinical, fused, ridge; say which with --model"),
        ("out", ("--model", "fusd"), r"no model 'fusd'"),
        ("data", (), r"no recipe.json and no comparison.json"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused(run, options, message, study, tmp_path):
    code, _, err = ask("predict", study[0] / run, study[0] / "data", *options, "--out", tmp_path / "p.csv")
    assert code == 2
    assert re.search(message, err.replace("\n", " ")), err


# Exports.


def test_an_exported_program_says_what_the_model_says(study, tmp_path):
    pytest.importorskip("flatbuffers")
    place = study[0]
    run, out = place / "out/tasks/fused/r0_f0_s0", tmp_path / "export"
    code, said, err = ask("export", run, "--out", out)
    assert (code, err) == (0, "")
    assert "any number of cases a call; cpu, cuda, tpu" in said
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "model.jax_export", "model_card.md", "preparation.json", "recipe.json",
        "weights.npz", "weights.safetensors",
    }  # fmt: skip
    words = " ".join(path.read_text(errors="ignore") for path in out.iterdir())
    assert not re.search(r"\bc0\d\d\b", words)  # no id of a patient
    assert ask("predict", run, place / "data", "--out", tmp_path / "run.csv", "--no-compilation-cache")[0] == 0
    assert ask("predict", out, place / "data", "--out", tmp_path / "out.csv", "--no-compilation-cache")[0] == 0
    expected = pd.read_csv(tmp_path / "run.csv")["score"]
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "out.csv")["score"], expected)

    preparation = Preparation.from_json(json.loads((out / "preparation.json").read_text()))
    encoded = Preparation(preparation.tables, preparation.numbers, {}, preparation.sources)
    ready = encoded.apply(open_cohort(place / "data"), ())
    program = jax.export.deserialize(bytearray((out / "model.jax_export").read_bytes()))
    for rows in (np.arange(24), np.arange(5)):
        found = np.asarray(program.call(exported_inputs(ready, preparation.sources, rows)))
        np.testing.assert_allclose(found[:, 1], expected[rows], rtol=1e-5)


def test_exports_that_cannot_be_made_say_why(study, tmp_path):
    place = study[0]
    code, _, err = ask("export", place / "out/tasks/ridge/r0_f0_s0", "--out", tmp_path / "a")
    assert code == 2
    assert "logistic-regression is no network" in err
    code, _, err = ask("export", place / "out/tasks/fused/r0_f0_s0", "--out", place / "data")
    assert code == 2
    assert "not empty; expected a new folder" in err
