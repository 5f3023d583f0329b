"""Timing of contenders side by side, and plain-text tables of it: what the benchmark scripts share.

A ratio between contenders of one run is the result; a time is not. Contenders are called in turn (A B C A B C ...),
so that whatever else the machine does disturbs all of them. The first call, which compiles, is timed apart and a
warm-up is discarded. A contender that lives in another process times itself there.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax.cpu import tune_cpu

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "KDEpy")
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**63 - 1),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
}
"""For processes that start: what `fusion_jax.tune_cpu` does to the memory of one that runs."""

SHORTEST_ROUND = 0.005  # seconds; shorter calls are repeated within a round, or the clock is what is measured
QUIET_LOAD = 1.5
QUIET_CORES = 0.3
"""Cores that other work may keep busy for a ratio between processes to be judged: threads that wait for one another,
as PyTorch's do, lose more than their share (a 3-D convolution took 6 times as long at a load of 4 on 2 cores)."""

Cell = str | int | float | None
Row = dict[str, Cell]


class Contender(NamedTuple):
    """One way of doing the work.

    Attributes:
      name: as it appears in the table.
      dtype: what it computes in.
      call: does the work once and returns the result.
      power: its time grows with this power of the problem size.
      largest: largest problem size that it is given, usually for its memory.
      clock: does the work that many times and returns the seconds it took, where `call` is no measure of the work
        because another process does it; `call` then only fetches the result.
    """

    name: str
    dtype: str
    call: Callable[[], Any]
    power: int = 1
    largest: float = math.inf
    clock: Callable[[int], float] | None = None


class Timing(NamedTuple):
    """Seconds of one contender: its first call, and median, fastest and slowest of the rounds; and its result."""

    first: float
    median: float
    fastest: float
    slowest: float
    result: Any

    def scaled(self, factor: float) -> "Timing":
        """The same timing of `factor` times the work, where only a part was run."""
        first, median, fastest, slowest = (factor * seconds for seconds in self[:4])
        return Timing(first, median, fastest, slowest, self.result)


