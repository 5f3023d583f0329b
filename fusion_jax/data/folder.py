"""A cohort folder: `cohort.toml`, one table and image files. Opening it reads the table and lists files, no image."""

import difflib
import functools
import hashlib
import json
import os
import string
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy
from fusion_jax.data.config import BoxesConfig, CohortConfig, SourceConfig, read_config
from fusion_jax.data.definition import Definition, apply_definition, check_roles, parse_definition
from fusion_jax.data.image import Image
from fusion_jax.data.preprocess import Pipeline, build_pipeline
from fusion_jax.data.readers import read_image
from fusion_jax.data.tables import read_table

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["CaseFiles", "open_cohort", "source_paths"]

FILE_SUFFIX = ".file"
"""After the name of a source in a step of another's pipeline: the image as its file holds it, before its own steps."""

ON_AN_IMAGE = ("rtstruct", "dicom_seg")
"""Readers of masks that need the image they lie on."""


def open_cohort(folder: str | Path, *, missing: str = "error") -> Cohort:
    """Cohort of a folder with a `cohort.toml`.

    The table is read, the definition applied and files are looked for; images are read when they are asked for, so
    that a folder of any size opens in seconds.

    Args:
      folder: with `cohort.toml`, or the path of such a file.
      missing: what a missing file of a required source means: "error", or "absent" to mark the source absent there.

    Raises:
      FileNotFoundError: there is no cohort.toml, table, or (with `missing="error"`) image file.
      ValueError: file, key, column or case that cannot be used; the message names it.
    """
    if missing not in ("error", "absent"):
        raise ValueError(f"missing is {missing!r}; expected 'error' or 'absent'.")
    config = read_config(folder)
    pipelines = build_pipelines(config)
    table, flow = defined_table(config)
    options = {name: _case_options(source.options, table) for name, source in config.sources.items()}
    paths = {name: source_paths(config, name, table) for name, source in config.sources.items() if not source.columns}
    there = {name: _existing(found) for name, found in paths.items()}
    if missing == "error":
        _check_files(config, table, paths, there)
    files = CaseFiles(paths, options, dict(config.sources), pipelines)
    rows = np.arange(len(table))
    sources, present = {}, {}
    for name, source in config.sources.items():
        if source.columns is not None:
            sources[name] = Columns(source.columns, len(table))
            present[name] = np.asarray(table[list(source.columns)].notna().any(axis=1))
        else:
            sources[name] = Lazy(functools.partial(files.read, name), rows, source.kind, _identity(config, paths[name]))
            present[name] = there[name]
    return Cohort(
        name=config.name,
        table=table,
        patient_id=_ids(table, config.patient if config.patient != config.case else None),
        site=None if config.site is None else _ids(table.fillna({config.site: "unknown"}), config.site),
        roles={column: role for column, role in config.roles.items() if column != config.case},
        sources=sources,
        present=present,
        units={
            **parse_definition(config.definition).units,
            **config.units,
            **{name: source.unit for name, source in config.sources.items() if source.unit},
        },
        levels=config.levels,
        boxes=None if config.boxes is None else _read_boxes(config, config.boxes, table.index),
        box_classes=() if config.boxes is None else _box_classes(config, config.boxes),
        flow=flow,
    )


def defined_table(config: CohortConfig) -> tuple["pandas.DataFrame", Any]:
    """The table of a cohort folder after its definition, indexed by case, and the flow that led there.

    Raises:
      FileNotFoundError, ValueError: see `open_cohort`.
    """
    definition = parse_definition(config.definition, where=str(config.path))
    check_roles(definition, config.roles)
    path = config.path.parent / config.table
    ids = [column for column in (config.case, config.patient, config.site) if column]
    table = read_table(path, sheet=config.sheet, text=ids, types=config.types, units=config.units)
    _check_columns(config, definition, path, table.columns, ids)
    _check_case_ids(path, config.case, table[config.case].tolist())
    gaps = np.flatnonzero(np.asarray(table[config.patient].isna()))
    if len(gaps):
        raise ValueError(
            f"{path}: column {config.patient!r} is empty in row {gaps[0] + 2} ({len(gaps)} such rows); expected the "
            "patient of every case, since patients must not cross splits."
        )
    table = table.set_index(config.case)
    table.index.name = "case_id"
    patient = config.patient if config.patient != config.case else None
    return apply_definition(table, definition, read_table=functools.partial(_read, config), patient=patient)


