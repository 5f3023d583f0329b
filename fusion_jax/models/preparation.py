"""A cohort as a network takes it: columns and vectors as numbers, images scaled, all fitted to training cases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fusion_jax.data.clinical import ClinicalValues, encoded_rows, fit_columns
from fusion_jax.data.cohort import Arrays, Cohort, Columns
from fusion_jax.data.tabular import FittedTable
from fusion_jax.models.features import Numbers, read_vectors
from fusion_jax.models.images import ImageScale, fit_scale, scaled

__all__ = ["Preparation", "prepare"]

ALWAYS = "always"
"""A source that every case has, so that a case without any source of a model can still be asked about."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What was fitted to the training cases of a split.

    Attributes:
      tables: source of columns to its fitted encoder.
      numbers: source of vectors to its scale.
      images: source of images to its scale; none for images that are taken as they are.
      sources: that the network reads, in its order.
    """

    tables: Mapping[str, FittedTable]
    numbers: Mapping[str, Numbers]
    images: Mapping[str, ImageScale]
    sources: tuple[str, ...]

    def apply(self, cohort: Cohort, train: Sequence[str]) -> Cohort:
        """A cohort with the sources of the network alone, ready for batches.

        Args:
          cohort: any with these sources; masks, boxes and further sources are left out.
          train: ids of the cases that were fitted on, asked for only where one is among the cohort's.
        """
        rows = np.arange(len(cohort))
        kept = {name: cohort.sources[name] for name in self.sources}
        present = {name: cohort.present[name] for name in self.sources}
        always = Arrays(np.zeros((len(cohort), 1), np.float32), "array")
        found = dataclasses.replace(
            cohort,
            sources=kept | {ALWAYS: always},
            present=present | {ALWAYS: np.ones(len(cohort), bool)},
            boxes=None,
        )
        for name in self.sources:
            if name in self.tables:
                values = encoded_rows(self.tables[name], cohort, rows, train).astype(np.float32)
                found = found.with_source(name, values, present[name])
            elif name in self.numbers:
                read, names = read_vectors(cohort, rows, name, known=self.numbers[name].names)
                if names != self.numbers[name].names:
                    raise ValueError(
                        f"{cohort.name}: {name!r} holds {len(names)} numbers a case; expected "
                        f"{len(self.numbers[name].names)}, as in training."
                    )
                found = found.with_source(name, self.numbers[name].apply(read).astype(np.float32), present[name])
            elif name in self.images:
                found = scaled(found, name, self.images[name])
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "tables": {name: table.to_json() for name, table in self.tables.items()},
            "numbers": {name: dataclasses.asdict(block) for name, block in self.numbers.items()},
            "images": {name: dataclasses.asdict(scale) for name, scale in self.images.items()},
            "sources": list(self.sources),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preparation":
        """The preparation that `to_json` described."""
        return cls(
            {name: FittedTable.from_json(table) for name, table in value["tables"].items()},
            {name: Numbers.from_json(block) for name, block in value["numbers"].items()},
            {
                name: ImageScale(tuple(scale["centre"]), tuple(scale["spread"]))
                for name, scale in value["images"].items()
            },
            tuple(value["sources"]),
        )


def prepare(
    cohort: Cohort,
    sources: Sequence[str],
    rows: Int[np.ndarray, "n"],
    *,
    fold: str,
    columns: Sequence[Mapping[str, Any]] | None = None,
    values: ClinicalValues = "encoded",
    selection: Mapping[str, Any] | None = None,
    standardise: bool = True,
) -> Preparation:
    """Fit encoders and scales to training cases; no other case is looked at.

    Args:
      cohort: with the training cases.
      sources: that the network reads, in its order.
      rows: of the training cases.
      fold: name of the fold, for records.
      columns: declarations of clinical columns; suggested from the training cases by default.
      values: whether clinical numbers are scaled.
      selection: of clinical columns in the training cases, see `fusion_jax.data.clinical.fit_columns`.
      standardise: scale images to mean 0 and standard deviation 1, channel by channel.

    Raises:
      ValueError: a source or column that cannot be used; the message names it.
    """
    tables, numbers, images = {}, {}, {}
    cases = [cohort.case_id[int(row)] for row in rows]
    for name in sources:
        source = cohort.sources[name]
        if isinstance(source, Columns):
            tables[name] = fit_columns(
                cohort, cases, fold=fold, columns=columns, values=values, names=source.names, selection=selection
            )
        elif source.kind == "array":
            read, names = read_vectors(cohort, rows, name)
            block = Numbers.of(name, names, read[cohort.present[name][rows]])
            if values == "native":
                block = dataclasses.replace(block, centre=(0.0,) * len(names), spread=(1.0,) * len(names))
            numbers[name] = block
        elif standardise:
            images[name] = fit_scale(cohort, name, rows)
    return Preparation(tables, numbers, images, tuple(sources))
