"""RT structure sets and DICOM segmentations."""

import numpy as np
import pytest

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers import peek_image, read_image, region_names, segment_names

SHAPE = (5, 40, 50)
SPACING = (3.0, 0.8, 0.5)
ORIGIN = (-12.0, -20.0, 30.0)


@pytest.fixture
def ct(dicom, tmp_path):
    return dicom.write_slices(
        tmp_path / "ct", np.zeros(SHAPE, np.int16), origin=ORIGIN, spacing=SPACING[1:], step=SPACING[0]
    )


def contour(row, column, slot, kind="CLOSED_PLANAR"):
    """A contour through points given in voxels, in the coordinates of DICOM."""
    x = ORIGIN[0] + np.asarray(column) * SPACING[2]
    y = ORIGIN[1] + np.asarray(row) * SPACING[1]
    points = np.stack([x, y, np.full(len(x), ORIGIN[2] + slot * SPACING[0])], axis=1)
    return {"ContourGeometricType": kind, "NumberOfContourPoints": len(x), "ContourData": points.ravel().tolist()}


def square(low, high, slot, **options):
    return contour([low, low, high, high], [low, high, high, low], slot, **options)


@pytest.fixture
def structures(dicom, tmp_path):
    """Writes a structure set of regions, name to contours."""

    def write(frame=None, **regions):
        names = list(regions)
        uid = dicom.uid + "3" if frame is None else frame
        found = dicom.dataset(
            "RTSTRUCT",
            StructureSetROISequence=dicom.items(
                *(
                    {"ROINumber": 7 + i, "ROIName": name, "ReferencedFrameOfReferenceUID": uid}
                    for i, name in enumerate(names)
                )
            ),
            ROIContourSequence=dicom.items(
                *(
                    {"ReferencedROINumber": 7 + i, "ContourSequence": dicom.items(*regions[name])}
                    for i, name in reversed(list(enumerate(names)))
                )
            ),
        )
        return dicom.save(tmp_path / "rs.dcm", found)

    return write


def test_voxels_whose_centre_lies_inside_belong_to_the_region(ct, structures):
    image = read_image(structures(GTV=[square(9.5, 19.5, 2)]), region="GTV", image="ct")
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[2, 10:20, 10:20] = 1
    np.testing.assert_array_equal(image.values[..., 0], wanted)
    series = read_image(ct)
    np.testing.assert_array_equal(image.affine, series.affine)
    assert (image.spacing, image.unit, image.values.dtype) == (series.spacing, "label", np.uint8)


