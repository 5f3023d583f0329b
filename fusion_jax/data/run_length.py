"""Masks as COCO writes them into its results: lengths of runs, packed into text."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

__all__ = ["run_length"]

PIECE, MORE, SIGN = 5, 0x20, 0x10
"""Bits of a number in one character, and the bits that say that another follows and that the number is negative."""

FIRST = 48
"""The character of 0."""


def run_length(mask: Shaped[np.ndarray, "h w"]) -> dict[str, Any]:
    r"""A mask as COCO's compressed run-length code.

    Runs go down the columns and begin with one of zeros, which may be empty. From the fourth on, a run is written as
    its difference from the run two before it,

    .. math:: d_i = r_i - r_{i-2} \quad (i > 3)

    in groups of five bits, the lowest first, each as one printable character.

    Args:
      mask: True or not zero inside, shape `(h, w)`.

    Returns:
      `size`, `[h, w]`, and `counts`, text: the `segmentation` of a result.

    Example:
      >>> run_length(np.array([[0, 1], [1, 1]]))
      {'size': [2, 2], 'counts': '13'}

    References:
      Lin et al. 2014 and the program published with it, whose codes these equal.
    """
    flat = (np.asarray(mask) != 0).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], [0] if flat.size and flat[0] else [], ends, [flat.size]])).astype(np.int64)
    steps = runs.copy()
    steps[3:] -= runs[1:-2]
    return {"size": [int(side) for side in mask.shape], "counts": "".join(map(_packed, steps.tolist()))}


def _packed(number: int) -> str:
    text = ""
    more = True
    while more:
        bits = number & (MORE - 1)
        number >>= PIECE
        more = number != (-1 if bits & SIGN else 0)
        text += chr(FIRST + (bits | MORE if more else bits))
    return text
