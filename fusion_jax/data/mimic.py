"""Chest X-rays, emergency stays, triage and reader labels of MIMIC joined into one table.

The tables are those of MIMIC-IV (`patients`, `transfers`), MIMIC-IV-ED (`edstays`, `triage`), MIMIC-CXR-JPG
(`metadata`) and REFLACX (`metadata_phase_1.csv` to `_3.csv`, one `anomaly_location_ellipses.csv` a reading), with the
column names of their documentation. An X-ray belongs to the stay during which it was taken; nobody is guessed, and
every reading that is left out is counted with its reason.

References:
  Johnson et al., MIMIC-IV, MIMIC-IV-ED and MIMIC-CXR-JPG, PhysioNet; Bigolin Lanfredi et al. 2022, REFLACX,
  doi:10.1038/s41597-022-01441-z; Hsieh et al. 2023, MDF-Net; readings of the join in specs/mdf_net.md, section 2.1.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.definition import Dropped, Flow, Step
from fusion_jax.data.image import UnreadableFile

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "ABNORMALITIES",
    "LABEL_GROUPS",
    "TABLES",
    "VITALS",
    "Filled",
    "Labels",
    "MimicJoin",
    "Repaired",
    "age_at_exam",
    "ed_stays_from_transfers",
    "ellipses_to_boxes",
    "fill_missing",
    "join_all",
    "join_triage",
    "match_stay",
    "merge_labels",
    "read_reflacx",
    "read_table",
    "repair_units",
    "study_time",
]

logger = logging.getLogger("fusion_jax.data.mimic")

VITALS = ("temperature", "heartrate", "resprate", "o2sat", "sbp", "dbp", "pain", "acuity")
"""Columns of `triage`: °F, beats/min, breaths/min, %, mmHg, mmHg, 0 to 10, 1 (most urgent) to 5."""

ABNORMALITIES = (
    "Enlarged cardiac silhouette",
    "Atelectasis",
    "Pleural abnormality",
    "Consolidation",
    "Pulmonary edema",
)
"""The five most frequent findings of REFLACX in the order of their classes."""

LABEL_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Pleural abnormality": ("Pleural abnormality", "Pleural thickening", "Pleural effusion"),
    "Lung nodule or mass": ("Lung nodule or mass", "Mass", "Nodule"),
    "High lung volume / emphysema": ("High lung volume / emphysema", "Emphysema"),
}
"""Labels that the reading phases of REFLACX name differently: the merged name and the columns that it covers."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "patients": ("subject_id", "gender", "anchor_age", "anchor_year"),
    "transfers": ("subject_id", "transfer_id", "eventtype", "intime", "outtime"),
    "edstays": ("subject_id", "stay_id", "intime", "outtime"),
    "triage": ("stay_id", *VITALS),
    "cxr": ("dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime", "ViewPosition"),
    "reflacx": ("id", "dicom_id", "subject_id", "eye_tracking_data_discarded", "image_size_x", "image_size_y"),
    "ellipses": ("id", "xmin", "ymin", "xmax", "ymax", "certainty"),
}
"""Columns that the join reads from each table."""

CELSIUS_BELOW = 50.0
PLAUSIBLE_FAHRENHEIT = (77.0, 113.0)  # 25 to 45 °C
MICROSECONDS_A_DAY = 86_400_000_000


class Repaired(NamedTuple):
    """Triage with units repaired.

    Attributes:
      table: all columns of the input, vitals as numbers.
      counts: how many values were changed (`temperature_celsius`, `pain_clipped`), made missing because they are no
        number (`pain_text`), or are implausible even so and stand as they were made (`temperature_implausible`).
    """

    table: "pandas.DataFrame"
    counts: dict[str, int]


class Filled(NamedTuple):
    """A table without missing values in some columns.

    Attributes:
      table: all columns of the input.
      values: column to the value that was filled in.
      missing: column to how many values were missing.
    """

    table: "pandas.DataFrame"
    values: dict[str, float]
    missing: dict[str, int]


class Labels(NamedTuple):
    """Merged labels of readings, one column a label.

    Attributes:
      certainty: 0 (absent) to 5 (consistent with), the highest of the merged columns, 0 where none was given.
      present: whether the certainty is above 0.
    """

    certainty: "pandas.DataFrame"
    present: "pandas.DataFrame"


class MimicJoin(NamedTuple):
    """Readings with everything that is known about them.

    Attributes:
      table: one row a reading, indexed by its `id`: identifiers, `study_time`, `match` (how the stay was found), view,
        image size, gender, `age`, vitals (NaN where missing), each label (whether present) and `<label> certainty`.
      boxes: one row an ellipse of these readings, as from `ellipses_to_boxes`; None where no ellipses were given.
      flow: readings (as cases) and patients after every step, and who was left out why; the notes count images.
      repairs: counts of `repair_units`; empty where units were left alone.
    """

    table: "pandas.DataFrame"
    boxes: "pandas.DataFrame | None"
    flow: Flow
    repairs: dict[str, int]


