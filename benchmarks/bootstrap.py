"""How fast is a bootstrap of the AUC, and how much memory does one of many metrics take?

    python -m benchmarks.bootstrap                # every table, about 3 minutes on 2 cores
    python -m benchmarks.bootstrap --quick        # smaller cohorts, two rounds

95 % intervals of an AUC from 5,000 stratified resamples of 4,909 cases, a fifth of them positive: the size of the
published test set of breast MRI. Everybody starts from labels and scores and ends with the interval, so that sorting
counts. scikit-learn has no bootstrap; its peer is the loop that its users write, run for a part of the resamples and
extrapolated. pROC runs in R and times itself; it is compared in processor time, where a second core is no advantage.

Memory is that of a fresh process which computes all metrics of two models for 100,000 cases from the same draws.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Results,
    Row,
    Table,
    describe_run,
    find_peers,
    finish,
    parser,
    race,
    relative_difference,
    timing_cells,
    tune,
)
from fusion_jax.evaluation.ranked import (
    ClassificationData,
    Ranked,
    classification_statistics,
    exact_ratio,
    make_ranked,
    row_losses,
    weighted_auc,
)
from fusion_jax.evaluation.resampling import bootstrap, draw_weights, make_design, percentile_interval

Array = np.ndarray

RESAMPLES = 5_000
CASES, QUICK_CASES = 4_909, 2_000
LARGE_CASES, QUICK_LARGE_CASES = 100_000, 5_000
LOOP, QUICK_LOOP = 250, 50  # resamples that scikit-learn is timed for
CHUNK = 250  # resamples that NumPy works on together
CHECKED = 20  # resamples whose AUC is compared with scikit-learn's
LARGEST_GIB = 1.0
PROC = Path(__file__).with_name("bootstrap_proc.R")
TAILS = (0.025, 0.975)
# Both ends are resampled: their standard error is 0.0005 at 4,909 cases, 0.0008 at 2,000.
INTERVAL_TOLERANCE = 4e-3


def cohort(cases: int) -> tuple[Array, Array]:
    """Labels, a fifth of them 1, and binormal scores."""
    labels = (np.arange(cases) < cases // 5).astype(int)
    return labels, np.random.default_rng(cases).normal(size=cases) + 0.9 * labels


# Contenders: from labels and scores to the interval.


def ours(labels: Array, scores: Array) -> Array:
    draws = bootstrap(weighted_auc, make_ranked(labels, scores), make_design(labels), resamples=RESAMPLES)
    interval = percentile_interval(draws)
    return np.array([interval.low, interval.high])


def numpy_twin(labels: Array, scores: Array) -> Array:
    """The same algorithm: sorted once, counts of draws, running sums, ties half."""
    rng = np.random.default_rng(0)
    positives, negatives = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    low, high = np.searchsorted(negatives, positives, "left"), np.searchsorted(negatives, positives, "right")
    p, q = positives.size, negatives.size
    found = []
    for start in range(0, RESAMPLES, CHUNK):
        rows = min(CHUNK, RESAMPLES - start)
        offsets = np.arange(rows)[:, None]
        drawn = rng.integers(0, q, (rows, q), dtype=np.int32) + offsets * q
        below = np.zeros((rows, q + 1))
        np.cumsum(np.bincount(drawn.ravel(), minlength=rows * q).reshape(rows, q), axis=1, out=below[:, 1:])
        wins = below[:, low] + below[:, high]
        chosen = rng.integers(0, p, (rows, p), dtype=np.int32)
        found.append(np.take_along_axis(wins, chosen, axis=1).sum(axis=1) / (2 * p * q))
    return np.quantile(np.concatenate(found), TAILS)


def sklearn_loop(metrics: Any, labels: Array, scores: Array, resamples: int) -> Array:
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(labels == label) for label in (0, 1)]
    found = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(group, group.size) for group in groups])
        found.append(metrics.roc_auc_score(labels[rows], scores[rows]))
    return np.quantile(found, TAILS)


class ProcRun(NamedTuple):
    """What pROC found, and the seconds that it took."""

    version: str
    interval: Array
    processor: float
    clock: float


def run_proc(labels: Array, scores: Array) -> ProcRun:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "scores.csv"
        np.savetxt(table, np.column_stack([labels, scores]), "%.17g", ",", header="label,score", comments="")
        done = subprocess.run(
            ["Rscript", str(PROC), str(table), str(RESAMPLES)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message")
    version, *numbers = done.stdout.split()
    low, high, processor, clock = map(float, numbers)
    return ProcRun(version, np.array([low, high]), processor, clock)


def try_proc(labels: Array, scores: Array) -> tuple[ProcRun | None, list[str]]:
    """What pROC found, or the reason why it did not run."""
    if shutil.which("Rscript") is None:
        return None, ["pROC (no Rscript)"]
    try:
        return run_proc(labels, scores), []
    except RuntimeError as error:
        return None, [f"pROC ({error})"]


def processor_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median processor time over all threads of this process."""
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


