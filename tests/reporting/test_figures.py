"""Figures: the same bytes for the same numbers, both palettes, and the facts in their text."""

import re
from xml.dom import minidom

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from fusion_jax.reporting import (
    Figure,
    density_figure,
    distribution_figure,
    draw,
    gamma_figure,
    heatmap_figure,
    save_figure,
    stability_figure,
)

GRID = np.linspace(-4.0, 4.0, 1000)
BUMP = np.exp(-(GRID**2) / 2)
GAMMA = np.geomspace(0.01, 100.0, 50)


def densities() -> Figure:
    return density_figure(GRID, {"image": BUMP, "clinical": BUMP[::-1]}, BUMP, xlabel="value (HU)", caption="n = 3.")


def gammas() -> Figure:
    curves = {"image over clinical": (GAMMA, 1 - GAMMA), "other": (GAMMA[:9], GAMMA[:9])}
    return gamma_figure(curves, ylabel="energy gap", caption="n = 3.", mark=1.25)


def distributions() -> Figure:
    values = {"image": [0.1, 0.2, np.nan], "clinical": [0.5], "none": []}
    return distribution_figure(values, xlabel="source bias", caption="One dot a case.", reference=0.3)


def stabilities() -> Figure:
    return stability_figure([0.5, 1, 2], {"image": [0.9, 0.8, 0.7]}, ylabel="share", caption="n = 3.", chosen=1.0)


def heatmaps() -> Figure:
    values = [[-1.0, 0.0, 0.5], [np.nan, 2.0, -0.25]]
    return heatmap_figure(values, ["a", "b"], ["x", "y", "z"], colour_label="gap", caption="n = 3.", centre=0.0)


FIGURES = [densities, gammas, distributions, stabilities, heatmaps]


def texts(svg: str) -> list[str]:
    """What a figure says: its text is drawn as outlines, each after a comment that holds it."""
    return re.findall(r"<!-- (.*?) -->", svg)


@pytest.mark.parametrize("make", FIGURES)
def test_a_figure_is_two_documents_with_caption_and_description(make):
    figure = make()
    assert figure.light != figure.dark
    for svg, background in ((figure.light, "#ffffff"), (figure.dark, "#14171b")):
        assert minidom.parseString(svg).getElementsByTagName("svg")  # noqa: S318
        assert background in svg
    assert texts(figure.light) == texts(figure.dark)
    assert figure.caption
    assert len(figure.alt) > 20


@pytest.mark.parametrize("make", FIGURES)
def test_the_same_numbers_give_the_same_bytes(make):
    before = dict(mpl.rcParams)
    first = make()
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "none"}):  # whatever a user has set
        second = make()
    assert first == second
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (densities, {"value (HU)", "probability density", "image", "clinical", "fused layer"}),
        (gammas, {"energy gap", "γ* = 1.25", "image over clinical", "other", "0.01", "100"}),
        (distributions, {"source bias", "n = 2", "n = 1", "n = 0", "image"}),
        (stabilities, {"share", "chosen: 1.00", "0.5", "2"}),
        (heatmaps, {"gap", "−1.00", "0.500", "–", "a", "z"}),
    ],
)
def test_axes_are_labelled_and_counts_stated(make, said):
    assert said <= {line for text in texts(make().light) for line in text.split("\n")}


def test_descriptions_hold_the_numbers():
    assert "clinical 0.500 (n = 1)" in distributions().alt
    assert "image from 0.900 to 0.700" in stabilities().alt
    assert "from −1.00 to 2.00" in heatmaps().alt


def test_jax_arrays_are_as_good_as_numpy():
    assert density_figure(
        jnp.asarray(GRID), {"a": jnp.asarray(BUMP)}, jnp.asarray(BUMP), xlabel="v", caption=""
    ).light.startswith("<?xml")


def test_many_cases_become_pixels():
    values = np.random.default_rng(0).normal(size=200_000)
    svg = distribution_figure({"image": values}, xlabel="bias", caption="").light
    assert "data:image/png" in svg
    assert len(svg) < 300_000


def test_many_grid_points_become_few():
    grid = np.linspace(-4.0, 4.0, 100_000)
    bump = np.exp(-(grid**2) / 2)
    assert len(density_figure(grid, {"a": bump}, bump, xlabel="v", caption="").light) < 100_000


def test_a_matrix_and_its_labels_agree():
    with pytest.raises(ValueError, match=r"shape \(1, 2\) has 1 row labels and 3 column labels"):
        heatmap_figure([[1.0, 2.0]], ["a"], ["x", "y", "z"], colour_label="gap", caption="")


def test_cells_can_say_something_else():
    figure = heatmap_figure([[1.0]], ["a"], ["x"], annotations=[["balanced"]], colour_label="gap", caption="")
    assert "balanced" in texts(figure.light)


def test_a_saved_figure_is_the_light_one(tmp_path):
    figure = draw(lambda canvas, palette: canvas.suptitle(palette.background), size=(2, 1), caption="", alt="")
    save_figure(figure, tmp_path / "figures" / "one.svg")
    assert (tmp_path / "figures" / "one.svg").read_text(encoding="utf-8") == figure.light
