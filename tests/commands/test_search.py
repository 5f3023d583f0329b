"""`fusion-jax search` from end to end, on a small folder of images."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image as Picture

from fusion_jax.commands.main import main
from tests.data.folders import CONFIG, edit, write_folder

SMALL = [
    "--layout",
    "N",
    "--nodes",
    "1",
    "--channels",
    "2",
    "--space",
    "none",
    "skip",
    "conv3",
    "--epochs",
    "2",
    "--batch-size",
    "6",
    "--no-compilation-cache",
]


def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    write_folder(place / "data", n=24, size=16, config=CONFIG.replace('never = ["name"]\n', ""))
    return place, ask("search", place / "data", "--out", place / "out", *SMALL)


def test_a_search_states_its_memory_and_writes_cells_and_report(study):
    place, (code, out, err) = study
    assert (code, err) == (0, "")
    assert "nodules: 24 cases. Cells that fuse xray." in out
    assert "A step of the search is estimated to need" in out
    assert f"genotype:{place / 'out' / 'genotype.json'}" in out
    found = {path.name for path in (place / "out").iterdir()}
    assert {"genotype.json", "architecture.jsonl", "report.html", "cells.dot", "search.json", "figures"} <= found
    stored = json.loads((place / "out" / "genotype.json").read_text())
    assert {name for name, _ in stored["genotype"]["normal"]} <= {"skip", "conv3"}
    assert "digraph" in (place / "out" / "cells.dot").read_text()


def test_a_search_goes_on_only_where_it_is_asked_to(study, tmp_path):
    place, _ = study
    code, _, err = ask("search", place / "data", "--out", place / "out", *SMALL)
    assert code == 2
    assert "holds a search. Go on with it: --resume" in err
    code, _, err = ask("search", place / "data", "--out", tmp_path, "--resume", *SMALL)
    assert code == 2
    assert "holds no search" in err
    before = (place / "out" / "genotype.json").read_text()
    # The options are those that the search was started with.
    code, out, err = ask("search", place / "data", "--out", place / "out", "--resume", "--no-compilation-cache")
    assert (code, err) == (0, "")
    assert "Report:" in out
    assert (place / "out" / "genotype.json").read_text() == before
    for option, value, stored in (("--rate", "0.5", "0.025"), ("--augment", "flips", "none"), ("--nodes", "2", "1")):
        code, _, err = ask("search", place / "data", "--out", place / "out", "--resume", option, value)
        assert code == 2
        assert f"--resume with {option} {value}; the search in {place / 'out'} has {stored}." in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--collapse", "eigenvalue"), "eigenvalue_every is 0; expected 1 or more"),
        (("--partial", "3"), "partial is 3; expected a divisor of 4 channels"),
        (("--rate", "-1"), "search_rate is -1.0; expected a positive number"),
        (("--augment", "nonsense"), "nonsense"),
        (("--warmup-epochs", "60"), "warmup_epochs is 60; expected 0 to below the 50 epochs"),
        (("--space", "skip", "conv9"), "no operation 'conv9'"),
        (("--sources", "mri"), "no source 'mri'"),
    ],
)
def test_a_search_that_cannot_run_leaves_nothing_behind(options, message, study, tmp_path):
    place, _ = study
    code, _, err = ask("search", place / "data", "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out" / "search.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("no,Somebody 4", ",Somebody 4", "case c004 has no malignant (1 in all)"),
        ("no,Somebody 4", "rare,Somebody 4", "class 'rare' has 1 patients"),
        (None, None, "xray of case c004 has shape"),
    ],
)
def test_a_cohort_that_cannot_be_searched_leaves_nothing_that_a_second_call_would_go_on_with(
    old, new, message, tmp_path
):
    folder = write_folder(tmp_path / "data", config=CONFIG.replace('never = ["name"]\n', ""))
    if old is None:
        Picture.fromarray(np.full((20, 24), 90, np.uint8)).save(folder / "images" / "c004.png")
    else:
        edit(folder / "cases.csv", old, new)
    for _ in range(2):
        code, _, err = ask("search", folder, "--sources", "xray", "--out", tmp_path / "out", *SMALL)
        assert code == 2
        assert message in err
    assert not list((tmp_path / "out").iterdir())


def test_a_comparison_says_that_cells_were_searched_on_its_patients(study):
    place, _ = study
    from fusion_jax.models.comparison import plan

    name = f"genotype:{place / 'out' / 'genotype.json'}"
    made = plan(place / "data", [name, "logistic-regression"], out=place / "compared", folds=2)
    assert any("were searched on 24 of the 24 cases" in remark for remark in made.remarks)
    assert made.choices[name].recipe == "genotype"
