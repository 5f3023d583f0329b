"""`fusion-jax cohort init`: a first cohort.toml by looking, from a table with images or from a scanner export."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fusion_jax.commands._shared.screen import progress_bar
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import datetime as dt

    from fusion_jax.data.scanner_export import Inventory, Open, Selection
    from fusion_jax.data.sketch import Answers, Sketch

__all__ = ["Config", "run"]

SHOWN = 10
FILE = "cohort.toml"


@dataclass(frozen=True)
class Config:
    """Write a first cohort.toml by looking at a table and its images, or at a scanner export.

    Files belong to the case whose id is in their name. Every column gets a role, with the reason beside it; what is not
    plain stays a comment and is listed. Nothing is asked: name what you know as options, edit the file, and run the
    command again with --update, which keeps all that the file says.

    With --rules and --id-map, IMAGES is a folder of DICOM files. The rules pick the series of every case; cases for
    which they leave none or several are listed, never guessed. Writes cases.csv (the table with paths), series.csv,
    inventory.csv, unmatched.csv, ambiguous.csv and cohort.toml. Exit code 1 if a case is left open,
    or if one patient of the export is several in the table.

    Example: fusion-jax cohort init cases.csv images --label died

    Example: fusion-jax cohort init cases.xlsx export --rules rules.toml --id-map ids.csv --out cohort

    Attributes:
      table: CSV, Excel or Parquet file with one row a case.
      images: folder of the images; none for a cohort of the table alone.
      label: columns to predict.
      case: column with the id of the case, different in every row.
      patient: column with the patient; patients never cross splits.
      site: column with the hospital, by which folds may be left out.
      out: folder of cohort.toml. Default: the folder of the table.
      rules: TOML file with a table [series.NAME] a source: modality, description, exclude, kernel, min_slices,
        max_slices, phase_seconds, nearest, within_days; for RTSTRUCT and SEG also of, region or pattern.
      id_map: table with the columns case_id and dicom_patient_id, and study_date or accession where needed.
      update: keep what the cohort.toml in that folder says and add what is new; the former file becomes
        cohort.toml.bak.
      force: replace the cohort.toml in that folder.
    """

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE", help_behavior_hint="(required)")]
    images: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]", help_behavior_hint="")] = (
        None
    )
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    case: Annotated[str | None, tyro.conf.arg(metavar="COLUMN", help_behavior_hint="")] = None
    patient: Annotated[str | None, tyro.conf.arg(metavar="COLUMN", help_behavior_hint="")] = None
    site: Annotated[str | None, tyro.conf.arg(metavar="COLUMN", help_behavior_hint="")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    rules: Annotated[Path | None, tyro.conf.arg(metavar="TOML", help_behavior_hint="")] = None
    id_map: Annotated[Path | None, tyro.conf.arg(metavar="CSV", help_behavior_hint="")] = None
    update: tyro.conf.FlagCreatePairsOff[bool] = False
    force: tyro.conf.FlagCreatePairsOff[bool] = False


def run(config: Config) -> int:
    """Look, write cohort.toml, open the cohort and say what is left to decide.

    Returns:
      0, or 1 if a case has no series or several, if one patient of the export is several in the table, or if the
        cohort does not open yet.

    Raises:
      ValueError: input that cannot be used, or a file that would be replaced; nothing is written then.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.data.sketch import Answers, NoFiles, sketch_cohort

    folder = config.table.parent if config.out is None else config.out
    former = _check(config, folder)
    answers = Answers(config.label, config.case, config.patient, config.site, former)
    if config.images is not None and config.rules is not None and config.id_map is not None:
        return _from_export(config, folder, answers, config.images, config.rules, config.id_map)
    try:
        sketch = sketch_cohort(config.table, config.images, folder=folder, answers=answers)
    except NoFiles:
        if config.images is not None and _export_without_rules(config.images, folder):
            return 1
        raise
    _write(folder, sketch.text, former)
    _report(sketch)
    return _open(folder)


def _check(config: Config, folder: Path) -> Path | None:
    """The former file to keep to, if any."""
    if config.update and config.force:
        raise ValueError(
            "--update and --force are both given; expected one: keep what cohort.toml says, or replace it."
        )
    if (config.rules is None) != (config.id_map is None):
        given, other = ("--rules", "--id-map CSV") if config.id_map is None else ("--id-map", "--rules TOML")
        raise ValueError(f"{given} is given without {other}; a scanner export needs both. See `cohort init --help`.")
    if config.rules is not None and config.images is None:
        raise ValueError("--rules is given and no folder; expected the folder of the export after the table.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; expected a folder, or a name for a new one.")
    former = folder / FILE
    if not former.is_file():
        return None
    if not config.update and not config.force:
        raise ValueError(
            f"{former} exists. Keep what it says with --update, replace it with --force, or name another folder with "
            "--out."
        )
    return former if config.update else None


