"""Open a cohort folder as far as it goes: whatever is malformed becomes a finding, the rest is kept."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusion_jax.data.case_images import FILE_SUFFIX
from fusion_jax.data.cohort import Boxes, Cohort, Role
from fusion_jax.data.config import BoxesConfig, CohortConfig, read_config
from fusion_jax.data.definition import Flow, check_roles, parse_definition
from fusion_jax.data.folder import (
    CaseFiles,
    assemble,
    build_pipelines,
    case_files,
    define,
    existing,
    has_values,
    open_cohort,
    path_columns,
    source_paths,
)
from fusion_jax.data.images.pipeline import Pipeline
from fusion_jax.data.integrity.findings import Finding
from fusion_jax.data.tables import as_word, parsed, read_cells, read_table
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Opened", "open_leniently"]


class Opened(NamedTuple):
    """A cohort folder without what cannot be used.

    Attributes:
      cohort: the cases that are left.
      files: reads their images, before and after preprocessing; None for a cohort that came without files.
      mask_of: mask to the image it lies on.
      findings: what was left out or emptied, and why.
    """

    cohort: Cohort
    files: CaseFiles | None
    mask_of: Mapping[str, str]
    findings: list[Finding]


def open_leniently(folder: str | Path) -> Opened:
    """The cohort of a folder, with a finding for every row, cell, column, file and box that cannot be used.

    Raises:
      FileNotFoundError, ValueError: there is no `cohort.toml` or table that can be read, or no case is left.
    """
    config = read_config(folder)
    findings: list[Finding] = []
    raw = _table(config)
    table = _rows(config, raw, findings)
    table = _cells(config, table, findings)
    units, table, flow = _defined(config, table, findings)
    _levels(config, table, findings)
    roles = _classes(config, table, findings)
    pipelines = build_pipelines(config)
    sources = _usable_sources(config, pipelines, table, findings)
    pipelines = {name: pipeline for name, pipeline in pipelines.items() if name in sources}
    known = {column: levels for column, levels in config.levels.items() if column in table.columns}
    config = config._replace(sources=sources, roles=roles, levels=known, units={**units, **config.units})
    paths = {name: _paths(config, name, table, findings) for name, one in sources.items() if one.columns is None}
    there = {name: existing(found) for name, found in paths.items()}
    _missing(config, table, paths, there, findings)
    _unused(config, paths, findings)

    feeding = [there[name] for name in paths if sources[name].kind != "mask"]
    feeding += [has_values(table, one.columns) for one in sources.values() if one.columns]
    kept = np.any(feeding, axis=0) if feeding else np.zeros(len(table), bool)
    if not kept.all():
        lost = tuple(table.index[~kept])
        findings.append(
            Finding(
                "error",
                "row",
                f"{len(lost)} cases have neither an image nor a clinical value ({listed(lost)}).",
                "Add their files or values, or take the rows out.",
                lost,
            )
        )
    if not kept.any():
        raise ValueError(f"{config.path}: no case has any data; expected images or values of at least one.")
    table = table[kept]
    paths = {name: [path for path, keep in zip(found, kept, strict=True) if keep] for name, found in paths.items()}
    there = {name: found[kept] for name, found in there.items()}

    files = case_files(config, table, paths, pipelines)
    boxes, classes = (
        (None, ()) if config.boxes is None else _boxes(config, config.boxes, raw[config.case].tolist(), findings, table)
    )
    cohort = assemble(config, table, files, there, boxes=boxes, box_classes=classes, flow=flow)
    if not any(one.severity == "error" for one in findings):
        _opens(folder, findings)
    mask_of = {name: one.of for name, one in sources.items() if one.of is not None}
    return Opened(cohort, files, mask_of, findings)


def _opens(folder: str | Path, findings: list[Finding]) -> None:
    """A last look: what a run will do first must not fail on something that nobody here thought of."""
    try:
        open_cohort(folder, missing="absent")
    except (ValueError, OSError) as error:
        findings.append(Finding("error", "cohort", str(error), "A run stops with this message; do what it says."))


def _table(config: CohortConfig) -> "pandas.DataFrame":
    ids = [column for column in (config.case, config.patient, config.site) if column]
    words = [column for column, kind in config.types.items() if kind == "text"]
    dates = [column for column, kind in config.types.items() if kind == "date"]
    path = config.path.parent / config.table
    table = read_cells(path, sheet=config.sheet, text=[*ids, *path_columns(config), *words], dates=dates)
    for column in ids:
        if column not in table.columns:
            raise ValueError(
                f"{path}: no column {column!r}, which {config.path} names under ids; it has "
                f"{listed(table.columns, 12)}."
            )
    return table


def _rows(config: CohortConfig, table: Any, findings: list[Finding]) -> Any:
    """Rows with an id of their own and a patient."""
    ids = table[config.case].map(lambda cell: cell if isinstance(cell, str) and cell.strip() else None)
    empty = ids.isna().to_numpy()
    twice = (ids.duplicated() & ~ids.isna()).to_numpy()
    nobody = table[config.patient].map(lambda cell: not isinstance(cell, str) or not cell.strip()).to_numpy() & ~empty
    name = Path(config.table).name
    for bad, column, what, advice in (
        (empty, config.case, f"{{n}} rows have no {config.case}", "Give every row an id."),
        (
            twice,
            config.case,
            f"{{n}} rows repeat the {config.case} of an earlier row",
            "Remove or rename them, or name another column as the case id.",
        ),
        (
            nobody,
            config.patient,
            f"{{n}} rows have no {config.patient}",
            "Say whose they are: patients must not cross splits.",
        ),
    ):
        if bad.any():
            rows = np.flatnonzero(bad)
            cases = tuple(dict.fromkeys(str(case) for case in table[config.case][bad] if isinstance(case, str)))
            text = what.format(n=len(rows))
            numbers = listed(f"row {row + 2}" for row in rows)
            findings.append(
                Finding(
                    "error", "row", f"{name}: {text} ({numbers}); the rest was checked.", advice, cases, column=column
                )
            )
    good = ~(empty | twice | nobody)
    if not good.any():
        raise ValueError(
            f"{config.path.parent / config.table}: no row has a case id and a patient; expected one a case."
        )
    table = table[good].set_index(config.case)
    table.index.name = "case_id"
    return table


def _cells(config: CohortConfig, table: Any, findings: list[Finding]) -> Any:
    """Columns with a declared type or unit as numbers and dates; cells that are neither are emptied."""
    table = table.copy()
    for column, kind in {**dict.fromkeys(config.units, "number"), **config.types}.items():
        if column not in table.columns or kind == "text":
            continue
        cells = table[column]
        wanted = "dates such as 2020-01-31" if kind == "date" else "numbers"
        try:
            values = parsed(cells, kind)
        except ValueError as error:
            findings.append(
                Finding(
                    "error",
                    "row",
                    f"Column {column!r} is declared to hold {wanted}, but {error} All of it is taken as empty here.",
                    "Fix the cells, or change the declaration.",
                    column=column,
                )
            )
            table[column] = np.datetime64("NaT", "ns")
            continue
        bad = (values.isna() & cells.notna()).to_numpy()
        if bad.any():
            shown = listed(f"{cell!r} in case {case}" for case, cell in cells[bad].items())
            findings.append(
                Finding(
                    "error",
                    "row",
                    f"Column {column!r} is declared to hold {wanted}, but holds {shown}; taken as empty here.",
                    "Fix the cells, empty them if the value is not known, or change the declaration.",
                    tuple(table.index[bad]),
                    column=column,
                )
            )
        table[column] = values
    return table


def _defined(config: CohortConfig, table: Any, findings: list[Finding]) -> tuple[dict[str, str], Any, Flow | None]:
    """Units of what the definition makes, the table after it, and the flow; the whole table if it cannot be applied."""
    units: dict[str, str] = {}
    flow = None
    try:
        definition = parse_definition(config.definition, where=str(config.path))
        check_roles(definition, config.roles)
        table, flow = define(config, table, definition)
        units = definition.units
    except (ValueError, OSError) as error:
        findings.append(
            Finding("error", "definition", str(error), "Fix the definition; the rest was checked on the whole table.")
        )
    for key in ("roles", "units", "types", "levels"):
        gone = [column for column in getattr(config, key) if column not in table.columns and column != config.case]
        if gone:
            findings.append(
                Finding(
                    "error",
                    "column",
                    f"cohort.toml names {listed(map(repr, gone))} under {key}; {config.table} has no such column.",
                    "Fix the name, or take it out.",
                    column=gone[0],
                )
            )
    return units, table, flow


def _levels(config: CohortConfig, table: Any, findings: list[Finding]) -> None:
    """Labels outside their declared levels, emptied."""
    for column, levels in config.levels.items():
        if config.roles.get(column) != "label" or column not in table.columns:
            continue
        strange = table[column].map(lambda cell, levels=levels: as_word(cell) not in levels) & table[column].notna()
        if strange.any():
            shown = listed(f"{cell!r} in case {case}" for case, cell in table[column][strange].items())
            findings.append(
                Finding(
                    "error",
                    "label",
                    f"Label {column!r} holds {shown}; expected one of {', '.join(levels)}. Taken as empty here.",
                    "Fix the cells, or declare the level.",
                    tuple(table.index[strange]),
                    column=column,
                )
            )
            table[column] = table[column].where(~strange)


def _classes(config: CohortConfig, table: Any, findings: list[Finding]) -> dict[str, Role]:
    """Roles of the columns that are there, without the labels that are no classes."""
    kept: dict[str, Role] = {column: role for column, role in config.roles.items() if column in table.columns}
    for column in [column for column, role in kept.items() if role == "label"]:
        try:
            Cohort.from_arrays(
                {"none": np.zeros((len(table), 1))},
                table=table[[column]],
                roles={column: "label"},
                levels={column: config.levels[column]} if column in config.levels else {},
                name=config.name,
            )
        except ValueError as error:
            findings.append(
                Finding("error", "label", str(error), "It was left out of the other checks.", column=column)
            )
            kept[column] = "never"
    return kept


def _usable_sources(
    config: CohortConfig, pipelines: Mapping[str, Pipeline], table: Any, findings: list[Finding]
) -> dict[str, Any]:
    sources = {}
    for name, one in config.sources.items():
        if one.columns is not None:
            known = tuple(column for column in one.columns if column in table.columns)
            if known:
                sources[name] = one._replace(columns=known)
            continue
        if len(table) and (reason := _no_path_at_all(config, name, table)):
            findings.append(
                Finding("error", "column", reason, f"Fix [sources.{name}]; nothing of it was checked.", source=name)
            )
            continue
        sources[name] = one
    while True:  # until no source needs one that was left out
        short = [
            name
            for name, one in sources.items()
            if (one.of is not None and one.of not in sources)
            or (
                name in pipelines
                and any(other.removesuffix(FILE_SUFFIX) not in sources for other in pipelines[name].needs)
            )
        ]
        if not short:
            return sources
        sources = {name: one for name, one in sources.items() if name not in short}


def _no_path_at_all(config: CohortConfig, name: str, table: Any) -> str:
    """Why no case of a source has a path; "" if one has."""
    reason = ""
    for row in range(len(table)):
        try:
            source_paths(config, name, table.iloc[row : row + 1])
        except ValueError as error:
            reason = reason or str(error)
        else:
            return ""
    return reason


def _paths(config: CohortConfig, name: str, table: Any, findings: list[Finding]) -> list[str]:
    try:
        return source_paths(config, name, table)
    except ValueError:
        pass
    found, bad, first = [], [], ""
    for row in range(len(table)):
        try:
            found += source_paths(config, name, table.iloc[row : row + 1])
        except ValueError as error:
            found.append("")
            bad.append(table.index[row])
            first = first or str(error)
    findings.append(
        Finding(
            "error",
            "missing file",
            f"{len(bad)} cases have a path that cannot be used. {first}",
            "Write paths below the folder of the source.",
            tuple(bad),
            source=name,
        )
    )
    return found


def _missing(
    config: CohortConfig, table: Any, paths: Mapping[str, list[str]], there: Mapping[str, Any], findings: list[Finding]
) -> None:
    for name, found in paths.items():
        gaps = np.flatnonzero(~there[name])
        if len(gaps) and config.sources[name].required:
            shown = listed(
                f"{os.path.relpath(found[row], config.path.parent) if found[row] else 'no path'} of {table.index[row]}"
                for row in gaps
            )
            findings.append(
                Finding(
                    "error",
                    "missing file",
                    f"{len(gaps)} of {len(table)} cases lack their file: {shown}.",
                    f"Add the files, leave the cases out, or write `required = false` under [sources.{name}].",
                    tuple(table.index[gaps]),
                    source=name,
                )
            )


def _unused(config: CohortConfig, paths: Mapping[str, list[str]], findings: list[Finding]) -> None:
    """Images in the folders of the cohort that no row names: a case may have been lost in the table."""
    if config.definition:
        return  # cases that the definition leaves out have files, as they should
    named: dict[str, set[str]] = {}
    for found in paths.values():
        for path in found:
            if path and "!" not in path:
                folder, file = os.path.split(path)
                named.setdefault(folder, set()).add(file)
    left: list[str] = []
    places = []
    for folder, files in named.items():
        suffixes = {Path(file).suffix.lower() for file in files if Path(file).suffix}
        try:
            entries = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        except OSError:
            continue
        extra = sorted(name for name in entries if name not in files and Path(name).suffix.lower() in suffixes)
        table = {Path(config.table).name, config.path.name, Path(config.boxes.file).name if config.boxes else ""}
        extra = [name for name in extra if name not in table]
        if extra:
            places.append(os.path.relpath(folder, config.path.parent))
            left += [(Path(places[-1]) / name).as_posix() for name in extra]
    if left:
        where = places[0] if len(places) == 1 else f"{len(places)} folders"
        findings.append(
            Finding(
                "note",
                "unused file",
                f"{len(left)} {'file' if len(left) == 1 else 'files'} in {where}, read by no source of any case: "
                f"{listed(left)}.",
                f"Check whether rows are missing in {config.table}, or a source in {config.path.name}.",
            )
        )


def _boxes(
    config: CohortConfig, boxes: BoxesConfig, known: Sequence[Any], findings: list[Finding], table: Any
) -> tuple[list[Boxes] | None, tuple[str, ...]]:
    path = config.path.parent / boxes.file
    try:
        rows: Any = read_table(path, text=[boxes.case, boxes.label])
    except (ValueError, OSError) as error:
        findings.append(Finding("error", "box", str(error), "Without the table no box was checked."))
        return None, ()
    gone = [column for column in (boxes.case, boxes.label, *boxes.corners) if column not in rows.columns]
    if gone:
        findings.append(
            Finding(
                "error",
                "box",
                f"{boxes.file} has no column {gone[0]!r}, which cohort.toml names under boxes.",
                "Fix the name; no box was checked.",
            )
        )
        return None, ()
    import pandas as pd

    # A table of cases may hold the boxes too: a row without corners is a case without a box.
    rows = rows[rows[list(boxes.corners)].notna().any(axis=1)]
    corners = rows[list(boxes.corners)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    no_box = ~np.isfinite(corners).all(axis=1) | (corners[:, 2:] <= corners[:, :2]).any(axis=1)
    classes = boxes.classes or tuple(sorted({str(label) for label in rows[boxes.label].dropna()}))
    no_class = ~rows[boxes.label].isin(classes).to_numpy()
    no_case = ~rows[boxes.case].isin(known).to_numpy()
    for bad, what, advice in (
        (no_box, "are no box; expected x0 < x1 and y0 < y1", "Fix or remove the rows."),
        (
            no_class,
            f"have none of the classes {', '.join(classes)}",
            "Fix the cells, or declare the class.",
        ),
        (no_case, f"belong to no case of {config.table}", "Check the ids, or remove the rows."),
    ):
        if bad.any():
            where = listed(f"row {row + 2}" for row in rows.index[bad])
            cases = tuple(dict.fromkeys(str(case) for case in rows[boxes.case][bad]))
            text = f"{boxes.file}: {int(bad.sum())} rows {what} ({where})."
            findings.append(Finding("error", "box", text, advice, cases, source=boxes.of))
    good = ~(no_box | no_class)
    by_case: dict[str, list[int]] = {}
    for row in np.flatnonzero(good):
        by_case.setdefault(str(rows[boxes.case].iloc[row]), []).append(int(row))
    codes = np.array([classes.index(label) if label in classes else -1 for label in rows[boxes.label]], np.int32)
    return [
        Boxes(corners[by_case.get(case, [])].reshape(-1, 4), codes[by_case.get(case, [])]) for case in table.index
    ], classes
