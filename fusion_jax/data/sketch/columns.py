"""What the columns of a table are for, as far as names and cells tell."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_jax.data.cohort import Role
from fusion_jax.data.readers import READERS
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Column", "Ids", "check_named", "find_ids", "look_at_columns"]

CASE_NAMES = (
    ("case", "case_id", "caseid"),
    ("image_id", "study_id", "scan_id", "exam_id", "examination_id", "series_id", "stay_id", "record_id"),
    ("patient", "patient_id", "subject", "subject_id", "person_id", "participant_id", "mrn"),
    ("id", "pid", "index", "number", "nr"),
)
"""Names of the column with the case, from the finest unit to the coarsest."""

PATIENT = re.compile(r"(patient|subject|person|participant)(_?(id|ids|no|nr|num|number|code|key|uid))?|mrn|pid")
SITE = re.compile(r"(site|hospital|cent(er|re)|institution|clinic)(_?(id|name|no|nr|number|code))?")
GROUP = re.compile(r"(scanner|manufacturer|vendor|device|scanner_model|scanner_type|field_strength|kernel)(_name|_id)?")
ID_LIKE = re.compile(r"(.*_)?(ids?|uid|uuid|mrn|pid|accession(_number|_no)?|key|index|row|serial)")


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSONAL = _word_set(
    "name names surname forename firstname lastname initials address street city phone telephone mobile email zip "
    "postcode postal ssn insurance dob birth birthday birthdate mrn doctor physician radiologist reader"
)
OUTCOME = _word_set(
    "outcome outcomes death dead died dies die deceased alive vital mortality survival survived survivor surviving os "
    "pfs dfs rfs ttp efs mfs ttr event events censor censored censoring status recurrence recurred recur recurrences "
    "relapse relapsed progress progressed progression metastasis metastases metastatic mets response responder recist "
    "mrecist easl followup follow diagnosis diagnoses diagnosed pathology pathological histology malignant malignancy "
    "benign label labels class target truth finding findings treatment therapy lastfollowup discharge readmission "
    "expire expired fu complication complications endpoint"
)
BEFORE = _word_set("prior previous history baseline family pre preoperative preop performance marital smoking")
"""What was before the image is no outcome, whatever else the name says: performance status, family history."""

BOOKKEEPING = _word_set("cohort fold split train training validation test testing subset partition included excluded")

UNITS = {
    "years": ("years", "year", "yrs", "yr"),
    "months": ("months", "month"),
    "weeks": ("weeks", "week"),
    "days": ("days", "day"),
    "hours": ("hours", "hour"),
    "mm": ("mm",),
    "cm": ("cm",),
    "ml": ("ml",),
    "kg": ("kg",),
    "g": ("gram", "grams"),
    "mg": ("mg",),
    "HU": ("hu",),
    "SUV": ("suv",),
    "mmHg": ("mmhg",),
    "beats/min": ("bpm",),
    "%": ("percent", "pct", "percentage"),
    "°C": ("celsius", "degc"),
    "°F": ("fahrenheit", "degf"),
}
COMPOUND = re.compile(r"_((?:[munµ]?(?:g|mol|l|u|iu)|iu|kg)_(?:d?l|ml|m2|h))$")
UNIT_OF = {word: unit for unit, words in UNITS.items() for word in words}

FEW_LEVELS = 20
MOST_CLASSES = 20
LARGEST_CODE = 10
DATE = re.compile(r"\s*(\d{4}-\d{2}-\d{2}([T ].*)?|\d{4}/\d{1,2}/\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2}))\s*")
PATH = re.compile(
    r".*(" + "|".join(re.escape(s) for one in READERS.values() for s in one.suffixes) + ")", re.IGNORECASE
)


class Ids(NamedTuple):
    """Columns with the ids.

    Attributes:
      case, patient, site: names of columns; `site` is None where there is none.
      reasons: key to why that column.
    """

    case: str
    patient: str
    site: str | None
    reasons: Mapping[str, str]


class Column(NamedTuple):
    """A column with its role and why.

    Attributes:
      name: of the column.
      role: proposed.
      reason: for the role.
      unit: that the name says; "" if it says none.
      needs_unit: numbers of which nobody knows the unit.
      may_be_label: a few classes, or an outcome by its name.
      to_mend: numbers but for the way some cells are written.
      tells: label that it tells without error.
    """

    name: str
    role: Role
    reason: str
    unit: str = ""
    needs_unit: bool = False
    may_be_label: bool = False
    to_mend: bool = False
    tells: str = ""


def find_ids(
    written: "pandas.DataFrame",
    *,
    where: str,
    case: str | None = None,
    patient: str | None = None,
    site: str | None = None,
    matched: Callable[[Sequence[str]], int] | None = None,
) -> Ids:
    """Columns with case, patient and site. What is named is taken; the rest goes by name and cells.

    The case column has a different id in every row and a name like an id. Where several do, the one whose ids most
    image files are named after is taken, else the finest unit by its name. Nothing is guessed beyond that.

    Args:
      written: table with all cells as text.
      where: the table, for messages.
      case, patient, site: columns that are known.
      matched: from ids to how many image files carry one.

    Raises:
      ValueError: a named column is not there or not unique, or there is none or no single one to take; the message
        lists those that come into question and the option to name one.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"study_id": ["a", "b"], "patient_id": ["p", "p"], "hospital": ["x", "y"]})
      >>> find_ids(table, where="cases.csv")[:3]
      ('study_id', 'patient_id', 'hospital')
    """
    for option, column in (("--case", case), ("--patient", patient), ("--site", site)):
        if column is not None:
            check_named(column, written.columns, option=option, where=where)
    reasons = {}
    if case is None:
        case, reasons["case"] = _case_column(written, where, matched)
    else:
        reasons["case"] = "named"
        _check_unique(written, where, case)
    if patient is None:
        patient, reasons["patient"] = _patient_column(written, where, case)
    else:
        reasons["patient"] = "named"
    if site is None:
        cells: Any = written
        found = [name for name in cells.columns if SITE.fullmatch(_plain(name)) and cells[name].nunique() > 1]
        if len(found) == 1 and found[0] not in (case, patient):
            site, reasons["site"] = found[0], f"by its name; {cells[found[0]].nunique()} different"
        elif len(found) > 1:
            reasons["site"] = f"not written: {', '.join(found)} all look like it; name one with --site"
    else:
        reasons["site"] = "named"
    return Ids(case, patient, site, reasons)


def check_named(column: str, columns: Any, *, option: str, where: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
      ValueError: it is not there; the message has the closest name, or the first columns.
    """
    if column not in columns:
        close = difflib.get_close_matches(column, list(columns), n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {listed(columns, 15)}."
        raise ValueError(f"{where}: no column {column!r} ({option}). {hint}")


def _check_unique(written: Any, where: str, case: str) -> None:
    cells = written[case]
    if cells.isna().any():
        raise ValueError(
            f"{where}: column {case!r} is empty in row {int(cells.isna().to_numpy().argmax()) + 2}; expected an id for "
            "every case."
        )
    if not cells.is_unique:
        twice = cells[cells.duplicated()].iloc[0]
        raise ValueError(
            f"{where}: {case} {twice!r} stands in several rows ({cells.nunique()} different in {len(cells)} rows); "
            "expected one row a case. Name another column with --case."
        )


def _case_column(written: Any, where: str, matched: Callable[[Sequence[str]], int] | None) -> tuple[str, str]:
    unique = [name for name in written.columns if written[name].notna().all() and written[name].is_unique]
    tiers = [[name for name in unique if _plain(name) in names] for names in CASE_NAMES]
    tiers.append([name for name in unique if ID_LIKE.fullmatch(_plain(name)) and not any(name in t for t in tiers)])
    found = [name for tier in tiers for name in tier]
    if not found:
        ids = [name for name in written.columns if ID_LIKE.fullmatch(_plain(name)) or PATIENT.fullmatch(_plain(name))]
        seen = ", ".join(f"{name} ({written[name].nunique()} different in {len(written)} rows)" for name in ids)
        raise ValueError(
            f"{where}: no column looks like the case: an id in its name and a different one in every row"
            + (f"; found {seen}" if seen else "")
            + (f". Different in every row: {', '.join(unique[:10])}" if unique else "")
            + ". Name it with --case COLUMN, or give every case one row."
        )
    if matched is not None and len(found) > 1:
        counts = {name: matched(written[name].tolist()) for name in found}
        best = max(counts.values())
        if best and list(counts.values()).count(best) == 1:
            name = max(counts, key=lambda name: counts[name])
            return name, f"different in every row, and {best} files are named after it"
    first = next(tier for tier in tiers if tier)
    if len(first) > 1:
        raise ValueError(f"{where}: {', '.join(first)} may all be the case. Name one with --case COLUMN.")
    return first[0], "by its name; different in every row"


def _patient_column(written: Any, where: str, case: str) -> tuple[str, str]:
    found = [name for name in written.columns if PATIENT.fullmatch(_plain(name))]
    if len(found) > 1 and case not in found:
        raise ValueError(f"{where}: {', '.join(found)} may all be the patient. Name one with --patient COLUMN.")
    if not found:
        return case, "no column looks like the patient: every case counts as a patient of its own. CHECK THIS"
    name = case if case in found else found[0]
    gaps = int(written[name].isna().sum())
    if gaps:
        raise ValueError(
            f"{where}: column {name!r} looks like the patient and is empty in {gaps} rows; expected the patient of "
            "every case, since patients must not cross splits. Fill it, or name another with --patient COLUMN."
        )
    return name, f"by its name; {written[name].nunique()} different in {len(written)} rows"


def look_at_columns(
    table: "pandas.DataFrame", written: "pandas.DataFrame", ids: Ids, *, labels: Sequence[str] = (), where: str
) -> tuple[Column, ...]:
    """Role, unit and reason of every column that is no id of case or patient.

    A column is an input only if nothing speaks against it: names of persons, identifiers, dates, free text, constants,
    what by its name is known only afterwards, and what tells the label without error are `never`. Labels are only
    those that are named.

    Args:
      table: as `read_table` gives it.
      written: the same with all cells as text.
      ids: from `find_ids`.
      labels: columns that are labels.
      where: the table, for messages.

    Raises:
      ValueError: a label is not there, is an id, or holds one class or too many.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"id": ["a", "b", "c"], "age_years": [50, 60, 70], "died": [0, 1, 1]})
      >>> ids = find_ids(table, where="cases.csv")
      >>> [(c.name, c.role, c.unit) for c in look_at_columns(table, table.astype(str), ids, where="cases.csv")]
      [('age_years', 'input', 'years'), ('died', 'never', '')]
    """
    for label in labels:
        _check_label(written, label, ids, where)
    columns = []
    for name in table.columns:
        if name in (ids.case, ids.patient):
            continue
        if name in labels:
            columns.append(Column(name, "label", f"named; {_classes(written[name])}"))
        elif name == ids.site:
            columns.append(Column(name, "group", ids.reasons["site"]))
        else:
            columns.append(_look(name, table[name], written, labels))
    return tuple(columns)


def _check_label(written: Any, label: str, ids: Ids, where: str) -> None:
    check_named(label, written.columns, option="--label", where=where)
    if label in (ids.case, ids.patient, ids.site):
        raise ValueError(f"{where}: column {label!r} (--label) is an id; expected a column with classes.")
    classes = written[label].nunique()
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"{where}: column {label!r} (--label) holds {classes} different values; expected 2 to {MOST_CLASSES} "
            "classes. Cut numbers at a threshold with [[derive]] in cohort.toml."
        )


