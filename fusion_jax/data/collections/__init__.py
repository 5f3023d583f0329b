"""Real cohorts: two that come with the package, four that are read from `$FUSION_JAX_DATA`."""

from fusion_jax.data.collections.breast import breast_mri_predictions
from fusion_jax.data.collections.catalogue import Collection, collections, load
from fusion_jax.data.collections.chest_xray import covid_cxr, jsrt
from fusion_jax.data.collections.hcc import hcc_survival
from fusion_jax.data.collections.sarcoma import soft_tissue_sarcoma_cohort, sts_petct
from fusion_jax.data.collections.skin import ham10000_small

__all__ = [
    "Collection",
    "breast_mri_predictions",
    "collections",
    "covid_cxr",
    "ham10000_small",
    "hcc_survival",
    "jsrt",
    "load",
    "soft_tissue_sarcoma_cohort",
    "sts_petct",
]
