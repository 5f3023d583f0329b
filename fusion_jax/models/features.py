"""A case as one row of numbers for classical models: clinical columns, vectors, and measurements inside a mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.clinical import encoded_rows, fit_columns
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.tabular import FittedTable
from fusion_jax.models.measurements import MEASUREMENTS, Measurement, measurable, measure

__all__ = [
    "FeatureSet",
    "Numbers",
    "TabularFeatures",
    "clinical_sources",
    "feature_sources",
    "fit_features",
    "read_vectors",
]

FeatureSet = Literal["clinical", "measurements", "all"]
"""`clinical`: columns and vectors; `measurements`: what is measured inside masks or given as a table of them."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    r"""Numbers of the training cases: standardised, gaps filled with the mean and marked.

    .. math:: z = (x - m) / s

    Attributes:
      origin: a source of vectors by its name, "measurements", or the path of a table.
      names: of the numbers.
      centre: mean of the training cases that have the number.
      spread: their standard deviation (n - 1), 1 where they are all alike.
      marked: positions of numbers that some training case lacks; each has an output of its own that says so.
    """

    origin: str
    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    marked: tuple[int, ...]

    @classmethod
    def of(cls, origin: str, names: Sequence[str], values: Float[np.ndarray, "n f"]) -> "Numbers":
        """Fit to training cases; NaN is a gap. Numbers that no training case has are centred at 0."""
        there = np.isfinite(values)
        count = there.sum(axis=0)
        total = np.where(there, values, 0.0).sum(axis=0)
        centre = total / np.maximum(count, 1)
        squares = np.where(there, np.square(values - centre), 0.0).sum(axis=0)
        spread = np.sqrt(squares / np.maximum(count - 1, 1))
        rounding = 8 * np.finfo(np.float64).eps * np.abs(centre)
        spread = np.where(spread > rounding, spread, 1.0)
        marked = np.flatnonzero((count < len(values)) & (count > 0))
        return cls(origin, tuple(names), tuple(centre.tolist()), tuple(spread.tolist()), tuple(marked.tolist()))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Numbers":
        """The numbers that `dataclasses.asdict` described."""
        names, centre, spread, marked = (tuple(value[key]) for key in ("names", "centre", "spread", "marked"))
        return cls(value["origin"], names, centre, spread, marked)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return (*self.names, *(f"{self.names[position]}=missing" for position in self.marked))

    def apply(self, values: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n t"]:
        """Standardised values with the marks behind them."""
        there = np.isfinite(values)
        scaled = np.where(there, (np.where(there, values, 0.0) - self.centre) / self.spread, 0.0)
        return np.concatenate([scaled, (~there[:, list(self.marked)]).astype(float)], axis=1)


@dataclasses.dataclass(frozen=True)
class TabularFeatures:
    """Fitted features.

    Attributes:
      table: fitted clinical columns; None where they are not read.
      numbers: blocks of numbers.
      measurements: that are taken inside masks.
      images: that they are taken on; all where empty.
    """

    table: FittedTable | None
    numbers: tuple[Numbers, ...]
    measurements: tuple[Measurement, ...]
    images: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `apply`."""
        of_table = () if self.table is None else self.table.names
        return (*of_table, *(name for block in self.numbers for name in block.outputs))

    def apply(self, cohort: Cohort, rows: Int[np.ndarray, "n"], train: Sequence[str]) -> Float[np.ndarray, "n t"]:
        """Features of rows of any cohort with the same sources; `train` are the ids of the cases fitted on."""
        parts = [] if self.table is None else [encoded_rows(self.table, cohort, rows, train)]
        for block in self.numbers:
            values, names = _read(cohort, rows, block.origin, self.measurements, self.images, known=block.names)
            if names != block.names:
                raise ValueError(
                    f"{cohort.name}: {block.origin} has the numbers {', '.join(names[:8])}; expected "
                    f"{', '.join(block.names[:8])}, as in training."
                )
            parts.append(block.apply(values))
        return np.concatenate(parts, axis=1)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "table": None if self.table is None else self.table.to_json(),
            "numbers": [dataclasses.asdict(block) for block in self.numbers],
            "measurements": list(self.measurements),
            "images": list(self.images),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TabularFeatures":
        """The features that `to_json` described."""
        blocks = tuple(map(Numbers.from_json, value["numbers"]))
        table = None if value["table"] is None else FittedTable.from_json(value["table"])
        return cls(table, blocks, tuple(value["measurements"]), tuple(value["images"]))


def clinical_sources(cohort: Cohort) -> tuple[str, ...]:
    """Sources that are no images: columns of the table and vectors of numbers."""
    return tuple(name for name, source in cohort.sources.items() if source.kind in ("table", "array"))


def feature_sources(
    cohort: Cohort, features: FeatureSet, images: Sequence[str] = (), table: str | None = None
) -> tuple[str, ...]:
    """Sources of the cohort that a set of features reads.

    Raises:
      ValueError: the cohort has none of them.
    """
    found: list[str] = []
    if features in ("clinical", "all"):
        found += clinical_sources(cohort)
        if not found and not cohort.columns("input"):
            raise ValueError(
                f"{cohort.name}: no clinical data: no column with the role 'input' and no source of vectors. Declare "
                "the columns, or choose models of images."
            )
    if features in ("measurements", "all") and table is None:
        pairs = measurable(cohort)
        if not pairs:
            raise ValueError(
                f"{cohort.name}: no source of kind 'mask', inside which something could be measured. Add the mask of "
                "the lesion as a source, give a table of measurements, or choose models of clinical data alone."
            )
        for mask, on in pairs.items():
            found += [mask, *(image for image in on if not images or image in images)]
    return tuple(name for name in cohort.sources if name in found)


