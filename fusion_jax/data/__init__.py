"""Cases and where they come from: bundled samples for now."""

from fusion_jax.data.samples import (
    CLINICAL_INPUTS,
    OUTCOME_COLUMNS,
    SarcomaSample,
    clinical_inputs,
    soft_tissue_sarcoma,
)

__all__ = ["CLINICAL_INPUTS", "OUTCOME_COLUMNS", "SarcomaSample", "clinical_inputs", "soft_tissue_sarcoma"]
