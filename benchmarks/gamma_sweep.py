"""How fast are sweeps over gamma and the numerical validation, and do plain NumPy loops give the same numbers?

    python -m benchmarks.gamma_sweep                  # about 4 minutes on 2 cores
    python -m benchmarks.gamma_sweep --full           # all NumPy loops of the validation, not a stated part of them
    python -m benchmarks.gamma_sweep --quick          # smallest sizes, two rounds

Three questions, each against straightforward NumPy loops kept in this file: 10,000 relative masses; 200 encoding sizes;
and the numerical validation of Wang et al. 2023, which is `simulate` over 3 keys, 3 rescalings, 6 bandwidths and the
six published sizes with 1,000 iterations each. The loops compute the same curves (energies, gaps in four readings,
overlaps, total variation, Jensen-Shannon) in float64.

They come with two densities: SciPy's `gaussian_kde`, which is what one would write first and the named peer, and the
library's binned algorithm in NumPy, which shows what is left of a ratio when the algorithm is the same. They evaluate
1,600 points (specs/fusion_quality.md, section 5), fewer than the library's own grids have.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import rel_entr
from scipy.stats import gaussian_kde

from benchmarks import numpy_density
from benchmarks.timing import (
    Agreement,
    Aim,
    Contender,
    Results,
    Row,
    Table,
    describe_run,
    finish,
    parser,
    race,
    relative_difference,
    timing_cells,
    tune,
)
from fusion_jax.quality import GammaSweep, Simulation, simulate, sweep_gamma

CURVES = (
    "energy_x",
    "energy_y",
    "energy_gap",
    "literal_gap",
    "scale_free_gap",
    "sample_gap",
    "overlap_x",
    "overlap_y",
    "total_variation_x",
    "total_variation_y",
    "jensen_shannon_x",
    "jensen_shannon_y",
)
POINTS = 1_600
PADDING = 6.0  # bandwidths beyond the outermost value, as in the library
BASE = 10_000.0

Array = np.ndarray
Rescaling = Literal["none", "zscore", "minmax"]
Density = Callable[[Array, Array, float, Array], Array]
Curves = dict[str, Array]


# Plain loops: densities.


def scipy_density(values: Array, weights: Array, bandwidth: float, grid: Array) -> Array:
    """SciPy's density, at a bandwidth that SciPy takes in standard deviations of the sample."""
    deviation = math.sqrt(float(np.cov(values, aweights=weights)))
    return gaussian_kde(values, bw_method=bandwidth / deviation, weights=weights)(grid)


def binned_density(values: Array, weights: Array, bandwidth: float, grid: Array) -> Array:
    """The algorithm of the library."""
    return numpy_density.binned(values, np.asarray([bandwidth]), grid, weights)[0]


def common_grid(bandwidth: float, *values: Array) -> Array:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return np.linspace(low - PADDING * bandwidth, high + PADDING * bandwidth, POINTS)


class Source(NamedTuple):
    """Density of a source on a grid, and its mean square over the source's own values."""

    density: Array
    mean_square: float


def source(values: Array, weights: Array, bandwidth: float, grid: Array, density: Density) -> Source:
    found = density(values, weights, bandwidth, grid)
    # At the values themselves a density would cost the square of their number.
    at_values = CubicSpline(grid, found)(values)
    return Source(found, float(np.average(at_values**2, weights=weights)))


def curves_at(x: Source, y: Source, gamma: float, size_x: int, step: float) -> dict[str, float]:
    """What `GammaSweep` holds, at one gamma."""
    energy_x, energy_y = np.sum(x.density**2) * step, np.sum(y.density**2) * step
    fused = (x.density + gamma * y.density) / (1 + gamma)
    found = {
        "energy_x": energy_x,
        "energy_y": energy_y,
        "energy_gap": (energy_x - gamma**2 * energy_y) / (1 + gamma) ** 2,
        "literal_gap": energy_x - energy_y,
        "scale_free_gap": (energy_x - gamma**2 * energy_y) / (energy_x + gamma**2 * energy_y),
        "sample_gap": size_x * (x.mean_square - gamma * y.mean_square),
    }
    for name, density in (("x", x.density), ("y", y.density)):
        middle = (density + fused) / 2
        found[f"overlap_{name}"] = np.sum(np.minimum(density, fused)) * step
        found[f"total_variation_{name}"] = np.sum(np.abs(density - fused)) * step / 2
        found[f"jensen_shannon_{name}"] = np.sum(rel_entr(density, middle) + rel_entr(fused, middle)) * step / 2
    return found


