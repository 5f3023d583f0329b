"""From cells of a table to numbers and codes, with every cell that cannot be read named by column and case."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.tabular.columns import (
    Category,
    Column,
    Cutoff,
    Flag,
    Number,
    Ordinal,
    close_to,
    level_text,
)
from fusion_jax.data.tabular.training_cases import shown
from fusion_jax.data.tabular.units import find_conversion

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "Coded",
    "case_rows",
    "check_table",
    "code_cells",
    "column_of",
    "describe_cells",
    "factorise",
    "read_numbers",
    "recode",
    "to_unit",
    "widen",
]


class Coded(NamedTuple):
    """A column as codes of its levels.

    Attributes:
      codes: index into `levels`, −1 where the cell is empty, shape `(n,)`.
      levels: text of the levels.
    """

    codes: Int[np.ndarray, "n"]
    levels: tuple[str, ...]


def check_table(table: "pandas.DataFrame", columns: Sequence[Column]) -> None:
    """Every declared column is there once, and every case has one row."""
    for column in columns:
        found = list(table.columns).count(column.name)
        if found == 0:
            raise ValueError(
                f"the table has no column {column.name!r}; {close_to(column.name, table.columns)}. "
                "Add it or fix the declaration; columns that are no inputs are not handed to an encoder."
            )
        if found > 1:
            raise ValueError(f"the table has {found} columns named {column.name!r}; rename all but one.")
    cases = Counter(map(str, table.index))  # 1 and "1" are one id
    if len(cases) < len(table):
        twice = [case for case, rows in cases.items() if rows > 1]
        raise ValueError(f"the table has several rows for {shown(twice)}; expected one row a case, indexed by case id.")


def column_of(table: "pandas.DataFrame", name: str) -> Any:
    """One column, a Series: `check_table` has made sure that there is one of this name."""
    return table[name]


def case_rows(table: "pandas.DataFrame", case_ids: Sequence[str]) -> Int[np.ndarray, "m"]:
    """Positions of these cases in the table."""
    import pandas as pd

    rows = pd.Index([str(case) for case in table.index], dtype=object).get_indexer(pd.Index(case_ids, dtype=object))
    if (rows < 0).any():
        absent = [case for case, row in zip(case_ids, rows, strict=True) if row < 0]
        raise ValueError(
            f"training cases {shown(absent)} are not in the table, whose index starts "
            f"{shown([str(case) for case in table.index[:2]])}. Index the table by case id (`table.set_index`)."
        )
    return rows.astype(np.int64)


def read_numbers(cells: "pandas.Series", *, expected: str = "a number") -> Float[np.ndarray, "n"]:
    """A column as float64, NaN where a cell is empty.

    Raises:
      ValueError: if a cell is a word, a truth value or infinite; the message names column, case and cell.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(cells.dtype):
        raise ValueError(f"column {cells.name!r} holds true and false; expected {expected}. Declare it as a Flag.")
    if pd.api.types.is_complex_dtype(cells.dtype) or cells.dtype.kind in "mM":
        raise ValueError(
            f"column {cells.name!r} holds {cells.dtype}; expected {expected}. Derive a number from it first."
        )
    if cells.dtype.name.lower() in NARROW:
        values = widen(cells)
    elif pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = _numbers_of_words(cells, expected)
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(
            f"{describe_cells(cells, infinite)}; expected {expected}, finite. Fix the cell or empty it if not known."
        )
    return values


def widen(cells: "pandas.Series") -> Float[np.ndarray, "n"]:
    """Narrow floats as the decimals they stand for: a float32 of 2.82 is 2.8199999332, below a cut-off at 2.82."""
    narrow = cells.to_numpy(np.dtype(cells.dtype.name.lower()), na_value=np.nan)
    return narrow.astype(np.str_).astype(np.float64)


def code_cells(column: Column, cells: "pandas.Series", unit: str) -> Coded:
    """A column that is not a plain number as codes, in the order of its levels.

    A cut-off has the levels `<a` and `>=a`, a flag `no` and `yes`; categories keep whatever level they hold.

    Args:
      column: the declaration.
      cells: the column, indexed by case.
      unit: of the cells, "" for that of the declaration.
    """
    match column:
        case Cutoff():
            values = read_numbers(
                cells, expected=f"a number to compare with {level_text(column.at)} {column.unit}".rstrip()
            )
            threshold = column.at
            if unit and column.unit:
                threshold = _conversion(column, column.unit, unit).exactly(column.at)
            codes = np.where(np.isnan(values), -1, (values >= threshold).astype(np.int64))
            return Coded(codes, (f"<{level_text(column.at)}", f">={level_text(column.at)}"))
        case Flag():
            meaning = {"False": 0, "True": 1, **dict.fromkeys(column.no, 0), **dict.fromkeys(column.yes, 1)}
            found = factorise(cells)
            unknown = np.isin(found.codes, [i for i, level in enumerate(found.levels) if level not in meaning])
            if unknown.any():
                words = ", ".join(map(repr, (*column.yes, *column.no)))
                raise ValueError(
                    f"{describe_cells(cells, unknown)}; expected one of {words}. Fix the cell, or declare the word "
                    "under `yes` or `no`."
                )
            codes = np.array([*(meaning[level] for level in found.levels), -1], dtype=np.int64)[found.codes]
            return Coded(codes, ("no", "yes"))
        case Ordinal():
            return recode(cells, tuple(map(str, column.levels)))
        case Category():
            return factorise(cells)
        case Number():
            raise ValueError(
                f"column {column.name!r} is declared as a Number; expected levels. Declare it as a Cutoff, Category, "
                "Ordinal or Flag."
            )


