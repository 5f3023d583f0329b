"""The first `cohort.toml` as text: what was found, what was named, and what an earlier file says."""

import datetime as dt
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from fusion_jax.data.cohort import Role
from fusion_jax.data.config import DEFINITION, read_config
from fusion_jax.data.sketch.columns import Column, Ids, check_named, find_ids, look_at_columns
from fusion_jax.data.sketch.files import FoundSource, Matches, braced, closest, find_sources, list_files, match_files
from fusion_jax.data.tables import as_word, read_table
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Answers", "NoFiles", "Sketch", "known_ids", "sketch_cohort", "toml"]

CLINICAL = "clinical"
NEGATIVE = (
    "0",
    "no",
    "n",
    "false",
    "negative",
    "neg",
    "absent",
    "none",
    "normal",
    "benign",
    "alive",
    "censored",
    "low",
)
SHOWN = 3


class NoFiles(ValueError):
    """No image file is named after a case."""


class Answers(NamedTuple):
    """What is known before looking.

    Attributes:
      labels, case, patient, site: columns; nothing where the table shall tell.
      former: a `cohort.toml`, whose answers stay.
    """

    labels: tuple[str, ...] = ()
    case: str | None = None
    patient: str | None = None
    site: str | None = None
    former: Path | None = None


class Sketch(NamedTuple):
    """A first `cohort.toml`.

    Attributes:
      text: of the file.
      ids: columns with the ids.
      columns: role and reason of every other column.
      sources: that are written.
      lacking: source to the cases without it.
      matches: files by case; None without images.
      remarks: what the user has to decide or to look at, most important first.
    """

    text: str
    ids: Ids
    columns: tuple[Column, ...]
    sources: tuple[str, ...]
    lacking: Mapping[str, tuple[str, ...]]
    matches: Matches | None
    remarks: tuple[str, ...]


class _Block(NamedTuple):
    """A source as it is written."""

    name: str
    content: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    live: bool = True