class Program:
    """A jitted function of `inputs` and `constants`, compiled at its first call; it returns a tuple.

    With a `cotangent` the tuple goes on with the gradients of `inputs`. Everything is an argument, so that nothing is
    folded, and the result is returned too, so that XLA keeps the forward pass of a linear function.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any], cotangent: Any = None, constants: Sequence[Any] = ()
    ) -> None:
        def forward(inputs: Sequence[Any], constants: Sequence[Any], _: None) -> tuple[Any, ...]:
            return (function(*inputs, *constants),)

        def backward(inputs: Sequence[Any], constants: Sequence[Any], cotangent: Any) -> tuple[Any, ...]:
            result, pull = jax.vjp(lambda *inputs: function(*inputs, *constants), *inputs)
            return (result, *pull(cotangent))

        self._jitted = jax.jit(forward if cotangent is None else backward)
        self._arguments = tuple(inputs), tuple(constants), cotangent
        self._compiled: Any = None

    def __call__(self) -> tuple[Any, ...]:
        if self._compiled is None:
            self._compiled = self._jitted.lower(*self._arguments).compile()
        return self._compiled(*self._arguments)

    def peak_bytes(self) -> int | None:
        """Outputs and temporary arrays, as the compiler planned them; None where it does not tell."""
        analysis = None if self._compiled is None else self._compiled.memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes


class Table(NamedTuple):
    """Rows under one title; `notes` say what a reader of the numbers has to know."""

    title: str
    rows: list[Row]
    notes: tuple[str, ...] = ()


class Aim(NamedTuple):
    """What was aimed at, what was measured, and whether it holds; `holds` is None where nothing was measured."""

    aim: str
    measured: str
    holds: bool | None


class Agreement(NamedTuple):
    """Largest difference between two versions of one result, relative to its largest value, and what is allowed."""

    what: str
    difference: float
    tolerance: float


class Results(NamedTuple):
    """Everything that one script found out."""

    header: dict[str, Cell]
    tables: list[Table]
    aims: list[Aim]
    agreements: list[Agreement]


# Racing.


def race(
    contenders: Iterable[Contender], rounds: int, *, pause: float = 0.0, once: float = math.inf
) -> dict[str, Timing]:
    """Times all contenders in turn, `rounds` times over.

    `pause` seconds pass before each, so that threads which another left spinning are asleep. A contender whose warm-up
    takes longer than `once` seconds is not called again: its warm-up is its timing.
    """
    entered = list(contenders)
    firsts, results, repeats = {}, {}, {}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in entered}
    for contender in entered:
        firsts[contender.name], results[contender.name] = _timed(contender, 1, pause)
        warm, _ = _timed(contender, 1, pause)
        repeats[contender.name] = max(1, math.ceil(SHORTEST_ROUND / max(warm, 1e-6)))
        if warm > once:
            seconds[contender.name].append(warm)
        if contender.clock is not None:
            results[contender.name] = contender.call()
    raced = [contender for contender in entered if not seconds[contender.name]]
    for _ in range(rounds):
        for contender in raced:
            seconds[contender.name].append(_timed(contender, repeats[contender.name], pause)[0])
    return {
        name: Timing(firsts[name], statistics.median(spent), min(spent), max(spent), results[name])
        for name, spent in seconds.items()
    }


def _timed(contender: Contender, repeats: int, pause: float) -> tuple[float, Any]:
    if pause:
        time.sleep(pause)
    if contender.clock is not None:
        return contender.clock(repeats) / repeats, None
    result = None
    start = time.perf_counter()
    for _ in range(repeats):
        # JAX returns before the work is done.
        result = jax.block_until_ready(contender.call())
    return (time.perf_counter() - start) / repeats, result


class Patience:
    """Leaves out contenders that would take longer than `limit` seconds a call, judged by the size before."""

    def __init__(self, limit: float, *, pause: float = 0.0, once: float = math.inf) -> None:
        self.limit, self.pause, self.once = limit, pause, once
        self.seen: dict[str, tuple[float, float]] = {}

    def race(self, contenders: Iterable[Contender], size: float, rounds: int) -> dict[str, Timing]:
        """`race` among those that are quick enough for a problem of this size."""
        entered = [c for c in contenders if size <= c.largest and self._expected(c, size) <= self.limit]
        timings = race(entered, rounds, pause=self.pause, once=self.once)
        self.seen.update({name: (size, timing.median) for name, timing in timings.items()})
        return timings

    def _expected(self, contender: Contender, size: float) -> float:
        smaller, seconds = self.seen.get(contender.name, (size, 0.0))
        return seconds * (size / smaller) ** contender.power


def relative_difference(actual: Any, reference: Any, scale: float | None = None) -> float:
    """Largest difference over `scale`, or over the largest value of the reference."""
    actual, reference = np.asarray(actual, float), np.asarray(reference, float)
    if actual.shape != reference.shape:
        raise ValueError(f"results of shapes {actual.shape} and {reference.shape} cannot be compared.")
    return float(np.abs(actual - reference).max() / (np.abs(reference).max() if scale is None else scale))


# Tables.


def timing_cells(contender: Contender, timings: Mapping[str, Timing], against: Sequence[str]) -> Row:
    """The cells of one contender: its times, and how many times faster than each of the peers `against` it is."""
    row: Row = {"method": contender.name, "dtype": contender.dtype}
    timing = timings.get(contender.name)
    if timing is None:
        return row | dict.fromkeys(("first, ms", "median, ms", "spread, ms", *(f"vs {peer}" for peer in against)))
    row["first, ms"] = 1e3 * timing.first
    row["median, ms"] = 1e3 * timing.median
    row["spread, ms"] = f"{_text(1e3 * timing.fastest)}-{_text(1e3 * timing.slowest)}"
    for peer in against:
        row[f"vs {peer}"] = timings[peer].median / timing.median if peer in timings else None
    return row


def ratio_cells(timings: Mapping[str, Timing], ours: str, others: Mapping[str, str | None]) -> Row:
    """The cells of a row that holds all contenders: their times, and the time of `ours` over that of the others.

    Args:
      timings: by contender.
      ours: the contender that the row is about.
      others: contenders by the name that they have in the table; None, or one that did not run, leaves "-".
    """

    def times(label: str, name: str | None) -> Row:
        timing = None if name is None else timings.get(name)
        if timing is None:
            return {f"{label}, ms": None, f"{label} spread": "-"}
        spread = f"{_text(1e3 * timing.fastest)}-{_text(1e3 * timing.slowest)}"
        return {f"{label}, ms": 1e3 * timing.median, f"{label} spread": spread}

    row: Row = {"first, ms": 1e3 * timings[ours].first if ours in timings else None} | times(ours, ours)
    for label, name in others.items():
        row |= times(label, name)
    for label, name in others.items():
        both = (None, None) if name is None else (timings.get(ours), timings.get(name))
        row[f"time / {label}"] = both[0].median / both[1].median if both[0] and both[1] else None
    return row


def render(table: Table) -> str:
    """The table as aligned text, which is Markdown too."""
    columns = list(dict.fromkeys(column for row in table.rows for column in row))
    cells = [columns, *([_text(row.get(column)) for column in columns] for row in table.rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(not isinstance(row.get(c), str) for row in table.rows) for c in columns]

    def line(texts: Sequence[str]) -> str:
        padded = (t.rjust(w) if n else t.ljust(w) for t, w, n in zip(texts, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    text = [f"### {table.title}", "", line(cells[0]), line(rule), *map(line, cells[1:])]
    return "\n".join([*text, "", *(f"- {note}" for note in table.notes)]).rstrip() + "\n"


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 0.01 <= abs(value) < 1e7:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def render_results(results: Results) -> str:
    """Header, tables, aims and agreements as text."""
    parts = ["\n".join(f"- {name}: {_text(value)}" for name, value in results.header.items()) + "\n"]
    parts += [render(table) for table in results.tables]
    verdicts = {True: "holds", False: "missed", None: "not measured in this run"}
    if results.aims:
        aims: list[Row] = [{"aim": a.aim, "measured": a.measured, "verdict": verdicts[a.holds]} for a in results.aims]
        parts.append(render(Table("Aims", aims)))
    if results.agreements:
        same: list[Row] = [
            {"result": a.what, "largest difference": a.difference, "allowed": a.tolerance} for a in results.agreements
        ]
        note = "Largest difference between the versions over the largest value of the result."
        parts.append(render(Table("Agreement of the versions", same, (note,))))
    return "\n".join(parts)


# Command line, header, files.


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7, help="rounds of interleaved calls (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="smallest sizes, two rounds: checks the numbers only")
    options.add_argument("--out", type=Path, help="write the results to this JSON file")
    options.add_argument("--untuned", action="store_true", help="leave memory and XLA as they are by default")
    return options


def tune(options: argparse.Namespace) -> str:
    """Makes this process, and those it starts, ready for the cores it has, unless told not to; what was done, in words.

    Whoever starts another process gives it the same memory settings through its environment: peers are tuned alike.
    """
    if options.untuned:
        return "none (--untuned)"
    os.environ.update(KEEP_FREED_MEMORY)
    made = [setting for setting, done in tune_cpu().items() if done]
    return f"fusion_jax.tune_cpu ({', '.join(made) or 'nothing applies'}); the same memory setting for every peer"


def find_peers(*modules: str) -> tuple[dict[str, Any], list[str]]:
    """The modules that can be imported, by name, and those that cannot, with the reason."""
    found, missing = {}, []
    for name in modules:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return found, missing


def describe_run(missing: Sequence[str], rounds: int) -> dict[str, Cell]:
    """What a reader has to know about the machine and the versions."""
    load = os.getloadavg()[0]
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return {
        "versions": ", ".join(versions),
        "machine": f"{os.cpu_count()} CPU cores{_vector_unit()}; JAX on {jax.default_backend()}",
        "load average": f"{load:.1f} at the start ({'quiet' if load < QUIET_LOAD else 'other work was running'})",
        "rounds": f"{rounds}, interleaved; the first call and a warm-up are excluded",
        "peers missing": "; ".join(missing) or "none",
    }


class Bystanders:
    """How many cores work other than ours, children included, keeps busy."""

    def __init__(self) -> None:
        self._start = _spent()

    def cores(self) -> float | None:
        """On average since this was made; None where the system does not tell. Children count once they have ended."""
        end = _spent()
        if self._start is None or end is None:
            return None
        elapsed, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        return max(0.0, busy - own) / elapsed

    def note(self) -> str:
        cores = self.cores()
        return "not known" if cores is None else f"kept {cores:.1f} cores busy on average"

    def judge(self, aims: Iterable[Aim]) -> list[Aim]:
        """The aims, without a verdict where other work was in the way."""
        cores = self.cores()
        if cores is None or cores <= QUIET_CORES:
            return list(aims)
        return [aim._replace(measured=f"{aim.measured}; not judged: machine busy", holds=None) for aim in aims]


def _spent() -> tuple[float, float, float] | None:
    """Seconds: of the clock, of all cores at work, and of ours."""
    statistics_of_cores = Path("/proc/stat")
    if not statistics_of_cores.exists():
        return None
    user, nice, system, _, _, interrupts, soft, *_ = map(int, statistics_of_cores.read_text("ascii").split()[1:9])
    busy = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, sum(os.times()[:4])


def _vector_unit() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
        if flag in flags:
            return f", {name}"
    return ""


def finish(results: Results, out: Path | None) -> int:
    """Prints the results, writes them if asked to, and returns the exit code: 1 if two versions disagree."""
    results.header["load average"] = f"{results.header['load average']}, {os.getloadavg()[0]:.1f} at the end"
    print(render_results(results))
    if out is not None:
        out.write_text(json.dumps(_plain(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    disagreeing = [a for a in results.agreements if not a.difference <= a.tolerance]
    for agreement in disagreeing:
        print(f"DISAGREE: {agreement.what}: {agreement.difference:.1e}, allowed {agreement.tolerance:.1e}")
    return 1 if disagreeing else 0


def _plain(results: Results) -> dict[str, Any]:
    return {
        "header": results.header,
        "tables": [table._asdict() for table in results.tables],
        "aims": [aim._asdict() for aim in results.aims],
        "agreements": [agreement._asdict() for agreement in results.agreements],
    }


def read_results(path: Path) -> Results:
    """Results as `finish` wrote them."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Results(
        stored["header"],
        [Table(table["title"], table["rows"], tuple(table["notes"])) for table in stored["tables"]],
        [Aim(**aim) for aim in stored["aims"]],
        [Agreement(**agreement) for agreement in stored["agreements"]],
    )
