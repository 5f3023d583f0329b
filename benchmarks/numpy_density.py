"""Kernel densities in plain NumPy and SciPy: peers of the library, and references in float64.

The peers compute in the dtype of `values`. Bandwidths are a vector: squares, bins and spectra are shared by all of
them, as the library shares them. Gradients are written by hand.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import scipy.fft
import scipy.special

Array = np.ndarray
WithGradients = tuple[Array, tuple[Array, Array]]
"""Value, and its gradients in the values and in the bandwidths."""

BLOCK = 64  # samples at once: the fastest of 32 to 1,024 on 2 cores

# SciPy annotates its dispatch, not what it returns.
rfft = cast("Callable[..., Array]", scipy.fft.rfft)
irfft = cast("Callable[..., Array]", scipy.fft.irfft)


# Exact densities.


def exact(values: Array, widths: Array, grid: Array) -> Array:
    """All pairs at once, as one would write it first."""
    squares = np.square(grid[:, None] - values[None, :])
    return np.stack([np.exp(squares * (-0.5 / w**2)).mean(axis=1) / (w * np.sqrt(2 * np.pi)) for w in widths])


def exact_in_blocks(values: Array, widths: Array, grid: Array) -> Array:
    """A block of samples at a time, so that kernel values stay in cache."""
    total = np.zeros((widths.size, grid.size))  # float64: thousands of blocks are added
    for start in range(0, values.size, BLOCK):
        squares = np.square(values[start : start + BLOCK, None] - grid[None, :])
        kernels = np.empty_like(squares)
        for row, width in zip(total, widths, strict=True):
            np.multiply(squares, -0.5 / width**2, out=kernels)
            np.exp(kernels, out=kernels)
            row += kernels.sum(axis=0)
    return (total / (values.size * widths * np.sqrt(2 * np.pi))[:, None]).astype(grid.dtype)


def exact_with_gradients(values: Array, widths: Array, grid: Array, cotangent: Array) -> WithGradients:
    offsets = grid[:, None] - values[None, :]
    squares = np.square(offsets)
    density, of_values, of_widths = [], np.zeros_like(values), []
    for width, taken in zip(widths, cotangent, strict=True):
        kernels = np.exp(squares * (-0.5 / width**2))
        kernels *= values.dtype.type(1 / (values.size * width * np.sqrt(2 * np.pi)))
        density.append(kernels.sum(axis=1))
        of_widths.append(taken @ ((kernels * squares).sum(axis=1) / width**3 - density[-1] / width))
        kernels *= offsets
        of_values += taken @ kernels / width**2
    return np.stack(density), (of_values, np.stack(of_widths))


# Binned densities: the algorithm of the library.


def bins(values: Array, start: float, step: float, size: int, weights: Array | None) -> tuple[Array, Array, Array]:
    """Masses by cubic B-spline weights; and of each value its first bin and its position after the second one."""
    position = (values - start) / step
    lower = np.floor(position)
    u, index = position - lower, lower.astype(np.int64) - 1
    v = 1 - u
    masses = np.zeros(size)
    for k, weight in enumerate((v * v * v, (3 * u - 6) * u * u + 4, (3 * v - 6) * v * v + 4, u * u * u)):
        masses += np.bincount(index + k, weights=weight if weights is None else weight * weights, minlength=size)
    return (masses / masses.sum()).astype(values.dtype), index, u


class Layout:
    """Bins with a margin of half the grid at either side, and the Fourier transform of the kernels on them."""

    def __init__(self, widths: Array, grid: Array) -> None:
        self.step, self.margin = float(grid[1] - grid[0]), grid.size // 2
        self.start = float(grid[0]) - self.margin * self.step
        self.size = int(scipy.fft.next_fast_len(grid.size + 2 * self.margin, real=True) or 0)
        self.window = slice(self.margin, self.margin + grid.size)
        frequency = 2 * np.pi / (self.size * self.step) * np.arange(self.size // 2 + 1)
        self.squares = np.square(frequency).astype(widths.dtype)
        # Narrowed by the variance that the B-spline adds.
        self.smoothing = np.exp(-0.5 * (widths[:, None] ** 2 - self.step**2 / 3) * self.squares)

    def density(self, spectra: Array) -> Array:
        return irfft(spectra, n=self.size)[:, self.window] / self.step


def binned(values: Array, widths: Array, grid: Array, weights: Array | None = None) -> Array:
    """Cubic B-spline binning by `bincount`, one FFT, one inverse FFT a bandwidth."""
    layout = Layout(widths, grid)
    masses, _, _ = bins(values, layout.start, layout.step, layout.size, weights)
    return np.maximum(layout.density(rfft(masses) * layout.smoothing), 0)


def binned_with_gradients(values: Array, widths: Array, grid: Array, cotangent: Array) -> WithGradients:
    """The convolution is its own adjoint."""
    layout = Layout(widths, grid)
    masses, index, u = bins(values, layout.start, layout.step, layout.size, None)
    spectra = rfft(masses) * layout.smoothing
    of_widths = -widths * np.sum(cotangent * layout.density(spectra * layout.squares), axis=1)
    padded = np.pad(cotangent, ((0, 0), (layout.margin, layout.size - layout.window.stop)))
    of_masses = irfft(np.sum(rfft(padded) * layout.smoothing, axis=0), n=layout.size) / layout.step
    v = 1 - u
    of_values = np.zeros_like(values)
    for k, slope in enumerate((-v * v, (3 * u - 4) * u, (4 - 3 * v) * v, u * u)):
        of_values += slope * of_masses[index + k]
    of_values *= values.dtype.type(1 / (2 * layout.step * values.size))
    return np.maximum(layout.density(spectra), 0), (of_values, of_widths)


def log_positive_sum(values: Array, widths: Array, grid: Array) -> Array:
    """Logarithm of the positive sum over occupied bins, by SciPy's logsumexp."""
    layout = Layout(widths, grid)
    masses, _, _ = bins(values, layout.start, layout.step, layout.size, None)
    occupied = masses > 0
    centres = (layout.start + layout.step * np.arange(layout.size))[occupied].astype(grid.dtype)
    squares, masses = np.square(grid[:, None] - centres[None, :]), masses[occupied][None, :]
    variances = widths**2 - widths.dtype.type(layout.step**2 / 3)
    logsumexp: Any = scipy.special.logsumexp  # annotated as if it returned signs
    logs = [logsumexp(squares * (-0.5 / v), axis=1, b=masses) for v in variances]
    return np.stack(logs) - 0.5 * np.log(2 * np.pi * variances)[:, None]


