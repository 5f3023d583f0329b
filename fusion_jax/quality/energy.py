r"""Energies of densities: how much of a fused layer each source holds.

A source's energy is the integral of its squared density, :math:`R_s = \int \varphi_s^2\,dt` (`information_potential`
without a grid). With the masses :math:`d_s`, the number of coordinates of each source, the fused density is the mixture
:math:`p_f = \sum_s d_s p_s / \sum_s d_s`, which is the kernel density of the concatenated vector.
"""

from typing import Literal

import jax.numpy as jnp

from fusion_jax.arrays import Array, ArrayLike, Float, as_floats
from fusion_jax.quality.density import information_potential

__all__ = [
    "balanced_masses",
    "energy_gap",
    "energy_gap_from_energies",
    "energy_gap_penalty",
    "energy_shares",
    "fused_density",
    "gamma",
    "gamma_star",
    "gibbs_potential",
    "jensen_shannon",
    "overlap",
    "pairwise_energy_gaps",
    "partition_function",
    "sample_energy_gap",
    "total_variation",
]

Reading = Literal["pooled", "literal", "scale_free"]
Weighting = Literal["pooled", "literal"]


# Gibbs measure.


def partition_function(density: Float[ArrayLike, "*b n"], *, grid_step: Float[ArrayLike, ""]) -> Float[Array, "*b"]:
    r"""Partition function :math:`Z = \int \varphi(t)\,dt` of a density on a uniform grid; 1 for normalised kernels.

    Example:
      >>> float(partition_function(jnp.full(4, 0.5), grid_step=0.5))
      1.0

    References:
      Wang et al. 2023, Eq. 1.
    """
    density, step = as_floats(density, grid_step)
    return jnp.sum(density, axis=-1) * step


def gibbs_potential(
    log_density: Float[ArrayLike, "*b n"], *, inverse_temperature: Float[ArrayLike, ""] = 1.0
) -> Float[Array, "*b n"]:
    r"""Gibbs potential :math:`E(t) = -\frac1\beta \log\varphi(t)`, up to a constant.

    Inverts :math:`\varphi(t) = Z^{-1} e^{-\beta E(t)}` with the constant such that :math:`Z = 1`.

    Args:
      log_density: logarithm of the density, from `log_density`; the logarithm of a binned density has no tails.
      inverse_temperature: :math:`\beta` of Eq. 1, not the source weight of Eq. 4 that shares its letter.

    Returns:
      Potential, with the shape of `log_density`; dimensionless.

    Example:
      >>> gibbs_potential(jnp.array([0.0, -2.0]), inverse_temperature=2.0).tolist()
      [-0.0, 1.0]

    References:
      Wang et al. 2023, Eq. 1.
    """
    log_density, beta = as_floats(log_density, inverse_temperature)
    return -log_density / beta


# Two sources.


def gamma(size_x: Float[ArrayLike, "*g"], size_y: Float[ArrayLike, "*g"]) -> Float[Array, "*g"]:
    r"""Relative size of `y`, :math:`\gamma = \alpha/\beta^* = d_y / d_x`.

    Example:
      >>> float(gamma(2048, 192))
      0.09375

    References:
      Wang et al. 2023, Eq. 11.
    """
    size_x, size_y = as_floats(size_x, size_y)
    return size_y / size_x


def gamma_star(energy_x: Float[ArrayLike, "*b"], energy_y: Float[ArrayLike, "*b"]) -> Float[Array, "*b"]:
    r"""Relative size at which the pooled energy gap is zero, :math:`\gamma^* = \sqrt{R_x / R_y}`.

    The sample-sum gap is zero at :math:`m_x / m_y` instead, a plain ratio of `mean_square_density`.

    Example:
      >>> float(gamma_star(4.0, 1.0))
      2.0

    References:
      specs/fusion_quality.md, I6.
    """
    energy_x, energy_y = as_floats(energy_x, energy_y)
    return jnp.sqrt(energy_x / energy_y)


