"""Benchmarks run, show what they promise, and compare versions that give the same numbers; speed is not tested."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT

# Not beside the installed wheel, where the mark below leaves these tests out.
refresh = pytest.importorskip("benchmarks.refresh")
timing = pytest.importorskip("benchmarks.timing")

pytestmark = pytest.mark.checkout

TIMES = {"method", "dtype", "first, ms", "median, ms", "spread, ms"}
SCRIPTS = ("density", "gamma_sweep")


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory) -> dict[str, tuple[str, dict[str, Any]]]:
    """What each script prints with --quick, and what it writes; both at once, in the default world of a user."""
    folder = tmp_path_factory.mktemp("benchmarks")
    running = {
        script: subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--out", str(folder / f"{script}.json")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in SCRIPTS
    }
    found = {}
    for script, process in running.items():
        printed, complaints = process.communicate()
        assert process.returncode == 0, printed[-2000:] + complaints[-2000:]
        found[script] = (printed, json.loads((folder / f"{script}.json").read_text(encoding="utf-8")))
    return found


def rows(run: dict[str, Any], title: str) -> list[dict[str, Any]]:
    [table] = [table for table in run["tables"] if table["title"].startswith(title)]
    return table["rows"]


@pytest.mark.parametrize(
    ("script", "title", "columns"),
    [
        ("density", "Binned density, 3,073", {"n", "vs KDEpy FFTKDE", "vs NumPy twin", "error / peak"}),
        ("density", "Exact density", {"n", "vs NumPy broadcasting", "vs SciPy gaussian_kde", "error / peak"}),
        ("density", "Logarithm", {"n", "vs scikit-learn, exact", "error above 1e-6 peak", "error of logarithm"}),
        ("density", "Information potential", {"n", "vs SciPy integrate_kde", "vs NumPy pairwise", "relative error"}),
        ("density", "Values and gradients", {"n", "vs NumPy by hand", "error / largest"}),
        ("gamma_sweep", "Sweeps", {"sweep", "vs NumPy and SciPy loop", "vs NumPy loop, binned"}),
        ("gamma_sweep", "Numerical validation", {"vs NumPy and SciPy loop", "vs NumPy loop, binned"}),
    ],
)
def test_tables_have_their_columns(quick_runs, script, title, columns):
    printed, run = quick_runs[script]
    for row in rows(run, title):
        assert columns | TIMES <= row.keys()
        assert row["first, ms"] >= 0
        assert row["median, ms"] > 0
        assert row["method"] in printed


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_names_versions_load_and_missing_peers(quick_runs, script):
    header = quick_runs[script][1]["header"]
    assert re.search(r"jax \d+\.\d+.*numpy \d.*scipy \d.*KDEpy \d", header["versions"])
    assert re.search(r"\d+ CPU cores", header["machine"])
    assert header["load average"].endswith("at the end")
    assert header["peers missing"] == "none"


@pytest.mark.parametrize("script", SCRIPTS)
def test_versions_agree(quick_runs, script):
    agreements = quick_runs[script][1]["agreements"]
    assert len(agreements) >= 6
    for agreement in agreements:
        assert 0 <= agreement["difference"] <= agreement["tolerance"] <= 5e-3, agreement["what"]


@pytest.mark.parametrize(
    ("title", "method", "column", "limit"),
    [
        ("Binned density, 3,073", "fusion_jax binned", "error / peak", 1e-6),
        ("Binned density where", "fusion_jax binned", "error / peak", 5e-6),
        ("Exact density", "fusion_jax exact", "error / peak", 1e-6),
        ("Exact density", "SciPy gaussian_kde", "error / peak", 1e-12),
        ("Logarithm", "fusion_jax log_density", "error above 1e-6 peak", 1e-3),
        ("Information potential", "fusion_jax pairwise", "relative error", 2e-6),
        ("Information potential", "fusion_jax fft", "relative error", 2e-6),
        ("Values and gradients", "fusion_jax binned density", "error / largest", 1e-3),
        ("Values and gradients", "fusion_jax exact density", "error / largest", 5e-6),
        ("Values and gradients", "fusion_jax pairwise potential", "error / largest", 5e-6),
    ],
)
def test_errors_stay_within_their_bounds(quick_runs, title, method, column, limit):
    [row] = [row for row in rows(quick_runs["density"][1], title) if row["method"] == method]
    assert 0 < row[column] <= limit


def test_contenders_are_called_in_turn():
    calls = []

    def contender(name):
        # Slow enough not to be repeated within a round.
        return timing.Contender(name, "-", lambda: calls.append(name) or sum(range(10**6)))

    timings = timing.race([contender("a"), contender("b")], rounds=3)
    assert calls == ["a", "a", "b", "b", *"ababab"]
    for measured in timings.values():
        assert measured.fastest <= measured.median <= measured.slowest
        assert measured.result == sum(range(10**6))


def test_patience_leaves_out_what_would_take_too_long():
    patience = timing.Patience(limit=1.0)
    entered = [
        timing.Contender("linear", "-", lambda: sum(range(10**6))),
        timing.Contender("square", "-", lambda: sum(range(10**6)), power=2),
        timing.Contender("large", "-", lambda: None, largest=10),
    ]
    assert set(patience.race(entered, 10, 1)) == {"linear", "square", "large"}
    patience.seen = {"linear": (10, 0.05), "square": (10, 0.05)}
    assert set(patience.race(entered, 100, 1)) == {"linear"}


def test_a_table_is_aligned_markdown():
    table = timing.Table("Title", [{"n": 1000, "error": 1.5e-7}, {"n": 10, "error": None}], ("A note.",))
    assert timing.render(table).splitlines() == [
        "### Title",
        "",
        "|     n |   error |",
        "| ----: | ------: |",
        "| 1,000 | 1.5e-07 |",
        "|    10 |       - |",
        "",
        "- A note.",
    ]


def test_versions_that_disagree_are_an_error(tmp_path, capsys):
    agreements = [
        timing.Agreement("good", 0.0, 0.1),
        timing.Agreement("bad", 0.2, 0.1),
        timing.Agreement("unknown", float("inf"), 0.1),
    ]
    assert timing.finish(timing.Results({"load average": "-"}, [], [], agreements), None) == 1
    assert re.findall(r"DISAGREE: (\w+)", capsys.readouterr().out) == ["bad", "unknown"]
    out = tmp_path / "results.json"
    stored = timing.Results({"load average": "-"}, [timing.Table("T", [{"n": 1}])], [], agreements[:1])
    assert timing.finish(stored, out) == 0
    assert timing.read_results(out) == stored


def test_the_results_page_can_be_refreshed(monkeypatch, tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text(refresh.RESULTS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(refresh, "RESULTS", page)
    monkeypatch.setattr(refresh, "measured", lambda options: f"new tables with {options[0]}")
    original = page.read_text(encoding="utf-8")
    for _ in range(2):
        refresh.main(["--quick"])
    text = page.read_text(encoding="utf-8")
    assert text.count("new tables with --quick") == 1
    assert text.startswith(original.partition(refresh.BEGIN)[0])
    assert text.endswith(refresh.END + original.partition(refresh.END)[2])
