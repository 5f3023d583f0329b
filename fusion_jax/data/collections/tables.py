"""The tables of collections, and the cohort around one."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.cohort import Boxes, Columns, Role

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["by_role", "clinical_source", "no_boxes", "read_cases"]


def read_cases(content: bytes | Path, case: str, columns: Sequence[str]) -> "pandas.DataFrame":
    r"""A CSV table indexed by its case ids.

    Args:
      content: the CSV, or where it is; compressed or not.
      case: column with the ids of the cases.
      columns: that the table must have.

    Raises:
      ValueError: a column is missing; the message names it.

    Example:
      >>> read_cases(b"id,age\n007,50\n", "id", ["age"]).index.tolist()
      ['007']
    """
    import pandas as pd

    packed = isinstance(content, bytes) and content[:2] == b"\x1f\x8b"
    source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    table = pd.read_csv(source, dtype={case: "str"}, compression="gzip" if packed else "infer")
    where = "table" if isinstance(content, bytes) else content
    for column in (case, *columns):
        if column not in table.columns:
            raise ValueError(f"{where}: no column {column!r}; it has {', '.join(table.columns)}. Get the table again.")
    return table.set_index(case).rename_axis("case_id")


def by_role(**columns: Sequence[str]) -> dict[str, Role]:
    """Roles by column from columns by role.

    Example:
      >>> by_role(input=["age"], label=["dead"])
      {'age': 'input', 'dead': 'label'}
    """
    roles: dict[str, Any] = {column: role for role, names in columns.items() for column in names}
    return roles


def clinical_source(table: "pandas.DataFrame", roles: Mapping[str, Role]) -> tuple[Columns, Bool[np.ndarray, "n"]]:
    """The input columns as one source, and whether a case has a value in any of them.

    Example:
      >>> import pandas as pd
      >>> clinical_source(pd.DataFrame({"age": [50, None]}), {"age": "input"})[1].tolist()
      [True, False]
    """
    names = tuple(column for column in table.columns if roles.get(column) == "input")
    known: Any = table[list(names)].notna()
    return Columns(names, len(table)), known.any(axis=1).to_numpy()


def no_boxes() -> Boxes:
    """Boxes of a case without any.

    Example:
      >>> no_boxes().corners.shape
      (0, 4)
    """
    return Boxes(np.zeros((0, 4)), np.zeros(0, np.int32))