def read_table(path: str | os.PathLike[str], name: str) -> "pandas.DataFrame":
    r"""Read one table and check that it has the columns that the join needs.

    Args:
      path: CSV, compressed or not.
      name: which table it is, a key of `TABLES`.

    Returns:
      All columns; the file's name stands in `attrs["file"]`, so that later errors can name it.

    Raises:
      UnreadableFile: the file is no table.
      ValueError: a column is missing.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "edstays.csv"
      >>> _ = path.write_text("subject_id,stay_id,intime,outtime\n7,70,2180-01-01 08:00:00,2180-01-01 12:00:00\n")
      >>> int(read_table(path, "edstays")["stay_id"][0])
      70
    """
    if name not in TABLES:
        raise ValueError(f"table {name!r} is not known; expected one of {', '.join(TABLES)}.")
    table = _read_csv(path, name)
    table.attrs["file"] = os.fspath(path)
    _require(table, name)
    return table


def read_reflacx(folder: str | os.PathLike[str]) -> tuple["pandas.DataFrame", "pandas.DataFrame"]:
    """Readings of all phases of REFLACX and their ellipses.

    Args:
      folder: `main_data` of the data set, with `metadata_phase_*.csv` and one folder a reading.

    Returns:
      readings: the phases' metadata below each other, with a column `phase`; a label that a phase does not have is
        missing there.
      ellipses: one row an ellipse, with the reading in `id`.

    Raises:
      FileNotFoundError: no metadata, or a reading without its file of ellipses.
      UnreadableFile: a file is no table.
      ValueError: a column is missing.
    """
    import pandas as pd

    folder = Path(folder)
    files = sorted(folder.glob("metadata_phase_*.csv"))
    if not files:
        raise FileNotFoundError(f"{folder}: no metadata_phase_*.csv. Give the folder main_data of REFLACX.")
    phases = []
    for file in files:
        phase = read_table(file, "reflacx")
        phases.append(phase.assign(phase=int(file.stem.rsplit("_", 1)[1])))
    readings = pd.concat(phases, ignore_index=True)
    readings.attrs["file"] = os.fspath(folder / "metadata_phase_*.csv")
    ellipses = []
    for reading in readings["id"]:
        file = folder / str(reading) / "anomaly_location_ellipses.csv"
        ellipses.append(_read_csv(file, "ellipses").assign(id=reading))
    filled = [table for table in ellipses if len(table)] or ellipses[:1]
    together = pd.concat(filled, ignore_index=True)
    together.attrs["file"] = os.fspath(folder / "*" / "anomaly_location_ellipses.csv")
    _require(together, "ellipses")
    return readings, together


def ed_stays_from_transfers(transfers: "pandas.DataFrame") -> "pandas.DataFrame":
    """Emergency stays from the `transfers` of MIMIC-IV, for whom MIMIC-IV-ED is not at hand.

    Rows whose `eventtype` is `ED`, with `transfer_id` in the place of `stay_id`. A visit that moved between two
    emergency areas is two stays that touch; triage does not come with them.

    Args:
      transfers: the documented table.

    Returns:
      `subject_id`, `stay_id`, `intime`, `outtime`, in the order of the table.

    Raises:
      ValueError: a column is missing.

    Example:
      >>> import pandas as pd
      >>> transfers = pd.DataFrame({
      ...     "subject_id": [7, 7], "transfer_id": [1, 2], "eventtype": ["ED", "admit"],
      ...     "intime": ["2180-01-01 08:00:00", "2180-01-01 12:00:00"],
      ...     "outtime": ["2180-01-01 12:00:00", "2180-01-03 09:00:00"],
      ... })
      >>> ed_stays_from_transfers(transfers)["stay_id"].tolist()
      [1]
    """
    _require(transfers, "transfers")
    rows = transfers.loc[transfers["eventtype"] == "ED"]
    stays = rows.rename(columns={"transfer_id": "stay_id"})[["subject_id", "stay_id", "intime", "outtime"]]
    stays = stays.reset_index(drop=True)
    stays.attrs["file"] = transfers.attrs.get("file")
    return stays