def energy_gap_from_energies(
    energy_x: Float[ArrayLike, "*#g"],
    energy_y: Float[ArrayLike, "*#g"],
    gamma: Float[ArrayLike, "*#g"],
    *,
    reading: Reading = "pooled",
    absolute: bool = False,
) -> Float[Array, "*g"]:
    r"""Energy gap between two sources from their energies; positive where `x` dominates.

    .. math:: \Delta E_\text{pooled} = \frac{R_x - \gamma^2 R_y}{(1+\gamma)^2}, \quad
              \Delta E_\text{literal} = R_x - R_y, \quad
              \Delta E_\text{scale free} = \frac{R_x - \gamma^2 R_y}{R_x + \gamma^2 R_y} \in [-1, 1]

    Args:
      energy_x, energy_y: :math:`R_x, R_y`, shapes that broadcast with `gamma` by the rules in force.
      gamma: size of `y` relative to `x`.
      reading: `pooled` (default), `literal` (Eq. 5 as printed, which knows nothing of sizes), or `scale_free`.
      absolute: the magnitude, which is what the paper minimises.

    Returns:
      The gap, in the units of the energies (`scale_free`: none).

    Example:
      >>> float(energy_gap_from_energies(2.0, 1.0, 1.0)), float(energy_gap_from_energies(2.0, 1.0, 2.0))
      (0.25, -0.222...)

    References:
      Wang et al. 2023, Eq. 5; specs/fusion_quality.md, readings A, B and N, identity I6.
    """
    energy_x, energy_y, gamma = as_floats(energy_x, energy_y, gamma)
    of_y = gamma**2 * energy_y
    if reading == "pooled":
        gap = (energy_x - of_y) / (1.0 + gamma) ** 2
    elif reading == "literal":
        gap = (energy_x - energy_y) * jnp.ones_like(gamma)
    elif reading == "scale_free":
        gap = (energy_x - of_y) / (energy_x + of_y)
    else:
        raise ValueError(f"reading is {reading!r}; expected 'pooled', 'literal' or 'scale_free'.")
    return jnp.abs(gap) if absolute else gap


def energy_gap(
    density_x: Float[ArrayLike, "n"],
    density_y: Float[ArrayLike, "n"],
    gamma: Float[ArrayLike, "*g"],
    *,
    grid_step: Float[ArrayLike, ""],
    reading: Reading = "pooled",
    absolute: bool = False,
) -> Float[Array, "*g"]:
    r"""Energy gap between two sources in their pooled density.

    .. math:: \Delta E = \frac{R_x - \gamma^2 R_y}{(1 + \gamma)^2}, \qquad R_s = \int \varphi_s(t)^2 \, dt

    Zero where both sources hold the same energy; positive where `x` dominates.

    Args:
      density_x: density of the first source on a uniform grid, shape `(n,)`.
      density_y: density of the second source on the same grid, shape `(n,)`.
      gamma: size of `y` relative to `x` (Wang 2023, Eq. 11), any shape; `vmap` is not needed.
      grid_step: distance between grid points, in feature units.
      reading, absolute: as in `energy_gap_from_energies`.

    Returns:
      The gap, with the shape of `gamma`; in feature units for kernels of peak 1, per feature unit if normalised.

    Example:
      >>> uniform = jnp.full(100, 1.0)
      >>> float(energy_gap(uniform, uniform, 1.0, grid_step=0.01))
      0.0

    References:
      Wang et al. 2023, Eq. 5 with pooled masses; see specs/fusion_quality.md, reading B.
    """
    density_x, density_y, gamma, step = as_floats(density_x, density_y, gamma, grid_step)
    energy_x = jnp.sum(jnp.square(density_x)) * step
    energy_y = jnp.sum(jnp.square(density_y)) * step
    return energy_gap_from_energies(energy_x, energy_y, gamma, reading=reading, absolute=absolute)


