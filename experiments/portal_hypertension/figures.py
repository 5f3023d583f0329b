"""Figures of the experiment: AUC and energy gap against gamma, the best gamma of each split, densities of a case."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from experiments.portal_hypertension.claim import Claim, Curve
from experiments.portal_hypertension.table import Row
from fusion_jax.reporting.figures import WIDTH, Palette, density_figure, draw, legend, legend_height
from fusion_jax.reporting.html import Figure

__all__ = ["NAMES", "best_figure", "claim_figure", "gap_figure", "heads_figure", "representative_case", "table_figure"]

NAMES = {
    "positional": "positional encoding",
    "repetition": "repetition",
    "fourier": "random Fourier features",
    "raw": "raw, same norm",
    "shuffled": "encoding of other patients",
}
"""Blocks by the names of the figures."""


def claim_figure(claim: Claim, *, caption: str) -> Figure:
    """Mean test AUC against gamma, encoding and controls, with the interval of the encoding over patients."""
    curves = {NAMES[curve.control]: curve for curve in claim.curves}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for index, (name, curve) in enumerate(curves.items()):
            style = palette.style(index)
            axes.plot(curve.gammas, curve.auc, marker="o", markersize=4, label=name, **style)
            if curve.control == "positional":
                axes.fill_between(curve.gammas, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0)
        for name, (value, _, _) in claim.singles.items():
            axes.axhline(value, color=palette.soft, linewidth=1, linestyle=":" if name == "image" else "--")
            axes.annotate(f"{name} alone", (1.0, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=8.5, color=palette.soft)  # fmt: skip
        axes.axvline(1.0, color=palette.rule, linewidth=1, zorder=0)
        ticks = curves[NAMES["positional"]].gammas
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="γ = d2* / d1, size of the markers relative to the image", ylabel="AUC, mean over the splits")
        legend(axes, curves)

    alt = "; ".join(
        f"{name} from {curve.auc[0]:.3f} at γ = {curve.gammas[0]:.2g} to {curve.auc[-1]:.3f} at {curve.gammas[-1]:.2g}"
        for name, curve in curves.items()
    )
    return draw(plot, size=(WIDTH, 3.6 + legend_height(curves)), caption=caption, alt=f"AUC over γ: {alt}.")


def gap_figure(claim: Claim, *, caption: str) -> Figure:
    """AUC in training less AUC in testing, against gamma."""
    curves = {NAMES[curve.control]: curve for curve in claim.curves}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for index, (name, curve) in enumerate(curves.items()):
            gap = np.subtract(curve.train_auc, curve.auc)
            axes.plot(curve.gammas, gap, marker="o", markersize=4, label=name, **palette.style(index))
        ticks = curves[NAMES["positional"]].gammas
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="γ = d2* / d1", ylabel="AUC in training − AUC in testing", ylim=(0, None))
        legend(axes, curves)

    first = claim.curves[0]
    ends = f"{first.train_auc[0] - first.auc[0]:.3f} to {first.train_auc[-1] - first.auc[-1]:.3f}"
    return draw(plot, size=(WIDTH, 3.2 + legend_height(curves)), caption=caption, alt=f"Encoding: gap from {ends}.")


def best_figure(curve: Curve, *, splits: int, caption: str) -> Figure:
    """In how many splits each gamma has the largest test AUC."""

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        places = np.arange(len(curve.gammas))
        axes.bar(places, curve.best, color=palette.colours[0], width=0.7)
        axes.axhline(splits / len(curve.gammas), color=palette.soft, linestyle="--", linewidth=1)
        axes.annotate("if all were equal", (0.995, splits / len(curve.gammas)), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", fontsize=8.5, color=palette.soft)  # fmt: skip
        axes.set_xticks(places, [f"{gamma:.2g}" for gamma in curve.gammas])
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="γ with the largest test AUC of a split", ylabel=f"splits, of {splits}")

    counts = ", ".join(f"{best:.1f} at {gamma:.2g}" for gamma, best in zip(curve.gammas, curve.best, strict=True))
    return draw(plot, size=(WIDTH, 2.6), caption=caption, alt=f"Splits by best γ: {counts}.")


def table_figure(rows: Sequence[Row], *, caption: str) -> Figure:
    """Figure 7 of the paper: AUC and magnitude of the energy gap against gamma."""
    fused = [row for row in rows if row.model.startswith("image + PE")]
    gammas = [row.gamma for row in fused]

    def plot(figure: Canvas, palette: Palette) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        above.set_xscale("log")
        auc = np.array([row.auc for row in fused])
        error = np.abs(np.array([(row.low, row.high) for row in fused]).T - auc)
        above.errorbar(gammas, auc, yerror_of(error), marker="o", capsize=3, color=palette.colours[0])
        above.set(ylabel="AUC")
        below.plot(gammas, [abs(row.gap) for row in fused], marker="o", color=palette.colours[1])
        below.set_xticks(gammas, [f"{gamma:.2g}" for gamma in gammas])
        below.minorticks_off()
        below.set(xlabel="γ = d2* / d1", ylabel="|ΔE|", ylim=(0, None))

    alt = "; ".join(f"γ = {row.gamma:.2g}: AUC {row.auc:.3f}, |ΔE| {abs(row.gap):.3f}" for row in fused)
    return draw(plot, size=(WIDTH, 4.4), caption=caption, alt=alt)


def yerror_of(error: np.ndarray) -> np.ndarray:
    """Error bars never point inwards."""
    return np.maximum(error, 0.0)


def representative_case(folders: Mapping[str, Path], *, caption: str) -> list[Figure]:
    """Figure 6 of the paper: densities of image, markers and fused layer of the most typical tested case.

    Args:
      folders: what the model is called to the folder of its training.
      caption: with `{model}`.
    """
    figures = []
    for model, folder in folders.items():
        path = folder / "quality_densities.npz"
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as file:
            grid, fused = file["grid"], file["fused"]
            sources = {name.removeprefix("source/"): file[name] for name in file.files if name.startswith("source/")}
        shown = {("markers" if name == "clinical" else "image"): values for name, values in sources.items()}
        xlabel = "feature value, standard deviations of its source"
        figures.append(density_figure(grid, shown, fused, xlabel=xlabel, caption=caption.format(model=model)))
    return figures


def heads_figure(claims: Mapping[str, tuple[str, Claim]], *, caption: str) -> Figure:
    """Mean test AUC against gamma under every head, side by side.

    Args:
      claims: by head, with the title of its panel.
      caption: with n.
    """
    names = dict.fromkeys(NAMES[curve.control] for _, claim in claims.values() for curve in claim.curves)

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False).flat
        handles = {}
        for axes, (title, claim) in zip(panels, claims.values(), strict=False):
            axes.set_xscale("log")
            for curve in claim.curves:
                name = NAMES[curve.control]
                style = palette.style(list(names).index(name))
                (handles[name],) = axes.plot(curve.gammas, curve.auc, marker="o", markersize=3, **style)
                if curve.control == "positional":
                    axes.fill_between(
                        curve.gammas, curve.low, curve.high, color=style["color"], alpha=0.12, linewidth=0
                    )
            for value, _, _ in claim.singles.values():
                axes.axhline(value, color=palette.soft, linewidth=1, linestyle=":")
            axes.set_title(title, fontsize=9)
            ticks = (0.1, 0.2, 0.4, 1.0, 3.0)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        figure.supxlabel("γ = d2* / d1", fontsize=10)
        figure.supylabel("AUC, mean over the splits", fontsize=10)
        figure.legend([handles[name] for name in names], list(names), loc="outside upper center", ncols=2, fontsize=9)

    alt = "; ".join(
        f"{title}: encoding {claim.curves[0].auc[0]:.3f} to {claim.curves[0].auc[-1]:.3f}"
        for title, claim in claims.values()
    )
    return draw(plot, size=(WIDTH, 5.4), caption=caption, alt=f"AUC over γ in four panels. {alt}.")