def _check_columns(
    config: CohortConfig, definition: Definition, path: Path, columns: Iterable[str], ids: Sequence[str]
) -> None:
    """Every column that the file names is in the table, or is made by the definition."""
    made = [measure.name for measure in definition.measures] + [
        f"{measure.name}_days" for measure in definition.measures
    ]
    made += [derive.name for derive in definition.derives] + [horizon.name for horizon in definition.horizons]
    for key, names, known in (
        ("ids", ids, [*columns]),
        *((key, [*getattr(config, key)], [*columns, *made]) for key in ("roles", "units", "types", "levels")),
    ):
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{path}: no column {name!r}, which {config.path} names under {key}.{hint}")


def _ids(table: "pandas.DataFrame", column: str | None) -> np.ndarray:
    return np.array([str(value) for value in (table.index if column is None else table[column])], dtype=np.str_)


def _read(config: CohortConfig, name: str) -> "pandas.DataFrame":
    return read_table(config.path.parent / name, text=(config.case, config.patient), types=config.types)


def _check_case_ids(path: Path, column: str, ids: Sequence[Any]) -> None:
    seen: dict[str, int] = {}
    for row, case in enumerate(ids, start=2):
        if not isinstance(case, str) or not case.strip():
            raise ValueError(f"{path}: column {column!r} is empty in row {row}; expected an id for every case.")
        if case in seen:
            raise ValueError(
                f"{path}: {column} {case!r} stands in rows {seen[case]} and {row}; expected one row a case. Remove or "
                "rename one, or name another column as the case id."
            )
        seen[case] = row


def build_pipelines(config: CohortConfig) -> dict[str, Pipeline]:
    """Preprocessing of every image source, checked: known operations, known other sources, no circle.

    Raises:
      ValueError: see above; the message names file, source and step.
    """
    pipelines = {}
    for name, source in config.sources.items():
        if source.columns is not None:
            continue
        where = f"{config.path}: sources.{name}.preprocess"
        pipelines[name] = build_pipeline(source.preprocess, where=where)
        for other in pipelines[name].needs:
            base = other.removesuffix(FILE_SUFFIX)
            if base not in config.sources or config.sources[base].columns is not None:
                raise ValueError(f"{where}: needs source {other!r}; expected an image source of this file.")
    for name in pipelines:
        _check_circle(config, pipelines, name, ())
    return pipelines


def _check_circle(config: CohortConfig, pipelines: Mapping[str, Pipeline], name: str, path: tuple[str, ...]) -> None:
    if name in path:
        raise ValueError(
            f"{config.path}: preprocessing of {' needs '.join([*path, name])}: a circle. Write `{name}{FILE_SUFFIX}` "
            "for the image as its file holds it."
        )
    for other in pipelines[name].needs:
        if not other.endswith(FILE_SUFFIX):
            _check_circle(config, pipelines, other, (*path, name))


