"""Which epoch is best, when to stop, and when to lower the learning rate: the rules that live on the host."""

import math
from typing import Literal, NamedTuple

from fusion_jax.training.optimiser import Plateau

__all__ = ["Rules", "Standing"]


class Standing(NamedTuple):
    """What the epochs so far amount to; a checkpoint holds it.

    Attributes:
      best: metric of the best epoch, or None before there is one.
      best_epoch: from 0, or None.
      waited: epochs since the best one.
      flat: epochs without improvement since the best one or since the rate was lowered.
      scale: of the learning rate.
    """

    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    flat: int = 0
    scale: float = 1.0


class Rules(NamedTuple):
    """How epochs are judged.

    Attributes:
      mode: whether a larger ("max") or a smaller metric ("min") is better.
      patience: the run ends once more than so many epochs pass without improvement; None never.
      min_epochs: epochs that are run in any case.
      plateau: when the learning rate is lowered, or None.
      floor: metric of a model that has learnt nothing, such as an average precision of 0. Epochs before the first that
        is better than that are no best ones, and patience and plateau do not count them.

    References:
      Holste et al. 2021 train on while the count is at most 20, so that the 21st epoch ends a run;
      specs/breast_mri_fusion.md, B8.
    """

    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    min_epochs: int = 0
    plateau: Plateau | None = None
    floor: float | None = None

    def after(self, standing: Standing, epoch: int, metric: float) -> Standing:
        """The standing after one more epoch. A metric that is NaN is no improvement.

        Example:
          >>> standing = Rules().after(Standing(), 0, 0.7)
          >>> Rules().after(standing, 1, 0.7).waited
          1
        """
        best = standing.best
        sign = 1.0 if self.mode == "max" else -1.0
        if best is None and self.floor is not None and not sign * metric > sign * self.floor:
            return standing
        if not math.isnan(metric) and (best is None or sign * metric > sign * best):
            return Standing(metric, epoch, 0, 0, standing.scale)
        standing = standing._replace(waited=standing.waited + 1, flat=standing.flat + 1)
        if self.plateau is not None and standing.flat > self.plateau.patience:
            scale = max(standing.scale * self.plateau.factor, self.plateau.least)
            standing = standing._replace(flat=0, scale=min(scale, standing.scale))
        return standing

    def ends(self, standing: Standing, epoch: int) -> bool:
        """Whether patience is over after this epoch."""
        return self.patience is not None and standing.waited > self.patience and epoch + 1 >= self.min_epochs
