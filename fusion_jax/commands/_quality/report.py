"""What `fusion-jax quality` writes: the report, the numbers behind it, and its figures."""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.commands._quality.features import Outcome
from fusion_jax.commands._quality.measure import Pair, Relation, Results, Stage, mass_curves, size_curve
from fusion_jax.commands._quality.numbers import (
    case_table,
    gamma_table,
    of_pairs,
    of_sources,
    source_names,
    spread,
    summary,
)
from fusion_jax.commands.quality import Config
from fusion_jax.quality import FusionQuality, NullTest
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.reporting import (
    Figure,
    Section,
    Table,
    density_figure,
    distribution_figure,
    format_number,
    gamma_figure,
    heatmap_figure,
    save_figure,
    stability_figure,
    write_report,
)

__all__ = ["dominance", "medians", "write_results"]

SCALED = {
    "zscore": "the mean and standard deviation",
    "robust": "the median and interquartile range",
    "minmax": "the smallest and largest value",
}
FIGURES = (
    "densities_before_encoding.svg",
    "densities.svg",
    "gamma_mass.svg",
    "gamma_size.svg",
    "gamma_bias.svg",
    "energy_gaps.svg",
    "source_bias.svg",
    "gap_matrix.svg",
    "stability_before_encoding.svg",
    "stability.svg",
)
Figures = Mapping[str, Figure]


def write_results(results: Results) -> Path:
    """Write every file of the results; returns the path of the report."""
    out = results.config.out
    figures = _figures(results)
    for name in FIGURES:
        if name in figures:
            save_figure(figures[name], out / "figures" / name)
        else:  # of an earlier run with other options: it would belong to nothing
            (out / "figures" / name).unlink(missing_ok=True)
    record = run_record()
    write_csv(out / "cases.csv", case_table(results))
    write_csv(out / "gamma.csv", gamma_table(results))
    write_json(out / "quality.json", summary(results) | {"record": record})
    *others, last = source_names(results.pairs)
    write_report(
        out / "report.html",
        title=f"Fusion quality of {', '.join(others)} and {last}",
        summary=_findings(results),
        sections=_sections(results, figures),
        record=record,
    )
    return out / "report.html"


# Findings.