def fit_features(
    cohort: Cohort,
    train: Sequence[str],
    *,
    fold: str,
    features: FeatureSet = "clinical",
    columns: Sequence[Mapping[str, Any]] | None = None,
    selection: Mapping[str, Any] | None = None,
    measurements: Sequence[Measurement] = MEASUREMENTS,
    images: Sequence[str] = (),
    table: str | None = None,
) -> TabularFeatures:
    """Fit features to training cases; no other case is looked at.

    Args:
      cohort: with the training cases.
      train: their ids.
      fold: name of the fold, for records.
      features: which.
      columns: declarations of clinical columns; suggested by default.
      selection: of these columns in the training cases, see `fusion_jax.data.clinical.fit_columns`.
      measurements, images: see `fusion_jax.models.measurements.measure`.
      table: path of a CSV with a column `case_id` and one column of numbers a feature, read in place of measurements.

    Raises:
      ValueError: nothing to read; the message says what is missing.
    """
    rows = _rows(cohort, train)
    fitted = None
    blocks: list[Numbers] = []
    if features in ("clinical", "all"):
        if cohort.columns("input"):
            fitted = fit_columns(cohort, train, fold=fold, columns=columns, selection=selection)
        origins = [name for name, source in cohort.sources.items() if source.kind == "array"]
    else:
        origins = []
    if features in ("measurements", "all"):
        origins.append("measurements" if table is None else f"table {table}")
    for origin in origins:
        values, names = _read(cohort, rows, origin, tuple(measurements), tuple(images))
        blocks.append(Numbers.of(origin, names, values))
    if fitted is None and not blocks:
        feature_sources(cohort, features, images, table)
    return TabularFeatures(fitted, tuple(blocks), tuple(measurements), tuple(images))


def _rows(cohort: Cohort, cases: Sequence[str]) -> Int[np.ndarray, "n"]:
    index = {case: row for row, case in enumerate(cohort.case_id)}
    return np.array([index[case] for case in cases], np.int64)


def _read(
    cohort: Cohort,
    rows: Int[np.ndarray, "n"],
    origin: str,
    measurements: tuple[Measurement, ...],
    images: tuple[str, ...],
    known: tuple[str, ...] = (),
) -> tuple[Float[np.ndarray, "n f"], tuple[str, ...]]:
    if origin == "measurements":
        return measure(cohort, rows, measurements, sources=images)
    if origin.startswith("table "):
        return _from_table(cohort, rows, Path(origin.removeprefix("table ")))
    return read_vectors(cohort, rows, origin, known=known)


def read_vectors(
    cohort: Cohort, rows: Int[np.ndarray, "n"], name: str, *, known: tuple[str, ...] = ()
) -> tuple[Float[np.ndarray, "n f"], tuple[str, ...]]:
    """Numbers of a source of vectors, NaN where a case lacks it, and a name for each.

    Args:
      cohort: with the source.
      rows: of it.
      name: of the source.
      known: names of the numbers, for a cohort in which nobody has the source.

    Raises:
      ValueError: vectors of different lengths, the message names the case; or nobody has the source.
    """
    source, there = cohort.sources[name], cohort.present[name]
    if not there.any():
        if not known:
            raise ValueError(f"{cohort.name}: no case has {name!r}; expected at least one. Remove the source.")
        return np.full((len(rows), len(known)), np.nan), known
    first = int(np.flatnonzero(there)[0])
    length = len(np.asarray(source[first]))
    values = np.full((len(rows), length), np.nan)
    for place, row in enumerate(rows):
        if there[row]:
            found = np.asarray(source[int(row)], float)
            if found.shape != (length,):
                raise ValueError(
                    f"{cohort.name}: {name} of case {cohort.case_id[int(row)]} has {found.shape} numbers; expected "
                    f"{length}, as case {cohort.case_id[first]}."
                )
            values[place] = found
    return values, tuple(f"{name}[{number}]" for number in range(length))


def _from_table(
    cohort: Cohort, rows: Int[np.ndarray, "n"], path: Path
) -> tuple[Float[np.ndarray, "n f"], tuple[str, ...]]:
    import pandas as pd

    table = pd.read_csv(path, dtype={"case_id": str})
    if "case_id" not in table.columns:
        raise ValueError(f"{path}: no column 'case_id'; its columns are {', '.join(map(str, table.columns[:8]))}.")
    table = table.set_index("case_id")
    words = [str(name) for name in table.columns if table[name].dtype.kind not in "biuf"]
    if words:
        raise ValueError(f"{path}: column {words[0]!r} holds text; expected numbers. Take it out, or code it.")
    if not table.index.is_unique:
        raise ValueError(f"{path}: case {table.index[table.index.duplicated()][0]} stands in several rows.")
    values = table.reindex([cohort.case_id[int(row)] for row in rows]).to_numpy(float)
    if not np.isfinite(values).any():
        raise ValueError(f"{path}: none of the cases of {cohort.name} is in the table; look at the ids.")
    return values, tuple(map(str, table.columns))
