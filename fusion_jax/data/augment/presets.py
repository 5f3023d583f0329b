"""Recipes of published studies and of this project, by what is in the image."""

from fusion_jax.data.augment.apply import Recipe
from fusion_jax.data.augment.transforms import (
    AffineJitter,
    AllOf,
    Blur,
    Contrast,
    Elastic,
    Flip,
    OneOf,
    QuarterTurns,
    Rescale,
    Rotate,
    Transform,
)

__all__ = [
    "breast_mip_recipe",
    "breast_mip_test_time_recipe",
    "detection_recipe",
    "liver_ct_recipe",
    "petct_recipe",
    "petct_slice_recipe",
]


def breast_mip_recipe(size: int = 224) -> Recipe:
    """Training on maximum-intensity projections of one breast, values from 0 to 1.

    Left-right flip with p = 0.5; always either a 3 x 3 mean or a contrast factor of 0.8 to 1.2; with p = 0.5 a jitter
    of three corners by up to 10 pixels with an elastic field (alpha 1, sigma 5 pixels); with p = 0.5 the resolution of
    a grid of 0.8 to 1.2 times the size; with p = 0.5 a rotation by up to 20 degrees. Zeros come in at the border.

    Args:
      size: side of the image in pixels; lengths are scaled from the published 224.

    Example:
      >>> [type(transform).__name__ for transform in breast_mip_recipe().transforms]
      ['Flip', 'OneOf', 'AllOf', 'Rescale', 'Rotate']

    References:
      Holste et al. 2021; specs/breast_mri_fusion.md, section 5. "Affine alpha 10, sigma 5" is read as `alpha_affine`
      and `sigma` of albumentations 0.4.5 with its default alpha of 1, so that the elastic field moves pixels by 0.03.
      Its contrast is about zero; its blur has odd kernels from 3, which "up to 4" leaves at 3. There every step
      interpolates and cuts corners; here blur and contrast follow a single interpolation.
    """
    part = size / 224
    elastic = AllOf((AffineJitter(10.0 * part), Elastic(alpha=part**2, sigma=5.0 * part)), p=0.5)
    return Recipe((Flip(-1), _blur_or_contrast(), elastic, Rescale((0.8, 1.2), p=0.5), Rotate(20.0, p=0.5)))


def breast_mip_test_time_recipe() -> Recipe:
    """Test-time copies of maximum-intensity projections: flip, blur or contrast, rotation as in training.

    The study averages five copies without the image itself (`augmented_predictions(..., copies=5)`), from seed 0.

    Example:
      >>> [type(transform).__name__ for transform in breast_mip_test_time_recipe().transforms]
      ['Flip', 'OneOf', 'Rotate']

    References:
      Holste et al. 2021; specs/breast_mri_fusion.md, section 5 and B2.
    """
    return Recipe((Flip(-1), _blur_or_contrast(), Rotate(20.0, p=0.5)))


def detection_recipe() -> Recipe:
    """Training of a detector on radiographs: left-right flip with p = 0.5, with boxes and masks, bit for bit.

    Example:
      >>> detection_recipe().transforms
      (Flip(p=0.5, axis=-1),)

    References:
      Hsieh et al., MDF-Net; specs/mdf_net.md, section 2.
    """
    return Recipe((Flip(-1),))


def liver_ct_recipe() -> Recipe:
    """Training on crops of the liver: flips along both axes with p = 0.5 each, rotation by up to 15 degrees.

    Example:
      >>> [type(transform).__name__ for transform in liver_ct_recipe().transforms]
      ['Flip', 'Flip', 'Rotate']

    References:
      specs/hcc_fusion.md, section 5, as an option: the paper states no augmentation.
    """
    return Recipe((Flip(-1), Flip(-2), Rotate(15.0)))


def petct_recipe() -> Recipe:
    """Training on PET-CT volumes in canonical order, CT in HU and PET in SUV under the names `ct` and `pet`.

    Left-right and front-back flips with p = 0.5 each; with p = 0.5 each, rotation by up to 10 degrees about the body
    axis and by up to 5 degrees about the other two. Air comes in at the border of the CT, zero uptake at that of the
    PET; give the spacing, so that anisotropic volumes are turned and not sheared.

    Example:
      >>> petct_recipe().fill
      (('ct', -1000.0), ('pet', 0.0))

    References:
      specs/mm_nas.md, N12: the paper states no augmentation; these numbers are this project's.
    """
    turns = (Rotate(10.0, axis=0, p=0.5), Rotate(5.0, axis=1, p=0.5), Rotate(5.0, axis=2, p=0.5))
    return Recipe((Flip(-1), Flip(-2), *turns), fill={"ct": -1000.0, "pet": 0.0})


def petct_slice_recipe() -> Recipe:
    """Training on single slices: flips with p = 0.5 each, quarter turns with p = 0.75, rotation by up to 10 degrees.

    Example:
      >>> [type(transform).__name__ for transform in petct_slice_recipe().transforms]
      ['Flip', 'Flip', 'QuarterTurns', 'Rotate']

    References:
      The baseline network for head-and-neck CT in specs/mm_nas.md, section 8.
    """
    return Recipe((Flip(-1), Flip(-2), QuarterTurns(p=0.75), Rotate(10.0)))


def _blur_or_contrast() -> Transform:
    return OneOf((Blur((3,)), Contrast((0.8, 1.2), about=0.0, clip=(0.0, 1.0))))
