"""Pairs of batches: cases for the weights, and cases of other patients for the architecture."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from fusion_jax.arrays import Batch
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.sampling import Sampler
from fusion_jax.wording import listed

__all__ = ["PairedBatches", "SearchBatch", "paired_batches"]

SHOWN = 8
"""Patients that a message names."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchBatch:
    """Cases for the weights, and cases for the architecture.

    Attributes:
      train: cases that the weights are fitted to.
      validation: cases that the architecture is fitted to.
    """

    train: Batch
    validation: Batch

    @property
    def valid(self) -> Any:
        """Valid rows of `train`, over which the reported loss is a mean, shape `(b,)`."""
        return self.train.valid

    @property
    def index(self) -> Int[np.ndarray, "m"]:
        """Rows of both in the cohort, for the message of a search that diverges."""
        return np.concatenate([np.asarray(self.train.index), np.asarray(self.validation.index)])


@dataclasses.dataclass(frozen=True, eq=False)
class PairedBatches:
    """A batch for the weights and one for the architecture, each pair a pure function of its number.

    An epoch goes once through the training rows. To every batch of them belongs one of validation rows, drawn with
    replacement.

    Attributes:
      train: batches of the training rows.
      validation_rows: rows of the cohort to draw from.
    """

    train: Batches
    validation_rows: Int[np.ndarray, "n"]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.train.steps_per_epoch

    def at(self, step: int) -> SearchBatch:
        """The pair of a step."""
        train = self.train.at(step)  # refuses a step below 0
        epoch, within = divmod(step, self.steps_per_epoch)
        return SearchBatch(train, self._drawn(epoch).at(within))

    def iterate(self, start: int = 0, *, stop: int | None = None, workers: int = 0) -> Iterator[SearchBatch]:
        """The pairs from `start` to before `stop`, read ahead as `Batches.iterate` does."""
        drawn: Iterator[Batch] = iter(())
        for step, train in enumerate(self.train.iterate(start, stop=stop, workers=workers), start):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == start or not within:
                last = self.steps_per_epoch
                if stop is not None:
                    last = min(last, stop - epoch * self.steps_per_epoch)
                drawn = self._drawn(epoch).iterate(within, stop=last, workers=workers)
            yield SearchBatch(train, next(drawn))

    def _drawn(self, epoch: int) -> Batches:
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            # The last number keeps these draws apart from the order of the training rows.
            rng = np.random.default_rng([*self.train.seed, epoch, 1])
            rows = rng.choice(self.validation_rows, self.steps_per_epoch * self.train.batch_size)
            kept = self.__dict__["_kept"] = (epoch, dataclasses.replace(self.train, rows=rows, sampler="sequential"))
        return kept[1]


def paired_batches(
    cohort: Cohort,
    train_rows: Int[np.ndarray, "n"],
    validation_rows: Int[np.ndarray, "m"],
    batch_size: int,
    seed: tuple[int, ...],
    *,
    sampler: Sampler = "shuffle",
) -> PairedBatches:
    """Batches of a search.

    Args:
      cohort: whose table sources have been encoded.
      train_rows: rows that the weights are fitted to.
      validation_rows: rows that the architecture is fitted to.
      batch_size: rows of either batch; the last one of the training rows is padded.
      seed: of the run, such as (seed, repeat, fold).
      sampler: order of the training rows.

    Returns:
      Batches for `fit`.

    Raises:
      ValueError: a patient on both sides, or rows and settings that `Batches` refuses.

    Example:
      >>> cohort = Cohort.from_arrays({"x": np.arange(6.0).reshape(6, 1)}, label=[0, 1] * 3)
      >>> batches = paired_batches(cohort, np.arange(4), np.array([4, 5]), 2, (0,))
      >>> batches.steps_per_epoch, sorted(set(batches.at(0).validation.index.tolist()) - {4, 5})
      (2, [])

    References:
      Peng et al. 2020; specs/mm_nas.md, 5.1 and reading N1.
    """
    Batches(cohort, validation_rows, batch_size, seed)  # refuses rows that are none
    batches = Batches(cohort, train_rows, batch_size, seed, sampler=sampler)
    patients = cohort.patient_id
    shared = sorted(set(patients[train_rows]) & set(patients[validation_rows]), key=str)
    if shared:
        raise ValueError(
            f"{cohort.name}: {len(shared)} patients are on both sides of the search, for the weights and for the "
            f"architecture: {listed([str(patient) for patient in shared], SHOWN)}. Divide by patient, as "
            "`fusion_jax.data.splits` does."
        )
    return PairedBatches(batches, validation_rows)
