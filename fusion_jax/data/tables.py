"""Tables from CSV, Excel and Parquet files, with every cell that is not what its column holds named."""

import csv
import datetime as dt
import gzip
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.data.image import UnreadableFile
from fusion_jax.wording import counted

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["TABLE_SUFFIXES", "NoRowsError", "as_word", "as_written", "parsed", "read_cells", "read_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".xlsx", ".parquet")


DATE = re.compile(r"\s*\d{4}([-/]?)\d{2}\1\d{2}")


class NoRowsError(ValueError):
    """A header and nothing below it, which is an answer where rows are what was found.

    Attributes:
      columns: that the header names.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """A file and the names of its columns."""
        super().__init__(f"{path}: a header and no rows; expected one row a case.")
        self.columns = tuple(columns)


def read_table(
    path: str | os.PathLike[str],
    *,
    sheet: str | None = None,
    text: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> "pandas.DataFrame":
    """Table of a CSV (comma, semicolon or tab), Excel (.xlsx) or Parquet file, one row a case.

    Columns hold what their cells are: numbers, dates of Excel and Parquet, otherwise text. Cells that are empty or
    `NA`, `N/A`, `NaN`, `null` are missing.

    Args:
      path: of the file.
      sheet: of an Excel file; the first by default.
      text: columns that stay as they are written, such as ids with leading zeros.
      types: column to "number" (finite), "text" or "date" (year, month and day as in ISO 8601, or a date of Excel or
        Parquet), where cells must be just that.
      units: columns with a unit, which must hold numbers.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableFile: it is no table of its kind.
      ValueError: a column is named twice or not at all, or a cell is not of the declared type; row 1 is the header.
    """
    path = Path(path)
    types = types or {}
    kept = [*text, *(column for column, kind in types.items() if kind == "text")]
    dates = [column for column, kind in types.items() if kind == "date"]
    table = read_cells(path, sheet=sheet, text=kept, dates=dates)
    for column, kind in {**dict.fromkeys(units or {}, "number"), **types}.items():
        if column in table.columns and kind != "text":
            key = "units" if column in (units or {}) else "types" if kind == "date" else None
            table[column] = _converted(path, column, table[column], kind, key)
    return table


def read_cells(
    path: str | os.PathLike[str], *, sheet: str | None = None, text: Sequence[str] = (), dates: Sequence[str] = ()
) -> "pandas.DataFrame":
    """The table of `read_table` before columns are held to a type: cells that are not of it are still there.

    Args:
      path: of the file.
      sheet: of an Excel file; the first by default.
      text: columns that stay as they are written.
      dates: columns that `parsed` is going to read as dates: 20200131 in a CSV file is then no number.

    Raises:
      FileNotFoundError, UnreadableFile, ValueError: as `read_table`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a table ({', '.join(TABLE_SUFFIXES)}). Check the path."
        )
    try:
        table = _parse(path, sheet, [*text, *dates])
    except (UnreadableFile, _HeaderError):
        raise
    except Exception as error:  # parsers of three formats raise errors of a dozen classes
        found = (
            f"cannot be read as a table ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
        raise UnreadableFile(path, found, "Save it again as CSV in UTF-8, .xlsx or .parquet.") from None
    table.columns = [str(column).strip() for column in table.columns]
    _check_header(path, list(table.columns))
    if not len(table):
        raise NoRowsError(path, list(table.columns))
    for column in table.columns.intersection([*text]):
        missing = table[column].isna()
        written = table[column].map(as_written).astype(object)
        table[column] = written.where(~missing & (written != ""), None)
    return table


class _HeaderError(ValueError):
    """Names of columns that cannot be used, told apart from what a parser raises."""


def _parse(path: Path, sheet: str | None, text: Sequence[str]) -> "pandas.DataFrame":
    import pandas as pd

    missing: dict[str, Any] = {"keep_default_na": False, "na_values": ["", "NA", "N/A", "NaN", "nan", "null", "#N/A"]}
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = pd.read_parquet(path)
        return table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    if suffix == ".xlsx":
        with pd.ExcelFile(path, engine="openpyxl") as book:
            if sheet is not None and sheet not in book.sheet_names:
                found = f"no sheet {sheet!r}; it has {', '.join(map(str, book.sheet_names))}"
                raise UnreadableFile(path, found, "Name one of these.")
            head = pd.read_excel(book, sheet_name=sheet or 0, header=None, nrows=1, dtype=object)
            names = [] if head.empty else head.iloc[0].tolist()
            _check_header(path, names)
            return pd.read_excel(book, sheet_name=sheet or 0, dtype=_of_columns(names, text, object), **missing)
    if suffix in (".csv", ".tsv", ".txt") or path.name.lower().endswith((".csv.gz", ".tsv.gz")):
        with (
            gzip.open(path, "rt", encoding="utf-8-sig") if suffix == ".gz" else path.open(encoding="utf-8-sig") as file
        ):
            header = next((line for line in file if line.strip()), "")
            separator = max(",;\t", key=header.count)
            # A quoted name may go on in the next line.
            names = next(csv.reader(itertools.chain([header], file), delimiter=separator), [])
        _check_header(path, names)
        quoted = _of_columns(names, text, str)
        # `index_col=False` would cut surplus cells off silently; without it a longer row is an error or an index.
        table = pd.read_csv(path, sep=separator, dtype=quoted, encoding="utf-8-sig", low_memory=False, **missing)
        if separator == ";":
            table = _with_decimal_commas(table, text)
        if not isinstance(table.index, pd.RangeIndex):
            raise UnreadableFile(path, "rows have more cells than the header", "Name every column, or quote commas.")
        return table
    raise UnreadableFile(path, f"suffix {suffix or 'none'} is of no table", f"Expected {', '.join(TABLE_SUFFIXES)}.")


def _of_columns(names: Sequence[Any], wanted: Sequence[str], kind: type) -> Any:
    """Type of the wanted columns by their names as the file has them, which may have spaces around."""
    return {name: kind for name in names if str(name).strip() in wanted}


def _with_decimal_commas(table: "pandas.DataFrame", text: Sequence[str]) -> "pandas.DataFrame":
    """Columns of numbers such as `63,5`, as spreadsheets of half of Europe write them beside semicolons."""
    import pandas as pd

    for column in table.columns.difference([*text]):
        cells: Any = table[column]
        if pd.api.types.is_numeric_dtype(cells) or not cells.notna().any():
            continue
        known = cells.dropna().astype(str).str.strip()
        if known.str.fullmatch(r"[+-]?\d+(,\d+)?").all() and known.str.contains(",").any():
            table[column] = pd.to_numeric(cells.astype(object).map(_with_point, na_action="ignore"))
    return table


def _with_point(cell: Any) -> str:
    return str(cell).strip().replace(",", ".")


def _check_header(path: Path, names: Sequence[Any]) -> None:
    """Every column has a name of its own; pandas would number the others silently."""
    seen = set()
    for number, name in enumerate((str(name).strip() for name in names), start=1):
        if not name or name in ("nan", "None"):
            raise _HeaderError(f"{path}: column {number} has no name; expected one. Name or remove it.")
        if name in seen:
            raise _HeaderError(f"{path}: two columns are called {name!r}; expected different names. Rename one.")
        seen.add(name)


def as_written(cell: Any) -> str:
    """An id as the sheet shows it: Excel holds 7 as 7.0."""
    return as_word(cell).strip()


def as_word(cell: Any) -> str:
    """A cell as text; 1.0, as pandas holds an integer column with gaps, is 1."""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def _is_date(cell: Any) -> bool:
    return bool(DATE.match(cell)) if isinstance(cell, str) else isinstance(cell, dt.date)


def parsed(column: "pandas.Series", kind: str) -> "pandas.Series":
    """A column as finite numbers or as dates; cells that are neither are missing.

    Args:
      column: cells as `read_cells` gives them.
      kind: "number", or "date" (see `read_table`).

    Raises:
      ValueError: dates of several time zones, which are no one column; the message names neither file nor column.

    Example:
      >>> import pandas as pd
      >>> parsed(pd.Series(["63.5", "about 60", "inf"]), "number").tolist()
      [63.5, nan, nan]
    """
    import pandas as pd

    if kind == "date":
        # pandas reads numbers, such as the serial days of Excel, as nanoseconds since 1970, and 2020 as its first day.
        dates: Any = column if column.dtype.kind == "M" else column.where(column.map(_is_date), None).astype(object)
        try:
            return pd.to_datetime(dates, errors="coerce", format="ISO8601")
        except ValueError:
            raise ValueError("holds times of several time zones; expected one. Write dates without a zone.") from None
    values: Any = pd.to_numeric(column, errors="coerce")
    return values.where(np.isfinite(values.to_numpy(float, na_value=np.nan)))


def _converted(path: Path, name: str, column: Any, kind: str, key: str | None) -> Any:
    """A column of one type; `key` names the setting that a user may take the column out of."""
    try:
        values = parsed(column, kind)
    except ValueError as error:
        raise ValueError(f"{path}: column {name!r} {error}") from None
    bad = np.flatnonzero((values.isna() & column.notna()).to_numpy())
    if len(bad):
        wanted = "a date such as 2020-01-31" if kind == "date" else "a number"
        way_out = "" if key is None else f", or take the column out of `{key}`"
        raise ValueError(
            f"{path}: column {name!r} holds {column.iloc[bad].tolist()[0]!r} in row {bad[0] + 2} "
            f"({counted(len(bad), 'such cell')}); expected {wanted}. Fix the cells{way_out}."
        )
    return values
