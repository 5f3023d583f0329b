"""Who is in a cohort, and how it came to that: measurements near an index date, derived columns, outcomes, rules.

The definition is part of `cohort.toml`:

```toml
[index]
date = "ct_date"                      # the day that windows and ages refer to

[[measure]]                           # the value of another table that was taken nearest to the index date
name = "hvpg"                         # new columns: hvpg, and hvpg_days from the index date to the measurement
file = "labs.csv"
by = "patient_id"
date = "date"
value = "value"
where = "item == 'HVPG'"
before_days = 14
after_days = 14
tie = "earlier"                       # or "later", "mean", "error"
unit = "mmHg"

[[derive]]
name = "apri"
formula = "100 * (ast / ast_upper) / platelets"

[[horizon]]                           # 1 if the event came by then, 0 if followed up to then without it
name = "recurrence_1y"
time = "days_to_recurrence"           # days to the event or, where there was none, to the last follow-up
event = "recurred"
days = 365

[[include]]
rule = "age >= 18"
reason = "younger than 18"            # why those are dropped who do not meet the rule
missing = "drop"                      # or "keep", "error": what happens to cases that cannot be decided

[[exclude]]
rule = "prior_tips"
reason = "prior TIPS"
```

Columns are made first: measurements, then derived columns, then outcomes at a horizon, each in the order written. Then
cases are dropped: by `include` and `exclude`, whichever of the two stands first in the file, each list in its order,
and last who is censored before a horizon, so that this loss is counted among the eligible. `Flow` has all counts and
the ids of everyone dropped. Expressions are those of `fusion_jax.data.expressions`.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_type_hints

import numpy as np

from fusion_jax.data.expressions import Expression, as_dates, close_names, column_values, listed, parse

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "Defined",
    "Definition",
    "Derive",
    "Dropped",
    "Flow",
    "Horizon",
    "Measure",
    "Rule",
    "Step",
    "apply_definition",
    "check_roles",
    "parse_definition",
]

logger = logging.getLogger(__name__)

Tie = Literal["earlier", "later", "mean", "error"]
Undecided = Literal["drop", "keep", "error"]


@dataclass(frozen=True)
class Measure:
    """The value of another table that was taken nearest to the index date.

    Attributes:
      name: of the new column; a second one, `<name>_days`, holds the days from the index date to the measurement.
      file: the other table, one row a measurement.
      by: column with the id of the patient or case, in both tables.
      date, value: columns of `file`.
      before_days, after_days: ends of the window in calendar days, both inside it.
      where: rows of `file` that count, as an expression; all if empty.
      tie: what is taken of several at the same distance. Of two on one day that differ, "earlier" and "later" cannot
        choose, and it is an error.
      unit: of the value.
    """

    name: str
    file: str
    by: str
    date: str
    value: str
    before_days: int
    after_days: int
    where: str = ""
    tie: Tie = "earlier"
    unit: str = ""


@dataclass(frozen=True)
class Derive:
    """A column computed from others; a condition becomes 1 and 0.

    Attributes:
      name: of the new column.
      formula: an expression over columns of the table, measurements and what was derived above.
      unit: of the result.
    """

    name: str
    formula: str
    unit: str = ""


@dataclass(frozen=True)
class Horizon:
    """Whether an event came by a day: 1 if it did, 0 if the patient was followed up to that day without it.

    Who was censored earlier has no outcome and is dropped. An event on the very day counts. Competing events, such as
    death before recurrence, are censoring here, unless `event` counts them.

    Attributes:
      name: of the new column.
      time: column with the days to the event, or to the last follow-up where there was none.
      event: column, 1 where the event was seen and 0 where not.
      days: the horizon.
    """

    name: str
    time: str
    event: str
    days: float


@dataclass(frozen=True)
class Rule:
    """A condition that cases must meet, or must not.

    Attributes:
      kind: `include` keeps cases for which the rule is true, `exclude` drops them.
      rule: an expression.
      reason: why somebody is dropped by it; the rule itself unless given.
      missing: what happens to cases for which a missing value leaves the rule undecided. Dropped ones have a count of
        their own.
      label: what those are called who are left; not needed.
    """

    kind: Literal["include", "exclude"]
    rule: str
    reason: str = ""
    missing: Undecided = "drop"
    label: str = ""


@dataclass(frozen=True)
class Definition:
    """What `cohort.toml` says about who is in; see the top of this module.

    Attributes:
      index_date: column with the index date.
      measures, derives, horizons, rules: in the order they are applied.
      where: the file, for messages.
    """

    index_date: str | None = None
    measures: tuple[Measure, ...] = ()
    derives: tuple[Derive, ...] = ()
    horizons: tuple[Horizon, ...] = ()
    rules: tuple[Rule, ...] = ()
    where: str = "cohort.toml"

    @property
    def units(self) -> dict[str, str]:
        """Units of the new columns, where stated; days for the distance of a measurement."""
        stated = {part.name: part.unit for part in (*self.measures, *self.derives) if part.unit}
        return stated | {f"{measure.name}_days": "days" for measure in self.measures}


class Dropped(NamedTuple):
    """Cases that one step leaves out for one reason; there may be none.

    Attributes:
      reason: in words.
      case_id: all of them.
    """

    reason: str
    case_id: tuple[str, ...]


class Step(NamedTuple):
    """What is left after a step.

    Attributes:
      label: what those are called who are left; may be empty.
      cases, patients: how many are left.
      dropped: who left, by reason; nobody twice.
      kept_undecided: cases that stayed although the rule could not be decided for them, because it says so.
    """

    label: str
    cases: int
    patients: int
    dropped: tuple[Dropped, ...] = ()
    kept_undecided: tuple[str, ...] = ()


class Flow(NamedTuple):
    """From everybody in the table to the cohort.

    Attributes:
      steps: the first is the table before anybody is dropped.
      notes: what else happened to the data: measurements that were not found or left out, formulas without a result.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, with the number of cases beside every list of ids.

        Example:
          >>> Flow((Step("screened", 2, 2), Step("", 1, 1, (Dropped("too young", ("c2",)),)))).to_dict()["steps"][1]
          {'label': '', 'cases': 1, 'patients': 1, 'dropped': [{'reason': 'too young', 'n': 1, 'case_id': ['c2']}],
           'kept_undecided': []}
        """
        steps = [
            {
                "label": step.label,
                "cases": step.cases,
                "patients": step.patients,
                "dropped": [
                    {"reason": d.reason, "n": len(d.case_id), "case_id": list(d.case_id)} for d in step.dropped
                ],
                "kept_undecided": list(step.kept_undecided),
            }
            for step in self.steps
        ]
        return {"steps": steps, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Flow":
        """The flow that `to_dict` wrote.

        Example:
          >>> flow = Flow((Step("screened", 2, 2), Step("", 1, 1, (Dropped("too young", ("c2",)),))))
          >>> Flow.from_dict(flow.to_dict()) == flow
          True
        """
        steps = tuple(
            Step(
                step["label"],
                step["cases"],
                step["patients"],
                tuple(Dropped(dropped["reason"], tuple(dropped["case_id"])) for dropped in step["dropped"]),
                tuple(step["kept_undecided"]),
            )
            for step in content["steps"]
        )
        return cls(steps, tuple(content["notes"]))

    def to_text(self) -> str:
        """A few lines for a terminal.

        Example:
          >>> print(Flow((Step("screened", 2, 2), Step("", 1, 1, (Dropped("too young", ("c2",)),)))).to_text())
          2 patients: screened
            − 1: too young
          1 patient
        """
        lines = []
        for step in self.steps:
            lines += [f"  − {len(dropped.case_id):,}: {dropped.reason}" for dropped in step.dropped]
            lines.append(self.size(step) + (f": {step.label}" if step.label else ""))
            if step.kept_undecided:
                lines.append(f"  of them {len(step.kept_undecided):,} kept although this could not be decided")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def to_mermaid(self) -> str:
        """A Mermaid flowchart, which many sites draw from its text.

        Example:
          >>> print(Flow((Step("screened", 2, 2), Step("", 1, 1, (Dropped("too young", ("c2",)),)))).to_mermaid())
          flowchart TD
            s0["screened<br>2 patients"]
            s0 --> s1["1 patient"]
            s0 --> d1["1: too young"]
        """
        lines = ["flowchart TD"]
        for number, step in enumerate(self.steps):
            box = f's{number}["{_quoted(step.label) + "<br>" if step.label else ""}{self.size(step)}"]'
            lines.append(f"  {box}" if number == 0 else f"  s{number - 1} --> {box}")
            if step.dropped:
                reasons = "<br>".join(f"{len(d.case_id):,}: {_quoted(d.reason)}" for d in step.dropped)
                lines.append(f'  s{max(number - 1, 0)} --> d{number}["{reasons}"]')
        return "\n".join(lines)

    def size(self, step: Step) -> str:
        """How many are left after a step: patients, and cases where a patient may have several.

        Example:
          >>> flow = Flow((Step("readings", 3052, 2199),))
          >>> flow.size(flow.steps[0])
          '3,052 cases of 2,199 patients'
        """
        patients = f"{step.patients:,} patient{'' if step.patients == 1 else 's'}"
        if all(one.cases == one.patients for one in self.steps):
            return patients
        return f"{_cases(step.cases)} of {patients}"


class Defined(NamedTuple):
    """A cohort's table after its definition.

    Attributes:
      table: those who are in, with the new columns.
      flow: how it came to that.
    """

    table: "pandas.DataFrame"
    flow: Flow


def parse_definition(tables: Mapping[str, Any], *, where: str = "cohort.toml") -> Definition:
    """Read the tables of a definition strictly.

    Args:
      tables: `index`, `measure`, `derive`, `horizon`, `include`, `exclude` as TOML has them, each may be absent.
      where: the file, named in messages.

    Returns:
      The definition; its expressions can be read, whether their columns exist is seen when it is applied.

    Raises:
      ValueError: an unknown or missing key, a value of the wrong kind, a name given twice, an expression that cannot
        be read; the message names the file and the entry.

    Example:
      >>> parse_definition({"include": [{"rule": "age >= 18", "reason": "younger than 18"}]}).rules[0].missing
      'drop'
    """
    known = ("index", "measure", "derive", "horizon", "include", "exclude")
    for key in tables:
        if key not in known:
            raise ValueError(f"{where}: unknown table {key!r}.{close_names(key, known)} Expected {listed(known)}.")
    index = tables.get("index", {})
    if not isinstance(index, Mapping) or set(index) - {"date"} or not isinstance(index.get("date", ""), str):
        raise ValueError(f'{where}: index is {index!r}; expected the column of the index date, date = "...".')
    rules: list[Rule] = []
    for kind in (key for key in tables if key in ("include", "exclude")):
        rules += [_entry(Rule, entry, place, kind=kind) for entry, place in _entries(tables, kind, where)]
    definition = Definition(
        index_date=index.get("date"),
        measures=tuple(_entry(Measure, entry, place) for entry, place in _entries(tables, "measure", where)),
        derives=tuple(_entry(Derive, entry, place) for entry, place in _entries(tables, "derive", where)),
        horizons=tuple(_entry(Horizon, entry, place) for entry, place in _entries(tables, "horizon", where)),
        rules=tuple(rules),
        where=where,
    )
    _check_definition(definition)
    return definition


def check_roles(definition: Definition, roles: Mapping[str, str]) -> None:
    """Refuse roles by which an outcome would reach a model through a column computed from it.

    Two rules. An input must not be computed from a column with the role label, time or event, nor from time or event of
    a horizon. A label must not be computed from inputs alone: it would hold nothing that the model does not see. So a
    measured pressure from which the label is made cannot be an input, while a response computed from the size before
    and after treatment may be predicted from the size before.

    Args:
      definition: of the cohort.
      roles: column to role; a column that is not named is `never`.

    Raises:
      ValueError: naming the columns and how one comes from the other.

    Example:
      >>> hypertension = parse_definition({"derive": [{"name": "high", "formula": "hvpg >= 5"}]})
      >>> check_roles(hypertension, {"high": "label", "age": "input"})
      >>> check_roles(hypertension, {"high": "label", "hvpg": "input"})
      Traceback (most recent call last):
      ValueError: cohort.toml: the label 'high' is computed from 'hvpg', which is an input...
    """
    parents = _parents(definition)
    outcomes = {column for column, role in roles.items() if role in ("label", "time", "event")}
    outcomes |= {column for horizon in definition.horizons for column in (horizon.name, horizon.time, horizon.event)}
    inputs = [column for column, role in roles.items() if role == "input"]
    for column in inputs:
        reached = sorted(({column} | _ancestors(column, parents)) & outcomes)
        if reached == [column]:
            raise ValueError(
                f"{definition.where}: column {column!r} has the role input, but a horizon reads or makes it: it is an "
                "outcome. Give it the role time, event, label or never."
            )
        if reached:
            raise ValueError(
                f"{definition.where}: the input {column!r} is computed from {listed(reached)}, known only with the "
                "outcome. Give it the role never, or compute it from columns that are known before."
            )
    seen = set(inputs) | {root for column in inputs for root in _ancestors(column, parents) if root not in parents}
    for column in (column for column, role in roles.items() if role == "label" and column in parents):
        roots = {root for root in _ancestors(column, parents) if root not in parents}
        if roots and (parents[column] <= seen or roots <= seen):
            raise ValueError(
                f"{definition.where}: the label {column!r} is computed from {listed(sorted(parents[column]))}, which "
                "is an input or goes into one: the model would see the answer. Give one of them the role never."
            )


def apply_definition(
    table: "pandas.DataFrame",
    definition: Definition,
    *,
    read_table: Callable[[str], "pandas.DataFrame"],
    patient: str | None = None,
) -> Defined:
    """Make the new columns, then drop who does not belong.

    Args:
      table: one row a case, indexed by case id.
      definition: as from `parse_definition`.
      read_table: gives the table of a file that a measure names.
      patient: column with the patient of every case, for the counts; by default every case is a patient.

    Returns:
      The table of those who are in, in the order they had, and the flow. Numbers are float64, conditions int64 (float64
      where one is missing).

    Raises:
      ValueError: if a column is absent or holds what it should not, if a measure finds two values and cannot choose,
        if a rule with `missing = "error"` cannot be decided, or if nobody is left.

    Example:
      >>> import pandas as pd
      >>> cases = pd.DataFrame({"age": [17.0, 40.0, None]}, index=pd.Index(["a", "b", "c"], name="case_id"))
      >>> definition = parse_definition({"include": [{"rule": "age >= 18", "reason": "younger than 18"}]})
      >>> table, flow = apply_definition(cases, definition, read_table=pd.read_csv)
      >>> print(flow.to_text())
      3 patients: in the table
        − 1: younger than 18
        − 1: not known whether younger than 18 (missing: age)
      1 patient
    """
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()]
        raise ValueError(
            f"{definition.where}: case ids {listed(twice)} stand in several rows; expected one row a case."
        )
    if patient is not None and patient not in table.columns:
        raise ValueError(
            f"{definition.where}: no column {patient!r} for the patients.{close_names(patient, table.columns)} The "
            f"table has {listed(table.columns, at_most=30)}."
        )
    _check_new_names(definition, table)
    notes: list[str] = []
    for measure in definition.measures:
        table = _measured(table, measure, definition, read_table, notes)
    for derive in definition.derives:
        table = _derived(table, derive, definition, notes)
    for horizon in definition.horizons:
        table = _followed(table, horizon, definition)
    steps = [_step("in the table", table, patient)]
    for number, rule in enumerate(definition.rules, start=1):
        table, step = _ruled(table, rule, f"{definition.where}: {rule.kind} rule {number}", patient)
        steps.append(step)
        _check_left(table, steps, definition)
    for horizon in definition.horizons:
        table, step = _uncensored(table, horizon, patient)
        steps.append(step)
        _check_left(table, steps, definition)
    return Defined(table, Flow(tuple(steps), tuple(notes)))


# Reading the definition


def _entries(tables: Mapping[str, Any], key: str, where: str) -> Iterable[tuple[Mapping[str, Any], str]]:
    entries = tables.get(key, [])
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{where}: {key} is {entries!r}; expected a list of tables, written [[{key}]].")
    for number, entry in enumerate(entries, start=1):
        name = f" {entry['name']!r}" if isinstance(entry.get("name"), str) else f" {number}"
        yield entry, f"{where}: {key}{name}"


def _entry(form: type, entry: Mapping[str, Any], place: str, **given: Any) -> Any:
    """One of the dataclasses above, from a table of the file."""
    hints = get_type_hints(form)
    expected = [part for part in fields(form) if part.name not in given]
    names = [part.name for part in expected]
    for key in entry:
        if key not in names:
            raise ValueError(
                f"{place}: unknown key {key!r}.{close_names(key, names)} Keys: {listed(names, at_most=20)}."
            )
    for part in expected:
        if part.name not in entry:
            if part.default is MISSING:
                raise ValueError(f"{place}: no {part.name!r}; expected {_kind_of_value(hints[part.name])}.")
            continue
        value, hint = entry[part.name], hints[part.name]
        allowed = get_args(hint)
        if allowed:
            fits = value in allowed
        elif hint is str:
            fits = isinstance(value, str) and (value.strip() != "" or part.default is not MISSING)
        else:
            numbers = (int, float) if hint is float else (int,)
            fits = isinstance(value, numbers) and not isinstance(value, bool) and 0 <= value < 1e6
        if not fits:
            raise ValueError(f"{place}: {part.name} is {value!r}; expected {_kind_of_value(hint)}.")
    return form(**given, **entry)


def _kind_of_value(hint: Any) -> str:
    if get_args(hint):
        return f"one of {listed(get_args(hint))}"
    if hint is str:
        return "a text"
    return "a whole number of days, 0 or more" if hint is int else "a number of days, 0 or more"


def _check_definition(definition: Definition) -> None:
    """What can be seen before there is a table."""
    if definition.measures and not definition.index_date:
        raise ValueError(
            f"{definition.where}: measure {definition.measures[0].name!r} has a window about the index date, and there "
            'is none. Add [index] with date = "the column of that date".'
        )
    names = _new_columns(definition)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{definition.where}: columns {listed(twice)} are made twice. Give each a name of its own.")
    for measure in definition.measures:
        if measure.where:
            parse(measure.where, where=f"{definition.where}: measure {measure.name!r}, where")
    for derive in definition.derives:
        parse(derive.formula, where=f"{definition.where}: derive {derive.name!r}")
    for number, rule in enumerate(definition.rules, start=1):
        parse(rule.rule, where=f"{definition.where}: {rule.kind} rule {number}")


def _new_columns(definition: Definition) -> list[str]:
    measured = [name for measure in definition.measures for name in (measure.name, f"{measure.name}_days")]
    return [*measured, *(part.name for part in (*definition.derives, *definition.horizons))]


def _check_new_names(definition: Definition, table: Any) -> None:
    taken = [name for name in _new_columns(definition) if name in table.columns or name == table.index.name]
    if taken:
        raise ValueError(
            f"{definition.where}: columns {listed(taken)} are in the table already. Give what is made another name, or "
            "take the column out of the table."
        )
    available = [*table.columns, *(name for m in definition.measures for name in (m.name, f"{m.name}_days"))]
    for derive in definition.derives:
        _parse_known(derive.formula, f"{definition.where}: derive {derive.name!r}", available, definition)
        available.append(derive.name)
    for horizon in definition.horizons:
        for key, column in (("time", horizon.time), ("event", horizon.event)):
            if column not in available:
                raise ValueError(
                    f"{definition.where}: horizon {horizon.name!r}: {key} is {column!r}, and there is no such column."
                    f"{close_names(column, available)} Columns: {listed(available, at_most=30)}."
                )
    available += [horizon.name for horizon in definition.horizons]
    for number, rule in enumerate(definition.rules, start=1):
        parse(rule.rule, where=f"{definition.where}: {rule.kind} rule {number}", columns=available)


def _parse_known(text: str, where: str, available: list[str], definition: Definition) -> Expression:
    later = [name for name in _new_columns(definition) if name not in available]
    for column in parse(text, where=where).columns:
        if column in later:
            raise ValueError(
                f"{where}: expression {text!r} reads {column!r}, which is made only further down. Columns are made in "
                "the order measure, derive, horizon, each as written; move it up."
            )
    return parse(text, where=where, columns=available)


def _parents(definition: Definition) -> dict[str, set[str]]:
    """Columns that a column is computed from; measurements of the same values share one, which stands for them."""
    found = {derive.name: set(parse(derive.formula, where=definition.where).columns) for derive in definition.derives}
    for one, other in itertools.combinations(definition.measures, 2):
        alike = all(getattr(one, key) == getattr(other, key) for key in ("file", "by", "date", "value", "where"))
        # A baseline up to the index date and a follow-up from it on meet on that day alone.
        apart = 0 in (one.after_days + other.before_days, one.before_days + other.after_days)
        if alike and not apart:
            shared = f"{one.value} of {one.file}"
            for measure in (one, other):
                found.setdefault(measure.name, set()).add(f"{shared} where {one.where}" if one.where else shared)
    return found | {horizon.name: {horizon.time, horizon.event} for horizon in definition.horizons}


def _ancestors(column: str, parents: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [column]
    while left:
        fresh = parents.get(left.pop(), set()) - found
        found |= fresh
        left += fresh
    return found


# Making columns


def _measured(
    table: Any,
    measure: Measure,
    definition: Definition,
    read_table: Callable[[str], Any],
    notes: list[str],
) -> Any:
    import pandas as pd

    where = f"{definition.where}: measure {measure.name!r}"
    keys = _key(table, measure.by, where)
    if definition.index_date not in table.columns:
        raise ValueError(
            f"{definition.where}: index: no column {definition.index_date!r}."
            f"{close_names(str(definition.index_date), table.columns)} The table has "
            f"{listed(table.columns, at_most=30)}."
        )
    index_date = as_dates(table[definition.index_date], where=f"{definition.where}: column {definition.index_date!r}")
    other = read_table(measure.file)
    for column in (measure.by, measure.date, measure.value):
        if column not in other.columns:
            raise ValueError(
                f"{where}: {measure.file} has no column {column!r}.{close_names(column, other.columns)} It has "
                f"{listed(other.columns, at_most=30)}."
            )
    if measure.where:
        rule = parse(measure.where, where=f"{where}, where, in {measure.file}", columns=other.columns)
        counts = rule.truth(other)
        if counts.isna().any():
            notes.append(f"{measure.name}: {counts.isna().sum():,} rows of {measure.file} leave `where` undecided")
        other = other.loc[counts.fillna(False).to_numpy(bool)]
        if other.empty:
            raise ValueError(
                f"{where}: no row of {measure.file} meets {measure.where!r}. Check the spelling in the file."
            )
    dates = as_dates(other[measure.date], where=f"{where}: {measure.file}: column {measure.date!r}")
    value = parse(f"`{measure.value}`", where=f"{where}: {measure.file}").evaluate(other)
    if value.dtype == "boolean":
        value = value.astype("float64")
    usable = (other[measure.by].notna() & dates.notna() & value.notna()).to_numpy(bool)
    if not usable.all():
        notes.append(f"{measure.name}: {np.count_nonzero(~usable):,} rows of {measure.file} lack id, date or value")
    rows = pd.DataFrame({"key": other[measure.by], "date": dates, "value": value}).loc[usable]
    _check_same_ids(keys, rows["key"], measure, where)
    cases = pd.DataFrame({"key": keys.to_numpy(), "case": np.arange(len(table)), "index": index_date.to_numpy()})
    pairs = cases.dropna(subset=["key", "index"]).merge(rows, on="key")
    # Whole days decide who is inside: a sample of 14 days before is inside whatever the hour.
    pairs["days"] = (pairs["date"].dt.normalize() - pairs["index"].dt.normalize()).dt.days.astype(float)
    pairs = pairs.loc[pairs["days"].between(-measure.before_days, measure.after_days)]
    # The hour decides who is nearest only where both tables have hours; else midnight would pose as one.
    timed = all((side != side.dt.normalize()).any() for side in (index_date.dropna(), rows["date"]) if len(side))
    pairs["distance"] = (pairs["date"] - pairs["index"]).dt.total_seconds().abs() if timed else pairs["days"].abs()
    nearest = pairs.loc[pairs["distance"] == pairs.groupby("case")["distance"].transform("min")]
    chosen = _chosen(nearest.assign(moment=nearest["date" if timed else "days"]), measure, table, where)
    columns = {
        measure.name: chosen["value"].reindex(range(len(table))).to_numpy(),
        f"{measure.name}_days": chosen["days"].reindex(range(len(table))).to_numpy(np.float64),
    }
    found = len(chosen)
    notes.append(
        f"{measure.name}: {found:,} of {len(table):,} cases have a measurement from {measure.before_days} days before "
        f"to {measure.after_days} days after {definition.index_date}"
    )
    if not found:
        logger.warning("%s: no case has a measurement inside the window", where)
    return table.assign(**columns)


def _key(table: Any, by: str, where: str) -> Any:
    if by in table.columns:
        return table[by]
    if by == table.index.name:
        return table.index.to_series()
    raise ValueError(
        f"{where}: by is {by!r}, and the table has no such column.{close_names(by, table.columns)} It has "
        f"{listed(table.columns, at_most=30)}."
    )


def _check_same_ids(keys: Any, others: Any, measure: Measure, where: str) -> None:
    """Ids that never meet, such as '007' and 7, would make every measurement missing."""
    if others.empty or keys.dropna().empty:
        return
    if not keys.isin(others).any():
        raise ValueError(
            f"{where}: no {measure.by!r} of the table stands in {measure.file}: there are "
            f"{listed(keys.dropna(), at_most=3)} here and {listed(others, at_most=3)} there. Write the "
            "ids in the same way in both, as text or as numbers."
        )
    # Some ids meet and others differ in a blank, a leading zero, or in being text: those patients would be lost.
    strangers = {_plain_id(key): key for key in others[~others.isin(keys)].unique()}
    for key in keys.dropna()[~keys.dropna().isin(others)].unique():
        if _plain_id(key) in strangers:
            raise ValueError(
                f"{where}: {measure.by!r} is {key!r} in the table and {strangers[_plain_id(key)]!r} in {measure.file}, "
                "which do not meet. Write the ids in the same way in both, as text or as numbers."
            )


def _plain_id(key: Any) -> str:
    return str(key).strip().removesuffix(".0").lstrip("0").casefold()


def _chosen(nearest: Any, measure: Measure, table: Any, where: str) -> Any:
    """One row a case of those that are equally near."""
    import pandas as pd

    if measure.tie in ("earlier", "later"):
        extreme = nearest.groupby("case")["moment"].transform("min" if measure.tie == "earlier" else "max")
        nearest = nearest.loc[nearest["moment"] == extreme]
    if measure.tie == "mean":
        if not pd.api.types.is_numeric_dtype(nearest["value"].dtype):
            raise ValueError(
                f"{where}: tie is 'mean', and column {measure.value!r} of {measure.file} holds no numbers."
            )
        return nearest.groupby("case")[["value", "days"]].mean()
    several = nearest.groupby("case")[["value", "days"]].nunique()
    # "error" asks for one measurement, the others only that what is left agrees.
    unclear = several.index[(several["value"] > 1) | ((several["days"] > 1) & (measure.tie == "error"))]
    if len(unclear):
        first = nearest.loc[nearest["case"] == unclear[0]]
        raise ValueError(
            f"{where}: {_cases(len(unclear))} with several measurements equally near to the index date "
            f"({listed(table.index[unclear])}); case {str(table.index[unclear[0]])!r} has {listed(first['value'])}. "
            'Narrow `where`, take their mean with tie = "mean", or'
            + (' choose tie = "earlier" or "later".' if measure.tie == "error" else " keep one row a day in the file.")
        )
    return nearest.groupby("case")[["value", "days"]].first()


def _derived(table: Any, derive: Derive, definition: Definition, notes: list[str]) -> Any:
    expression = parse(derive.formula, where=f"{definition.where}: derive {derive.name!r}", columns=table.columns)
    values = expression.evaluate(table)
    absent = values.isna().to_numpy(bool)
    if absent.any():
        here = np.ones(len(table), bool)
        for column in expression.columns:
            here &= ~_missing(table, column)
        undefined = absent & here
        more = f", in {listed(table.index[undefined])} although nothing it reads is missing" if undefined.any() else ""
        notes.append(f"{derive.name}: no result in {np.count_nonzero(absent):,} of {len(table):,} cases{more}")
    if values.dtype == "boolean":
        values = values.astype("float64") if absent.any() else values.astype("int64")
    return table.assign(**{derive.name: values})


def _followed(table: Any, horizon: Horizon, definition: Definition) -> Any:
    where = f"{definition.where}: horizon {horizon.name!r}"
    event = parse(f"`{horizon.event}` == 1", where=f"{where}, event").truth(table)
    time = parse(f"`{horizon.time}` * 1", where=f"{where}, time").evaluate(table)
    parse(f"`{horizon.event}` and true", where=f"{where}, event").truth(table)  # refuses what is neither 0 nor 1
    negative = (time < 0).to_numpy(bool)
    if negative.any():
        raise ValueError(
            f"{where}: column {horizon.time!r} is negative in {listed(table.index[negative])}; expected days from the "
            "index date on. An event before the index date is no outcome: exclude these cases, or correct the dates."
        )
    happened = event.fillna(False).to_numpy(bool) & (time <= horizon.days).to_numpy(bool)
    # Beyond the horizon the outcome is known even where nobody wrote down what happened later.
    followed = (time > horizon.days) | ((time == horizon.days) & event.eq(False).fillna(False).astype(bool))
    outcome = np.where(happened, 1.0, np.where(followed.to_numpy(bool), 0.0, np.nan))
    return table.assign(**{horizon.name: outcome})


# Dropping cases


def _step(
    label: str,
    table: Any,
    patient: str | None,
    dropped: tuple[Dropped, ...] = (),
    kept_undecided: tuple[str, ...] = (),
) -> Step:
    patients = len(table) if patient is None else int(table[patient].nunique())
    return Step(label, len(table), patients, dropped, kept_undecided)


def _ids(table: Any, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(map(str, table.index[rows]))


def _ruled(table: Any, rule: Rule, where: str, patient: str | None) -> tuple[Any, Step]:
    expression = parse(rule.rule, where=where, columns=table.columns)
    truth = expression.truth(table)
    undecided = truth.isna().to_numpy(bool)
    met = truth.fillna(False).to_numpy(bool)
    out = (~met if rule.kind == "include" else met) & ~undecided
    reason = rule.reason or (f"not: {rule.rule}" if rule.kind == "include" else rule.rule)
    dropped = [Dropped(reason, _ids(table, out))]
    kept: tuple[str, ...] = ()
    if undecided.any():
        columns = [column for column in expression.columns if (_missing(table, column) & undecided).any()]
        if rule.missing == "error":
            raise ValueError(
                f"{where}: {rule.rule!r} cannot be decided for {_cases(int(undecided.sum()))} "
                f"({listed(table.index[undecided])}): {listed(columns)} is missing there. Fill the cells in, or choose "
                'missing = "drop" or "keep".'
            )
        if rule.missing == "drop":
            missing = f" (missing: {', '.join(columns)})" if columns else ""
            dropped.append(Dropped(f"not known whether {reason}{missing}", _ids(table, undecided)))
        else:
            kept = _ids(table, undecided)
    stays = ~out & ~(undecided & (rule.missing == "drop"))
    left = table.loc[stays]
    return left, _step(rule.label, left, patient, tuple(dropped), kept)


def _uncensored(table: Any, horizon: Horizon, patient: str | None) -> tuple[Any, Step]:
    """Those whose outcome is known, as 1 and 0."""
    unknown = table[horizon.name].isna().to_numpy(bool)
    unrecorded = unknown & (_missing(table, horizon.time) | _missing(table, horizon.event))
    dropped = [Dropped(f"censored before {horizon.days:g} days", _ids(table, unknown & ~unrecorded))]
    if unrecorded.any():
        what = f"{horizon.time} or {horizon.event} missing"
        dropped.append(Dropped(f"{horizon.name} not known: {what}", _ids(table, unrecorded)))
    left = table.loc[~unknown]
    left = left.assign(**{horizon.name: left[horizon.name].astype("int64")})
    return left, _step(f"{horizon.name} known", left, patient, tuple(dropped))


def _check_left(table: Any, steps: Sequence[Step], definition: Definition) -> None:
    if table.empty:
        raise ValueError(
            f"{definition.where}: nobody is left.\n{Flow(tuple(steps)).to_text()}\nCheck the last rule, and whether "
            "its columns are written as in the table."
        )


def _missing(table: Any, column: str) -> np.ndarray:
    """Where a column has no value in the sense of expressions, for which an empty text is none."""
    return column_values(table[column], f"column {column!r}").missing


def _cases(n: int) -> str:
    return f"{n:,} case{'' if n == 1 else 's'}"


def _quoted(text: str) -> str:
    """Text inside a Mermaid label."""
    for character, code in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;"), ("\n", " ")):
        text = text.replace(character, code)
    return text
