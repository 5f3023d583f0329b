"""What stands beside the image features in the fused layer: encoded markers, and controls of equal size and norm.

A larger block of markers does three things at once: it gives the head other functions of the markers, it weighs more in
the norm of the layer, and it learns faster. The controls take these apart:

- `positional`: the encoding of Wang et al. 2023, Eq. 8 and 9, of markers in native units;
- `shuffled`: the same numbers, each patient's given to another: size and norm without information;
- `repetition`: the scaled markers over and over: information, size and norm, and no new function of the markers;
- `fourier`: random Fourier features of the scaled markers: other functions of the markers;
- `raw`: the scaled markers once, multiplied to the same norm: what is left of `repetition` without its size.

Every block has the mean squared norm of the positional encoding, D / 2, over the training patients.
"""

from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from fusion_jax.quality import ENCODINGS

__all__ = ["CONTROLS", "Control", "block_sizes", "marker_block"]

Control = Literal["positional", "repetition", "fourier", "raw", "shuffled"]
CONTROLS: tuple[Control, ...] = get_args(Control)


def block_sizes(gammas: tuple[float, ...], features: int, markers: int) -> tuple[int, ...]:
    """Sizes d2* nearest to gamma times the number of image features, an even number of coordinates a marker.

    Example:
      >>> block_sizes((0.09375, 1.0, 3.0), 2048, 3)
      (192, 2046, 6144)
    """
    each = 2 * markers
    return tuple(max(1, round(gamma * features / each)) * each for gamma in gammas)


def marker_block(
    control: Control, markers: Float[np.ndarray, "n t"], size: int, train: Int[np.ndarray, "m"], *, seed: int
) -> Float[np.ndarray, "n f"]:
    """Coordinates of the markers of all patients, fitted to the training patients.

    Args:
      control: see above.
      markers: in native units, without missing values.
      size: number of coordinates d2*, a multiple of twice the markers; `raw` has one for each marker.
      train: rows of the training patients.
      seed: of random frequencies and of the shuffle.

    Returns:
      The block, float64; its mean squared norm over the training patients is `size / 2`.
    """
    key = jax.random.key(seed)
    if control in ("positional", "shuffled"):
        encoding = ENCODINGS["positional"]()
    else:
        encoding = ENCODINGS["fourier" if control == "fourier" else "repetition"](scaling="robust")
    params = encoding.fit(np.asarray(markers[train], np.float32), key)
    coordinates = markers.shape[1] if control == "raw" else size
    block = np.asarray(encoding.encode(params, np.asarray(markers, np.float32), coordinates), np.float64)
    if control == "shuffled":
        block = block[np.random.default_rng([seed, size]).permutation(len(block))]
    return block * np.sqrt(size / 2 / np.mean(np.sum(np.square(block[train]), axis=1)))
