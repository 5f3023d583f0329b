"""Features and outcomes from a user's files: either what was meant, or a message that names file, row and column."""

import csv
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.commands.quality import Config
from fusion_jax.wording import listed

__all__ = ["CASE_ID", "Features", "Outcome", "check_features", "read_features", "read_outcome"]

CASE_ID = "case_id"
MISSING_CELLS = frozenset({"", "na", "n/a", "nan"})


class Features(NamedTuple):
    """Features of the cases by source, as they were given.

    Attributes:
      values: shape `(b, f)`; NaN where missing.
      columns: name of each feature.
      files: where each source came from.
      case_ids: of the rows.
      paired_by: how rows of different sources were matched.
    """

    values: dict[str, np.ndarray]
    columns: dict[str, list[str]]
    files: dict[str, Path]
    case_ids: list[str]
    paired_by: str


class Outcome(NamedTuple):
    """A label of two classes; `positive` is the class that is true."""

    labels: np.ndarray
    name: str
    positive: str
    negative: str


def read_features(paths: Sequence[Path]) -> Features:
    """Features from one .npz file, or from one .csv file per source.

    Raises:
      ValueError: files that hold something else; the message names file, row and column.
    """
    if not paths:
        raise ValueError("no features given; expected one .npz file, or one .csv file per source.")
    for path in paths:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not there"
            raise ValueError(f"{path} is {kind}; expected a .npz or .csv file with features. Check the path.")
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".npz"} and len(paths) == 1:
        return _read_npz(paths[0])
    if suffixes == {".csv"}:
        return _read_csvs(paths)
    raise ValueError(
        f"features are in {', '.join(str(path) for path in paths)}; expected one .npz file with all sources, or one "
        ".csv file per source. Convert them to one of the two."
    )


def _read_csvs(paths: Sequence[Path]) -> Features:
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise ValueError(f"{files[path.stem]} and {path} are both called {path.stem!r}; rename one of the files.")
        files[path.stem] = path
    tables = {name: _read_numbers(path) for name, path in files.items()}
    with_ids = [name for name, table in tables.items() if table.case_ids is not None]
    if with_ids and len(with_ids) < len(tables):
        without = next(name for name in tables if name not in with_ids)
        raise ValueError(
            f"{files[with_ids[0]]} has a column {CASE_ID!r}, {files[without]} has none; cases cannot be matched. Give "
            "the column to every file, or to none if their rows are in the same order."
        )
    first, *others = tables
    if not with_ids:
        rows = {name: len(table.values) for name, table in tables.items()}
        if len(set(rows.values())) > 1:
            listed = ", ".join(f"{files[name]}: {count}" for name, count in rows.items())
            raise ValueError(
                f"sources differ in their number of rows ({listed}); without a column {CASE_ID!r} they are paired by "
                "row order and have to match. Add the column or the missing rows."
            )
        ids = [f"row {number}" for number in range(2, rows[first] + 2)]
        paired_by = f"row order, since no file has a column {CASE_ID!r}"
    else:
        ids = tables[first].case_ids or []
        for name in others:
            order = _order_of(ids, tables[name].case_ids or [], files[first], files[name])
            tables[name] = tables[name]._replace(values=tables[name].values[np.asarray(order)])
        paired_by = CASE_ID
    return Features(
        {name: table.values for name, table in tables.items()},
        {name: table.columns for name, table in tables.items()},
        files,
        ids,
        paired_by,
    )


def _order_of(wanted: Sequence[str], given: Sequence[str], wanted_in: Path, given_in: Path) -> list[int]:
    """Rows of `given` in the order of `wanted`; both have to hold the same case ids."""
    lacking, surplus = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if lacking or surplus:
        parts = [f"{given_in} lacks {_some(lacking)}, present in {wanted_in}"] if lacking else []
        parts += [f"{given_in} has {_some(surplus)}, absent from {wanted_in}"] if surplus else []
        raise ValueError(f"{'; '.join(parts)}. Every file needs the same {CASE_ID}s; add or remove these rows.")
    row_of = {case: row for row, case in enumerate(given)}
    return [row_of[case] for case in wanted]


class Numbers(NamedTuple):
    """A CSV of numbers: names of its columns, values `(b, t)` with NaN where missing, and case ids if it has them."""

    columns: list[str]
    values: np.ndarray
    case_ids: list[str] | None


def _read_numbers(path: Path) -> Numbers:
    header, rows = _read_rows(path)
    case_ids, taken = _take_case_ids(path, header, rows)
    columns = [name for index, name in enumerate(header) if index != taken]
    if not columns:
        raise ValueError(f"{path} has no columns but {CASE_ID!r}; expected one column per feature.")
    values = np.empty((len(rows), len(columns)))
    for number, row in enumerate(rows, start=2):
        cells = row if taken is None else row[:taken] + row[taken + 1 :]
        values[number - 2] = [_number(cell, path, number, name) for cell, name in zip(cells, columns, strict=True)]
    return Numbers(columns, values, case_ids)


