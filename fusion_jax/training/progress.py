"""How far a run is, for whoever shows it."""

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Pace", "Progress"]

SECONDS_BETWEEN = 0.2
"""Reports come no closer than this, but for those at the end of an epoch."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      epoch, epochs: the epoch that runs, from 0, and how many there are at most.
      step, steps: steps of this epoch that have ended, and how many it has.
      loss: mean over the cases of this epoch so far; None before there is one.
      metric: best so far, or None.
      seconds_left: until the last epoch, at the pace so far; less if the run stops early. None before there is a pace.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    metric: float | None
    seconds_left: float | None


class Pace:
    """Seconds a step takes, evaluation included, and when to report."""

    def __init__(self, report: Callable[[Progress], None] | None, epochs: int, steps: int, done: int) -> None:
        self.report, self.epochs, self.steps = report, epochs, steps
        self.start, self.begun = done, None
        self.reported = time.monotonic()

    def due(self) -> bool:
        """Whether somebody wants to hear something now."""
        return self.report is not None and time.monotonic() - self.reported >= SECONDS_BETWEEN

    def tell(self, done: int, loss: float | None, metric: float | None) -> None:
        """Report after `done` steps of all epochs."""
        self.reported = time.monotonic()
        if self.begun is None:
            # The first report follows the compilation, which does not come again.
            self.start, self.begun, left = done, self.reported, None
        else:
            a_step = (self.reported - self.begun) / max(done - self.start, 1)
            left = a_step * (self.epochs * self.steps - done)
        if self.report is not None:
            epoch = max(done - 1, 0) // self.steps
            self.report(Progress(epoch, self.epochs, done - epoch * self.steps, self.steps, loss, metric, left))
