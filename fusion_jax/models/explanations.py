"""Where in an image a trained model looks, case by case: what covering a part of the image does to the score.

Qualitative: a map shows what this model's score of this case hangs on, not what the disease looks like, and nothing is
tested.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.data.cohort import Arrays
from fusion_jax.data.image import Image
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.fold_models import FoldModels

__all__ = ["Occlusion", "chosen_cases", "occlusion_maps"]


class Occlusion(NamedTuple):
    """What covering a part of one image does to the score of its case.

    Attributes:
      row: of the cohort.
      source: that was covered.
      image: as the model got it.
      score: with nothing covered.
      loss: score less that with the patch covered, shape of the grid of patches, `(h, w)` or `(d, h, w)`.
    """

    row: int
    source: str
    image: Image
    score: float
    loss: Float[np.ndarray, "*grid"]


def chosen_cases(comparison: Comparison, model: str, *, count: int = 4, seed: int = 0) -> tuple[int, ...]:
    """Rows of tested cases drawn at random, as many of each class as there can be; never chosen by how they look."""
    models = FoldModels(comparison, model)
    rng = np.random.default_rng([seed, len(models.cohort)])
    rows = rng.permutation(models.tested)
    if models.target.kind == "survival":
        return tuple(int(row) for row in rows[:count])
    labels = models.cohort.label[rows]
    pools = [rows[labels == one] for one in range(len(models.target.classes))]
    dealt = [row for some in itertools.zip_longest(*pools) for row in some if row is not None]
    return tuple(int(row) for row in dealt[:count])


def occlusion_maps(
    comparison: Comparison, model: str, rows: tuple[int, ...], *, patches: int = 8, slabs: int = 4
) -> tuple[Occlusion, ...]:
    """Maps of cases for every image that a model reads.

    Every patch of a grid is covered with the mean of the image in turn, and the case is scored again by the model of
    the fold in which it was tested. For three classes and more the score is the probability of the case's own class.

    Args:
      comparison: that was carried out.
      model: one of its models; nothing comes back for one that reads no image.
      rows: tested rows of the cohort.
      patches: of the grid along height and width.
      slabs: of the grid along the depth of a volume.
    """
    models = FoldModels(comparison, model)
    cohort = models.cohort
    found = []
    for row in rows:
        for name in models.sources:
            if cohort.sources[name].kind != "image" or not cohort.present[name][row]:
                continue
            image = cohort.image(name, row)
            covered, shape = _covered(image.values, patches, slabs)
            source = Arrays(
                covered,
                "image",
                spacing=[image.spacing] * len(covered),
                affine=None if image.affine is None else [image.affine] * len(covered),
                unit=image.unit,
            )
            scores = _own(models, row, models.scores(np.full(len(covered), row), replaced={name: source}))
            found.append(Occlusion(row, name, image, float(scores[0]), (scores[0] - scores[1:]).reshape(shape)))
    return tuple(found)


def _own(models: FoldModels, row: int, scores: np.ndarray) -> np.ndarray:
    return scores if scores.ndim == 1 else scores[:, models.cohort.label[row]]


def _covered(values: np.ndarray, patches: int, slabs: int) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """The image, then with every patch of the grid covered; and the shape of the grid."""
    space = values.shape[:-1]
    counts = [min(size, slabs if len(space) == 3 and axis == 0 else patches) for axis, size in enumerate(space)]
    edges = [np.linspace(0, size, count + 1).astype(int) for size, count in zip(space, counts, strict=True)]
    # In the image's own kind of number, so that readers find what they know.
    filling: Any = values.reshape(-1, values.shape[-1]).mean(axis=0).astype(values.dtype)
    found = [values]
    for place in itertools.product(*(range(count) for count in counts)):
        patch = tuple(slice(edge[at], edge[at + 1]) for edge, at in zip(edges, place, strict=True))
        changed = values.copy()
        changed[patch] = filling
        found.append(changed)
    return found, tuple(counts)
