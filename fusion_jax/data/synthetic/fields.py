"""Smooth random fields and soft shapes, from which images are drawn."""

import numpy as np
from jaxtyping import Float

__all__ = ["blend", "directional_wave", "edge", "grid", "smooth_noise"]


def smooth_noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Float[np.ndarray, "*space"]:
    """Normal noise of mean 0 and variance 1 in every pixel, smooth over about `scale` pixels.

    Cubic B-splines with normal coefficients on a grid of `scale` pixels, which cost the same for any `scale`.

    Args:
      shape: of the field.
      scale: distance of the coefficients in pixels, at least 1.
      rng: gives the coefficients.

    Returns:
      The field, float64.
    """
    splines = [_splines(n, scale) for n in shape]
    field = rng.standard_normal([int(first[-1]) + 4 for first, _ in splines])
    for axis, (first, weights) in enumerate(splines):
        # A loop over the four splines that reach a pixel; as matrix products these would wait for busy cores.
        per_pixel = weights.reshape(4, *(-1 if other == axis else 1 for other in range(len(shape))))
        field = sum(weight * np.take(field, first + k, axis=axis) for k, weight in enumerate(per_pixel))
    return np.asarray(field)


def _splines(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """First of the four coefficients that reach each pixel, and their weights, shape `(4, n)`."""
    position = np.arange(n) / scale
    first = np.floor(position).astype(np.int64)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first, weights / np.sqrt((weights**2).sum(axis=0))


def edge(distance: Float[np.ndarray, "*space"], width: float) -> Float[np.ndarray, "*space"]:
    """1 inside (negative distance), 0 outside, with a linear ramp of `width` between."""
    return np.clip(0.5 - distance / width, 0, 1)


def blend(image: Float[np.ndarray, "*space"], value: object, share: Float[np.ndarray, "*space"]) -> np.ndarray:
    """The image with a share of every pixel replaced by a value or another image."""
    return image + share * (value - image)


def grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[Float[np.ndarray, "*space"]]:
    """Position of every pixel along every axis in mm from the centre, as arrays that broadcast to `shape`."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def directional_wave(
    direction: Float[np.ndarray, "3 *space"], frequency: float, waves: int, rng: np.random.Generator
) -> Float[np.ndarray, "*space"]:
    """A smooth random function of direction with variance about 1: the relief of a closed surface.

    Args:
      direction: unit vectors.
      frequency: radians of phase per unit of direction; bumps span about `3 / frequency` radians.
      waves: number of plane waves that are added.
      rng: gives their directions and phases.
    """
    relief = np.zeros(direction.shape[1:])
    for _ in range(waves):
        k = rng.standard_normal(3)
        k *= frequency / np.linalg.norm(k)
        relief += np.sin(np.tensordot(k, direction, axes=(0, 0)) + rng.uniform(0, 2 * np.pi))
    return relief * np.sqrt(2 / waves)
