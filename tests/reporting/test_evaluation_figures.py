"""Figures of an evaluation: what is drawn is what was given, for one model or seven, with and without numbers."""

import functools
import html
import math
import re
from xml.dom import minidom

import numpy as np
import pytest

from fusion_jax.reporting.calibration_figures import Reliability, calibration_figure, decision_curve_figure
from fusion_jax.reporting.curve_figures import OperatingPoint, froc_figure, precision_recall_figure, roc_figure
from fusion_jax.reporting.figure_parts import Curve, ink_on, model_style, plot_curve, text_width
from fusion_jax.reporting.figures import DARK, LIGHT, draw
from fusion_jax.reporting.forest_figures import ForestRow, Subgroup, forest_figure, subgroup_forest_figure
from fusion_jax.reporting.matrix_figures import (
    Reclassification,
    confusion_figure,
    difference_matrix_figure,
    reclassification_figure,
)
from fusion_jax.reporting.strip_figures import fold_strip_figure, importance_figure, score_figure
from fusion_jax.reporting.survival_figures import SurvivalCurve, kaplan_meier_figure
from fusion_jax.reporting.tables import format_interval

NAMES = (
    "Image-Only",
    "Non-Image-Only",
    "Probability Fusion [P,P]",
    "Feature Fusion [L,S]",
    "Learned Feature Fusion [L,L]",
    "Learned Feature Fusion, L+L",
    "costs $5 & <7> or $6",
)
GRID = np.linspace(0.0, 1.0, 21)
NOTHING = np.full(21, math.nan)
COUNTS = [1, 7]


def curves(count, note="AUC 0.898 [0.885, 0.909]"):
    return {
        name: Curve(GRID, GRID ** (0.2 + 0.1 * k), GRID ** (0.3 + 0.1 * k), GRID ** (0.1 + 0.1 * k), note)
        for k, name in enumerate(NAMES[:count])
    }


def rocs(count):
    points = [OperatingPoint(name, 0.1, 0.6, "95 % sensitivity, from validation") for name in NAMES[:count]]
    return roc_figure(curves(count), points=points, caption="n = 48.")


def precision_recalls(count):
    return precision_recall_figure(curves(count, ""), prevalence=0.205, caption="n = 48.")


def frocs(count):
    found = {name: c._replace(x=10 * GRID, low=None, high=None) for name, c in curves(count).items()}
    return froc_figure(found, caption="n = 48.")


def forests(count):
    rows = [ForestRow(name, "AUC", 0.8 + 0.01 * k, 0.7, 0.9, "0.800 [0.700, 0.900]") for k, name in enumerate(NAMES)]
    return forest_figure(
        rows[:count], xlabel="AUC", caption="n = 48.", reference=0.5, reference_label="chance", heading="value"
    )


def subgroups(count):
    groups = [Subgroup("site", name, 40, 12, 0.8, 0.7, 0.9) for name in NAMES[:count]]
    small = [
        Subgroup("sex", "m", 7, 3, 1.0, 1.0, 1.0),
        Subgroup("sex", "f", 50, 0, math.nan, math.nan, math.nan, "one class"),
    ]
    return subgroup_forest_figure(
        [*groups, *small], minimum=10, xlabel="AUC", caption="n = 48.", overall=0.82, text=format_interval
    )


def calibrations(count):
    bins = [np.array(x) for x in ([0.2, 0.5, 0.8], [0.3, math.nan, 1.0], [0.1, math.nan, 0.9], [0.5, math.nan, 0.99])]
    counts = np.array([20, 0, 10])
    edges = np.array([0.0, 0.5, 1.0])
    one = Reliability(*bins, counts, edges, np.array([14, 3]), np.array([6, 7]), Curve(GRID, GRID**1.2), "slope 0.91")
    return calibration_figure(dict.fromkeys(NAMES[:count], one), caption="n = 30.", classes=("benign", "cancer"))


def decisions(count):
    models = {name: Curve(GRID, 0.2 - 0.3 * GRID, 0.19 - 0.3 * GRID, NOTHING) for name in NAMES[:count]}
    return decision_curve_figure(models, treat_all=Curve(GRID[:-1], 0.2 - 0.8 * GRID[:-1]), caption="n = 48.")