def dominance(stage: Stage, pairs: Sequence[Pair]) -> str:
    """Who holds most energy, and whether that depends on the bandwidth, in a sentence or two."""
    widths, holders = stage.stability.bandwidths, stage.stability.conclusions
    chosen = str(holders[len(holders) // 2])
    shares = {name: medians(stage.quality, name)[1] for name in source_names(pairs)}
    listed = ", ".join(f"{name} {100 * shares[name]:.1f} %" for name in sorted(shares, key=lambda name: -shares[name]))
    text = f"{stage.name.capitalize()}, the sources hold these shares of the fused energy (medians): {listed}."
    tried = f"bandwidths from {widths[0]:.3g} to {widths[-1]:.3g}"
    if stage.stability.stable:
        text += f" {chosen} holds most on average, at all {tried}."
    else:
        counts = ", ".join(f"{name} at {holders.count(name)}" for name in dict.fromkeys(holders))
        text += f" Unstable: which one holds most on average changes over {tried} ({counts} of {len(holders)})."
    flips = [f"{a} over {b}" for a, b in pairs if not _holders(stage, (a, b))[1]]
    if flips and len(pairs) > 1:
        text += f" Unstable in the same range: {', '.join(flips)}."
    return text


def medians(quality: FusionQuality, name: str) -> tuple[float, float, float]:
    """Median size, share of the fused energy and bias of a source over the cases."""
    found = (quality.sizes, quality.energy_shares, quality.total_variation)
    size, share, bias = (_median(values[name]) for values in found)
    return size, share, bias


def _findings(results: Results) -> list[str]:
    config, features, encoded = results.config, results.features, results.encoded
    listed = ", ".join(f"{name} ({features.values[name].shape[1]} features)" for name in source_names(results.pairs))
    found = [f"{len(features.case_ids)} cases, {len(features.values)} sources: {listed}."]
    found += [dominance(stage, results.pairs) for stage in results.stages]
    if encoded is not None:
        pair = (encoded.partner, encoded.source)
        before, after = (format_number(_median(stage.quality.scale_free_gap[pair])) for stage in results.stages)
        found.append(
            f"Encoded ({config.encoding}) from {encoded.markers} to {encoded.size} coordinates, γ = "
            f"{format_number(encoded.size / encoded.width)} relative to {encoded.partner}: the scale-free energy gap "
            f"of {encoded.partner} over {encoded.source} goes from {before} to {after} in the median case (0 is "
            "balance)."
        )
        if encoded.plan is not None and not encoded.plan.balanced:
            sizes = encoded.plan.sizes
            found.append(f"No size from {sizes[0]} to {sizes[-1]} balances {encoded.partner} and {encoded.source}.")
    if results.nulls:
        tests = {f"{a} and {b}": null for (a, b), null in results.nulls.items()}
        small = {pair: null for pair, null in tests.items() if null.p_value < 0.05}
        if small:
            listed = ", ".join(f"{pair} (p = {_p(null)})" for pair, null in small.items())
            found.append(f"Re-pairing cases changes how far apart the densities are of {listed}.")
        others = {pair: null for pair, null in tests.items() if pair not in small}
        if others:
            least = min(others.values(), key=lambda null: null.p_value)
            whose = next(iter(others)) if len(others) == 1 else f"{len(others)} pairs of sources"
            found.append(
                f"Re-pairing cases does not visibly change how far apart the densities are of {whose} (p = {_p(least)}"
                f"{'' if len(others) == 1 else ' or more'}, n = {least.cases})."
            )
    if results.outcome is not None:
        best, tests = min(results.relations, key=lambda one: one.null.p_value), len(results.relations)
        found.append(
            f"Source bias and {results.outcome.name}: the smallest of {tests} p-values is "
            f"{_p(best.null)} ({best.source}, {best.stage}; area under the ROC curve {_area(best)}, "
            f"n = {best.null.cases}). The tests are not corrected for their number."
        )
    if any("Unstable" in finding for finding in found):
        found.append("A conclusion called unstable flips within a factor of two of the bandwidth: do not rely on it.")
    found.append(
        "Balanced energies mean that no source drowns the others in the fused layer; they say nothing about the "
        "accuracy of a model trained on it."
    )
    return found


def _holders(stage: Stage, pair: Pair) -> tuple[list[str], bool]:
    """Which of two sources holds more energy at every bandwidth tried, and whether it is always the same."""
    holders = [pair[0] if gap > 0 else pair[1] for gap in stage.gaps[pair]]
    return holders, len(set(holders)) == 1


def _median(values: Any) -> float:
    return float(np.median(np.asarray(values, float)))


def _area(relation: Relation) -> str:
    low, high = relation.interval
    return f"{relation.area:.2f} [{low:.2f}, {high:.2f}]"


# Figures.


def _figures(results: Results) -> dict[str, Figure]:
    """Figures by file name."""
    pairs, names, stages = results.pairs, source_names(results.pairs), results.stages
    last, cases = stages[-1], len(results.features.case_ids)
    labels = [f", {stage.name}" if len(stages) > 1 else "" for stage in stages]
    staged = list(zip(labels, stages, strict=True))
    unit = {"none": "units as given", "zscore": "standard deviations of the cohort"}
    figures = {
        "densities.svg" if stage is last else "densities_before_encoding.svg": density_figure(
            stage.dense.grid,
            {name: np.mean(np.asarray(stage.dense.densities[name], float), axis=0) for name in names},
            np.mean(np.asarray(stage.dense.fused_density, float), axis=0),
            xlabel=f"feature value ({unit.get(results.config.scale, 'scaled by cohort')})",
            caption=(
                f"Densities of the sources and of the fused layer, {stage.name}: mean over n = {_dense(stage)} cases."
            ),
        )
        for stage in stages
    }
    figures |= _gamma_figures(results)
    figures["energy_gaps.svg"] = distribution_figure(
        {f"{a} over {b}{label}": stage.quality.scale_free_gap[a, b] for a, b in pairs for label, stage in staged},
        xlabel="scale-free energy gap",
        caption=(
            "Energy gap as a fraction of the two energies: one dot a case, bars are median and quartiles. At 1 the "
            "first source holds all energy, at −1 the second; at 0 (dashed) they are balanced."
        ),
        reference=0.0,
    )
    figures["source_bias.svg"] = distribution_figure(
        {f"{name}{label}": stage.quality.total_variation[name] for name in names for label, stage in staged},
        xlabel="TV(fused, source)",
        caption=(
            "Distance of the fused density from each source: one dot a case, bars are median and quartiles. Small "
            "means that the fused layer looks like this source."
        ),
    )
    if len(names) > 2:
        matrix = np.full((len(names), len(names)), np.nan)
        for row, column in itertools.permutations(range(len(names)), 2):
            matrix[row, column] = _median(last.quality.scale_free_gap[names[row], names[column]])
        figures["gap_matrix.svg"] = heatmap_figure(
            matrix,
            names,
            names,
            colour_label="scale-free energy gap",
            caption=(
                f"Median scale-free energy gap of the source of a row over that of a column, {last.name}: n = {cases} "
                "cases. Positive where the source of the row dominates."
            ),
            centre=0.0,
        )
    for stage in stages:
        figures["stability.svg" if stage is last else "stability_before_encoding.svg"] = stability_figure(
            stage.stability.bandwidths,
            {name: stage.shares[name] for name in names},
            ylabel="share of the fused energy",
            caption=f"Mean share of each source in the fused energy by bandwidth, {stage.name}: n = {cases} cases.",
            chosen=results.bandwidth,
        )
    return figures


def _gamma_figures(results: Results) -> dict[str, Figure]:
    last, encoded = results.stages[-1], results.encoded
    masses = {pair: mass_curves(last, pair) for pair in results.pairs}
    figures, star = {}, None
    if len(masses) == 1:
        [((a, b), curve)] = masses.items()
        star = _median(last.dense.gamma_star[a, b])
        shown = {"median": "median", "lower quartile": "lower", "upper quartile": "upper"}
        gaps = {label: (curve["gamma"], curve[column]) for label, column in shown.items()}
        figures["gamma_bias.svg"] = gamma_figure(
            {f"TV(fused, {name})": (curve["gamma"], curve[bias]) for name, bias in ((a, "bias_a"), (b, "bias_b"))},
            ylabel="total variation distance",
            caption=(
                f"Curve 1, mass: distance of the fused density from each source, median over n = {_dense(last)} cases. "
                "The curves cross at γ = 1 for any data and any bandwidth."
            ),
            mark=1.0,
            mark_label="γ",
        )
    else:
        gaps = {f"{a} over {b}": (curve["gamma"], curve["median"]) for (a, b), curve in masses.items()}
    figures["gamma_mass.svg"] = gamma_figure(
        gaps,
        ylabel="energy gap ΔE",
        caption=(
            "Curve 1, mass: energy gap as the mass of the second source varies and its density stays as it is "
            f"({last.name}); {'medians' if star is None else 'median and quartiles'} over n = {_dense(last)} cases."
            f"{'' if star is None else ' Marked: the median of γ*, where the gap of a case is zero.'}"
        ),
        mark=star,
    )
    if encoded is not None and encoded.plan is not None:
        curve = size_curve(results)
        figures["gamma_size.svg"] = gamma_figure(
            {f"{encoded.partner} over {encoded.source}": (curve["gamma"], curve["mean"])},
            ylabel="energy gap ΔE",
            caption=(
                f"Curve 2, size: energy gap as {encoded.source} is encoded anew at each of {curve['gamma'].size} "
                f"sizes, so that its density changes too; mean over n = {encoded.plan_cases} cases. Marked: the size "
                "taken."
            ),
            mark=encoded.size / encoded.width,
            mark_label="taken: γ",
        )
    return figures


def _dense(stage: Stage) -> int:
    """Number of cases whose densities were kept."""
    return len(next(iter(stage.distances.values())))


# Sections.


def _sections(results: Results, figures: Figures) -> list[Section]:
    sections = [
        _measured(results),
        Section(
            "Densities",
            ["A source drowns the others where the density of the fused layer cannot be told from its own."],
            _those(figures, "densities_before_encoding.svg", "densities.svg"),
        ),
        _energies(results),
        _gammas(results, figures),
        Section("Every case", [], _those(figures, "energy_gaps.svg", "source_bias.svg", "gap_matrix.svg")),
        _pairing(results),
        _stability(results, figures),
    ]
    if results.outcome is not None:
        sections.append(_related(results, results.outcome))
    return [*sections, _notes(results), _settings(results.config)]


def _those(figures: Figures, *names: str) -> list[Figure]:
    return [figures[name] for name in names if name in figures]


def _measured(results: Results) -> Section:
    config, features, encoded = results.config, results.features, results.encoded
    rule = ""
    if isinstance(config.bandwidth, str):
        rule = f" (the median of {config.bandwidth.capitalize()}'s rule over sources and cases)"
    text = [
        f"{len(features.case_ids)} cases. Sources were matched by {features.paired_by}.",
        (
            "Each feature value of a case is one sample of a density over the axis of feature values, with a Gaussian "
            f"kernel of standard deviation {format_number(results.bandwidth)}{rule}. The fused layer is the "
            "concatenation of the sources; its density is the mixture of theirs, in proportion to their sizes, the "
            "numbers of their features."
        ),
        "Features are used as given, unscaled."
        if config.scale == "none"
        else (
            f"Every source was scaled by {SCALED[config.scale]} of the whole cohort, never case by case: column by "
            "column where columns are different quantities, else over all its values."
        ),
    ]
    missing = {name: int(np.isnan(values).sum()) for name, values in features.values.items()}
    if any(missing.values()):
        text.append("Missing values have weight 0: they count neither as samples nor towards the size of a source.")
    if encoded is not None:
        text.append(
            f"{encoded.source} was measured as given, and again after a {config.encoding} encoding of its "
            f"{encoded.markers} columns, unscaled, to {encoded.size} coordinates"
            f"{'' if config.scale == 'none' else ', which were then scaled by cohort over all values'}."
        )
    rows = [
        (
            name,
            features.values[name].shape[1],
            missing[name],
            f"by {results.scaling[name]['by']}",
            features.files[name].name,
        )
        for name in source_names(results.pairs)
    ]
    table = Table(
        ("source", "features", "missing values", "scaled", "file"), rows, f"Sources of {len(features.case_ids)} cases."
    )
    return Section("What was measured", text, [table])


def _energies(results: Results) -> Section:
    cases = len(results.features.case_ids)
    of_source = {
        "size\N{NO-BREAK SPACE}d": "size",
        "energy\N{NO-BREAK SPACE}R": "energy",
        "share of energy": "energy_share",
        "TV(fused, source)": "total_variation",
        "JS (nats)": "jensen_shannon",
        "balanced size": "balanced_size",
    }
    tables = []
    for stage in results.stages:
        by_source, by_pair = of_sources(stage.quality), of_pairs(stage.quality)
        tables += [
            Table(
                ("source", *of_source),
                [
                    (name, *(_quartiles(by_source[quantity][name]) for quantity in of_source.values()))
                    for name in source_names(results.pairs)
                ],
                f"Sources, {stage.name}: median [quartiles] over n = {cases} cases. JS: Jensen–Shannon divergence of "
                "the source from the fused layer. Balanced size: sizes of the same total at which all sources would "
                "hold the same energy if their densities stayed as they are.",
            ),
            Table(
                ("pair a,\N{NO-BREAK SPACE}b", "γ", "γ*", "energy gap ΔE", "scale-free gap", "TV(a, b)"),
                [
                    (
                        f"{a}, {b}",
                        *(_quartiles(values[a, b]) for values in by_pair.values()),
                        _quartiles(stage.distances[a, b]),
                    )
                    for a, b in results.pairs
                ],
                f"Pairs of sources, {stage.name}: median [quartiles] over n = {cases} cases"
                f"{f' (TV(a, b): {_dense(stage)} of them)' if _dense(stage) < cases else ''}. Gaps are positive where "
                "a dominates.",
            ),
        ]
    height = "of height 1" if results.config.kernel == "peak" else "of integral 1"
    text = (
        f"The energy R of a source is the integral of its squared density, with kernels {height}. In the fused layer a "
        "source of size d holds an energy in proportion to d²R. The relative size of b is γ = d_b / d_a; the energy "
        "gap, of two sources, is ΔE = (R_a − γ² R_b) / (1 + γ)² and zero at γ* = √(R_a / R_b). Total variation TV is "
        "0 for equal densities and 1 for densities that do not meet; the overlap is 1 − TV."
    )
    return Section("Energies and bias", [text], tables)


def _quartiles(values: Any) -> str:
    """Median [quartiles], or the one value that all cases share; lines break before the bracket only."""
    sample = np.asarray(values, float)
    whole = bool(np.all(sample == np.round(sample)))
    found = spread(sample)
    low, middle, high = (
        format_number(round(value) if whole and value == round(value) else value)
        for value in (found["lower_quartile"], found["median"], found["upper_quartile"])
    )
    return middle if low == high else f"{middle} [{low},\N{NO-BREAK SPACE}{high}]"


def _p(null: NullTest) -> str:
    return format_number(null.p_value, 2)


def _gammas(results: Results, figures: Figures) -> Section:
    config, encoded = results.config, results.encoded
    text = [
        (
            "Two different curves over γ bear the same name. Curve 1, mass: the densities of both sources stay as they "
            "are, and only the mass of the second in the mixture varies."
        )
    ]
    if encoded is None:
        text.append("Curve 2, size, encodes a source anew at every size; it needs --encode SOURCE.")
    elif encoded.plan is None:
        text.append("Curve 2, size, is missing: it needs complete cases and an encoding other than pca.")
    else:
        plan = encoded.plan
        at = f"{plan.size} coordinates, γ = {format_number(plan.gamma)}"
        found = f"The energies balance at {at}" if plan.balanced else f"No size balances the energies; closest is {at}"
        taken = "the size that was taken" if plan.size == encoded.size else f"the size taken is {encoded.size}"
        text += [
            (
                f"Curve 2, size: {encoded.source} is encoded anew at every size, so that its density changes too, as "
                f"in a network that is built with that size. {found}; {taken}."
            ),
            (
                f"What this plan assumes: {plan.assumptions} Features and encodings enter it "
                f"{'unscaled' if config.scale == 'none' else 'scaled by cohort'}."
            ),
        ]
    return Section("Relative size", text, _those(figures, "gamma_mass.svg", "gamma_size.svg", "gamma_bias.svg"))


def _pairing(results: Results) -> Section:
    heading = "Could the pairing be chance?"
    if not results.nulls:
        return Section(heading, ["Not tested: re-pairing takes at least two cases."], [])
    rows = []
    for (a, b), null in results.nulls.items():
        low, high = (format_number(float(bound)) for bound in np.quantile(null.null, (0.025, 0.975)))
        rows.append((f"{a}, {b}", null.statistic, float(null.null.mean()), f"{low} to {high}", _p(null)))
    cases = next(iter(results.nulls.values())).cases
    table = Table(
        ("pair a,\N{NO-BREAK SPACE}b", "mean TV(a, b)", "re-paired: mean", "re-paired: 95 %", "p"),
        rows,
        f"Pairing, {results.stages[-1].name}: n = {cases} cases, {results.config.permutations} permutations, "
        "two-sided.",
    )
    text = [
        (
            "Null hypothesis: the two sources are paired at random across cases, so that fusing one case's a with "
            "another case's b leaves the mean of TV(a, b) over cases unchanged. Cases are permuted, never feature "
            "values: those are not exchangeable, since neighbouring voxels resemble each other and a sine and its "
            "cosine are one angle."
        ),
        (
            "A small p-value says that the sources of one case resemble, or avoid, each other more than those of "
            "different cases. It says nothing about the outcome. p-values are not corrected for their number."
        ),
    ]
    return Section(heading, text, [table])


def _stability(results: Results, figures: Figures) -> Section:
    widths = results.stages[-1].stability.bandwidths
    rows = []
    for stage, pair in itertools.product(results.stages, results.pairs):
        holders, stable = _holders(stage, pair)
        ends = (holders[0], holders[len(holders) // 2], holders[-1])
        rows.append((f"{pair[0]}, {pair[1]} ({stage.name})", *ends, "stable" if stable else "unstable"))
    text = [
        (
            f"The question “which of two sources holds more energy, on average?” was asked again at {len(widths)} "
            "bandwidths from half to twice the one chosen. An answer that flips in this range is called unstable."
        )
    ]
    if results.encoded is not None:
        text.append("An encoding that balances the energies leaves this question open on purpose.")
    table = Table(
        ("pair", *(f"at {width:.3g}" for width in (widths[0], results.bandwidth, widths[-1])), "answer"),
        rows,
        f"Source that holds more energy, by bandwidth: n = {len(results.features.case_ids)} cases.",
    )
    return Section(
        "Does it depend on the bandwidth?",
        text,
        [table, *_those(figures, "stability_before_encoding.svg", "stability.svg")],
    )


def _related(results: Results, outcome: Outcome) -> Section:
    positive, cases = int(outcome.labels.sum()), outcome.labels.size
    text = [
        (
            f"Is the bias of a source, TV(fused, source), related to {outcome.name} ({outcome.positive}: {positive} "
            f"cases, {outcome.negative}: {cases - positive} cases)? Null hypothesis: the outcome is exchangeable "
            f"across cases. An area above 0.5 means larger distances in cases with {outcome.positive}."
        ),
        (
            "Unadjusted: what goes with both the bias and the outcome, such as the size of a lesion or the scanner, is "
            f"not accounted for. {len(results.relations)} tests, not corrected for their number."
        ),
    ]
    if len(results.pairs) == 1:
        text.append(
            "With two sources of the same sizes in every case, both distances are fixed shares of TV(a, b), so that "
            "their rows agree."
        )
    rows = [(f"{one.source} ({one.stage})", _area(one), _p(one.null)) for one in results.relations]
    table = Table(
        ("source", "area under the ROC curve [95 %]", "p"),
        rows,
        f"Source bias and {outcome.name}: n = {cases} cases, {results.config.permutations} permutations, two-sided; "
        "95 % intervals of DeLong et al. 1988.",
    )
    return Section("Outcome", text, [table])


def _notes(results: Results) -> Section:
    last, cases = results.stages[-1], len(results.features.case_ids)
    bound = float(np.max(np.asarray(last.quality.error_bound)))
    text = [
        (
            "ΔE near 0 at γ near 1 is a property of sources with equal mean-square density (R_a ≈ R_b), which wide "
            "kernels and standardised sources have; it is not a theorem about dimension. With narrow kernels the gap "
            "vanishes elsewhere, at γ*. The exact statement about dimension alone is that the fused layer is equally "
            "far from both sources, TV(p_f, p_a) = TV(p_f, p_b), if and only if γ = 1."
        ),
        (
            "Densities are of single feature values: they do not know which feature holds which value, nor how "
            "features go together, nor the outcome."
        ),
        (
            "Scaling, encoding and its size were read off all cases given. In a study that also trains models, measure "
            "on training patients only."
        ),
        f"The grid adds an error of at most {format_number(bound)} of a density's peak, rounding about 10⁻⁶.",
    ]
    if _dense(last) < cases:
        text.append(f"Densities, curves and the pairing are of {_dense(last)} cases, evenly taken from all {cases}.")
    return Section("How to read this", text, [])


def _settings(config: Config) -> Section:
    words = ["fusion-jax", "quality", *(path.name for path in config.features)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("features", "out", "compilation_cache") or value == field.default:
            continue
        values = value if isinstance(value, tuple) else (value.name if isinstance(value, Path) else value,)
        words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    files = [
        ("quality.json", "settings, scaling constants, distributions over cases, tests, checksums of files, versions"),
        ("cases.csv", "one row per case: sizes, energies, shares, distances, gaps, γ*"),
        ("gamma.csv", "the curves over γ; the column curve says which, mass or size, each of the two sources alone"),
        ("figures/", "the figures as SVG"),
    ]
    table = Table(("file", "content"), files, "Files beside this report.")
    return Section("Settings and files", [f"Command, with file names only: {shlex.join(words)}"], [table])
