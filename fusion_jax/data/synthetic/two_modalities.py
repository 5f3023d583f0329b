"""Images of two modalities neither of which tells the class alone: a focus in PET and the texture of CT."""

import json
from functools import partial

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.cohort import Cohort, Lazy
from fusion_jax.data.image import Image
from fusion_jax.data.synthetic.draws import case_stream, checked_n, column_stream, proportional, shuffled_levels
from fusion_jax.data.synthetic.fields import smooth_noise
from fusion_jax.data.synthetic.truth import Synthetic, Truth

__all__ = ["focus_and_texture"]

CELLS = ((True, True), (True, False), (False, True))
"""Focus and texture of every kind of case."""

SHARES = (2, 1, 1)

NOISE = 0.3
"""Standard deviation of a pixel of PET, in heights of the focus."""

COARSE = 4.0
"""Pixels over which the texture of CT is smooth where it is not fine."""


def focus_and_texture(n: int, *, shape: tuple[int, ...] = (16, 16), seed: int = 0) -> Synthetic:
    r"""PET and CT in two or three dimensions; the class is 1 where PET has a focus and CT a fine texture.

    .. math:: y = f \wedge t

    Half of the cases have both, a quarter the focus alone, a quarter the texture alone. PET is white noise, with a
    Gaussian focus somewhere or without. CT is noise of mean 0 and variance 1 in every pixel either way: white where the
    texture is fine, smooth over four pixels where it is not, so that only neighbours tell. Both are seen practically
    without error: a matched filter is wrong in fewer than one case in a thousand.

    One modality alone tells the classes apart with sensitivity 1 and specificity ½ at best, so that its AUC is at most
    0.75 and its accuracy at most 0.75; both together reach 1:

    .. math:: \text{AUC}_\text{PET} = \text{AUC}_\text{CT} = \tfrac34, \qquad \text{AUC}_\text{both} = 1

    Not realistic: nothing but the signal is drawn.

    Args:
      n: number of cases, at least 4.
      shape: `(h, w)` or `(d, h, w)`, at least 8 pixels in every direction.
      seed: of all draws.

    Returns:
      Cohort with the sources `pet` and `ct`, each `(*shape, 1)`, and the label column `label`; `hidden` has `focus` and
      `texture`. Evidence is infinite where a class is ruled out.

    Raises:
      ValueError: fewer than 4 cases, or a shape that is none of these.

    Example:
      >>> cohort, truth = focus_and_texture(8)
      >>> cohort.sources["pet"][0].shape, int(cohort.label.sum()), truth.auc("pet").value, truth.auc().value
      ((16, 16, 1), 4, 0.75, 1.0)
    """
    n = checked_n(n, 4, "focus_and_texture")
    if len(shape) not in (2, 3) or min(shape) < 8:
        raise ValueError(f"shape is {shape}; expected (h, w) or (d, h, w) with at least 8 pixels in every direction.")
    kinds = shuffled_levels(proportional(SHARES, n), column_stream(seed, "kind"))
    focus, texture = np.array(CELLS)[kinds].T
    label = (focus & texture).astype(int)
    identity = json.dumps(["focus_and_texture", seed, n, shape])
    rows = np.arange(n)
    cohort = Cohort.from_arrays(
        {
            "pet": Lazy(partial(_pet, focus, shape, seed), rows, "image", f"{identity} pet"),
            "ct": Lazy(partial(_ct, texture, shape, seed), rows, "image", f"{identity} ct"),
        },
        label=label,
        name="synthetic focus and texture",
    )
    evidence = {name: np.where(seen, np.log(2.0), -np.inf)[:, None] for name, seen in (("pet", focus), ("ct", texture))}
    together = np.where(label == 1, np.inf, -np.inf)[:, None]
    return Synthetic(
        cohort, Truth(("label",), label[:, None], evidence, together, {"focus": focus, "texture": texture})
    )


def _pet(focus: Bool[np.ndarray, "n"], shape: tuple[int, ...], seed: int, row: int) -> Image:
    rng = case_stream(seed, row, "pet")
    values = NOISE * rng.standard_normal(shape)
    if focus[row]:
        # A tenth of the side from the border at least, so that most of the focus is inside.
        offsets = [np.arange(side) - rng.uniform(0.15, 0.85) * (side - 1) for side in shape]
        squares = sum(np.square(axis) for axis in np.meshgrid(*offsets, indexing="ij", sparse=True))
        values = values + 2 * np.exp(-squares / (2 * 1.5**2))
    return Image(values[..., None].astype(np.float32))


def _ct(texture: Bool[np.ndarray, "n"], shape: tuple[int, ...], seed: int, row: int) -> Image:
    rng = case_stream(seed, row, "ct")
    values = rng.standard_normal(shape) if texture[row] else smooth_noise(shape, COARSE, rng)
    return Image(values[..., None].astype(np.float32))