def _write(folder: Path, text: str, former: Path | None) -> None:
    from fusion_jax.records import write_bytes, write_text

    if former is not None:
        write_bytes(former.with_name(f"{FILE}.bak"), former.read_bytes())
    write_text(folder / FILE, text)
    print(f"Wrote {folder / FILE}" + ("; the former one is cohort.toml.bak beside it." if former is not None else "."))


def _report(sketch: "Sketch") -> None:
    from collections import Counter

    ids = sketch.ids
    site = "" if ids.site is None else f", site {ids.site}"
    print(f"Ids: case {ids.case}, patient {ids.patient}{site}.")
    roles = Counter(column.role for column in sketch.columns)
    print("Columns: " + ", ".join(f"{count} {role}" for role, count in roles.items()) + ".")
    print(f"Sources: {', '.join(sketch.sources)}.")
    for source, cases in sketch.lacking.items():
        print(f"  {source} is missing in {len(cases)} case{'' if len(cases) == 1 else 's'}: {listed(cases, SHOWN)}")
    if sketch.remarks:
        print("To decide or to look at:")
        for remark in sketch.remarks:
            print(f"  - {remark}")


def _open(folder: Path) -> int:
    from fusion_jax.data.folder import open_cohort

    try:
        cohort = open_cohort(folder)
    except (ValueError, FileNotFoundError) as error:
        print(f"The cohort does not open yet: {error}")
        return 1
    patients = len(set(cohort.patient_id.tolist()))
    print(f"It opens: {len(cohort)} cases of {patients} patients. Next: fusion-jax cohort check {folder}")
    return 0


# Scanner exports


def _from_export(config: Config, folder: Path, answers: "Answers", images: Path, rules_file: Path, id_map: Path) -> int:
    from fusion_jax.data.scanner_export import (
        case_columns,
        inventory,
        parted_patients,
        read_id_map,
        read_rules,
        select_series,
        source_tables,
    )
    from fusion_jax.data.sketch import known_ids, sketch_cohort
    from fusion_jax.data.sketch.write import relative
    from fusion_jax.data.tables import read_table
    from fusion_jax.records import write_csv

    target = folder / "cases.csv"
    if target.exists() and target.samefile(config.table):
        raise ValueError(
            f"{target} would be replaced by the table with paths; expected another folder for the cohort. Name one "
            "with --out DIR."
        )
    if target.exists() and not (config.update or config.force):
        raise ValueError(f"{target} exists. Replace it with --force, or name another folder with --out.")
    rules, ids = read_rules(rules_file), read_id_map(id_map)
    written = read_table(config.table, text=read_table(config.table).columns.tolist())
    found = known_ids(written, config.table, answers)
    cases = written[found.case].tolist()
    dates = {rule.nearest: _dates(config.table, found.case, rule.nearest) for rule in rules if rule.nearest}
    with progress_bar("reading headers") as progress:
        export = inventory(images, progress=progress)
    selection = select_series(export, cases, ids, rules, dates)
    columns = case_columns(selection, cases, rules)
    for name in columns:
        if name in written.columns:
            raise ValueError(
                f"{config.table}: has a column {name!r}, which is to hold paths. Rename it, or the source."
            )
    folder.mkdir(parents=True, exist_ok=True)
    cells = {name: [None if cell != cell else cell for cell in written[name]] for name in written.columns}
    write_csv(target, {**cells, **columns})
    root = relative(images, folder)
    sketch = sketch_cohort(target, folder=folder, answers=answers, sources=source_tables(selection, rules, root))
    _write_lists(folder, export, selection)
    _write(folder, sketch.text, answers.former)
    _report(sketch)
    activity = [rule.source for rule in rules if rule.modality == "PT" and "suv" not in rule.options]
    if activity:
        print(
            f"  - {', '.join(activity)}: PET is read as activity; for SUV write options = {{suv = true}} in the rules"
        )
    parted = parted_patients(ids, dict(zip(cases, written[found.patient], strict=True)))
    for patient, parts in parted.items():
        print(
            f"  - {patient!r} of the export is one patient, and {len(parts)} in the table: {listed(parts, SHOWN)}. "
            "Splits would part them. Add a column with the patient, and name it with --patient"
        )
    strange = [case for case in ids if case not in set(cases)]
    if strange:
        print(f"The id map names {len(strange)} cases that the table lacks: {listed(strange, SHOWN)}")
    left_open = _report_selection(export, selection, len(cases))
    return max(_open(folder), left_open, int(bool(parted)))