def stacked(rows: Sequence[dict[str, float]]) -> Curves:
    return {name: np.asarray([row[name] for row in rows]) for name in CURVES}


# Plain loops: encodings.


def encode(values: Array, size: float) -> Array:
    """Positional encoding of each value in `size` coordinates, real; shape `(len(values), ceil(size))`."""
    coordinate = np.arange(math.ceil(size))
    phase = values[:, None] * BASE ** (-2.0 * (coordinate[::2] // 2) / size)
    encoded = np.empty((values.size, coordinate.size))
    encoded[:, ::2] = np.sin(phase)
    encoded[:, 1::2] = np.cos(phase[:, : coordinate.size // 2])
    return encoded


def fractions(size: float) -> Array:
    """Weights of the coordinates: the last one of a size that is not whole has the rest."""
    return np.clip(size - np.arange(math.ceil(size)), 0.0, 1.0)


def rescaled(values: Array, rescaling: Rescaling) -> Array:
    if rescaling == "zscore":
        return (values - values.mean()) / values.std()
    if rescaling == "minmax":
        return (values - values.min()) / np.ptp(values)
    return values


# Plain loops: the three questions.


def loop_over_masses(x: Array, y: Array, gammas: Array, bandwidth: float, density: Density) -> Curves:
    grid = common_grid(bandwidth, x, y)
    of_x = source(x, np.ones_like(x), bandwidth, grid, density)
    of_y = source(y, np.ones_like(y), bandwidth, grid, density)
    return stacked([curves_at(of_x, of_y, gamma, x.size, grid[1] - grid[0]) for gamma in gammas])


def loop_over_sizes(x: Array, markers: Array, gammas: Array, bandwidth: float, density: Density) -> Curves:
    rows = []
    for gamma in gammas:
        each = gamma * x.size / markers.size
        encoded = encode(markers, each).ravel()
        grid = common_grid(bandwidth, x, encoded)
        of_x = source(x, np.ones_like(x), bandwidth, grid, density)
        of_y = source(encoded, np.tile(fractions(each), markers.size), bandwidth, grid, density)
        rows.append(curves_at(of_x, of_y, gamma, x.size, grid[1] - grid[0]))
    return stacked(rows)


class Settings(NamedTuple):
    """Extent of the numerical validation."""

    keys: int
    rescalings: tuple[Rescaling, ...]
    bandwidths: tuple[float, ...]
    sizes: tuple[int, ...]
    iterations: int


PUBLISHED = Settings(
    3, ("none", "zscore", "minmax"), (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), (10, 100, 500, 1_000, 10_000, 100_000), 1_000
)
QUICK = Settings(1, ("none",), (0.2, 0.5), (10, 100, 500), 50)


class LoopResult(NamedTuple):
    """Curves by key and rescaling, shape `(bandwidths, sizes)` each; and where the seconds went."""

    curves: dict[tuple[int, str], Curves]
    encoding_seconds: float
    density_seconds: float


def loop_validation(
    cases: Sequence[tuple[Array, Array]], rescalings: Sequence[Rescaling], settings: Settings, density: Density
) -> LoopResult:
    """The numerical validation for the given paths `x` and draws of them; encodings are shared by what follows."""
    found, seconds = {}, [0.0, 0.0]
    for number, (x, draws) in enumerate(cases):
        start = time.perf_counter()
        encodings = []
        for size in settings.sizes:
            total = np.zeros(size)
            for drawn in draws:
                total += encode(drawn, size).mean(axis=0)
            encodings.append(total / len(draws))
        seconds[0] += time.perf_counter() - start
        start = time.perf_counter()
        for rescaling in rescalings:
            scaled_x = rescaled(x, rescaling)
            rows = []
            for bandwidth, encoding in itertools.product(settings.bandwidths, encodings):
                scaled_y = rescaled(encoding, rescaling)
                grid = common_grid(bandwidth, scaled_x, scaled_y)
                of_x = source(scaled_x, np.ones_like(x), bandwidth, grid, density)
                of_y = source(scaled_y, np.ones_like(scaled_y), bandwidth, grid, density)
                rows.append(curves_at(of_x, of_y, scaled_y.size / x.size, x.size, grid[1] - grid[0]))
            shape = (len(settings.bandwidths), len(encodings))
            found[number, rescaling] = {name: curve.reshape(shape) for name, curve in stacked(rows).items()}
        seconds[1] += time.perf_counter() - start
    return LoopResult(found, *seconds)


# The library.


def fused_validation(settings: Settings, grid: jax.Array | None) -> dict[tuple[int, str], Simulation]:
    return {
        (key, rescaling): simulate(
            jax.random.key(key),
            sizes=settings.sizes,
            iterations=settings.iterations,
            bandwidth=np.asarray(settings.bandwidths, np.float32),
            rescaling=rescaling,
            grid=grid,
            normalise=True,
        )
        for key in range(settings.keys)
        for rescaling in settings.rescalings
    }


# The tables.

# Relative to the largest value of a curve. Encodings pile up near zero, where float32 bins lose digits.
TOLERANCE = 5e-4


def compare(what: str, sweep: GammaSweep, curves: Curves) -> Agreement:
    """The curve that differs most, by name; differences of energies are compared on the scale of the energies."""
    largest_energy = max(float(curves[name].max()) for name in ("energy_x", "energy_y"))
    scales: dict[str, float] = dict.fromkeys(("energy_gap", "literal_gap"), largest_energy)
    differences = {name: relative_difference(getattr(sweep, name), curves[name], scales.get(name)) for name in CURVES}
    worst = max(differences, key=lambda name: differences[name])
    return Agreement(f"{what}; worst curve {worst}", differences[worst], TOLERANCE)


PEERS = ("NumPy and SciPy loop", "NumPy loop, binned")


def sweep_contenders(fused: Callable[[], Any], loop: Callable[[Density], Any]) -> list[Contender]:
    return [
        Contender("fusion_jax", "float32", fused),
        Contender(PEERS[0], "float64", lambda: loop(scipy_density)),
        Contender(PEERS[1], "float64", lambda: loop(binned_density)),
    ]


def sweep_rows(what: str, contenders: list[Contender], rounds: int) -> tuple[list[Row], dict[str, Any]]:
    timings = race(contenders, rounds)
    rows: list[Row] = [{"sweep": what} | timing_cells(c, timings, PEERS) for c in contenders]
    return rows, {name: timing.result for name, timing in timings.items()}


def measure_sweeps(rounds: int, *, quick: bool) -> tuple[Table, list[Aim], list[Agreement]]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal(1_000).astype(np.float32)
    markers = np.asarray([0.3, -1.0, 0.8], np.float32)
    y = encode(markers.astype(float), 330).ravel().astype(np.float32)
    masses = np.geomspace(0.01, 100, 100 if quick else 10_000)
    sizes = np.geomspace(0.01, 0.5 if quick else 10, 8 if quick else 200)
    device_x, device_y, device_markers = jnp.asarray(x), jnp.asarray(y), jnp.asarray(markers)
    wide_x, wide_y, wide_markers = x.astype(float), y.astype(float), markers.astype(float)
    rows: list[Row] = []
    aims, agreements, points = [], [], []
    questions = (
        (
            f"{masses.size:,} relative masses",
            lambda: sweep_gamma(device_x, device_y, masses, vary="mass", bandwidth=0.5),
            lambda density: loop_over_masses(wide_x, wide_y, masses, 0.5, density),
            1.0,
        ),
        (
            f"{sizes.size} encoding sizes",
            lambda: sweep_gamma(device_x, device_markers, sizes, vary="size", bandwidth=0.5),
            lambda density: loop_over_sizes(wide_x, wide_markers, sizes, 0.5, density),
            2.0,
        ),
    )
    for what, fused, loop, limit in questions:
        found, results = sweep_rows(what, sweep_contenders(fused, loop), rounds)
        rows += found
        seconds = float(found[0]["median, ms"] or 0) / 1e3
        aims.append(
            Aim(f"{what} in less than {limit:g} s, warm", f"{seconds:.3g} s", None if quick else seconds < limit)
        )
        agreements += [compare(f"{what}; {peer}", results["fusion_jax"], results[peer]) for peer in PEERS]
        points.append(f"{results['fusion_jax'].grid.size:,}")
    note = (
        f"Path of 1,000 values, bandwidth 0.5. Points: the library's own grids of {' and '.join(points)}; "
        f"{POINTS:,} in the loops. vs X: how many times faster than X."
    )
    return Table("Sweeps over gamma", rows, (note,)), aims, agreements


def measure_validation(rounds: int, settings: Settings, *, full: bool) -> tuple[Table, list[Aim], list[Agreement]]:
    # The largest power of two that the library accepts at the narrowest bandwidth, with the margin of the widest.
    step = 2.0 ** math.floor(math.log2(0.09 * min(settings.bandwidths)))
    reach = 6.0 + PADDING * max(settings.bandwidths)
    shared_grid = jnp.linspace(-reach, reach, 2 * math.ceil(reach / step) + 1)
    done_keys = settings.keys if full else 1
    done_rescalings = settings.rescalings if full else settings.rescalings[:1]
    simulations: dict[tuple[int, str], Simulation] = {}

    def fused() -> dict[tuple[int, str], Simulation]:
        simulations.update(fused_validation(settings, None))
        return simulations

    def loop(density: Density) -> Callable[[], LoopResult]:
        def run() -> LoopResult:
            of_keys = [simulations[key, settings.rescalings[0]] for key in range(done_keys)]
            cases = [(np.asarray(s.x, float), np.asarray(s.draws, float)) for s in of_keys]
            return loop_validation(cases, done_rescalings, settings, density)

        return run

    library = [
        Contender("fusion_jax, its own grid", "float32", fused),
        Contender(
            f"fusion_jax, {shared_grid.size:,} points", "float32", lambda: fused_validation(settings, shared_grid)
        ),
    ]
    if settings is QUICK:
        library = library[:1]  # spares a compilation
    peers = [
        Contender(PEERS[0], "float64", loop(scipy_density)),
        Contender(PEERS[1], "float64", loop(binned_density)),
    ]
    contenders = library + peers
    timings = race(contenders, rounds)
    encoding_factor = settings.keys / done_keys
    density_factor = encoding_factor * len(settings.rescalings) / len(done_rescalings)
    factors = {}
    for peer in PEERS:
        encoding, density = timings[peer].result[1:]
        factors[peer] = (encoding * encoding_factor + density * density_factor) / (encoding + density)
        timings[peer] = timings[peer].scaled(factors[peer])
    rows: list[Row] = [timing_cells(c, timings, PEERS) for c in contenders]
    agreements = []
    for peer in PEERS:
        for (key, rescaling), curves in timings[peer].result.curves.items():
            agreements += [
                compare(
                    f"validation, key {key}, rescaling {rescaling}; {peer}; {contender.name}",
                    timings[contender.name].result[key, rescaling].sweep,
                    curves,
                )
                for contender in library
            ]
    grids = [f"{simulations[0, rescaling].sweep.grid.size:,}" for rescaling in settings.rescalings]
    extent = (
        f"{settings.keys} keys, {len(settings.rescalings)} rescalings, {len(settings.bandwidths)} bandwidths, sizes "
        f"{settings.sizes[0]:,} to {settings.sizes[-1]:,}, {settings.iterations:,} iterations. "
        f"Points: the library's own grids of {', '.join(grids)}; {POINTS:,} in the loops. "
        "vs X: how many times faster than X."
    )
    part = "All of the loops were run."
    if density_factor > 1:
        part = (
            f"Of the loops, one key and one rescaling were run. Their time is multiplied: encodings by "
            f"{encoding_factor:g}, densities by {density_factor:g}; in all by "
            f"{', '.join(f'{factor:.2f} ({peer})' for peer, factor in factors.items())}."
        )
    drawing = (
        "The loops are given the paths and draws that the library makes within its time, and encode each key and size "
        "once."
    )
    ratios = {c.name: timings[PEERS[0]].median / timings[c.name].median for c in library}
    aim = Aim(
        "full numerical validation at least 20 times faster than NumPy and SciPy loops",
        "; ".join(f"{ratio:.3g} ({name})" for name, ratio in ratios.items()),
        ratios[library[0].name] >= 20 if settings is PUBLISHED else None,
    )
    return Table("Numerical validation", rows, (extent, part, drawing)), [aim], agreements


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument(
        "--full", action="store_true", help="run every NumPy loop of the validation (about 15 minutes)"
    )
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = 2 if chosen.quick else chosen.rounds
    header = describe_run([], rounds) | {"settings": settings}
    sweeps, sweep_aims, same_sweeps = measure_sweeps(rounds, quick=chosen.quick)
    validation, validation_aims, same_validation = measure_validation(
        rounds, QUICK if chosen.quick else PUBLISHED, full=chosen.full
    )
    results = Results(header, [sweeps, validation], sweep_aims + validation_aims, same_sweeps + same_validation)
    return finish(results, chosen.out)


if __name__ == "__main__":
    sys.exit(main())
