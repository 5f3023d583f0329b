"""Declarations: how each column of a clinical table becomes numbers. Nothing here has seen a case."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fusion_jax.data.tabular.units import MOLAR_MASSES

__all__ = [
    "Category",
    "Column",
    "Cutoff",
    "Flag",
    "Number",
    "Ordinal",
    "columns_from_json",
    "columns_to_json",
    "level_text",
]

Scale = Literal["standard", "robust", "minmax", "none"]
Level = str | int | float


@dataclass(frozen=True, kw_only=True)
class Number:
    r"""A measured number, scaled: one output.

    .. math:: z = (x - m) / s

    with `m, s` the mean and sample standard deviation (`standard`, ddof = 1), the median and interquartile range
    (`robust`), the minimum and the range (`minmax`) or 0 and 1 (`none`). They come from the values that the training
    cases have, before gaps are filled: imputation would shrink the spread.

    Attributes:
      name: column of the table.
      unit: of the number; a table in another unit is converted, or refused if it cannot be.
      substance: what a concentration is of, where a conversion needs the molar mass (`units.MOLAR_MASSES`).
      scale: as above.
      impute: what fills a gap: a statistic of the training cases; with `none`, a gap is an error.
      indicator: adds an output that is 1 where the value was missing; needs an imputation.

    Example:
      >>> Number(name="age", unit="years", impute="median").outputs(())
      ('age',)
    """

    name: str = dataclasses.field(kw_only=False)
    unit: str = ""
    substance: str = ""
    scale: Scale = "standard"
    impute: Literal["none", "mean", "median", "mode"] = "none"
    indicator: bool = False

    def __post_init__(self) -> None:
        _check_values(type(self), vars(self))
        _check(self)

    def outputs(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs; `levels` is empty for a number."""
        return (self.name, *_indicator(self))


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category without order as dummies: one 0/1 output for each level but the reference.

    Attributes:
      name: column of the table.
      levels: in the order of the outputs; the levels of the training cases, sorted, where not given.
      reference: the level whose row is all zero; the first one where not given.
      unseen: what a level does that was not there at the fit: an all-zero row, like the reference, with a logged
        count (`zeros`), an error, or an output of its own (`column`).
      impute: what fills a gap: the most frequent level of the training cases, or missing as a level of its own
        (`level`); with `none`, a gap is an error.
      indicator: adds an output that is 1 where the value was missing; needs `impute="mode"`.

    Example:
      >>> Category(name="BCLC", levels=("0", "C", "B", "A"), reference="0").outputs(("0", "C", "B", "A"))
      ('BCLC=C', 'BCLC=B', 'BCLC=A')
    """

    name: str = dataclasses.field(kw_only=False)
    levels: tuple[Level, ...] = ()
    reference: Level | None = None
    unseen: Literal["zeros", "error", "column"] = "zeros"
    impute: Literal["none", "mode", "level"] = "none"
    indicator: bool = False

    def __post_init__(self) -> None:
        _check_values(type(self), vars(self))
        object.__setattr__(self, "levels", _level_texts(self))
        if self.reference is not None:
            object.__setattr__(self, "reference", level_text(self.reference))
        _check(self)
        if self.levels and self.reference is not None and self.reference not in self.levels:
            raise ValueError(
                f"column {self.name!r}: the reference {self.reference!r} is none of the levels "
                f"{', '.join(map(repr, self.levels))}. Name one of them."
            )

    def outputs(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs for these levels."""
        reference = levels[0] if self.reference is None else self.reference
        extra = ["missing"] if self.impute == "level" else []
        extra += ["unseen"] if self.unseen == "column" else []
        dummies = (f"{self.name}={level}" for level in (*(x for x in levels if x != reference), *extra))
        return (*dummies, *_indicator(self))