def study_time(cxr: "pandas.DataFrame") -> "pandas.Series":
    """When each X-ray was taken: `StudyDate` (YYYYMMDD) and `StudyTime` (HHMMSS.fff, leading zeros lost).

    Args:
      cxr: metadata with both columns; numbers or text. 5430.125 is 54 minutes and 30.125 seconds past midnight.

    Returns:
      Times to the microsecond, missing where date or time is, with the index of `cxr`.

    Raises:
      ValueError: a column is missing, or a value is no date or time of day; the message names the row.

    Example:
      >>> import pandas as pd
      >>> cxr = pd.DataFrame({"StudyDate": [21800506], "StudyTime": [5430.125]})
      >>> str(study_time(cxr)[0])
      '2180-05-06 00:54:30.125000'
    """
    import pandas as pd

    _require(cxr, "cxr", ("StudyDate", "StudyTime"))
    dates = _numbers(cxr, "cxr", "StudyDate", "a date as YYYYMMDD")
    times = _numbers(cxr, "cxr", "StudyTime", "a time of day as HHMMSS.fff")
    missing = dates.isna() | times.isna()
    day = pd.to_datetime(dates.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
    seconds = times.fillna(0.0).to_numpy()
    clock = np.floor(seconds).astype(np.int64)
    hours, minutes, whole = clock // 10_000, clock // 100 % 100, clock % 100
    micro = np.rint((seconds - clock) * 1e6).astype(np.int64)
    bad_time = (seconds < 0) | (hours > 23) | (minutes > 59) | (whole > 59)
    _refuse(cxr, "cxr", "StudyDate", ~dates.isna() & day.isna(), "a date as YYYYMMDD")
    _refuse(cxr, "cxr", "StudyTime", pd.Series(bad_time, index=cxr.index), "a time of day as HHMMSS.fff")
    offset = ((hours * 60 + minutes) * 60 + whole) * 1_000_000 + micro
    taken = day.astype("datetime64[us]") + pd.to_timedelta(pd.Series(offset, index=cxr.index), unit="us")
    return taken.where(~missing).astype("datetime64[us]").rename("study_time")


def match_stay(cxr: "pandas.DataFrame", edstays: "pandas.DataFrame", tolerance_days: float = 0) -> "pandas.DataFrame":
    r"""The emergency stay during which each X-ray was taken.

    .. math:: t_{in} < t < t_{out}

    of the same subject, both strict. Exactly one such stay is the match; several are ambiguous and stay unmatched.
    With a tolerance, an X-ray that lies in none takes the subject's stay whose start is nearest, if
    :math:`|t - t_{in}|` is at most that many days; two equally near are ambiguous. A stay without an end, or whose end
    is not after its start, holds no time; it can be nearest.

    Args:
      cxr: X-rays with `subject_id` and `study_time`, as from `study_time`.
      edstays: stays, in any order, `stay_id` unique.
      tolerance_days: 0 for the rule above alone.

    Returns:
      With the index of `cxr`: `stay_id`, missing where there is no match, and `match`: `within`, `nearest`,
      `ambiguous`, `outside` (the subject has stays, none of them fits), `no stay` or `no time`.

    Raises:
      ValueError: a column is missing, a stay id stands twice, or the tolerance is negative or not finite.

    Example:
      >>> import pandas as pd
      >>> edstays = pd.DataFrame({
      ...     "subject_id": [7], "stay_id": [70], "intime": ["2180-01-01 08:00"], "outtime": ["2180-01-01 12:00"],
      ... })
      >>> times = pd.to_datetime(["2180-01-01 09:30", "2180-01-01 12:00"])
      >>> match_stay(pd.DataFrame({"subject_id": [7, 7], "study_time": times}), edstays)["match"].tolist()
      ['within', 'outside']

    References:
      Section 2.1 of specs/mdf_net.md, steps 2 and 3; the source's 7 days also measure from the start alone.
    """
    import pandas as pd

    if not (np.isfinite(tolerance_days) and tolerance_days >= 0):
        raise ValueError(f"tolerance_days is {tolerance_days}; expected 0 (within the stay only) or more days.")
    _require(cxr, "cxr", ("subject_id", "study_time"))
    _require(edstays, "edstays")
    _unique(edstays, "edstays", "stay_id")
    _one_kind(cxr, "cxr", edstays, "edstays", "subject_id")
    start, end = (_times(edstays, "edstays", column) for column in ("intime", "outtime"))
    taken = _times(cxr, "cxr", "study_time")

    # One sorted axis for all subjects: the subject's number times the count of moments, plus the moment's rank.
    no_time = np.iinfo(np.int64).min
    moments = np.unique(np.concatenate([start, end, taken]))
    subjects, _ = pd.factorize(pd.concat([edstays["subject_id"], cxr["subject_id"]], ignore_index=True))
    stay_subject, subject = np.split(subjects.astype(np.int64), [len(edstays)])

    def place(who: np.ndarray, when: np.ndarray) -> np.ndarray:
        return who * len(moments) + np.searchsorted(moments, when)

    query = place(subject, taken)
    rows = np.flatnonzero((start != no_time) & (end > start))
    if unusable := len(edstays) - len(rows):
        logger.warning(
            "edstays: %d of %d stays have no end after their start; they hold no X-ray", unusable, len(edstays)
        )
    begins, ends = place(stay_subject[rows], start[rows]), place(stay_subject[rows], end[rows])
    by_begin, by_end = np.argsort(begins, kind="stable"), np.argsort(ends, kind="stable")
    began = np.searchsorted(begins[by_begin], query, side="left")
    ended = np.searchsorted(ends[by_end], query, side="right")
    # Stays that began before t less those that ended by t are the stays that hold t. Stays of other subjects lie on
    # the same side in both counts and cancel, and where one is left, so is its row in the difference of the sums.
    holding = began - ended
    sum_begun = np.concatenate([[0], np.cumsum(rows[by_begin])])
    sum_ended = np.concatenate([[0], np.cumsum(rows[by_end])])
    position = np.where(holding == 1, sum_begun[began] - sum_ended[ended], -1)

    timed = (taken != no_time) & (subject >= 0)
    has_stay = np.isin(subject, stay_subject) & (subject >= 0)  # missing subjects are not one subject
    match = np.select(
        [~has_stay, ~timed, holding == 1, holding > 1], ["no stay", "no time", "within", "ambiguous"], default="outside"
    ).astype(object)
    position[~timed] = -1
    if tolerance_days > 0:
        near, tied = _nearest(stay_subject, start, subject, np.where(timed, taken, no_time), tolerance_days)
        outside = match == "outside"
        match[outside & (near >= 0)] = "nearest"
        match[outside & tied] = "ambiguous"
        position = np.where(outside & ~tied, near, position)
    stay_id = edstays["stay_id"].convert_dtypes().array.take(position, allow_fill=True)
    return pd.DataFrame({"stay_id": stay_id, "match": match}, index=cxr.index)


def age_at_exam(
    patients: "pandas.DataFrame", subject_id: "pandas.Series", study_time: "pandas.Series"
) -> "pandas.Series":
    """Age in years at the X-ray: `anchor_age + (year of study − anchor_year)`.

    Dates of a patient are shifted together, so the difference of the years holds; `anchor_age` is 91 for everybody
    older than 89.

    Args:
      patients: the documented table, one row a subject.
      subject_id: of every X-ray.
      study_time: of every X-ray, with the same index.

    Returns:
      Age, NaN where the subject is not in `patients` or the time is missing.

    Raises:
      ValueError: a column is missing, or a subject stands twice.

    Example:
      >>> import pandas as pd
      >>> patients = pd.DataFrame({"subject_id": [7], "gender": ["F"], "anchor_age": [52], "anchor_year": [2178]})
      >>> age_at_exam(patients, pd.Series([7]), pd.Series(pd.to_datetime(["2180-05-06"]))).tolist()
      [54.0]
    """
    _require(patients, "patients")
    _unique(patients, "patients", "subject_id")
    by_subject: Any = patients.set_index("subject_id")
    anchor_age = subject_id.map(by_subject["anchor_age"]).astype(float)
    anchor_year = subject_id.map(by_subject["anchor_year"]).astype(float)
    return (anchor_age + study_time.dt.year.astype(float) - anchor_year).rename("age")


def join_triage(table: "pandas.DataFrame", triage: "pandas.DataFrame") -> "pandas.DataFrame":
    """Vitals at triage beside the X-rays of the stay.

    Args:
      table: X-rays with `stay_id`, missing where there is no stay.
      triage: the documented table, one row a stay. `pain` is text there; words become missing and are counted in the
        log.

    Returns:
      `table` with the columns `VITALS` as float64, NaN where missing.

    Raises:
      ValueError: a column is missing, a stay stands twice, or a vital sign other than pain is no number.

    Example:
      >>> import pandas as pd
      >>> triage = pd.DataFrame({"stay_id": [70], **dict.fromkeys(VITALS, [1.0])}).assign(pain="unable")
      >>> joined = join_triage(pd.DataFrame({"stay_id": [70, 71]}), triage)
      >>> joined["acuity"].tolist(), joined["pain"].tolist()
      ([1.0, nan], [nan, nan])
    """
    vitals, words = _numeric_vitals(triage)
    _one_kind(table, "table", triage, "triage", "stay_id")
    if words:
        logger.warning("triage: %d values of pain are words; they count as missing", words)
    vitals = vitals.set_index("stay_id")
    joined = table.copy()
    keys: Any = table["stay_id"].astype(object)
    for column in VITALS:
        joined[column] = keys.map(vitals[column]).astype(float)
    return joined


def repair_units(triage: "pandas.DataFrame") -> Repaired:
    r"""Temperatures in °C turned into °F, pain held to its scale.

    .. math:: F = \frac{9}{5} C + 32 \quad \text{where the value is below 50}

    Pain above 10 (codes up to 88 occur) becomes 10, below 0 becomes 0.

    Args:
      triage: the documented table.

    Returns:
      The table and how many values were changed.

    Raises:
      ValueError: a column is missing, a stay stands twice, or a vital sign other than pain is no number.

    Example:
      >>> import pandas as pd
      >>> triage = pd.DataFrame({"stay_id": [70, 71], **dict.fromkeys(VITALS, [3.0, 3.0])})
      >>> table, counts = repair_units(triage.assign(temperature=[37.0, 98.6], pain=["13", "2"]))
      >>> table["temperature"].tolist(), table["pain"].tolist(), counts["temperature_celsius"]
      ([98.6, 98.6], [10.0, 2.0], 1)
    """
    table, words = _numeric_vitals(triage)
    temperature, pain = table["temperature"], table["pain"]
    celsius = temperature < CELSIUS_BELOW
    table["temperature"] = temperature.where(~celsius, temperature * 9 / 5 + 32)
    table["pain"] = pain.clip(0, 10)
    low, high = PLAUSIBLE_FAHRENHEIT
    implausible = table["temperature"].notna() & ~table["temperature"].between(low, high)
    counts = {
        "temperature_celsius": _count(celsius),
        "temperature_implausible": _count(implausible),
        "pain_clipped": _count(pain.notna() & ~pain.between(0, 10)),
        "pain_text": words,
    }
    return Repaired(table, counts)


def fill_missing(
    table: "pandas.DataFrame", columns: Sequence[str] = VITALS, *, training: Bool[np.ndarray, "n"] | None = None
) -> Filled:
    """Missing values replaced by the column's mean, rounded to 0.1.

    Args:
      table: one row a case.
      columns: numeric columns to fill.
      training: rows from which the means come. None takes all rows, as the source did; a model that is evaluated on
        some of them has then seen their mean.

    Returns:
      The table, what was filled in and how many values were missing.

    Raises:
      ValueError: a column is missing, is not numeric, or has no value in the training rows.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"sbp": [120.0, 131.0, None]})
      >>> fill_missing(table, ["sbp"]).values
      {'sbp': 125.5}
      >>> fill_missing(table, ["sbp"], training=np.array([True, False, True])).table["sbp"].tolist()
      [120.0, 131.0, 120.0]
    """
    import pandas as pd

    _require(table, "table", columns)
    rows = np.ones(len(table), bool) if training is None else training
    if rows.dtype != np.bool_:
        raise TypeError(f"training holds {rows.dtype}; expected True or False for every row.")
    if len(rows) != len(table):
        raise ValueError(f"training names {len(rows)} rows, the table has {len(table)}; expected one entry a row.")
    filled, values, missing = table.copy(), {}, {}
    for column in columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"{_where(table, 'table')}: column {column!r} is not numeric; expected numbers.")
        mean = float(table.loc[rows, column].astype(float).mean())
        if np.isnan(mean):
            raise ValueError(
                f"{_where(table, 'table')}: column {column!r} has no value in the {_count(rows)} training rows; "
                "expected at least one. Leave the column out."
            )
        values[column] = round(mean, 1)
        missing[column] = _count(table[column].isna())
        filled[column] = table[column].astype(float).fillna(values[column])
    return Filled(filled, values, missing)


