"""Pictures of detections and figures of detectors: what is drawn is what was given."""

import base64
import html
import io
import re
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image as Picture

from fusion_jax.evaluation.detection import BoxCounts
from fusion_jax.reporting.detection import (
    ClinicalValue,
    Generalisation,
    Marks,
    ShownCase,
    anchor_figure,
    best_anchors,
    clinical_values,
    correlation_figure,
    count_table,
    generalisation_figure,
    overlap_figure,
    prediction_figure,
    relevance_figure,
    stage_figure,
)
from fusion_jax.reporting.detection.marks import class_colour, kept_marks
from fusion_jax.reporting.figure_parts import Curve
from fusion_jax.reporting.figures import DARK, LIGHT
from tests.helpers import real_data

CLASSES = ["nodule", "costs $5 & <7>"]
BOXES = np.array([[4.0, 4.0, 20.0, 24.0], [30.0, 10.0, 44.0, 40.0]])
TRUTH = Marks(BOXES, np.array([0, 1]))
FOUND = Marks(BOXES + 2, np.array([0, 1]), np.array([0.83, 0.04]))
MASKS = np.zeros((2, 48, 48))
MASKS[0, 6:20, 6:20] = 0.9
MASKS[0, 20:24, 6:20] = 0.4
VALUES = (ClinicalValue("age", 71.0, "years"), ClinicalValue("heart rate", None, "bpm", 85.7))


def picture():
    return np.full((48, 48, 1), 90, np.uint8)


def case(name="case_7", *, found=None, truth=TRUTH, clinical=VALUES, **more):
    return ShownCase(name, picture(), {"MDF-Net": FOUND} if found is None else found, truth, clinical, **more)


def predictions(*cases, **options):
    return prediction_figure(cases or (case(),), classes=CLASSES, caption="n = 1.", **options)


def texts(svg):
    minidom.parseString(svg)  # noqa: S318 - written here
    return [line for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL) for line in html.unescape(text).split("\n")]


def rasters(svg):
    found = re.findall(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", svg)
    return [np.array(Picture.open(io.BytesIO(base64.b64decode(one))).convert("RGBA")) for one in found]


def frames(svg, number):
    """Corners of the boxes in the colour of a class, in points of the figure."""
    colour = class_colour(number)
    paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; [^"]*stroke: {colour}[^"]*"', svg)
    points = [np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path), float) for path in paths]
    return [corners for corners in points if len(corners) >= 4]  # lines of the legend have two


# Predictions.


def test_every_class_model_score_and_value_is_told_in_both_palettes():
    figure = predictions()
    for svg, palette in ((figure.light, LIGHT), (figure.dark, DARK)):
        assert palette.background in svg
        said = texts(svg)
        assert {"case_7", "1  nodule", "2  costs $5 & <7>", "there", "found, score 0.05 or more"} <= set(said)
        assert {"1  0.83", "age: 71 years"} <= set(said)
        assert "heart rate: missing (85.7" in " ".join(said)
    assert "MDF-Net found nodule 0.83" in figure.alt
    assert "heart rate missing (85.7 bpm used)" in figure.alt


def test_boxes_lie_where_they_are_whatever_the_resolution_of_the_picture():
    def of_first(figure):
        [truth, found] = sorted(frames(figure.light, 0), key=lambda points: points[:, 0].min())
        return np.concatenate([truth, found])

    coarse = case(size=(48, 48))._replace(picture=picture()[::2, ::2])
    np.testing.assert_allclose(of_first(predictions(coarse)), of_first(predictions()))
    points = of_first(predictions())
    # Box (4, 4, 20, 24) of the truth: its sides are 16 by 20 pixels of 48, and detections lie 2 further.
    side = 72 * 2.9 / 48
    assert points[:5, 0].max() - points[:5, 0].min() == pytest.approx(16 * side, rel=1e-3)
    assert points[:5, 1].max() - points[:5, 1].min() == pytest.approx(20 * side, rel=1e-3)
    assert points[5:, 0].min() - points[:5, 0].min() == pytest.approx(2 * side, rel=1e-3)


