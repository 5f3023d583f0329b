"""The cohort: cases of patients, their table with the role of every column, and sources that are read when asked for.

Nothing here knows where data comes from. `open_cohort` makes a cohort from a folder, `open_shards` from array_record
shards, `Cohort.from_arrays` from what is in memory.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fusion_jax.data.definition import Flow
from fusion_jax.data.image import READING, Image, UnreadableFile
from fusion_jax.data.tables import as_word
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Arrays", "Boxes", "Case", "Cohort", "Columns", "Kind", "Lazy", "Role", "Source"]

Role = Literal["input", "label", "time", "event", "group", "never"]
"""What a column is for. `group` columns split or stratify and are no inputs; `never` columns reach no model."""

Kind = Literal["image", "mask", "array", "table"]
"""What a source holds: images, masks of images, vectors of numbers, or columns of the table before they are encoded."""


@runtime_checkable
class Source(Protocol):
    """Data of one kind, by row of the cohort. Absent cases are marked in `Cohort.present` and must not be asked for."""

    @property
    def kind(self) -> Kind:
        """What it holds."""
        ...

    def __len__(self) -> int: ...

    def image(self, row: int) -> Image:
        """Values of a row with spacing and affine."""
        ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Values of a row."""
        ...

    def take(self, rows: Int[np.ndarray, "n"]) -> "Source":
        """The source of these rows."""
        ...

    def fingerprint(self) -> str:
        """A digest that changes when the data changes, without reading what is out of memory."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """A source in memory.

    Attributes:
      values: one array a row, equal or different in shape; images as `(*space, c)`, vectors as `(f,)`.
      kind: of the data.
      spacing: one tuple a row, in mm.
      affine: of every volume, one matrix a row.
      unit: of the values.
    """

    values: Shaped[np.ndarray, "n ..."] | Sequence[np.ndarray]
    kind: Kind = "image"
    spacing: Sequence[tuple[float, ...] | None] | None = None
    affine: Sequence[Float[np.ndarray, "4 4"] | None] | None = None
    unit: str = ""

    def __repr__(self) -> str:
        return f"Arrays({len(self)} x {self.kind}{f', {self.unit}' if self.unit else ''})"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[row]

    def image(self, row: int) -> Image:
        """Values of a row with spacing and affine."""
        spacing = None if self.spacing is None else self.spacing[row]
        affine = None if self.affine is None else self.affine[row]
        return Image(self.values[row], spacing, affine, self.unit)

    def take(self, rows: Int[np.ndarray, "n"]) -> "Arrays":
        """The source of these rows."""
        spacing = None if self.spacing is None else [self.spacing[row] for row in rows]
        values = self.values[rows] if isinstance(self.values, np.ndarray) else [self.values[row] for row in rows]
        affine = None if self.affine is None else [self.affine[row] for row in rows]
        return dataclasses.replace(self, values=values, spacing=spacing, affine=affine)

    def fingerprint(self) -> str:
        """SHA-256 of the values."""
        digest = hashlib.sha256(f"{self.kind} {self.unit} {self.spacing}".encode())
        for affine in self.affine or ():
            digest.update(b"-" if affine is None else np.asarray(affine, np.float64).tobytes())
        for array in self.values:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Lazy:
    """A source that reads a row when it is asked for.

    Attributes:
      read: from a row of the whole data set to its image. Loader workers get it by pickle: a function at the top of a
        module, or an object of such a class.
      rows: rows of the whole data set that this source holds, in order.
      kind: of the data.
      identity: says which data this is, such as paths with sizes; part of the fingerprint. A function is asked when the
        fingerprint is.
    """

    read: Callable[[int], Image]
    rows: Int[np.ndarray, "n"]
    kind: Kind = "image"
    identity: str | Callable[[], str] = ""

    def __repr__(self) -> str:
        return f"Lazy({len(self)} x {self.kind})"

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, row: int) -> Image:
        """Values of a row with spacing and affine."""
        return self.read(int(self.rows[row]))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.image(row).values

    def take(self, rows: Int[np.ndarray, "n"]) -> "Lazy":
        """The source of these rows; nothing is read."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def fingerprint(self) -> str:
        """SHA-256 of `identity` and rows."""
        identity = self.identity if isinstance(self.identity, str) else self.identity()
        return hashlib.sha256(f"{self.kind} {identity} {self.rows.tolist()}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """A source of columns of the cohort's table, before anything is fitted to them.

    A model reads numbers that were scaled and coded on the training fold: fit an encoder there, then replace this
    source by the result (`Cohort.with_source`). Asking for a row therefore fails.

    Attributes:
      names: columns with the role `input`.
      length: number of cases.
    """

    names: tuple[str, ...]
    length: int
    kind: Literal["table"] = "table"

    def __len__(self) -> int:
        return self.length

    def image(self, row: int) -> Image:
        """Refuse: there are no numbers yet."""
        raise TypeError(
            f"columns {', '.join(self.names)} are not encoded yet; expected numbers. Fit an encoder on the training "
            "cases (`fusion_jax.data.tabular`) and put its values in place with `cohort.with_source`."
        )

    def __getitem__(self, row: int) -> np.ndarray:
        return self.image(row).values

    def take(self, rows: Int[np.ndarray, "n"]) -> "Columns":
        """The source of these rows."""
        return dataclasses.replace(self, length=len(rows))

    def fingerprint(self) -> str:
        """SHA-256 of the names of the columns."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()


class Boxes(NamedTuple):
    """Boxes of one case.

    Attributes:
      corners: `(x0, y0, x1, y1)` in pixels, shape `(m, 4)`.
      classes: index into `Cohort.box_classes`, shape `(m,)`.
    """

    corners: Float[np.ndarray, "m 4"]
    classes: Int[np.ndarray, "m"]


class Case(NamedTuple):
    """One case with everything that is there.

    Attributes:
      case_id, patient_id, site: who and where; `site` is "" where the cohort has no sites.
      images: source to image, absent sources left out.
      row: column to cell, every role but `never`.
      boxes: None where the cohort has none.
    """

    case_id: str
    patient_id: str
    site: str
    images: dict[str, Image]
    row: dict[str, Any]
    boxes: Boxes | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cohort:
    """Cases of patients with their table, sources and what is present.

    Attributes:
      name: of the cohort.
      table: one row a case, indexed by `case_id`: text, unique.
      patient_id: shape `(n,)`, text; patients never cross splits.
      site: hospital or scanner by which folds may be left out, shape `(n,)`, text; None where unknown.
      roles: column of `table` to what it may be used for; a column that is not named is `never`.
      sources: name to source, each with as many rows as the table.
      present: source to whether each case has it, shape `(n,)`.
      units: column or source to its unit.
      levels: column to its words in order, of a label the classes; sorted where not given.
      boxes: one entry a case; None where the cohort has none.
      box_classes: names of the classes of the boxes.
      boxes_of: image whose pixels the boxes count; "" for the only one.
      flow: how the cohort came about; None where that is not known.

    Raises:
      ValueError: cases, columns or sources that do not fit together; the message names them.
    """

    name: str
    table: "pandas.DataFrame"
    patient_id: Shaped[np.ndarray, "n"]
    roles: Mapping[str, Role]
    sources: Mapping[str, Source]
    present: Mapping[str, Bool[np.ndarray, "n"]]
    site: Shaped[np.ndarray, "n"] | None = None
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    levels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    boxes: Sequence[Boxes] | None = None
    box_classes: tuple[str, ...] = ()
    boxes_of: str = ""
    flow: Flow | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_roles(self)
        _check_sources(self)
        for column in self.columns("label"):
            self.codes(column)

    @classmethod
    def from_arrays(
        cls,
        sources: Mapping[str, Any],
        *,
        label: Any = None,
        case_id: Iterable[Any] | None = None,
        patient_id: Iterable[Any] | None = None,
        site: Iterable[Any] | None = None,
        table: "pandas.DataFrame | None" = None,
        roles: Mapping[str, Role] | None = None,
        name: str = "cohort",
        **others: Any,
    ) -> "Cohort":
        """Cohort of NumPy arrays.

        Args:
          sources: name to array or to a source; `(n, f)` is an array of features, `(n, *space, c)` are images. A list
            holds one array a case, None where the case has none.
          label: one value a case, text or integers; becomes the column `label`.
          case_id: ids of the cases; by default the index of `table`, or `case_0` and so on.
          patient_id: patient of every case; by default every case is a patient of its own.
          site: hospital or scanner of every case.
          table: further columns, one row a case.
          roles: role of columns of `table`; columns that are not named are `never`.
          name: of the cohort.
          others: further attributes of `Cohort`.

        Example:
          >>> cohort = Cohort.from_arrays(
          ...     {"image": np.zeros((4, 8, 8, 1)), "clinical": np.zeros((4, 3))}, label=[0, 1, 0, 1]
          ... )
          >>> len(cohort), cohort.classes, cohort.label.tolist(), cohort.sources["clinical"].kind
          (4, ('0', '1'), [0, 1, 0, 1], 'array')
        """
        import pandas as pd

        made, present = {}, {}
        for source, values in sources.items():
            made[source], present[source] = _as_source(source, values)
        lengths = {source: len(values) for source, values in made.items()}
        if table is not None:
            lengths["table"] = len(table)
        if not lengths or len(set(lengths.values())) > 1:
            found = ", ".join(f"{source}: {length}" for source, length in lengths.items()) or "none"
            raise ValueError(f"{name}: sources differ in their number of cases ({found}); expected one row a case.")
        n = next(iter(lengths.values()))
        if case_id is None:
            named = None if table is None or isinstance(table.index, pd.RangeIndex) else table.index
            case_id = [f"case_{i}" for i in range(n)] if named is None else named
        case_id = _as_ids(name, "case id", case_id, n)
        table = pd.DataFrame(index=range(n)) if table is None else table
        table = table.set_axis(pd.Index(case_id.astype(object), name="case_id"), axis=0)
        roles = dict(roles or {})
        if label is not None:
            if "label" in table.columns:
                raise ValueError(f"{name}: `label` and a column 'label' of the table; expected one. Rename the column.")
            cells = label if hasattr(label, "dtype") else [*label]
            _check_length(name, "labels", cells, n)
            # Without its index, by which pandas would reorder a Series.
            table, roles["label"] = table.assign(label=pd.Series(cells).array), "label"
        return cls(
            name=name,
            table=table,
            patient_id=_as_ids(name, "patient id", case_id if patient_id is None else patient_id, n),
            site=None if site is None else _as_ids(name, "site", site, n),
            roles=roles,
            sources=made,
            present=present,
            **others,
        )

    def __repr__(self) -> str:
        """Name, numbers and what is there, in a few lines."""
        patients = len(set(self.patient_id.tolist()))
        lines = [f"Cohort {self.name!r}: {len(self)} cases of {patients} patients"]
        for name, source in self.sources.items():
            lines.append(f"  {name}: {source.kind}, {int(self.present[name].sum())} present")
        by_role = {role: self.columns(role) for role in get_args(Role)}
        lines += [f"  {role}: {listed(columns, 8)}" for role, columns in by_role.items() if columns]
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Case:
        """Everything of one case; reads its images."""
        row = range(len(self))[row]
        names = [name for name in self.sources if self.sources[name].kind != "table" and self.present[name][row]]
        cells = self.table.iloc[row]
        return Case(
            case_id=self.case_id[row],
            patient_id=str(self.patient_id[row]),
            site="" if self.site is None else str(self.site[row]),
            images={name: self.image(name, row) for name in names},
            row={column: cells[column] for column in self.table.columns if self.role(column) != "never"},
            boxes=None if self.boxes is None else self.boxes[row],
        )

    def image(self, source: str, row: int) -> Image:
        """Values of a source with spacing and affine.

        Raises:
          ValueError: the case does not have this source, or its file cannot be read; the message names the case.
        """
        if source not in self.sources:
            raise ValueError(f"{self.name}: no source {source!r}; it has {', '.join(self.sources)}.")
        if not self.present[source][row]:
            raise ValueError(f"{self.name}: case {self.case_id[row]} has no {source}; ask `cohort.present` first.")
        place = f"{self.name}: {source} of case {self.case_id[row]}: "
        reading = READING.set(place)
        try:
            return self.sources[source].image(row)
        except UnreadableFile as error:
            found = f"{source} of case {self.case_id[row]} {error.found}"
            raise UnreadableFile(error.path, found, error.advice) from None
        except ValueError as error:
            raise ValueError(f"{place}{error}") from error
        finally:
            READING.reset(reading)

    @cached_property
    def case_id(self) -> tuple[str, ...]:
        """Ids of the cases, in order."""
        return tuple(self.table.index)

    def role(self, column: str) -> Role:
        """What a column may be used for."""
        return self.roles.get(column, "never")

    def columns(self, role: Role) -> tuple[str, ...]:
        """Columns of a role, in the order of the table."""
        return tuple(column for column in self.table.columns if self.role(column) == role)

    @property
    def inputs(self) -> "pandas.DataFrame":
        """Columns that a model may read: those with the role `input`."""
        return self.table.loc[:, list(self.columns("input"))]

    def codes(self, column: str) -> tuple[Int[np.ndarray, "n"], tuple[str, ...]]:
        """A label column as integers, −1 where missing, with the names of the classes.

        Raises:
          ValueError: the column is no label, or holds a value that is none of its declared levels.
        """
        if self.role(column) != "label":
            raise ValueError(f"{self.name}: column {column!r} has the role {self.role(column)!r}, expected 'label'.")
        import pandas as pd

        cells = self.table[column]
        numbers, found = pd.factorize(cells)
        if column not in self.levels and cells.dtype.kind == "f" and any(cell % 1 for cell in found):
            broken = next(cell for cell in found if cell % 1)
            raise ValueError(
                f"{self.name}: label {column!r} holds {broken}; expected classes. Derive a class from the number, or "
                "declare its `levels`."
            )
        words = [as_word(cell) for cell in found]
        levels = self.levels.get(column) or tuple(sorted(set(words), key=_by_number))
        code = {level: number for number, level in enumerate(levels)}
        for number, word in enumerate(words):
            if word not in code:
                case = self.case_id[numbers.tolist().index(number)]
                raise ValueError(
                    f"{self.name}: column {column!r} holds {word!r} in case {case}; expected one of "
                    f"{', '.join(levels)}. Fix the cell or the levels."
                )
        return np.array([*map(code.get, words), -1], np.int32)[numbers], levels

    @property
    def label(self) -> Int[np.ndarray, "n"]:
        """Codes of the first label column, −1 where missing, shape `(n,)`."""
        return self.codes(self._label_column)[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the first label column."""
        return self.codes(self._label_column)[1]

    @property
    def _label_column(self) -> str:
        columns = self.columns("label")
        if not columns:
            raise ValueError(f"{self.name}: no column has the role 'label'. Give one that role.")
        return columns[0]

    def take(self, rows: Iterable[int | bool | np.integer | np.bool_]) -> "Cohort":
        """The cohort of some rows, given by number in the wanted order or by a mask; nothing is read.

        Raises:
          IndexError: a row that is not there, or a mask of another length.
          ValueError: no row, one twice, or what is neither rows nor a mask.
        """
        chosen = rows if isinstance(rows, np.ndarray) else np.array(list(rows))
        n = len(self)
        if chosen.dtype == bool:
            if chosen.shape != (n,):
                raise IndexError(f"{self.name}: a mask of shape {chosen.shape} for {n} cases; expected ({n},).")
            chosen = np.flatnonzero(chosen)
        elif chosen.size and chosen.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: rows are {chosen.dtype}; expected whole numbers or a mask of booleans.")
        chosen = chosen.astype(np.int64)
        outside = chosen[(chosen < -n) | (chosen >= n)]
        if len(outside):
            raise IndexError(f"{self.name}: row {outside[0]} of {n} cases; expected rows below {n}.")
        return dataclasses.replace(
            self,
            table=self.table.iloc[chosen],
            patient_id=self.patient_id[chosen],
            site=None if self.site is None else self.site[chosen],
            sources={name: source.take(chosen) for name, source in self.sources.items()},
            present={name: there[chosen] for name, there in self.present.items()},
            boxes=None if self.boxes is None else [self.boxes[row] for row in chosen.tolist()],
            levels={**self.levels} | {column: self.codes(column)[1] for column in self.columns("label")},
        )

    def only(self, *names: str) -> "Cohort":
        """The cohort with some of its sources, as for a model that reads one.

        Raises:
          ValueError: a source that is not there, or a case that has none of these.
        """
        for name in names:
            if name not in self.sources:
                raise ValueError(f"{self.name}: no source {name!r}; it has {', '.join(self.sources)}.")
        return dataclasses.replace(
            self,
            sources={name: self.sources[name] for name in names},
            present={name: self.present[name] for name in names},
        )

    def with_source(self, name: str, values: Any, present: Bool[np.ndarray, "n"] | None = None) -> "Cohort":
        """The cohort with one source added or replaced, as after encoding its table.

        Cases that lacked the source before lack it still, unless `present` says otherwise.
        """
        source, there = _as_source(name, values)
        if present is None and len(there) == len(self):
            there = there & self.present.get(name, there)
        if present is None:
            present = there
        return dataclasses.replace(
            self, sources={**self.sources, name: source}, present={**self.present, name: present}
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, table, roles, classes and what identifies the data of every source."""
        digest = hashlib.sha256()
        for column in self.table.columns:
            digest.update(_cell_bytes(self.table[column]))
        parts = {
            "case": self.case_id,
            "patient": self.patient_id.tolist(),
            "site": None if self.site is None else self.site.tolist(),
            "roles": {column: self.role(column) for column in self.table.columns},
            "levels": {column: self.codes(column)[1] for column in self.columns("label")},
            "box_classes": self.box_classes,
            "sources": {name: source.fingerprint() for name, source in sorted(self.sources.items())},
            "present": {name: there.tolist() for name, there in sorted(self.present.items())},
            "boxes": None if self.boxes is None else [[b.corners.tolist(), b.classes.tolist()] for b in self.boxes],
        }
        digest.update(json.dumps(parts, sort_keys=True).encode())
        return digest.hexdigest()


def _cell_bytes(column: Any) -> bytes:
    """Cells of a column: numbers as they lie in memory, which takes a fraction of the time, all others as text."""
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64, "f": np.float64}
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in wide:
        values = column.to_numpy(wide[column.dtype.kind], copy=True)
        if values.dtype.kind == "f":
            values[np.isnan(values)] = np.nan  # of the many NaN, one
        return f"{column.name} {values.dtype.str}".encode() + values.tobytes()
    cells = [None if gap else str(cell) for cell, gap in zip(column, column.isna(), strict=True)]
    return f"{column.name} {json.dumps(cells)}".encode()


def _by_number(word: str) -> tuple[float, str]:
    try:
        return float(word), word
    except ValueError:
        return float("inf"), word


def _as_ids(name: str, what: str, values: Iterable[Any], n: int) -> np.ndarray:
    """Ids as text; `None` and NaN are refused, which would all become one patient called "nan"."""
    import pandas as pd

    cells = pd.Series(list(values), dtype=object)
    _check_length(name, f"{what}s", cells, n)
    gaps = np.flatnonzero(cells.isna())
    if len(gaps):
        raise ValueError(f"{name}: row {gaps[0]} has no {what} ({cells[gaps[0]]!r}); expected text for every case.")
    return np.array([as_word(cell) for cell in cells], dtype=np.str_)


def _check_length(name: str, what: str, values: Any, n: int) -> None:
    if len(values) != n:
        raise ValueError(f"{name}: {len(values)} {what} for {n} cases; expected one a case.")


def _as_source(name: str, values: Any) -> tuple[Source, Bool[np.ndarray, "n"]]:
    if isinstance(values, Source):
        return values, np.ones(len(values), bool)
    if not isinstance(values, Sequence) and hasattr(values, "__array__"):
        values = np.asarray(values)  # arrays of JAX and torch, and data frames, which iterate over their columns
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.dtype.kind in "SUMm":
            raise _no_numbers(name, values.dtype)
        if values.ndim == 2:
            return Arrays(values, "array"), np.ones(len(values), bool)
        if values.ndim in (4, 5):
            return Arrays(values, "image"), np.ones(len(values), bool)
        raise ValueError(
            f"source {name!r} has shape {values.shape}; expected (n, f), (n, h, w, c) or (n, d, h, w, c). "
            "Add a channel axis: `values[..., None]`."
        )
    rows = [None if row is None else np.asarray(row) for row in values]
    for row in rows:
        if row is not None and row.dtype.kind in "OSUMm":
            raise _no_numbers(name, row.dtype)
    there = np.array([row is not None for row in rows])
    shapes = {row.ndim for row in rows if row is not None}
    if len(shapes) != 1 or not shapes <= {1, 3, 4}:
        raise ValueError(
            f"source {name!r}: arrays of {sorted(shapes)} axes; expected one array a case, all (f,), all (h, w, c) or "
            "all (d, h, w, c), and at least one that is there."
        )
    empty = np.zeros((0,) * shapes.pop())
    kind = "array" if empty.ndim == 1 else "image"
    return Arrays([empty if row is None else row for row in rows], kind), there


def _no_numbers(name: str, dtype: np.dtype) -> ValueError:
    return ValueError(
        f"source {name!r} holds {dtype}; expected numbers. Give columns of text, dates or mixed kinds as `table` and "
        "encode them on the training cases (`fusion_jax.data.tabular`)."
    )


def _check_ids(cohort: Cohort) -> None:
    n = len(cohort.table)
    if not n:
        raise ValueError(f"{cohort.name}: no case is left; expected at least one. Look at the flow of the definition.")
    for what, ids in (("case", cohort.table.index), ("patient", cohort.patient_id)):
        for row, value in enumerate(ids):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{cohort.name}: row {row} has no {what} id ({value!r}); expected text.")
    if not cohort.table.index.is_unique:
        twice = cohort.table.index[cohort.table.index.duplicated()][0]
        raise ValueError(f"{cohort.name}: case id {twice!r} stands in several rows; expected one row a case.")
    if len(cohort.patient_id) != n or (cohort.site is not None and len(cohort.site) != n):
        raise ValueError(f"{cohort.name}: patient ids or sites differ from the table in number; expected {n} each.")
    if cohort.boxes is not None and len(cohort.boxes) != n:
        raise ValueError(f"{cohort.name}: boxes of {len(cohort.boxes)} cases; expected {n}, empty where there is none.")


def _check_roles(cohort: Cohort) -> None:
    if not cohort.table.columns.is_unique:
        twice = cohort.table.columns[cohort.table.columns.duplicated()][0]
        raise ValueError(f"{cohort.name}: two columns are called {twice!r}; expected different names. Rename one.")
    for column, role in cohort.roles.items():
        if column not in cohort.table.columns:
            raise ValueError(
                f"{cohort.name}: role {role!r} of column {column!r}, which the table does not have; it has "
                f"{', '.join(map(repr, cohort.table.columns))}."
            )
        if role not in get_args(Role):
            raise ValueError(
                f"{cohort.name}: column {column!r} has role {role!r}; expected {', '.join(get_args(Role))}."
            )
    for column, levels in cohort.levels.items():
        if column not in cohort.table.columns:
            raise ValueError(
                f"{cohort.name}: levels of column {column!r}, which the table does not have. Check the name."
            )
        if len(set(levels)) < len(levels):
            raise ValueError(
                f"{cohort.name}: levels of {column!r} are {', '.join(levels)}; expected each of them once."
            )
        if cohort.role(column) != "label":  # those of labels are checked where they are coded
            cells = cohort.table[column]
            strange = [cell for cell in cells.dropna().unique() if as_word(cell) not in levels]
            if strange:
                case = cohort.table.index[cells.eq(strange[0]).to_numpy().argmax()]
                raise ValueError(
                    f"{cohort.name}: column {column!r} holds {strange[0]!r} in case {case}; expected one of "
                    f"{', '.join(levels)}. Fix the cell or the levels."
                )
    for role in ("time", "event"):
        if len(cohort.columns(role)) > 1:
            raise ValueError(
                f"{cohort.name}: {', '.join(cohort.columns(role))} all have the role {role!r}; give it one."
            )
    if cohort.columns("event") and not cohort.columns("time"):
        raise ValueError(f"{cohort.name}: column {cohort.columns('event')[0]!r} is the event; expected a time as well.")


def _check_sources(cohort: Cohort) -> None:
    n = len(cohort.table)
    if set(cohort.present) != set(cohort.sources) or not cohort.sources:
        raise ValueError(
            f"{cohort.name}: sources {', '.join(cohort.sources) or 'none'}, present given for "
            f"{', '.join(cohort.present) or 'none'}; expected the same names, at least one."
        )
    for name, source in cohort.sources.items():
        if len(source) != n or cohort.present[name].shape != (n,):
            raise ValueError(f"{cohort.name}: source {name!r} has {len(source)} rows; expected {n}, as the table.")
        if isinstance(source, Columns):
            for column in source.names:
                if column not in cohort.table.columns:
                    raise ValueError(f"{cohort.name}: source {name!r} names column {column!r}, which is not there.")
                if cohort.role(column) != "input":
                    raise ValueError(
                        f"{cohort.name}: source {name!r} takes column {column!r}, whose role is "
                        f"{cohort.role(column)!r}; a model reads columns with the role 'input' only."
                    )
    feeding = [there for name, there in cohort.present.items() if cohort.sources[name].kind != "mask"]
    without = np.flatnonzero(~np.any(feeding, axis=0)) if feeding else np.arange(n)
    if len(without):
        raise ValueError(
            f"{cohort.name}: case {cohort.table.index[without[0]]} has no source at all ({len(without)} such cases); "
            "expected at least one. Take these cases out."
        )
