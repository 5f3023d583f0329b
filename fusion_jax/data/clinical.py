"""Clinical columns for a recipe: declared or suggested, fitted to the training cases, applied to any case."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.tabular import (
    Category,
    Column,
    FittedTable,
    Flag,
    Number,
    Ordinal,
    columns_from_json,
    fit,
    select,
    suggest_columns,
)
from fusion_jax.records.arguments import close_to
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["ClinicalValues", "encoded_rows", "fit_columns", "suggested"]

ClinicalValues = Literal["encoded", "native"]
"""`encoded` scales numbers as declared; `native` leaves them in their unit, as a positional encoding wants them."""

logger = logging.getLogger("fusion_jax.data.clinical")


def fit_columns(
    cohort: Cohort,
    train: Sequence[str],
    *,
    fold: str,
    columns: Sequence[Mapping[str, Any]] | None = None,
    values: ClinicalValues = "encoded",
    names: Sequence[str] | None = None,
    selection: Mapping[str, Any] | None = None,
) -> FittedTable:
    """Fit declarations of the input columns to training cases.

    Without declarations they are suggested from the cells of the training cases. Columns that say nothing there (empty,
    or one value in all training cases) are then left out with a word in the log, and every column fills gaps, since a
    test case may have the first one.

    Args:
      cohort: with input columns; cases beyond the training cases are not looked at.
      train: ids of the training cases.
      fold: name of the fold, for records and messages.
      columns: declarations as `data.tabular.columns_from_json` reads them.
      values: "native" turns the scaling of numbers and ranks off.
      names: columns that are read; all inputs by default. Of declarations those of other columns are left out.
      selection: `alpha` and `correction` of `data.tabular.select`, by which the training cases choose among the
        declared columns, each patient counted once; none is chosen by default. Where no column passes, the one with
        the smallest p-value is kept.

    Raises:
      ValueError: no column is left, or a declaration that does not fit; the message names it.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"age": [40.0, 60.0, 80.0], "hospital": ["A", "A", "A"]})
      >>> cohort = Cohort.from_arrays({"image": np.zeros((3, 4, 4, 1))}, label=[0, 1, 0], table=table,
      ...                             roles={"age": "input", "hospital": "input"})
      >>> fit_columns(cohort, cohort.case_id, fold="all").names
      ('age',)
    """
    inputs: Any = cohort.inputs if names is None else cohort.inputs[list(names)]
    if columns is not None:
        declared = columns_from_json(list(columns), where="argument `columns`")
        declared = tuple(column for column in declared if names is None or column.name in names)
    else:
        declared = tuple(map(_filled, suggested(cohort, train, fold=fold, names=names)))
    if values == "native":
        declared = tuple(
            dataclasses.replace(column, scale="none") if isinstance(column, Number | Ordinal) else column
            for column in declared
        )
    if selection is not None:
        declared = _selected(declared, cohort, train, fold, selection)
    return fit(declared, inputs, train, fold=fold, units=dict(cohort.units))


def suggested(
    cohort: Cohort, train: Sequence[str], *, fold: str, names: Sequence[str] | None = None
) -> tuple[Column, ...]:
    """Declarations of the input columns, from the cells of training cases; columns that say nothing are left out.

    Args:
      cohort: with input columns; cases beyond the training cases are not looked at.
      train: ids of the training cases.
      fold: name of the fold, for messages.
      names: columns that are read; all inputs by default.

    Raises:
      ValueError: every column is empty or holds one value in all training cases.
    """
    inputs: Any = cohort.inputs if names is None else cohort.inputs[list(names)]
    training = inputs.loc[list(train)]
    empty = [str(name) for name in training.columns if training[name].nunique(dropna=True) < 2]
    if empty:
        logger.info("%s, fold %s: %s left out, the same in all training cases", cohort.name, fold, listed(empty, 8))
    kept = training.drop(columns=empty)
    if not kept.shape[1]:
        found = f"{listed(empty, 8)} hold one value in all" if empty else "no column has the role 'input'"
        raise ValueError(
            f"{cohort.name}: no clinical column to learn from in {len(train)} training cases: {found}. Give columns "
            "the role 'input', or choose a model without clinical data."
        )
    return suggest_columns(kept, units=dict(cohort.units))


def _selected(
    declared: tuple[Column, ...], cohort: Cohort, train: Sequence[str], fold: str, settings: Mapping[str, Any]
) -> tuple[Column, ...]:
    """The columns that the training cases choose."""
    for key in settings:
        if key not in ("alpha", "correction"):
            raise ValueError(f"selection: no setting {key!r}; {close_to(key, ('alpha', 'correction'))}")
    tested: Any = cohort.inputs
    found = select(
        declared,
        tested,
        cohort.label,
        train,
        fold=fold,
        patients=cohort.patient_id,
        units=dict(cohort.units),
        **settings,
    )
    if not found.names:
        best = min(found.tests, key=lambda test: test.p)
        logger.warning(
            "%s, fold %s: no column has p < %g; %s is kept (p = %.2g)",
            cohort.name, fold, found.alpha, best.factor, best.p,
        )  # fmt: skip
        return tuple(column for column in declared if column.name == best.factor)
    return found.keep(declared, train_cases=train)


def encoded_rows(
    fitted: FittedTable, cohort: Cohort, rows: Int[np.ndarray, "n"], train: Sequence[str]
) -> Float[np.ndarray, "n t"]:
    """Values of rows of a cohort, of the fold that was fitted or of another study.

    Args:
      fitted: as from `fit_columns`.
      cohort: whose input columns are encoded.
      rows: any, also repeated.
      train: ids of the cases that were fitted on; asked for only where one of `rows` is among them.
    """
    unique, place = np.unique(np.asarray(rows), return_inverse=True)
    table: pandas.DataFrame = cohort.inputs.iloc[unique]
    units = dict(cohort.units)
    if fitted.fitted_on.among(table.index):
        values = fitted.apply(table, train_cases=train, units=units).values
    else:
        values = fitted.apply_to_new(table, units=units).values
    return values[place.reshape(-1)]


def _filled(column: Column) -> Column:
    """The declaration with gaps filled, though no training case has one."""
    if isinstance(column, Category | Flag) and column.impute == "none":
        return dataclasses.replace(column, impute="mode")
    return column
