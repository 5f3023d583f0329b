"""Findings about personal data in the table. What is found is counted, never repeated: a report travels."""

import re
from collections.abc import Iterator
from typing import Any

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.integrity.findings import Finding, Severity

__all__ = ["check_personal_data"]

# The identifiers of the HIPAA "Safe Harbor" method, 45 CFR 164.514(b)(2), as far as a column can hold them.
NAMED = {
    "names of persons": r"(patient |first |last |middle |full |given |family |maiden |sur)?name|forename|vorname"
    r"|nachname|(referring |attending )?physician( name)?|initials",
    "birth dates": r"(date of birth|dob|birth ?(date|day)|geburtsdatum)",
    "addresses": r"(street|home|mail)? ?address|street|postal code|post ?code|zip( code)?|plz",
    "telephone numbers": r"(tele)?(phone|fax)( number| no)?|mobile( number| no)?|cell phone",
    "e-mail addresses": r"e ?mail( address)?",
    "record or insurance numbers": r"mrn|medical record( number| no)?|hospital (number|no|id)|accession( number| no)?"
    r"|(social security|insurance|nhs|passport|health plan)( number| no| id)?|ssn",
}

VALUES = {
    "e-mail addresses": re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"),
    "telephone numbers": re.compile(r"(\+\d{1,3}[\s/-]?)?(\(0?\d{2,4}\)|0\d{2,4})[\s/-]\d{3}[\s/-]?\d{2,6}"),
    "social security numbers": re.compile(r"\d{3}-\d{2}-\d{4}"),
    "names of persons": re.compile(
        r"[^\W\d_]{2,}\^[^\W\d_]+(\^.*)?|((Mr|Mrs|Ms|Dr|Prof|Herr|Frau)\.? [A-Z][^\W\d_]+.*)|"
        r"[A-Z][^\W\d_]+, [A-Z][^\W\d_]+"
    ),
}

MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|"
    rf"({MONTHS}|jan|feb|mar|apr|jun|jul|aug|sep|oct|nov|dec)\.? \d{{1,2}},? \d{{4}}|"
    rf"\d{{1,2}} ({MONTHS}) \d{{4}}",
    re.IGNORECASE,
)
FREE_TEXT_WORDS = 6
"""Words from which a cell is a sentence rather than a category, in the median of a column."""


def check_personal_data(cohort: Cohort) -> Iterator[Finding]:
    """Columns that name persons or places of theirs, full dates and free text; ids that look like names."""
    import pandas as pd

    for column in cohort.table.columns:
        cells: Any = cohort.table[column].dropna()
        if not len(cells):
            continue
        is_text = cells.dtype == object or pd.api.types.is_string_dtype(cells.dtype)
        # Missing data and flags called "email" would be numbers or yes and no.
        told = _named(column) if cells.nunique() > 2 else ""
        seen = _seen(cells.map(str)) if is_text else ""
        kind = told or seen
        if kind:
            yield _finding(cohort, column, kind, "its name" if told else "its cells", len(cells))
        elif pd.api.types.is_datetime64_any_dtype(cells.dtype) or (is_text and _share(cells.map(str), DATE) > 0.5):
            yield Finding(
                "note",
                "personal data",
                f"{len(cells)} full dates: together with place and age they can tell who a patient is.",
                "Give days since an index date instead, before the table leaves the hospital.",
                column=column,
            )
        elif is_text and cells.map(lambda cell: len(str(cell).split())).median() >= FREE_TEXT_WORDS:
            yield Finding(
                "error" if cohort.role(column) == "input" else "note",
                "personal data",
                f"{len(cells)} cells of free text, which may hold names, places and the diagnosis.",
                "Read it or leave it out before the table leaves the hospital; it is no input as it is.",
                column=column,
            )
    for what, ids in (("case ids", cohort.case_id), ("patient ids", tuple(cohort.patient_id.tolist()))):
        kind = _seen(pd.Series(ids, dtype=object)) or (
            "birth dates or other dates" if _share(pd.Series(ids, dtype=object), DATE) > 0.5 else ""
        )
        if kind:
            yield Finding(
                "warning",
                "personal data",
                f"The {what} look like {kind}.",
                "Replace them by pseudonyms, and keep the key in the hospital.",
            )
            break  # without patients of their own, both are the same


def _finding(cohort: Cohort, column: str, kind: str, by: str, count: int) -> Finding:
    is_input = cohort.role(column) == "input"
    severity: Severity = "error" if is_input else "warning"
    return Finding(
        severity,
        "personal data",
        f"By {by}, the column holds {kind} ({count} cells; not repeated here)"
        f"{', and it is an input' if is_input else ''}.",
        "Take it out of the table before anybody else gets the folder; a role keeps it from models, not from readers.",
        column=column,
    )


def _named(column: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = re.sub(r"[\W_]+", " ", words).strip().lower()
    return next((kind for kind, pattern in NAMED.items() if re.fullmatch(pattern, words)), "")


def _seen(cells: Any) -> str:
    return next((kind for kind, pattern in VALUES.items() if _share(cells, pattern) > 0.5), "")


def _share(cells: Any, pattern: re.Pattern[str]) -> float:
    return sum(pattern.fullmatch(str(cell).strip()) is not None for cell in cells) / max(1, len(cells))
