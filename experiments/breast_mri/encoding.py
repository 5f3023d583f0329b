"""18 clinical and technical features of a breast MRI as the 33 inputs of Holste et al. 2021.

    fitted = fit(COLUMNS, cohort.inputs, train_cases, fold="train", units=cohort.units)
    values, names = fitted.apply(cohort.inputs, train_cases=train_cases)

Expected: 12 z-scores, one flag and 20 dummies where the training cases have all 11 software versions. Age is filled
with the training median, density and background enhancement with the training mode; z-scores are those of the
training values before filling (specs/breast_mri_fusion.md, sections 2.1 and 2.2, reading B5). A software version that
the training cases do not have is all zero. The other features have no imputation: a gap there is an error.
"""

from collections.abc import Iterable

from fusion_jax.data.tabular import Category, Column, Flag, Number

__all__ = ["ACQUISITION", "COLUMNS", "INPUTS", "feature_groups"]

COLUMNS: tuple[Column, ...] = (
    Number(name="age_years", unit="years", impute="median"),
    Flag(name="laterality", yes=("left",), no=("right",)),
    Number(name="shift_days", unit="days"),
    Number(name="max_intensity"),
    Number(name="pixel_spacing_mm", unit="mm"),
    Number(name="crop_height_mm", unit="mm"),
    Number(name="crop_width_mm", unit="mm"),
    Number(name="flip_angle_deg", unit="degrees"),
    Number(name="reconstruction_diameter_mm", unit="mm"),
    Number(name="imaging_frequency_mhz", unit="MHz"),
    Number(name="echo_time_ms", unit="ms"),
    Number(name="repetition_time_ms", unit="ms"),
    Number(name="echo_train_length"),
    Category(
        name="background_enhancement",
        levels=("minimal", "mild", "moderate", "marked"),
        reference="minimal",
        unseen="error",
        impute="mode",
    ),
    Category(name="breast_density", levels=("a", "b", "c", "d"), reference="a", unseen="error", impute="mode"),
    Category(name="field_strength_t", levels=(1.5, 3), reference=1.5, unseen="error"),
    Category(name="software_version", unseen="zeros"),
    Category(
        name="indication",
        levels=("other", "screening", "diagnostic", "extent"),
        reference="other",
        unseen="error",
    ),
)
"""The 18 features in the published order; `breast_density` a is fatty."""


ACQUISITION = (
    "shift_days",
    "pixel_spacing_mm",
    "flip_angle_deg",
    "reconstruction_diameter_mm",
    "imaging_frequency_mhz",
    "echo_time_ms",
    "repetition_time_ms",
    "echo_train_length",
    "field_strength_t",
    "software_version",
)
"""What says how and when the image was taken, and nothing of the breast; crop sizes and intensity are of both."""

INPUTS: tuple[str, ...] = (
    *(column.name for column in COLUMNS[:13]),
    *(f"background_enhancement={level}" for level in ("mild", "moderate", "marked")),
    *(f"breast_density={level}" for level in ("b", "c", "d")),
    "field_strength_t=3",
    *(f"software_version={number}" for number in range(2, 12)),
    *(f"indication={level}" for level in ("screening", "diagnostic", "extent")),
)
"""Names of the 33 encoded inputs, in the order in which the study stores them."""


def feature_groups(names: Iterable[str]) -> dict[str, list[int]]:
    """Feature to the places of its inputs: one, or the dummies of its levels.

    Example:
      >>> feature_groups(("age", "density=b", "density=c"))
      {'age': [0], 'density': [1, 2]}
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name.partition("=")[0], []).append(place)
    return groups