# Information potentials.


def potential(values: Array, widths: Array) -> Array:
    """All pairs, a block of rows at a time."""
    total = np.zeros(widths.size)
    for start in range(0, values.size, BLOCK):
        squares = np.square(values[start : start + BLOCK, None] - values[None, :])
        total += [np.exp(squares * (-0.25 / w**2)).sum() for w in widths]
    return total / (values.size**2 * 2 * widths * np.sqrt(np.pi))


def potential_with_gradients(values: Array, widths: Array, cotangent: Array) -> WithGradients:
    sums, spread, of_values = np.zeros(widths.size), np.zeros(widths.size), np.zeros_like(values)
    scale = (1 / (values.size**2 * 2 * widths * np.sqrt(np.pi))).astype(values.dtype)
    for start in range(0, values.size, BLOCK):
        offsets = values[start : start + BLOCK, None] - values[None, :]
        squares = np.square(offsets)
        for k, width in enumerate(widths):
            kernels = np.exp(squares * (-0.25 / width**2))
            sums[k] += kernels.sum()
            spread[k] += (kernels * squares).sum()  # a dot product would add in order, and round at every term
            kernels *= offsets
            of_values[start : start + BLOCK] -= cotangent[k] * scale[k] / width**2 * kernels.sum(axis=1)
    of_widths = cotangent * scale * (spread / (2 * widths**3) - sums / widths)
    return sums * scale, (of_values, of_widths)


# References: direct sums in float64.


def reference_log_density(values: Array, widths: Array, at: Array) -> Array:
    """One point at a time, with the largest term taken out: exact in the tails."""
    values, widths = values.astype(float), widths.astype(float)
    found = np.empty((widths.size, at.size))
    for column, point in enumerate(at.astype(float)):
        squares = np.square(point - values)
        least = squares.min()
        for row, width in enumerate(widths):
            found[row, column] = np.log(np.exp((least - squares) / (2 * width**2)).sum()) - least / (2 * width**2)
    return found - np.log(values.size * np.sqrt(2 * np.pi) * widths)[:, None]


def reference_density_gradient(values: Array, rows: Array, widths: Array, grid: Array, cotangent: Array) -> Array:
    """Gradient in the values `rows`."""
    offsets = grid.astype(float)[:, None] - values[rows].astype(float)[None, :]
    total = np.zeros(rows.size)
    for width, taken in zip(widths.astype(float), cotangent.astype(float), strict=True):
        kernels = np.exp(-0.5 * np.square(offsets / width)) / (values.size * width**3 * np.sqrt(2 * np.pi))
        total += taken @ (kernels * offsets)
    return total


def reference_potential_gradient(values: Array, rows: Array, widths: Array, cotangent: Array) -> Array:
    """Gradient in the values `rows`."""
    offsets = values[rows].astype(float)[:, None] - values.astype(float)[None, :]
    total = np.zeros(rows.size)
    for width, taken in zip(widths.astype(float), cotangent.astype(float), strict=True):
        kernels = np.exp(-0.25 * np.square(offsets / width))
        total -= taken / (2 * values.size**2 * width**3 * np.sqrt(np.pi)) * (kernels * offsets).sum(axis=1)
    return total