def merge_labels(
    readings: "pandas.DataFrame",
    labels: Sequence[str] = ABNORMALITIES,
    *,
    groups: Mapping[str, tuple[str, ...]] = LABEL_GROUPS,
) -> Labels:
    """Labels under one name across the phases of REFLACX, and whether they are present.

    The certainty of a merged label is the highest of its columns; a missing one counts as 0; above 0 is present.

    Args:
      readings: metadata of readings (certainty 0 to 5), or ellipses (True where the ellipse shows the label).
      labels: names to make, in their order.
      groups: merged name to the columns that it covers; a name that is not here is its own column.

    Returns:
      One column a label.

    Raises:
      ValueError: no column of a label is there, or a value is not 0 to 5.

    Example:
      >>> import pandas as pd
      >>> readings = pd.DataFrame({"Pleural effusion": [4, 0], "Pleural thickening": [None, 0]})
      >>> merged = merge_labels(readings, ["Pleural abnormality"])
      >>> merged.certainty["Pleural abnormality"].tolist(), merged.present["Pleural abnormality"].tolist()
      ([4, 0], [True, False])
    """
    import pandas as pd

    merged = {}
    for label in labels:
        names = groups.get(label, (label,))
        found = [name for name in names if name in readings.columns]
        if not found:
            raise ValueError(
                f"{_where(readings, 'reflacx')}: no column for label {label!r}; expected one of "
                f"{', '.join(map(repr, names))}."
            )
        columns = readings[found].apply(pd.to_numeric, errors="coerce").astype(float)
        bad: Any = (readings[found].notna() & columns.isna()) | (columns < 0) | (columns > 5)
        for name in found:
            _refuse(readings, "reflacx", name, bad[name], "a certainty from 0 to 5, or empty")
        merged[label] = columns.max(axis=1).fillna(0).astype(np.int8)
    certainty = pd.DataFrame(merged, index=readings.index, columns=list(labels))
    return Labels(certainty, certainty > 0)


