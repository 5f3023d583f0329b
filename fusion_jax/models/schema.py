"""What a fitted recipe takes for granted of a cohort, and the check of another one against it."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.tables import as_word

__all__ = ["Schema", "SourceSchema", "check_schema", "schema_of"]

SPACING_TOLERANCE = 0.01
"""Relative difference of voxel sizes that two scanners' rounding explains."""


@dataclasses.dataclass(frozen=True)
class SourceSchema:
    """One source of a cohort.

    Attributes:
      kind: "image", "mask", "array" or "table".
      shape: of a case, with channels; None where cases differ, and for tables.
      spacing: in mm; None where it is not known or cases differ.
      unit: of the values, "" where not known.
      columns: of a table.
    """

    kind: str
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    unit: str = ""
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a recipe read.

    Attributes:
      cohort: name of the cohort.
      sources: by name, in the order of the cohort.
      units: of the columns that are read.
    """

    cohort: str
    sources: Mapping[str, SourceSchema]
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Schema":
        """The schema that `to_json` described."""
        sources = {
            name: SourceSchema(
                source["kind"],
                None if source["shape"] is None else tuple(source["shape"]),
                None if source["spacing"] is None else tuple(source["spacing"]),
                source["unit"],
                tuple(source["columns"]),
            )
            for name, source in value["sources"].items()
        }
        return cls(value["cohort"], sources, dict(value["units"]))


def schema_of(cohort: Cohort, names: Sequence[str], *, images: int = 8) -> Schema:
    """The schema of some sources of a cohort, from the first images of each.

    Args:
      cohort: that a recipe reads.
      names: of its sources.
      images: read at most of each source, since an image out of memory takes time.
    """
    found, units = {}, {}
    for name in names:
        source = cohort.sources[name]
        if source.kind == "table":
            columns = tuple(cohort.columns("input"))
            found[name] = SourceSchema("table", columns=columns)
            units |= {column: cohort.units[column] for column in columns if cohort.units.get(column)}
            continue
        rows = np.flatnonzero(cohort.present[name])[:images]
        read = [cohort.image(name, int(row)) for row in rows]
        shapes = {image.values.shape for image in read}
        spacings = {tuple(map(float, image.spacing)) if image.spacing is not None else None for image in read}
        spacing = next(iter(spacings)) if len(spacings) == 1 else None
        shape = tuple(map(int, next(iter(shapes)))) if len(shapes) == 1 else None
        unit = cohort.units.get(name, "") or (read[0].unit if read else "")
        found[name] = SourceSchema(source.kind, shape, spacing, unit)
    return Schema(cohort.name, found, units)


def check_schema(schema: Schema, cohort: Cohort, *, classes: Sequence[str] = ()) -> None:
    """Refuse a cohort that does not hold what a recipe was fitted to.

    Args:
      schema: of the recipe.
      cohort: to be predicted.
      classes: that the recipe predicts; compared with those of the cohort where it has a label.

    Raises:
      ValueError: a source or column that is missing, another kind, shape, spacing, unit or other classes; the message
        names it and the way out.
    """
    where = f"{cohort.name} (trained on {schema.cohort})"
    for name, wanted in schema.sources.items():
        if name not in cohort.sources:
            close = difflib.get_close_matches(name, cohort.sources, n=1)
            raise ValueError(
                f"{where}: no source {name!r}; it has {', '.join(cohort.sources)}"
                + (f" (did you mean {close[0]!r}?)" if close else "")
                + ". Add the source under this name; cases may lack it, the cohort may not."
            )
        if cohort.sources[name].kind != wanted.kind:
            raise ValueError(
                f"{where}: source {name!r} is of kind {cohort.sources[name].kind!r}; expected {wanted.kind!r}."
            )
        _check_columns(cohort, wanted, where)
    names = [name for name, wanted in schema.sources.items() if wanted.kind != "table" and cohort.present[name].any()]
    for name, found in schema_of(cohort, names).sources.items():
        _check_values(name, schema.sources[name], found, where)
    if classes and cohort.columns("label"):
        strange = [word for word in cohort.classes if word not in classes]
        if strange:
            raise ValueError(
                f"{where}: the label has the class {strange[0]!r}; expected some of "
                f"{', '.join(map(as_word, classes))}. Rename the classes, or predict without the label."
            )


def _check_columns(cohort: Cohort, wanted: SourceSchema, where: str) -> None:
    inputs = cohort.columns("input")
    for column in wanted.columns:
        if column not in inputs:
            there = column in cohort.table.columns
            close = difflib.get_close_matches(column, inputs, n=1)
            raise ValueError(
                f"{where}: column {column!r} "
                + (f"has the role {cohort.role(column)!r}, expected 'input'" if there else "is missing")
                + (f" (did you mean {close[0]!r}?)" if close else "")
                + ". The recipe reads it; add it, with empty cells where it is not known."
            )


def _check_values(name: str, wanted: SourceSchema, found: SourceSchema, where: str) -> None:
    if wanted.shape is not None and found.shape != wanted.shape:
        said = "differ in shape" if found.shape is None else f"have the shape {found.shape}"
        raise ValueError(
            f"{where}: cases of {name!r} {said}; expected {wanted.shape}. Use the same `preprocess` steps "
            "(resample, crop_or_pad or resize)."
        )
    if wanted.spacing is not None and found.spacing is not None:
        near = len(wanted.spacing) == len(found.spacing) and np.allclose(
            wanted.spacing, found.spacing, rtol=SPACING_TOLERANCE
        )
        if not near:
            raise ValueError(
                f"{where}: {name!r} has a spacing of {_mm(found.spacing)}; expected {_mm(wanted.spacing)}. Resample "
                f'the images: `preprocess = [{{op = "resample", spacing = {list(wanted.spacing)}}}]`.'
            )
    if wanted.unit and found.unit and wanted.unit != found.unit:
        raise ValueError(
            f"{where}: {name!r} is in {found.unit}; expected {wanted.unit}. Convert it in `preprocess`, or correct the "
            "unit."
        )


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in spacing) + " mm"
