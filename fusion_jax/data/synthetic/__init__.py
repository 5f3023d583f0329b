"""Synthetic cohorts with known truth: every claim about fusion can be tested against what the cases were made from.

One generator for each kind of study with its published marginals, and `dial`, whose signal is set by hand. Each returns
a `Cohort` and a `Truth`. Tables are drawn at once, so that counts are exact; images are drawn when they are read, from
seed and index of the case alone.
"""

from fusion_jax.data.synthetic.breast import BREAST_FEATURES, breast_mri
from fusion_jax.data.synthetic.chest import LESIONS, TRIAGE, chest_xray
from fusion_jax.data.synthetic.dialled import COORDINATES, Signal, bayes_auc, d_prime, dial, log_likelihood_ratio
from fusion_jax.data.synthetic.hepatocellular import FACTOR_COUNTS, HCC_FACTORS, PHASES, liver_cancer_ct
from fusion_jax.data.synthetic.liver import LIVER_LABELS, MARKERS, portal_hypertension_ct
from fusion_jax.data.synthetic.opacities import OPACITIES, TELLING_VITALS, chest_opacities, oracle_detections
from fusion_jax.data.synthetic.sarcoma import sarcoma_pet_ct
from fusion_jax.data.synthetic.truth import AUC, Synthetic, Truth, area_under_curve, auc_of_d_prime

__all__ = [
    "AUC",
    "BREAST_FEATURES",
    "COORDINATES",
    "FACTOR_COUNTS",
    "HCC_FACTORS",
    "LESIONS",
    "LIVER_LABELS",
    "MARKERS",
    "OPACITIES",
    "PHASES",
    "TELLING_VITALS",
    "TRIAGE",
    "Signal",
    "Synthetic",
    "Truth",
    "area_under_curve",
    "auc_of_d_prime",
    "bayes_auc",
    "breast_mri",
    "chest_opacities",
    "chest_xray",
    "d_prime",
    "dial",
    "liver_cancer_ct",
    "log_likelihood_ratio",
    "oracle_detections",
    "portal_hypertension_ct",
    "sarcoma_pet_ct",
]
