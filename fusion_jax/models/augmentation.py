"""Augmentation by name, for recipes that JSON describes."""

from collections.abc import Callable, Mapping

from fusion_jax.data.augment import Flip, presets
from fusion_jax.data.augment import Recipe as Augmentation
from fusion_jax.records.arguments import close_to

__all__ = ["AUGMENTATIONS", "augmentation", "check_augmentation"]

AUGMENTATIONS: tuple[str, ...] = (
    "none",
    "flips",
    "horizontal-flip",
    "projection",
    "projection-test-time",
    "liver-ct",
    "pet-ct",
    "pet-ct-slice",
    "radiograph",
)
"""What images may go through, see `fusion_jax.data.augment.presets`; `flips` mirrors the last two axes,
`horizontal-flip` the last."""


def check_augmentation(name: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
      ValueError: with the close ones.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"no augmentation {name!r}; {close_to(name, AUGMENTATIONS)}")


def augmentation(name: str, size: int) -> Augmentation | None:
    """The augmentation of a name; None for "none".

    Args:
      name: in `AUGMENTATIONS`.
      size: side of the images in pixels, by which lengths of `projection` are scaled.

    Example:
      >>> len(augmentation("flips", 32).transforms)
      2
    """
    check_augmentation(name)
    if name == "none":
        return None
    made: Mapping[str, Callable[[], Augmentation]] = {
        "flips": lambda: Augmentation((Flip(-1), Flip(-2))),
        "horizontal-flip": lambda: Augmentation((Flip(-1),)),
        "projection": lambda: presets.breast_mip_recipe(size),
        "projection-test-time": presets.breast_mip_test_time_recipe,
        "liver-ct": presets.liver_ct_recipe,
        "pet-ct": presets.petct_recipe,
        "pet-ct-slice": presets.petct_slice_recipe,
        "radiograph": presets.detection_recipe,
    }
    return made[name]()