class CaseFiles:
    """Reads and preprocesses the image files of a case; keeps what it read of one case, for sources that need others.

    Loader workers get it by pickle; each thread keeps a case of its own.
    """

    def __init__(
        self,
        paths: Mapping[str, Sequence[str]],
        options: Mapping[str, Sequence[Mapping[str, Any]]],
        sources: Mapping[str, SourceConfig],
        pipelines: Mapping[str, Pipeline],
    ) -> None:
        self.paths = paths
        self.options = options
        self.sources = sources
        self.pipelines = pipelines
        self._kept = threading.local()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.paths, self.options, self.sources, self.pipelines

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.paths, self.options, self.sources, self.pipelines = state
        self._kept = threading.local()

    def read(self, name: str, row: int) -> Image:
        """Image of a source, after its preprocessing; `NAME.file` before it."""
        kept = self._kept
        if getattr(kept, "row", None) != row:
            kept.row, kept.images = row, {}
        if name not in kept.images:
            # Only what another source of the case may ask for again is kept.
            image = self._read(name, row)
            if not self._is_needed(name):
                return image
            kept.images[name] = image
        return kept.images[name]

    def _is_needed(self, name: str) -> bool:
        base = name.removesuffix(FILE_SUFFIX)
        as_file = name.endswith(FILE_SUFFIX)
        return any(name in pipeline.needs for pipeline in self.pipelines.values()) or (
            as_file and any(s.of == base and s.reader in ON_AN_IMAGE for s in self.sources.values())
        )

    def _read(self, name: str, row: int) -> Image:
        if name.endswith(FILE_SUFFIX):
            base = name.removesuffix(FILE_SUFFIX)
            return self._from_file(base, row)
        pipeline = self.pipelines[name]
        image = self.read(name + FILE_SUFFIX, row)
        try:
            return pipeline(image, {other: functools.partial(self.read, other, row) for other in pipeline.needs})
        except (TypeError, ValueError) as error:
            step = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            raise ValueError(f"{self.paths[name][row]}: {step}{error}") from error

    def _from_file(self, name: str, row: int) -> Image:
        source = self.sources[name]
        options = dict(self.options[name][row])
        if source.reader in ON_AN_IMAGE and source.of is not None:
            options["image"] = self.read(source.of + FILE_SUFFIX, row)
        image = read_image(self.paths[name][row], reader=source.reader, **options)
        if source.kind == "mask":
            return image._replace(unit="label")
        return image._replace(unit=source.unit) if source.unit else image


def source_paths(config: CohortConfig, name: str, table: "pandas.DataFrame") -> list[str]:
    """Path of a source's file for every case; "" where its column is empty.

    Raises:
      ValueError: a pattern names a column that is not there, or an id leads out of the folder.
    """
    source = config.sources[name]
    folder = config.path.parent
    root = folder if source.root is None else folder / source.root
    where = f"{config.path}: sources.{name}"
    if source.column is not None:
        if source.column not in table.columns:
            raise ValueError(f"{where}: no column {source.column!r} in {config.table}.")
        parts = table[source.column].map(str, na_action="ignore").fillna("").tolist()
    else:
        parts = _filled(str(source.files), table, where, config)
    paths = []
    for case, part in zip(table.index, parts, strict=True):
        if part and _leads_out(part):
            raise ValueError(
                f"{where}: case {case} has the path {part!r}, which leads out of {root}; expected a path below it."
            )
        paths.append(str(root / part) if part else "")
    return paths