def differences(count):
    count = max(2, count)
    values = np.arange(count**2, dtype=float).reshape(count, count) / 100
    values[-1, 0] = math.nan if count > 2 else 0.02
    p = np.full((count, count), 0.0321)
    return difference_matrix_figure(
        NAMES[:count], values, values - 0.01, values + 0.01, p, metric="AUC", adjusted="Holm", caption="n = 48."
    )


def confusions(count):
    matrices = {name: np.array([[1918, 1985], [0, 0]]) for name in NAMES[:count]}
    return confusion_figure(matrices, classes=["benign", "cancer"], caption="n = 48.")


def reclassifications(count):
    changes = [Reclassification(f"{name} against Image-Only", "benign", 1016, 273, 3903) for name in NAMES[:count]]
    return reclassification_figure(changes, caption="n = 48.")


def survivals(count):
    time, event = np.array([3.0, 8.0, 20.0]), np.array([True, False, True])
    one = SurvivalCurve(
        time[[0, 2]], np.array([0.67, 0.0]), np.array([0.2, math.nan]), np.array([0.9, math.nan]), time, event
    )
    return kaplan_meier_figure(dict.fromkeys(NAMES[:count], one), xlabel="time (months)", caption="n = 3.")


def folds(count):
    values = np.array([[0.7, 0.8, math.nan], [0.75, 0.85, 0.9]])
    return fold_strip_figure(dict.fromkeys(NAMES[:count], values), xlabel="AUC", caption="3 folds.", replicate="seed")


def scores(count):
    one = {"benign": [0.1, 0.2, math.nan], "cancer": []}
    return score_figure(
        dict.fromkeys(NAMES[:count], one), xlabel="probability of cancer", caption="n = 2.", thresholds={NAMES[0]: 0.5}
    )


def importances(count):
    draws = np.random.default_rng(0).normal(size=(25, 8))
    columns = [f"column {k}" for k in range(25)]
    return importance_figure(dict.fromkeys(NAMES[:count], draws), columns, xlabel="drop of AUC", caption="n = 48.")


FIGURES = [
    rocs,
    precision_recalls,
    frocs,
    forests,
    subgroups,
    calibrations,
    decisions,
    differences,
    confusions,
    reclassifications,
    survivals,
    folds,
    scores,
    importances,
]


def texts(svg):
    """Lines of a figure: text is drawn as outlines, each after a comment that holds it."""
    return [line for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL) for line in html.unescape(text).split("\n")]


@functools.cache
def drawn(make, count):
    """A figure, drawn once for all tests that look at it."""
    return make(count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", FIGURES)
def test_a_figure_says_the_same_in_both_palettes(make, count):
    figure = drawn(make, count)
    for svg, palette in ((figure.light, LIGHT), (figure.dark, DARK)):
        assert minidom.parseString(svg).getElementsByTagName("svg")  # noqa: S318
        assert palette.background in svg
        assert not re.search(r"[\s\"](nan|inf)\b", re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL))
    assert texts(figure.light) == texts(figure.dark)
    assert figure.light != figure.dark
    assert figure.caption.startswith(("n = ", "3 folds"))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", FIGURES)
def test_every_model_is_named_in_figure_and_description(make, count):
    figure = drawn(make, count)
    said = " ".join(texts(figure.light))
    for name in NAMES[:count]:
        words = name.split()  # a name may run over lines
        assert re.search(r"\s+".join(map(re.escape, words)), said), name
        assert name in figure.alt


@pytest.mark.parametrize("make", [rocs, forests, scores, importances])
def test_the_same_numbers_give_the_same_bytes(make):
    assert make(1) == drawn(make, 1)


