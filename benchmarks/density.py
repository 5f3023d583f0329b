"""How fast and how exact are kernel densities, their logarithms, energies and gradients?

    python -m benchmarks.density                  # every table, about 5 minutes on 2 cores
    python -m benchmarks.density --quick          # 300 values, two rounds

Densities of `n` values drawn from N(0, 1) at six bandwidths together. Everybody is given the same float32 values and
grid points, widened for those that compute in float64. Binned densities are evaluated at 3,073 points over [-6, 6]: a
step of 1/256 is the largest power of two that keeps `binning_error_bound` below 1e-6 at the narrowest bandwidth, and
makes grid points exact. Exact densities are evaluated at 1,000 points, because they need no fine grid.

Errors are measured against direct float64 sums: of densities at some fifty grid points, of gradients at a hundred
values from the smallest to the largest.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

from benchmarks import numpy_density
from benchmarks.timing import (
    Agreement,
    Aim,
    Contender,
    Patience,
    Results,
    Row,
    Table,
    Timing,
    describe_run,
    find_peers,
    finish,
    parser,
    relative_difference,
    timing_cells,
    tune,
)
from fusion_jax.quality import binning_error_bound, information_potential, kernel_density, log_density

Array = np.ndarray
Method = Literal["exact", "binned"]

BANDWIDTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (300,)
STEP = 1 / 256
FINE = np.arange(-1536, 1537, dtype=np.float32) * np.float32(STEP)
COARSE = np.linspace(-6.0, 6.0, 1_000, dtype=np.float32)
CHECKED_POINTS, CHECKED_VALUES = 48, 100
LARGEST_BROADCAST = 10_000  # values: arrays of 40 MB for each intermediate
# Two float32 versions of one algorithm round differently.
TOLERANCE = 3e-6
# Sums of terms of both signs: what they cancel is rounding.
GRADIENT_TOLERANCE = 5e-5
# The library clips a binned density at zero, which drops the cotangent of points where rounding made it negative.
BINNED_GRADIENT_TOLERANCE = 5e-3


# The library, as its user would jit it: bandwidths by vmap, everything else an argument, so that nothing is folded.


@partial(jax.jit, static_argnames="method")
def density(values: jax.Array, widths: jax.Array, grid: jax.Array, *, method: Method) -> jax.Array:
    return jax.vmap(lambda width: kernel_density(values, width, grid=grid, method=method).values)(widths)


@partial(jax.jit, static_argnames="method")
def logarithm(values: jax.Array, widths: jax.Array, grid: jax.Array, *, method: Method) -> jax.Array:
    return jax.vmap(lambda width: log_density(values, width, grid=grid, method=method))(widths)


@partial(jax.jit, static_argnames=("method", "grid_size"))
def potential(
    values: jax.Array, widths: jax.Array, *, method: Literal["pairwise", "fft"], grid_size: int | None = None
) -> jax.Array:
    return jax.vmap(lambda width: information_potential(values, width, method=method, grid_size=grid_size))(widths)


@jax.jit
def squared_density(values: jax.Array, widths: jax.Array, grid: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(density(values, widths, grid, method="binned")), axis=1) * STEP


@partial(jax.jit, static_argnames="method")
def density_with_gradients(
    values: jax.Array, widths: jax.Array, grid: jax.Array, cotangent: jax.Array, *, method: Method
) -> Any:
    result, pull = jax.vjp(partial(density, grid=grid, method=method), values, widths)
    return result, pull(cotangent)


@jax.jit
def potential_with_gradients(values: jax.Array, widths: jax.Array, cotangent: jax.Array) -> Any:
    result, pull = jax.vjp(partial(potential, method="pairwise"), values, widths)
    return result, pull(cotangent)


@jax.jit
def jax_scipy_density(values: jax.Array, widths: jax.Array, grid: jax.Array) -> jax.Array:
    factors = widths / jnp.std(values, ddof=1)
    return jnp.stack([jax.scipy.stats.gaussian_kde(values, bw_method=factor)(grid) for factor in factors])


# Contenders.


class Case:
    """Values of one size in every form that a contender takes; the first `ties` of them are equal."""

    def __init__(self, size: int, peers: dict[str, Any], ties: int = 0) -> None:
        draw = np.random.default_rng(size)
        self.size, self.peers = size, peers
        self.values = draw.standard_normal(size).astype(np.float32)
        self.values[:ties] = 0.3
        self.widths = np.asarray(BANDWIDTHS, np.float32)
        self.wide_values, self.wide_widths = self.values.astype(float), self.widths.astype(float)
        self.on_device = jnp.asarray(self.values), jnp.asarray(self.widths)
        self.cotangents = {
            points: draw.standard_normal((len(BANDWIDTHS), points)).astype(np.float32)
            for points in (FINE.size, COARSE.size)
        }
        self.cotangent = draw.standard_normal(len(BANDWIDTHS)).astype(np.float32)

    def kdepy(self, estimator: str, grid: Array) -> Array:
        make = getattr(self.peers["KDEpy"], estimator)
        return np.stack([make(kernel="gaussian", bw=w).fit(self.wide_values).evaluate(grid) for w in self.wide_widths])

    def sklearn(self, grid: Array, rtol: float) -> Array:
        make = self.peers["sklearn.neighbors"].KernelDensity
        samples, points = self.wide_values[:, None], grid[:, None]
        return np.stack([make(bandwidth=w, rtol=rtol).fit(samples).score_samples(points) for w in self.wide_widths])

    def scipy(self) -> list[Any]:
        # SciPy takes bandwidths in standard deviations of the sample.
        deviation = self.wide_values.std(ddof=1)
        return [
            self.peers["scipy.stats"].gaussian_kde(self.wide_values, bw_method=w / deviation) for w in self.wide_widths
        ]


F32, F64, MIXED = "float32", "float64", "float32, bins float64"


def binned_contenders(case: Case) -> list[Contender]:
    fine, wide, coarse = jnp.asarray(FINE), FINE.astype(float), np.linspace(-6.0, 6.0, COARSE.size)
    found = [
        Contender("fusion_jax binned", F32, lambda: density(*case.on_device, fine, method="binned")),
        Contender("NumPy twin", MIXED, lambda: numpy_density.binned(case.values, case.widths, FINE)),
    ]
    if "KDEpy" in case.peers:
        found += [
            Contender("KDEpy FFTKDE", F64, lambda: case.kdepy("FFTKDE", wide)),
            Contender("KDEpy FFTKDE, 1,000 points", F64, lambda: case.kdepy("FFTKDE", coarse)),
        ]
    return found


def exact_contenders(case: Case) -> list[Contender]:
    coarse, wide = jnp.asarray(COARSE), COARSE.astype(float)
    values, widths = case.values, case.widths
    found = [
        Contender("fusion_jax exact", F32, lambda: density(*case.on_device, coarse, method="exact")),
        Contender(
            "NumPy broadcasting", F32, lambda: numpy_density.exact(values, widths, COARSE), largest=LARGEST_BROADCAST
        ),
        Contender("NumPy in blocks", F32, lambda: numpy_density.exact_in_blocks(values, widths, COARSE)),
        Contender("jax.scipy gaussian_kde", F32, lambda: jax_scipy_density(*case.on_device, coarse)),
    ]
    if "scipy.stats" in case.peers:
        found.append(Contender("SciPy gaussian_kde", F64, lambda: np.stack([kde(wide) for kde in case.scipy()])))
    if "sklearn.neighbors" in case.peers:
        found += [
            Contender("scikit-learn, rtol 1e-4", F64, lambda: np.exp(case.sklearn(wide, 1e-4))),
            Contender("scikit-learn, exact", F64, lambda: np.exp(case.sklearn(wide, 0.0))),
        ]
    if "KDEpy" in case.peers:
        found.append(Contender("KDEpy TreeKDE", F64, lambda: case.kdepy("TreeKDE", wide)))
    return found


def log_contenders(case: Case) -> list[Contender]:
    fine, wide = jnp.asarray(FINE), FINE.astype(float)
    # What the library chooses outside a trace, where it can see that the grid covers the values.
    method: Method = "binned" if case.size > FINE.size else "exact"
    found = [
        Contender("fusion_jax log_density", F32, lambda: logarithm(*case.on_device, fine, method=method)),
        Contender("log of fusion_jax binned", F32, lambda: jnp.log(density(*case.on_device, fine, method="binned"))),
        Contender(
            "NumPy twin, logsumexp", MIXED, lambda: numpy_density.log_positive_sum(case.values, case.widths, FINE)
        ),
    ]
    if "sklearn.neighbors" in case.peers:
        found.append(Contender("scikit-learn, exact", F64, lambda: case.sklearn(wide, 0.0)))
    return found


def potential_contenders(case: Case) -> list[Contender]:
    fine, wide = jnp.asarray(FINE), FINE.astype(float)
    values, widths = case.values, case.widths

    def energy(densities: Array) -> Array:
        return np.sum(np.square(densities), axis=1) * STEP

    found = [
        Contender("fusion_jax pairwise", F32, lambda: potential(*case.on_device, method="pairwise"), power=2),
        Contender("fusion_jax fft", F32, lambda: potential(*case.on_device, method="fft", grid_size=FINE.size)),
        Contender("fusion_jax binned, squared", F32, lambda: squared_density(*case.on_device, fine)),
        Contender("NumPy pairwise", F32, lambda: numpy_density.potential(values, widths), power=2),
        Contender("NumPy twin, squared", MIXED, lambda: energy(numpy_density.binned(values, widths, FINE))),
    ]
    if "scipy.stats" in case.peers:
        found.append(
            Contender(
                "SciPy integrate_kde",
                F64,
                lambda: np.stack([kde.integrate_kde(kde) for kde in case.scipy()]),
                power=2,
            )
        )
    if "KDEpy" in case.peers:
        found.append(Contender("KDEpy FFTKDE, squared", F64, lambda: energy(case.kdepy("FFTKDE", wide))))
    return found


def gradient_contenders(case: Case) -> dict[str, list[Contender]]:
    """The library and NumPy, by what they differentiate."""
    values, widths, device = case.values, case.widths, case.on_device

    def fused(grid: Array, method: Method) -> Callable[[], Any]:
        points, cotangent = jnp.asarray(grid), jnp.asarray(case.cotangents[grid.size])
        return lambda: density_with_gradients(*device, points, cotangent, method=method)

    of_fine, of_coarse, cotangent = case.cotangents[FINE.size], case.cotangents[COARSE.size], case.cotangent
    device_cotangent = jnp.asarray(cotangent)
    return {
        "binned density": [
            Contender("fusion_jax binned density", F32, fused(FINE, "binned")),
            Contender(
                "NumPy twin by hand",
                MIXED,
                lambda: numpy_density.binned_with_gradients(values, widths, FINE, of_fine),
            ),
        ],
        "exact density": [
            Contender("fusion_jax exact density", F32, fused(COARSE, "exact")),
            Contender(
                "NumPy broadcasting by hand",
                F32,
                lambda: numpy_density.exact_with_gradients(values, widths, COARSE, of_coarse),
                largest=LARGEST_BROADCAST,
            ),
        ],
        "information potential": [
            Contender(
                "fusion_jax pairwise potential", F32, lambda: potential_with_gradients(*device, device_cotangent), 2
            ),
            Contender(
                "NumPy pairwise by hand",
                F32,
                lambda: numpy_density.potential_with_gradients(values, widths, cotangent),
                power=2,
            ),
        ],
    }


# Errors.


def checked_points(case: Case, grid: Array) -> Array:
    """Rows of the grid at which errors are measured: evenly spread, and the peaks."""
    peaks = numpy_density.binned(case.wide_values, case.wide_widths, grid.astype(float)).argmax(axis=1)
    return np.unique(np.concatenate([np.linspace(0, grid.size - 1, CHECKED_POINTS).astype(int), peaks]))


def peak_error(found: Array, log_reference: Array) -> float:
    """Largest error over the peak, worst of the bandwidths."""
    reference = np.exp(log_reference)
    return float((np.abs(found - reference).max(axis=1) / reference.max(axis=1)).max())


def tail_error(found: Array, log_reference: Array, floor: float) -> float:
    """Largest relative error of the density where it exceeds `floor` of its peak."""
    with np.errstate(over="ignore"):
        errors = np.abs(np.expm1(found - log_reference))
    return float(errors[log_reference > log_reference.max(axis=1, keepdims=True) + np.log(floor)].max())


def reference_potential(case: Case) -> Array:
    """Pairwise if that is quick, else from a binned density on a grid so fine that its error is 1e-9."""
    if case.size <= SIZES[0]:
        return numpy_density.potential(case.wide_values, case.wide_widths)
    step = STEP / 4
    found = numpy_density.binned(case.wide_values, case.wide_widths, np.arange(-6144, 6145) * step)
    return np.sum(np.square(found), axis=1) * step


# Tables.


class Bench:
    """Races the contenders of every size, and collects their rows."""

    def __init__(self, peers: dict[str, Any], rounds: int, limit: float) -> None:
        self.peers, self.rounds, self.limit = peers, rounds, limit
        names = ("binned", "ties", "exact", "logarithm", "potential", "gradient")
        self.rows: dict[str, list[Row]] = {name: [] for name in names}
        self.patience = {name: Patience(limit) for name in names}
        self.agreements: list[Agreement] = []

    def measure(self, size: int) -> None:
        case = Case(size, self.peers)
        fine, coarse = checked_points(case, FINE), checked_points(case, COARSE)
        at_fine = numpy_density.reference_log_density(case.values, case.widths, FINE[fine])
        at_coarse = numpy_density.reference_log_density(case.values, case.widths, COARSE[coarse])

        def binned_error(result: Array) -> Row:
            if result.shape[1] == FINE.size:
                return {"error / peak": peak_error(result[:, fine], at_fine)}
            # What its user has to do to have the other points.
            grid = np.linspace(-6.0, 6.0, result.shape[1])
            between = CubicSpline(grid, result, axis=1)(FINE[fine].astype(float))
            return {"error / peak": peak_error(between, at_fine)}

        def exact_error(result: Array) -> Row:
            return {"error / peak": peak_error(result[:, coarse], at_coarse)}

        def log_errors(result: Array) -> Row:
            found = result[:, fine]
            return {
                "error above 1e-6 peak": tail_error(found, at_fine, 1e-6),
                "above 1e-30 peak": _finite(tail_error(found, at_fine, 1e-30)),
                "error of logarithm": _finite(float((np.abs(found - at_fine) / np.abs(at_fine)).max())),
            }

        energies = reference_potential(case)

        def potential_error(result: Array) -> Row:
            return {"relative error": float(np.abs(result / energies - 1).max())}

        timings = self._race("binned", case, binned_contenders(case), ("KDEpy FFTKDE", "NumPy twin"), binned_error)
        self._agree("binned density", case, timings, "fusion_jax binned", "NumPy twin")
        self._measure_ties(size)
        against = ("NumPy broadcasting", "NumPy in blocks", "SciPy gaussian_kde")
        timings = self._race("exact", case, exact_contenders(case), against, exact_error)
        self._agree("exact density", case, timings, "fusion_jax exact", "NumPy in blocks")
        against = ("scikit-learn, exact", "NumPy twin, logsumexp")
        self._race("logarithm", case, log_contenders(case), against, log_errors)
        against = ("SciPy integrate_kde", "NumPy pairwise", "NumPy twin, squared", "KDEpy FFTKDE, squared")
        timings = self._race("potential", case, potential_contenders(case), against, potential_error)
        self._agree("pairwise potential", case, timings, "fusion_jax pairwise", "NumPy pairwise")
        self._agree("potential by fft", case, timings, "fusion_jax fft", "NumPy twin, squared")
        self._measure_gradients(case)

    def _race(
        self,
        table: str,
        case: Case,
        contenders: list[Contender],
        against: Sequence[str],
        errors: Callable[[Array], Row],
    ) -> dict[str, Timing]:
        timings = self.patience[table].race(contenders, case.size, self.rounds)
        for contender in contenders:
            row: Row = {"n": case.size} | timing_cells(contender, timings, against)
            if contender.name in timings:
                row |= errors(np.asarray(timings[contender.name].result, float))
            self.rows[table].append(row)
        return timings

    def _measure_ties(self, size: int) -> None:
        """Errors alone: backgrounds of images and encodings near zero pile up in one bin, where float32 sums lose."""
        case = Case(size, self.peers, ties=size // 2)
        fine = checked_points(case, FINE)
        reference = numpy_density.reference_log_density(case.values, case.widths, FINE[fine])
        for contender in binned_contenders(case):
            result = np.asarray(contender.call(), float)
            if result.shape[1] == FINE.size:
                row: Row = {"n": size, "method": contender.name, "dtype": contender.dtype}
                self.rows["ties"].append(row | {"error / peak": peak_error(result[:, fine], reference)})

    def _measure_gradients(self, case: Case) -> None:
        by_rank = np.argsort(case.values)
        checked = by_rank[np.linspace(0, case.size - 1, CHECKED_VALUES).astype(int)]
        for what, contenders in gradient_contenders(case).items():
            timings = self.patience["gradient"].race(contenders, case.size, self.rounds)
            if what == "information potential":
                reference = numpy_density.reference_potential_gradient(
                    case.values, checked, case.widths, case.cotangent
                )
            else:
                grid = FINE if what == "binned density" else COARSE
                reference = numpy_density.reference_density_gradient(
                    case.values, checked, case.widths, grid, case.cotangents[grid.size]
                )
            fused, by_hand = contenders
            for contender in contenders:
                row: Row = {"n": case.size} | timing_cells(contender, timings, (by_hand.name,))
                row["vs NumPy by hand"] = row.pop(f"vs {by_hand.name}")
                if contender.name in timings:
                    _, (of_values, _) = timings[contender.name].result
                    row["error / largest"] = relative_difference(np.asarray(of_values)[checked], reference)
                self.rows["gradient"].append(row)
            in_values = BINNED_GRADIENT_TOLERANCE if what == "binned density" else GRADIENT_TOLERANCE
            self._agree(f"{what} beside its gradient", case, timings, fused.name, by_hand.name, lambda r: r[0])
            self._agree(
                f"gradient of {what} in values", case, timings, fused.name, by_hand.name, lambda r: r[1][0], in_values
            )
            self._agree(
                f"gradient of {what} in bandwidths",
                case,
                timings,
                fused.name,
                by_hand.name,
                lambda r: r[1][1],
                GRADIENT_TOLERANCE,
            )

    def _agree(
        self,
        what: str,
        case: Case,
        timings: dict[str, Timing],
        fused: str,
        peer: str,
        part: Callable[[Any], Any] = lambda result: result,
        tolerance: float = TOLERANCE,
    ) -> None:
        if fused in timings and peer in timings:
            difference = relative_difference(part(timings[fused].result), part(timings[peer].result))
            self.agreements.append(Agreement(f"{what}, n = {case.size:,}", difference, tolerance))

    def tables(self) -> list[Table]:
        bound = float(binning_error_bound(STEP / min(BANDWIDTHS)))
        peers = "vs X: how many times faster than X. KDEpy, SciPy and scikit-learn take one bandwidth at a time."
        missing = (
            f"-: not run, because a call would take more than {self.limit:g} s, or, broadcasting, arrays of more than "
            "40 MB."
        )
        twin = "NumPy twin: the same algorithm by bincount and SciPy's FFT."
        bins = f"Step 1/256: error bound {bound:.1e} of the peak at the narrowest bandwidth."
        spline = "The error at 1,000 points is that of their cubic spline."
        trap = (
            "fusion_jax log_density: exact up to 3,073 values, binned beyond, as it chooses itself outside a trace. "
            "The logarithm of a binned density has no tails: the rounding of an FFT is absolute."
        )
        fft = "fft makes a grid for each bandwidth, and so bins six times; binned, squared, bins once."
        gradient = "Gradients in the values and the bandwidths for a random cotangent that is an argument."
        sizes = "Binned densities at 3,073 points, exact ones at 1,000."
        return [
            Table("Binned density, 3,073 points, six bandwidths", self.rows["binned"], (peers, twin, bins, spline)),
            Table("Binned density where half of the values are equal, 3,073 points, six bandwidths", self.rows["ties"]),
            Table("Exact density, 1,000 points, six bandwidths", self.rows["exact"], (peers, missing)),
            Table(
                "Logarithm of the density, 3,073 points, six bandwidths", self.rows["logarithm"], (peers, trap, missing)
            ),
            Table("Information potential, six bandwidths", self.rows["potential"], (peers, fft, missing)),
            Table("Values and gradients, six bandwidths", self.rows["gradient"], (gradient, sizes, missing)),
        ]

    def aims(self) -> list[Aim]:
        def at_least(text: str, wanted: float, ratios: list[float]) -> Aim:
            return Aim(text, ", ".join(f"{r:.3g}" for r in ratios) or "-", min(ratios) >= wanted if ratios else None)

        def at_most(text: str, allowed: float, errors: list[float]) -> Aim:
            return Aim(text, f"{max(errors):.1e}" if errors else "-", max(errors) <= allowed if errors else None)

        binned = partial(self._column, "binned", "fusion_jax binned")
        exact = partial(self._column, "exact", "fusion_jax exact")
        logs = partial(self._column, "logarithm", "fusion_jax log_density")
        return [
            at_least(
                "binned at least 8 times faster than KDEpy FFTKDE on the same grid, n >= 100,000",
                8,
                binned("vs KDEpy FFTKDE", smallest=100_000),
            ),
            at_most("binned within 1e-6 of the peak", 1e-6, binned("error / peak")),
            at_most(
                # Rounding of float32 positions alone is 2e-6 at the narrowest bandwidth.
                "binned within 1e-5 of the peak where half of the values are equal",
                1e-5,
                self._column("ties", "fusion_jax binned", "error / peak"),
            ),
            at_least(
                "exact at least 5 times faster than NumPy broadcasting, n <= 10,000",
                5,
                exact("vs NumPy broadcasting", smallest=1_000),
            ),
            at_least(
                "exact at least 50 times faster than SciPy, n >= 100,000",
                50,
                exact("vs SciPy gaussian_kde", smallest=100_000),
            ),
            at_most("log-safe density within 1e-3, down to 1e-6 of the peak", 1e-3, logs("error above 1e-6 peak")),
        ]

    def _column(self, table: str, method: str, column: str, smallest: int = 0) -> list[float]:
        cells = [
            row.get(column)
            for row in self.rows[table]
            if row["method"] == method and isinstance(row["n"], int) and row["n"] >= smallest
        ]
        return [float(cell) for cell in cells if cell is not None]


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else "infinite"


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--limit", type=float, default=6.0, help="longest call in seconds (default: %(default)s)")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = 2 if chosen.quick else chosen.rounds
    peers, missing = find_peers("KDEpy", "sklearn.neighbors", "scipy.stats")
    header = describe_run(missing, rounds) | {"settings": settings}
    bench = Bench(peers, rounds, chosen.limit)
    for size in QUICK_SIZES if chosen.quick else SIZES:
        bench.measure(size)
    return finish(Results(header, bench.tables(), bench.aims(), bench.agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
