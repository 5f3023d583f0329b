"""The series of every case by rules; what the rules leave open is listed and never guessed."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fusion_jax.data.scanner_export.inventory import Inventory, Series
from fusion_jax.data.scanner_export.rules import IdMap, Rule, Subject
from fusion_jax.wording import listed

__all__ = ["Choice", "Open", "Selection", "select_series"]

TELLING = (
    "study_date",
    "accession",
    "series_number",
    "description",
    "kernel",
    "phase_seconds",
    "slices",
    "rows",
    "columns",
    "spacing",
    "regions",
    "folders",
)
"""What tells series of one patient apart, in the order in which a message says it."""

SHOWN = 5


class Choice(NamedTuple):
    """A series that was chosen.

    Attributes:
      case_id, source: for whom and what.
      series: from the inventory.
      path: below the folder of the export: the folder of its slices, or its file if there is one alone.
      region: name of the region; None of images.
    """

    case_id: str
    source: str
    series: Series
    path: str
    region: str | None = None


class Open(NamedTuple):
    """A source of a case that the rules leave without a series or with several.

    Attributes:
      case_id, source: for whom and what.
      reason: what was looked for and found.
      candidates: series that are left; none if unmatched.
      required: of the rule.
    """

    case_id: str
    source: str
    reason: str
    candidates: tuple[Series, ...] = ()
    required: bool = True


class Selection(NamedTuple):
    """Every source of every case, in one of three lists.

    Attributes:
      chosen: the rules left one series.
      unmatched: the rules left none.
      ambiguous: the rules left several.
    """

    chosen: tuple[Choice, ...]
    unmatched: tuple[Open, ...]
    ambiguous: tuple[Open, ...]


def select_series(
    inventory: Inventory,
    cases: Sequence[str],
    ids: IdMap,
    rules: Sequence[Rule],
    dates: Mapping[str, Mapping[str, dt.date | None]],
) -> Selection:
    """The series of every case by rules.

    Rules cut the series of the patient (or of the study that the map names) down, in the order modality, description,
    exclusion, kernel, slices, phase, distance in days, nearest date. One that is left is chosen. Regions must have been
    drawn on the chosen series of `of`: it is named among their references or, if they name none, shares their frame of
    reference.

    Args:
      inventory: of the export.
      cases: ids of the study's table.
      ids: case to patient of the export.
      rules: one a source; images before the regions drawn on them.
      dates: column to case to date, for rules with `nearest`.

    Returns:
      What was chosen and what is open, with reasons.

    Raises:
      ValueError: a rule names a column that `dates` lacks.

    Example:
      >>> from pathlib import Path
      >>> scan = Series("P1", "1.1", "2020-01-31", "", "1.2", "3", "CT", "portal", "B30", 70.0, 2, 512, 512,
      ...               (3.0, 0.7, 0.7), "1.9", (), (), ("a/1.dcm", "a/2.dcm"))
      >>> export = Inventory(Path("export"), (scan, scan._replace(series_uid="1.3", kernel="B70")), ())
      >>> found = select_series(export, ["c1"], {"c1": Subject("P1")}, [Rule("ct", "CT")], {})
      >>> found.ambiguous[0].reason
      "2 series left; they differ in kernel ('B30', 'B70')"
      >>> found = select_series(export, ["c1"], {"c1": Subject("P1")}, [Rule("ct", "CT", kernel="B30")], {})
      >>> found.chosen[0].path
      'a'
    """
    for rule in rules:
        if rule.nearest is not None and rule.nearest not in dates:
            raise ValueError(
                f"series.{rule.source}: nearest is {rule.nearest!r}; expected a column of the table with dates, of "
                f"which there are {', '.join(dates) or 'none'}."
            )
    by_patient: dict[str, list[Series]] = {}
    for one in inventory.series:
        by_patient.setdefault(one.patient_id, []).append(one)
    chosen: dict[tuple[str, str], Choice] = {}
    unmatched, ambiguous = [], []
    for case in cases:
        for rule in rules:
            found = _select(case, rule, by_patient, ids, dates, chosen)
            if isinstance(found, Choice):
                chosen[case, rule.source] = found
            else:
                (ambiguous if found.candidates else unmatched).append(found)
    return Selection(tuple(chosen.values()), tuple(unmatched), tuple(ambiguous))


def _select(
    case: str,
    rule: Rule,
    by_patient: Mapping[str, Sequence[Series]],
    ids: IdMap,
    dates: Mapping[str, Mapping[str, dt.date | None]],
    chosen: Mapping[tuple[str, str], Choice],
) -> Choice | Open:
    def nothing(reason: str) -> Open:
        return Open(case, rule.source, reason, required=rule.required)

    if case not in ids:
        return nothing("the id map does not name the case")
    subject = ids[case]
    if subject.patient_id not in by_patient:
        return nothing(f"the export has no patient {subject.patient_id!r}")
    left = [one for one in by_patient[subject.patient_id] if _of_study(one, subject)]
    if not left:
        return nothing(f"patient {subject.patient_id!r} has no study{_study_words(subject)}")
    drawn_on = None
    if rule.of is not None:
        if (case, rule.of) not in chosen:
            return nothing(f"no series was chosen for {rule.of}, which it must have been drawn on")
        drawn_on = chosen[case, rule.of].series
    reference = dates[rule.nearest].get(case) if rule.nearest is not None else None
    if rule.nearest is not None and reference is None:
        return nothing(f"no date in column {rule.nearest!r}")
    trail = [f"{_series(len(left))} of patient {subject.patient_id!r}{_study_words(subject)}"]
    for words, passes, name in _steps(rule, reference, drawn_on):
        before, left = left, [one for one in left if passes(one)]
        trail.append(f"{len(left)} {words}")
        if not left:
            return nothing(", ".join(trail) + _instead(before, name))
    if reference is not None:
        least = min(_days(one, reference) for one in left)
        left = [one for one in left if _days(one, reference) == least]
    if len(left) > 1:
        reason = f"{len(left)} series left; {_difference(left)}"
        return Open(case, rule.source, reason, tuple(left), rule.required)
    return _choice(case, rule, left[0])


def _of_study(series: Series, subject: Subject) -> bool:
    return subject.study_date in (None, series.study_date) and subject.accession in (None, series.accession)


def _study_words(subject: Subject) -> str:
    date = "" if subject.study_date is None else f" of {subject.study_date}"
    return date + ("" if subject.accession is None else f" with accession number {subject.accession}")


def _series(count: int) -> str:
    return f"{count} series"


def _steps(rule: Rule, reference: dt.date | None, drawn_on: Series | None):
    """What a series has to pass, in order, with the words for it and the attribute that it looks at."""
    yield f"with modality {rule.modality}", lambda one: one.modality == rule.modality, "modality"
    if drawn_on is not None:
        yield f"drawn on the series of {rule.of}", lambda one: _is_drawn_on(one, drawn_on), ""
        if rule.region is not None:
            yield f"with a region {rule.region!r}", lambda one: rule.region in one.regions, "regions"
        else:
            yield f"with a region like {rule.pattern!r}", lambda one: bool(_regions(rule, one)), "regions"
    if rule.description is not None:
        text = rule.description
        yield f"with a description like {text!r}", lambda one: bool(re.search(text, one.description)), "description"
    if rule.exclude is not None:
        other = rule.exclude
        words = f"with a description not like {other!r}"
        yield words, lambda one: not re.search(other, one.description), "description"
    if rule.kernel is not None:
        kernel = rule.kernel
        yield f"with a kernel like {kernel!r}", lambda one: bool(re.search(kernel, one.kernel)), "kernel"
    if rule.min_slices is not None or rule.max_slices is not None:
        low, high = rule.min_slices or 0, rule.max_slices if rule.max_slices is not None else float("inf")
        yield f"with {low:g} to {high:g} slices", lambda one: low <= one.slices <= high, "slices"
    if rule.phase_seconds is not None:
        first, last = rule.phase_seconds
        yield "with the times of contrast agent and acquisition", lambda one: one.phase_seconds is not None, ""
        words = f"{first:g} to {last:g} s after the contrast agent"
        yield words, lambda one: first <= one.phase_seconds <= last, "phase_seconds"
    if reference is not None:
        most = rule.within_days
        yield "with a study date", lambda one: bool(one.study_date), ""
        if most is not None:
            words = f"within {most:g} days of {rule.nearest} ({reference})"
            yield words, lambda one: _days(one, reference) <= most, "study_date"


def _is_drawn_on(regions: Series, image: Series) -> bool:
    if regions.references:
        return image.series_uid in regions.references
    return bool(regions.frame_of_reference) and regions.frame_of_reference == image.frame_of_reference


def _regions(rule: Rule, series: Series) -> list[str]:
    if rule.region is not None:
        return [name for name in series.regions if name == rule.region]
    return [name for name in series.regions if re.search(rule.pattern or "", name, re.IGNORECASE)]


def _days(series: Series, reference: dt.date) -> int:
    return abs((dt.date.fromisoformat(series.study_date) - reference).days)


def _instead(series: Sequence[Series], name: str) -> str:
    """What the series have that did not pass, so that the rule can be corrected."""
    if not name:
        return ""
    values = [getattr(one, name) for one in series]
    found = [value for of_one in values for value in (of_one if isinstance(of_one, tuple) else (of_one,))]
    shown = list(dict.fromkeys(_word(value) for value in found))
    return f"; found {listed(shown, SHOWN) or 'none'}"


def _word(value: object) -> str:
    """As it stands in a message: numbers and dates plainly, texts in quotes, several things as one text."""
    if isinstance(value, tuple):
        sizes = all(isinstance(item, float) for item in value)
        return repr(" x ".join(f"{item:g}" for item in value) if sizes else ", ".join(map(str, value)))
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _difference(left: Sequence[Series]) -> str:
    """What tells the series apart."""
    told = []
    for name in TELLING:
        values = [getattr(one, name) for one in left]
        if len(set(values)) > 1:
            shown = ", ".join(_word(value) for value in dict.fromkeys(values))
            told.append(f"{name.replace('_', ' ')} ({shown})")
    return f"they differ in {'; '.join(told)}" if told else "nothing in their headers tells them apart"


def _choice(case: str, rule: Rule, series: Series) -> Choice | Open:
    named: list[str] = [] if rule.of is None else _regions(rule, series)
    if len(named) > 1:
        reason = f"{len(named)} regions like {rule.region or rule.pattern!r}: {', '.join(map(repr, named))}"
        return Open(case, rule.source, reason, (series,), rule.required)
    region = next(iter(named), None)
    if len(series.files) == 1:
        return Choice(case, rule.source, series, series.files[0], region)
    if len(series.files) > series.slices:
        reason = f"{len(series.files)} files for {series.slices} slices: some were exported twice. Remove the copies"
        return Open(case, rule.source, reason, (series,), rule.required)
    if len(series.files) < series.slices:
        reason = f"{len(series.files)} files of several frames each; expected one file a slice, or one file alone"
        return Open(case, rule.source, reason, (series,), rule.required)
    if len(series.folders) > 1:
        reason = f"its slices lie in {len(series.folders)} folders ({', '.join(series.folders)}). Put them into one"
        return Open(case, rule.source, reason, (series,), rule.required)
    return Choice(case, rule.source, series, next(iter(series.folders)), region)