# Memory, in a process of its own.


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss survives exec on Linux: a child would report the memory of its parent.
        [peak] = [line.split()[1] for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:")]
        return int(peak) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def all_metrics(cases: int) -> None:
    """Computes what a report needs of two models, and prints seconds and GiB: before, and at the peak."""
    labels, first = cohort(cases)
    scores = np.stack([first, first + np.random.default_rng(0).normal(size=cases)])
    probabilities = 1 / (1 + np.exp(-scores))
    data = ClassificationData(
        ranked=make_ranked(labels, scores),
        positive=labels,
        sensitivities=exact_ratio(0.95)[None],
        specificities=exact_ratio(0.95)[None],
        decisions={"0.5": probabilities >= 0.5},
        losses=row_losses(labels, probabilities),
    )
    before, start = peak_gib(), time.perf_counter()
    draws = bootstrap(classification_statistics, data, make_design(labels), resamples=RESAMPLES)
    seconds = time.perf_counter() - start
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(draws)):
        raise RuntimeError("a metric of a resample is not finite.")
    print(seconds, before, peak_gib())


def measure_memory(cases: int) -> Row:
    child = f"from benchmarks.bootstrap import all_metrics; all_metrics({cases})"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    seconds, before, peak = map(float, done.stdout.split())
    return {
        "cases": cases,
        "models": 2,
        "resamples": RESAMPLES,
        "seconds": seconds,
        "GiB before": before,
        "GiB at the peak": peak,
    }


# Tables.


