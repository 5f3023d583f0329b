"""Declarations for a table that nobody has declared yet, by looking at its cells; to be read before they are used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.data.tabular.cells import Coded, column_of, factorise, read_numbers
from fusion_jax.data.tabular.columns import Category, Column, Flag, Number

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["suggest_columns"]

ANSWERS = {"yes": 1, "y": 1, "true": 1, "no": 0, "n": 0, "false": 0}


def suggest_columns(table: "pandas.DataFrame", *, units: Mapping[str, str] | None = None) -> tuple[Column, ...]:
    """A declaration for every column: flags, scaled numbers and categories, with gaps filled and marked.

    0 and 1, true and false, yes and no are flags; other columns of numbers with more than two values are standardised;
    the rest are categories. Gaps take the median or the mode of the training cases; a column with gaps also gets an
    indicator, a category a level of its own. No label is looked at, and no statistic is taken: `fit` does that in the
    fold. Write the result down (`columns_to_json`), correct it, and keep it with the study.

    Args:
      table: the inputs, such as `cohort.inputs`.
      units: column to unit, such as `cohort.units`.

    Returns:
      One declaration a column, in the order of the table.

    Raises:
      ValueError: if a column is empty, holds dates, or holds numbers with a few words among them; the message names
        column and case.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"age": [40, 60, 75], "ascites": ["no", "yes", "no"], "stage": ["A", "B", "C"]})
      >>> for column in suggest_columns(table, units={"age": "years"}):
      ...     print(column)
      Number(name='age', unit='years', substance='', scale='standard', impute='median', indicator=False)
      Flag(name='ascites', yes=('yes',), no=('no',), impute='mode', indicator=False)
      Category(name='stage', levels=(), reference=None, unseen='zeros', impute='none', indicator=False)
    """
    return tuple(_suggest(column_of(table, name), (units or {}).get(name, "")) for name in table.columns)


def _suggest(cells: Any, unit: str) -> Column:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(cells.dtype) or pd.api.types.is_timedelta64_dtype(cells.dtype):
        raise ValueError(f"column {cells.name!r} holds dates or durations. Derive a number, such as an age, from it.")
    found = factorise(cells)
    gaps = bool((found.codes < 0).any())
    name = str(cells.name)
    if not found.levels:
        raise ValueError(f"column {name!r} is empty in all {len(cells)} cases. Leave it out.")
    answers = [ANSWERS.get(level.casefold()) if level not in ("0", "1") else int(level) for level in found.levels]
    if None not in answers:
        yes = tuple(level for level, answer in zip(found.levels, answers, strict=True) if answer == 1)
        no = tuple(level for level, answer in zip(found.levels, answers, strict=True) if answer == 0)
        return Flag(name=name, yes=yes or (1,), no=no or (0,), impute="mode", indicator=gaps)
    if len(found.levels) > 2 and _mostly_numbers(found):
        read_numbers(cells)
        return Number(name=name, unit=unit, impute="median", indicator=gaps)
    return Category(name=name, impute="level" if gaps else "none")


def _mostly_numbers(found: Coded) -> bool:
    """Whether most distinct cells are numbers: then a word among them is a slip and not a level."""
    return float(np.mean([_is_number(level) for level in found.levels])) > 0.5


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