def sample_energy_gap(
    mean_square_x: Float[ArrayLike, "*#g"],
    mean_square_y: Float[ArrayLike, "*#g"],
    gamma: Float[ArrayLike, "*#g"],
    *,
    size_x: Float[ArrayLike, ""],
    absolute: bool = False,
) -> Float[Array, "*g"]:
    r"""Energy gap as sums over the feature values, :math:`\Delta E_S = d_x (m_x - \gamma m_y)`.

    The reading that takes the subscripts of Eq. 5 at their word. :math:`m_s` from `mean_square_density`.

    Example:
      >>> float(sample_energy_gap(0.5, 0.25, 1.0, size_x=100))
      25.0

    References:
      Wang et al. 2023, Eq. 5; specs/fusion_quality.md, reading S, identity I7.
    """
    mean_square_x, mean_square_y, gamma, size_x = as_floats(mean_square_x, mean_square_y, gamma, size_x)
    gap = size_x * (mean_square_x - gamma * mean_square_y)
    return jnp.abs(gap) if absolute else gap


# Any number of sources.


def fused_density(
    densities: Float[ArrayLike, "s n"], masses: Float[ArrayLike, "s"], *, weights: Weighting = "pooled"
) -> Float[Array, "n"]:
    r"""Density of the fused layer, :math:`p_f = \sum_s d_s p_s / \sum_s d_s`.

    Args:
      densities: normalised densities of the sources on one grid, shape `(s, n)`.
      masses: number of coordinates of each source, shape `(s,)`.
      weights: `pooled` is the kernel density of the concatenated vector; `literal` gives every source the same mass,
        as Eq. 4 and 10 are printed, which no size can change.

    Returns:
      Density, shape `(n,)`.

    Example:
      >>> fused_density(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([3.0, 1.0])).tolist()
      [0.75, 0.25]

    References:
      Wang et al. 2023, Eq. 4 and 10; specs/fusion_quality.md, I1 and A2.
    """
    densities, masses = as_floats(densities, masses)
    if weights == "literal":
        masses = jnp.ones_like(masses)
    elif weights != "pooled":
        raise ValueError(f"weights is {weights!r}; expected 'pooled' or 'literal'.")
    return masses / jnp.sum(masses) @ densities


def pairwise_energy_gaps(energies: Float[ArrayLike, "s"], masses: Float[ArrayLike, "s"]) -> Float[Array, "s s"]:
    r"""Pooled energy gap of every source over every other, antisymmetric.

    .. math:: \Delta E_{st} = \frac{d_s^2 R_s - d_t^2 R_t}{(\sum_u d_u)^2}

    For two sources the entry `[0, 1]` is the pooled gap at :math:`\gamma = d_1/d_0`.

    Example:
      >>> pairwise_energy_gaps(jnp.array([2.0, 1.0]), jnp.array([1.0, 1.0])).tolist()
      [[0.0, 0.25], [-0.25, 0.0]]

    References:
      specs/fusion_quality.md, section 10.
    """
    energies, masses = as_floats(energies, masses)
    held = jnp.square(masses / jnp.sum(masses)) * energies
    return held[:, None] - held[None, :]


def energy_shares(energies: Float[ArrayLike, "s"], masses: Float[ArrayLike, "s"]) -> Float[Array, "s"]:
    r"""Share of each source in the fused energy, :math:`d_s^2 R_s / \sum_t d_t^2 R_t`.

    Example:
      >>> energy_shares(jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])).tolist()
      [0.75, 0.25]
    """
    energies, masses = as_floats(energies, masses)
    held = jnp.square(masses) * energies
    return held / jnp.sum(held)


def balanced_masses(
    energies: Float[ArrayLike, "s"], *, target: Float[ArrayLike, "s"] | None = None
) -> Float[Array, "s"]:
    r"""Relative sizes that give every source its target share of the fused energy.

    .. math:: d_s \propto \sqrt{w_s / R_s}

    They attain zero in :math:`\sum_s (d_s^2 R_s / \sum_t d_t^2 R_t - w_s)^2`. With equal targets,
    :math:`d_s \propto 1/\sqrt{R_s}`, which is :math:`\gamma^*` for two sources.

    Args:
      energies: :math:`R_s`, shape `(s,)`.
      target: wanted shares :math:`w_s`, positive, shape `(s,)`; equal unless given.

    Returns:
      Masses relative to the first source, shape `(s,)`.

    Example:
      >>> balanced_masses(jnp.array([4.0, 1.0])).tolist()
      [1.0, 2.0]

    References:
      specs/fusion_quality.md, section 10.
    """
    energies, wanted = as_floats(energies, 1.0 if target is None else target)
    masses = jnp.sqrt(wanted / energies)
    return masses / masses[0]


