"""Images that are copies of another: exact by digest, nearly so by a perceptual hash that correlation confirms.

The hash has 64 bits: signs of the lowest 8 x 8 coefficients of the cosine transform about their median, of the image
in 32 x 32 pixels. Two images are near duplicates where at most 8 bits differ and their 64 x 64 pixels correlate at
0.98 or more, or both for one of them inverted.

Measured on three collections of real images. Pairs of two patients (HAM10000: lesions) with hashes at most 8 bits
apart: 189 of 19,306 in JSRT, 4 of 30,400 in the COVID-19 chest X-rays, 1,271 of 17.6 million in HAM10000. Their largest
correlations were 0.954, 0.932 and 0.969 but for one pair of 0.997, ISIC_0030074 and ISIC_0025226: the same mole of a
man of 40 on an arm, under two lesion numbers. So no false alarm. Of 450 copies per kind, made from 150 images of each
collection, all were found that were compressed (JPEG at quality 60), halved in size, reduced in contrast by a fifth or
inverted, and 99.8 and 99.6 % with gamma 0.8 and with noise of 5 grey levels; but 22 and 2 % of those that were cropped
by 2 and 5 % at each edge, and 2 % with burnt-in letters. What is found is a copy; not every copy is found.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

__all__ = ["BITS_APART", "LEAST_CORRELATION", "Pair", "equal_groups", "joined", "near_pairs", "perceptual_hash"]

BITS_APART = 8
LEAST_CORRELATION = 0.98
BLOCK = 2048  # rows whose hashes are compared at a time: 2048 x n float32


class Pair(NamedTuple):
    """Two images that resemble each other like copies.

    Attributes:
      first, second: their numbers, the first smaller.
      bits: that differ in their hashes.
      correlation: of their pixels; negative where one is inverted.
      flip: "" or how the second was flipped, "left-right" or "upside down".
    """

    first: int
    second: int
    bits: int
    correlation: float
    flip: str = ""


def perceptual_hash(thumbnails: UInt8[np.ndarray, "n 64 64"]) -> Int[np.ndarray, "n 64"]:
    """Signs, −1 or 1, of the 64 lowest cosine coefficients about the median of all but the first.

    Example:
      >>> ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (1, 64, 1))
      >>> brighter = ramp // 2 + 100
      >>> bool((perceptual_hash(ramp) == perceptual_hash(brighter)).mean() > 0.9)
      True

    References:
      Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1 (DCT).
    """
    from scipy import fft

    signs = np.empty((len(thumbnails), 64), np.int8)
    for start in range(0, len(thumbnails), BLOCK):  # as floats, all of 20,000 at once would take 0.4 GB
        small = thumbnails[start : start + BLOCK].reshape(-1, 32, 2, 32, 2).mean(axis=(2, 4), dtype=np.float32)
        low = np.asarray(fft.dctn(small, axes=(1, 2), norm="ortho"))[:, :8, :8].reshape(len(small), 64)
        low[:, 0] = 0.0  # brightness
        signs[start : start + BLOCK] = np.where(low > np.median(low[:, 1:], axis=1, keepdims=True), 1, -1)
    return signs


def near_pairs(
    thumbnails: UInt8[np.ndarray, "n 64 64"],
    *,
    bits: int = BITS_APART,
    correlation: float = LEAST_CORRELATION,
    flips: bool = False,
) -> list[Pair]:
    """Pairs of images that are copies of each other but for compression, size, brightness, contrast or inversion.

    Every pair is compared, block by block: 20,000 images take seconds and 0.2 GB beside their thumbnails.

    Args:
      thumbnails: of all images.
      bits: of the hashes that may differ.
      correlation: least one of the pixels.
      flips: also look for images flipped left-right or upside down.
    """
    signs = perceptual_hash(thumbnails).astype(np.float32)
    pairs = [Pair(*pair) for pair in _confirmed(signs, signs, thumbnails, thumbnails, bits, correlation)]
    known = {(pair.first, pair.second) for pair in pairs}
    turns = {"left-right": np.s_[:, :, ::-1], "upside down": np.s_[:, ::-1]} if flips else {}
    for flip, turn in turns.items():
        others = perceptual_hash(thumbnails[turn]).astype(np.float32)
        for pair in _confirmed(signs, others, thumbnails, thumbnails[turn], bits, correlation):
            if pair[:2] not in known:  # a symmetric image is its own mirror image
                known.add(pair[:2])
                pairs.append(Pair(*pair, flip))
    return sorted(pairs)


def _confirmed(
    signs: Float[np.ndarray, "n 64"],
    others: Float[np.ndarray, "n 64"],
    images: UInt8[np.ndarray, "n 64 64"],
    turned: UInt8[np.ndarray, "n 64 64"],
    bits: int,
    correlation: float,
) -> Iterator[tuple[int, int, int, float]]:
    for start in range(0, len(signs), BLOCK):
        agreement = signs[start : start + BLOCK] @ others[start:].T  # 64 minus twice the bits that differ
        rows, columns = np.nonzero(np.abs(agreement) >= 64 - 2 * bits)
        later = columns > rows
        rows, columns = rows[later], columns[later]
        # Chest radiographs are alike: of 20,000 a million pairs may get here, each with 2 x 16 kB of pixels.
        for chunk in range(0, len(rows), BLOCK):
            first, second = rows[chunk : chunk + BLOCK], columns[chunk : chunk + BLOCK]
            one, other = _standardised(images[start + first]), _standardised(turned[start + second])
            found = np.einsum("nij,nij->n", one, other)
            signed = agreement[first, second]
            sure = np.abs(found) >= correlation
            for row, column, value, same in zip(first[sure], second[sure], found[sure], signed[sure], strict=True):
                apart = round((64 - abs(float(same))) / 2)
                yield start + int(row), start + int(column), apart, min(1.0, max(-1.0, float(value)))


def _standardised(thumbnails: UInt8[np.ndarray, "n 64 64"]) -> Float[np.ndarray, "n 64 64"]:
    """Images of mean 0 and length 1; zeros for a constant image, which correlates with nothing."""
    pixels = thumbnails.astype(np.float32)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.einsum("nij,nij->n", pixels, pixels))[:, None, None]
    return np.divide(pixels, length, out=np.zeros_like(pixels), where=length > 0)


def equal_groups(keys: Sequence[bytes]) -> list[list[int]]:
    """Numbers of the rows that share a key, for every key of several rows.

    Example:
      >>> equal_groups([b"a", b"b", b"a"])
      [[0, 2]]
    """
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def joined(n: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of rows that are linked directly or through others, each in order.

    Example:
      >>> joined(5, [(0, 3), (3, 4)])
      [[0, 3, 4]]
    """
    if not links:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(links).T
    graph = coo_array((np.ones(len(links), np.int8), (first, second)), shape=(n, n))
    names: Any = connected_components(graph, directed=False)[1]
    groups: dict[int, list[int]] = {}
    for row in np.unique(np.concatenate([first, second])):
        groups.setdefault(int(names[row]), []).append(int(row))
    return list(groups.values())
