"""Several cohorts as one, such as the hospitals of a study."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Kind, Source
from fusion_jax.data.image import Image

__all__ = ["concatenate"]


def concatenate(cohorts: Sequence[Cohort], *, name: str) -> Cohort:
    """The cases of all cohorts, one after the other.

    A source or column that a cohort does not have is absent or missing for its cases. A cohort without sites becomes a
    site of its own, so that one hospital can be left out.

    Args:
      cohorts: one or more, with different case ids; a patient of several is one patient.
      name: of the result.

    Raises:
      ValueError: cases in two cohorts, or columns, sources or classes that mean different things; the message names
        them.

    Example:
      >>> parts = [Cohort.from_arrays({"x": np.ones((2, 3))}, label=[0, 1], case_id=ids, name=ids[0][0])
      ...          for ids in (["a1", "a2"], ["b1", "b2"])]
      >>> both = concatenate(parts, name="both")
      >>> both.case_id, both.site.tolist()
      (('a1', 'a2', 'b1', 'b2'), ['a', 'a', 'b', 'b'])
    """
    import pandas as pd

    if not cohorts:
        raise ValueError(f"{name}: no cohorts; expected at least one.")
    owner: dict[str, str] = {}
    for cohort in cohorts:
        for case in cohort.case_id:
            if case in owner:
                raise ValueError(f"{name}: case {case} is in {owner[case]} and in {cohort.name}; expected it in one.")
            owner[case] = cohort.name
    roles = _agreed(cohorts, name, "role of column", [{c: o.role(c) for c in o.table.columns} for o in cohorts])
    units = _agreed(cohorts, name, "unit of", [cohort.units for cohort in cohorts])
    levels = _agreed(
        cohorts, name, "classes of label", [{c: o.codes(c)[1] for c in o.columns("label")} for o in cohorts]
    )
    others = [{c: words for c, words in o.levels.items() if o.role(c) != "label"} for o in cohorts]
    levels |= _agreed(cohorts, name, "levels of column", others)
    kinds = _agreed(cohorts, name, "kind of source", [{s: x.kind for s, x in o.sources.items()} for o in cohorts])
    boxed = [o for o in cohorts if o.boxes is not None]
    classes = _agreed(boxed, name, "classes of", [{"boxes": o.box_classes} for o in boxed])
    boxes_of = _agreed(boxed, name, "image of", [{"boxes": o.boxes_of} for o in boxed])
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0, np.int32))
    return Cohort(
        name=name,
        table=pd.concat([cohort.table for cohort in cohorts]).rename_axis("case_id"),
        patient_id=np.concatenate([cohort.patient_id for cohort in cohorts]),
        site=np.concatenate([np.full(len(o), o.name) if o.site is None else o.site for o in cohorts]),
        roles=roles,
        sources={source: _joined(cohorts, source, kind, name) for source, kind in kinds.items()},
        present={
            source: np.concatenate([o.present.get(source, np.zeros(len(o), bool)) for o in cohorts]) for source in kinds
        },
        units=units,
        levels=levels,
        boxes=[box for o in cohorts for box in (o.boxes if o.boxes is not None else [nothing] * len(o))]
        if classes
        else None,
        box_classes=classes.get("boxes", ()),
        boxes_of=boxes_of.get("boxes", ""),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Joined:
    """A source whose rows lie in several; `places` has part and row, the part −1 where no cohort has it."""

    parts: tuple[Source, ...]
    places: Int[np.ndarray, "n 2"]
    kind: Kind

    def __len__(self) -> int:
        return len(self.places)

    def image(self, row: int) -> Image:
        """Values of a row with spacing and affine."""
        part, place = self.places[row]
        return self.parts[part].image(int(place))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.image(row).values

    def take(self, rows: Int[np.ndarray, "n"]) -> "_Joined":
        """The source of these rows; nothing is read."""
        return dataclasses.replace(self, places=self.places[rows])

    def fingerprint(self) -> str:
        """SHA-256 of the parts and of which rows are taken."""
        digest = hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode())
        digest.update(np.ascontiguousarray(self.places, np.int64).tobytes())
        return digest.hexdigest()


def _joined(cohorts: Sequence[Cohort], source: str, kind: Kind, name: str) -> Source:
    having = [cohort.sources[source] for cohort in cohorts if source in cohort.sources]
    if kind == "table":
        names = {part.names for part in having if isinstance(part, Columns)}
        if len(names) > 1:
            raise ValueError(f"{name}: source {source!r} takes different columns in the cohorts; expected the same.")
        return Columns(names.pop(), sum(map(len, cohorts)))
    places, part = [], 0
    for cohort in cohorts:
        there = source in cohort.sources
        places.append(np.stack([np.full(len(cohort), part if there else -1), np.arange(len(cohort))], axis=1))
        part += there
    return _Joined(tuple(having), np.concatenate(places), kind)


def _agreed(cohorts: Sequence[Cohort], name: str, what: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The union of mappings that do not contradict each other."""
    agreed: dict[str, Any] = {}
    for cohort, own in zip(cohorts, found, strict=True):
        for key, value in own.items():
            if agreed.setdefault(key, value) != value:
                raise ValueError(
                    f"{name}: {what} {key!r} is {value!r} in {cohort.name} and {agreed[key]!r} before; expected one "
                    "meaning. Rename or convert it in one of the cohorts."
                )
    return agreed