@pytest.mark.parametrize("pixels", [48, 24])
def test_a_picture_fills_the_pixels_of_the_boxes(pixels):
    bright = np.zeros((pixels, pixels, 1), np.uint8)
    bright[:, pixels // 2 :] = 200
    one = case(size=(48, 48), truth=None)._replace(picture=bright)
    svg = predictions(one, score=1.0).light
    [width] = re.findall(r'<image [^>]*width="([\d.]+)"', svg)
    assert float(width) == pytest.approx(72 * 2.9, abs=1)
    [raster] = rasters(svg)
    half = raster.shape[1] // 2
    assert raster[:, half + 2 :, 0].min() == 200
    assert raster[:, : half - 2, 0].max() == 0


def test_a_part_of_an_image_is_shown_enlarged():
    [truth, found] = sorted(
        frames(predictions(case(view=(0.0, 0.0, 24.0, 24.0))).light, 0), key=lambda p: p[:, 0].min()
    )
    side = 72 * 2.9 / 24
    assert np.ptp(truth[:, 0]) == pytest.approx(16 * side, rel=1e-3)
    assert found[:, 0].min() - truth[:, 0].min() == pytest.approx(2 * side, rel=1e-3)
    beside = texts(predictions(case(view=(25.0, 0.0, 48.0, 48.0)), score=0.0).light)
    assert "1  0.83" not in beside  # of a box outside of what is shown
    assert "2  0.04" in beside
    with pytest.raises(ValueError, match=r"'case_7': view \(5.0, 0.0, 5.0, 9.0\) shows nothing"):
        predictions(case(view=(5.0, 0.0, 5.0, 9.0)))


def test_the_truth_of_an_only_class_has_a_colour_of_its_own():
    one = Marks(BOXES[:1], np.array([0]))
    found = Marks(BOXES[:1] + 1, np.array([0]), np.array([0.9]))
    only = prediction_figure([case(truth=one, found={"MDF-Net": found})], classes=["nodule"], caption="")
    assert [len(frames(only.light, k)) for k in (0, 4)] == [1, 1]
    assert {"nodule, there", "0.90"} <= set(texts(only.light))


def test_the_truth_is_dashed_and_detections_are_whole():
    style = re.findall(rf'style="(fill: none; [^"]*stroke: {class_colour(0)}[^"]*)"', predictions().light)
    assert len(style) == 2
    assert ["stroke-dasharray" in one for one in style] == [True, False]
    assert "stroke-dasharray" not in " ".join(
        re.findall(rf'style="(fill: none; [^"]*stroke: {class_colour(0)}[^"]*)"', predictions(case(truth=None)).light)
    )


def test_detections_below_the_score_are_left_out_and_only_the_best_are_drawn():
    assert len(frames(predictions().light, 1)) == 1  # of the truth
    assert len(frames(predictions(score=0.0).light, 1)) == 2
    assert len(frames(predictions(score=0.0, most=1).light, 1)) == 1
    assert "costs" not in predictions(case(truth=None)).alt


def test_masks_are_translucent_where_they_are_probable():
    found = {"MDF-Net": FOUND._replace(masks=MASKS)}
    [[plain], [masked]] = (rasters(predictions(case(found=one)).light) for one in ({"MDF-Net": FOUND}, found))
    over = masked[..., :3].astype(int)
    coloured = np.ptp(over, axis=-1) > 20
    # 0.9 is drawn, 0.4 is not.
    assert np.mean(coloured) == pytest.approx(14 * 14 / 48**2, rel=0.15)
    assert np.unique(plain[..., :3]).tolist() == [90]
    tint = np.array([int(class_colour(0)[k : k + 2], 16) for k in (1, 3, 5)])
    np.testing.assert_allclose(np.median(over[coloured], axis=0), 90 + 0.38 * (tint - 90), atol=3)


def test_models_stand_beside_each_other_over_the_same_truth():
    figure = predictions(case(found={"baseline": FOUND, "MDF-Net": FOUND}))
    assert {"baseline", "MDF-Net"} <= set(texts(figure.light))
    assert len(rasters(figure.light)) == 2
    assert len(frames(figure.light, 0)) == 4
    many = case(found={"a very long name of a model " * 3: FOUND, "b": FOUND, "c": FOUND})
    assert any(line.endswith("…") for line in texts(predictions(many).light))


def test_a_case_with_nothing_found_and_nothing_there_is_drawn():
    nothing = Marks(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    figure = predictions(case(found={"MDF-Net": nothing}, truth=nothing._replace(score=None), clinical=()))
    assert "there: nothing; MDF-Net found nothing" in figure.alt


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((), "no cases"),
        ((case(found={}),), "0 models; expected 1 to 4"),
        ((case(), case("other", found={"baseline": FOUND})), "'other': models baseline; expected those of 'case_7'"),
        ((case(found={"MDF-Net": FOUND._replace(label=np.array([0, 2]))}),), "0 to 2 and 2 classes.*without the backg"),
        ((case(found={"MDF-Net": FOUND._replace(score=np.ones(3))}),), "'score': 3.*one length"),
        ((case(truth=TRUTH._replace(label=np.array([0]))),), "truth: .*one length"),
    ],
)
def test_what_cannot_be_drawn_is_named(cases, message):
    with pytest.raises(ValueError, match=message):
        prediction_figure(cases, classes=CLASSES, caption="")


