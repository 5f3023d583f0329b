"""What a case takes from an export: rules for its series, and who it is there."""

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.data.scanner_export.inventory import DRAWN

__all__ = ["IdMap", "Rule", "Subject", "parted_patients", "read_id_map", "read_rules"]


@dataclass(frozen=True)
class Rule:
    """Which series of a patient is a source. A series has to pass everything that is given; patterns are regular
    expressions that the text contains (`(?i)` for any case).

    Attributes:
      source: name of the source.
      modality: as DICOM has it: CT, MR, PT, DX, RTSTRUCT, SEG.
      description, kernel: patterns of the series description and the reconstruction kernel.
      exclude: pattern that the description must not contain.
      min_slices, max_slices: of the series.
      phase_seconds: least and most time from the start of the contrast agent to the first slice.
      nearest: column of the table with the date to which the study must be nearest.
      within_days: how far from that date it may be.
      of: for RTSTRUCT and SEG, the source that the regions must have been drawn on.
      region, pattern: the region by its exact name, or by a pattern that one name alone contains.
      options: of the reader, such as `{suv = true}`.
      required: a case without it is unmatched; otherwise it is absent there.

    Raises:
      ValueError: values that do not fit together.
    """

    source: str
    modality: str
    description: str | None = None
    exclude: str | None = None
    kernel: str | None = None
    min_slices: int | None = None
    max_slices: int | None = None
    phase_seconds: tuple[float, float] | None = None
    nearest: str | None = None
    within_days: float | None = None
    of: str | None = None
    region: str | None = None
    pattern: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True

    def __post_init__(self) -> None:
        for name in ("description", "exclude", "kernel", "pattern"):
            text = getattr(self, name)
            try:
                re.compile(text or "")
            except re.error as error:
                raise ValueError(f"{name} is {text!r}, no regular expression ({error}). Correct it.") from None
        if self.within_days is not None and self.nearest is None:
            raise ValueError('`within_days` without `nearest`; expected `nearest = "COLUMN"` with the date to be near.')
        low, high = self.phase_seconds or (0, 0)
        if low > high:
            raise ValueError(f"phase_seconds is [{low:g}, {high:g}]; expected the smaller number first.")
        drawn = self.modality in DRAWN
        if drawn != (self.of is not None):
            wants = "expected `of` = the source they were drawn on" if drawn else "`of` is for RTSTRUCT and SEG"
            raise ValueError(f"modality is {self.modality!r} and `of` is {self.of!r}; {wants}.")
        if drawn and (self.region is None) == (self.pattern is None):
            raise ValueError(
                f"region is {self.region!r} and pattern is {self.pattern!r}; expected one of them to choose a region."
            )
        if not drawn and (self.region or self.pattern):
            raise ValueError(f"a region of modality {self.modality!r}; regions are of RTSTRUCT and SEG. Remove it.")