PLACED = re.compile(
    r"<!-- (?P<text>.*?) -->\s*<g[^>]*?transform=\"translate\((?P<x>[-\d.]+) (?P<y>[-\d.]+)\)"
    r"(?P<turn> rotate\([-\d.]+\))? scale\((?P<scale>[\d.]+)",
    re.DOTALL,
)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", FIGURES)
def test_text_begins_and_ends_inside_of_the_figure(make, count):
    svg = drawn(make, count).light
    width, height = (float(x) for x in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    placed = list(PLACED.finditer(svg))
    assert len(placed) >= 3
    for text in placed:
        x, y, size = float(text["x"]), float(text["y"]), 100 * float(text["scale"])
        right = x if text["turn"] else x + 72 * text_width(html.unescape(text["text"]), size)
        assert x >= -0.5, text["text"]
        assert right <= width + 0.5, text["text"]
        assert 0.6 * size <= y <= height + 0.5, text["text"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (rocs, {"sensitivity", "1 − specificity (false-positive rate)", "95 % sensitivity, from validation"}),
        (precision_recalls, {"prevalence 0.205", "recall (sensitivity)"}),
        (frocs, {"1/8", "1/2", "8", "16", "false positives per image"}),
        (forests, {"chance", "value", "0.800 [0.700, 0.900]", "AUC"}),
        (subgroups, {"withheld: n < 10", "one class", "f (0 of 50)", "sex", "all cases: 0.820"}),
        (calibrations, {"share observed", "slope 0.91", "benign (n = 17)", "cancer (n = 13)", "smooth curve", "ideal"}),
        (decisions, {"treat all", "treat none", "threshold probability"}),
        (differences, {"+0.020", "[+0.010, +0.030]", "p = 0.032", "above: p, Holm"}),
        (confusions, {"1,918", "49 %", "–", "true class", "called"}),
        (reclassifications, {"1,016", "273", "net +743 of 3,903", "benign"}),
        (survivals, {"at risk", "3", "2", "1", "time (months)"}),
        (folds, {"seed 1", "seed 2", "0.800 ± 0.079"}),
        (scores, {"benign", "cancer", "threshold", "share of the class"}),
        (importances, {"drop of AUC; 5 columns of less importance not shown"}),
    ],
)
def test_numbers_units_and_reasons_are_in_the_figure(make, said):
    assert said <= set(texts(drawn(make, 1).light))


def test_the_size_of_a_withheld_subgroup_is_not_told():
    figure = drawn(subgroups, 1)
    assert "m" in texts(figure.light)
    assert not [text for text in [*texts(figure.light), figure.alt] if re.search(r"(?<![\d.])7(?![\d.])", text)]


def test_a_dollar_sign_begins_no_formula():
    figure = drawn(rocs, 7)
    assert "costs $5 & <7> or $6   AUC 0.898 [0.885, 0.909]" in texts(figure.light)
    assert "Oblique" not in figure.light


def test_seven_models_have_seven_styles():
    for palette in (LIGHT, DARK):
        styles = [model_style(palette, k) for k in range(7)]
        assert len({style["color"] for style in styles}) == 7
        assert len({str(style["linestyle"]) for style in styles}) == 7
        assert model_style(palette, 7) not in styles


def test_many_points_are_thinned_and_both_ends_kept():
    x = np.linspace(0.0, 1.0, 20_000)
    seen = []
    draw(
        lambda figure, palette: seen.append(
            plot_curve(figure.subplots(), palette, 0, Curve(x, x > 0.73), of=1, step=True).get_xydata()
        ),
        size=(2, 2),
        caption="",
        alt="",
    )
    points = seen[0]
    assert len(points) <= 400
    assert points[0].tolist() == [0.0, 0.0]
    assert points[-1].tolist() == [1.0, 1.0]
    # The jump stays where it is.
    assert points[np.flatnonzero(points[:, 1])[0], 0] == pytest.approx(0.73, abs=0.01)


def test_descriptions_hold_the_numbers():
    assert "Image-Only (AUC 0.898 [0.885, 0.909]) reaches 0.725 at 0.200. Marked: Image-Only" in drawn(rocs, 1).alt
    assert (
        "Image-Only finds 0.600"
        in froc_figure({"Image-Only": Curve(np.array([0.5, 2.0]), np.array([0.6, 0.9]))}, caption="").alt
    )
    assert "bins from 0.300 at 0.200 to 1.00 at 0.800" in drawn(calibrations, 1).alt
    assert "Non-Image-Only minus Image-Only +0.020 [+0.010, +0.030], p = 0.032" in drawn(differences, 1).alt
    assert "cancer called benign 0 (–), cancer 0 (–)" in drawn(confusions, 1).alt
    assert "n = 3, 2 events, 0 at the last follow-up" in drawn(survivals, 1).alt
    assert "Image-Only 0.800 ± 0.079 (5 folds)" in drawn(folds, 1).alt
    assert "benign median 0.150 (n = 2), cancer median none (n = 0), threshold 0.500" in drawn(scores, 1).alt


def test_a_free_response_curve_begins_with_what_it_has_at_the_left_edge():
    x = np.array([0.0, 0.01, 0.05, 3.0])
    whole, early, late = (
        froc_figure({"a": Curve(x, np.array(y))}, caption="").light
        for y in ([0.1, 0.2, 0.3, 0.9], [0.0, 0.1, 0.3, 0.9], [0.1, 0.2, 0.35, 0.9])
    )
    assert whole == early
    assert whole != late