def _look(name: str, cells: Any, written: Any, labels: Sequence[str]) -> Column:
    import pandas as pd

    words = _words(name)
    known = written[name].dropna()
    levels, n = known.nunique(), len(known)
    is_number = bool(pd.api.types.is_numeric_dtype(cells)) and not pd.api.types.is_bool_dtype(cells)
    numbers: Any = cells.dropna() if is_number else None
    coded = is_number and _is_coded(numbers)
    # Of a column with gaps, 1.0 is the code 1.
    codes = numbers.map("{:g}".format) if coded and levels <= 6 else None
    shown = _shown(cells, known, is_number) if codes is None else _classes(codes) + _missing(cells, known)
    against = _against(name, words, cells, known, is_number)
    odd = "" if against or is_number else _odd_numbers(known)
    few = 2 <= levels <= MOST_CLASSES and levels < max(n, 3)
    outcome = _is_outcome(words)
    if odd:
        return Column(name, "never", odd, to_mend=True)
    if not against and not is_number and (levels > FEW_LEVELS or (n >= 10 and levels > n / 2)):
        against = f"free text or an identifier; {levels} different in {n} rows"
    if against:
        return Column(name, "never", against)
    if outcome:
        reason = f"by its name known only afterwards ({outcome}); {shown}"
        return Column(name, "never", reason, may_be_label=few)
    for label in labels:
        told = _tells(written[name], written[label])
        if told:
            return Column(name, "never", f"{told} of {label}", tells=label)
    if GROUP.fullmatch(_plain(name)) and few:
        return Column(name, "group", f"by its name; {shown}")
    unit = _unit(words, name) if is_number else ""
    return Column(name, "input", shown, unit, is_number and not unit and not coded, may_be_label=levels == 2)