def energy_gap_penalty(
    values_x: Float[ArrayLike, "f"],
    values_y: Float[ArrayLike, "g"],
    bandwidth: Float[ArrayLike, ""],
    *,
    gamma: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    r"""Squared scale-free energy gap of a live fused layer, to be added to a training loss.

    .. math:: L = \left(\frac{R_x - \gamma^2 R_y}{R_x + \gamma^2 R_y}\right)^2 \in [0, 1]

    Needs no grid; differentiable in both sources and the bandwidth.

    Args:
      values_x, values_y: features of one case, shapes `(f,)` and `(g,)`.
      bandwidth: standard deviation of the kernel, feature units.
      gamma: relative size of `y`; `g / f` unless given.

    Returns:
      Penalty, shape `()`; 0 where both sources hold the same energy.

    Example:
      >>> float(energy_gap_penalty(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0]), 0.5))
      0.0

    References:
      specs/fusion_quality.md, section 10: a regulariser on the pooled gap.
    """
    values_x, values_y, width = as_floats(values_x, values_y, bandwidth)
    ratio = values_y.size / values_x.size if gamma is None else gamma
    energy_x = information_potential(values_x, width, method="pairwise")
    energy_y = information_potential(values_y, width, method="pairwise")
    return jnp.square(energy_gap_from_energies(energy_x, energy_y, ratio, reading="scale_free"))


# Distances between densities.


def total_variation(
    density_p: Float[ArrayLike, "*b n"], density_q: Float[ArrayLike, "*b n"], *, grid_step: Float[ArrayLike, ""]
) -> Float[Array, "*b"]:
    r"""Total variation distance :math:`\frac12\int |p - q|\,dt` of two normalised densities, in [0, 1].

    Example:
      >>> float(total_variation(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), grid_step=1.0))
      1.0

    References:
      specs/fusion_quality.md, I2.
    """
    p, q, step = as_floats(density_p, density_q, grid_step)
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1) * step


def overlap(
    density_p: Float[ArrayLike, "*b n"], density_q: Float[ArrayLike, "*b n"], *, grid_step: Float[ArrayLike, ""]
) -> Float[Array, "*b"]:
    r"""Overlap :math:`\int \min(p, q)\,dt = 1 - TV(p, q)` of two normalised densities, in [0, 1].

    Example:
      >>> float(overlap(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]), grid_step=1.0))
      0.5

    References:
      specs/fusion_quality.md, I3.
    """
    p, q, step = as_floats(density_p, density_q, grid_step)
    return jnp.sum(jnp.minimum(p, q), axis=-1) * step


def jensen_shannon(
    density_p: Float[ArrayLike, "*b n"], density_q: Float[ArrayLike, "*b n"], *, grid_step: Float[ArrayLike, ""]
) -> Float[Array, "*b"]:
    r"""Jensen-Shannon divergence of two normalised densities, in nats, between 0 and :math:`\log 2`.

    .. math:: \mathrm{JS}(p, q) = \tfrac12\int p\log\frac{2p}{p+q} + \tfrac12\int q\log\frac{2q}{p+q}

    Example:
      >>> round(float(jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), grid_step=1.0)), 4)
      0.6931
    """
    p, q, step = as_floats(density_p, density_q, grid_step)
    total = p + q

    def terms(density: Array) -> Array:
        # The derivative of a ratio divides by the square of its denominator; below the root of the smallest number
        # that is zero, and the term far below rounding. NaN counts, so that it cannot vanish.
        counts = ~(density <= jnp.sqrt(jnp.finfo(density.dtype).tiny))
        ratio = jnp.where(counts, density, 1.0) / jnp.where(counts, total, 2.0)
        return jnp.where(counts, density * jnp.log(2.0 * ratio), 0.0)

    return 0.5 * jnp.sum(terms(p) + terms(q), axis=-1) * step
