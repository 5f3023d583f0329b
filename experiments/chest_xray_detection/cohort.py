"""The cohort of the detection experiment: synthetic, since the study's images need credentials.

Hsieh et al.; specs/mdf_net.md. Who holds MIMIC-CXR, MIMIC-IV-ED and REFLACX joins them with `fusion_jax.data.mimic`.
"""

from fusion_jax.data import Cohort, preprocessed
from fusion_jax.data.images.pipeline import chest_radiograph
from fusion_jax.data.synthetic import chest_xray
from fusion_jax.data.tabular import Column, Flag, Number

__all__ = ["COLUMNS", "make_cohort"]

COLUMNS: tuple[Column, ...] = (
    Number("age_years", unit="years", scale="none", impute="mean"),
    Number("temperature_f", scale="none", impute="mean"),
    Number("heartrate_bpm", scale="none", impute="mean"),
    Number("resprate_per_min", scale="none", impute="mean"),
    Number("o2sat_percent", scale="none", impute="mean"),
    Number("sbp_mmhg", scale="none", impute="mean"),
    Number("dbp_mmhg", scale="none", impute="mean"),
    Number("pain", scale="none", impute="mean"),
    Number("acuity", scale="none", impute="mean"),
    Flag("gender", yes=("M",), no=("F",)),
)
"""Ten features in the published order, raw; female is 0. The paper fills gaps with means over all rows; here they are
those of the training cases."""


def make_cohort(n: int = 670, *, size: int = 512, seed: int = 0) -> Cohort:
    """Radiographs `(size, size, 3)` on ImageNet's scale, with boxes of five abnormalities and triage vitals."""
    cohort = chest_xray(n, size=size, seed=seed).cohort
    return preprocessed(cohort, {"image": chest_radiograph(size=size, white=1)})