def _number(cell: str, path: Path, row: int, column: str) -> float:
    text = cell.strip()
    if text.lower() in MISSING_CELLS:
        return math.nan
    try:
        value = math.inf if "_" in text else float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(
            f"{path}: column {column!r} holds {cell!r} in row {row} (the header is row 1); expected a number with a "
            "decimal point. Fix the cell, encode categories as numbers, or remove the column."
        )
    return value


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV, checked to be rectangular."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason}); expected CSV. Save it as CSV, UTF-8."
        ) from None
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}. Save it as comma-separated values.") from None
    while rows and not rows[-1]:  # empty lines at the end
        rows.pop()
    if not rows:
        raise ValueError(f"{path} is empty; expected a header and one row per case.")
    header, body = [name.strip() for name in rows[0]], rows[1:]
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise ValueError(f"{path}: the header is {header[0]!r}, one single column; separate the columns by commas.")
    if not body:
        raise ValueError(f"{path} holds a header and no cases; expected one row per case.")
    if all(_is_number(name) for name in header):
        raise ValueError(
            f"{path}: row 1 holds the numbers {', '.join(header[:3])} …; expected the names of the columns, so that "
            "no case is taken for a header. Add a header."
        )
    for number, name in enumerate(header, start=1):
        if not name:
            raise ValueError(
                f"{path}: column {number} has no name; expected one. If it counts the rows, remove it (pandas: "
                "`to_csv(..., index=False)`)."
            )
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: two columns are called {repeated[0]!r}; expected different names. Rename one.")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells, the header (row 1) has {len(header)}; expected as many. "
                "Complete the row, or remove it."
            )
    return header, body


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _take_case_ids(path: Path, header: list[str], rows: list[list[str]]) -> tuple[list[str] | None, int | None]:
    if CASE_ID not in header:
        return None, None
    column = header.index(CASE_ID)
    ids = [row[column].strip() for row in rows]
    return _checked_ids(ids, str(path), first_row=2), column


def _checked_ids(ids: list[str], where: str, *, first_row: int) -> list[str]:
    seen: dict[str, int] = {}
    for number, case in enumerate(ids, start=first_row):
        if not case:
            raise ValueError(f"{where}: row {number} has no {CASE_ID}; expected one for every case. Fill it in.")
        if case in seen:
            raise ValueError(
                f"{where}: {CASE_ID} {case!r} is in rows {seen[case]} and {number}; expected one row per case. Remove "
                "or rename one."
            )
        seen[case] = number
    return ids


def _read_npz(path: Path) -> Features:
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is not a .npz file; expected what `numpy.savez` writes. Save it again.") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(
            f"{path} holds one array without a name; expected `numpy.savez(path, image=..., clinical=...)`."
        )
    arrays: dict[str, np.ndarray] = {}
    with archive:
        for name in archive.files:
            if name in arrays:
                raise ValueError(f"{path} holds two arrays called {name!r}; expected different names.")
            try:
                arrays[name] = archive[name]
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                objects = "pickle" in str(error)
                found = "holds Python objects, which are never loaded" if objects else f"cannot be read ({error})"
                raise ValueError(
                    f"{path}: array {name!r} {found}; expected numbers. Save it again with a numeric dtype, such as "
                    "`array.astype(float)`."
                ) from None
    ids = arrays.pop(CASE_ID, None)
    for name, array in arrays.items():
        _check_array(array, f"{path}: array {name!r}")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in rows.items())
        raise ValueError(f"{path}: arrays differ in their number of rows ({listed}); rows are cases and have to match.")
    cases = max(rows.values(), default=0)
    if ids is not None and ids.shape != (cases,):
        raise ValueError(f"{path}: array {CASE_ID!r} has shape {ids.shape}; expected ({cases},), one id per case.")
    return Features(
        {name: np.asarray(array, float) for name, array in arrays.items()},
        {name: [str(index) for index in range(array.shape[1])] for name, array in arrays.items()},
        dict.fromkeys(arrays, path),
        [f"row {row}" for row in range(cases)]
        if ids is None
        else _checked_ids([str(case) for case in ids], f"{path}: array {CASE_ID!r}", first_row=0),
        "row order within one file" if ids is None else CASE_ID,
    )


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where} has dtype {array.dtype}; expected real numbers. Convert it before saving.")
    if array.ndim != 2 or not array.size:
        advice = {
            0: "Save an array",
            1: "For one feature a case save `array[:, None]`, for one case `array[None, :]`",
        }.get(array.ndim, "Flatten the features with `array.reshape(len(array), -1)`" if array.size else "Remove it")
        raise ValueError(f"{where} has shape {array.shape}; expected (cases, features). {advice}.")
    infinite = np.argwhere(np.isinf(array))
    if len(infinite):
        row, column = (int(index) for index in infinite[0])
        raise ValueError(
            f"{where} is infinite at row {row}, column {column} (counted from 0; {len(infinite)} such values); "
            "expected finite numbers. Replace them, or make them NaN and use --missing weight."
        )


