"""The cohort of the breast MRI experiment: synthetic, since the study's images are not public.

Holste et al. 2021; specs/breast_mri_fusion.md. Table 1 of the paper holds exactly at 17,046 cases.
"""

import dataclasses

from experiments.breast_mri.encoding import COLUMNS
from fusion_jax.data import Cohort, Split, Splits
from fusion_jax.data.obfuscation import obfuscate_indication
from fusion_jax.data.splits import given
from fusion_jax.data.synthetic import breast_mri
from fusion_jax.data.tabular import fit

__all__ = ["encoded", "make_cohort", "published_split"]


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


def published_split(cohort: Cohort) -> Splits:
    """Training, validation and test patients in the published proportions."""
    parts = cohort.table["split"].replace({"val": "validation"})
    return given(cohort, [str(part) for part in parts], name="published")


def encoded(cohort: Cohort, split: Split) -> Cohort:
    """The cohort with its 33 inputs, fitted on the training patients of the split."""
    fitted = fit(COLUMNS, cohort.inputs, split.train, fold=f"r{split.repeat}_f{split.fold}", units=cohort.units)
    values = fitted.apply(cohort.inputs, train_cases=split.train, units=cohort.units).values
    return cohort.with_source("clinical", values)