def _filled(pattern: str, table: "pandas.DataFrame", where: str, config: CohortConfig) -> list[str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        raise ValueError(f"{where}: pattern {pattern!r} cannot be read ({error}).") from None
    known = {"case_id", config.case, *table.columns}
    for field in fields:
        if field not in known:
            raise ValueError(
                f"{where}: pattern {pattern!r} names column {field!r}, which {config.table} does not have."
            )
    if not fields:
        raise ValueError(f"{where}: pattern {pattern!r} names no column; expected such as `{{case_id}}`.")
    cells = {
        field: list(map(str, table.index if field in ("case_id", config.case) else table[field]))
        for field in set(fields)
    }
    return [pattern.format(**{field: values[row] for field, values in cells.items()}) for row in range(len(table))]


def _case_options(options: Mapping[str, Any], table: "pandas.DataFrame") -> list[Mapping[str, Any]]:
    """Options of the reader for every case: `{column}` in a text is the cell of the case."""
    fields = {
        key: [column for column in table.columns if f"{{{column}}}" in value]
        for key, value in options.items()
        if isinstance(value, str)
    }
    if not any(fields.values()):
        return [options] * len(table)
    filled = []
    for row in range(len(table)):
        own = dict(options)
        for key, columns in fields.items():
            for column in columns:
                own[key] = own[key].replace(f"{{{column}}}", str(table[column].iloc[row]))
        filled.append(own)
    return filled


def _leads_out(part: str) -> bool:
    return Path(part).is_absolute() or ".." in Path(part).parts


def _existing(paths: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Whether each path is there; lists every folder once, which on network drives beats asking for every file."""
    listed: dict[str, set[str]] = {}
    there = np.zeros(len(paths), bool)
    for row, path in enumerate(paths):
        folder, name = os.path.split(path.partition("!")[0])
        if not path:
            continue
        if folder not in listed:
            try:
                listed[folder] = {entry.name for entry in os.scandir(folder)}
            except (FileNotFoundError, NotADirectoryError):
                listed[folder] = set()
        there[row] = name in listed[folder]
    return there


def _check_files(
    config: CohortConfig,
    table: "pandas.DataFrame",
    paths: Mapping[str, Sequence[str]],
    there: Mapping[str, Bool[np.ndarray, "n"]],
) -> None:
    for name, found in paths.items():
        gaps = np.flatnonzero(~there[name])
        if len(gaps) and config.sources[name].required:
            case = table.index[gaps[0]]
            raise FileNotFoundError(
                f"{found[gaps[0]] or 'no path'}: no such file, {name} of case {case} ({len(gaps)} of {len(table)} "
                f"cases lack it). `fusion-jax cohort check {config.path.parent}` lists them; add the files, leave "
                f"the cases out, or write `required = false` under [sources.{name}]."
            )


def _identity(config: CohortConfig, paths: Sequence[str]) -> str:
    """Digest of names and sizes of the files, and of what is done to them; contents are not read."""
    digest = hashlib.sha256()
    for path in paths:
        file = path.partition("!")[0]
        try:
            size = Path(file).stat().st_size if file else -1
        except FileNotFoundError:
            size = -1
        digest.update(f"{os.path.relpath(path, config.path.parent) if path else ''} {size}\n".encode())
    digest.update(json.dumps({name: source._asdict() for name, source in config.sources.items()}, default=str).encode())
    return digest.hexdigest()


def _read_boxes(config: CohortConfig, boxes: BoxesConfig, cases: "pandas.Index") -> list[Boxes]:
    path = config.path.parent / boxes.file
    table = read_table(path, text=[boxes.case, boxes.label])
    for column in (boxes.case, boxes.label, *boxes.corners):
        if column not in table.columns:
            raise ValueError(f"{path}: no column {column!r}, which {config.path} names under boxes.")
    classes = {name: code for code, name in enumerate(_box_classes(config, boxes))}
    corners = table[list(boxes.corners)].to_numpy(dtype=float, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(corners).all(axis=1) | (corners[:, 2:] <= corners[:, :2]).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}: row {bad[0] + 2} is no box ({', '.join(map(str, corners[bad[0]]))}); expected x0 < x1, y0 < y1."
        )
    by_case = table.groupby(boxes.case).indices
    codes = np.array([classes[label] for label in table[boxes.label]], np.int32)
    none = np.zeros(0, np.int64)
    return [Boxes(corners[by_case.get(case, none)], codes[by_case.get(case, none)]) for case in cases]


def _box_classes(config: CohortConfig, boxes: BoxesConfig) -> tuple[str, ...]:
    path = config.path.parent / boxes.file
    found = sorted(set(read_table(path, text=[boxes.case, boxes.label])[boxes.label]))
    if not boxes.classes:
        return tuple(found)
    strange = [label for label in found if label not in boxes.classes]
    if strange:
        raise ValueError(f"{path}: class {strange[0]!r} is none of {', '.join(boxes.classes)}.")
    return boxes.classes