def recode(cells: "pandas.Series", levels: tuple[str, ...]) -> Coded:
    """Codes in the order of declared levels; any other level is an error."""
    found = factorise(cells)
    position = {level: i for i, level in enumerate(levels)}
    unknown = np.isin(found.codes, [i for i, level in enumerate(found.levels) if level not in position])
    if unknown.any():
        raise ValueError(
            f"{describe_cells(cells, unknown)}; expected one of {', '.join(map(repr, levels))}. "
            "Fix the cell or declare the level."
        )
    lookup = np.array([*(position[level] for level in found.levels), -1], dtype=np.int64)
    return Coded(lookup[found.codes], levels)


def to_unit(column: Number, values: Float[np.ndarray, "n"], unit: str) -> Float[np.ndarray, "n"]:
    """Numbers in the unit that the column declares."""
    return _conversion(column, unit, column.unit)(values) if unit and column.unit else values


def describe_cells(cells: "pandas.Series", bad: Bool[np.ndarray, "n"]) -> str:
    """`column 'age', case 'P7' holds 'old' (and 3 more cases)` of the first bad cell."""
    import pandas as pd

    rows = np.flatnonzero(bad)
    first: Any = cells.iloc[rows[0]]
    first = first.item() if hasattr(first, "item") else first
    holds = "is empty" if pd.isna(first) or (isinstance(first, str) and not first.strip()) else f"holds {first!r}"
    others = len(rows) - 1
    more = f" (and {others} more case{'s' if others > 1 else ''})" if others else ""
    return f"column {cells.name!r}, case {str(cells.index[rows[0]])!r} {holds}{more}"


def _conversion(column: Number | Cutoff, source: str, target: str):
    try:
        return find_conversion(source, target, substance=column.substance)
    except ValueError as error:
        raise ValueError(f"column {column.name!r}: {error}") from error


def _numbers_of_words(cells: "pandas.Series", expected: str) -> Float[np.ndarray, "n"]:
    """Numbers of a column that pandas holds as text or as mixed objects."""
    import pandas as pd

    codes, words = pd.factorize(cells.astype(object), use_na_sentinel=True)
    numbers = np.empty(len(words) + 1)
    numbers[-1] = np.nan
    bad = []
    for i, word in enumerate(words):
        if isinstance(word, str) and not word.strip():
            numbers[i] = np.nan
            continue
        try:
            # float() also takes "1_000" and "nan", which no spreadsheet writes for a number.
            if isinstance(word, str) and not set(word) <= NUMBER_SIGNS:
                raise ValueError
            numbers[i] = float(word)
        except (TypeError, ValueError):
            bad.append(i)
    wrong = np.isin(codes, bad)
    if cells.dtype == object:
        # A hash table holds 1 and True as one value.
        wrong |= np.fromiter((isinstance(cell, bool | np.bool_) for cell in cells), bool, len(cells))
    if wrong.any():
        raise ValueError(
            f"{describe_cells(cells, wrong)}; expected {expected}. Fix the cell, empty it if the value "
            "is not known, or declare the column as a Category."
        )
    return numbers[codes]


NARROW = ("float16", "float32")
NUMBER_SIGNS = set("0123456789+-.eE \t")


def factorise(cells: "pandas.Series") -> Coded:
    """Codes and levels of a column as it stands; cells that `level_text` writes alike share a code."""
    import pandas as pd

    # Text and objects go through objects: 1 and True would be one value to the hash table of a mixed column.
    mixed = cells.dtype == object
    keys = cells.map(lambda cell: cell if pd.isna(cell) else level_text(cell)) if mixed else cells
    if cells.dtype.name.lower() in NARROW:
        keys = pd.Series(widen(cells))
    codes, uniques = pd.factorize(keys, use_na_sentinel=True)
    texts = [level_text(unique) for unique in uniques]
    levels: dict[str, int] = {}
    lookup = [levels.setdefault(text, len(levels)) if text.strip() else -1 for text in texts]
    return Coded(np.array([*lookup, -1], dtype=np.int64)[codes], tuple(levels))
