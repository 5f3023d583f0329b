"""The cohort of the breast MRI experiment: synthetic, since the study's images are not public.

Holste et al. 2021; specs/breast_mri_fusion.md. Table 1 of the paper holds exactly at 17,046 cases.
"""

import dataclasses

from fusion_jax.data import Cohort
from fusion_jax.data.obfuscation import obfuscate_indication
from fusion_jax.data.synthetic import breast_mri

__all__ = ["make_cohort"]


def make_cohort(n: int = 17_046, *, size: int = 224, seed: int = 0) -> Cohort:
    """Projections of single breasts, `(size, size, 1)` in [0, 1], and the 18 features.

    "Assess extent", which gives a proven cancer away, is replaced once in all sets (reading B6).
    """
    cohort = breast_mri(n, size=size, seed=seed).cohort
    table = cohort.table
    indication = obfuscate_indication(
        table["indication"].to_numpy(str),
        table["bi_rads"].to_numpy(float),
        cohort.case_id,
        seed=seed,
        revealing="extent",
        replacements=("other", "screening", "diagnostic"),
    )
    return dataclasses.replace(cohort, table=table.assign(indication=indication))
