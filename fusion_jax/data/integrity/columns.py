"""Findings about labels, outcomes, inputs and patients, from the table alone."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.integrity.findings import Finding
from fusion_jax.data.plausible import find_mixed_units, find_quantity, range_in
from fusion_jax.wording import listed

__all__ = ["check_columns", "check_labels", "check_outcomes", "check_patients", "check_values", "column_summary"]

FEW_PATIENTS = 5
"""Fewer patients than this of a class cannot be divided into five folds."""


def _is_number(cells: Any) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_bool_dtype(cells.dtype)


def _is_text(cells: Any) -> bool:
    import pandas as pd

    return cells.dtype == object or pd.api.types.is_string_dtype(cells.dtype)


def _spellings(cells: Any) -> list[list[str]]:
    """Groups of levels that differ in case, blanks and punctuation at the ends only."""
    groups: dict[str, list[str]] = {}
    for level in dict.fromkeys(cell for cell in cells.dropna() if isinstance(cell, str)):
        groups.setdefault(re.sub(r"\s+", " ", level.strip(" .;,_-")).casefold(), []).append(level)
    return [levels for levels in groups.values() if len(levels) > 1]


def check_labels(cohort: Cohort) -> Iterator[Finding]:
    """Classes without patients or with few, cases without a class, classes spelled in two ways."""
    columns = cohort.columns("label")
    if not columns and not cohort.columns("event"):
        yield Finding(
            "note",
            "label",
            "No column is a label or an event.",
            "Give one that role, unless nothing is to be predicted.",
        )
    for column in columns:
        cells: Any = cohort.table[column]
        spellings = _spellings(cells)
        for levels in spellings:
            count = Counter(cells[cells.isin(levels)])
            rare = min(levels, key=lambda level, count=count: count[level])
            yield Finding(
                "error",
                "label",
                f"Classes {' and '.join(map(repr, levels))} are one word in several spellings "
                f"({', '.join(f'{count[level]} cases' for level in levels)}).",
                "Write them in one way.",
                tuple(cells.index[cells == rare]),
                column=column,
            )
        codes, classes = cohort.codes(column)
        missing = codes < 0
        if missing.any():
            cases = tuple(case for case, gap in zip(cohort.case_id, missing, strict=True) if gap)
            yield Finding(
                "warning",
                "label",
                f"{len(cases)} of {len(cohort)} cases have no {column!r}: {listed(cases)}.",
                "Leave them out by a rule of the definition, so that the flow diagram counts them.",
                cases,
                column=column,
            )
        patients = {name: len(set(cohort.patient_id[codes == code].tolist())) for code, name in enumerate(classes)}
        present = [name for name, count in patients.items() if count]
        if len(present) < 2:
            yield Finding(
                "error",
                "label",
                f"All cases are of {f'the class {present[0]!r}' if present else 'no class'}; expected two classes or "
                "more.",
                "Check the column, or take it out of the labels.",
                column=column,
            )
            continue
        numbers = cells.dropna()
        if len(classes) > 20 and _is_number(cells):
            yield Finding(
                "error",
                "label",
                f"The label has {len(classes)} different numbers from {numbers.min():g} to {numbers.max():g}: a "
                "measurement, no class.",
                "Derive classes from it with a rule, such as `hvpg >= 5`.",
                column=column,
            )
            continue
        absent = [name for name, count in patients.items() if not count]
        if absent:
            yield Finding(
                "warning",
                "label",
                f"No case is of the class {listed(map(repr, absent))}, which is declared.",
                "Take it out of the levels, or check the spelling.",
                column=column,
            )
        few = {name: count for name, count in patients.items() if 0 < count < FEW_PATIENTS}
        if few and not spellings:
            shown = listed(f"{name!r} ({count})" for name, count in few.items())
            cases = tuple(
                case for case, code in zip(cohort.case_id, codes, strict=True) if code >= 0 and classes[code] in few
            )
            yield Finding(
                "warning",
                "label",
                f"Classes with fewer than {FEW_PATIENTS} patients: {shown}. No estimate for them will be of use, and "
                f"{FEW_PATIENTS} folds cannot all hold one.",
                "Join classes, leave them out, or gather more.",
                cases,
                column=column,
            )


def check_outcomes(cohort: Cohort) -> Iterator[Finding]:
    """Times that are no times, events that are no events."""
    for column in cohort.columns("time"):
        cells: Any = cohort.table[column]
        if not _is_number(cells):
            known = cells.dropna()
            shown = f", such as {known.iloc[0]!r}" if len(known) else ": all are missing"
            yield Finding(
                "error",
                "outcome",
                f"Times are no numbers{shown}.",
                "Write days as numbers, and declare the unit.",
                column=column,
            )
            continue
        for severity, bad, what in (
            ("error", cells < 0, "are negative"),
            ("warning", cells == 0, "are 0: neither model nor curve can use them"),
            ("warning", cells.isna(), "are empty"),
        ):
            if bad.any():
                cases = tuple(cells.index[bad])
                chosen: Any = severity
                yield Finding(
                    chosen,
                    "outcome",
                    f"{len(cases)} times {what}: {listed(cases)}.",
                    "Check the dates they were computed from, or leave the cases out by a rule.",
                    cases,
                    column=column,
                )
    for column in cohort.columns("event"):
        cells: Any = cohort.table[column]
        bad = ~cells.isin([0, 1]) & cells.notna()
        if bad.any():
            shown = listed(f"{cell!r} in {case}" for case, cell in cells[bad].items())
            yield Finding(
                "error",
                "outcome",
                f"Events are 1, or 0 where the patient was censored; found {shown}.",
                "Code the column so.",
                tuple(cells.index[bad]),
                column=column,
            )
        elif cells.nunique() < 2:
            yield Finding(
                "error", "outcome", "No case has another outcome than the others.", "Check the column.", column=column
            )


def check_columns(cohort: Cohort) -> Iterator[Finding]:
    """Inputs that say nothing, are ids, are mostly empty, or mix numbers and words."""
    for column in cohort.columns("input"):
        cells: Any = cohort.table[column]
        known = cells.dropna()
        if known.nunique() <= 1:
            gaps = f" where it is known ({len(known)} of {len(cells)} cases)" if len(known) < len(cells) else ""
            yield Finding(
                "warning",
                "uninformative column",
                f"The input is {str(known.iloc[0])!r} in every case{gaps}." if len(known) else "The input is empty.",
                "Take it out of the inputs.",
                column=column,
            )
            continue
        gaps = float(cells.isna().mean())
        if gaps > 0.5:
            yield Finding(
                "warning",
                "missing values",
                f"{int(cells.isna().sum())} of {len(cells)} values are missing ({gaps:.0%}).",
                "Imputed, the column is mostly invented; consider leaving it out, or an indicator of what is missing.",
                column=column,
            )
        if not _is_text(cells):
            continue
        words = known.map(str)
        numbers = words.map(_reads_as_number)
        if numbers.mean() >= 0.5:
            strange = list(dict.fromkeys(words[~numbers]))
            odd = words[~numbers].index
            yield Finding(
                "warning",
                "number",
                f"{int(numbers.sum())} of {len(known)} cells are numbers, the others are {listed(map(repr, strange))}: "
                "the column is read as text, every number a category."
                if strange
                else "Numbers are written with a comma or as text, so that the column is read as text.",
                "Fix the cells, and declare the unit in cohort.toml, which makes the column a number.",
                tuple(odd),
                column=column,
            )
            continue
        for levels in _spellings(cells):
            yield Finding(
                "warning",
                "spelling",
                f"Levels {' and '.join(map(repr, levels))} are one word in several spellings.",
                "Write them in one way.",
                tuple(cells.index[cells.isin(levels) & (cells != cells[cells.isin(levels)].mode()[0])]),
                column=column,
            )
        if len(known) >= 20 and known.nunique() > 0.9 * len(known):
            yield Finding(
                "warning",
                "uninformative column",
                f"{known.nunique()} different texts in {len(known)} cases: an id or free text.",
                "Take it out of the inputs: a model can only learn cases by heart from it.",
                column=column,
            )


def _reads_as_number(word: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?\s*", word) is not None


def check_values(cohort: Cohort) -> Iterator[Finding]:
    """Numbers where their quantity cannot lie, and columns of two units."""
    for column in cohort.table.columns:
        if cohort.role(column) == "never" or not _is_number(cohort.table[column]):
            continue
        cells: Any = cohort.table[column]
        values = cells.to_numpy(dtype=float, na_value=np.nan)
        infinite = np.isinf(values)
        if infinite.any():
            cases = tuple(cells.index[infinite])
            yield Finding(
                "error",
                "not finite",
                f"{len(cases)} values are infinite: {listed(cases)}.",
                "Empty these cells.",
                cases,
                column=column,
            )
        quantity = find_quantity(column)
        unit = cohort.units.get(column, "")
        mixed = find_mixed_units(values)
        fits = quantity is not None and bool(quantity.others)
        if quantity is not None:
            bounds = range_in(quantity, unit)
            low, high = bounds or (quantity.low, quantity.high)
            shown_unit = unit if bounds and unit else quantity.unit
            assumed = "" if bounds and unit else " (assumed)" if not unit else f" ({unit!r} cannot be converted)"
            outside = (values < low) | (values > high)
            other = _other_unit(quantity, shown_unit, values[outside]) if outside.any() else ""
            if outside.sum() > 1 and fits and (other or mixed) and outside.mean() < 1:
                cases = tuple(cells.index[outside])
                would = f", and would fit in {other}" if other else ""
                yield Finding(
                    "error",
                    "mixed units",
                    f"{int(outside.sum())} of {int(np.isfinite(values).sum())} values of {quantity.name} lie outside "
                    f"{low:g} to {high:g} {shown_unit}{assumed}{would}: {_shown(cells, outside)}.",
                    "Convert them to one unit; until then every scaled value is wrong.",
                    cases,
                    column=column,
                )
                continue
            if outside.any():
                yield Finding(
                    "warning",
                    "implausible value",
                    f"{int(outside.sum())} of {int(np.isfinite(values).sum())} values of {quantity.name} lie outside "
                    f"{low:g} to {high:g} {shown_unit}{assumed}{f', and would fit in {other}' if other else ''}: "
                    f"{_shown(cells, outside)}.",
                    "Check them in the records; codes for missing values must be empty cells.",
                    tuple(cells.index[outside]),
                    column=column,
                )
        if mixed is not None:
            known = quantity is not None and fits
            yield Finding(
                "error" if known else "warning",
                "mixed units",
                f"Values fall into two groups a factor of about {mixed.factor:.0f} apart, with nothing between "
                f"{np.nanmax(np.where(mixed.large, np.nan, values)):g} and {np.nanmin(values[mixed.large]):g}; "
                f"{int(mixed.large.sum())} are in the upper one: {_shown(cells, mixed.large)}.",
                "Check whether the column mixes units; if so, convert to one.",
                tuple(cells.index[mixed.large]),
                column=column,
            )


def _other_unit(quantity: Any, unit: str, values: np.ndarray) -> str:
    """A unit other than the declared one in which most of these values would be plausible."""
    for other in (*quantity.others, quantity.unit):
        if other == unit or (bounds := range_in(quantity, other)) is None:
            continue
        if np.mean((values >= bounds[0]) & (values <= bounds[1])) > 0.5:
            return other
    return ""


def _shown(cells: Any, wanted: Any) -> str:
    return listed(f"{cell:g} in {case}" for case, cell in cells[wanted].items())


def check_patients(cohort: Cohort) -> Iterator[Finding]:
    """Patients who contradict themselves, ids that are nearly the same, rows that are doubled."""
    import pandas as pd

    by_name: dict[str, set[str]] = {}
    for patient in cohort.patient_id.tolist():
        key = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_.-]+", " ", patient.strip()).casefold())
        by_name.setdefault(key, set()).add(patient)
    alike = [sorted(names) for names in by_name.values() if len(names) > 1]
    if alike:
        those = {name for names in alike for name in names}
        yield Finding(
            "warning",
            "patient",
            f"{len(alike)} groups of patient ids differ in case, blanks or leading zeros only: "
            f"{listed((' and '.join(map(repr, names)) for names in alike), 3)}.",
            "If they are one patient, write the id in one way: otherwise the patient is in training and test.",
            tuple(case for case, patient in zip(cohort.case_id, cohort.patient_id, strict=True) if patient in those),
        )
    groups: Any = pd.Series(cohort.patient_id, index=cohort.table.index)
    fixed = [column for column in cohort.table.columns if _is_fixed(column)]
    for column in [*fixed, *(column for column in cohort.columns("label") if column not in fixed)]:
        cells: Any = cohort.table[column]
        varies: Any = cells.groupby(groups.to_numpy()).nunique() > 1
        patients = [str(patient) for patient in varies.index[varies]]
        if not patients:
            continue
        cases = tuple(case for case, patient in groups.items() if patient in set(patients))
        if column in fixed:
            yield Finding(
                "error",
                "patient",
                f"{len(patients)} patients have several values of {column!r}: {listed(patients)}.",
                "Two patients may share an id, or a cell is wrong.",
                cases,
                column=column,
            )
        else:
            yield Finding(
                "warning",
                "patient",
                f"{len(patients)} patients have cases of different {column!r}: {listed(patients)}.",
                "Right where the label is of a lesion or a date; otherwise a cell is wrong.",
                cases,
                column=column,
            )
    yield from _doubled_rows(cohort)


def _is_fixed(column: str) -> bool:
    """What does not change over the life of a patient."""
    words = re.sub(r"[\W_]+", " ", column).strip().lower()
    return re.fullmatch(r"(patient )?(sex|gender)|(year|date) of birth|birth ?(year|date)|dob", words) is not None


def _doubled_rows(cohort: Cohort) -> Iterator[Finding]:
    """Rows that agree in all inputs where chance agreement is not to be expected anywhere in the cohort."""
    inputs: Any = cohort.inputs.dropna(axis=1, how="all")
    if inputs.shape[1] < 2 or len(inputs) < 3:
        return
    n = len(inputs)
    chance = 1.0
    for column in inputs.columns:
        count = inputs[column].value_counts(dropna=False).to_numpy(float)
        chance *= float(count @ (count - 1)) / (n * (n - 1))
    # As many pairs would agree if columns were independent; correlated ones agree more often, hence not 1.
    if n * (n - 1) / 2 * chance > 0.1:
        return
    complete = inputs.notna().sum(axis=1) >= max(2, inputs.shape[1] // 2)
    doubled = inputs.duplicated(keep=False) & complete
    if not doubled.any():
        return
    groups = [list(rows) for rows in inputs[doubled].groupby(list(inputs.columns), dropna=False).groups.values()]
    place = {case: row for row, case in enumerate(cohort.case_id)}
    across = [group for group in groups if len({cohort.patient_id[place[case]] for case in group}) > 1]
    for them, severity, who in ((across, "warning", "several patients"), (None, "note", "one patient")):
        chosen_groups = [group for group in groups if group not in across] if them is None else them
        if chosen_groups:
            shown = listed((" = ".join(map(str, group[:4])) for group in chosen_groups), 3)
            chosen: Any = severity
            yield Finding(
                chosen,
                "duplicate row",
                f"{len(chosen_groups)} groups of rows of {who} agree in all {inputs.shape[1]} inputs: {shown}.",
                "Check whether a case was entered twice." if them is not None else "Nothing to do if they are visits.",
                tuple(case for group in chosen_groups for case in group),
            )


def column_summary(cohort: Cohort) -> list[dict[str, Any]]:
    """Role, unit, number of values and what they look like, for every column but those that are never used."""
    rows = []
    for column in cohort.table.columns:
        role = cohort.role(column)
        cells: Any = cohort.table[column]
        row: dict[str, Any] = {
            "column": column,
            "role": role,
            "unit": cohort.units.get(column, ""),
            "known": int(cells.notna().sum()),
            "different": int(cells.nunique()),
        }
        values = cells.dropna()
        if role == "never" or not len(values):
            row["content"] = ""  # may be personal
        elif _is_number(cells) and values.nunique() > 2:
            row["content"] = f"{values.min():g} to {values.max():g}, median {values.median():g}"
        elif values.nunique() <= 12:
            row["content"] = listed((f"{level}: {count}" for level, count in values.value_counts().items()), 6)
        else:
            row["content"] = "text" if _is_text(cells) else str(cells.dtype)
        rows.append(row)
    return rows