def test_treating_all_is_compared_at_every_threshold():
    x = np.array([0.1, 0.2, 0.3, 0.4])
    model = Curve(x, np.array([0.10, 0.09, -0.01, 0.02]))
    figure = decision_curve_figure({"a": model}, treat_all=Curve(x, np.array([0.12, 0.05, -0.1, -0.2])), caption="")
    assert "above treating all and none at 2 of 4 thresholds" in figure.alt


def test_ink_can_be_read_on_every_colour():
    rng = np.random.default_rng(0)
    for face in rng.uniform(size=(200, 3)):
        luminance = float(
            np.where(face <= 0.04045, face / 12.92, ((face + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        )
        contrast = (luminance + 0.05) / 0.05 if ink_on(face.tolist()) == "#000000" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5


def test_scores_that_are_no_probabilities_have_axes_of_their_own():
    figure = score_figure(
        {"a": {"no": [-3.0, -2.0], "yes": [2.0]}, "b": {"no": [100.0], "yes": [200.0]}}, xlabel="score", caption=""
    )
    assert {"−2", "100"} <= set(texts(figure.light))


def test_many_repeats_share_one_marker():
    figure = fold_strip_figure({"a": np.random.default_rng(0).uniform(size=(10, 5))}, xlabel="AUC", caption="")
    assert "repeat 1" not in texts(figure.light)
    assert "(50 folds)" in figure.alt


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: roc_figure({}, caption=""), "a figure of no curves"),
        (
            lambda: roc_figure({"a": Curve(GRID, GRID[:3])}, caption=""),
            r"'a': x, y, low and high have lengths \[21, 3\]",
        ),
        (lambda: froc_figure({"a": Curve(GRID[:0], GRID[:0])}, caption=""), "none be empty"),
        (
            lambda: roc_figure(curves(1), points=[OperatingPoint("b", 0, 0, "t")], caption=""),
            "'t': no curve is called 'b'; there are Image-Only",
        ),
        (lambda: forest_figure([], xlabel="AUC", caption=""), "AUC without rows"),
        (lambda: calibration_figure({}, caption=""), "no models"),
        (lambda: decision_curve_figure({}, treat_all=Curve(GRID, GRID), caption=""), "no models"),
        (lambda: confusion_figure({}, classes=["a"], caption=""), "no confusion matrices"),
        (lambda: confusion_figure({"m": np.eye(3, dtype=int)}, classes=["a", "b"], caption=""), r"m: .*\(3, 3\) and 2"),
        (lambda: reclassification_figure([], caption=""), "no comparison"),
        (lambda: kaplan_meier_figure({}, xlabel="t", caption=""), "no groups"),
        (lambda: fold_strip_figure({}, xlabel="AUC", caption=""), "no models"),
        (lambda: score_figure({}, xlabel="s", caption=""), "no models"),
        (
            lambda: score_figure({"a": {"x": [1.0]}, "b": {"y": [1.0]}}, xlabel="s", caption=""),
            r"b: classes \['y'\]; other models have \['x'\]",
        ),
        (lambda: importance_figure({}, [], xlabel="", caption=""), "no models"),
        (
            lambda: importance_figure({"a": np.zeros((2, 0))}, ["x", "y"], xlabel="", caption=""),
            r"a: importance of shape \(2, 0\) for 2 columns",
        ),
    ],
)
def test_nothing_to_draw_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_matrix_of_differences_fits_its_models():
    one = np.zeros((1, 1))
    with pytest.raises(ValueError, match=r"1 models .* at least two"):
        difference_matrix_figure(["a"], one, one, one, one, metric="AUC", adjusted="", caption="")


def test_a_group_without_cases_is_named():
    none = np.zeros(0)
    with pytest.raises(ValueError, match="'high risk' holds no cases"):
        kaplan_meier_figure(
            {"high risk": SurvivalCurve(none, none, none, none, none, none.astype(bool))}, xlabel="t", caption=""
        )


def test_a_calibration_without_cases_is_named():
    none = np.zeros(1)
    empty = Reliability(
        none, none, none, none, np.zeros(1, int), np.array([0.0, 1.0]), np.zeros(1, int), np.zeros(1, int)
    )
    with pytest.raises(ValueError, match="Fusion: no bin"):
        calibration_figure({"Fusion": empty}, caption="")
