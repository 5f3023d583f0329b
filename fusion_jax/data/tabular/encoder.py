"""Fit declarations to the training cases of one fold, and apply what was fitted anywhere but in another fold."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.tabular.cells import (
    case_rows,
    check_table,
    code_cells,
    column_of,
    describe_cells,
    read_numbers,
    recode,
    to_unit,
)
from fusion_jax.data.tabular.columns import (
    Category,
    Column,
    Cutoff,
    Number,
    Ordinal,
    check_keys,
    columns_from_json,
    columns_to_json,
    kind_of,
    level_text,
)
from fusion_jax.data.tabular.training_cases import TrainingCases, cases_from_json, shown, unique_ids
from fusion_jax.data.tabular.units import find_conversion
from fusion_jax.records import write_json

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Encoded", "FittedColumn", "FittedTable", "fit", "read_fitted"]

logger = logging.getLogger("fusion_jax.data.tabular")


class Encoded(NamedTuple):
    """A table as numbers.

    Attributes:
      values: one row a case, one column an output, float64, finite, shape `(n, t)`.
      names: of the outputs.
    """

    values: Float[np.ndarray, "n t"]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FittedColumn:
    """One declaration with what the training cases said, in plain numbers.

    Attributes:
      column: the declaration.
      unit: that the training table's cells had, "" for the declared one.
      centre: subtracted, in the declared unit.
      spread: divided by.
      fill: what fills a gap: a number in the declared unit or the rank, 0 or 1 of an answer, the text of a level;
        None where gaps are errors.
      levels: of a category, in order, with the reference; empty for other kinds.
      present: training cases that have a value.
      missing: training cases that have none.
    """

    column: Column
    unit: str = ""
    centre: float = 0.0
    spread: float = 1.0
    fill: float | str | None = None
    levels: tuple[str, ...] = ()
    present: int
    missing: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return self.column.outputs(self.levels)


@dataclass(frozen=True)
class FittedTable:
    """Declarations fitted to the training cases of a fold.

    Attributes:
      columns: the fitted declarations.
      fitted_on: the training cases, by digest, and the name of the fold.
    """

    columns: tuple[FittedColumn, ...]
    fitted_on: TrainingCases

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs in order."""
        return tuple(name for column in self.columns for name in column.outputs)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Column of the table to the positions of its outputs: what belongs together when a feature is permuted."""
        groups: dict[str, tuple[int, ...]] = {}
        start = 0
        for column in self.columns:
            stop = start + len(column.outputs)
            groups[column.column.name] = groups.get(column.column.name, ()) + tuple(range(start, stop))
            start = stop
        return groups

    def apply(
        self, table: "pandas.DataFrame", *, train_cases: Iterable[Any], units: Mapping[str, str] | None = None
    ) -> Encoded:
        """Encode a table inside a fold: its training, validation or test cases.

        Args:
          table: rows to encode, indexed by case id.
          train_cases: ids of the training cases of the fold in hand; they must be exactly those of the fit, whatever
            rows `table` has.
          units: column to unit, where it is not that of the table of the fit; other names are not looked at, so that
            `cohort.units` can be handed over.

        Returns:
          Values and names; unpacks as `values, names`.

        Raises:
          ValueError: if this was fitted in another fold, naming cases; if a column is absent or in a unit that cannot
            be converted; if a cell cannot be read, a gap has no imputation or a level is refused, naming the case.
        """
        self.fitted_on.check(train_cases, others=table.index, what="this encoder")
        return self._encode(table, units or {})

    def apply_to_new(self, table: "pandas.DataFrame", *, units: Mapping[str, str] | None = None) -> Encoded:
        """Encode cases that belong to no fold: an external cohort, or the next patient.

        Args:
          table: rows to encode, indexed by case id.
          units: as in `apply`.

        Returns:
          As `apply`.

        Raises:
          ValueError: as `apply`; and if one of the cases was fitted on, for then the cases are not new.
        """
        if known := self.fitted_on.among(table.index):
            raise ValueError(
                f"{shown(known)} of the table to be encoded as new are cases that this encoder was fitted on, in fold "
                f"{self.fitted_on.fold!r}. Inside a fold use `apply(table, train_cases=…)`; if these are other "
                "patients with the same ids, make the ids unique, as `site2_001`."
            )
        return self._encode(table, units or {})

    def explain(self) -> "pandas.DataFrame":
        """What each output is, one row an output, indexed by its name.

        Columns: `column` of the table, `kind`, `unit`, `meaning` in words and numbers, `missing` (what fills a gap),
        `n` training cases with a value, `n_missing` without.

        Example:
          >>> import pandas as pd
          >>> table = pd.DataFrame({"age": [40.0, 60.0, 80.0]}, index=["P1", "P2", "P3"])
          >>> fitted = fit([Number(name="age", unit="years")], table, table.index, fold="all")
          >>> fitted.explain().loc["age", ["unit", "meaning"]].tolist()
          ['years', '(x − 60) / 20']
        """
        import pandas as pd

        rows = [
            {
                "output": name,
                "column": fitted.column.name,
                "kind": kind_of(fitted.column),
                "unit": getattr(fitted.column, "unit", ""),
                "meaning": _meaning(fitted, name),
                "missing": _gap(fitted),
                "n": fitted.present,
                "n_missing": fitted.missing,
            }
            for fitted in self.columns
            for name in fitted.outputs
        ]
        return pd.DataFrame(rows).set_index("output")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain text, numbers and lists, ready for `write_json`."""
        return {
            "format": FORMAT,
            "columns": [
                {
                    "declared": columns_to_json([fitted.column])[0],
                    "unit": fitted.unit,
                    "centre": fitted.centre,
                    "spread": fitted.spread,
                    "fill": fitted.fill,
                    "levels": list(fitted.levels),
                    "present": fitted.present,
                    "missing": fitted.missing,
                }
                for fitted in self.columns
            ],
            "outputs": list(self.names),
            **self.fitted_on.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any, *, where: str = "fitted table") -> "FittedTable":
        """The fitted table that `to_json` described; equal to the original, bit for bit.

        Raises:
          ValueError: if a key is unknown or absent, or a part does not fit to another, saying where.
          TypeError: if a value has the wrong type.
        """
        keys = ("format", "columns", "outputs", *TrainingCases.KEYS)
        value = check_keys(value, keys, keys, where)
        if value["format"] != FORMAT:
            raise ValueError(f"{where}: format {value['format']!r}; expected {FORMAT!r}. Fit the table again.")
        if not isinstance(value["columns"], list):
            raise TypeError(f"{where}: columns are {value['columns']!r}; expected a list.")
        columns = tuple(_column_from_json(item, f"{where}: columns[{i}]") for i, item in enumerate(value["columns"]))
        fitted = cls(columns, cases_from_json(value, where))
        if value["outputs"] != list(fitted.names):
            raise ValueError(
                f"{where}: outputs {value['outputs']} are not those of the columns, {list(fitted.names)}. "
                "The file was changed by hand; fit the table again."
            )
        return fitted

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all; `read_fitted` reads it back."""
        write_json(path, self.to_json())

    def _encode(self, table: "pandas.DataFrame", units: Mapping[str, str]) -> Encoded:
        check_table(table, [fitted.column for fitted in self.columns])
        values = np.empty((len(table), len(self.names)))
        start = 0
        for fitted in self.columns:
            stop = start + len(fitted.outputs)
            name = fitted.column.name
            unit = units.get(name) or fitted.unit
            if isinstance(fitted.column, Number | Cutoff) and not fitted.column.unit:
                _check_undeclared_unit(fitted, unit)
            _encode_column(fitted, column_of(table, name), unit, values[:, start:stop])
            start = stop
        finite = np.isfinite(values)
        if not finite.all():
            row, output = np.argwhere(~finite)[0]
            raise ValueError(
                f"case {str(table.index[row])!r}: output {self.names[output]!r} is {values[row, output]}, too "
                "large for a float. Look at the cell and at the spread in `explain()`."
            )
        return Encoded(values, self.names)


FORMAT = "fusion_jax fitted table 1"

# Dummies of an identifier would memorise the cases, and a square of their number does not fit in memory.
MANY_LEVELS = 50
MOST_LEVELS = 1000


def fit(
    columns: Sequence[Column],
    table: "pandas.DataFrame",
    train_cases: Iterable[Any],
    *,
    fold: str,
    units: Mapping[str, str] | None = None,
) -> FittedTable:
    """Fit declarations to the training cases of one fold; no other row is looked at.

    Scaling takes the values that are there, before gaps are filled (mean and sample standard deviation, NaN skipped),
    so that imputation does not shrink the spread. Ties of the most frequent value go to the smallest number or the
    first level.

    With a cohort: `cohort.with_source("clinical", fitted.apply(cohort.inputs, train_cases=train).values)`.

    Args:
      columns: declarations; their order is the order of the outputs.
      table: cases in rows, indexed by case id; may hold cases beyond the training cases and further columns. Hand over
        `cohort.inputs`, which has no outcome columns.
      train_cases: ids of the training cases.
      fold: name of the fold or hash of the split, for records and messages.
      units: unit of columns of the table, as `cohort.units`; a column that is not named is in its declared unit.

    Returns:
      The fitted table.

    Raises:
      ValueError: if a case or column is absent, a cell cannot be read, or a column has no value or only one among the
        training cases; the message names column and case.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame(
      ...     {"age": [40, 60, None, 90], "stage": ["A", "B", "A", "C"]}, index=["P1", "P2", "P3", "P4"]
      ... )
      >>> train = ["P1", "P2", "P3"]
      >>> columns = [Number(name="age", unit="years", impute="median"), Category(name="stage")]
      >>> fitted = fit(columns, table, train, fold="f0")
      >>> values, names = fitted.apply(table, train_cases=train)
      >>> names, values.round(2).tolist()
      (('age', 'stage=B'), [[-0.71, 0.0], [0.71, 1.0], [0.0, 0.0], [2.83, 0.0]])

    References:
      Statistics before imputation: specs/breast_mri_fusion.md, reading B5.
    """
    columns = tuple(columns)
    if not columns:
        raise ValueError("no column is declared; give at least one.")
    check_table(table, columns)
    units = units or {}
    ids = unique_ids(train_cases, what=f"training cases of fold {fold!r}")
    fitted_on = TrainingCases.of(ids, fold=fold)
    training = table.iloc[case_rows(table, ids)]
    fitted = FittedTable(
        tuple(
            _fit_column(column, column_of(training, column.name), units.get(column.name, ""), fold)
            for column in columns
        ),
        fitted_on,
    )
    if len(set(fitted.names)) < len(fitted.names):
        twice = sorted({name for name in fitted.names if fitted.names.count(name) > 1})
        raise ValueError(f"outputs {shown(twice)} arise twice. Declare each column once for each way to encode it.")
    return fitted


def read_fitted(path: str | Path) -> FittedTable:
    """Read what `FittedTable.save` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      UnreadableFile: if it is no such JSON, has unknown keys or does not fit together.
    """
    path = Path(path)
    try:
        return FittedTable.from_json(json.loads(path.read_bytes()))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnreadableFile(path, str(error).rstrip("."), "Expected what `FittedTable.save` writes.") from error


def _fit_column(column: Column, cells: "pandas.Series", unit: str, fold: str) -> FittedColumn:
    where = f"column {column.name!r}, fold {fold!r}"
    if isinstance(column, Number):
        values = to_unit(column, read_numbers(cells), unit)
        there = values[~np.isnan(values)]
        centre, spread = _scaling(column.scale, _some(there, where, len(cells)), where)
        fill = _number_fill(column.impute, there)
        return FittedColumn(
            column=column,
            unit=unit,
            centre=centre,
            spread=spread,
            fill=fill,
            present=len(there),
            missing=_count_missing(there, cells, column),
        )
    coded = code_cells(column, cells, unit)
    _some(coded.codes[coded.codes >= 0], where, len(cells))
    levels: tuple[str, ...] = ()
    if isinstance(column, Category):
        levels = _category_levels(column, coded.levels, len(cells), where)
        coded = recode(cells, levels)
    there = coded.codes[coded.codes >= 0]
    frequency = np.bincount(there, minlength=len(coded.levels))
    centre, spread = 0.0, 1.0
    if isinstance(column, Ordinal):
        centre, spread = _scaling(column.scale, there.astype(np.float64), where)
    if np.count_nonzero(frequency) == 1:
        only = coded.levels[int(frequency.argmax())]
        if isinstance(column, Category) and len(levels) < 2:
            raise ValueError(
                f"{where}: every one of {len(there)} training cases holds {only!r}, so there is nothing to encode. "
                "Leave the column out, or declare its levels."
            )
        logger.warning("%s: every one of %d training cases is %r", where, len(there), only)
    fill: float | str | None = None
    if column.impute == "mode":
        most = int(frequency.argmax())
        fill = levels[most] if levels else float(most)
    elif column.impute == "median":
        fill = float(np.quantile(there, 0.5, method="lower"))
    return FittedColumn(
        column=column,
        unit=unit if isinstance(column, Cutoff) else "",
        centre=centre,
        spread=spread,
        fill=fill,
        levels=levels,
        present=len(there),
        missing=_count_missing(there, cells, column),
    )


def _some(there: np.ndarray, where: str, cases: int) -> np.ndarray:
    if not len(there):
        raise ValueError(
            f"{where}: the value is missing in all {cases} training cases, so nothing can be fitted or imputed. "
            "Leave the column out."
        )
    return there


def _count_missing(there: np.ndarray, cells: "pandas.Series", column: Column) -> int:
    """Training cases without a value; a gap that nothing fills is an error at the fit already."""
    missing = len(cells) - len(there)
    if missing and column.impute == "none":
        raise ValueError(_unfilled(column, cells, _gaps(column, cells)))
    return missing


def _gaps(column: Column, cells: "pandas.Series") -> np.ndarray:
    return np.isnan(read_numbers(cells)) if isinstance(column, Number) else code_cells(column, cells, "").codes < 0


def _unfilled(column: Column, cells: "pandas.Series", gaps: np.ndarray) -> str:
    ways = {"number": "'median', 'mean' or 'mode'", "category": "'mode' or 'level'", "ordinal": "'median' or 'mode'"}
    return (
        f"{describe_cells(cells, gaps)}, and no imputation is declared. Fill the cell, set impute to "
        f"{ways.get(kind_of(column), repr('mode'))}, or leave the column out."
    )


def _scaling(scale: str, there: np.ndarray, where: str) -> tuple[float, float]:
    """What is subtracted and what is divided by."""
    if scale == "none":
        return 0.0, 1.0
    lowest, highest = float(there.min()), float(there.max())
    # 0.1 + 0.2 beside 0.3 is one value: a spread of rounding errors would blow them up.
    if math.isclose(lowest, highest, rel_tol=1e-14):
        raise ValueError(
            f"{where}: every one of {len(there)} training cases with a value holds {lowest:g}, so it cannot be scaled. "
            "Leave the column out, or set scale to 'none'."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        if scale == "standard":
            centre, spread = float(there.mean()), float(there.std(ddof=1))
        elif scale == "robust":
            low, centre, high = (float(q) for q in np.quantile(there, (0.25, 0.5, 0.75)))
            spread = high - low
        else:
            centre, spread = lowest, highest - lowest
    if spread == 0:
        raise ValueError(
            f"{where}: the interquartile range is 0, at least half of {len(there)} training cases hold {centre:g}, so "
            "robust scaling is not defined. Set scale to 'standard', or cut the column into a Category."
        )
    if not (math.isfinite(centre) and math.isfinite(spread)):
        raise ValueError(
            f"{where}: values from {lowest:g} to {highest:g} have no finite {scale} scale. Check the cells."
        )
    return centre, spread


def _number_fill(impute: str, there: np.ndarray) -> float | None:
    match impute:
        case "mean":
            return float(there.mean())
        case "median":
            return float(np.median(there))
        case "mode":
            numbers, frequency = np.unique(there, return_counts=True)
            return float(numbers[frequency.argmax()])
        case _:
            return None


def _category_levels(column: Category, found: Sequence[str], cases: int, where: str) -> tuple[str, ...]:
    if column.levels:
        return tuple(map(str, column.levels))
    levels = tuple(sorted(found, key=_by_number))
    if len(levels) > min(MOST_LEVELS, max(MANY_LEVELS, cases // 2)):
        raise ValueError(
            f"{where}: {len(levels)} levels among {cases} training cases ({shown(list(levels))}), which is an "
            "identifier, a number or free text rather than a category. Declare a Number or a Cutoff, group the levels, "
            "leave the column out, or declare its levels if they are meant."
        )
    if column.reference is not None and str(column.reference) not in levels:
        raise ValueError(
            f"{where}: the reference {column.reference!r} is none of the training cases' levels, "
            f"{', '.join(map(repr, levels)) or 'none'}. Declare the levels, or name another reference."
        )
    return levels


def _by_number(level: str) -> tuple[float, str]:
    try:
        number = float(level)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number), level


def _check_undeclared_unit(fitted: FittedColumn, unit: str) -> None:
    """A declaration without a unit is in whatever unit the training table had."""
    if unit and fitted.unit and find_conversion(unit, fitted.unit) != find_conversion(unit, unit):
        raise ValueError(
            f"column {fitted.column.name!r} is in {unit!r} here and was in {fitted.unit!r} at the fit, and its "
            "declaration has no unit to convert to. Declare the unit and fit again, or convert the values beforehand."
        )


def _encode_column(
    fitted: FittedColumn, cells: "pandas.Series", unit: str, out: Float[np.ndarray, "n outputs"]
) -> None:
    """Write the outputs of one column into its place."""
    column = fitted.column
    if isinstance(column, Category):
        gaps = _encode_category(fitted, column, cells, out)
    else:
        if isinstance(column, Number):
            numbers = to_unit(column, read_numbers(cells), unit)
        else:
            codes = code_cells(column, cells, unit).codes
            numbers = np.where(codes < 0, np.nan, codes)
        gaps = np.isnan(numbers)
        if gaps.any() and fitted.fill is None:
            raise ValueError(_unfilled(column, cells, gaps))
        filled = np.where(gaps, 0.0 if fitted.fill is None else fitted.fill, numbers)
        with np.errstate(over="ignore"):
            out[:, 0] = (filled.astype(np.float64) - fitted.centre) / fitted.spread
    if column.indicator:
        out[:, -1] = gaps


def _encode_category(
    fitted: FittedColumn, column: Category, cells: "pandas.Series", out: Float[np.ndarray, "n outputs"]
) -> np.ndarray:
    """Write the dummies of a category; returns where cells are empty."""
    coded = code_cells(column, cells, "")
    gaps = coded.codes < 0
    if gaps.any() and column.impute == "none":
        raise ValueError(_unfilled(column, cells, gaps))
    place = {name: i for i, name in enumerate(fitted.outputs)}
    nowhere = len(place)
    reference = fitted.levels[0] if column.reference is None else column.reference
    # By name alone, a reference that is called "missing" or "unseen" would meet the output of that name.
    level_place = {level: place[f"{column.name}={level}"] for level in fitted.levels if level != reference}
    target = [level_place.get(level, nowhere) if level in fitted.levels else -1 for level in coded.levels]
    new = np.isin(coded.codes, [code for code, at in enumerate(target) if at == -1])
    if new.any():
        _meet_unseen(column, cells, new, coded.codes[new], coded.levels, fitted.levels)
    for_unseen = place[f"{column.name}=unseen"] if column.unseen == "column" else nowhere
    for_gap = place[f"{column.name}=missing"] if column.impute == "level" else nowhere
    if column.impute == "mode":
        for_gap = level_place.get(str(fitted.fill), nowhere)
    lookup = np.array([*(for_unseen if at == -1 else at for at in target), for_gap], dtype=np.int64)
    out[:] = 0.0
    positions = lookup[coded.codes]
    rows = np.flatnonzero(positions < nowhere)
    out[rows, positions[rows]] = 1.0
    return gaps


def _meet_unseen(
    column: Category,
    cells: "pandas.Series",
    new: np.ndarray,
    codes: Int[np.ndarray, "m"],
    found: tuple[str, ...],
    levels: tuple[str, ...],
) -> None:
    if column.unseen == "error":
        raise ValueError(
            f"{describe_cells(cells, new)}, a level that the training cases do not have; expected one of "
            f"{', '.join(map(repr, levels))}. Fix the cell, or set unseen to 'zeros' or 'column'."
        )
    counts = np.bincount(codes, minlength=len(found))
    new_levels = sorted(np.flatnonzero(counts).tolist(), key=lambda code: -counts[code])
    names = shown([found[code] for code in new_levels])
    treatment = "all its dummies are 0, as for the reference" if column.unseen == "zeros" else "they share one output"
    logger.warning(
        "column %r: %d of %d cases hold levels that the training cases do not have (%s); %s",
        column.name,
        len(codes),
        len(cells),
        names,
        treatment,
    )


def _meaning(fitted: FittedColumn, output: str) -> str:
    """One output in words."""
    column = fitted.column
    if column.indicator and output == fitted.outputs[-1]:
        return "1 where missing"
    rest = output.removeprefix(f"{column.name}=")
    match column:
        case Number() | Ordinal():
            what = "x" if isinstance(column, Number) else f"rank of {' < '.join(map(str, column.levels))}"
            return what if column.scale == "none" else f"({what} − {fitted.centre:.6g}) / {fitted.spread:.6g}"
        case Category():
            reference = column.reference or fitted.levels[0]
            return f"1 where {rest}; reference {reference}" if rest not in ("missing", "unseen") else f"1 where {rest}"
        case Cutoff():
            return f"1 where x ≥ {level_text(column.at)}"
        case _:
            return f"1 where {' or '.join(map(str, column.yes))}"


def _gap(fitted: FittedColumn) -> str:
    if fitted.column.impute == "none":
        return "error"
    if fitted.fill is None:
        return "own level"
    value = fitted.fill if isinstance(fitted.fill, str) else f"{fitted.fill:.6g}"
    return f"{fitted.column.impute} {value}"


def _column_from_json(value: Any, where: str) -> FittedColumn:
    keys = ("declared", *(field.name for field in dataclasses.fields(FittedColumn) if field.name != "column"))
    value = check_keys(value, keys, keys, where)
    [column] = columns_from_json([value["declared"]], where=f"{where}: declared")
    for key in ("centre", "spread"):
        if isinstance(value[key], bool) or not isinstance(value[key], int | float) or not math.isfinite(value[key]):
            raise ValueError(f"{where}: {key} is {value[key]!r}; expected a finite number.")
    for key in ("present", "missing"):
        if isinstance(value[key], bool) or not isinstance(value[key], int) or value[key] < 0:
            raise ValueError(f"{where}: {key} is {value[key]!r}; expected a count of cases.")
    levels = value["levels"]
    if not isinstance(levels, list) or not all(isinstance(level, str) for level in levels):
        raise ValueError(f"{where}: levels are {levels!r}; expected a list of texts.")
    if value["spread"] <= 0:
        raise ValueError(f"{where}: spread is {value['spread']!r}; expected a number above 0.")
    if not isinstance(value["unit"], str):
        raise TypeError(f"{where}: unit is {value['unit']!r}; expected text.")
    _check_state(column, value, where)
    return FittedColumn(
        column=column,
        unit=value["unit"],
        centre=float(value["centre"]),
        spread=float(value["spread"]),
        fill=float(value["fill"]) if isinstance(value["fill"], int) else value["fill"],
        levels=tuple(levels),
        present=value["present"],
        missing=value["missing"],
    )


def _check_state(column: Column, value: Mapping[str, Any], where: str) -> None:
    """Fill and levels are what this kind of column has after a fit."""
    fill, levels = value["fill"], value["levels"]
    if isinstance(column, Category):
        if not levels or len(set(levels)) < len(levels) or (column.levels and list(column.levels) != levels):
            raise ValueError(f"{where}: levels {levels!r} are not those of the declaration. Fit the table again.")
        if column.reference is not None and column.reference not in levels:
            raise ValueError(f"{where}: the reference {column.reference!r} is none of the levels {levels!r}.")
        good = fill in levels if column.impute == "mode" else fill is None
    else:
        if levels:
            raise ValueError(f"{where}: levels {levels!r} of a {kind_of(column)}; expected none.")
        is_number = isinstance(fill, int | float) and not isinstance(fill, bool) and math.isfinite(fill)
        good = fill is None if column.impute == "none" else is_number
    if not good:
        raise ValueError(f"{where}: fill is {fill!r}, which does not go with impute {column.impute!r}.")
