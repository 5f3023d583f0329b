"""Augmentation on device: images with their boxes and masks, from keys that belong to the case.

A recipe is a value; `augment_sample` applies it to one case and `augment_batch` to a batch, inside a program that the
caller compiles once; `augmented` takes a `Batch`:

    recipe = Recipe((Flip(), Rotate(10), OneOf((Blur(), Contrast((0.8, 1.2))))), fill={"ct": -1000})
    shown = jax.jit(augmented, static_argnums=0)(recipe, batch, case_keys(key, epoch, batch.index))
"""

from fusion_jax.data.augment.apply import (
    Recipe,
    Sample,
    augment_batch,
    augment_sample,
    augmented,
    case_keys,
    swap_flag,
)
from fusion_jax.data.augment.presets import (
    breast_mip_recipe,
    breast_mip_test_time_recipe,
    detection_recipe,
    liver_ct_recipe,
    petct_recipe,
    petct_slice_recipe,
)
from fusion_jax.data.augment.test_time import augmented_predictions
from fusion_jax.data.augment.transforms import (
    AffineJitter,
    AllOf,
    Blur,
    Contrast,
    Elastic,
    Flip,
    GaussianBlur,
    Noise,
    OneOf,
    QuarterTurns,
    Rescale,
    Rotate,
    Scale,
    Transform,
    Translate,
)

__all__ = [
    "AffineJitter",
    "AllOf",
    "Blur",
    "Contrast",
    "Elastic",
    "Flip",
    "GaussianBlur",
    "Noise",
    "OneOf",
    "QuarterTurns",
    "Recipe",
    "Rescale",
    "Rotate",
    "Sample",
    "Scale",
    "Transform",
    "Translate",
    "augment_batch",
    "augment_sample",
    "augmented",
    "augmented_predictions",
    "breast_mip_recipe",
    "breast_mip_test_time_recipe",
    "case_keys",
    "detection_recipe",
    "liver_ct_recipe",
    "petct_recipe",
    "petct_slice_recipe",
    "swap_flag",
]