def _dates(table: Path, case: str, column: str) -> "dict[str, dt.date | None]":
    from fusion_jax.data.tables import read_table

    cells = read_table(table, text=[case])
    if column not in cells.columns:
        raise ValueError(f"{table}: no column {column!r} (`nearest` of the rules); it has {', '.join(cells.columns)}.")
    cells = read_table(table, text=[case], types={column: "date"})
    found: list[dt.date | None] = [None if date != date else date.date() for date in cells[column]]
    return dict(zip(cells[case].tolist(), found, strict=True))


def _write_lists(folder: Path, export: "Inventory", selection: "Selection") -> None:
    from fusion_jax.data.scanner_export import chosen_rows, inventory_rows, open_rows
    from fusion_jax.records import write_csv

    write_csv(folder / "series.csv", chosen_rows(selection))
    write_csv(folder / "inventory.csv", inventory_rows(export, selection))
    write_csv(folder / "unmatched.csv", open_rows(selection.unmatched))
    write_csv(folder / "ambiguous.csv", open_rows(selection.ambiguous))
    _write_unreadable(folder, export)


def _write_unreadable(folder: Path, export: "Inventory") -> None:
    from fusion_jax.records import write_csv

    names, reasons = [path for path, _ in export.unreadable], [reason for _, reason in export.unreadable]
    write_csv(folder / "unreadable.csv", {"file": names, "reason": reasons})


def _report_selection(export: "Inventory", selection: "Selection", cases: int) -> int:
    chosen: dict[str, int] = {}
    for choice in selection.chosen:
        chosen[choice.source] = chosen.get(choice.source, 0) + 1
    print(f"Export: {_export_size(export)}.")
    for source, count in chosen.items():
        print(f"  {source}: chosen for {count} of {cases} cases")
    missing = [entry for entry in selection.unmatched if entry.required]
    absent = [entry for entry in selection.unmatched if not entry.required]
    for title, entries in (
        ("Unmatched (unmatched.csv)", missing),
        ("Absent, not required (unmatched.csv)", absent),
        ("Ambiguous (ambiguous.csv)", selection.ambiguous),
    ):
        _list_open(title, entries)
    taken = {choice.series.patient_id for choice in selection.chosen}
    others = sorted({one.patient_id for one in export.series} - taken)
    if others:
        print(f"Patients of the export that no case took a series from: {listed(map(repr, others), SHOWN)}")
    return int(bool(missing or selection.ambiguous))


def _list_open(title: str, entries: "Sequence[Open]") -> None:
    if entries:
        print(f"{title}: {len(entries)}")
        for entry in entries[:SHOWN]:
            print(f"  {entry.case_id} {entry.source}: {entry.reason}")
        if len(entries) > SHOWN:
            print(f"  and {len(entries) - SHOWN} more")


def _export_size(export: "Inventory") -> str:
    patients = len({one.patient_id for one in export.series})
    files = sum(len(one.files) for one in export.series)
    strange = len(export.unreadable)
    unreadable = (
        f"; {strange} {'file is' if strange == 1 else 'files are'} no DICOM (unreadable.csv)" if strange else ""
    )
    return f"{files} DICOM files, {len(export.series)} series of {patients} patients{unreadable}"


def _export_without_rules(images: Path, folder: Path) -> bool:
    """Write the inventory and say what is missing, if the folder is an export."""
    from fusion_jax.data.scanner_export import inventory, inventory_rows
    from fusion_jax.records import write_csv

    try:
        with progress_bar("reading headers") as progress:
            export = inventory(images, progress=progress)
    except ValueError:  # no DICOM file
        return False
    write_csv(folder / "inventory.csv", inventory_rows(export))
    _write_unreadable(folder, export)
    print(
        f"No file below {images} is named after a case, and it holds DICOM: {_export_size(export)}.\n"
        f"Wrote {folder / 'inventory.csv'}; no cohort.toml yet. To choose series, write\n"
        "  ids.csv     columns case_id,dicom_patient_id\n"
        "  rules.toml  a table a source, such as\n"
        "              [series.ct]\n"
        f'              modality = "{next((one.modality for one in export.series if one.slices), "CT")}"\n'
        f"and run the command again with --rules rules.toml --id-map ids.csv. See `fusion-jax cohort init --help`."
    )
    return True
