"""The same figures in parts of the cohort, with small cells withheld."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.delong import delong, delong_interval, delong_test
from fusion_jax.evaluation.operating import READ_OFF, Rule
from fusion_jax.evaluation.panel import Panel, View
from fusion_jax.evaluation.proportions import clustered_proportion
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Cell", "cells_of", "judge_subgroups"]

LEAST_OF_A_CLASS = 5
MOST_LEVELS = 12
FEW_NUMBERS = 5
PARTS = 3


class Cell(NamedTuple):
    """One model in one part of the cohort.

    Attributes:
      column, value: the covariate and its level, or the range of its values.
      model, metric, rule: as in `MetricKey`.
      rows, events, patients: of the part.
      withheld: why there is no figure; empty where there is one.
      estimate, low, high: the figure and its interval over patients; NaN where withheld, and ends at a threshold that
        the rows chose.
      difference, difference_low, difference_high: from the first model of the table, for the AUC; NaN otherwise.
    """

    column: str
    value: str
    model: str
    metric: str
    rule: str
    rows: int
    events: int
    patients: int | None
    withheld: str
    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    difference: float = np.nan
    difference_low: float = np.nan
    difference_high: float = np.nan


def cells_of(column: str, values: Any) -> Mapping[str, np.ndarray]:
    """Rows of each level of a covariate; numbers with many values in thirds of the rows, missing values apart.

    Args:
      column: name, for messages.
      values: pandas Series, one value a row.

    Returns:
      Level to the rows that have it, as a mask of shape `(n,)`.

    Raises:
      ValueError: text with more levels than a table can show.

    Example:
      >>> import pandas as pd
      >>> {name: int(rows.sum()) for name, rows in cells_of("age", pd.Series([30, 41, 52, 63, 74, 85, None])).items()}
      {'30 to 41': 2, '52 to 63': 2, '74 to 85': 2, 'missing': 1}
    """
    import pandas as pd

    missing = values.isna().to_numpy(dtype=bool)
    known = values[~missing]
    found: dict[str, np.ndarray] = {}
    numeric = pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known)
    if numeric and known.nunique() > FEW_NUMBERS:
        cuts = np.unique(np.quantile(known, np.linspace(0, 1, PARTS + 1)[1:-1], method="closest_observation"))
        part = np.searchsorted(cuts, values.to_numpy(dtype=float), side="left")
        for number in np.unique(part[~missing]):
            rows = (part == number) & ~missing
            inside = values[rows]
            found[f"{inside.min():.12g} to {inside.max():.12g}"] = rows
    else:
        levels = sorted(known.unique(), key=None if numeric else str)
        if len(levels) > MOST_LEVELS:
            raise ValueError(
                f"subgroup column {column!r} has {len(levels)} levels ({listed(levels)}); at most {MOST_LEVELS} can be "
                "shown. Group them into fewer in the cohort's table."
            )
        for level in levels:
            name = f"{level:.12g}" if numeric else str(level)
            found[name] = (values == level).to_numpy(dtype=bool) & ~missing
    if missing.any():
        found["missing"] = missing
    return found


def judge_subgroups(
    panel: Panel, view: View, rules: tuple[Rule, ...], covariates: "pandas.DataFrame", protocol: Protocol
) -> tuple[Cell, ...]:
    """AUC, and sensitivity and specificity at each operating point, in every level of every covariate.

    Intervals are DeLong's on the logit scale and Wilson's, over patients; there is none at a threshold that the rows
    chose. A part with fewer patients (rows, where the table has no patients) than `protocol.least_cell`, or fewer than
    five of a class, is withheld: so few say nothing, and may identify somebody. No interaction is tested, and nothing
    is adjusted for the number of parts.

    Args:
      panel: of two classes, with labels.
      view: one score for each model and row.
      rules: operating points.
      covariates: one row for each row of the panel, in order.
      protocol: level and least cell.

    Returns:
      Cells by covariate, level and model; none of a covariate with one value in all rows.

    Raises:
      ValueError: a covariate with too many levels.
    """
    labels: Any = panel.labels
    found: list[Cell] = []
    for column in covariates.columns:
        parts = cells_of(str(column), covariates[column])
        if len(parts) < 2:
            continue
        for value, rows in parts.items():
            part = labels[rows]
            patients = None if panel.patients is None else panel.patients[rows]
            size, events = int(rows.sum()), int(part.sum())
            basis: dict[str, Any] = {
                "column": str(column),
                "value": value,
                "rows": size,
                "events": events,
                "patients": None if patients is None else len(np.unique(patients)),
            }
            who = np.arange(size) if patients is None else patients
            people = "rows" if patients is None else "patients"
            withheld = ""
            if len(np.unique(who)) < protocol.least_cell:
                withheld = f"fewer than {protocol.least_cell} {people}"
            elif min(len(np.unique(who[part == number])) for number in (0, 1)) < LEAST_OF_A_CLASS:
                withheld = f"fewer than {LEAST_OF_A_CLASS} {people} of a class"
            if withheld:
                # The counts of a small cell are what is withheld.
                basis |= {"rows": -1, "events": -1, "patients": None}
                found += [Cell(model=model, metric="auc", rule="", withheld=withheld, **basis) for model in view.models]
                continue
            found += _areas(view, rows, part, patients, basis, protocol)
            for rule in rules:
                for number, model in enumerate(view.models):
                    decisions = rule.decisions[number][rows]
                    for metric, which in (("sensitivity", part == 1), ("specificity", part == 0)):
                        share = clustered_proportion(
                            (decisions == part)[which].astype(int),
                            None if patients is None else patients[which],
                            protocol.level,
                        )
                        ends = {} if rule.name == READ_OFF else {"low": share.low, "high": share.high}
                        found.append(
                            Cell(
                                model=model,
                                metric=metric,
                                rule=rule.name,
                                withheld="",
                                estimate=share.estimate,
                                **ends,
                                **basis,
                            )
                        )
    return tuple(found)


def _areas(
    view: View,
    rows: np.ndarray,
    part: np.ndarray,
    patients: np.ndarray | None,
    basis: Mapping[str, Any],
    protocol: Protocol,
) -> list[Cell]:
    analytic = delong(part, view.scores[:, rows].T, patients)
    interval = delong_interval(analytic, protocol.level, scale="logit")
    test = delong_test(analytic, protocol.level)
    found = []
    for number, model in enumerate(view.models):
        against: dict[str, Any] = (
            {
                "difference": float(test.difference[number, 0]),
                "difference_low": float(test.low[number, 0]),
                "difference_high": float(test.high[number, 0]),
            }
            if number
            else {}
        )
        found.append(
            Cell(
                model=model,
                metric="auc",
                rule="",
                withheld="",
                estimate=float(analytic.auc[number]),
                low=float(interval.low[number]),
                high=float(interval.high[number]),
                **basis,
                **against,
            )
        )
    return found