@dataclass(frozen=True, kw_only=True)
class Ordinal:
    """A category with an order as its rank 0, 1, 2, …: one output.

    Attributes:
      name: column of the table.
      levels: from lowest to highest; any other value is an error.
      scale: of the rank, as for `Number`.
      impute: what fills a gap: the lower median or the most frequent level of the training cases.
      indicator: adds an output that is 1 where the value was missing; needs an imputation.
    """

    name: str = dataclasses.field(kw_only=False)
    levels: tuple[Level, ...]
    scale: Scale = "none"
    impute: Literal["none", "median", "mode"] = "none"
    indicator: bool = False

    def __post_init__(self) -> None:
        _check_values(type(self), vars(self))
        object.__setattr__(self, "levels", _level_texts(self))
        _check(self)
        if len(self.levels) < 2:
            raise ValueError(f"column {self.name!r}: an ordinal has at least two levels; it has {list(self.levels)}.")

    def outputs(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs."""
        return (self.name, *_indicator(self))


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Yes or no as 1 or 0: one output. True and False are always understood; any other value is an error.

    Attributes:
      name: column of the table.
      yes: cells that mean 1.
      no: cells that mean 0.
      impute: what fills a gap: the more frequent answer of the training cases, no in a tie.
      indicator: adds an output that is 1 where the value was missing; needs an imputation.
    """

    name: str = dataclasses.field(kw_only=False)
    yes: tuple[Level, ...] = (1,)
    no: tuple[Level, ...] = (0,)
    impute: Literal["none", "mode"] = "none"
    indicator: bool = False

    def __post_init__(self) -> None:
        _check_values(type(self), vars(self))
        for side in ("yes", "no"):
            object.__setattr__(self, side, tuple(map(level_text, getattr(self, side))))
        _check(self)
        if both := sorted({str(level) for level in self.yes} & {str(level) for level in self.no}):
            raise ValueError(f"column {self.name!r}: {', '.join(map(repr, both))} is declared as yes and as no.")

    def outputs(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs."""
        return (self.name, *_indicator(self))


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    r"""A number at or above a threshold: one output, :math:`[x \ge a]`. Equality gives 1.

    Attributes:
      name: column of the table.
      at: the threshold, in `unit`.
      unit: of the threshold; in a table of another unit the threshold is converted, exactly, not the values.
      substance: as for `Number`.
      impute: what fills a gap: the more frequent side of the training cases, 0 in a tie.
      indicator: adds an output that is 1 where the value was missing; needs an imputation.

    Example:
      >>> Cutoff(name="age", at=60, unit="years").outputs(())
      ('age>=60',)
    """

    name: str = dataclasses.field(kw_only=False)
    at: float
    unit: str = ""
    substance: str = ""
    impute: Literal["none", "mode"] = "none"
    indicator: bool = False

    def __post_init__(self) -> None:
        _check_values(type(self), vars(self))
        _check(self)
        if not math.isfinite(self.at):
            raise ValueError(f"column {self.name!r}: the cut-off is {self.at!r}; give a finite number.")

    def outputs(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs."""
        return (f"{self.name}>={level_text(self.at)}", *_indicator(self))


Column = Number | Category | Ordinal | Flag | Cutoff
"""One declaration."""

KINDS: dict[str, type[Column]] = {
    "number": Number,
    "category": Category,
    "ordinal": Ordinal,
    "flag": Flag,
    "cutoff": Cutoff,
}


def kind_of(column: Column) -> str:
    """The word for this kind of declaration in JSON."""
    return type(column).__name__.lower()


def level_text(cell: Any) -> str:
    """A level as text: 3, 3.0 and "3" are one level, for a gap turns the integers of a column into floats.

    Example:
      >>> level_text(3.0), level_text("3"), level_text(1.5), level_text(True)
      ('3', '3', '1.5', 'True')
    """
    if hasattr(cell, "item"):
        cell = cell.item()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell)


def columns_to_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Declarations as plain lists, numbers and text, ready for `write_json`."""
    return [{"kind": kind_of(column), **_plain(column)} for column in columns]


def columns_from_json(value: Any, *, where: str = "columns") -> tuple[Column, ...]:
    """Declarations read back, or written by hand in JSON or TOML.

    Args:
      value: a list of objects with `kind`, `name` and the attributes of that kind.
      where: where they stand, for the error.

    Raises:
      ValueError: if a key, kind or choice is not one of those that exist, with the close ones named, or one is absent.
      TypeError: if a value has the wrong type.

    Example:
      >>> columns_from_json([{"kind": "cutoff", "name": "AFP", "at": 9, "unit": "µg/L"}])
      (Cutoff(name='AFP', at=9, unit='µg/L', substance='', impute='none', indicator=False),)
    """
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where}: holds {value!r}; expected a list of column declarations.")
    return tuple(_from_json(item, f"{where}[{i}]") for i, item in enumerate(value))


def check_keys(value: Any, allowed: Iterable[str], required: Iterable[str], where: str) -> Mapping[str, Any]:
    """A mapping that has these keys and no others."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: holds {value!r}; expected an object.")
    allowed = list(allowed)
    for key in value:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}; {close_to(key, allowed)}. Fix or remove it.")
    if absent := [key for key in required if key not in value]:
        raise ValueError(f"{where}: lacks {', '.join(map(repr, absent))}. Add it.")
    return value