def read_rules(path: str | Path) -> tuple[Rule, ...]:
    r"""Rules from a TOML file with one table `[series.NAME]` a source.

    ```toml
    [series.ct]
    modality = "CT"
    description = "(?i)portal"
    kernel = "B[23]0"
    min_slices = 20
    phase_seconds = [50, 80]
    nearest = "ct_date"
    within_days = 30

    [series.tumour]
    modality = "RTSTRUCT"
    of = "ct"
    region = "GTV"
    ```

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not TOML, or a key is unknown, missing or of the wrong kind; the message names file and key.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "rules.toml"
      >>> _ = path.write_text('[series.ct]\nmodality = "CT"\nmin_slices = 20\n')
      >>> [(rule.source, rule.modality, rule.min_slices) for rule in read_rules(path)]
      [('ct', 'CT', 20)]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; expected rules, such as [series.ct] with modality = "CT".')
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no TOML in UTF-8 ({error}). Fix that line.") from None
    series = content.get("series")
    if set(content) != {"series"} or not isinstance(series, dict) or not series:
        found = ", ".join(content) or "nothing"
        raise ValueError(f"{path}: found {found}; expected tables [series.NAME], one a source, and nothing else.")
    rules = tuple(_rule(name, values, f"{path}: series.{name}") for name, values in series.items())
    images = [rule.source for rule in rules if rule.of is None]
    for rule in rules:
        if rule.of is not None and rule.of not in images:
            raise ValueError(
                f"{path}: series.{rule.source}: `of` names {rule.of!r}; expected one of {', '.join(images) or 'no'} "
                "image series of this file."
            )
    return tuple(sorted(rules, key=lambda rule: rule.of is not None))


def _rule(name: str, values: Any, where: str) -> Rule:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table, found {values!r}.")
    known = [one.name for one in fields(Rule) if one.name != "source"]
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; expected {', '.join(known)}.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "phase_seconds":
            good = (
                isinstance(value, list)
                and len(value) == 2
                and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
            )
            wanted = "two numbers, such as [50, 80]"
        elif key in ("min_slices", "max_slices"):
            good, wanted = number and isinstance(value, int), "a whole number"
        elif key == "within_days":
            good, wanted = number and value >= 0, "a number of days"
        elif key == "options":
            good, wanted = isinstance(value, dict), "a table"
        elif key == "required":
            good, wanted = isinstance(value, bool), "true or false"
        else:
            good, wanted = isinstance(value, str) and bool(value), "text"
        if not good:
            raise ValueError(f"{where}: `{key}` is {value!r}; expected {wanted}.")
    if "modality" not in values:
        raise ValueError(f'{where}: no `modality`; expected such as "CT", "MR", "PT" or "RTSTRUCT".')
    if "phase_seconds" in values:
        values = {**values, "phase_seconds": tuple(values["phase_seconds"])}
    try:
        return Rule(source=name, **values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


class Subject(NamedTuple):
    """Who a case is in the export.

    Attributes:
      patient_id: PatientID.
      study_date: of the one study to look at, ISO 8601; None for any.
      accession: number of the one study to look at; None for any.
    """

    patient_id: str
    study_date: str | None = None
    accession: str | None = None


IdMap = Mapping[str, Subject]
"""Case id to who it is in the export."""

MAP_COLUMNS = ("case_id", "dicom_patient_id", "study_date", "accession")


def read_id_map(path: str | Path) -> dict[str, Subject]:
    r"""Map of ids from a table with the columns case_id, dicom_patient_id and, if wanted, study_date and accession.

    Raises:
      FileNotFoundError, UnreadableFile: see `read_table`.
      ValueError: a column is missing or unknown, an id is empty or twice there, or a date is none.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "ids.csv"
      >>> _ = path.write_text("case_id,dicom_patient_id\nc1,PAT-07\n")
      >>> read_id_map(path)
      {'c1': Subject(patient_id='PAT-07', study_date=None, accession=None)}
    """
    from fusion_jax.data.tables import read_table

    table = read_table(path, text=MAP_COLUMNS)
    for column in MAP_COLUMNS[:2]:
        if column not in table.columns:
            raise ValueError(
                f"{path}: no column {column!r}; it has {', '.join(table.columns)}. Expected case_id (as in the table "
                "of the study) and dicom_patient_id (as in the files)."
            )
    strange = [column for column in table.columns if column not in MAP_COLUMNS]
    if strange:
        raise ValueError(f"{path}: unknown column {strange[0]!r}; expected {', '.join(MAP_COLUMNS)}.")
    found: dict[str, Subject] = {}
    for row, cells in enumerate(table.to_dict("records"), start=2):
        case, patient, date, accession = (cells.get(column) or None for column in MAP_COLUMNS)
        if case is None or patient is None:
            raise ValueError(f"{path}: row {row} has no {'case_id' if case is None else 'dicom_patient_id'}; add it.")
        if case in found:
            raise ValueError(f"{path}: case_id {case!r} stands there twice, again in row {row}; expected it once.")
        found[str(case)] = Subject(str(patient), _iso(path, row, date), accession)
    return found


def parted_patients(ids: IdMap, patients: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Patients of the export that the table takes for several: splits would part their cases.

    Args:
      ids: case to patient of the export.
      patients: case to patient of the table.

    Returns:
      PatientID to its cases.

    Example:
      >>> ids = {"c1": Subject("P1"), "c2": Subject("P1"), "c3": Subject("P2")}
      >>> parted_patients(ids, {"c1": "c1", "c2": "c2", "c3": "c3"})
      {'P1': ('c1', 'c2')}
    """
    cases: dict[str, list[str]] = {}
    for case in patients:
        if case in ids:
            cases.setdefault(ids[case].patient_id, []).append(case)
    return {one: tuple(found) for one, found in cases.items() if len({patients[case] for case in found}) > 1}


def _iso(path: str | Path, row: int, date: Any) -> str | None:
    if date is None:
        return None
    try:
        return dt.datetime.fromisoformat(str(date)).date().isoformat()
    except ValueError:
        raise ValueError(f"{path}: study_date is {date!r} in row {row}; expected such as 2020-01-31.") from None