def _is_coded(numbers: Any) -> bool:
    """Whether numbers are codes or grades: whole, and small or few for so many cases."""
    levels = numbers.nunique()
    if not len(numbers) or not (numbers % 1 == 0).all():
        return False
    return bool(numbers.between(0, LARGEST_CODE).all()) or (levels <= FEW_LEVELS and levels <= len(numbers) / 3)


def _against(name: str, words: Sequence[str], cells: Any, known: Any, is_number: bool) -> str:
    """Why a model must not read a column, whatever it is about; "" if nothing speaks against it."""
    import pandas as pd

    plain, levels, n = _plain(name), known.nunique(), len(known)
    if n == 0:
        return "empty"
    if levels == 1:
        return f"always {_brief(known.iloc[0])}" + (f" where not empty ({n} of {len(cells)})" if n < len(cells) else "")
    if ID_LIKE.fullmatch(plain) or PATIENT.fullmatch(plain):
        return f"an id by its name; {levels} different"
    if BOOKKEEPING & set(words):
        return "of the study and not of the patient, by its name"
    if PERSONAL & set(words):
        return "may tell who somebody is, by its name"
    if known.map(lambda cell: bool(PATH.fullmatch(cell))).mean() > 0.9:
        return "paths of files"
    if pd.api.types.is_datetime64_any_dtype(cells) or (
        not is_number and known.map(lambda cell: bool(DATE.fullmatch(cell))).mean() > 0.9
    ):
        return "dates"
    numbers: Any = cells.dropna()
    # MIMIC shifts its dates to between 2100 and 2300.
    if "year" in words and is_number and numbers.between(1900, 2300).all():
        return "calendar years"
    if is_number and n >= 20 and levels == n and (numbers.diff().dropna() == 1).all():
        return "counts the rows"
    return ""


