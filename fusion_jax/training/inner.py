"""The patients that training may look at to stop, to choose and to calibrate: an inner part of the training patients.

Test patients are never asked. Where there are too few patients for a part of them to tell one epoch from another, there
is no inner part: training then ends at a fixed epoch, and the reason goes into the report.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, monte_carlo
from fusion_jax.wording import counted

__all__ = ["LEAST", "InnerSplit", "inner_split"]

LEAST = 50
"""Patients of the rarest class below which no part of them is set aside.

A fifth of 50 is 10; an AUC of .75 over 10 against 10 patients has a standard error of .11 (Hanley & McNeil 1982), and
the best of 30 epochs is then mostly the luckiest.
"""


class InnerSplit(NamedTuple):
    """A division of training cases.

    Attributes:
      train_rows: rows of the cohort to fit, in its order, shape `(n,)`.
      validation_rows: rows to stop, choose and calibrate by, shape `(m,)`; none where training ends at a fixed epoch.
      reason: how the division came about, one sentence for the report.
    """

    train_rows: Int[np.ndarray, "n"]
    validation_rows: Int[np.ndarray, "m"]
    reason: str

    @property
    def is_fixed(self) -> bool:
        """Whether nothing was set aside, so that training ends at a fixed epoch."""
        return not len(self.validation_rows)


def inner_split(
    cohort: Cohort,
    split: Split,
    *,
    fraction: float = 0.2,
    least: int = LEAST,
    seed: int,
    groups: Sequence[Any] | None = None,
) -> InnerSplit:
    """Divide the training patients of a split into those that are fitted and those that are looked at.

    Patients stay together and classes (events, without a label) keep their shares. A split that brings validation
    patients of its own is taken as it is. The test part of the split is not read, so `cohort` need not have it.

    Args:
      cohort: with the training cases of the split.
      split: whose training part is divided.
      fraction: of the training patients that is set aside.
      least: patients of the rarest class in the training part that this takes; with fewer, nothing is set aside.
      seed: of the draw; repeat and fold of the split enter as well.
      groups: one value a case of the cohort; cases of one value stay together, as in `data.splits.k_fold`.

    Returns:
      Rows of the cohort, and the reason.

    Raises:
      ValueError: a fraction outside 0 to 1, training cases that the cohort lacks or that are all of one class.

    Example:
      >>> from fusion_jax.data.splits import k_fold
      >>> cohort = Cohort.from_arrays({"image": np.zeros((200, 2))}, label=[0, 1] * 100)
      >>> split = k_fold(cohort, 4, seed=0).splits[0]
      >>> inner = inner_split(cohort, split, seed=0)
      >>> len(inner.train_rows), len(inner.validation_rows)
      (120, 30)
      >>> inner_split(cohort, split, least=100, seed=0).reason
      'No part of the 150 training patients was set aside, as class 0 has 75 of them and 100 are needed: ...'
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a fraction of {fraction} is set aside; expected a number between 0 and 1, such as 0.2.")
    train, validation, _ = split._replace(test=()).rows(cohort)
    if len(validation):
        patients = len(set(cohort.patient_id[validation]))
        return InnerSplit(
            train, validation, f"Validated on {counted(patients, 'patient')} that the split itself sets aside."
        )
    if not len(train):
        raise ValueError(f"{cohort.name}: the split has no training case; expected some to fit.")
    patients = len(set(cohort.patient_id[train]))
    rarest, count = _rarest(cohort, train)
    if count < least:
        return InnerSplit(
            train,
            validation,
            f"No part of the {counted(patients, 'training patient')} was set aside, as {rarest} has {count} of them "
            f"and {least} are needed: training ends at a fixed epoch.",
        )
    chosen = None if groups is None else [groups[row] for row in train]
    number = int(np.random.SeedSequence([seed, split.repeat, split.fold]).generate_state(1)[0])
    part = cohort.take(train)
    [drawn] = monte_carlo(part, seed=number, fractions=(1 - fraction, 0.0, fraction), groups=chosen).splits
    rows = drawn.rows(part)
    held = len(set(part.patient_id[rows.test]))
    return InnerSplit(
        train[rows.train],
        train[rows.test],
        f"Validated on {held} of the {counted(patients, 'training patient')}, drawn by patient within classes.",
    )


def _rarest(cohort: Cohort, rows: Int[np.ndarray, "n"]) -> tuple[str, int]:
    """What the fewest patients among these rows have, and how many they are."""
    if cohort.columns("label"):
        names = [f"class {name}" for name in cohort.classes]
        codes = cohort.label[rows]
    elif cohort.columns("event"):
        names = ["no event", "an event"]
        import pandas as pd

        cells = np.array(pd.to_numeric(cohort.table[cohort.columns("event")[0]], errors="coerce"), float)[rows]
        codes = np.where(np.isnan(cells), -1, cells > 0)
    else:
        return "the cohort", len(set(cohort.patient_id[rows]))
    patients = cohort.patient_id[rows]
    counts = {code: len(set(patients[codes == code])) for code in sorted(set(codes.tolist()) - {-1})}
    if cohort.columns("label") and len(counts) < 2:
        found = names[next(iter(counts))] if counts else "no known class"
        raise ValueError(f"{cohort.name}: all training cases are of {found}; expected at least two classes to learn.")
    code = min(counts, key=lambda one: (counts[one], one))
    return names[code], counts[code]
