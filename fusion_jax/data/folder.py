"""A cohort folder: `cohort.toml`, one table and image files. Opening it reads the table and lists files, no image."""

import difflib
import functools
import hashlib
import json
import os
import re
import stat
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.case_images import FILE_SUFFIX, CaseImages, check_needs
from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy
from fusion_jax.data.config import BoxesConfig, CohortConfig, SourceConfig, read_config
from fusion_jax.data.definition import Definition, Flow, apply_definition, check_roles, parse_definition
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.images.pipeline import Pipeline, build_pipeline
from fusion_jax.data.moved_boxes import check_moves, moved_boxes, moves_pixels
from fusion_jax.data.readers import peek_image, read_image
from fusion_jax.data.tables import as_written, read_table

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "CaseFiles",
    "assemble",
    "build_pipelines",
    "case_files",
    "case_options",
    "define",
    "existing",
    "has_values",
    "open_cohort",
    "path_columns",
    "source_paths",
]

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
    definition = parse_definition(config.definition, where=str(config.path))
    table, flow = defined_table(config, definition)
    paths = {name: source_paths(config, name, table) for name, source in config.sources.items() if not source.columns}
    there = {name: existing(found) for name, found in paths.items()}
    if missing == "error":
        _check_files(config, table, paths, there)
    files = case_files(config, table, paths, pipelines)
    boxes, box_classes = None, ()
    if config.boxes is not None:
        dropped = [case for step in flow.steps for reason in step.dropped for case in reason.case_id]
        boxes, box_classes = _read_boxes(config, config.boxes, table.index, dropped)
        of = config.boxes.of
        # Sizes come from the headers of the files.
        boxes = moved_boxes(boxes, pipelines[of].steps, there[of], functools.partial(files.plane, of))
    config = config._replace(units={**definition.units, **config.units})
    return assemble(config, table, files, there, boxes=boxes, box_classes=box_classes, flow=flow)


def assemble(
    config: CohortConfig,
    table: "pandas.DataFrame",
    files: "CaseFiles",
    there: Mapping[str, Bool[np.ndarray, "n"]],
    *,
    boxes: list[Boxes] | None,
    box_classes: tuple[str, ...],
    flow: Flow | None,
) -> Cohort:
    """The cohort of what was found in a folder.

    Args:
      config: whose roles, levels and sources are those of `table`; its units are of all columns.
      table: one row a case, indexed by case.
      files: reads the images of these cases.
      there: image source to the cases that have it, shape `(n,)`.
      boxes, box_classes, flow: as those of `Cohort`.
    """
    rows = np.arange(len(table))
    sources, present = {}, {}
    for name, source in config.sources.items():
        if source.columns is not None:
            sources[name] = Columns(source.columns, len(table))
            present[name] = has_values(table, source.columns)
        else:
            identity = functools.partial(_identity, config, files.paths[name])
            sources[name] = Lazy(functools.partial(files.read, name), rows, source.kind, identity)
            present[name] = there[name]
    return Cohort(
        name=config.name,
        table=table,
        patient_id=_ids(table, config.patient if config.patient != config.case else None),
        site=None if config.site is None else _ids(table.fillna({config.site: ""}), config.site),
        roles={column: role for column, role in config.roles.items() if column != config.case},
        sources=sources,
        present=present,
        units={**config.units, **{name: source.unit for name, source in config.sources.items() if source.unit}},
        levels=config.levels,
        boxes=boxes,
        box_classes=box_classes,
        boxes_of=config.boxes.of if config.boxes is not None and config.boxes.of in sources else "",
        flow=flow,
    )