def ellipses_to_boxes(
    ellipses: "pandas.DataFrame",
    labels: Sequence[str] = ABNORMALITIES,
    *,
    groups: Mapping[str, tuple[str, ...]] = LABEL_GROUPS,
) -> "pandas.DataFrame":
    """Bounding rectangles of the ellipses that show one of the labels.

    REFLACX stores an ellipse with axes along the image by the corners of its rectangle. An ellipse with several labels
    takes the first of them in the order of `labels`. One without area is left out, and the log names its reading.

    Args:
      ellipses: `id`, `xmin`, `ymin`, `xmax`, `ymax` in pixels of the original image, `certainty` and a column a label.
      labels: classes, in their order.
      groups: as in `merge_labels`.

    Returns:
      `id`, `x0`, `y0`, `x1`, `y1` (float64), `class` (index into `labels`) and `certainty`, in the order of the rows.

    Raises:
      ValueError: a column is missing, or a corner is no number.

    Example:
      >>> import pandas as pd
      >>> ellipses = pd.DataFrame({
      ...     "id": ["P1R1", "P1R1"], "xmin": [10, 0], "ymin": [20, 0], "xmax": [50, 9], "ymax": [80, 9],
      ...     "certainty": [4, 5], "Atelectasis": [True, False], "Consolidation": [True, False],
      ... })
      >>> ellipses_to_boxes(ellipses, ["Consolidation", "Atelectasis"])[["x0", "y1", "class"]].values.tolist()
      [[10.0, 80.0, 0.0]]
    """
    import pandas as pd

    _require(ellipses, "ellipses")
    corners = {c: _numbers(ellipses, "ellipses", c, "pixels as a number") for c in ("xmin", "ymin", "xmax", "ymax")}
    for column, values in corners.items():
        _refuse(ellipses, "ellipses", column, values.isna(), "pixels as a number")
    present = merge_labels(ellipses, labels, groups=groups).present.to_numpy()
    boxes = pd.DataFrame(
        {
            "id": ellipses["id"],
            "x0": np.minimum(corners["xmin"], corners["xmax"]),
            "y0": np.minimum(corners["ymin"], corners["ymax"]),
            "x1": np.maximum(corners["xmin"], corners["xmax"]),
            "y1": np.maximum(corners["ymin"], corners["ymax"]),
            "class": present.argmax(axis=1),
            "certainty": ellipses["certainty"],
        }
    )
    flat = (boxes["x0"] == boxes["x1"]) | (boxes["y0"] == boxes["y1"])
    shown = present.any(axis=1)
    if _count(flat & shown):
        logger.warning(
            "ellipses: %d without area left out, of readings %s",
            _count(flat & shown),
            sorted(set(boxes["id"][flat & shown])),
        )
    return boxes.loc[shown & ~flat].reset_index(drop=True)