def test_marks_are_kept_in_falling_order_and_without_nan():
    marks = Marks(np.arange(16.0).reshape(4, 4), np.arange(4), np.array([0.2, np.nan, 0.9, 0.4]), np.zeros((4, 2, 2)))
    kept = kept_marks(marks, score=0.3)
    assert kept.label.tolist() == [2, 3]
    assert kept.boxes[0].tolist() == marks.boxes[2].tolist()
    assert len(kept.masks) == 2
    assert kept_marks(TRUTH, score=0.5) is TRUTH


def test_clinical_values_have_units_and_say_what_is_missing():
    row = {"age_years": 71, "temperature_f": 98.64, "pain": 3.0, "gender": "", "note": None, "case": 7.0}
    values = clinical_values(
        row,
        ["age_years", "temperature_f", "pain", "gender", "note"],
        units={"age_years": "years", "temperature_f": "degF", "pain": "0-10"},
        filled={"gender": "F"},
    )
    assert [f"{one.name}: {one.text()}" for one in values] == [
        "age: 71 years",
        "temperature: 98.6 °F",
        "pain: 3 (0-10)",
        "gender: missing (F used)",
        "note: missing",
    ]
    with pytest.raises(ValueError, match="no column 'weight' in the row; it has age_years"):
        clinical_values(row, ["weight"])


# Stages.


def stages(**changes):
    draw = np.random.default_rng(0)
    given = {
        "truth": TRUTH,
        "anchors": Marks(BOXES + 3, np.array([0, 1]), np.array([0.4, 0.61])),
        "proposals": np.concatenate([low := draw.uniform(0, 30, (200, 2)), low + 10], axis=1),
        "detections": FOUND._replace(masks=MASKS),
        "maps": {"Image features": draw.normal(size=(4, 4, 8)), "Fused features": draw.normal(size=(4, 4, 8))},
        "spatialised": draw.normal(size=(16, 16, 3)),
    }
    return stage_figure(picture(), classes=CLASSES, caption="Case 7.", **(given | changes))


def test_every_stage_has_a_panel():
    figure = stages()
    titles = ["Truth", "Best anchor of each box", "Proposals", "Detections", "Masks", "Image features"]
    assert [*titles, "Fused features", "Clinical values, spatialised"] == [
        line for line in texts(figure.light) if line in {*titles, "Fused features", "Clinical values, spatialised"}
    ]
    assert {"overlap 0.400 to 0.610", "the first 60 of 200, by objectness", "2 boxes"} <= set(texts(figure.light))
    assert "best anchors (overlap 0.400 to 0.610); 200 proposals" in figure.alt


def test_the_best_anchor_of_a_box_is_the_one_that_overlaps_it_most():
    anchors = np.concatenate([BOXES + 6, BOXES[::-1] + 1, BOXES + 3])
    found = best_anchors(anchors, TRUTH)
    np.testing.assert_array_equal(found.boxes, BOXES + 1)
    assert found.label.tolist() == [0, 1]
    assert found.score is not None
    assert found.score[0] == pytest.approx(15 * 19 / (2 * 16 * 20 - 15 * 19), rel=1e-5)
    nothing = best_anchors(anchors, TRUTH._replace(boxes=np.zeros((0, 4)), label=np.zeros(0, int)))
    few = {"proposals": None, "detections": None, "maps": None, "spatialised": None}
    assert "no box" in texts(stages(truth=None, anchors=nothing, **few).light)
    with pytest.raises(ValueError, match="no anchors"):
        best_anchors(anchors[:0], TRUTH)