def has_values(table: "pandas.DataFrame", columns: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Whether each case has a value in any of the columns."""
    return np.asarray(table[list(columns)].notna().any(axis=1))


def defined_table(config: CohortConfig, definition: Definition) -> tuple["pandas.DataFrame", Flow]:
    """The table of a cohort folder after its definition, indexed by case, and the flow that led there.

    Raises:
      FileNotFoundError, ValueError: see `open_cohort`.
    """
    check_roles(definition, config.roles)
    path = config.path.parent / config.table
    ids = [column for column in (config.case, config.patient, config.site) if column]
    text = [*ids, *path_columns(config)]
    table = read_table(path, sheet=config.sheet, text=text, types=config.types, units=config.units)
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
    return define(config, table, definition)


def define(config: CohortConfig, table: "pandas.DataFrame", definition: Definition) -> tuple["pandas.DataFrame", Flow]:
    """Apply a definition to the table, indexed by case; other tables that it names lie in the folder.

    Raises:
      FileNotFoundError, ValueError: see `apply_definition`.
    """
    patient = config.patient if config.patient != config.case else None
    return apply_definition(table, definition, read_table=functools.partial(_read, config), patient=patient)


def path_columns(config: CohortConfig) -> list[str]:
    """Columns that only name files, so that 007 stays 007; those that anything calculates with stay numbers."""
    columns: list[str] = []
    for source in config.sources.values():
        texts = [text for text in (source.files, *source.options.values()) if isinstance(text, str)]
        columns += re.findall(r"\{([^{}]+)\}", " ".join(texts)) + ([source.column] if source.column else [])
    definition = json.dumps(config.definition, default=str)
    return [
        column
        for column in dict.fromkeys(columns)
        if column not in config.units
        and column not in config.types
        and config.roles.get(column, "never") in ("group", "never")
        and column not in definition
    ]


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
    images = [name for name, source in config.sources.items() if source.columns is None]
    pipelines = {
        name: build_pipeline(config.sources[name].preprocess, where=f"{config.path}: sources.{name}.preprocess")
        for name in images
    }
    check_needs(pipelines, images, str(config.path))
    if config.boxes is not None and moves_pixels(pipelines[config.boxes.of].steps):
        check_moves(pipelines[config.boxes.of].steps, pipelines[config.boxes.of].where)
    return pipelines


def case_files(
    config: CohortConfig,
    table: "pandas.DataFrame",
    paths: Mapping[str, Sequence[str]],
    pipelines: Mapping[str, Pipeline],
) -> "CaseFiles":
    """The reader of the files at `paths`, with the options that the table gives for every case."""
    options = {name: case_options(config.sources[name].options, table) for name in paths}
    return CaseFiles(paths, options, dict(config.sources), pipelines)


class CaseFiles:
    """Reads and preprocesses the image files of a case; loader workers get it by pickle."""

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
        needed = [f"{source.of}{FILE_SUFFIX}" for source in sources.values() if source.reader in ON_AN_IMAGE]
        self._images = CaseImages(self._from_file, pipelines, needed)

    def read(self, name: str, row: int) -> Image:
        """Image of a source, after its preprocessing; `NAME.file` before it."""
        try:
            return self._images(name, row)
        except UnreadableFile:
            raise
        except ValueError as error:
            raise ValueError(f"{self.paths[name.removesuffix(FILE_SUFFIX)][row]}: {error}") from error

    def plane(self, name: str, row: int) -> tuple[int, ...]:
        """Rows and columns of an image file, from its header."""
        options = self.options[name][row]
        return peek_image(self.paths[name][row], reader=self.sources[name].reader, **options).shape[:2]

    def _from_file(self, images: CaseImages, name: str, row: int) -> Image:
        source = self.sources[name]
        options = dict(self.options[name][row])
        if source.reader in ON_AN_IMAGE and source.of is not None:
            options["image"] = images(source.of + FILE_SUFFIX, row)
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
        # A table that was written on Windows has backslashes.
        parts = [cell.replace("\\", "/") for cell in _cells(table[source.column])]
    else:
        parts = _filled(str(source.files), table, where, config)
    paths = []
    for case, part in zip(table.index, parts, strict=True):
        if part and _leads_out(part):
            raise ValueError(
                f"{where}: case {case} has the path {part!r}, which leads out of {root}; expected a path below it."
            )
        paths.append(f"{root}{os.sep}{os.path.normpath(part)}" if part else "")
    return paths


def _filled(pattern: str, table: "pandas.DataFrame", where: str, config: CohortConfig) -> list[str]:
    try:
        pieces = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{where}: pattern {pattern!r} cannot be read ({error}).") from None
    if any(form or conversion for _, _, form, conversion in pieces):
        raise ValueError(f"{where}: pattern {pattern!r} formats a column; expected columns in braces and nothing else.")
    fields = [field for _, field, _, _ in pieces if field is not None]
    known = {"case_id", config.case, *table.columns}
    for field in fields:
        if field not in known:
            raise ValueError(
                f"{where}: pattern {pattern!r} names column {field!r}, which {config.table} does not have."
            )
    if not fields:
        raise ValueError(f"{where}: pattern {pattern!r} names no column; expected such as `{{case_id}}`.")
    cells = {
        field: [*table.index] if field in ("case_id", config.case) else _cells(table[field]) for field in set(fields)
    }
    return [
        # A case with a gap in one of the columns has no such file.
        "".join(literal + ("" if field is None else cells[field][row]) for literal, field, _, _ in pieces)
        if all(values[row] for values in cells.values())
        else ""
        for row in range(len(table))
    ]


def _cells(column: Any) -> list[str]:
    """Cells as the sheet shows them, "" where empty; a gap makes pandas hold the other whole numbers as 7.0."""
    return ["" if gap else as_written(cell) for cell, gap in zip(column, column.isna(), strict=True)]


def case_options(options: Mapping[str, Any], table: "pandas.DataFrame") -> list[Mapping[str, Any]]:
    """Options of the reader for every case: `{column}` in a text is the cell of the case."""
    texts = {key: value for key, value in options.items() if isinstance(value, str)}
    named = re.findall(r"\{([^{}]+)\}", " ".join(texts.values()))
    cells = {column: _cells(table[column]) for column in set(named) & set(table.columns)}
    if "case_id" in named:
        cells["case_id"] = [*table.index]
    if not cells:
        return [options] * len(table)
    braces = re.compile("|".join(re.escape(f"{{{column}}}") for column in cells))
    return [
        {
            **options,
            **{
                key: braces.sub(lambda found, row=row: cells[found.group()[1:-1]][row], value)
                for key, value in texts.items()
            },
        }
        for row in range(len(table))
    ]


def _leads_out(part: str) -> bool:
    absolute = part.startswith(("/", "\\")) or part[1:2] == ":"
    return absolute or (".." in part and ".." in re.split(r"[\\/]", part))


def existing(paths: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Whether each path is there; lists every folder once, which on network drives beats asking for every file."""
    listed: dict[str, set[str]] = {}
    there = np.zeros(len(paths), bool)
    for row, path in enumerate(paths):
        folder, name = os.path.split(_container(path))
        if not path:
            continue
        if folder not in listed:
            try:
                listed[folder] = {entry.name for entry in os.scandir(folder)}
            except (FileNotFoundError, NotADirectoryError):
                listed[folder] = set()
        there[row] = name in listed[folder]
    return there


def _container(path: str) -> str:
    """The file itself, or the archive of `images.zip!case_1.jpg`."""
    at = path.lower().find(".zip!")
    return path if at < 0 else path[: at + 4]


def _check_files(
    config: CohortConfig,
    table: "pandas.DataFrame",
    paths: Mapping[str, Sequence[str]],
    there: Mapping[str, Bool[np.ndarray, "n"]],
) -> None:
    for name, found in paths.items():
        gaps = np.flatnonzero(~there[name])
        if len(gaps) and config.sources[name].required:
            case, path = table.index[gaps[0]], found[gaps[0]]
            lacking = f"{path}: no such file, {name}" if path else f"{config.path}: the table has no path of {name}"
            raise FileNotFoundError(
                f"{lacking} of case {case} ({len(gaps)} of {len(table)} cases lack it). `fusion-jax cohort check "
                f"{config.path.parent}` lists them; add the files, leave the cases out, or write `required = false` "
                f"under [sources.{name}]."
            )


def _identity(config: CohortConfig, paths: Sequence[str]) -> str:
    """Digest of names and sizes of the files (names of what is in a folder) and of what is done to them.

    Contents are not read.
    """
    digest = hashlib.sha256()
    places: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in places:
            places[folder] = os.path.relpath(folder, config.path.parent) if folder else ""
        digest.update(f"{places[folder]} {name} {_extent(_container(path))}\n".encode())
    digest.update(json.dumps({name: source._asdict() for name, source in config.sources.items()}, default=str).encode())
    return digest.hexdigest()


def _extent(path: str) -> str:
    try:
        found = Path(path).stat()
        if stat.S_ISDIR(found.st_mode):
            return json.dumps(sorted(entry.name for entry in Path(path).iterdir()))
        return str(found.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return "-"


def _read_boxes(
    config: CohortConfig, boxes: BoxesConfig, cases: "pandas.Index", dropped: Sequence[str]
) -> tuple[list[Boxes], tuple[str, ...]]:
    """Boxes of every case and the names of their classes; `dropped` are cases that the definition left out."""
    path = config.path.parent / boxes.file
    table: Any = read_table(path, text=[boxes.case, boxes.label], types=dict.fromkeys(boxes.corners, "number"))
    for column in (boxes.case, boxes.label, *boxes.corners):
        if column not in table.columns:
            raise ValueError(f"{path}: no column {column!r}, which {config.path} names under boxes.")
    # A table of cases may hold the boxes too: a row without corners is a case without a box.
    table = table[table[list(boxes.corners)].notna().any(axis=1)]
    rows = (table.index + 2).tolist()
    for column in (boxes.case, boxes.label):
        gaps = np.flatnonzero(np.asarray(table[column].isna()))
        if len(gaps):
            raise ValueError(
                f"{path}: column {column!r} is empty in row {rows[gaps[0]]} ({len(gaps)} such rows); expected the case "
                "and the class of every box."
            )
    strange = np.flatnonzero(~np.asarray(table[boxes.case].isin([*cases, *dropped])))
    if len(strange):
        raise ValueError(
            f"{path}: row {rows[strange[0]]} has a box of case {table[boxes.case].iloc[strange[0]]!r}, which "
            f"{config.table} does not have ({len(strange)} such rows). Fix the id, or take the rows out."
        )
    corners = table[list(boxes.corners)].to_numpy(dtype=float, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(corners).all(axis=1) | (corners[:, 2:] <= corners[:, :2]).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}: row {rows[bad[0]]} is no box ({', '.join(map(str, corners[bad[0]]))}); expected x0 < x1, y0 < y1."
        )
    names = boxes.classes or tuple(sorted(set(table[boxes.label])))
    code = {name: number for number, name in enumerate(names)}
    unknown = [label for label in table[boxes.label] if label not in code]
    if unknown:
        raise ValueError(f"{path}: class {unknown[0]!r} is none of {', '.join(names)}.")
    codes = np.array([code[label] for label in table[boxes.label]], np.int32)
    by_case = table.groupby(boxes.case).indices
    none = np.zeros(0, np.int64)
    return [Boxes(corners[by_case.get(case, none)], codes[by_case.get(case, none)]) for case in cases], names