def join_all(
    *,
    reflacx: "pandas.DataFrame",
    cxr: "pandas.DataFrame",
    patients: "pandas.DataFrame",
    edstays: "pandas.DataFrame",
    triage: "pandas.DataFrame",
    ellipses: "pandas.DataFrame | None" = None,
    labels: Sequence[str] = ABNORMALITIES,
    groups: Mapping[str, tuple[str, ...]] = LABEL_GROUPS,
    tolerance_days: float = 0,
    repair: bool = False,
) -> MimicJoin:
    """Readings of chest X-rays with age, gender, triage of the stay, labels and boxes.

    Readings keep their order. One is left out if its image is not in the X-ray metadata, if its eye tracking was
    discarded, or if its image was not taken during exactly one emergency stay. Missing vitals stay missing:
    `fill_missing` fills them once the training rows are known. Several readings of one image, and several images of one
    patient, stay apart: split by `subject_id`.

    Args:
      reflacx: readings, as from `read_reflacx`.
      cxr: metadata of the images.
      patients: core patients.
      edstays: emergency stays.
      triage: vitals of the stays.
      ellipses: of the readings, as from `read_reflacx`; without them there are no boxes.
      labels: classes, in their order.
      groups: as in `merge_labels`.
      tolerance_days: as in `match_stay`.
      repair: whether `repair_units` is applied to triage.

    Returns:
      The joined readings with their boxes, flow and repairs.

    Raises:
      ValueError: a column is missing, an id that must be unique stands twice, or a reading and its image name
        different subjects.

    References:
      Section 2.1 of specs/mdf_net.md, which counts 3,052 readings of 2,616 images before and 670 readings of 590 images
      of 540 patients after the join.
    """
    for table, name, column in ((reflacx, "reflacx", "id"), (cxr, "cxr", "dicom_id")):
        _require(table, name)
        _unique(table, name, column)
    readings: Any = reflacx.reset_index(drop=True)
    vitals, repairs = repair_units(triage) if repair else (triage, {})

    # Only what the documented schema has: a reading's own columns may have the same names as those of its image.
    images: Any = cxr[list(TABLES["cxr"])].assign(study_time=study_time(cxr)).set_index("dicom_id")
    image = images.reindex(readings["dicom_id"]).set_axis(readings.index, axis=0)
    known = readings["dicom_id"].isin(images.index)
    differ = known & (image["subject_id"] != readings["subject_id"])
    if _count(differ):
        reading = readings.loc[differ].iloc[0]
        raise ValueError(
            f"{_where(reflacx, 'reflacx')}: reading {reading['id']} names subject {reading['subject_id']}, its image "
            f"{reading['dicom_id']} in {_where(cxr, 'cxr')} another ({_count(differ)} such readings); expected the "
            "same. Take both tables from one release."
        )
    table: Any = readings[["id", "dicom_id", "subject_id", "image_size_x", "image_size_y"]].copy()
    table["study_id"] = image["study_id"].convert_dtypes()
    table["view"] = image["ViewPosition"]
    table["study_time"] = image["study_time"]
    table[["stay_id", "match"]] = match_stay(table, edstays, tolerance_days)
    genders: Any = patients.drop_duplicates("subject_id").set_index("subject_id")["gender"]
    table["gender"] = table["subject_id"].map(genders)
    table["age"] = age_at_exam(patients, table["subject_id"], table["study_time"])
    table = join_triage(table, vitals)
    certainty, present = merge_labels(readings, labels, groups=groups)
    for label in labels:
        table[label] = present[label]
    for label in labels:
        table[f"{label} certainty"] = certainty[label]

    discarded = _flags(reflacx, "eye_tracking_data_discarded").to_numpy()
    matched = table["stay_id"].notna().to_numpy()
    kept = known.to_numpy() & ~discarded & matched
    flow = _flow(table, known.to_numpy(), discarded)
    table = table.loc[kept].set_index("id")
    boxes = None
    if ellipses is not None:
        boxes: Any = ellipses_to_boxes(ellipses, labels, groups=groups)
        boxes = boxes.loc[boxes["id"].isin(table.index)].reset_index(drop=True)
    return MimicJoin(table, boxes, flow, repairs)


