"""From chosen series to a cohort folder: columns with paths for its table, sources for its `cohort.toml`, and lists."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.data.scanner_export.inventory import Inventory
from fusion_jax.data.scanner_export.rules import Rule
from fusion_jax.data.scanner_export.selection import Open, Selection

__all__ = ["case_columns", "chosen_rows", "inventory_rows", "open_rows", "source_tables"]

SHOWN = ("patient_id", "study_date", "modality", "series_number", "description", "kernel", "phase_seconds", "slices")


def case_columns(selection: Selection, cases: Sequence[str], rules: Sequence[Rule]) -> dict[str, list[str | None]]:
    """Columns for the table, one cell a case: path, series and region of every source; None where none was chosen.

    Args:
      selection: of `select_series`.
      cases: ids, in the order of the table.
      rules: one a source.

    Example:
      >>> case_columns(Selection((), (), ()), ["c1"], [Rule("ct", "CT")])
      {'ct_path': [None], 'ct_series': [None]}
    """
    found = {(choice.case_id, choice.source): choice for choice in selection.chosen}
    columns: dict[str, list[str | None]] = {}
    for rule in rules:
        mine = [found.get((case, rule.source)) for case in cases]
        columns[f"{rule.source}_path"] = [None if one is None else one.path for one in mine]
        if rule.of is None:
            columns[f"{rule.source}_series"] = [None if one is None else one.series.series_uid for one in mine]
        else:
            columns[f"{rule.source}_region"] = [None if one is None else one.region for one in mine]
    return columns


def source_tables(selection: Selection, rules: Sequence[Rule], root: str) -> dict[str, dict[str, Any]]:
    """Sources as `cohort.toml` has them, which take paths, series and regions from the columns of `case_columns`.

    Args:
      selection: of `select_series`.
      rules: one a source.
      root: folder of the export, from the cohort folder.

    Example:
      >>> source_tables(Selection((), (), ()), [Rule("ct", "CT")], "export")["ct"]["column"]
      'ct_path'
    """
    tables = {}
    for rule in rules:
        mine = [choice for choice in selection.chosen if choice.source == rule.source]
        content: dict[str, Any] = {"column": f"{rule.source}_path", "root": root}
        options = dict(rule.options)
        if rule.of is not None:
            reader, option = ("rtstruct", "region") if rule.modality == "RTSTRUCT" else ("dicom_seg", "segment")
            content |= {"kind": "mask", "of": rule.of, "reader": reader}
            options = {option: f"{{{rule.source}_region}}", **options}
        elif not mine or any(len(choice.series.files) > 1 for choice in mine):
            content["reader"] = "dicom_series"
            options = {"series": f"{{{rule.source}_series}}", **options}
        # One file a case, a radiograph or a file of many frames, is read by what it holds.
        if options:
            content["options"] = options
        if not rule.required:
            content["required"] = False
        tables[rule.source] = content
    return tables


def inventory_rows(inventory: Inventory, selection: Selection | None = None) -> list[dict[str, Any]]:
    """The inventory as flat rows, each with the cases that chose the series.

    Example:
      >>> from pathlib import Path
      >>> inventory_rows(Inventory(Path("export"), (), ()))
      []
    """
    takers: dict[tuple[str, ...], list[str]] = {}
    for choice in () if selection is None else selection.chosen:
        takers.setdefault(choice.series.files, []).append(f"{choice.case_id} {choice.source}")
    rows = inventory.to_rows()
    for row, series in zip(rows, inventory.series, strict=True):
        row["chosen_for"] = "; ".join(takers.get(series.files, ()))
    return rows


def chosen_rows(selection: Selection) -> dict[str, list[Any]]:
    """Columns of the list of choices.

    Example:
      >>> list(chosen_rows(Selection((), (), ())))[:4]
      ['case_id', 'source', 'path', 'region']
    """
    names = ("case_id", "source", "path", "region")
    rows: dict[str, list[Any]] = {name: [getattr(one, name) for one in selection.chosen] for name in names}
    for name in (*SHOWN, "series_uid"):
        rows[name] = [getattr(one.series, name) for one in selection.chosen]
    return rows


def open_rows(entries: Sequence[Open]) -> Mapping[str, list[Any]]:
    """Columns of the list of what is open, one row a candidate; one row where there is none.

    Example:
      >>> open_rows([Open("c1", "ct", "the id map does not name the case")])["reason"]
      ['the id map does not name the case']
    """
    pairs = [(entry, series) for entry in entries for series in (entry.candidates or (None,))]
    rows: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry, _ in pairs] for name in ("case_id", "source", "required", "reason")
    }
    if not any(entry.candidates for entry in entries):
        return rows
    for name in (*SHOWN, "series_uid"):
        rows[name] = [None if series is None else getattr(series, name) for _, series in pairs]
    rows["folder"] = [None if series is None else "; ".join(series.folders) for _, series in pairs]
    return rows