def _odd_numbers(known: Any) -> str:
    """Why cells that are mostly numbers are none; "" if they are something else."""
    import pandas as pd

    def is_number(cells: Any) -> Any:
        return pd.Series(pd.to_numeric(cells, errors="coerce"), index=cells.index).notna()

    plain, pointed = is_number(known), is_number(known.str.replace(",", ".", regex=False))
    if pointed.mean() > 0.5 and (pointed & ~plain).any():
        odd, what, mend = known[pointed & ~plain], "numbers with a comma", "write them with a point"
    elif plain.mean() > 0.5:
        odd, what, mend = known[~plain], "numbers mixed with text", "fix them"
    else:
        return ""
    if not len(odd):
        return ""
    return (
        f"{what} in {len(odd)} cells, first {_brief(odd.iloc[0])} in row {odd.index[0] + 2}: {mend}, then make it an "
        "input"
    )


def _is_outcome(words: Sequence[str]) -> str:
    if BEFORE & set(words):
        return ""
    # A time of nothing else, in whatever unit, is that of the follow-up; an echo time or an age is not.
    if set(words) - UNIT_OF.keys() in ({"time"}, {"duration"}):
        return "a time"
    return next((word for word in words if word in OUTCOME), "")


def _tells(cells: Any, label: Any) -> str:
    """How a column tells the class, where it does so without error and too often for chance; "" otherwise."""
    empty = cells.isna()
    for name, inside in label.groupby(label).groups.items():
        # JSRT: the size of the nodule is empty exactly where there is none.
        if len(inside) > 1 and empty.any() and set(inside) == set(label.index[empty & label.notna()]):
            return f"empty exactly in the class {_brief(name)}"
    both = ~empty & label.notna()
    cells, label = cells[both], label[both]
    levels = cells.nunique()
    if levels < 2 or label.nunique() < 2 or levels > len(cells) / 3:
        return ""
    return f"each of its {levels} levels stands with one class" if (label.groupby(cells).nunique() == 1).all() else ""


def _unit(words: list[str], name: str) -> str:
    bracketed = re.search(r"[(\[]([^)\]]+)[)\]]\s*$", name)
    if bracketed and "=" not in bracketed[1]:  # `sex (1 = male)` explains codes
        return UNIT_OF.get(bracketed[1].strip().lower(), bracketed[1].strip())
    if "per" in words:
        return ""
    compound = COMPOUND.search("_".join(words))
    if compound:
        return compound[1].replace("_", "/")
    return next((UNIT_OF[word] for word in (words[-1], words[0]) if word in UNIT_OF), "")


def _shown(cells: Any, known: Any, is_number: bool) -> str:
    missing = _missing(cells, known)
    if is_number:
        numbers = cells.dropna()
        return f"{numbers.min():g} to {numbers.max():g}{missing}"
    return _classes(known) + missing


def _missing(cells: Any, known: Any) -> str:
    return f", {len(cells) - len(known)} missing" if len(known) < len(cells) else ""


def _classes(known: Any) -> str:
    counts = known.value_counts()
    shown = ", ".join(f"{_brief(level)} ({count})" for level, count in list(counts.items())[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _brief(text: Any) -> str:
    text = str(text)
    return repr(text if len(text) <= 24 else text[:23] + "…")


def _plain(name: str) -> str:
    return "_".join(_words(name))


def _words(name: str) -> list[str]:
    """Words of a column's name: `ageAtExam`, `Age at exam` and `age_at_exam` are the same."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", spaced.lower()) if word]
