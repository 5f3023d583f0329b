"""Cases that never were: a cohort's rows repeated, with columns or sources of other cases, or without a source.

Importance, occlusion and dropped sources ask a trained model what it would have said of such cases. Nothing is copied:
images are read from the cohort when they are asked for.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Bool, Int

from fusion_jax.data.cohort import Cohort, Columns, Kind, Source
from fusion_jax.data.image import Image

__all__ = ["variants"]

Donors = Mapping[str, Int[np.ndarray, "n"]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Donated:
    """A source whose rows come from rows of another, any number of times."""

    source: Source
    rows: Int[np.ndarray, "n"]

    @property
    def kind(self) -> Kind:
        return self.source.kind

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.source[int(self.rows[row])]

    def image(self, row: int) -> Image:
        return self.source.image(int(self.rows[row]))

    def take(self, rows: Int[np.ndarray, "m"]) -> "_Donated":
        return _Donated(self.source, self.rows[rows])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.source.fingerprint()} {self.rows.tolist()}".encode()).hexdigest()


def variants(
    cohort: Cohort,
    rows: Int[np.ndarray, "n"],
    *,
    columns: Donors | None = None,
    sources: Donors | None = None,
    absent: Mapping[str, Bool[np.ndarray, "n"]] | None = None,
    replaced: Mapping[str, Source] | None = None,
) -> Cohort:
    """A cohort of `rows`, as often as they are named, with parts of other cases.

    Args:
      cohort: whose cases are varied.
      rows: of the cohort, shape `(n,)`.
      columns: column of the table to the rows that give its cells.
      sources: source to the rows that give its values. Of a source of columns the cells move.
      absent: source to which variants lack it; where nothing else is left, it stays.
      replaced: source to other values, one a variant.

    Returns:
      The variants. Their case ids are those of the cohort, with a number behind where a row stands several times.

    Example:
      >>> cohort = Cohort.from_arrays({"image": np.arange(2.0).reshape(2, 1, 1, 1), "clinical": np.zeros((2, 3))})
      >>> found = variants(cohort, np.array([0, 0]), sources={"image": np.array([0, 1])})
      >>> found.case_id, [found.sources["image"][row].item() for row in range(2)]
      (('case_0 #0', 'case_0 #1'), [0.0, 1.0])
    """
    import pandas as pd

    table = cohort.table.iloc[rows].copy()
    donated = dict(columns or {})
    made: dict[str, Source] = {}
    present = {}
    for name, source in cohort.sources.items():
        donors = (sources or {}).get(name, rows)
        present[name] = cohort.present[name][donors]
        if isinstance(source, Columns):
            made[name] = dataclasses.replace(source, length=len(rows))
            if name in (sources or {}):
                donated |= {column: donors for column in source.names if column not in donated}
        else:
            made[name] = _Donated(source, donors)
        if name in (replaced or {}):
            made[name] = (replaced or {})[name]
    for column, donors in donated.items():
        table[column] = cohort.table[column].iloc[donors].array
    names = [cohort.case_id[row] for row in rows]
    if len(set(names)) < len(names):
        names = [f"{name} #{number}" for number, name in enumerate(names)]
    table.index = pd.Index(names, name=cohort.table.index.name, dtype=object)
    return dataclasses.replace(
        cohort,
        table=table,
        patient_id=cohort.patient_id[rows],
        site=None if cohort.site is None else cohort.site[rows],
        sources=made,
        present=_without(made, present, absent or {}),
        boxes=None if cohort.boxes is None else [cohort.boxes[row] for row in rows.tolist()],
        levels={**cohort.levels} | {column: cohort.codes(column)[1] for column in cohort.columns("label")},
    )


def _without(
    made: Mapping[str, Source], present: Mapping[str, np.ndarray], absent: Mapping[str, np.ndarray]
) -> dict[str, Bool[np.ndarray, "n"]]:
    """What is present when some sources are taken away; a case keeps the only source that it has."""
    left = {name: there & ~absent[name] if name in absent else there for name, there in present.items()}
    feeding: Collection[str] = [name for name, source in made.items() if source.kind != "mask"]
    nothing = ~np.any([left[name] for name in feeding], axis=0)
    return {name: np.where(nothing, present[name], there) for name, there in left.items()}
