"""Timing of contenders side by side, and plain-text tables of it: what the benchmark scripts share.

A ratio between contenders of one run is the result; a time is not. Contenders are called in turn (A B C A B C ...)
in one process, so that whatever else the machine does disturbs all of them. The first call, which compiles, is timed
apart and a warm-up is discarded.
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

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "KDEpy")
SHORTEST_ROUND = 0.005  # seconds; shorter calls are repeated within a round, or the clock is what is measured
QUIET_LOAD = 1.5

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
    """

    name: str
    dtype: str
    call: Callable[[], Any]
    power: int = 1
    largest: float = math.inf


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


def race(contenders: Iterable[Contender], rounds: int) -> dict[str, Timing]:
    """Times all contenders in turn, `rounds` times over."""
    entered = list(contenders)
    firsts, results, repeats = {}, {}, {}
    for contender in entered:
        firsts[contender.name], results[contender.name] = _timed(contender.call, 1)
        warm, _ = _timed(contender.call, 1)
        repeats[contender.name] = max(1, math.ceil(SHORTEST_ROUND / max(warm, 1e-6)))
    seconds: dict[str, list[float]] = {contender.name: [] for contender in entered}
    for _ in range(rounds):
        for contender in entered:
            seconds[contender.name].append(_timed(contender.call, repeats[contender.name])[0])
    return {
        name: Timing(firsts[name], statistics.median(spent), min(spent), max(spent), results[name])
        for name, spent in seconds.items()
    }


def _timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    result = None
    start = time.perf_counter()
    for _ in range(repeats):
        # JAX returns before the work is done.
        result = jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats, result


class Patience:
    """Leaves out contenders that would take longer than `limit` seconds a call, judged by the size before."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seen: dict[str, tuple[float, float]] = {}

    def race(self, contenders: Iterable[Contender], size: float, rounds: int) -> dict[str, Timing]:
        """`race` among those that are quick enough for a problem of this size."""
        entered = [c for c in contenders if size <= c.largest and self._expected(c, size) <= self.limit]
        timings = race(entered, rounds)
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
    return options


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
