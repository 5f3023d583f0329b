"""Where values of clinical quantities and of images can lie, by name and unit.

The limits are of what a body or an instrument can show, not of health: a value outside is a slip of unit, code or
comma nearly always. Most are the "valid" limits of MIMIC-Extract, from which ICU values of any severity were cleaned;
where a limit is another, the table says why.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fusion_jax.data.tabular.units import convert

__all__ = ["IMAGE_RANGES", "QUANTITIES", "MixedUnits", "Quantity", "find_mixed_units", "find_quantity", "range_in"]

IMAGE_RANGES: Mapping[str, tuple[float, float, str]] = MappingProxyType(
    {
        # 12 bits from the customary intercept -1024 end at 3071; scanners with extended scale reach further in metal.
        "HU": (-1100.0, 4100.0, "air is −1000, dense bone up to about 3000"),
        # The bladder may reach 100; 200 means another unit, such as Bq/ml or per cent.
        "SUV": (0.0, 200.0, "uptake relative to the mean of the body"),
    }
)
"""Least and largest value by unit of an image, and why."""


class Quantity(NamedTuple):
    """A clinical quantity with the range its values can have.

    Attributes:
      name: for messages.
      words: regular expression that its column names match, in lower case with words parted by blanks.
      unit: of the range; assumed where a column declares none.
      low, high: least and largest value.
      substance: for conversion between masses and moles.
      others: further units in which values of the column may have been written by mistake.
    """

    name: str
    words: str
    unit: str
    low: float
    high: float
    substance: str = ""
    others: tuple[str, ...] = ()


# Wang S et al. 2020, "MIMIC-Extract", doi:10.1145/3368555.3384469, resources/mimiciv_variable_ranges.csv (columns VALID
# LOW and VALID HIGH), unless a comment says otherwise.
QUANTITIES = (
    # The oldest person whose age is beyond doubt reached 122.
    Quantity("age", r"age( years?)?( at .*)?|alter", "years", 0, 122, others=("months", "days")),
    Quantity("heart rate", r"heart ?rate|hr|pulse( rate)?|bpm", "1/min", 0, 350),
    Quantity("respiratory rate", r"resp(iratory)? ?rate|rr|breath(ing|s).*", "1/min", 0, 300),
    Quantity("temperature", r"(body )?temp(erature)?", "°C", 26, 45, others=("°F",)),
    Quantity("oxygen saturation", r"(sp|sa)?o2 ?sat(uration)?|spo2|sao2|oxygen sat(uration)?|po2 saturation", "%", 0,
             100,
             others=("fraction",)),
    Quantity("systolic blood pressure", r"sbp|sys(tolic)?( blood)?( pressure| bp)?", "mmHg", 0, 375, others=("kPa",)),
    Quantity("diastolic blood pressure", r"dbp|dias(tolic)?( blood)?( pressure| bp)?", "mmHg", 0, 375, others=("kPa",)),
    # A numeric rating scale runs from 0 to 10 by definition.
    Quantity("pain", r"pain( score| scale)?", "0-10", 0, 10),
    # The Emergency Severity Index has five levels.
    Quantity("acuity", r"acuity|esi|triage( level)?", "1-5", 1, 5),
    # World Health Organization/ECOG: 0 to 5 by definition.
    Quantity("performance status", r"(ecog|performance status|ecog ps|ps)", "0-5", 0, 5),
    # The tallest person measured was 272 cm.
    Quantity("height", r"(body )?(height|size)( cm)?|stature", "cm", 20, 272, others=("m", "in")),
    Quantity("weight", r"(body )?weight( kg)?", "kg", 0.2, 250, others=("g", "lb")),
    # From weight and height at their limits in adults.
    Quantity("body mass index", r"bmi|body mass index", "kg/m²", 8, 120),
    Quantity("albumin", r"(serum )?albumin", "g/dL", 0.6, 6, others=("g/L",)),
    # Albumin with globulins; plasmocytoma with 15 g/dl and more is on record, 20 is beyond the solubility in serum.
    Quantity("total protein", r"total proteins?|proteins? total", "g/dL", 1, 20, others=("g/L",)),
    Quantity("bilirubin", r"((total|direct|serum) )*bilirubin( total| direct)?", "mg/dL", 0, 60, "bilirubin",
             ("µmol/L",)),
    Quantity("creatinine", r"(serum )?creatinine", "mg/dL", 0.1, 60, "creatinine", ("µmol/L",)),
    Quantity("urea nitrogen", r"bun|(blood )?urea nitrogen", "mg/dL", 0, 250),
    Quantity("glucose", r"(blood )?glucose", "mg/dL", 20, 2000, "glucose", ("mmol/L",)),
    Quantity("haemoglobin", r"ha?emoglobin|hb|hgb", "g/dL", 0, 25, others=("g/L",)),
    Quantity("haematocrit", r"ha?ematocrit|hct", "%", 0, 75, others=("fraction",)),
    Quantity("platelets", r"platelets?( count)?|plt|thrombocytes?", "G/L", 0, 2000, others=("cells/µL",)),
    Quantity("leukocytes", r"leu[ck]ocytes?( count)?|wbc|white (blood )?cells?( count)?", "G/L", 0, 1000,
             others=("cells/µL",)),
    # A part of the leukocytes.
    Quantity("neutrophils or lymphocytes", r"(neutrophil|lymphocyte)s?( count)?", "G/L", 0, 1000, others=("cells/µL",)),
    Quantity("alanine transaminase", r"alt|sgpt|gpt|alanine (amino)?transaminase|alanine aminotransferase", "U/L", 0,
             10000),
    Quantity("aspartate transaminase", r"ast|sgot|got|aspartate (amino)?transaminase|aspartate aminotransferase",
             "U/L", 0,
             20000),
    Quantity("alkaline phosphatase", r"alp|alkaline phosphatase", "U/L", 5, 4000),
    Quantity("sodium", r"(serum )?sodium", "mmol/L", 50, 225),
    Quantity("potassium", r"(serum )?potassium", "mmol/L", 0, 12),
    Quantity("lactate", r"lactate", "mmol/L", 0.1, 30),
    # A quotient of two clotting times; instruments stop at about 20.
    Quantity("international normalised ratio", r"inr|international normali[sz]ed ratio", "", 0.5, 20),
    Quantity("pH", r"(blood |arterial )?ph", "", 6.3, 8.4),
    # Red cells are between 50 and 150 femtolitres even in the severest anaemia.
    Quantity("mean corpuscular volume", r"mcv|mean corpuscular volume", "fL", 40, 160),
    # Hardly a lesion in a body is longer than half a metre.
    Quantity("size of a lesion", r"(lesion|nodule|tumou?r)( size| diameter)( mm)?", "mm", 0, 500, others=("cm",)),
)  # fmt: skip
"""Every quantity known here; the first whose words match counts."""

UNIT_SUFFIX = re.compile(r" (num|value|years?|mm|cm|kg|g dl|mg dl|g l|u l|mmhg|percent|pct|baseline|bl)$")


def find_quantity(column: str) -> Quantity | None:
    """The quantity that a column's name speaks of; None where no name is known.

    Example:
      >>> find_quantity("Platelet_Count").name, find_quantity("age_years").unit, find_quantity("stage")
      ('platelets', 'years', None)
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", column)
    words = re.sub(r"[\W_]+", " ", words).strip().lower()
    while True:
        for quantity in QUANTITIES:
            if re.fullmatch(quantity.words, words):
                return quantity
        shorter = UNIT_SUFFIX.sub("", words)
        if shorter == words:
            return None
        words = shorter


