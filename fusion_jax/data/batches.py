"""Batches of fixed shape, each a pure function of its number, so that a run resumes from one integer."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from fusion_jax.arrays import Batch
from fusion_jax.data.cohort import Arrays, Boxes, Cohort, Columns
from fusion_jax.data.sampling import Sampler, epoch_order

__all__ = ["Batches"]

TARGETS = ("label", "time", "event", "masks", "boxes", "classes", "box_valid")
"""Names of targets with a meaning of their own."""

STEPS = 2**31 - 1
"""Length of the endless sequence of batches, as grain asks for one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Batches of some rows of a cohort, from step 0 to as far as one likes.

    Step s belongs to epoch s // `steps_per_epoch`. Which cases it holds follows from (`seed`, epoch, step) alone: the
    same on every machine, with any number of workers, and after a restart.

    Attributes:
      cohort: whose table sources have been encoded.
      rows: rows of the cohort to draw from.
      batch_size: rows of a batch over all processes; the last of an epoch is padded.
      seed: of the run, such as (seed, repeat, fold).
      sampler: order of an epoch, see `epoch_order`.
      targets: read labels, times, events, boxes and masks; False where cases without a label are predicted.
      max_boxes: rows of boxes a case; the largest number in the cohort by default.
      process_index, process_count: this process gets its share of every batch, `batch_size / process_count` rows.

    Raises:
      ValueError: settings, sources or labels that cannot become batches; the message names source and case.

    Example:
      >>> cohort = Cohort.from_arrays({"clinical": np.arange(10.0).reshape(5, 2)}, label=[0, 1, 0, 1, 0])
      >>> batches = Batches(cohort, np.arange(5), batch_size=4, seed=(0,), sampler="sequential")
      >>> batches.steps_per_epoch, batches.at(1).index.tolist(), batches.at(1).valid.tolist()
      (2, [4, -1, -1, -1], [True, False, False, False])
    """

    cohort: Cohort
    rows: Int[np.ndarray, "n"]
    batch_size: int
    seed: tuple[int, ...]
    sampler: Sampler = "shuffle"
    targets: bool = True
    max_boxes: int | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.process_count < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size is {self.batch_size} for {self.process_count} processes; expected a multiple of that."
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index is {self.process_index}; expected 0 to {self.process_count - 1}.")
        if self.rows.dtype.kind not in "iu":
            raise ValueError(f"rows are {self.rows.dtype}; expected row numbers, as `np.flatnonzero(mask)` gives them.")
        if not len(self.rows) or self.rows.min() < 0 or self.rows.max() >= len(self.cohort):
            raise ValueError(f"rows have to be some of 0 to {len(self.cohort) - 1}, and at least one.")
        if not isinstance(self.seed, tuple):
            raise ValueError(f"seed is {self.seed!r}; expected a tuple of whole numbers, such as (0,).")
        for name, source in self.cohort.sources.items():
            if isinstance(source, Columns):
                raise ValueError(
                    f"{self.cohort.name}: source {name!r} holds columns of the table, not numbers. Fit an encoder on "
                    "the training cases (`fusion_jax.data.tabular`), then put its values in with `cohort.with_source`."
                )
        # Asked for now, which refuses cases without a label here and not at the step that meets them.
        if "label" not in self._labels and self.sampler == "balanced":
            raise ValueError(f"{self.cohort.name}: the balanced sampler needs a label and targets=True.")

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        visited = len(set(self.cohort.patient_id[self.rows])) if self.sampler == "one per patient" else len(self.rows)
        return -(-visited // self.batch_size)

    def at(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
          ValueError: an image that cannot be read, is not finite, or differs in shape; the message names the case.
        """
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more.")
        epoch, within = divmod(step, self.steps_per_epoch)
        share = self.batch_size // self.process_count
        start = within * self.batch_size + self.process_index * share
        chosen = self._order(epoch)[start : start + share]
        index = np.full(share, -1, np.int32)
        index[: len(chosen)] = chosen
        valid = index >= 0
        present = {
            name: valid & self.cohort.present[name][index]
            for name, source in self.cohort.sources.items()
            if source.kind != "mask"
        }
        inputs = {name: self._stack(name, index, there) for name, there in present.items()}
        return Batch(inputs, self._target(index, valid), valid, present, index)

    def iterate(self, start: int = 0, *, stop: int | None = None, workers: int = 0, ahead: int = 2) -> Iterator[Batch]:
        """Batches from step `start` on, read ahead in the background.

        Args:
          start: step to begin with: 0, or the step that a run stopped at.
          stop: step to end before; None goes on for ever.
          workers: processes that read; 0 reads in a thread of this one, which suits what is in memory.
          ahead: batches that are made before they are asked for, by each worker.

        Raises:
          ValueError: as `at`, when the batch is due.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"start is {start} and stop {stop}; expected steps from 0 on, in this order.")
        import grain

        data: Any = grain.MapDataset.source(_Steps(self))[start : STEPS if stop is None else stop]
        stream = data.to_iter_dataset(
            grain.ReadOptions(num_threads=1 if not workers else 2, prefetch_buffer_size=ahead)
        )
        if workers:
            _allow_worker_processes()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead))
        return iter(stream)

    def epoch(self, epoch: int, **options: Any) -> Iterator[Batch]:
        """The batches of one epoch; options as those of `iterate`."""
        return self.iterate(epoch * self.steps_per_epoch, stop=(epoch + 1) * self.steps_per_epoch, **options)

    def _order(self, epoch: int) -> Int[np.ndarray, "m"]:
        kept = self.__dict__.get("_kept_order")
        if kept is None or kept[0] != epoch:
            order = epoch_order(
                self.rows,
                self.sampler,
                seed=self.seed,
                epoch=epoch,
                label=self._labels["label"][self.rows] if "label" in self._labels else None,
                patient=self.cohort.patient_id[self.rows],
            )
            kept = self.__dict__["_kept_order"] = (epoch, order)
        return kept[1]

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        """Labels, times and events of all rows of the cohort, checked for those that are drawn."""
        if not self.targets:
            return {}
        found: dict[str, np.ndarray] = {}
        for number, column in enumerate(self.cohort.columns("label")):
            if number and column in TARGETS:
                raise ValueError(
                    f"{self.cohort.name}: the second label is called {column!r}, a name that batches need; rename it."
                )
            found["label" if number == 0 else column] = self.cohort.codes(column)[0]
        for column in (*self.cohort.columns("time"), *self.cohort.columns("event")):
            numbers = self._numbers(column)
            found[self.cohort.role(column)] = numbers
            self._refuse(self.rows[np.isnan(numbers[self.rows])], self.cohort.role(column))
        if "event" in found:
            found["event"] = found["event"] > 0
        for number, column in enumerate(self.cohort.columns("label")):
            codes = found["label" if number == 0 else column]
            self._refuse(self.rows[codes[self.rows] < 0], column if number else "label")
        return found

    def _numbers(self, column: str) -> np.ndarray:
        import pandas as pd

        cells = self.cohort.table[column]
        event = self.cohort.role(column) == "event"
        wanted = "0 or 1" if event else "a number of days or months from the index date, 0 or more"
        if cells.dtype.kind in "Mm":
            # pandas would turn dates into nanoseconds.
            raise ValueError(f"{self.cohort.name}: column {column!r} holds {cells.dtype}; expected {wanted}.")
        numbers = np.array(pd.to_numeric(cells, errors="coerce"), np.float32)
        fits = np.isin(numbers, (0, 1)) if event else np.isfinite(numbers) & (numbers >= 0)
        bad = np.flatnonzero(~fits & cells.notna().to_numpy())
        if len(bad):
            raise ValueError(
                f"{self.cohort.name}: column {column!r} holds {cells.iloc[bad].tolist()[0]!r} in case "
                f"{self.cohort.case_id[bad[0]]}; expected {wanted}."
            )
        return numbers

    def _refuse(self, lacking: Int[np.ndarray, "m"], what: str) -> None:
        if len(lacking):
            raise ValueError(
                f"{self.cohort.name}: case {self.cohort.case_id[lacking[0]]} has no {what} ({len(lacking)} in all). "
                "Leave these cases out, or set targets=False to predict them."
            )

    @cached_property
    def _shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype, str]]:
        """Shape and dtype of every source, from the first case that has it, or from an array of one shape."""
        found = {}
        for name, source in self.cohort.sources.items():
            if not self.targets and source.kind == "mask":
                continue
            rows = np.flatnonzero(self.cohort.present[name])
            if not len(rows) and isinstance(source, Arrays) and isinstance(source.values, np.ndarray):
                found[name] = source.values.shape[1:], _narrow(source.values[:0]).dtype, ""
                continue
            if not len(rows):
                raise ValueError(f"{self.cohort.name}: no case has {name!r}; expected at least one. Remove the source.")
            values = self._values(name, int(rows[0]))
            found[name] = values.shape, values.dtype, self.cohort.case_id[rows[0]]
        return found

    def _values(self, name: str, row: int) -> np.ndarray:
        try:
            return _narrow(self.cohort.image(name, row).values)
        except OverflowError as error:
            raise ValueError(f"{self.cohort.name}: {name} of case {self.cohort.case_id[row]} {error}") from None

    def _stack(self, name: str, index: Int[np.ndarray, "b"], there: Shaped[np.ndarray, "b"]) -> np.ndarray:
        shape, dtype, first = self._shapes[name]
        stacked = np.zeros((len(index), *shape), dtype)
        for place in np.flatnonzero(there):
            row = int(index[place])
            values = self._values(name, row)
            if values.shape != shape or values.dtype != dtype:
                raise ValueError(
                    f"{self.cohort.name}: {name} of case {self.cohort.case_id[row]} is {values.dtype} of shape "
                    f"{values.shape}, that of case {first} {dtype} of shape {shape}; expected one shape for all. Bring "
                    "them to it in `preprocess` (resample, crop_or_pad or resize)."
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(
                    f"{self.cohort.name}: {name} of case {self.cohort.case_id[row]} holds NaN or infinity; expected "
                    "finite numbers. Impute or clip them, or mark the source absent for this case."
                )
            stacked[place] = values
        return stacked

    def _target(self, index: Int[np.ndarray, "b"], valid: Shaped[np.ndarray, "b"]) -> Mapping[str, Any]:
        if not self.targets:
            return {}
        target: dict[str, Any] = {}
        for name, values in self._labels.items():
            target[name] = np.where(valid, values[index], np.zeros((), values.dtype))
        masks = {name: source for name, source in self.cohort.sources.items() if source.kind == "mask"}
        if masks:
            target["masks"] = {
                name: self._stack(name, index, valid & self.cohort.present[name][index]) for name in masks
            }
        if self.cohort.boxes is not None:
            target |= self._boxes(self.cohort.boxes, index)
        return target

    @cached_property
    def _most_boxes(self) -> int:
        """Of any case of the cohort, so that training and test batches have one shape."""
        return max([1, *(len(own.corners) for own in self.cohort.boxes or ())])

    def _boxes(self, boxes: Sequence[Boxes], index: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        most = self.max_boxes or self._most_boxes
        corners = np.zeros((len(index), most, 4), np.float32)
        classes = np.zeros((len(index), most), np.int32)
        filled = np.zeros((len(index), most), bool)
        for place, row in enumerate(index):
            if row < 0:
                continue
            count = len(boxes[row].corners)
            if count > most:
                raise ValueError(
                    f"{self.cohort.name}: case {self.cohort.case_id[row]} has {count} boxes; max_boxes is {most}."
                )
            corners[place, :count] = boxes[row].corners
            classes[place, :count] = boxes[row].classes
            filled[place, :count] = True
        return {"boxes": corners, "classes": classes, "box_valid": filled}


class _Steps:
    """The batches as the random-access sequence that grain reads."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Batch:
        return self.batches.at(int(index))


def _narrow(values: np.ndarray) -> np.ndarray:
    """Values in the dtype that JAX holds without x64, in the byte order of this machine: the one cast to a batch."""
    native = values.dtype.newbyteorder("=")
    narrower = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
    narrow = np.dtype(narrower.get(native, native))
    if narrow != native and narrow.kind in "iu" and values.size:
        low, high = values.min(), values.max()
        if low < np.iinfo(narrow).min or high > np.iinfo(narrow).max:
            raise OverflowError(f"holds whole numbers from {low} to {high}; expected what fits into {narrow}.")
    return values.astype(narrow, copy=False)


def _allow_worker_processes() -> None:
    """Grain asks absl for a flag that only programs started through absl have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
