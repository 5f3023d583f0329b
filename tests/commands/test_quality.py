"""`fusion-jax quality` from end to end, and what it says to input that it cannot use."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fusion_jax
from fusion_jax.commands._quality.measure import area_interval
from fusion_jax.commands.main import enable_compilation_cache, main
from fusion_jax.quality import fusion_quality
from tests.helpers import assert_close

CASES, FEATURES = 12, 40
IDS = [f"p{number:02d}" for number in range(CASES)]
OPTIONS = ("--bandwidth", "1", "--permutations", "19", "--no-compilation-cache")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def column(table: dict[str, list[str]], name: str) -> np.ndarray:
    return np.array([cell or "nan" for cell in table[name]], float)


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


def ask(*words: str | Path) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


class Run(NamedTuple):
    """What a finished run left behind."""

    out: Path
    printed: str
    numbers: dict[str, Any]
    cases: dict[str, list[str]]
    gamma: dict[str, list[str]]
    report: str


def run(out: Path, *words: str | Path) -> Run:
    answer = ask("quality", *words, *OPTIONS, "--out", out)
    assert answer.code == 0, answer.err
    numbers = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    report = (out / "report.html").read_text(encoding="utf-8")
    return Run(out, answer.out, numbers, read_csv(out / "cases.csv"), read_csv(out / "gamma.csv"), report)


class Cohort(NamedTuple):
    """Files of 12 cases, and what is in them: one value of `clinical` is missing."""

    folder: Path
    image: np.ndarray
    clinical: np.ndarray


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(3)
    image = generator.gamma(2.0, size=(CASES, FEATURES)).round(4)
    clinical = np.column_stack([generator.normal(60, 10, CASES), generator.integers(0, 2, CASES)]).round(1)
    clinical[4, 1] = np.nan
    rows = [
        [case, *("" if np.isnan(value) else value for value in values)]
        for case, values in zip(IDS, clinical.tolist(), strict=True)
    ]
    columns = [f"f{index}" for index in range(FEATURES)]
    write_csv(folder / "image.csv", ["case_id", *columns], [[i, *v] for i, v in zip(IDS, image.tolist(), strict=True)])
    write_csv(folder / "clinical.csv", ["case_id", "age", "sex"], rows)
    write_csv(folder / "shuffled" / "clinical.csv", ["case_id", "age", "sex"], rows[::-1])
    labels = [[case, "yes" if number % 3 else "no"] for number, case in enumerate(IDS)]
    write_csv(folder / "outcome.csv", ["case_id", "recurrence"], labels)
    third = generator.normal(size=(CASES, FEATURES))
    np.savez(folder / "three.npz", pet=image, ct=third, clinical=np.nan_to_num(clinical))
    return Cohort(folder, image, clinical)


@pytest.fixture(scope="module")
def encoded(cohort, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("results") / "encoded"
    files = [cohort.folder / name for name in ("image.csv", "clinical.csv")]
    outcome = cohort.folder / "outcome.csv"
    return run(out, *files, "--encode", "clinical", "--missing", "weight", "--outcome", outcome)


@pytest.fixture(scope="module")
def three(cohort, tmp_path_factory) -> Run:
    return run(tmp_path_factory.mktemp("results") / "three", cohort.folder / "three.npz")


# What a run measures.


def test_the_numbers_are_those_of_the_library(cohort, encoded):
    image = (cohort.image - cohort.image.mean()) / cohort.image.std()
    clinical = (cohort.clinical - np.nanmean(cohort.clinical, axis=0)) / np.nanstd(cohort.clinical, axis=0)
    present = ~np.isnan(clinical)
    found = fusion_quality(
        {"image": image, "clinical": np.nan_to_num(clinical)},
        bandwidth=1.0,
        weights={"clinical": present.astype(float)},
    )
    table, before = encoded.cases, "before_encoding__"
    assert table["case_id"] == IDS
    assert_close(column(table, f"{before}energy__image"), found.energies["image"])
    assert_close(column(table, f"{before}total_variation__clinical"), found.total_variation["clinical"])
    assert_close(column(table, f"{before}energy_gap__image__clinical"), found.energy_gap["image", "clinical"])
    assert column(table, f"{before}size__clinical").tolist() == present.sum(axis=1).tolist()


def test_the_planned_encoding_balances(encoded):
    plan = encoded.numbers["encoding"]
    assert plan["plan"]["balanced"]
    assert plan["size"] == plan["plan"]["size"]
    sizes = column(encoded.cases, "size__clinical")
    assert sizes.tolist() == [plan["size"] / (2 if case == "p04" else 1) for case in IDS]
    before, after = (
        np.abs(np.delete(column(encoded.cases, f"{stage}energy_gap__image__clinical"), 4)).mean()
        for stage in ("before_encoding__", "")
    )
    assert after < 0.2 * before


def test_json_and_csv_agree(encoded):
    stage = encoded.numbers["stages"]["encoded"]
    for name, quantity in itertools.product(("image", "clinical"), ("energy", "energy_share", "jensen_shannon")):
        found = stage["sources"][name][quantity]
        values = column(encoded.cases, f"{quantity}__{name}")
        assert found["n"] == CASES
        assert found["median"] == np.median(values)
        assert [found["lower_quartile"], found["upper_quartile"]] == np.quantile(values, (0.25, 0.75)).tolist()
    [pair] = stage["pairs"]
    assert pair["gamma_star"]["mean"] == column(encoded.cases, "gamma_star__image__clinical").mean()


def test_each_gamma_curve_says_which_it_is(encoded, three):
    curves = np.array(encoded.gamma["curve"])
    gamma, mean = column(encoded.gamma, "gamma"), column(encoded.gamma, "energy_gap_mean")
    mass, size = curves == "mass", curves == "size"
    assert mass.sum() >= 200
    # By identity I6 the mass curve falls from R_x to -R_y.
    energies = [column(encoded.cases, f"energy__{name}").mean() for name in ("image", "clinical")]
    g = gamma[mass]
    assert_close(mean[mass], (energies[0] - g**2 * energies[1]) / (1 + g) ** 2, rtol=1e-5)
    plan = encoded.numbers["encoding"]["plan"]
    assert column(encoded.gamma, "size_b")[size].tolist() == plan["sizes"]
    assert mean[size].tolist() == plan["gaps"]
    # By identity I2 both distances are equal at gamma = 1.
    one = int(np.abs(np.log(g)).argmin())
    distances = [column(encoded.gamma, f"total_variation_{end}_median")[mass][one] for end in "ab"]
    assert distances[0] == pytest.approx(distances[1])
    assert set(three.gamma["curve"]) == {"mass"}


def test_every_pair_of_three_sources_is_measured(three):
    pairs = [(pair["a"], pair["b"]) for pair in three.numbers["stages"]["as given"]["pairs"]]
    assert pairs == [("pet", "ct"), ("pet", "clinical"), ("ct", "clinical")]
    assert [null["pair"] for null in three.numbers["pairing_null"]] == [list(pair) for pair in pairs]
    assert (three.out / "figures" / "gap_matrix.svg").is_file()
    shares = sum(column(three.cases, f"energy_share__{name}") for name in ("pet", "ct", "clinical"))
    assert_close(shares, np.ones(CASES))


def test_the_outcome_is_related_to_each_bias(encoded):
    outcome = encoded.numbers["outcome"]
    assert (outcome["positive"], outcome["negative"], outcome["positive_cases"]) == ("yes", "no", 8)
    assert [(one["stage"], one["source"]) for one in outcome["relations"]] == [
        (stage, source) for stage in ("as given", "encoded") for source in ("image", "clinical")
    ]
    positive = np.array(encoded.cases["outcome"]) == "yes"
    for one in outcome["relations"][2:]:
        bias = column(encoded.cases, f"total_variation__{one['source']}")
        above = bias[positive][:, None] - bias[~positive][None, :]
        assert one["area"] == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
        assert one["interval_95"][0] <= one["area"] <= one["interval_95"][1]


def test_the_interval_of_an_area_is_that_of_delong():
    generator = np.random.default_rng(0)
    positive = np.arange(50) < 20
    values = generator.normal(size=50).round(1) + positive
    above = np.sign(values[positive][:, None] - values[~positive][None, :]) / 2 + 0.5
    variance = above.mean(axis=1).var(ddof=1) / 20 + above.mean(axis=0).var(ddof=1) / 30
    reach = 1.959964 * np.sqrt(variance)
    assert area_interval(values, positive) == pytest.approx((above.mean() - reach, min(1.0, above.mean() + reach)))


def test_an_area_without_spread_may_be_anywhere():
    assert area_interval(np.arange(4.0), np.array([False, False, True, True])) == (0.0, 1.0)
    assert area_interval(np.arange(4.0), np.array([False, False, True, False])) == (0.0, 1.0)


# What a run writes.


def test_the_files_are_those_the_report_names(encoded):
    assert sorted(path.name for path in encoded.out.iterdir()) == [
        "cases.csv",
        "figures",
        "gamma.csv",
        "quality.json",
        "report.html",
    ]
    assert encoded.printed.rstrip().endswith(f"Report: {encoded.out / 'report.html'}".replace("\n", ""))
    for number in ("image", "clinical", "encoded"):
        assert number in encoded.printed


def test_the_report_tells_the_whole_story(encoded):
    text = re.sub(r"\s+", " ", encoded.report)
    for part in (
        "Sources were matched by case_id",
        "paired at random across cases",
        "not a theorem about dimension",
        "if and only if γ = 1",
        "Curve 1, mass",
        "Curve 2, size",
        "What this plan assumes",
        "Missing values have weight 0",
        "recurrence (yes: 8 cases, no: 4 cases)",
        "n = 12 cases",
        "not a medical device",
        "fusion-jax quality image.csv clinical.csv --bandwidth 1.0 --encode clinical",
    ):
        assert part in text, part


def test_the_report_fetches_nothing(encoded):
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", encoded.report)
    assert "<script" not in encoded.report


@pytest.fixture(scope="module")
def again(cohort, tmp_path_factory) -> Run:
    """The run `encoded` once more, its rows in another order, into a folder that holds other things."""
    out = tmp_path_factory.mktemp("results") / "again"
    (out / "figures").mkdir(parents=True)
    for name in ("notes.txt", "figures/mine.svg", "figures/gap_matrix.svg", "report.html"):
        (out / name).write_text("old")
    files = [cohort.folder / "image.csv", cohort.folder / "shuffled" / "clinical.csv"]
    outcome = cohort.folder / "outcome.csv"
    return run(out, *files, "--encode", "clinical", "--missing", "weight", "--outcome", outcome)


def test_the_same_cases_give_the_same_files(encoded, again):
    figures = [f"figures/{path.name}" for path in (encoded.out / "figures").iterdir()]
    for name in ("cases.csv", "gamma.csv", *figures):
        assert (again.out / name).read_bytes() == (encoded.out / name).read_bytes(), name
    differing = {"record", "config", "files", "sources"}
    kept = [{key: value for key, value in one.numbers.items() if key not in differing} for one in (encoded, again)]
    assert kept[0] == kept[1]


def test_results_are_replaced_and_nothing_else_is_touched(again):
    assert {name: (again.out / name).read_text() for name in ("notes.txt", "figures/mine.svg")} == {
        "notes.txt": "old",
        "figures/mine.svg": "old",
    }
    # A figure of an earlier run that this one did not draw would belong to nothing.
    assert not (again.out / "figures" / "gap_matrix.svg").exists()
    assert again.report.startswith("<!doctype html>")


def test_a_conclusion_that_flips_is_called_unstable(tmp_path):
    # Two spikes far apart hold more energy than a broad hump under narrow kernels, and less under wide ones.
    generator = np.random.default_rng(0)
    spikes = np.where(np.arange(40) % 2, 1.6, -1.6) + 1e-3 * generator.normal(size=(3, 40))
    np.savez(tmp_path / "two.npz", spikes=spikes, hump=generator.normal(0, 1.0, size=(3, 40)))
    found = run(tmp_path / "out", tmp_path / "two.npz", "--scale", "none")
    stability = found.numbers["stages"]["as given"]["stability"]
    assert not stability["stable"]
    assert stability["dominant_source"][0] == "spikes"
    assert stability["dominant_source"][-1] == "hump"
    assert "Unstable" in found.report[: found.report.index("<main>")]
    assert "Unstable" in re.sub(r"\s+", " ", found.printed)


# What it says to input that it cannot use.


class Bad(NamedTuple):
    """Files to write, words to give, and what the message has to say."""

    name: str
    files: dict[str, Any]
    words: Sequence[str]
    said: Sequence[str]


IMAGE = "case_id,f0,f1\na,1,2\nb,3,4\nc,5,6\n"
CLINICAL = "case_id,age\na,50\nb,60\nc,70\n"
GOOD = {"image.csv": IMAGE, "clinical.csv": CLINICAL}
BOTH = ("image.csv", "clinical.csv")
MATRIX = np.arange(6.0).reshape(3, 2)

BAD = [
    Bad("no such file", {"image.csv": IMAGE}, ("image.csv", "nowhere.csv"), ("nowhere.csv", "not there")),
    Bad("a folder", {"x/image.csv": IMAGE}, ("x", "x/image.csv"), ("x is a folder",)),
    Bad("no files", {}, (), ("no features",)),
    Bad("one CSV", {"image.csv": IMAGE}, ("image.csv",), ("image.csv", "one source, 'image'", "at least two")),
    Bad("one array", {"f.npz": {"image": MATRIX}}, ("f.npz",), ("f.npz", "one source, 'image'")),
    Bad("no array", {"f.npz": {}}, ("f.npz",), ("f.npz", "no source")),
    Bad("another format", {"image.xlsx": "x", **GOOD}, ("image.xlsx", "clinical.csv"), ("image.xlsx", ".npz", ".csv")),
    Bad("same name", {**GOOD, "x/image.csv": IMAGE}, ("image.csv", "x/image.csv"), ("x/image.csv", "both called")),
    Bad("empty file", {**GOOD, "image.csv": ""}, BOTH, ("image.csv", "empty")),
    Bad("no cases", {**GOOD, "image.csv": "case_id,f0\n"}, BOTH, ("image.csv", "no cases")),
    Bad("no header", {**GOOD, "image.csv": "1,2\n3,4\n"}, BOTH, ("image.csv", "row 1", "header")),
    Bad("no columns", {**GOOD, "image.csv": "case_id\na\nb\nc\n"}, BOTH, ("image.csv", "no columns but 'case_id'")),
    Bad("semicolons", {**GOOD, "image.csv": "case_id;f0\na;1\n"}, BOTH, ("image.csv", "commas")),
    Bad("row numbers", {**GOOD, "image.csv": ",f0\n0,1\n1,2\n"}, BOTH, ("image.csv", "column 1 has no name", "index")),
    Bad("two columns", {**GOOD, "image.csv": "f0,f0\n1,2\n"}, BOTH, ("image.csv", "two columns", "'f0'")),
    Bad("ragged", {**GOOD, "image.csv": IMAGE + "d,1\n"}, BOTH, ("image.csv", "row 5 has 2 cells", "has 3")),
    Bad("a gap", {**GOOD, "image.csv": "f0\n1\n\n2\n"}, BOTH, ("image.csv", "row 3 has 0 cells")),
    Bad("text", {**GOOD, "clinical.csv": CLINICAL + "d,old\n"}, BOTH, ("clinical.csv", "'age'", "'old'", "row 5")),
    Bad("decimal comma", {**GOOD, "clinical.csv": 'case_id,age\na,"50,5"\n'}, BOTH, ("'50,5'", "row 2", "point")),
    Bad("infinite", {**GOOD, "clinical.csv": "case_id,age\na,inf\n"}, BOTH, ("clinical.csv", "'inf'", "row 2")),
    Bad("missing", {**GOOD, "clinical.csv": CLINICAL.replace("60", "")}, BOTH, ("'b'", "'age'", "--missing weight")),
    Bad("not text", {**GOOD, "image.csv": b"\xff\xfe\x00"}, BOTH, ("image.csv", "UTF-8")),
    Bad("case missing", {**GOOD, "clinical.csv": "case_id,age\na,1\nx,2\nc,3\n"}, BOTH, ("lacks 'b'", "has 'x'")),
    Bad("case twice", {**GOOD, "clinical.csv": CLINICAL + "b,1\n"}, BOTH, ("clinical.csv", "'b'", "rows 3 and 5")),
    Bad("case unnamed", {**GOOD, "clinical.csv": CLINICAL + ",1\n"}, BOTH, ("clinical.csv", "row 5 has no case_id")),
    Bad("case_id once", {**GOOD, "clinical.csv": "age\n1\n2\n3\n"}, BOTH, ("image.csv", "clinical.csv has none")),
    Bad("rows differ", {"a.csv": "x\n1\n2\n", "b.csv": "y\n1\n"}, ("a.csv", "b.csv"), ("a.csv: 2", "b.csv: 1")),
    Bad(
        "nothing in a case",
        {**GOOD, "clinical.csv": CLINICAL.replace("60", "")},
        (*BOTH, "--missing", "weight"),
        ("clinical.csv", "'b'", "no value"),
    ),
    Bad(
        "nothing in a column",
        {**GOOD, "clinical.csv": "case_id,age,sex\na,1,\nb,2,NA\nc,3,nan\n"},
        (*BOTH, "--missing", "weight"),
        ("clinical.csv", "'sex'", "Remove the column"),
    ),
    Bad("not an archive", {"f.npz": "text"}, ("f.npz",), ("f.npz", "not a .npz file")),
    Bad("objects", {"f.npz": {"a": MATRIX, "b": np.array([[None]])}}, ("f.npz",), ("'b'", "Python objects", "numeric")),
    Bad("words", {"f.npz": {"a": MATRIX, "b": np.array([["x"]] * 3)}}, ("f.npz",), ("'b'", "dtype", "real numbers")),
    Bad("complex", {"f.npz": {"a": MATRIX, "b": MATRIX * 1j}}, ("f.npz",), ("'b'", "complex128")),
    Bad("one-dimensional", {"f.npz": {"a": MATRIX, "b": MATRIX[:, 0]}}, ("f.npz",), ("'b'", "(3,)", "array[:, None]")),
    Bad("volumes", {"f.npz": {"a": MATRIX, "b": np.ones((3, 2, 2))}}, ("f.npz",), ("(3, 2, 2)", "reshape")),
    Bad("no features", {"f.npz": {"a": MATRIX, "b": np.ones((3, 0))}}, ("f.npz",), ("'b'", "(3, 0)")),
    Bad("cases differ", {"f.npz": {"a": MATRIX, "b": MATRIX[:2]}}, ("f.npz",), ("a: 3", "b: 2")),
    Bad("NaN", {"f.npz": {"a": MATRIX, "b": MATRIX * np.nan}}, ("f.npz",), ("'b'", "row 0", "6 missing")),
    Bad(
        "infinity",
        {"f.npz": {"a": MATRIX, "b": np.full((3, 2), np.inf)}},
        ("f.npz",),
        ("'b'", "infinite", "row 0, column 0"),
    ),
    Bad("id twice", {"f.npz": {"a": MATRIX, "b": MATRIX, "case_id": ["u", "v", "u"]}}, ("f.npz",), ("'u'", "0 and 2")),
    Bad("ids short", {"f.npz": {"a": MATRIX, "b": MATRIX, "case_id": ["u"]}}, ("f.npz",), ("'case_id'", "(1,)")),
    Bad("bandwidth 0", GOOD, (*BOTH, "--bandwidth", "0"), ("--bandwidth is 0", "positive")),
    Bad("bandwidth NaN", GOOD, (*BOTH, "--bandwidth", "nan"), ("--bandwidth is nan",)),
    Bad("bandwidth word", GOOD, (*BOTH, "--bandwidth", "wide"), ("wide", "silverman")),
    Bad("no permutations", GOOD, (*BOTH, "--permutations", "0"), ("--permutations is 0", "1 or more")),
    Bad("unknown source", GOOD, (*BOTH, "--encode", "labs"), ("labs", "no such source", "image, clinical")),
    Bad("unknown columns", GOOD, (*BOTH, "--per-column", "labs"), ("--per-column labs", "no such source")),
    Bad("unknown scale", GOOD, (*BOTH, "--scale", "rank"), ("rank", "zscore")),
    Bad("size alone", GOOD, (*BOTH, "--encoding-size", "8"), ("--encoding-size", "--encode")),
    Bad("size 0", GOOD, (*BOTH, "--encode", "image", "--encoding-size", "0"), ("--encoding-size is 0",)),
    Bad("odd size", GOOD, (*BOTH, "--encode", "image", "--encoding-size", "7"), ("7", "2 columns", "6 and 8")),
    Bad(
        "gaps in an encoding",
        {**GOOD, "image.csv": IMAGE.replace("3,4", "3,")},
        (*BOTH, "--encode", "image", "--encoding", "pca", "--missing", "weight"),
        ("'image'", "pca", "positional"),
    ),
    Bad("no outcome", GOOD, (*BOTH, "--outcome", "outcome.csv"), ("outcome.csv", "not there")),
    Bad(
        "one class",
        {**GOOD, "outcome.csv": "case_id,dead\na,1\nb,1\nc,1\n"},
        (*BOTH, "--outcome", "outcome.csv"),
        ("outcome.csv", "'dead'", "1 class", "two"),
    ),
    Bad(
        "no label",
        {**GOOD, "outcome.csv": "case_id,dead\na,1\nb,\nc,0\n"},
        (*BOTH, "--outcome", "outcome.csv"),
        ("outcome.csv", "'dead'", "row 3"),
    ),
    Bad(
        "two outcomes",
        {**GOOD, "outcome.csv": "case_id,dead,time\na,1,2\nb,1,3\nc,0,4\n"},
        (*BOTH, "--outcome", "outcome.csv"),
        ("outcome.csv", "case_id, dead, time", "one label"),
    ),
    Bad(
        "outcome of others",
        {**GOOD, "outcome.csv": "case_id,dead\na,1\nb,1\nd,0\n"},
        (*BOTH, "--outcome", "outcome.csv"),
        ("outcome.csv", "lacks 'c'", "has 'd'"),
    ),
    Bad(
        "outcome too short",
        {**GOOD, "outcome.csv": "dead\n1\n0\n"},
        (*BOTH, "--outcome", "outcome.csv"),
        ("outcome.csv has 2 labels for 3 cases",),
    ),
    Bad(
        "outcome with ids alone",
        {"a.csv": "x\n1\n2\n", "b.csv": "y\n1\n2\n", "outcome.csv": "case_id,dead\na,1\nb,0\n"},
        ("a.csv", "b.csv", "--outcome", "outcome.csv"),
        ("outcome.csv", "the features have none"),
    ),
    Bad("out is a file", {**GOOD, "out": "x"}, BOTH, ("--out", "is a file")),
    Bad(
        "too wide for the bandwidth",
        {"f.npz": {"a": MATRIX * 1e9, "b": MATRIX}},
        ("f.npz", "--scale", "none", "--per-column", "a"),
        ("bandwidth of 1", "Scale"),
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gets_one_message_and_exit_code_2(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in bad.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            np.savez(path, **content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
    answer = ask(
        "quality", *bad.words, *(() if "--bandwidth" in bad.words else OPTIONS[:2]), *OPTIONS[4:], "--out", "out"
    )
    assert answer.code == 2
    assert answer.out == ""
    for part in bad.said:
        assert part in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_console_user_sees_no_traceback(tmp_path):
    command = [sys.executable, "-m", "fusion_jax.commands.main", "quality", "nowhere.npz", "--bandwidth", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "nowhere.npz is not there" in answer.stderr


def test_developers_see_where_it_went_wrong(monkeypatch):
    monkeypatch.setenv("FUSION_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match="not there"):
        ask("quality", "nowhere.npz", *OPTIONS)


# The command line around it.


def test_the_version_is_that_of_the_package():
    assert ask("--version") == Answer(0, f"fusion-jax {fusion_jax.__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["quality", "--help"]], ids=" ".join)
def test_help_says_what_there_is(words):
    answer = ask(*words)
    assert answer.code == 0
    assert answer.err == ""
    said = (
        ("quality", "--version")
        if words == ["--help"]
        else ("FEATURES", "--bandwidth", "--encode", "(default: zscore)")
    )
    for part in said:
        assert part in answer.out


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "no command"), (("qualty",), "did you mean 'quality'"), (("--quality",), "unknown command")],
)
def test_an_unknown_command_is_refused(words, said):
    answer = ask(*words)
    assert answer.code == 2
    assert said in answer.err


# Compiled programs.


def test_compiled_programs_are_kept_in_a_private_folder(tmp_path):
    code = """
import jax
from fusion_jax.commands.main import enable_compilation_cache
print(enable_compilation_cache())
jax.numpy.ones(3) + 1
"""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    folder = Path(subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip())
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir())


def test_the_cache_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FUSION_JAX_CACHE", "off")
    assert enable_compilation_cache() is None


def test_a_folder_that_others_can_write_to_is_no_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FUSION_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    tmp_path.chmod(0o777)
    assert enable_compilation_cache() is None
    assert "written by others" in caplog.text
