"""What a check of a cohort finds, and the report that holds it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

__all__ = ["CHECKS", "Finding", "Report", "Severity"]

Severity = Literal["error", "warning", "note"]
"""An error makes results wrong or stops a run; a warning is for a person to judge; a note is good to know."""

CHECKS: Mapping[str, str] = {
    "row": "every row has a case id of its own, a patient and cells of the declared type",
    "column": "every column and source that cohort.toml names is there",
    "definition": "the rules that define the cohort can be applied",
    "missing file": "every required file is there",
    "unused file": "every image beside those of the cohort belongs to a case",
    "unreadable file": "every image can be decoded to its end",
    "preprocessing": "the declared steps run on every image",
    "not finite": "no NaN or infinity among the values",
    "constant image": "no image is one value throughout, before and after preprocessing",
    "shape": "images of a source have the same axes and channels, and one shape where batches are made",
    "spacing": "images of a source have one voxel size once preprocessed",
    "grid": "a mask lies on the grid of its image",
    "mask": "masks are not empty, hold 0 and 1, are one piece and do not touch the border",
    "box": "boxes lie inside their image and belong to a case",
    "exact duplicate": "no image stands for two patients or two labels",
    "near duplicate": "no image resembles that of another patient like a copy",
    "duplicate row": "no two patients agree in every input",
    "patient": "rows of a patient agree about who that is",
    "label": "every class is declared, spelled one way and has patients",
    "outcome": "times are positive, events are 0 or 1",
    "leak": "no input, gap, id or order gives the label away",
    "missing values": "inputs are mostly there",
    "uninformative column": "inputs vary and are no ids",
    "spelling": "a level of an input is spelled in one way",
    "number": "columns of numbers hold numbers only",
    "implausible value": "values lie where their quantity can",
    "mixed units": "a column has one unit",
    "confounding": "site, scanner and format do not go with the label",
    "personal data": "no names, addresses, numbers of persons, birth dates or free text",
    "cohort": "the folder opens as a cohort",
}
"""What is checked, by the name that a finding bears."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
      severity: error, warning or note.
      check: one of `CHECKS`.
      message: what was found, and what was expected.
      advice: what to do about it.
      cases: ids of the cases it is about, in the order of the cohort.
      source: image, mask or table that it is about; "" if none.
      column: column of the table that it is about; "" if none.
    """

    severity: Severity
    check: str
    message: str
    advice: str
    cases: tuple[str, ...] = ()
    source: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        if self.severity not in get_args(Severity) or self.check not in CHECKS:
            raise ValueError(
                f"finding of severity {self.severity!r} and check {self.check!r}; expected one of "
                f"{', '.join(get_args(Severity))} and one of {', '.join(CHECKS)}."
            )

    @property
    def where(self) -> str:
        """The source or column, for a table."""
        return self.source or self.column


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings about a cohort, worst first.

    Attributes:
      name: of the cohort.
      findings: errors, then warnings, then notes.
      facts: what was looked at: numbers of cases and patients, classes, and a summary of every source and column.
      duplicates: groups of cases that hold the same image or nearly so, for `groups` of the splits and `check_leakage`.
    """

    name: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    duplicates: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        findings: Iterable[Finding],
        facts: Mapping[str, Any],
        duplicates: Sequence[Sequence[str]] = (),
    ) -> "Report":
        """Report with the findings put in order: by severity, then as `CHECKS` lists them, most cases first."""
        severities, checks = list(get_args(Severity)), list(CHECKS)
        ordered = sorted(
            findings,
            key=lambda one: (severities.index(one.severity), checks.index(one.check), -len(one.cases)),
        )
        return cls(name, tuple(ordered), facts, tuple(tuple(group) for group in duplicates))

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of every severity.

        Example:
          >>> Report.of("demo", [Finding("note", "label", "No label.", "Name one.")], {}).counts
          {'error': 0, 'warning': 0, 'note': 1}
        """
        return {word: sum(one.severity == word for one in self.findings) for word in get_args(Severity)}

    def about(self, check: str) -> tuple[Finding, ...]:
        """Findings of one check."""
        if check not in CHECKS:
            raise ValueError(f"no check {check!r}; expected one of {', '.join(CHECKS)}.")
        return tuple(one for one in self.findings if one.check == check)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {
            "name": self.name,
            "counts": self.counts,
            "findings": [dataclasses.asdict(one) | {"cases": list(one.cases)} for one in self.findings],
            "duplicates": [list(group) for group in self.duplicates],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Report":
        """The report that `to_dict` wrote.

        Raises:
          ValueError: a key is missing or unknown, or a finding is of no known severity or check.
        """
        try:
            rows: Any = content["findings"]
            made: list[dict[str, Any]] = [{**row, "cases": tuple(row["cases"])} for row in rows]
            findings = tuple(Finding(**row) for row in made)
            groups = tuple(tuple(group) for group in content["duplicates"])
            return cls(content["name"], findings, dict(content["facts"]), groups)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"no integrity report ({type(error).__name__}: {error}); expected the integrity.json of "
                "`fusion-jax cohort check`."
            ) from None
