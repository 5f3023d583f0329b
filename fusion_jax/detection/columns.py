"""Clinical columns as a detector reads them: numbers first, then one code a category, fitted to the training cases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.clinical import ClinicalValues, encoded_rows, suggested
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.tabular import (
    Category,
    Column,
    Cutoff,
    FittedTable,
    Flag,
    Number,
    Ordinal,
    columns_from_json,
    fit,
)
from fusion_jax.data.tabular.encoder import FittedColumn
from fusion_jax.records.arguments import close_to

__all__ = ["ClinicalVector", "Missing", "fit_clinical"]

Missing = Literal["mean", "mask"]
"""`mean` fills a gap with the mean (a category: the most frequent level) of the training cases; `mask` tells the model
of it, too: by a number that is 1 where a number was missing, by a code without an embedding in a category, and by
leaving the whole vector out where a case has no value at all. With either, the vector is left out of a case that lacks
the table as a source, as an image without a row of a clinical table does."""

NO_LEVEL = -1
"""Code of a category that is missing, or a level that no training case had: its embedding is zero."""


@dataclasses.dataclass(frozen=True)
class ClinicalVector:
    """What a detector reads of the table of a case.

    Attributes:
      table: the fitted encoder.
      missing: what becomes of gaps.
    """

    table: FittedTable
    missing: Missing = "mean"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the values that are numbers, which come first."""
        return tuple(name for name, _ in self._numbers())

    @property
    def categories(self) -> tuple[str, ...]:
        """Columns of which a code follows, in order."""
        return tuple(column.column.name for column, _ in self._categories())

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of codes of each category, from 0, the reference; -1 is no level."""
        return tuple(len(column.levels) for column, _ in self._categories())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all values."""
        return (*self.numbers, *self.categories)

    def values(
        self, cohort: Cohort, rows: Int[np.ndarray, "n"], train: Sequence[str]
    ) -> tuple[Float[np.ndarray, "n t"], Bool[np.ndarray, "n"]]:
        """Values of some cases, and which of the cases have any.

        Args:
          cohort: with the columns.
          rows: of it.
          train: ids of the cases that were fitted on, asked for only where one of the rows is among them.

        Raises:
          ValueError: a column is absent, or a cell cannot be read; the message names column and case.
        """
        encoded = encoded_rows(self.table, cohort, rows, train)
        parts = [encoded[:, place] for _, place in self._numbers()]
        for column, places in self._categories():
            # A code is the place of the one among the dummies; the reference has none, and what is no level comes last.
            codes = np.where(encoded[:, places].any(axis=1), encoded[:, places].argmax(axis=1) + 1, 0)
            parts.append(np.where(codes < len(column.levels), codes, NO_LEVEL))
        values = np.stack(parts, axis=1).astype(np.float32)
        return values, self._there(cohort, rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"table": self.table.to_json(), "missing": self.missing}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClinicalVector":
        """The vector that `to_json` described."""
        return cls(FittedTable.from_json(value["table"]), value["missing"])

    def _there(self, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        there = np.ones(len(rows), bool)
        for name, source in cohort.sources.items():
            if source.kind == "table":
                there &= cohort.present[name][rows]
        if self.missing == "mask":
            cells = cohort.table[[column.column.name for column in self.table.columns]].iloc[rows]
            there &= cells.notna().any(axis=1).to_numpy(dtype=bool)
        return there

    def _placed(self) -> list[tuple[FittedColumn, int]]:
        """Columns with the place of their first output."""
        starts = np.cumsum([0, *(len(column.outputs) for column in self.table.columns)])
        return list(zip(self.table.columns, starts[:-1].tolist(), strict=True))

    def _numbers(self) -> list[tuple[str, int]]:
        found = []
        for column, start in self._placed():
            names = column.outputs
            if isinstance(column.column, Category):
                names = names[-1:] if column.column.indicator else ()
                start += len(column.outputs) - len(names)
            found += [(name, start + number) for number, name in enumerate(names)]
        return found

    def _categories(self) -> list[tuple[FittedColumn, list[int]]]:
        found = []
        for column, start in self._placed():
            if isinstance(column.column, Category):
                dummies = len(column.outputs) - column.column.indicator
                found.append((column, list(range(start, start + dummies))))
        return found


def fit_clinical(
    cohort: Cohort,
    train: Sequence[str],
    *,
    fold: str,
    columns: Sequence[Mapping[str, Any]] | None = None,
    features: Sequence[str] = (),
    values: ClinicalValues = "encoded",
    missing: Missing = "mean",
) -> ClinicalVector:
    """Fit the clinical columns to the training cases; no other case is looked at.

    Categories become codes for an embedding; numbers, ranks and answers of yes or no are numbers.

    Args:
      cohort: with input columns.
      train: ids of the training cases.
      fold: name of the fold, for records and messages.
      columns: declarations as `data.tabular.columns_from_json` reads them; suggested from the training cases by
        default.
      features: columns that are read, in this order; all by default.
      values: "native" leaves numbers in their units.
      missing: what fills gaps of columns that do not say so themselves.

    Raises:
      ValueError: a feature that is no input column, no column at all, or a declaration that does not fit.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"sex": ["F", "M", "F"], "age": [40.0, 60.0, 80.0]})
      >>> cohort = Cohort.from_arrays(
      ...     {"image": np.zeros((3, 4, 4, 1))}, table=table, roles={"sex": "input", "age": "input"}
      ... )
      >>> vector = fit_clinical(cohort, cohort.case_id, fold="all", values="native")
      >>> vector.names, vector.levels, vector.values(cohort, np.arange(3), cohort.case_id)[0].tolist()
      (('age', 'sex'), (2,), [[40.0, 0.0], [60.0, 1.0], [80.0, 0.0]])
    """
    inputs = cohort.columns("input")
    if not inputs:
        raise ValueError(
            f"{cohort.name}: no clinical column: no column of its table has the role 'input', and the model fuses "
            "them. Give columns that role in the cohort file, or choose a model without clinical data (mask-rcnn, "
            "retinanet)."
        )
    for name in features:
        if name not in inputs:
            held = f" (its role is {cohort.role(name)!r})" if name in cohort.table.columns else ""
            raise ValueError(f"{cohort.name}: features: no input column {name!r}{held}; {close_to(name, inputs)}")
    names = list(features or inputs)
    if columns is None:
        declared = suggested(cohort, train, fold=fold, names=names)
        declared = tuple(_filled(column, missing, gaps=_gaps(cohort, train, column.name)) for column in declared)
    else:
        every = columns_from_json(list(columns), where="argument `columns`")
        by_name = {column.name: column for column in every}
        for name in features:
            if name not in by_name:
                raise ValueError(f"features: {name!r} is not declared in `columns`; {close_to(name, by_name)}")
        declared = tuple(by_name[name] for name in features) if features else every
        declared = tuple(
            _filled(column, missing, gaps=_gaps(cohort, train, column.name)) if column.impute == "none" else column
            for column in declared
        )
    if values == "native":
        declared = tuple(
            dataclasses.replace(column, scale="none") if isinstance(column, Number | Ordinal) else column
            for column in declared
        )
    return ClinicalVector(fit(declared, cohort.inputs, train, fold=fold, units=dict(cohort.units)), missing)


def _gaps(cohort: Cohort, train: Sequence[str], name: str) -> bool:
    inputs = cohort.inputs
    return name in inputs.columns and bool(inputs.loc[list(train), name].isna().any())


def _filled(column: Column, missing: Missing, *, gaps: bool) -> Column:
    """The declaration with gaps filled, though no training case may have one."""
    told = missing == "mask" and gaps
    match column:
        case Number():
            return dataclasses.replace(column, impute="mean", indicator=told)
        case Ordinal():
            return dataclasses.replace(column, impute="median", indicator=told)
        case Flag() | Cutoff():
            return dataclasses.replace(column, impute="mode", indicator=told)
        case Category():
            impute = "level" if missing == "mask" else "mode"
            return dataclasses.replace(column, impute=impute, indicator=False, unseen="column")