def test_stages_that_are_not_given_are_left_out():
    figure = stages(anchors=None, proposals=None, maps=None, spatialised=None)
    assert not {"Proposals", "Image features", "Clinical values, spatialised"} & set(texts(figure.light))
    with pytest.raises(ValueError, match="no stage"):
        stage_figure(picture(), classes=CLASSES, caption="")


def test_the_most_promising_proposals_are_drawn():
    boxes = np.tile([[1.0, 1.0, 3.0, 3.0]], (100, 1))
    boxes[99] = [20.0, 20.0, 40.0, 40.0]

    def widest(**more):
        few = {"truth": None, "anchors": None, "detections": None, "maps": None, "spatialised": None}
        found = frames(stages(proposals=boxes, **few, **more).light, 5)
        assert len(found) == 60
        return max(np.ptp(points[:, 0]) for points in found)

    assert widest(objectness=np.arange(100.0)) == pytest.approx(10 * widest(), rel=1e-3)


def test_a_map_is_shown_by_its_strength_and_a_constant_one_is_no_error():
    values = np.zeros((4, 4, 8))
    values[1, 2] = 3.0
    few = {"truth": None, "anchors": None, "proposals": None, "detections": None}
    figure = stages(maps={"Image features": values}, spatialised=None, **few)
    assert "4 × 4 × 8, 0 to 3.00" in texts(figure.light)
    shown = rasters(figure.light)[-1][..., :3].astype(int).sum(axis=-1)
    row, column = np.argwhere(shown == shown.max()).mean(axis=0) / shown.shape
    assert 0.25 < row < 0.5 or 0.5 < row < 0.75  # the second of four, as drawn or turned over by the frame
    assert 0.5 < column < 0.75
    stages(maps={"Image features": np.ones((4, 4, 2))}, spatialised=np.zeros((4, 4, 5)), **few)


# Numbers.


def test_average_precision_is_read_at_the_overlap():
    x = np.linspace(0, 1, 21)
    curves = {
        "MDF-Net": Curve(x, 0.4 * (1 - x), note="AP 0.2"),
        "baseline": Curve(x, 0.2 * (1 - x), 0 * x, 0.5 - 0 * x),
    }
    figure = overlap_figure(curves, measure="IoBB", caption="n = 101.")
    assert "MDF-Net has 0.200 at 0.500; baseline has 0.100 at 0.500" in figure.alt
    assert {"smallest IoBB of a hit", "MDF-Net   AP 0.2", "0.5"} <= set(texts(figure.light))
    with pytest.raises(ValueError, match="no models"):
        overlap_figure({}, measure="IoU", caption="")


def test_the_ceiling_of_anchors_is_the_share_of_boxes_that_they_reach():
    figure = anchor_figure({"published": np.array([0.1, 0.5, 0.49, 0.9])}, caption="")
    assert "published 50 % at 0.5" in figure.alt
    assert "published   50 % at 0.5" in texts(figure.light)
    with pytest.raises(ValueError, match="for no box"):
        anchor_figure({"published": np.zeros(0)}, caption="")


def test_generalisation_is_the_mean_over_the_trainings_that_have_a_value():
    epochs = np.array([1, 5, 10])
    train = np.array([[0.1, 0.5, 0.9], [0.1, 0.5, 0.7]])
    held = np.array([[0.1, 0.2, 0.1], [0.1, 0.4, np.nan]])
    figure = generalisation_figure(
        {name: Generalisation(epochs, train, held, [5, 5]) for name in ("MDF-Net", "baseline", "1D")},
        metric="AP at IoBB 0.5",
        held_out="test",
        caption="",
    )
    assert "MDF-Net, 2 trainings, after 10 epochs 0.800 on training and 0.100 on test images" in figure.alt
    assert {"training images", "test images", "baseline", "AP at IoBB 0.5"} <= set(texts(figure.light))
    # Losses above 1 are not cut off: the axis has ticks beyond it.
    losses = {"MDF-Net": Generalisation(epochs, 60 * train, 60 * held, [5, 5])}
    higher = generalisation_figure(losses, metric="sum of the losses", caption="")
    assert "40" in texts(higher.light)
    with pytest.raises(ValueError, match=r"MDF-Net: train \(2, 3\), held_out \(2, 2\)"):
        generalisation_figure({"MDF-Net": Generalisation(epochs, train, held[:, :2])}, metric="AP", caption="")


