"""What is predicted: the classes of a label, or the risk of an event."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.wording import listed

__all__ = ["Survival", "Target", "Task", "check_labels", "survival_of", "target_of", "with_target"]

Task = Literal["auto", "label", "survival"]
"""`auto` takes the label where the cohort has one, and time and event where not."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a model predicts.

    Attributes:
      kind: "label" or "survival".
      column: of the label, or of the event ("" where every time is that of an event).
      classes: names of the classes in the order of their numbers; empty for survival.
    """

    kind: Literal["label", "survival"]
    column: str
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Columns of a prediction: the classes, or one log risk."""
        return max(1, len(self.classes))

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, "column": self.column, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: Any) -> "Target":
        """The target that `to_json` described."""
        return cls(value["kind"], value["column"], tuple(value["classes"]))


def target_of(cohort: Cohort, task: Task = "auto") -> Target:
    """What a model of this cohort predicts.

    Args:
      cohort: with a label, or with time and event.
      task: which of them, where it has both.

    Raises:
      ValueError: the cohort has no such column, or its label fewer than two classes.

    Example:
      >>> cohort = Cohort.from_arrays({"clinical": np.zeros((4, 3))}, label=["no", "yes", "no", "yes"])
      >>> target_of(cohort)
      Target(kind='label', column='label', classes=('no', 'yes'))
    """
    label, time = cohort.columns("label"), cohort.columns("time")
    if task == "label" or (task == "auto" and label):
        if not label:
            raise ValueError(f"{cohort.name}: no column has the role 'label'. Give one that role, or predict survival.")
        if len(cohort.classes) < 2:
            raise ValueError(
                f"{cohort.name}: label {label[0]!r} has the classes {listed(cohort.classes) or 'none'}; expected two "
                "or more."
            )
        return Target("label", label[0], cohort.classes)
    if not time:
        wanted = "'time'" if task == "survival" else "'label' or 'time'"
        raise ValueError(
            f"{cohort.name}: no column has the role {wanted}; expected something to predict. Give a column that role."
        )
    return Target("survival", (cohort.columns("event") or ("",))[0])


def with_target(cohort: Cohort, target: Target) -> Cohort:
    """The cohort with the roles of one task alone, so that gaps of another one's columns refuse nobody."""
    roles = {}
    for column, role in cohort.roles.items():
        of_label = role == "label" and target.kind == "label" and column == target.column
        of_survival = role in ("time", "event") and target.kind == "survival"
        roles[column] = role if of_label or of_survival or role in ("input", "group") else "never"
    return dataclasses.replace(cohort, roles=roles)


def check_labels(cohort: Cohort, target: Target, rows: Int[np.ndarray, "n"]) -> None:
    """Refuse rows whose outcome is not known.

    Raises:
      ValueError: names the first case and how many there are.
    """
    if target.kind == "survival":
        survival_of(cohort, rows)
        return
    lacking = rows[cohort.codes(target.column)[0][rows] < 0]
    if len(lacking):
        raise ValueError(
            f"{cohort.name}: case {cohort.case_id[int(lacking[0])]} has no {target.column} ({len(lacking)} in all). "
            "Leave these cases out: they can be predicted afterwards."
        )


class Survival(NamedTuple):
    """Follow-up of cases.

    Attributes:
      time: in the unit of the column, shape `(n,)`.
      event: whether it ended with the event, shape `(n,)`.
    """

    time: Float[np.ndarray, "n"]
    event: Bool[np.ndarray, "n"]


def survival_of(cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Survival:
    """Times and events of rows.

    Raises:
      ValueError: a case without them; the message names it.
    """
    import pandas as pd

    found = {}
    for role in ("time", "event"):
        columns = cohort.columns(role)
        if not columns:
            found[role] = np.ones(len(rows))
            continue
        cells = cohort.table[columns[0]].iloc[rows]
        numbers = np.array(pd.to_numeric(cells, errors="coerce"), float)
        wrong = ~np.isfinite(numbers) | ((numbers < 0) if role == "time" else ~np.isin(numbers, (0, 1)))
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{cohort.name}: column {columns[0]!r} holds {cells.iloc[place]!r} in case "
                f"{cohort.case_id[int(rows[place])]}; expected "
                f"{'a time of at least 0' if role == 'time' else '0 or 1'}. Leave such cases out."
            )
        found[role] = numbers
    return Survival(found["time"], found["event"] > 0)