def sketch_cohort(
    table: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> Sketch:
    r"""A first `cohort.toml` for a table and its images, with the reason for every decision beside it.

    Files belong to a case by its id in their names (`match_files`), columns get roles by names and cells
    (`look_at_columns`). What is not plain is written as a comment and told in `remarks`.

    Args:
      table: CSV, Excel or Parquet, one row a case.
      images: folder with the image files; None for a table alone, or where `sources` says all.
      folder: that the file is for; by default that of the table.
      answers: what is known.
      sources: further sources as TOML has them, by name.

    Raises:
      FileNotFoundError: table, images or former file are not there.
      ValueError: ids cannot be told, a named column is not there, nothing could be a source, or the former file cannot
        be used; the message says what to do.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "cases.csv"
      >>> _ = path.write_text("case_id,age_years,died\nc1,50,0\nc2,61,1\nc3,72,1\n")
      >>> found = sketch_cohort(path, answers=Answers(labels=("died",)))
      >>> [(column.name, column.role) for column in found.columns], found.sources
      ([('age_years', 'input'), ('died', 'label')], ('clinical',))
    """
    path = Path(table)
    folder = path.parent if folder is None else Path(folder)
    answers = answers or Answers()
    former = _former(answers)
    sheet = None if former is None else former.get("sheet")
    cells = read_table(path, sheet=sheet)
    written = read_table(path, sheet=sheet, text=list(cells.columns))
    files = () if images is None else list_files(images)
    ids = _ids(written, path, answers, former, files)
    cases = written[ids.case].tolist()
    for label in answers.labels:
        check_named(label, cells.columns, option="--label", where=str(path))
    labels = answers.labels or tuple(_role_columns(former, "label"))
    columns = look_at_columns(
        cells, written, ids, labels=[label for label in labels if label in cells.columns], where=str(path)
    )
    columns = columns if former is None else _as_before(columns, former, answers)
    used = _used_by(sources or {}, cells.columns)
    columns = tuple(
        column._replace(role="never", reason=f"says where source {used[column.name]} is", unit="", needs_unit=False)
        if column.name in used
        else column
        for column in columns
    )
    beside = {column: dict(zip(cases, written[column].tolist(), strict=True)) for column in _in_paths(ids)}
    matches = None if images is None else match_files(files, cases, beside)
    if images is not None and matches is not None and not matches.patterns:
        raise NoFiles(_no_files(path, Path(images), files, cases, ids))
    remarks: list[str] = []
    before = [] if former is None else _former_blocks(former, columns)
    kept = {block.name: block.content for block in before}
    blocks = [
        _Block(name, {**kept.get(name, {}), **content}, _count(content, cells))
        for name, content in (sources or {}).items()
    ]
    blocks += [block for block in before if block.name not in (sources or {})]
    if images is not None and matches is not None:
        blocks += _found_blocks(Path(images), folder, matches, len(cases), blocks, remarks)
    inputs = [column.name for column in columns if column.role == "input"]
    if inputs and not any("columns" in block.content for block in blocks):
        blocks.append(_Block(CLINICAL, {"columns": inputs}))
    if not any(block.live for block in blocks):
        _refuse(path, columns)
    remarks += _remarks(ids, columns, matches, (former or {}).get("units", {}))
    lacking = _lacking(blocks, matches, cases)
    types = {**dict.fromkeys(used, "text"), **({} if former is None else former.get("types", {}))}
    text = _text(path, images, folder, ids, columns, cells, blocks, {**(former or {}), "types": types}, remarks)
    live = tuple(block.name for block in blocks if block.live)
    return Sketch(text, ids, columns, live, lacking, matches, tuple(remarks))


def known_ids(written: "pandas.DataFrame", table: str | os.PathLike[str], answers: Answers) -> Ids:
    """Columns with the ids as a sketch will have them, before it is made.

    Args:
      written: the table with all cells as text.
      table: its path, for messages.
      answers: what is known.

    Raises:
      ValueError: see `find_ids`.

    Example:
      >>> import pandas as pd
      >>> known_ids(pd.DataFrame({"scan": ["a", "b"]}), "cases.csv", Answers(case="scan"))[:2]
      ('scan', 'scan')
    """
    return _ids(written, Path(table), answers, _former(answers), ())


def _former(answers: Answers) -> dict[str, Any] | None:
    if answers.former is None:
        return None
    read_config(answers.former)  # says what is wrong with it
    return tomllib.loads(answers.former.read_text(encoding="utf-8"))


def _in_paths(ids: Ids) -> list[str]:
    """Id columns beside the case that a pattern of paths can name."""
    return [
        name for name in (ids.patient, ids.site) if name and name != ids.case and re.fullmatch(r"[A-Za-z_]\w*", name)
    ]


def _role_columns(former: Mapping[str, Any] | None, role: str) -> list[str]:
    columns = {} if former is None else former.get("roles", {})
    found = columns.get(role, [])
    return [found] if isinstance(found, str) else list(found)


def _ids(
    written: "pandas.DataFrame",
    path: Path,
    answers: Answers,
    former: Mapping[str, Any] | None,
    files: Sequence[str],
) -> Ids:
    known = {} if former is None else former["ids"]
    named = {key: getattr(answers, key) or known.get(key) for key in ("case", "patient", "site")}

    def matched(ids: Sequence[str]) -> int:
        return len(match_files(files, ids).cases)

    ids = find_ids(written, where=str(path), matched=matched if files else None, **named)
    if former is not None and named["site"] is None:
        ids = ids._replace(site=None)
    reasons = {
        key: "as before" if key in known and getattr(answers, key) is None else reason
        for key, reason in ids.reasons.items()
        if key != "site" or former is None or ids.site is not None
    }
    return ids._replace(reasons=reasons)


def _as_before(columns: Sequence[Column], former: Mapping[str, Any], answers: Answers) -> tuple[Column, ...]:
    """Columns with the roles of the former file; what it does not name has stayed away from models and does so."""
    before: dict[str, Role] = {name: role for role in get_args(Role) for name in _role_columns(former, role)}
    ids = former["ids"]
    kept = []
    for column in columns:
        role = before.get(column.name)
        if column.name in answers.labels or (column.name == answers.site and role is None):
            kept.append(column)
        elif role == "label" and answers.labels:
            kept.append(column._replace(role="never", reason="was the label"))
        elif role is not None:
            # A label that was not named before has just been compared for the first time.
            new = role == "input" and column.tells not in ("", *_role_columns(former, "label"))
            reason = f"as before, but {column.reason}. CHECK THIS" if new else "as before"
            kept.append(column._replace(role=role, reason=reason, unit="", tells=column.tells if new else ""))
        elif column.role == "never":
            kept.append(column)
        else:
            reason = f"not named before; looks like {column.role}: {column.reason}"
            kept.append(column._replace(role="never", reason=reason, unit="", needs_unit=False))
    there = {column.name for column in columns} | {ids.get(key) for key in ids}
    for name, role in before.items():
        if name not in there:
            kept.append(Column(name, role, "as before; no column of the table, so one that a definition makes"))
    return tuple(kept)


def _used_by(sources: Mapping[str, Mapping[str, Any]], columns: Iterable[str]) -> dict[str, str]:
    """Columns that say where a source is, with its name."""
    used = {}
    for name, content in sources.items():
        words = [content.get("files", ""), *(str(value) for value in content.get("options", {}).values())]
        for column in columns:
            if column == content.get("column") or any(f"{{{column}}}" in word for word in words):
                used[column] = name
    return used


def _count(content: Mapping[str, Any], cells: Any) -> tuple[str, ...]:
    """How many cases have a source whose paths stand in a column."""
    column = content.get("column")
    return (f"{int(cells[column].count())} of {len(cells)} cases have it",) if column in cells.columns else ()


def _former_blocks(former: Mapping[str, Any], columns: Sequence[Column]) -> list[_Block]:
    inputs = {column.name for column in columns if column.role == "input"}
    blocks = []
    for name, content in former["sources"].items():
        if "columns" in content:
            content = {**content, "columns": [column for column in content["columns"] if column in inputs]}
            if not content["columns"]:
                continue
        blocks.append(_Block(name, content))
    return blocks


def _found_blocks(
    images: Path, folder: Path, matches: Matches, cases: int, known: Sequence[_Block], remarks: list[str]
) -> list[_Block]:
    patterns = {block.content.get("files") for block in known}
    inside = braced(relative(images, folder))
    others = matches._replace(
        patterns={
            p: found for p, found in matches.patterns.items() if p not in patterns and f"{inside}/{p}" not in patterns
        }
    )
    found, rare = find_sources(images, others, cases, taken=[CLINICAL, *(block.name for block in known)])
    has_images = any("columns" not in block.content for block in known)
    blocks = []
    for one in found:
        notes = [f"{one.cases} of {cases} cases have it"]
        if one.note:
            notes.append(one.note)
            if one.note.startswith("COULD NOT"):
                remarks.append(f"source {one.name}: {one.note}")
        if one.open:
            notes.append(f"DECIDE, then take the # away: {one.open}")
            remarks.append(f"source {one.name} is written as a comment: {one.open}")
        elif one.kind == "mask":
            notes.append(f"a mask by its name, of {one.of} as far as names tell: confirm")
        if has_images:
            notes.append("not in the former file: take the # away to use it")
        blocks.append(
            _Block(one.name, _content(one, images, folder, cases), tuple(notes), not one.open and not has_images)
        )
    for names in _alike([one.files for one in found]):
        cases_of = [set(matches.patterns[name]) for name in names]
        if sum(map(len, cases_of)) > len(set.union(*cases_of)):
            continue
        remarks.append(
            f"{' and '.join(names[:SHOWN])} are named alike and no case has both: they may be one source. Put the "
            "folder into a column of the table and write {column} in the pattern"
        )
    if rare:
        files = sum(len(matches.patterns[pattern]) for pattern in rare)
        remarks.append(
            f"{files} files are named after a case and something that changes from file to file, such as "
            f"{next(iter(matches.patterns[rare[0]].values()))}: no source. Write their paths into a column of the "
            'table and name it under a source: `column = "..."`'
        )
    return blocks


def _alike(patterns: Sequence[str]) -> list[list[str]]:
    """Patterns of files with one name in different folders."""
    groups: dict[str, list[str]] = {}
    for pattern in dict.fromkeys(patterns):
        groups.setdefault(pattern.rpartition("/")[2], []).append(pattern)
    return [names for names in groups.values() if len(names) > 1]


def _content(one: FoundSource, images: Path, folder: Path, cases: int) -> dict[str, Any]:
    root = relative(images, folder)
    inside = root != "." and not root.startswith("..") and not Path(root).is_absolute()
    content: dict[str, Any] = {"files": f"{braced(root)}/{one.files}" if inside else one.files}
    if root != "." and not inside:
        content["root"] = root
    if one.kind == "mask":
        content |= {"kind": "mask", "of": one.of or "?"}
    if one.reader is not None:
        content["reader"] = one.reader
    if one.options:
        content["options"] = dict(one.options)
    if one.cases < cases:
        content["required"] = False
    return content


def relative(path: Path, folder: Path) -> str:
    """Path as seen from a folder, with `/` on every system; absolute where they share no drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _no_files(path: Path, images: Path, files: Sequence[str], cases: Sequence[str], ids: Ids) -> str:
    if not files:
        return f"{images}: no image file in it or below; expected files named after the cases. Check the folder."
    hint = closest(files, cases)
    return (
        f"{images}: none of {len(files)} image files is named after a case: {path.name} has {ids.case} {cases[0]!r}, a "
        f"file is {files[0]!r}"
        + (f"; they differ {hint}" if hint else "")
        + ". Name the column that files are named after with --case, or leave the folder away for a cohort without "
        "images."
    )


def _refuse(path: Path, columns: Sequence[Column]) -> None:
    listed = "\n".join(f"  {column.name}: {column.reason}" for column in columns[:20])
    raise ValueError(
        f"{path}: no column that a model may read, and no images; expected at least one source. Give the folder of the "
        f"images. The columns are\n{listed}"
    )


def _lacking(blocks: Sequence[_Block], matches: Matches | None, cases: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if matches is None:
        return {}
    lacking = {}
    for block in blocks:
        files = block.content.get("files", "")
        # Longest first: the pattern of a block may start with the folder of the images.
        found = next((matches.patterns[p] for p in sorted(matches.patterns, key=len)[::-1] if files.endswith(p)), None)
        if block.live and found is not None and len(found) < len(cases):
            lacking[block.name] = tuple(case for case in cases if case not in found)
    return lacking


def _remarks(ids: Ids, columns: Sequence[Column], matches: Matches | None, with_units: Iterable[str]) -> list[str]:
    remarks = []
    if not any(column.role in ("label", "event") for column in columns):
        names = _label_candidates(columns)
        few = ", ".join(names[:10]) or "none has 2 to 20 classes"
        remarks.append(f"no label: name one with --label (columns that could be: {few})")
    if ids.patient == ids.case and "CHECK" in ids.reasons.get("patient", ""):
        remarks.append(f"no column looks like the patient: every {ids.case} counts as one. Name it with --patient")
    for label in dict.fromkeys(c.tells for c in columns if c.role == "input" and c.tells):
        telling = [c.name for c in columns if c.role == "input" and c.tells == label]
        remarks.append(
            f"inputs that tell {label} without error: {listed(telling, 8)}. Known before it? (under [roles])"
        )
    mend = [c.name for c in columns if c.role == "never" and c.to_mend]
    if mend:
        remarks.append(f"numbers that cannot be read as such: {listed(mend, 8)} (which cells: under [roles])")
    units = [c.name for c in columns if c.role == "input" and c.needs_unit and c.name not in with_units]
    if units:
        remarks.append(f"units unknown: {listed(units, 8)} (under [units])")
    if matches is not None:
        for name, ids_of in matches.ambiguous[:SHOWN]:
            remarks.append(f"{name} carries the ids of {' and '.join(ids_of)}: left out")
        if len(matches.ambiguous) > SHOWN:
            remarks.append(f"and {len(matches.ambiguous) - SHOWN} more files with several ids")
        if matches.unmatched:
            remarks.append(f"{len(matches.unmatched)} files of no case, such as {matches.unmatched[0]}")
    return remarks


# The text


def _text(
    path: Path,
    images: Any,
    folder: Path,
    ids: Ids,
    columns: Sequence[Column],
    cells: "pandas.DataFrame",
    blocks: Sequence[_Block],
    former: Mapping[str, Any],
    remarks: Sequence[str],
) -> str:
    looked = f"{path.name} ({len(cells)} rows)" + ("" if images is None else f" and {Path(images).name}/")
    lines = [
        f"# Written by `fusion-jax cohort init` from a look at {_comment(looked)}. Read it through:",
        "# the reason for each line stands behind it. Then run `fusion-jax cohort check` on this folder.",
        "# What else can stand here: python -m pydoc fusion_jax.data.config",
        *(f"# OPEN: {_comment(remark)}" for remark in remarks),
        "",
        f"name = {toml(former.get('name', _cohort_name(folder)))}",
        f"table = {toml(relative(path, folder))}",
    ]
    if "sheet" in former:
        lines.append(f"sheet = {toml(former['sheet'])}")
    lines += ["", "[ids]"]
    for key in ("case", "patient", "site"):
        column, reason = getattr(ids, key), ids.reasons.get(key, "")
        if column is not None:
            lines.append(f"{key} = {toml(column)}" + (f"  # {_comment(reason)}" if reason else ""))
        elif reason:
            lines.append(f"# {key} = ...  # {_comment(reason)}")
    lines += ["", "[roles]  # a column that is not named is `never`: no model sees it"]
    lines += _role_lines(columns)
    lines += _unit_lines(columns, former)
    if former.get("types"):
        lines += ["", "[types]", *_pairs(former["types"])]
    lines += _level_lines(columns, cells, former)
    for block in blocks:
        lines += ["", *_block_lines(block)]
    if "boxes" in former:
        lines += ["", "[boxes]", *_pairs(former["boxes"])]
    for key in DEFINITION:
        for table in former.get(key, []) if isinstance(former.get(key), list) else []:
            lines += ["", f"[[{key}]]", *_pairs(table)]
        if isinstance(former.get(key), dict):
            lines += ["", f"[{key}]", *_pairs(former[key])]
    return "\n".join(lines) + "\n"


def _cohort_name(folder: Path) -> str:
    """The folder's name, or of one that is just called so, that of the study around it."""
    folder = folder.resolve()
    return (folder.parent.name if folder.name.lower() == "cohort" else "") or folder.name or "cohort"


def _label_candidates(columns: Sequence[Column]) -> list[str]:
    """Columns with few classes, those first that by their names are outcomes."""
    candidates = [column for column in columns if column.may_be_label]
    return [column.name for column in sorted(candidates, key=lambda column: column.role == "input")]


def _role_lines(columns: Sequence[Column]) -> list[str]:
    lines = []
    for role in get_args(Role):
        having = [column for column in columns if column.role == role]
        if having:
            lines.append(f"{role} = [")
            width = max(len(toml(column.name)) for column in having) + 1
            lines += [f"  {toml(column.name) + ',':<{width}}  # {_comment(column.reason)}" for column in having]
            lines.append("]")
        elif role == "label":
            names = _label_candidates(columns)
            shown = toml(names[:1]) if names else "[...]"
            more = f"; or {_comment(', '.join(names[1:8]))}" if names[1:] else ""
            lines.append(f"# label = {shown}  # name it with --label{more}")
    return lines


def _unit_lines(columns: Sequence[Column], former: Mapping[str, Any]) -> list[str]:
    known = dict(former.get("units", {}))
    lines = [*_pairs(known)]
    for column in columns:
        if column.name in known or column.role != "input":
            continue
        if column.unit:
            lines.append(f"{_key(column.name)} = {toml(column.unit)}  # by its name")
        elif column.needs_unit:
            lines.append(f'# {_key(column.name)} = ""  # unit? {_comment(column.reason)}')
    return ["", "[units]", *lines] if lines else []


def _level_lines(columns: Sequence[Column], cells: "pandas.DataFrame", former: Mapping[str, Any]) -> list[str]:
    known = dict(former.get("levels", {}))
    lines = [*_pairs(known)]
    for column in columns:
        if column.role == "label" and column.name not in known and column.name in cells.columns:
            levels = sorted({as_word(cell) for cell in cells[column.name].dropna()}, key=_level_order)
            note = "the last is the positive one: confirm" if len(levels) == 2 else "in this order: confirm"
            lines.append(f"{_key(column.name)} = {toml(levels)}  # {note}")
    return ["", "[levels]", *lines] if lines else []


def _level_order(level: str) -> tuple[Any, ...]:
    try:
        return 0, float(level), level
    except ValueError:
        return 1, level.lower() not in NEGATIVE, level


def _block_lines(block: _Block) -> list[str]:
    mark = "" if block.live else "# "
    head = f"{mark}[sources.{_key(block.name)}]"
    return [*(f"# {_comment(note)}" for note in block.notes), head, *(mark + line for line in _pairs(block.content))]


def _pairs(content: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {toml(value)}" for key, value in content.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def _comment(text: str) -> str:
    """Text on one line without signs that a comment must not hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def toml(value: Any) -> str:
    r"""A value as TOML writes it.

    Raises:
      TypeError: a value that TOML does not have.

    Example:
      >>> print(toml({"region": 'GTV "1"', "steps": [1, 2.5, True]}))
      {region = "GTV \"1\"", steps = [1, 2.5, true]}
    """
    if isinstance(value, str):
        # JSON escapes all that TOML must have escaped, but for the one control character that JSON takes for text.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # inf and nan are words of TOML, too
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    raise TypeError(f"{value!r} is a {type(value).__name__}; TOML holds text, numbers, truth values, dates and lists.")