def check_features(features: Features, config: Config) -> None:
    """Refuse features that the command, with its options, cannot measure.

    Raises:
      ValueError: too few sources, unknown names, missing values, or a size that an encoding cannot have.
    """
    names = list(features.values)
    if len(names) < 2:
        raise ValueError(
            f"{config.features[0]} holds {f'one source, {names[0]!r}' if names else 'no source'}; fusion takes at "
            "least two. Give one .csv file per source, or a .npz file with one array per source."
        )
    for option, given in (
        ("--encode", [config.encode] if config.encode else []),
        ("--per-column", config.per_column or ()),
    ):
        for name in given:
            if name not in names:
                raise ValueError(f"{option} {name}: there is no such source; expected one of {', '.join(names)}.")
    for name, values in features.values.items():
        gaps = np.argwhere(np.isnan(values))
        if not len(gaps):
            continue
        row, column = (int(index) for index in gaps[0])
        where = f"{features.files[name]}: source {name!r}, case {features.case_ids[row]!r}, column"
        where = f"{where} {features.columns[name][column]!r}"
        if config.missing == "error":
            raise ValueError(
                f"{where} holds no number ({len(gaps)} missing in all); expected one in every cell. Fill it in, "
                "remove the case, or give missing values weight 0 with --missing weight."
            )
        empty_cases = np.flatnonzero(np.isnan(values).all(axis=1))
        if len(empty_cases):
            raise ValueError(
                f"{features.files[name]}: case {_some([features.case_ids[row] for row in empty_cases])} has no value "
                f"of source {name!r} at all; expected at least one. Remove the case from every source."
            )
        empty_columns = np.flatnonzero(np.isnan(values).all(axis=0))
        if len(empty_columns):
            raise ValueError(
                f"{features.files[name]}: column {_some([features.columns[name][c] for c in empty_columns])} of source "
                f"{name!r} has no value in any case. Remove the column."
            )
    if config.encode is None:
        return
    values, size = features.values[config.encode], config.encoding_size
    markers = values.shape[1]
    if config.encoding == "positional":
        if size is not None and size % markers:
            below, above = size // markers * markers, -(-size // markers) * markers
            raise ValueError(
                f"--encoding-size {size} does not divide among the {markers} columns of {config.encode!r}; the nearest "
                f"sizes that do are {f'{below} and ' if below else ''}{above}. Take one of them."
            )
    elif np.isnan(values).any():
        raise ValueError(
            f"source {config.encode!r} has missing values, and a {config.encoding} encoding mixes its columns; impute "
            "them, or use --encoding positional, where a missing value's block gets weight 0."
        )


def read_outcome(path: Path, features: Features) -> Outcome:
    """Outcome of the cases, in their order; the larger number, or the later word, is the positive class.

    Raises:
      ValueError: a file that does not hold one of two classes for each of these cases.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected a .csv file with the outcome. Check --outcome.")
    header, rows = _read_rows(path)
    ids, taken = _take_case_ids(path, header, rows)
    columns = [index for index in range(len(header)) if index != taken]
    if len(columns) != 1:
        raise ValueError(
            f"{path} has the columns {', '.join(header)}; expected {CASE_ID} and one label, or the label alone. "
            "Remove the others."
        )
    [column] = columns
    labels = [row[column].strip() for row in rows]
    for number, label in enumerate(labels, start=2):
        if label.lower() in MISSING_CELLS:
            raise ValueError(
                f"{path}: column {header[column]!r} holds no label in row {number}; expected one of two classes for "
                "every case. Fill it in, or remove the case from every file."
            )
    if ids is not None:
        if features.paired_by != CASE_ID:
            raise ValueError(
                f"{path} has a column {CASE_ID!r}, the features have none; cases cannot be matched. Add it to the "
                "features, or remove it here if the rows are in the same order."
            )
        labels = [labels[row] for row in _order_of(features.case_ids, ids, next(iter(features.files.values())), path)]
    elif len(labels) != len(features.case_ids):
        raise ValueError(
            f"{path} has {len(labels)} labels for {len(features.case_ids)} cases; without a column {CASE_ID!r} they "
            "are paired by row order and have to match."
        )
    classes = sorted(set(labels), key=lambda label: (float(label), "") if _is_number(label) else (math.inf, label))
    if len(classes) != 2:
        raise ValueError(
            f"{path}: column {header[column]!r} holds {len(classes)} {'class' if len(classes) == 1 else 'classes'} "
            f"({_some(classes)}); expected two. A relation needs both classes; join or remove others."
        )
    negative, positive = classes
    return Outcome(np.array([label == positive for label in labels]), header[column], positive, negative)


def _some(names: Sequence[str], most: int = 5) -> str:
    return listed((repr(str(name)) for name in names), most)
