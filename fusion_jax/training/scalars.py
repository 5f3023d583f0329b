"""What the steps of an epoch say: scalars fetched from the device in lots, checked, and averaged over cases."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fusion_jax.arrays import Array

__all__ = ["DivergedError", "Sums", "Window"]

FINITE = ("loss", "gradient_norm")
"""Scalars that end a run when they are not finite."""

LAST = ("learning_rate",)
"""Scalars of which an epoch's last value counts, not the mean."""


class DivergedError(ValueError):
    """The loss or its gradient is no longer finite.

    Attributes:
      epoch, step: where, from 0; `step` counts over all epochs.
      case_ids: of the batch, or rows of the cohort as text where no ids were given.
    """

    def __init__(self, message: str, epoch: int, step: int, case_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.epoch, self.step, self.case_ids = epoch, step, case_ids

    def __reduce__(self) -> tuple[Any, ...]:
        # Runs in other processes send it home.
        return type(self), (str(self), self.epoch, self.step, self.case_ids)


class Sums(NamedTuple):
    """Scalars of the epoch so far; a checkpoint within an epoch holds them.

    Attributes:
      cases: valid rows so far.
      total: sum of each scalar over them.
      last: the newest value of each.
    """

    cases: int = 0
    total: Mapping[str, float] = {}
    last: Mapping[str, float] = {}

    def plus(self, info: Mapping[str, Any], cases: int) -> "Sums":
        """The sums with one more batch, whose scalars are means over `cases` rows."""
        last = {name: float(value) for name, value in info.items()}
        total = {name: self.total.get(name, 0.0) + cases * value for name, value in last.items()}
        return Sums(self.cases + cases, total, last)

    def means(self) -> dict[str, float]:
        """Means over cases.

        Example:
          >>> Sums().plus({"loss": 1.0}, 3).plus({"loss": 0.0}, 1).means()
          {'loss': 0.75}
        """
        means = {name: value / self.cases if self.cases else math.nan for name, value in self.total.items()}
        return {name: self.last[name] if name in LAST else mean for name, mean in means.items()}


class Window:
    """Scalars of the steps that have been handed to the device and not been fetched."""

    def __init__(self, first: int, sums: Sums) -> None:
        self.first = first
        """Step of the oldest entry."""
        self.sums = sums
        self.entries: deque[tuple[Mapping[str, Array], Array]] = deque()

    def push(self, info: Mapping[str, Array], cases: Array, *, ahead: int) -> None:
        """Take one more step in, and wait until at most `ahead` steps are under way."""
        self.entries.append((info, cases))
        if len(self.entries) > ahead:
            jax.block_until_ready(self.entries[-1 - ahead])

    def fetch(self, *, keep: int = 0) -> int | None:
        """Fetch all but the newest `keep` steps; the first step that is not finite, or None."""
        due = [self.entries.popleft() for _ in range(max(len(self.entries) - keep, 0))]
        for info, cases in jax.device_get(due):
            if not all(math.isfinite(info[name]) for name in FINITE if name in info):
                return self.first
            self.sums = self.sums.plus(info, int(cases))
            self.first += 1
        return None

    def close(self) -> dict[str, float]:
        """Means of the epoch, which starts anew."""
        means, self.sums = self.sums.means(), Sums()
        return means