def test_area_of_a_circle_and_of_any_polygon(structures, ct):
    """Counted voxels approach the exact area of the polygon (shoelace) and of the circle."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    row, column = 20.3 + 12 * np.sin(angle), 25.1 + 12 * np.cos(angle)
    rng = np.random.default_rng(1)
    radius = rng.uniform(6, 17, 400)
    wild_row, wild_column = 20 + radius * np.sin(angle), 25 + radius * np.cos(angle)
    path = structures(circle=[contour(row, column, 1)], wild=[contour(wild_row, wild_column, 3)])
    disc = read_image(path, region="circle", image="ct").values.sum()
    assert disc == pytest.approx(np.pi * 12**2, rel=0.01)
    shoelace = abs(np.sum(wild_row * np.roll(wild_column, -1) - np.roll(wild_row, -1) * wild_column)) / 2
    found = read_image(path, region="wild", image="ct").values[3, ..., 0]
    assert found.sum() == pytest.approx(shoelace, rel=0.05)
    from matplotlib.path import Path

    centres = np.stack(np.meshgrid(np.arange(50), np.arange(40)), axis=-1).reshape(-1, 2)
    inside = Path(np.stack([wild_column, wild_row], axis=1)).contains_points(centres).reshape(40, 50)
    np.testing.assert_array_equal(found, inside)


def test_inner_contours_and_keyholes_are_holes(structures, ct):
    inner = read_image(structures(a=[square(5.5, 30.5, 1), square(10.5, 20.5, 1)]), region="a", image="ct").values
    assert inner.sum() == 25**2 - 10**2
    row = [5.5, 5.5, 30.5, 30.5, 10.5, 10.5, 20.5, 20.5, 10.5, 30.5]
    column = [5.5, 30.5, 30.5, 5.5, 10.5, 20.5, 20.5, 10.5, 10.5, 5.5]
    keyhole = read_image(structures(a=[contour(row, column, 1)]), region="a", image="ct").values
    assert keyhole.sum() == 25**2 - 10**2


def test_regions_that_share_an_edge_share_no_voxel_and_leave_none(structures, ct):
    """Edges through voxel centres: every centre belongs to exactly one of two neighbours."""
    path = structures(
        left=[contour([5, 5, 30, 30], [5, 20, 20, 5], 1)], right=[contour([5, 5, 30, 30], [20, 40, 40, 20], 1)]
    )
    left, right = (read_image(path, region=name, image="ct").values for name in ("left", "right"))
    assert (left + right).max() == 1
    assert left.sum() + right.sum() == 25 * 35


def test_contours_on_sagittal_slices(dicom, structures, tmp_path):
    """The grid is canonical, so that the contours of a sagittal series stand across w."""
    folder = dicom.write_slices(
        tmp_path / "mr",
        np.zeros((6, 20, 30), np.int16),
        origin=(0, 0, 50),
        orientation=(0, 1, 0, 0, 0, -1),
        spacing=(1, 1),
        step=2,
    )
    x = -4.0  # the normal runs to -x, the third slice
    points = [[x, 4.5, 45.5], [x, 14.5, 45.5], [x, 14.5, 40.5], [x, 4.5, 40.5]]
    found = {"ContourGeometricType": "CLOSED_PLANAR", "ContourData": np.ravel(points).tolist()}
    mask = read_image(structures(a=[found]), region="a", image=folder).values
    series = read_image(folder)
    assert mask.shape == series.values.shape == (20, 30, 6, 1)
    assert series.affine is not None
    inside = np.argwhere(mask[..., 0]) @ series.affine[:3, :3].T + series.affine[:3, 3]
    assert len(inside) == 50
    assert (inside[:, 0] == 4).all()  # RAS
    assert (inside.min(axis=0)[1:] == [-14, 41]).all()
    assert (inside.max(axis=0)[1:] == [-5, 45]).all()


def test_the_image_may_be_an_image_a_header_or_its_path(structures, ct):
    path = structures(GTV=[square(9.5, 19.5, 2)])
    series = read_image(ct)
    masks = [read_image(path, region="GTV", image=image).values for image in ("ct", ct, series, peek_image(ct))]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    with pytest.raises(ValueError, match=r"expected a volume \(d, h, w, c\) with an affine"):
        read_image(path, region="GTV", image=Image(np.zeros((4, 4, 1))))
    with pytest.raises(TypeError, match="reader 'rtstruct' needs `image`"):
        read_image(path, region="GTV")


def test_no_region_lists_the_names_and_several_are_an_error(structures, ct):
    path = structures(GTV_Mass=[square(9.5, 19.5, 2)], GTV_Edema=[square(5.5, 25.5, 2)])
    assert region_names(path) == ("GTV_Mass", "GTV_Edema")
    with pytest.raises(UnreadableFile, match="has 0 regions named 'gtv'; it holds 'GTV_Mass', 'GTV_Edema'"):
        read_image(path, region="gtv", image="ct")
    with pytest.raises(UnreadableFile, match=r"has 2 regions that match '\^gtv' \('GTV_Mass', 'GTV_Edema'\)"):
        read_image(path, pattern="^gtv", image="ct")
    assert read_image(path, pattern="mass$", image="ct").values.sum() == 100
    for options in ({}, {"region": "a", "pattern": "b"}):
        with pytest.raises(ValueError, match="expected one of them to choose a region"):
            read_image(path, image="ct", **options)
    with pytest.raises(ValueError, match="is no regular expression"):
        read_image(path, pattern="(", image="ct")


@pytest.mark.parametrize(
    ("contours", "words"),
    [
        ([], "holds no contours"),
        ([square(5.5, 9.5, 1, kind="OPEN_PLANAR")], "holds a contour of type OPEN_PLANAR"),
        ([contour([1, 2], [1, 2], 1)], "a contour of 6 coordinates"),
        ([square(5.5, 9.5, 1.4)], "at slice 1.40 of the image, between two slices"),
        ([square(5.5, 9.5, 5)], "at slice 5 of an image with slices 0 to 4"),
        ([square(60.5, 70.5, 1)], "holds no voxel centre of the image"),
        ([square(5.6, 5.9, 1)], "holds no voxel centre of the image"),
        ([{**square(5.5, 9.5, 1), "ContourData": [0, -15, 30, 1, -8, 33, 4, -10, 39]}], "contours that cross"),
    ],
)
def test_contours_that_do_not_fit_are_refused(structures, ct, contours, words):
    with pytest.raises(UnreadableFile, match=f"region 'a' .*{words}"):
        read_image(structures(a=contours), region="a", image="ct")


def test_a_region_of_other_coordinates_is_refused(structures, ct):
    with pytest.raises(UnreadableFile, match=r"was drawn in the coordinates 1.2.3 \(FrameOfReferenceUID\)"):
        read_image(structures(frame="1.2.3", a=[square(5.5, 9.5, 1)]), region="a", image="ct")


# Segmentations


FRAMES = np.random.default_rng(0).random((4, 5, 7)) < 0.4
PLACES = [(1, (0.0, 0.0, 4.0)), (2, (0.0, 0.0, 2.0)), (1, (0.0, 0.0, 0.0)), (1, (0.0, 0.0, 10.0))]


@pytest.fixture
def save_seg(dicom, make_seg, tmp_path):
    return lambda *args, **options: dicom.save(tmp_path / "seg.dcm", make_seg(*args, **options))


def test_frames_of_a_segment_lie_at_their_positions_and_left_out_slices_are_empty(save_seg):
    """35 bits a frame: frames do not begin at whole bytes."""
    image = read_image(save_seg(FRAMES, PLACES), segment=1)
    wanted = np.zeros((6, 5, 7), np.uint8)
    wanted[2], wanted[0], wanted[5] = FRAMES[0], FRAMES[2], FRAMES[3]
    np.testing.assert_array_equal(image.values[..., 0], wanted)
    assert (image.spacing, image.unit, image.values.dtype) == ((2.0, 1.0, 1.0), "label", np.uint8)
    single = read_image(save_seg(FRAMES, PLACES), segment="region 2")
    np.testing.assert_array_equal(single.values[0, ..., 0], FRAMES[1])


def test_a_segmentation_on_the_grid_of_its_image(save_seg, dicom, tmp_path):
    dicom.write_slices(tmp_path / "ct", np.zeros((8, 6, 9), np.int16), origin=(-1, -1, -2), spacing=(1, 1), step=2)
    # SpacingBetweenSlices is left out: the image says how far its slices lie apart.
    path = save_seg(FRAMES, PLACES, measures={"SpacingBetweenSlices": None})
    image = read_image(path, segment=1, image="ct")
    wanted = np.zeros((8, 6, 9), np.uint8)
    for frame, slot in ((0, 3), (2, 1), (3, 6)):
        wanted[slot, 1:6, 1:8] = FRAMES[frame]
    np.testing.assert_array_equal(image.values[..., 0], wanted)
    np.testing.assert_array_equal(image.affine, read_image(tmp_path / "ct").affine)
    assert peek_image(path, segment=1, image="ct").shape == (8, 6, 9, 1)


@pytest.mark.parametrize(
    ("origin", "words"), [((-1.4, -1, -2), "lies up to 0.40 mm beside the voxels"), ((1, -1, -2), "of an image of")]
)
def test_a_segmentation_beside_its_image_is_refused(save_seg, dicom, tmp_path, origin, words):
    dicom.write_slices(tmp_path / "ct", np.zeros((8, 6, 9), np.int16), origin=origin, spacing=(1, 1), step=2)
    with pytest.raises(UnreadableFile, match=words):
        read_image(save_seg(FRAMES, PLACES), segment=1, image="ct")


def test_fractions_reach_from_zero_to_one(save_seg):
    frames = np.arange(35, dtype=np.uint8).reshape(1, 5, 7) * 5
    image = read_image(save_seg(frames, PLACES[:1], kind="FRACTIONAL"))
    np.testing.assert_allclose(image.values[0, ..., 0], frames[0] / 200, rtol=1e-6)
    assert image.values.dtype == np.float32
    with pytest.raises(UnreadableFile, match="holds 204 where 200 is the most"):
        read_image(save_seg(frames.astype(int) * 6 // 5, PLACES[:1], kind="FRACTIONAL"))


def test_the_segment_must_be_named_where_there_are_several(save_seg):
    path = save_seg(FRAMES, PLACES)
    assert segment_names(path) == {1: "region 1", 2: "region 2"}
    with pytest.raises(UnreadableFile, match=r"holds 2 segments; it has 1 'region 1', 2 'region 2'. Name one"):
        read_image(path)
    for segment in (3, "liver"):
        with pytest.raises(UnreadableFile, match=f"holds 0 segments {segment!r}"):
            read_image(path, segment=segment)


def test_frames_at_distances_of_no_grid_are_refused(save_seg):
    places = [(1, (0.0, 0.0, z)) for z in (0.0, 2.0, 5.1, 8.0)]
    with pytest.raises(UnreadableFile, match=r"frame 2 and frame 3 are 3.100 mm apart"):
        read_image(save_seg(FRAMES, places))


def test_an_image_is_no_mask(dicom, tmp_path):
    path = dicom.save(tmp_path / "a.dcm", dicom.with_pixels(dicom.dataset("DX"), np.zeros((3, 3), np.uint8)))
    for function, words in ((region_names, "is DX, not a structure set"), (segment_names, "is DX, not a segmentation")):
        with pytest.raises(UnreadableFile, match=words):
            function(path)