def _read_csv(path: str | os.PathLike[str], name: str) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(path, low_memory=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{os.fspath(path)} is missing; expected the {name} table.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError) as error:
        raise UnreadableFile(
            path, f"is no CSV table ({error})", f"Download the {name} table again and compare its checksum."
        ) from error


def _nearest(
    stay_subject: np.ndarray, start: np.ndarray, subject: np.ndarray, taken: np.ndarray, tolerance_days: float
) -> tuple[np.ndarray, np.ndarray]:
    """Row of the stay whose start is nearest, −1 if none is near enough, and whether two are equally near."""
    no_time = np.iinfo(np.int64).min
    rows = np.flatnonzero(start != no_time)
    # Stays by subject and start, between two sentinels of no subject.
    rows = rows[np.lexsort((start[rows], stay_subject[rows]))]
    moments = np.unique(np.concatenate([start[rows], taken]))
    keys = stay_subject[rows] * len(moments) + np.searchsorted(moments, start[rows])
    query = subject * len(moments) + np.searchsorted(moments, taken)
    right = np.searchsorted(keys, query, side="left")
    who = np.concatenate([[-1], stay_subject[rows], [-1]])
    when = np.concatenate([[0], start[rows], [0]])
    far = np.iinfo(np.int64).max

    def distance(at: np.ndarray) -> np.ndarray:
        at = np.clip(at, 0, len(rows) + 1)
        same = (who[at] == subject) & (taken != no_time)
        return np.where(same, np.abs(when[at] - np.where(same, taken, 0)), far)

    # With the sentinel in front, entry `right` is the last start before t and `right + 1` the first one not before.
    before, after = distance(right), distance(right + 1)
    best = np.minimum(before, after)
    others = np.stack([distance(right - 1), before, after, distance(right + 2)])
    near = best <= tolerance_days * MICROSECONDS_A_DAY
    tied = near & ((others == best).sum(axis=0) > 1)
    place = np.where(before <= after, right, right + 1) - 1
    row = np.full(len(subject), -1)
    row[near] = rows[place[near]]
    return row, tied


def _numeric_vitals(triage: Any) -> tuple[Any, int]:
    """Triage with vitals as numbers, and how many words stood in the pain column."""
    import pandas as pd

    _require(triage, "triage")
    _unique(triage, "triage", "stay_id")
    table = triage.copy()
    for column in VITALS:
        if column != "pain":
            table[column] = _numbers(triage, "triage", column, "a number")
    pain: Any = pd.to_numeric(triage["pain"], errors="coerce")
    pain = pain.astype(float)
    table["pain"] = pain
    return table, _count(triage["pain"].notna() & pain.isna())


