"""Benchmarks run, show what they promise, and compare versions that give the same numbers; speed is not tested."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import ROOT

# Not beside the installed wheel, where the mark below leaves these tests out.
refresh = pytest.importorskip("benchmarks.refresh")
timing = pytest.importorskip("benchmarks.timing")
torch_peer = pytest.importorskip("benchmarks.torch_peer")
conv = pytest.importorskip("benchmarks.conv")
detection_kernels = pytest.importorskip("benchmarks.detection_kernels")

pytestmark = pytest.mark.checkout

TIMES = {"method", "dtype", "first, ms", "median, ms", "spread, ms"}
SLOW = ("supernet", "detection")
"""Scripts that compile for minutes even when they are quick; a slow test runs them."""
SCRIPTS = tuple(script for script in refresh.SCRIPTS if script not in SLOW)
WITHOUT_TORCH = ("conv", "resnet", "tabular_folds", "detection_kernels", "data_loading")
"""Here they run without it everywhere, as they have to where there is none; a slow test runs them with it."""
CHEAPER = {"resnet": ("--no-costs",)}
"""Compile time and memory of a deep network are no matter of seconds."""


def run_quickly(script: str, out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--out", str(out), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str], out: Path) -> tuple[str, dict[str, Any]]:
    """What a script printed, and what it wrote."""
    printed, complaints = process.communicate()
    assert process.returncode == 0, printed[-2000:] + complaints[-2000:]
    return printed, json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory) -> dict[str, tuple[str, dict[str, Any]]]:
    """What each script prints with --quick, and what it writes; all at once, in the default world of a user."""
    folder = tmp_path_factory.mktemp("benchmarks")
    outs = {script: folder / f"{script}.json" for script in SCRIPTS}
    running = {
        script: run_quickly(script, out, *(["--no-torch"] if script in WITHOUT_TORCH else []), *CHEAPER.get(script, ()))
        for script, out in outs.items()
    }
    return {script: outcome(process, outs[script]) for script, process in running.items()}


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
        ("tabular_folds", "Folds x seeds", {"method"}),
        ("box_evaluation", "COCO's average precision", {"images x detections", "vs pycocotools"}),
        ("box_evaluation", "Resampled", {"images x detections", "ms a resample"}),
    ],
)
def test_tables_have_their_columns(quick_runs, script, title, columns):
    printed, run = quick_runs[script]
    for row in rows(run, title):
        assert columns | TIMES <= row.keys()
        assert row["first, ms"] >= 0
        assert row["median, ms"] > 0
        assert row["method"] in printed


CONV_COLUMNS = {"case", "pass", "lax, ms", "time / lax", "MiB", "lax MiB"}


@pytest.mark.parametrize(
    ("script", "title", "columns", "cases"),
    [
        ("conv", "ResNet-50", CONV_COLUMNS, 1),
        ("conv", "MobileNetV3", CONV_COLUMNS, 1),
        ("conv", "2-D convolution to few outputs", CONV_COLUMNS, 1),
        ("conv", "3-D and transposed convolution", CONV_COLUMNS, 2),
        ("conv", "3-D convolution, depthwise", CONV_COLUMNS, 1),
        ("conv", "Pooling", CONV_COLUMNS, 2),
        ("detection_kernels", "RoIAlign", {"case", "pass", "map_coordinates, ms", "time / map_coordinates", "MiB"}, 1),
    ],
)
def test_both_passes_are_timed_and_pytorch_is_left_blank(quick_runs, script, title, columns, cases):
    found = rows(quick_runs[script][1], title)
    assert [row["pass"] for row in found] == ["forward", "forward + backward"] * cases
    for row in found:
        assert columns | {"first, ms", "fusion_jax, ms"} <= row.keys()
        assert all(row[column] > 0 for column in columns - {"case", "pass"})
        assert row["first, ms"] > 0
        assert row["PyTorch, ms"] is row["time / PyTorch"] is row["PyTorch MiB"] is None


def test_boxes_are_suppressed(quick_runs):
    [row] = rows(quick_runs["detection_kernels"][1], "Non-maximum suppression")
    assert row["boxes kept"] > 1
    assert row["time / NumPy"] == pytest.approx(row["fusion_jax, ms"] / row["NumPy, ms"])


def test_outputs_and_all_gradients_are_compared(quick_runs):
    run = quick_runs["conv"][1]
    compared = [agreement["what"] for agreement in run["agreements"]]
    families = len(run["tables"])
    assert families >= 6
    assert len([what for what in compared if "values, vs lax" in what]) == families
    assert len([what for what in compared if "gradients, vs lax" in what]) == families


def test_loading_is_measured_from_everywhere_and_memory_in_a_fresh_process(quick_runs):
    run = quick_runs["data_loading"][1]
    found = rows(run, "Reading an epoch")
    assert [row["from"] for row in found] == ["in memory", "PNG folder", "array_record"]
    assert all(0 < row["slowest"] <= row["cases/s"] <= row["fastest"] for row in found)
    [used] = rows(run, "One cohort in a fresh process")
    assert used["cases"] == 200
    assert 0.1 < used["peak GiB"] < 4


def test_the_bootstrap_is_timed_beside_its_peers_and_its_memory_in_a_fresh_process(quick_runs):
    run = quick_runs["bootstrap"][1]
    methods = {row["method"]: row for row in rows(run, "Interval of an AUC")}
    assert set(methods) >= {"fusion_jax", "NumPy, same algorithm", "scikit-learn loop"}
    assert all(row["median, ms"] > 0 for row in methods.values())
    [used] = rows(run, "All metrics of two models")
    assert 0 < used["GiB before"] < used["GiB at the peak"] < 1


def test_cases_have_names_of_their_own_and_count_for_aims_that_exist():
    for cases in (conv.CASES, conv.QUICK_CASES):
        assert len({case.name for case in cases}) == len(cases)
    assert {case.aim for case in conv.CASES} - {""} == {aim for _, aim, _, _ in (*conv.AIMS, *conv.SUMMED_AIMS)}


def bench_of(seconds: dict[str, tuple[float, float]]) -> Any:
    """A bench that has measured these cases, forward + backward."""
    bench = conv.Bench(None, rounds=1, limit=1.0, backend="cpu")
    bench.seconds = {(name, conv.BACKWARD): pair for name, pair in seconds.items()}
    return bench


def test_an_aim_is_judged_by_its_worst_case_or_its_sum_once_all_cases_were_measured():
    def verdict(aim, times):
        cases = [case for case in conv.CASES if case.aim == aim]
        bench = bench_of({case.name: pair for case, pair in zip(cases, times, strict=False)})
        [found] = [found for found in bench.aims(cases) if conv.BACKWARD in found.aim]
        return found.measured, found.holds

    assert verdict("dilated", [(1.4, 1.0), (3.0, 2.0)]) == ("1.4, 1.5", True)
    assert verdict("dilated", [(1.6, 1.0), (3.0, 2.0)]) == ("1.6, 1.5", False)
    assert verdict("dilated", [(1.4, 1.0)]) == ("1.4", None)
    assert verdict("mobile", [(9.0, 1.0), *[(1.0, 1.0)] * 4]) == ("2.6", False)
    assert verdict("mobile", [(8.0, 1.0), *[(1.0, 1.0)] * 4]) == ("2.4", True)


def test_the_worst_difference_of_a_family_is_kept_and_nan_is_the_worst():
    bench = bench_of({})
    first, second, third = conv.QUICK_CASES[0], *[conv.QUICK_CASES[0]._replace(name=name) for name in ("b", "c")]
    key = first.family, "values", "lax"
    bench._agree(first, "lax", [np.ones(2)], [np.ones(2)])
    bench._agree(second, "lax", [np.ones(2)], [np.full(2, 2.0)])
    bench._agree(third, "lax", [np.ones(2)], [np.ones(2)])
    assert bench.worst == {key: (0.5, "b")}
    bench._agree(third, "lax", [np.full(2, np.nan)], [np.ones(2)])
    bench._agree(first, "lax", [np.ones(2)], [np.full(2, 2.0)])
    assert bench.worst[key][1] == "c"
    assert np.isnan(bench.worst[key][0])


def test_an_unknown_case_names_those_there_are():
    with pytest.raises(SystemExit, match=r"no case holds 'septic'(.|\n)*separable 3x3x3 16"):
        conv.main(["--only", "septic", "--no-torch"])


def test_the_numpy_peer_suppresses_what_overlaps_more_than_the_threshold():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [20, 20, 25, 25]]], np.float32)
    scores = np.array([[0.5, 0.9, 0.8, 0.1]], np.float32)
    assert detection_kernels.numpy_nms(boxes, scores, 3).tolist() == [[1, 3, -1]]
    assert detection_kernels.numpy_nms(boxes, scores, 1).tolist() == [[1]]


@pytest.mark.slow
@pytest.mark.skipif(not torch_peer.PYTHON.exists(), reason="no .venv-peers with PyTorch; `make peers` sets it up")
@pytest.mark.parametrize(("script", "peers"), [("conv", 12), ("detection_kernels", 4)])
def test_pytorch_agrees_in_both_passes(script, peers, tmp_path):
    _, run = outcome(run_quickly(script, tmp_path / "found.json"), tmp_path / "found.json")
    assert run["header"]["peers missing"] == "none"
    assert re.match(r"2\.\d+.*, \d+ threads", run["header"]["PyTorch"])
    with_torch = [agreement for agreement in run["agreements"] if "vs PyTorch" in agreement["what"]]
    assert len(with_torch) == peers
    for agreement in with_torch:
        assert 0 <= agreement["difference"] <= agreement["tolerance"] <= 1e-4, agreement["what"]
    for row in [row for table in run["tables"] for row in table["rows"]]:
        assert row["PyTorch, ms"] > 0
        assert row["time / PyTorch"] == pytest.approx(row["fusion_jax, ms"] / row["PyTorch, ms"])
        assert row["PyTorch MiB"] >= 0


@pytest.mark.slow
def test_a_bilevel_step_is_that_of_pytorch(tmp_path):
    _, run = outcome(run_quickly("supernet", tmp_path / "found.json", "--no-costs"), tmp_path / "found.json")
    with_torch = [agreement for agreement in run["agreements"] if "PyTorch" in agreement["what"]]
    assert bool(with_torch) == torch_peer.PYTHON.exists()
    for agreement in run["agreements"]:
        assert 0 <= agreement["difference"] <= agreement["tolerance"] <= 5e-3, agreement["what"]


@pytest.mark.slow
@pytest.mark.skipif(not torch_peer.PYTHON.exists(), reason="no .venv-peers with PyTorch; `make peers` sets it up")
def test_the_server_tells_what_it_cannot_do_and_goes_on():
    peer, missing = torch_peer.find_torch()
    assert missing == []
    try:
        with pytest.raises(RuntimeError, match=r"could not do .*KeyError"):
            peer.ask(do="time", case=99, repeats=1)
        values = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
        options = {"layout": "contiguous", "window": [2, 2], "stride": 2, "padding": 0, "count_include_pad": True}
        with peer.case("max_pool", {"x": values}, **options) as case:
            [pooled] = case.result()
            assert case.seconds(2) > 0
        np.testing.assert_array_equal(pooled[0, :, :, 0], [[5, 7], [13, 15]])
    finally:
        peer.close()


def test_a_missing_pytorch_is_named(tmp_path):
    peer, [reason] = torch_peer.find_torch(python=tmp_path / ".venv-peers" / "bin" / "python")
    assert peer is None
    assert reason == "PyTorch (no .venv-peers; `make peers` sets it up)"


def test_a_server_that_does_not_start_is_named():
    # This environment has no PyTorch, so the server ends at its import.
    peer, [reason] = torch_peer.find_torch(python=Path(sys.executable))
    assert peer is None
    assert "ended with exit code 1" in reason


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_names_versions_load_and_missing_peers(quick_runs, script):
    header = quick_runs[script][1]["header"]
    assert re.search(r"jax \d+\.\d+.*numpy \d.*scipy \d.*KDEpy \d", header["versions"])
    assert re.search(r"\d+ CPU cores", header["machine"])
    assert header["load average"].endswith("at the end")
    missing = header["peers missing"]
    if script == "bootstrap":  # R is on few machines
        assert missing == "none" or missing.startswith("pROC (")
    else:
        assert missing == ("PyTorch (left out by --no-torch)" if script in WITHOUT_TORCH else "none")


@pytest.mark.parametrize("script", SCRIPTS)
def test_versions_agree(quick_runs, script):
    agreements = quick_runs[script][1]["agreements"]
    few = {"data_loading": 2, "bootstrap": 2, "box_evaluation": 2, "resnet": 1}  # the last without PyTorch
    assert len(agreements) >= few.get(script, 4)
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


def test_a_contender_with_a_clock_times_itself_and_is_asked_for_its_result_once():
    calls = []
    elsewhere = timing.Contender(
        "elsewhere", "-", lambda: calls.append("result") or 7, clock=lambda n: calls.append(n) or 0.002 * n
    )
    found = timing.race([elsewhere], rounds=2)["elsewhere"]
    assert calls == [1, 1, "result", 3, 3]  # three calls fill a round of 5 ms
    assert found == pytest.approx((0.002, 0.002, 0.002, 0.002, 7))


def test_slow_contenders_are_not_called_after_their_warm_up():
    calls = []

    def contender(name, seconds):
        return timing.Contender(name, "-", lambda: None, clock=lambda n: calls.append(name) or seconds * n)

    timings = timing.race([contender("quick", 0.1), contender("slow", 3.0)], rounds=3, once=1.0)
    assert calls == ["quick", "quick", "slow", "slow", "quick", "quick", "quick"]
    assert timings["slow"].median == 3.0


def test_a_pause_comes_before_every_contender_and_is_not_timed(monkeypatch):
    pauses = []
    monkeypatch.setattr(timing.time, "sleep", pauses.append)
    timing.race([timing.Contender("a", "-", lambda: sum(range(10**6)))], rounds=3, pause=60.0)
    assert pauses == [60.0] * 5


def test_a_program_returns_values_and_gradients_and_knows_its_memory():
    x, scale, cotangent = jnp.arange(3.0), jnp.asarray(2.0), jnp.asarray([1.0, 10.0, 100.0])
    forward = timing.Program(lambda x, scale: scale * x, (x,), constants=(scale,))
    assert forward.peak_bytes() is None
    assert jax.tree.map(np.ndarray.tolist, jax.device_get(forward())) == ([0.0, 2.0, 4.0],)
    assert forward.peak_bytes() >= x.nbytes
    backward = timing.Program(lambda x, scale: scale * x, (x,), cotangent, (scale,))
    assert [result.tolist() for result in backward()] == [[0.0, 2.0, 4.0], [2.0, 20.0, 200.0]]


def test_a_row_of_ratios_leaves_missing_contenders_blank():
    timings = {"ours": timing.Timing(1.0, 0.2, 0.1, 0.3, None), "theirs": timing.Timing(1.0, 0.4, 0.4, 0.5, None)}
    row = timing.ratio_cells(timings, "ours", {"peer": "theirs", "absent": None, "skipped": "skipped"})
    assert row == {
        "first, ms": 1e3,
        "ours, ms": 200.0,
        "ours spread": "100-300",
        "peer, ms": 400.0,
        "peer spread": "400-500",
        "time / peer": 0.5,
        "absent, ms": None,
        "absent spread": "-",
        "time / absent": None,
        "skipped, ms": None,
        "skipped spread": "-",
        "time / skipped": None,
    }


@pytest.mark.parametrize(
    ("busy", "own", "note", "holds"),
    [(30.0, 18.0, "kept 1.2 cores busy on average", None), (20.0, 19.0, "kept 0.1 cores busy on average", False)],
)
def test_aims_are_not_judged_while_other_work_is_in_the_way(monkeypatch, busy, own, note, holds):
    readings = iter([(100.0, 7.0, 5.0), *[(110.0, 7.0 + busy, 5.0 + own)] * 2])
    monkeypatch.setattr(timing, "_spent", lambda: next(readings))
    bystanders = timing.Bystanders()
    assert bystanders.note() == note
    [aim] = bystanders.judge([timing.Aim("aim", "2.5", False)])
    assert aim.holds is holds
    assert aim.measured.startswith("2.5")


def test_where_the_system_does_not_tell_of_other_work_aims_are_judged(monkeypatch):
    monkeypatch.setattr(timing, "_spent", lambda: None)
    bystanders = timing.Bystanders()
    assert bystanders.note() == "not known"
    assert bystanders.judge([timing.Aim("aim", "1", True)]) == [timing.Aim("aim", "1", True)]


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


def test_the_results_page_can_be_refreshed_as_a_whole_or_in_part(monkeypatch, tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text(refresh.RESULTS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(refresh, "RESULTS", page)
    monkeypatch.setattr(refresh, "measure", lambda script, options: f"new tables of {script} with {options[0]}\n")
    original = page.read_text(encoding="utf-8")
    block = refresh.sections(original.partition(refresh.BEGIN)[2].partition(refresh.END)[0])
    refresh.main(["conv", "--quick"])
    text = page.read_text(encoding="utf-8")
    assert text.count("new tables of conv with --quick") == 1
    for name, tables in block.items():
        assert (tables in text) == (name != "conv")
    for _ in range(2):
        refresh.main(["--quick"])
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"new tables of (\w+)", text) == list(refresh.SCRIPTS)
    assert re.findall(r"^## benchmarks\.(\w+)$", text, re.MULTILINE) == list(refresh.SCRIPTS)
    assert text.startswith(original.partition(refresh.BEGIN)[0])
    assert text.endswith(refresh.END + original.partition(refresh.END)[2])
