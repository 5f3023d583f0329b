"""Take out of a column what only a known diagnosis could have put there."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

__all__ = ["obfuscate_indication"]


def obfuscate_indication(
    indication: Shaped[np.ndarray, "n"],
    birads: Shaped[np.ndarray, "n"],
    case_id: Sequence[str],
    *,
    seed: int,
    revealing: int | str = 3,
    replacements: Sequence[int | str] = (0, 1, 2),
) -> Shaped[np.ndarray, "n"]:
    """Replace the indication of examinations whose cancer was known before, BI-RADS 6, by a uniform draw.

    "Assess extent of disease" says that cancer has been proven: a model that reads it reads the label. Rows of BI-RADS
    6 with that indication get one of the other indications; all other rows are untouched, among them BI-RADS 6 with
    another indication. The draw depends on `seed` and the case id alone, neither on the order nor on the other rows.

    Args:
      indication: one code or word a case.
      birads: final assessment, a number 0 to 6; NaN where not known.
      case_id: ids of the cases.
      seed: of the draw.
      revealing: code or word of "assess extent".
      replacements: codes or words to draw from.

    Returns:
      A copy; the dtype is kept, made wide enough for the words.

    Raises:
      TypeError: BI-RADS categories are no numbers, or `revealing` and the indications are of different kinds.
      ValueError: lengths differ, case ids repeat, or `replacements` are none or hold `revealing`.

    Example:
      >>> obfuscate_indication(np.array([3, 3, 1]), np.array([6, 4, 6]), ["a", "b", "c"], seed=0).tolist()
      [0, 3, 1]

    References:
      Holste et al. 2021, in the training, validation and test set; specs/breast_mri_fusion.md, 2.2, reading B6.
    """
    if not len(indication) == len(birads) == len(case_id):
        raise ValueError(
            f"{len(indication)} indications, {len(birads)} BI-RADS categories and {len(case_id)} case ids; expected "
            "one of each a case."
        )
    if len(set(case_id)) != len(case_id):
        raise ValueError("case ids repeat; expected one row a case, so that each has a draw of its own.")
    if not replacements or revealing in replacements:
        raise ValueError(f"replacements are {list(replacements)!r}; expected other indications than {revealing!r}.")
    # A comparison of a word with a number is false in every row and would leave the leak where it is.
    if not np.issubdtype(birads.dtype, np.number):
        raise TypeError(f"BI-RADS categories have the dtype {birads.dtype}; expected numbers. Strip the words.")
    wordy = {isinstance(word, str) for word in indication.tolist() if not _missing(word)}
    if wordy - {isinstance(revealing, str)}:
        raise TypeError(
            f"indications have the dtype {indication.dtype} and the revealing one is {revealing!r}; expected both "
            "words or both numbers."
        )
    result = indication.copy()
    if indication.dtype.kind == "U":  # fixed width: a longer word would be cut off
        result = result.astype(np.result_type(indication.dtype, np.array(replacements).dtype))
    for row in np.flatnonzero((birads == 6) & (indication == revealing)).tolist():
        rng = np.random.default_rng([seed, zlib.crc32(case_id[row].encode())])
        result[row] = replacements[int(rng.integers(len(replacements)))]
    return result


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