def close_to(word: Any, choices: Iterable[str]) -> str:
    """A hint at what was meant."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), choices, n=3)
    return f"did you mean {' or '.join(map(repr, close))}" if close else f"there is {', '.join(map(repr, choices))}"


def _from_json(item: Any, where: str) -> Column:
    if not isinstance(item, Mapping) or item.get("kind") not in KINDS:
        found = item.get("kind") if isinstance(item, Mapping) else item
        raise ValueError(f"{where}: kind {found!r}; expected one of {', '.join(map(repr, KINDS))}.")
    made = KINDS[item["kind"]]
    fields = dataclasses.fields(made)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    check_keys(item, ["kind", *(field.name for field in fields)], required, where)
    arguments: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in item.items() if name != "kind"
    }
    try:
        _check_values(made, arguments)
        return made(**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _plain(column: Column) -> dict[str, Any]:
    fields = {field.name: getattr(column, field.name) for field in dataclasses.fields(column)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _level_texts(column: Category | Ordinal) -> tuple[str, ...]:
    levels = tuple(map(level_text, column.levels))
    if len(set(levels)) < len(levels):
        twice = sorted({level for level in levels if levels.count(level) > 1})
        raise ValueError(f"column {column.name!r}: level {', '.join(map(repr, twice))} is declared more than once.")
    return levels


def _indicator(column: Column) -> tuple[str, ...]:
    return (f"{column.name}=missing",) if column.indicator else ()


def _check_values(made: type[Column], values: Mapping[str, Any]) -> None:
    """The type of every attribute, and that choices are among those that exist."""
    hints = get_type_hints(made)
    for name, value in values.items():
        hint = hints[name]
        where = f"column {values.get('name')!r}: {name} is {value!r}"
        if choices := [choice for choice in get_args(hint) if isinstance(choice, str)]:
            if value not in choices:
                raise ValueError(f"{where}; {close_to(value, choices)}.")
        elif hint in (str, bool) and not isinstance(value, hint):
            raise TypeError(f"{where}; expected {'text' if hint is str else 'true or false'}.")
        elif hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{where}; expected a number.")
        elif get_origin(hint) is tuple and not (
            isinstance(value, tuple | list) and all(isinstance(level, str | int | float) for level in value)
        ):
            raise TypeError(f"{where}; expected a tuple of texts or numbers.")
        elif name == "reference" and not isinstance(value, str | int | float | None):
            raise TypeError(f"{where}; expected a text or a number.")


def _check(column: Column) -> None:
    """What may not stand together."""
    if not column.name:
        raise ValueError(f"{type(column).__name__}: the column has no name. Give the name it has in the table.")
    if column.indicator and column.impute in ("none", "level"):
        raise ValueError(
            f"column {column.name!r}: a missing-indicator stands beside an imputed value, but impute is "
            f"{column.impute!r}. Choose an imputation or leave the indicator out."
        )
    if isinstance(column, Number | Cutoff) and column.substance and column.substance not in MOLAR_MASSES:
        raise ValueError(
            f"column {column.name!r}: substance {column.substance!r}; {close_to(column.substance, MOLAR_MASSES)}. "
            "Leave it empty where no conversion needs it."
        )