def test_counts_add_up_to_the_boxes_and_shares_of_nothing_are_blank():
    counts = BoxCounts(np.array([3, 0, 3]), np.array([1, 0, 1]), np.array([2, 0, 2]))
    table = count_table(
        {"MDF-Net": counts}, classes=CLASSES, score=0.1, overlap="IoBB 0.5", caption="101 images, 60 patients."
    )
    assert table.rows[0] == ["MDF-Net", "nodule", 5, 3, 1, 2, "0.750", "0.600"]
    assert table.rows[1][-2:] == ["–", "–"]
    assert table.caption.startswith("101 images, 60 patients. Detections of score 0.1 and above; found: IoBB 0.5")
    assert len(count_table({"a": counts}, classes=CLASSES, score=0.1, overlap="IoU 0.5").rows) == 3
    with pytest.raises(ValueError, match="a: counts of 2 classes, and 1 names"):
        count_table({"a": counts}, classes=["nodule"], score=0.1, overlap="IoU 0.5")


def test_correlations_have_their_sign_and_none_is_beyond_one():
    figure = correlation_figure(np.array([[0.214, -0.119], [np.nan, -0.001]]), ["age", "pain"], CLASSES, caption="")
    assert {"+0.21", "−0.12", "–", "0.00"} <= set(texts(figure.light))
    with pytest.raises(ValueError, match="a correlation of 21"):
        correlation_figure(np.array([[21.0]]), ["age"], ["edema"], caption="")


def test_relevance_stands_beside_what_was_measured():
    relevance, gain = np.array([[0.9, 0.1], [0.5, 0.1]]), np.array([[12.04, -3.0], [np.nan, 0.0]])
    figure = relevance_figure(relevance, gain, ["temperature", "pain"], CLASSES, caption="")
    assert "temperature, nodule 0.9 and +12.0, costs $5 & <7> 0.1 and −3.0; pain, nodule 0.5 and –" in figure.alt
    assert {"+12.0", "−3.0", "0.9", "temperature", "relevance, radiologists"} <= set(texts(figure.light))
    own = relevance_figure(relevance, gain, ["a", "b"], CLASSES, texts=[["x", "y"], ["", "z"]], caption="")
    assert {"x", "y", "z"} <= set(texts(own.light))
    with pytest.raises(ValueError, match="with 1 rows and 2 columns"):
        relevance_figure(relevance, gain, ["temperature"], CLASSES, caption="")


def test_real_nodules_are_drawn_where_their_square_is():
    folder = real_data("jsrt")
    import pandas as pd

    table = pd.read_csv(folder / "clinical.csv")
    with np.load(folder / "images.npz") as stored:
        images = stored["images"]
    row = int(np.flatnonzero(table["box_x_min"].notna())[0])
    box = table.loc[row, ["box_x_min", "box_y_min", "box_x_max", "box_y_max"]].to_numpy(float)
    values = clinical_values(table.loc[row].to_dict(), ["age_years", "sex"], units={"age_years": "years"})
    shown = ShownCase(
        "a film",
        images[row][..., None],
        {"none": Marks(np.zeros((1, 4)), np.array([0]), np.array([0.5]))},
        Marks(box[None], np.array([0])),
        values,
    )
    svg = prediction_figure([shown], classes=["nodule"], score=1.0, caption="").light
    [frame] = frames(svg, 4)
    width = 72 * 2.9 / 224
    assert np.ptp(frame[:, 0]) == pytest.approx((box[2] - box[0]) * width, rel=1e-2)
    assert frame[:, 0].min() == pytest.approx(box[0] * width, abs=0.5)