def main(arguments: list[str] | None = None) -> int:
    chosen = parser(__doc__).parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    bystanders = Bystanders()
    rounds = 2 if chosen.quick else chosen.rounds
    labels, scores = cohort(QUICK_CASES if chosen.quick else CASES)
    looped = QUICK_LOOP if chosen.quick else LOOP
    peers, missing = find_peers("sklearn.metrics")
    proc, reasons = try_proc(labels, scores)
    header = describe_run([*missing, *reasons], rounds) | {"settings": settings}
    if proc is not None:
        header["R"] = f"pROC {proc.version}"

    contenders = [
        Contender("fusion_jax", "float32, counts int32", lambda: ours(labels, scores)),
        Contender("NumPy, same algorithm", "float64", lambda: numpy_twin(labels, scores)),
    ]
    factor = RESAMPLES / looped
    if "sklearn.metrics" in peers:
        metrics = peers["sklearn.metrics"]
        contenders.append(
            Contender("scikit-learn loop", "float64", lambda: sklearn_loop(metrics, labels, scores, looped))
        )
    timings = race(contenders, rounds)
    seconds = {one.name: processor_seconds(one.call, rounds) for one in contenders}
    if "scikit-learn loop" in timings:
        timings["scikit-learn loop"] = timings["scikit-learn loop"].scaled(factor)
        seconds["scikit-learn loop"] *= factor
    against = ("NumPy, same algorithm", "scikit-learn loop")
    rows: list[Row] = []
    for contender in contenders:
        row: Row = {"n": labels.size} | timing_cells(contender, timings, against)
        rows.append(row | _processor_cells(seconds[contender.name], proc))
    if proc is not None:
        row = {"n": labels.size, "method": "pROC ci.auc", "dtype": "float64", "median, ms": 1e3 * proc.clock}
        rows.append(row | _processor_cells(proc.processor, proc))

    memory = measure_memory(QUICK_LARGE_CASES if chosen.quick else LARGE_CASES)
    agreements = _agreements(labels, scores, timings, proc, peers)
    notes = (
        "vs X: how many times faster than X on the clock; CPU vs pROC: how many times less processor time than pROC.",
        f"scikit-learn loop: {looped} resamples, times {factor:g}. pROC: once, timed in R without reading the file.",
        "first, ms of fusion_jax includes compilation.",
    )
    title = f"Interval of an AUC, {RESAMPLES:,} stratified resamples"
    memory_note = (
        "A fresh process: AUC, average precision, specificity at a sensitivity and its mirror, seven rates, losses."
    )
    tables = [
        Table(title, rows, notes),
        Table("All metrics of two models from the same draws", [memory], (memory_note,)),
    ]
    aims = bystanders.judge(_aims(rows[0], chosen.quick))
    aims.append(_memory_aim(memory, chosen.quick))
    header["other work"] = bystanders.note()
    return finish(Results(header, tables, aims, agreements), chosen.out)


def _processor_cells(seconds: float, proc: ProcRun | None) -> Row:
    return {"CPU, ms": 1e3 * seconds, "CPU vs pROC": None if proc is None else proc.processor / seconds}


def _agreements(labels: Array, scores: Array, timings: Any, proc: ProcRun | None, peers: Any) -> list[Agreement]:
    found = timings["fusion_jax"].result
    intervals = {"NumPy, same algorithm": timings["NumPy, same algorithm"].result}
    if proc is not None:
        intervals["pROC ci.auc"] = proc.interval
    agreements = [
        Agreement(f"interval, fusion_jax vs {peer}", relative_difference(found, interval), INTERVAL_TOLERANCE)
        for peer, interval in intervals.items()
    ]
    if "sklearn.metrics" in peers:
        ranked: Ranked = make_ranked(labels, scores)
        design = make_design(labels)
        draws = bootstrap(weighted_auc, ranked, design, resamples=CHECKED)
        weights = [draw_weights(design, resample) for resample in range(CHECKED)]
        theirs = [peers["sklearn.metrics"].roc_auc_score(labels, scores, sample_weight=w) for w in weights]
        difference = relative_difference(draws, theirs)
        agreements.append(Agreement("AUC of the same resamples, fusion_jax vs scikit-learn", difference, 3e-7))
    return agreements


def _aims(row: Row, quick: bool) -> list[Aim]:
    wanted = (
        ("at least 75 times faster than a scikit-learn loop", "vs scikit-learn loop", 75),
        ("at least 30 times less processor time than pROC", "CPU vs pROC", 30),
        ("at least 1.5 times faster than NumPy with the same algorithm", "vs NumPy, same algorithm", 1.5),
    )
    aims = []
    for text, column, least in wanted:
        ratio = row.get(column)
        judged = None if quick or not isinstance(ratio, float) else ratio >= least
        aims.append(Aim(text, "-" if ratio is None else f"{ratio:.3g}", judged))
    return aims


def _memory_aim(memory: Row, quick: bool) -> Aim:
    peak = memory["GiB at the peak"]
    holds = None if quick or not isinstance(peak, float) else peak < LARGEST_GIB
    return Aim(f"less than {LARGEST_GIB:g} GiB for all metrics at {LARGE_CASES:,} cases", f"{peak:.2f} GiB", holds)


if __name__ == "__main__":
    sys.exit(main())
