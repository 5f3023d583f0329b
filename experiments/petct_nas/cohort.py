"""The cohort of the architecture search: the real one, which comes with the package at 4 mm.

Peng et al. 2020; specs/mm_nas.md. 48 patients with soft-tissue sarcoma, of whom 24 developed distant metastases.
"""

from fusion_jax.data import Cohort, preprocessed
from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.data.images.pipeline import ct_body, pet_suv

__all__ = ["make_cohort"]


def make_cohort(*, spacing: float = 8.0, shape: tuple[int, int, int] = (36, 28, 28)) -> Cohort:
    """PET and CT of the tumour as `(d, h, w, 1)` in [0, 1], centred on it.

    The paper's volumes of 112 x 112 x 144 voxels stand for about the same field at 2 mm.
    """
    around = [{"op": "resample", "spacing": spacing}, {"op": "crop_or_pad", "mask": "mask.file", "size": list(shape)}]
    steps = {"pet": [*around, *pet_suv()], "ct": [*around, *ct_body()]}
    return preprocessed(soft_tissue_sarcoma_cohort(paper_cohort=True), steps).only("pet", "ct", "clinical")
