"""What the study printed: its sets of clinical features, its results, and how relevant radiologists call each feature.

Hsieh et al., tables and figures as in specs/mdf_net.md, section 6; percentages as printed, one training each, 102 boxes
in the test cases.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.chest_xray_detection.cohort import COLUMNS
from fusion_jax.data.synthetic import TRIAGE
from fusion_jax.data.tabular import columns_to_json

__all__ = [
    "ABLATION_OF",
    "FEATURE_SETS",
    "PUBLISHED_ABLATION",
    "PUBLISHED_COUNTS",
    "PUBLISHED_MODELS",
    "RELEVANCE",
    "Counts",
    "Printed",
    "columns_of",
]

AGE, TEMPERATURE, HEART_RATE, BREATHS, OXYGEN = TRIAGE[:5]
GENDER = TRIAGE[-1]

PRINTED_LABEL = "all \\ gender"
WITHOUT_GENDER_PRINTED = "nine without gender (as printed)"
WITHOUT_GENDER_RUN = "five without gender (as run)"

FEATURE_SETS: Mapping[str, tuple[str, ...]] = {
    "all": TRIAGE,
    WITHOUT_GENDER_PRINTED: TRIAGE[:-1],
    WITHOUT_GENDER_RUN: (AGE, TEMPERATURE, HEART_RATE, BREATHS, OXYGEN),
    "gender": (GENDER,),
    "gender + age": (AGE, GENDER),
    "gender + temp": (TEMPERATURE, GENDER),
    "gender + temp + age": (AGE, TEMPERATURE, GENDER),
    "gender + heartrate": (HEART_RATE, GENDER),
    "gender + heartrate + age": (AGE, HEART_RATE, GENDER),
    "gender + resprate": (BREATHS, GENDER),
    "gender + resprate + age": (AGE, BREATHS, GENDER),
}
"""Name to columns, in the order of `COLUMNS`. The study prints ten sets. The row that it calls "all \\ gender" came
from a run whose configuration names age, temperature, heart rate, breaths and oxygen and nothing else (M7 of the
specification): the nine that the label promises and the five that were run are both here, under what they hold."""


class Printed(NamedTuple):
    """Average precision and recall in per cent at IoBB 0.5, by `LESIONS`, and their means as printed."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    overall: tuple[float, float]


class Counts(NamedTuple):
    """Boxes found, found falsely and missed at IoBB 0.5, of all lesions."""

    tp: int
    fp: int
    fn: int


PUBLISHED_MODELS: Mapping[str, Printed] = {
    "mask-rcnn": Printed((54.83, 14.58, 16.29, 3.12, 9.22), (100.0, 40.0, 42.86, 20.0, 66.67), (19.61, 53.90)),
    "msf-net-3d": Printed((69.12, 16.33, 13.20, 16.93, 22.26), (94.44, 42.86, 52.38, 40.0, 72.22), (27.57, 60.38)),
    "msf-net-1d": Printed((50.54, 17.30, 10.08, 17.55, 15.43), (83.33, 54.29, 23.81, 30.0, 55.56), (22.18, 49.40)),
    "mdf-net": Printed((70.36, 24.43, 16.09, 14.29, 33.25), (100.0, 48.57, 28.57, 30.0, 66.67), (31.69, 54.76)),
}

PUBLISHED_COUNTS: Mapping[str, Counts] = {
    "mask-rcnn": Counts(tp=49, fp=231, fn=53),
    "msf-net-3d": Counts(tp=51, fp=167, fn=51),
    "msf-net-1d": Counts(tp=43, fp=103, fn=59),
    "mdf-net": Counts(tp=51, fp=148, fn=51),
}
"""The caption says score 0.05 and more, the program that counted 0.1."""

PUBLISHED_ABLATION: Mapping[str, Printed] = {
    "all": PUBLISHED_MODELS["mdf-net"],
    PRINTED_LABEL: Printed((71.31, 18.02, 40.56, 10.23, 9.33), (88.89, 54.29, 52.38, 30.0, 44.44), (29.89, 54.00)),
    "gender": Printed((67.67, 13.06, 12.13, 4.80, 4.19), (94.44, 51.43, 42.86, 20.0, 33.33), (20.37, 48.41)),
    "gender + age": Printed((58.48, 22.68, 12.89, 9.86, 15.86), (83.33, 51.43, 42.86, 40.0, 61.11), (23.95, 55.75)),
    "gender + temp": Printed((54.06, 15.15, 28.19, 12.47, 6.91), (94.44, 48.57, 61.91, 40.0, 44.44), (23.35, 57.87)),
    "gender + temp + age": Printed(
        (62.46, 24.72, 12.68, 0.44, 18.27), (77.78, 48.57, 42.86, 10.0, 72.22), (23.71, 50.29)
    ),
    "gender + heartrate": Printed(
        (72.16, 11.61, 21.91, 7.10, 20.77), (94.44, 42.86, 42.86, 20.0, 61.11), (26.71, 52.25)
    ),
    "gender + heartrate + age": Printed(
        (73.47, 18.79, 20.41, 4.10, 15.30), (94.44, 48.57, 57.14, 30.0, 72.22), (26.41, 60.48)
    ),
    "gender + resprate": Printed(
        (63.97, 14.57, 22.53, 17.49, 10.55), (88.89, 31.43, 47.62, 40.0, 61.11), (25.82, 53.81)
    ),
    "gender + resprate + age": Printed(
        (67.01, 18.03, 29.25, 15.01, 10.58), (100.0, 51.43, 57.14, 40.0, 61.11), (27.98, 61.94)
    ),
}

ABLATION_OF: Mapping[str, str] = {
    name: PRINTED_LABEL if name in (WITHOUT_GENDER_PRINTED, WITHOUT_GENDER_RUN) else name for name in FEATURE_SETS
}
"""Set to the row of `PUBLISHED_ABLATION` that it is compared with."""

NONE, SOME, STRONG = 0.1, 0.5, 0.9

RELEVANCE: Mapping[str, tuple[float, ...]] = {
    "age_years": (NONE, NONE, NONE, NONE, NONE),
    "temperature_f": (NONE, NONE, STRONG, STRONG, SOME),
    "heartrate_bpm": (NONE, NONE, SOME, STRONG, STRONG),
    "resprate_per_min": (NONE, NONE, STRONG, STRONG, STRONG),
    "o2sat_percent": (NONE, NONE, STRONG, STRONG, STRONG),
    "sbp_mmhg": (NONE, NONE, SOME, SOME, SOME),
    "dbp_mmhg": (NONE, NONE, SOME, SOME, SOME),
    "pain": (NONE, NONE, SOME, SOME, SOME),
    "acuity": (NONE, NONE, NONE, NONE, NONE),
    "gender": (NONE, NONE, NONE, NONE, NONE),
}
"""Feature to what radiologists say of its relevance for each of `LESIONS`: 0.1 none, 0.5 some, 0.9 strong."""


def columns_of(features: Sequence[str] = TRIAGE) -> list[dict[str, Any]]:
    """Declarations of some features, raw as published, in the order of `COLUMNS`: the argument `columns` of a recipe.

    Args:
      features: names of columns.

    Raises:
      ValueError: a name that is none of the ten.
    """
    for name in features:
        if name not in TRIAGE:
            raise ValueError(f"no feature {name!r}; expected some of {', '.join(TRIAGE)}.")
    return list(columns_to_json([column for column in COLUMNS if column.name in features]))
