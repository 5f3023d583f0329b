"""Units of clinical values, and exact conversion between those that measure the same thing.

A factor is a rational number, so that a cut-off declared as 2.82 cm is 28.2 in a table of millimetres and not its
neighbour: at a cut-off the last bit decides. What has no exact factor (days to years, an amount of an unnamed
substance to a mass) is refused.
"""

import re
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["MOLAR_MASSES", "Conversion", "convert", "find_conversion"]

MOLAR_MASSES = {
    "albumin": "66500",
    "bilirubin": "584.66",
    "calcium": "40.078",
    "cholesterol": "386.65",
    "creatinine": "113.12",
    "glucose": "180.156",
    "iron": "55.845",
    "urea": "60.056",
}
"""Grams per mole, as decimal text: from the formulas with the standard atomic weights; albumin as customary."""

SUBMULTIPLES = {"": 0, "d": -1, "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15}
COUNTS = {"": 0, "cells": 0, "10^3": 3, "K": 3, "10^6": 6, "M": 6, "10^9": 9, "G": 9, "10^12": 12, "T": 12}

SPELLINGS = {
    **dict.fromkeys(("year", "y", "yr", "yrs", "a"), "years"),
    **dict.fromkeys(("month", "mo"), "months"),
    **dict.fromkeys(("week", "wk"), "weeks"),
    **dict.fromkeys(("day", "d"), "days"),
    **dict.fromkeys(("hour", "hours", "hr"), "h"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("C", "degC", "℃", "° C"), "°C"),
    **dict.fromkeys(("F", "degF", "℉", "° F"), "°F"),
    **dict.fromkeys(("inch", "inches", '"'), "in"),
    **dict.fromkeys(("lbs", "pound", "pounds"), "lb"),
    **dict.fromkeys(("percent", "pct"), "%"),
    **dict.fromkeys(("mm Hg", "mmhg"), "mmHg"),
}


class Conversion(NamedTuple):
    """`target = factor * source + offset`, both exact."""

    factor: Fraction
    offset: Fraction

    def exactly(self, value: float) -> float:
        """One number, read as the decimal it is written as, converted without rounding but for the last step."""
        return float(Fraction(repr(float(value))) * self.factor + self.offset)

    def __call__(self, values: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """An array, converted in floating point: one multiplication by and one division by an integer."""
        if self == IDENTITY:
            return values
        bottom = self.factor.denominator * self.offset.denominator
        top = float(self.factor * bottom)
        return (values * top + float(self.offset * bottom)) / float(bottom)


IDENTITY = Conversion(Fraction(1), Fraction(0))


class _Unit(NamedTuple):
    """A unit as `base = factor * value + offset` in the base unit of its dimension."""

    dimension: str
    factor: Fraction
    offset: Fraction = Fraction(0)


def convert(
    values: Float[np.ndarray, "*n"], source: str, target: str, *, substance: str = ""
) -> Float[np.ndarray, "*n"]:
    r"""Values in another unit, or an error that names both.

    .. math:: y = a x + b, \qquad
              c_{\mathrm{mol/L}} = c_{\mathrm{g/L}} / M \text{ for a substance of molar mass } M

    Args:
      values: numbers in `source`, any shape; NaN stays NaN.
      source: the unit they are in, such as `mg/dL`, `10^3/µL`, `°F`, `mm`; `u` and `mc` are read as `µ`, `l` as `L`.
      target: the unit wanted.
      substance: what is measured, a key of `MOLAR_MASSES`; needed between masses and moles only.

    Returns:
      The numbers in `target`, same shape.

    Raises:
      ValueError: if one of the units is unknown, or the two do not measure the same thing exactly.

    Example:
      >>> convert(np.array([1.2]), "mg/dL", "µmol/L", substance="bilirubin").round(2).tolist()
      [20.52]
      >>> convert(np.array([98.6]), "°F", "°C").tolist()
      [37.0]
    """
    return find_conversion(source, target, substance=substance)(values)


def find_conversion(source: str, target: str, *, substance: str = "") -> Conversion:
    """The exact conversion from one unit to the other; arguments and errors as in `convert`.

    Example:
      >>> find_conversion("cm", "mm").exactly(2.82)
      28.2
      >>> find_conversion("G/L", "10^3/µL") == find_conversion("ng/ml", "µg/L")
      True
    """
    if substance and substance not in MOLAR_MASSES:
        raise ValueError(
            f"substance {substance!r} has no molar mass here; known are {', '.join(map(repr, MOLAR_MASSES))}. "
            "Convert the values beforehand and leave `substance` empty."
        )
    first, second = _tidy(source), _tidy(target)
    if first == second:
        return IDENTITY
    one, other = (_known(unit, written, source, target) for unit, written in ((first, source), (second, target)))
    factor = one.factor / other.factor
    if one.dimension != other.dimension:
        factor *= _through_moles(one, other, source, target, substance)
    return Conversion(factor, (one.offset - other.offset) / other.factor)


def _known(unit: str, written: str, source: str, target: str) -> _Unit:
    parsed = _parse(unit)
    if parsed is None:
        raise ValueError(
            f"unit {written!r} is not known, so {source!r} cannot be converted to {target!r}. "
            "Convert the values beforehand, or declare the unit that they have."
        )
    return parsed


def _through_moles(one: _Unit, other: _Unit, source: str, target: str, substance: str) -> Fraction:
    ways = {("mass per volume", "amount per volume"): -1, ("amount per volume", "mass per volume"): 1}
    power = ways.get((one.dimension, other.dimension))
    if power is None:
        why = f"one is {_an(one.dimension)}, the other {_an(other.dimension)}"
        if {one.dimension, other.dimension} == {"time", "calendar time"}:
            why = "months and years have no fixed number of days"
        raise ValueError(f"{source!r} cannot be converted to {target!r}: {why}. Convert the values beforehand.")
    if not substance:
        raise ValueError(
            f"{source!r} cannot be converted to {target!r} without the molar mass: name the `substance`, one of "
            f"{', '.join(map(repr, MOLAR_MASSES))}, or convert the values beforehand."
        )
    return Fraction(MOLAR_MASSES[substance]) ** power


def _an(dimension: str) -> str:
    return f"{'an' if dimension[0] in 'aeiou' else 'a'} {dimension}"


def _tidy(unit: str) -> str:
    """One spelling for what is written in several ways; case matters, for G/L counts cells and g/L weighs."""
    text = unit.strip().replace("μ", "µ").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"))
    text = SPELLINGS.get(text, text)
    text = re.sub(r"\s*/\s*", "/", text)
    text = re.sub(r"^[x×*]\s*(?=10)", "", text)
    text = re.sub(r"^10(?:\^|\*\*|E)?(3|6|9|12)(?=/)", r"10^\1", text)
    text = re.sub(r"\b(?:mc|u)(?=(?:g|mol|L|l|IU|U)\b)", "µ", text)
    text = re.sub(r"(?<![A-Za-z])([dmµnpf]?)l\b", r"\1L", text)
    return re.sub(r"/mm\^?3$", "/µL", text)


def _parse(unit: str) -> _Unit | None:
    if unit in STANDING_ALONE:
        return STANDING_ALONE[unit]
    top, slash, bottom = unit.partition("/")
    volume = VOLUMES.get(bottom)
    if not slash or volume is None:
        return None
    for dimension, units in (("mass", MASSES), ("amount", AMOUNTS), ("enzyme activity", ACTIVITIES)):
        if top in units:
            return _Unit(f"{dimension} per volume", units[top] / volume)
    return _Unit("count per volume", Fraction(10) ** COUNTS[top] / volume) if top in COUNTS else None


def _prefixed(name: str) -> dict[str, Fraction]:
    return {prefix + name: Fraction(10) ** power for prefix, power in SUBMULTIPLES.items()}


MASSES = _prefixed("g") | {"kg": Fraction(1000)}
AMOUNTS = _prefixed("mol")
ACTIVITIES = _prefixed("U") | _prefixed("IU") | {"kU": Fraction(1000), "kIU": Fraction(1000)}
VOLUMES = _prefixed("L")

STANDING_ALONE = {
    **{name: _Unit("mass", factor) for name, factor in MASSES.items()},
    "lb": _Unit("mass", Fraction("453.59237")),
    **{name: _Unit("volume", factor) for name, factor in VOLUMES.items()},
    **{
        name: _Unit("length", Fraction(factor)) for name, factor in {"mm": 1, "cm": 10, "m": 1000, "in": "25.4"}.items()
    },
    **{
        name: _Unit("time", Fraction(factor))
        for name, factor in {"ms": "0.001", "s": 1, "min": 60, "h": 3600, "days": 86400, "weeks": 604800}.items()
    },
    "months": _Unit("calendar time", Fraction(1)),
    "years": _Unit("calendar time", Fraction(12)),
    "Hz": _Unit("frequency", Fraction(1)),
    "kHz": _Unit("frequency", Fraction(10**3)),
    "MHz": _Unit("frequency", Fraction(10**6)),
    # The conventional millimetre of mercury, BS 350.
    "mmHg": _Unit("pressure", Fraction("133.322387415")),
    "kPa": _Unit("pressure", Fraction(1000)),
    "°C": _Unit("temperature", Fraction(1)),
    "K": _Unit("temperature", Fraction(1), Fraction("-273.15")),
    "°F": _Unit("temperature", Fraction(5, 9), Fraction(-160, 9)),
    "%": _Unit("fraction", Fraction(1, 100)),
    "fraction": _Unit("fraction", Fraction(1)),
}
"""Units without a stroke."""