def _where(table: Any, name: str) -> str:
    file = table.attrs.get("file")
    return f"{name} ({file})" if file else name


def _require(table: Any, name: str, columns: Sequence[str] | None = None) -> None:
    for column in TABLES[name] if columns is None else columns:
        if column not in table.columns:
            raise ValueError(
                f"{_where(table, name)}: no column {column!r}; it has {', '.join(map(repr, table.columns))}. "
                "Give the table with the column names of its documentation."
            )


def _unique(table: Any, name: str, column: str) -> None:
    twice = table[column][table[column].duplicated()]
    if len(twice):
        raise ValueError(
            f"{_where(table, name)}: {column} {twice.iloc[0]} stands in several rows ({len(twice)} such rows); "
            "expected one row each. Take the repeated rows out."
        )


def _refuse(table: Any, name: str, column: str, bad: Any, expected: str) -> None:
    rows = np.flatnonzero(bad.to_numpy(dtype=bool, na_value=False))
    if len(rows):
        cell = table[column].iloc[rows[0]]
        cell = cell.item() if isinstance(cell, np.generic) else cell
        raise ValueError(
            f"{_where(table, name)}: column {column!r} holds {cell!r} in row {rows[0]} "
            f"({len(rows)} such rows); expected {expected}. Fix the cell or take the row out."
        )


def _numbers(table: Any, name: str, column: str, expected: str) -> Any:
    import pandas as pd

    numbers: Any = pd.to_numeric(table[column], errors="coerce")
    numbers = numbers.astype(float)
    _refuse(table, name, column, (table[column].notna() & numbers.isna()) | np.isinf(numbers), expected)
    return numbers


def _times(table: Any, name: str, column: str) -> np.ndarray:
    """Times as microseconds, the smallest integer where missing."""
    import pandas as pd

    zoned = table[column].map(_has_zone)
    _refuse(table, name, column, zoned, "a time without a zone, as MIMIC has them")
    times = pd.to_datetime(table[column], errors="coerce", format="ISO8601")
    _refuse(table, name, column, table[column].notna() & times.isna(), "a time such as 2180-05-06 22:23:00")
    return times.to_numpy().astype("datetime64[us]").astype(np.int64)


def _has_zone(cell: Any) -> bool:
    """Whether a time says how far it is from UTC; beside times that do not, it would be hours off."""
    if isinstance(cell, str):
        return bool(re.search(r":\d.*(Z|[+-]\d\d:?\d*)$", cell.strip()))
    return getattr(cell, "tzinfo", None) is not None


def _one_kind(left: Any, left_name: str, right: Any, right_name: str, column: str) -> None:
    """Ids as numbers in one table and as text in the other never meet."""
    import pandas as pd

    kinds = [
        {isinstance(cell, str) for cell in table[column].dropna().unique()} if len(table) else set()
        for table in (left, right)
    ]
    if all(kinds) and kinds[0].isdisjoint(kinds[1]) and not pd.Index(left[column]).isin(right[column]).any():
        raise ValueError(
            f"{_where(left, left_name)} and {_where(right, right_name)}: {column} is "
            f"{left[column].dropna().tolist()[0]!r} in one and {right[column].dropna().tolist()[0]!r} in the other; "
            "expected both numbers or both text. Convert one of them."
        )


def _flags(table: Any, column: str) -> Any:
    """True and False, as pandas or as the words of a CSV."""
    words = table[column].astype("string").str.strip().str.lower()
    _refuse(table, "reflacx", column, ~words.isin(["true", "false"]), "True or False")
    return words == "true"


def _flow(table: Any, known: np.ndarray, discarded: np.ndarray) -> Flow:
    """Counts after every step; a reading is listed at the first step that leaves it out."""
    reasons = {
        "ambiguous": "several stays hold its time",
        "outside": "outside the stays of its subject",
        "no stay": "its subject has no stay",
        "no time": "its image has no time",
    }
    left = np.ones(len(table), bool)
    steps = []
    for label, out in (
        ("readings", {}),
        ("with image metadata", {"no image metadata": ~known}),
        ("with eye tracking", {"eye tracking discarded": discarded}),
        ("taken during one emergency stay", {why: (table["match"] == m).to_numpy() for m, why in reasons.items()}),
    ):
        dropped = []
        for reason, rows in out.items():
            if (left & rows).any():
                dropped.append(Dropped(reason, tuple(table["id"].astype(str)[left & rows])))
            left = left & ~rows
        rest = table.loc[left]
        steps.append(Step(label, len(rest), rest["subject_id"].nunique(), tuple(dropped)))
    before, after = table["dicom_id"].nunique(), rest["dicom_id"].nunique()
    return Flow(tuple(steps), (f"{len(table)} readings of {before} images became {len(rest)} of {after}",))


def _count(rows: Any) -> int:
    return int(np.count_nonzero(rows))
