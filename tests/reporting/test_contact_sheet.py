"""Contact sheets and histograms: what they show, and that they show it truly."""

import base64
import io
import re
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image as Picture

from fusion_jax.data.cohort import Boxes
from fusion_jax.data.image import Image
from fusion_jax.reporting.column_figures import category_figure, number_figure
from fusion_jax.reporting.contact_sheet import Tile, contact_sheet, picture_of


def lines(svg):
    minidom.parseString(svg)  # noqa: S318 - written here
    return re.findall(r"<!-- (.*?) -->", svg)


def rasters(svg):
    """Pictures inside a figure."""
    found = re.findall(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", svg)
    return [np.array(Picture.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def volume(unit="HU"):
    values = np.zeros((6, 8, 10, 1), np.float32)
    values[4, 2, 3] = 9.0
    return Image(values, (3.0, 2.0, 1.0), np.eye(4), unit)


def mask_at(d):
    values = np.zeros((6, 8, 10, 1), np.uint8)
    values[d, 2:5, 3:5] = 1
    values[0, 0, 0] = 1
    return Image(values, (3.0, 2.0, 1.0), np.eye(4), "label")


def test_a_volume_is_cut_where_its_mask_is_largest():
    picture, labels, aspect = picture_of(volume(), mask_at(4))
    assert picture.shape == (8, 10, 1)
    assert int(labels.sum()) == 6
    assert aspect == 2.0
    assert np.argwhere(picture[..., 0] == picture.max()).tolist() == [[2, 3]]


def test_a_volume_without_a_mask_is_cut_in_the_middle():
    values = np.arange(6.0)[:, None, None, None] * 100 - 160 + np.zeros((6, 8, 10, 1))
    picture, labels, _ = picture_of(Image(values, None, None, "HU"))
    assert np.unique(picture).tolist() == [round(255 * 300 / 400)]
    assert not labels.any()


def test_pet_is_seen_from_the_front_with_the_head_up_and_uptake_dark():
    picture, labels, aspect = picture_of(volume("SUV"), mask_at(4))
    assert picture.shape == (6, 10, 1)
    assert np.argwhere(picture[..., 0] < 255).tolist() == [[1, 3]]  # d = 4 of 0 to 5, turned round
    assert int(picture[1, 3, 0]) == round(255 * 0.1)
    assert int(labels.sum()) == 3
    assert aspect == 3.0


def test_the_window_of_ct_is_fixed():
    values = np.array([-1000.0, -160.0, 40.0, 240.0, 3000.0]).reshape(1, 5, 1)
    assert picture_of(Image(values, None, None, "HU"))[0].ravel().tolist() == [0, 0, 128, 255, 255]


def test_colours_stay_as_they_are():
    values = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(picture_of(Image(values))[0], values)


def test_constant_and_unreadable_values_do_not_stop_a_sheet():
    assert np.unique(picture_of(Image(np.full((4, 4, 1), 7.0)))[0]).tolist() == [0]
    values = np.full((4, 4, 1), np.nan)
    assert np.unique(picture_of(Image(values))[0]).tolist() == [0]
    values[0, 0] = np.inf
    values[1, 1] = 3.0
    assert picture_of(Image(values))[0].shape == (4, 4, 1)


def test_large_images_are_thinned_together_with_their_mask():
    values = np.zeros((1000, 700, 1), np.uint8)
    values[400:600, 300:500] = 255
    picture, labels, _ = picture_of(Image(values), Image((values > 0).astype(np.uint8)))
    assert max(picture.shape) <= 256
    np.testing.assert_array_equal(labels > 0, picture[..., 0] > 0)


def test_a_tile_shows_its_picture_and_its_words():
    values = np.zeros((20, 20, 1), np.uint8)
    values[:, 10:] = 200
    figure = contact_sheet([Tile(values, "case_7", ["benign", "cost $5 & more_than_x"])], caption="One case, n = 1.")
    for svg in (figure.light, figure.dark):
        words = lines(svg)
        assert "case_7" in words
        assert any("cost $5" in word for word in words)
        [raster] = rasters(svg)
        # The frame may draw upside down, but never mirrored.
        assert raster[5, 2].tolist() == [0, 0, 0]
        assert raster[5, -3].tolist() == [200, 200, 200]
    assert figure.alt == "Pictures of 1 case: case_7 (benign, cost $5 & more_than_x)."


def test_masks_and_boxes_are_drawn_over_the_picture():
    values = np.zeros((20, 20, 1), np.uint8)
    labels = np.zeros((20, 20), np.int64)
    labels[0:6, 4:9] = 1
    labels[10:14, 10:14] = 3
    boxes = Boxes(np.array([[2.0, 3.0, 9.0, 12.0]]), np.zeros(1, np.int32))
    plain = contact_sheet([Tile(values, "a")], caption="")
    outlined = contact_sheet([Tile(values, "a", labels=labels)], caption="")
    boxed = contact_sheet([Tile(values, "a", boxes=boxes)], caption="")
    count = [one.light.count("<path") for one in (plain, outlined, boxed)]
    assert count[1] == count[0] + 2  # one outline a label, closed at the border
    assert count[2] == count[0] + 2  # the box and its white edge


def test_a_case_without_a_picture_has_its_place():
    figure = contact_sheet([Tile(np.zeros((0, 0, 1), np.uint8), "a", ["absent"])], caption="")
    assert {"not shown", "a", "absent"} <= set(lines(figure.light))


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected at least one"):
        contact_sheet([], caption="")


# Columns


def test_histograms_share_their_bins_and_say_n():
    rng = np.random.default_rng(0)
    values = {"no": rng.normal(0, 1, 60), "yes": np.r_[rng.normal(2, 1, 30), np.nan]}
    figure = number_figure(values, xlabel="marker (ng/ml)", caption="marker: n = 90 of 91.")
    words = lines(figure.light)
    assert {"no (n = 60)", "yes (n = 30)", "marker (ng/ml)", "share of the class"} <= set(words)
    assert "n = 30, median" in figure.alt


def test_skewed_values_get_a_logarithmic_axis():
    skewed = {"all": np.geomspace(1, 1e6, 50)}
    assert any(
        "10^" in word or "mathdefault" in word for word in lines(number_figure(skewed, xlabel="", caption="").light)
    )
    assert not any(
        "10^" in word for word in lines(number_figure({"all": np.linspace(1, 9, 50)}, xlabel="", caption="").light)
    )


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0], [0.0, 1.0, 1.0, 4.0], [-1e9, 1e9]])
def test_odd_values_can_be_drawn(values):
    figure = number_figure({"all": np.array(values)}, xlabel="x", caption="")
    minidom.parseString(figure.dark)  # noqa: S318 - written here


def test_a_column_without_values_is_refused():
    with pytest.raises(ValueError, match="no value is finite"):
        number_figure({"all": np.array([np.nan])}, xlabel="x", caption="")


def test_a_long_name_of_a_category_is_written_whole():
    name = "hepatitis_c_virus_antibody"
    figure = category_figure({"no": [3, 1]}, ["0", "1"], label=name, caption="")
    assert f"{name}: share of cases" in lines(figure.light)


def test_bars_are_shares_of_their_class_and_rare_levels_are_joined():
    levels = [f"site {k}" for k in range(15)]
    counts = {"no": [*range(15)], "yes": [15] * 15}
    figure = category_figure(counts, levels, label="site", caption="")
    words = lines(figure.light)
    assert "4 others" in words
    assert "site 14" in words
    assert f"no (n = {sum(range(15))})" in words
    assert "site 14 13 %" in figure.alt  # 14 of 105
