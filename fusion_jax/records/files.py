"""Files that are whole or absent, and the record of what produced them.

Every writer fills a temporary file in the target's own folder and moves it into place in one step, so that a reader,
or a run that resumes after a kill, never meets half a file. Parent folders are created.
"""

import csv
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from fusion_jax import __version__

__all__ = ["atomic_path", "read_json_lines", "run_record", "write_bytes", "write_csv", "write_json", "write_text"]

RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "pandas")


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and deleted when it does not.

    For writers that want a path, such as `numpy.savez` or a figure's `savefig`: the temporary name keeps the suffix.

    Example:
      >>> import tempfile
      >>> target = Path(tempfile.mkdtemp()) / "results" / "table.txt"
      >>> with atomic_path(target) as temporary:
      ...     _ = temporary.write_text("whole")
      >>> target.read_text(), len(list(target.parent.iterdir()))
      ('whole', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        # Contents before name: after a power cut the new name must not stand for an empty file.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a file that has one a line, such as the log of a training.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is no JSON; the message names file and line.
    """
    values = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error.msg}).") from error
    return values


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with the line ends it has, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, keys in the order they have.

    NumPy and JAX scalars and arrays become numbers and lists; dataclasses and named tuples become objects.

    Args:
      path: the file, replaced if it exists.
      value: mappings, sequences, numbers, strings, booleans and None, nested at will.

    Raises:
      ValueError: if a number is NaN or infinite, which JSON cannot hold.
      TypeError: if a value or a key has no JSON form.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "gap.json"
      >>> write_json(path, {"gamma": 1.0, "n": 48})
      >>> json.loads(path.read_text())
      {'gamma': 1.0, 'n': 48}
    """
    plain = _to_json(value, f"{path}: value")
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, table: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]) -> None:
    """Write a table to `path` as CSV with a header line.

    Floats are written with `repr` and read back bit for bit; None is an empty cell, NaN is `nan`.

    Args:
      path: the file, replaced if it exists.
      table: columns of one length by name, or rows that all have the same keys.

    Raises:
      ValueError: if columns differ in length, rows differ in keys, or there is nothing to name the columns after.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "curve.csv"
      >>> write_csv(path, {"gamma": [0.1, 1.0], "energy_gap": [0.3, None]})
      >>> path.read_text().splitlines()
      ['gamma,energy_gap', '0.1,0.3', '1.0,']
    """
    names, rows = _table(path, table)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}, column"
        writer.writerow([_cell(value, f"{where} {name!r}") for name, value in zip(names, row, strict=True)])
    write_text(path, text.getvalue())


def run_record() -> dict[str, Any]:
    """What produced a result: time in UTC, versions, git revision and machine, ready for `write_json`.

    `revision` is None unless the package is imported from the top of a git checkout; it ends in `-dirty` if tracked
    files differ from the commit. A package that is not installed has version None.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "versions": {
            "fusion_jax": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in RECORDED_PACKAGES},
        },
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
    }


def _to_json(value: Any, where: str) -> Any:
    """`value` in terms of dict, list, str, int, float, bool and None; `where` says which part an error is about."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}, which JSON cannot hold. Store None, or a word that says why.")
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        value = dict(zip(names, value, strict=True))
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; keys of a JSON object are strings. Convert it first.")
        return {name: _to_json(item, f"{where}[{name!r}]") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no JSON form. Convert it to a mapping, list or number."
    )


def _table(
    path: str | Path, table: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]
) -> tuple[list[str], list[list[Any]]]:
    """Names and rows of a table given by columns or by rows."""
    if isinstance(table, Mapping):
        columns = {name: list(values) for name, values in cast("Mapping[str, Iterable[Any]]", table).items()}
        names = list(columns)
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: columns have different lengths {lengths}; every row needs a value in each.")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
    else:
        mappings = list(table)
        names = list(mappings[0]) if mappings else []
        for number, row in enumerate(mappings, start=1):
            if set(row) != set(names):
                raise ValueError(f"{path}: row {number} has columns {list(row)}, row 1 has {names}; they must agree.")
        rows = [[row[name] for name in names] for row in mappings]
    if not names:
        raise ValueError(f"{path}: a table without columns. Give columns by name; they may be empty.")
    return names, rows


def _cell(value: Any, where: str) -> str | int | float | None:
    """One value as the csv module writes it: numbers by `repr`, None as nothing."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where} is a {type(value).__name__}; a cell holds one number, text, truth value or None.")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Commit of the checkout this package is imported from."""
    checkout = Path(__file__).resolve().parents[2]
    # A package installed into an environment that lies inside some other checkout must not report that one's commit.
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
