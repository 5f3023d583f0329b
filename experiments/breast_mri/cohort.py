"""Cohorts of the breast MRI experiment: synthetic ones, since the study's images are not public, and a real stand-in.

Holste et al. 2021; specs/breast_mri_fusion.md. Table 1 of the paper holds exactly at 17,046 cases.
"""

import dataclasses

import numpy as np

from fusion_jax.data import Cohort, Image, Lazy, monte_carlo
from fusion_jax.data.collections import ham10000_small
from fusion_jax.data.obfuscation import obfuscate_indication
from fusion_jax.data.synthetic import breast_mri

__all__ = ["FRACTIONS", "make_cohort", "skin_lesions"]

FRACTIONS = (0.614, 0.098, 0.288)
"""Shares of the published training, validation and test part."""


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


def skin_lesions(n: int | None = None, *, size: int = 224, seed: int = 0) -> Cohort:
    """Dermatoscopic images, `(size, size, 3)` in [0, 1], age, sex and body site; melanoma or not.

    Real patients in place of breasts: 5,928 lesions of `fusion_jax.data.collections.ham10000_small`, of which 8 % are
    melanomas, in parts of the published proportions (column `split`). The patient is the lesion, since which lesions
    are of one patient was not published. How the diagnosis was settled betrays it and is no input.

    Args:
      n: lesions, drawn within the classes; all of them by default.
      size: side of the middle square of an image after scaling, in pixels.
      seed: of the draw and of the parts.

    Raises:
      FileNotFoundError: the collection is not at hand.
    """
    whole = ham10000_small()
    melanoma = np.asarray(whole.table["dx"] == "mel")
    rows = np.arange(len(whole))
    if n is not None and n < len(whole):
        rng = np.random.default_rng([seed, n])
        share = n / len(whole)
        classes = [rng.permutation(np.flatnonzero(melanoma == one)) for one in (False, True)]
        rows = np.sort(np.concatenate([part[: round(share * len(part))] for part in classes]))
    cohort = whole.take(rows)
    source = cohort.sources["image"]
    cohort = dataclasses.replace(
        cohort,
        name="skin lesions",
        table=cohort.table.assign(melanoma=np.where(melanoma[rows], "yes", "no")),
        roles={**cohort.roles, "dx": "never", "melanoma": "label"},
        levels={"melanoma": ("no", "yes")},
        boxes=None,
        box_classes=(),
    )
    reader = _Square(whole, tuple(rows.tolist()), size)
    identity = f"{source.fingerprint()} {size}"
    cohort = cohort.with_source("image", Lazy(reader, np.arange(len(cohort)), "image", identity))
    [split] = monte_carlo(cohort, seed=seed, fractions=FRACTIONS).splits
    part_of = {case: name for name in ("train", "validation", "test") for case in getattr(split, name)}
    return dataclasses.replace(
        cohort,
        table=cohort.table.assign(split=[part_of[case] for case in cohort.case_id]),
        roles={**cohort.roles, "split": "group"},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Square:
    """The middle square of a photograph."""

    cohort: Cohort
    rows: tuple[int, ...]
    size: int

    def __call__(self, row: int) -> Image:
        import PIL.Image

        values = self.cohort.sources["image"][self.rows[row]]
        height, width = values.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = PIL.Image.fromarray(values[top : top + side, left : left + side])
        small = square.resize((self.size, self.size), PIL.Image.Resampling.BOX)
        return Image(np.asarray(small, np.float32) / 255)