def range_in(quantity: Quantity, unit: str) -> tuple[float, float] | None:
    """The range of a quantity in another unit; None where the units cannot be converted.

    Example:
      >>> range_in(find_quantity("temperature"), "°F")
      (78.8, 113.0)
    """
    if not unit or unit == quantity.unit:
        return quantity.low, quantity.high
    try:
        low, high = convert(
            np.array([quantity.low, quantity.high], float), quantity.unit, unit, substance=quantity.substance
        ).tolist()
    except ValueError:
        return None
    return low, high


class MixedUnits(NamedTuple):
    """Two groups of values that are apart by a factor between units.

    Attributes:
      factor: between the medians of the groups.
      gap: between the largest of the small and the smallest of the large values.
      large: which values are in the upper group, shape `(n,)`.
    """

    factor: float
    gap: float
    large: Bool[np.ndarray, "n"]


LEAST_GAP = 5.0
LEAST_SHARE = 0.02
LEAST_DISTANCE = 5.0


def find_mixed_units(values: Float[np.ndarray, "n"], *, least_factor: float = 50.0) -> MixedUnits | None:
    r"""Two groups of positive values, apart by an empty gap, as of G/l and cells per microlitre in one column.

    The values are sorted; the widest gap of :math:`\log_{10}` splits them. It counts where the smallest value above
    it is five times the largest below, either side holds a fiftieth of the values and three at least, the medians are
    `least_factor` apart, and their distance in :math:`\log_{10}` is five times the standard deviation within groups,
    which the two ends of one skewed distribution do not reach.

    Args:
      values: NaN where missing, shape `(n,)`; values that are not positive are in neither group.
      least_factor: between the medians; 50 finds a factor of 1000 in skewed values and leaves decimal slips alone.

    Example:
      >>> platelets = np.array([99.0, 150.0, 210.0, 320.0, 93000.0, 141000.0, 268000.0])
      >>> found = find_mixed_units(platelets)
      >>> round(found.factor), found.large.tolist()
      (783, [False, False, False, False, True, True, True])
    """
    positive = np.sort(values[np.nan_to_num(values, nan=0.0, posinf=0.0) > 0])
    least = max(3, int(np.ceil(LEAST_SHARE * positive.size)))
    if positive.size < 2 * least:
        return None
    steps = np.diff(np.log10(positive))
    allowed = slice(least - 1, positive.size - least)
    at = least - 1 + int(np.argmax(steps[allowed]))
    gap = float(positive[at + 1] / positive[at])
    factor = float(np.median(positive[at + 1 :]) / np.median(positive[: at + 1]))
    logs = np.log10(positive)
    within = np.concatenate([part - part.mean() for part in (logs[: at + 1], logs[at + 1 :])])
    if gap < LEAST_GAP or factor < least_factor or np.log10(factor) < LEAST_DISTANCE * within.std():
        return None
    return MixedUnits(factor, gap, np.nan_to_num(values, nan=0.0) >= positive[at + 1])
