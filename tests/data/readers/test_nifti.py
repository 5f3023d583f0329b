import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image
from tests.helpers import ROOT

AFFINE = np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 4, 11], [0, 0, 0, 1]])
VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def save(path, values=VALUES, affine=AFFINE, kind=nibabel.Nifti1Image, name="a.nii.gz", edit=lambda header: None):
    image = kind(values, affine)
    edit(image.header)
    image.to_filename(path / name)
    return path / name


def patched(path, offset, content):
    """The file with some bytes of its header replaced, uncompressed."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(content)] = content
    path.with_suffix("").write_bytes(bytes(data))
    return path.with_suffix("")


@pytest.fixture
def real():
    folder = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set FUSION_JAX_DATA to read real files")
    return folder


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_values_keep_their_type_and_come_in_canonical_order(tmp_path, kind, name, dtype):
    image = read_image(save(tmp_path, VALUES.astype(dtype), kind=kind, name=name), unit="HU")
    assert image.values.dtype == dtype
    # From RAS: to the head stays, front to back and right to left are turned round.
    np.testing.assert_array_equal(image.values[..., 0], VALUES.T[:, ::-1, ::-1])
    assert image.spacing == (4.0, 3.0, 2.0)
    assert image.affine is not None
    np.testing.assert_allclose(image.affine @ [0, 3, 2, 1], [-5, 7, 11, 1])
    assert image.unit == "HU"


def test_scaled_values_are_what_nibabel_gives(tmp_path):
    stored = save(tmp_path, VALUES, edit=lambda header: header.set_slope_inter(0.5, -1024))
    image = nibabel.load(stored)
    wanted = np.asarray(image.dataobj)
    values = read_image(stored).values
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[..., 0], wanted.astype(np.float32).T[:, ::-1, ::-1])
    assert peek_image(stored).dtype == np.float32


def test_wide_integers_are_scaled_in_float64(tmp_path):
    values = np.full((2, 2, 2), 2**24 + 1, np.int32)
    path = save(tmp_path, values)
    path = patched(path, 112, np.array([1.0, -(2.0**24)], "<f4").tobytes())
    assert (read_image(path).values == 1).all()


def test_sform_goes_before_qform_before_spacing(tmp_path):
    def forms(sform_code, qform_code):
        def edit(header):
            header.set_sform(np.diag([1.0, 1, 1, 1]), code=sform_code)
            header.set_qform(np.diag([2.0, 2, 2, 1]), code=qform_code)
            header["pixdim"][1:4] = 2

        return read_image(save(tmp_path, edit=edit, affine=None)).spacing

    assert forms(1, 1) == (1.0, 1.0, 1.0)
    assert forms(0, 1) == (2.0, 2.0, 2.0)
    assert forms(0, 0) == (2.0, 2.0, 2.0)


def test_lengths_in_metres_and_micrometres_become_millimetres(tmp_path):
    for unit, factor in (("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)):
        image = read_image(save(tmp_path, edit=lambda header, unit=unit: header.set_xyzt_units(unit)))
        np.testing.assert_allclose(image.spacing, np.array([4, 3, 2]) * factor)


def test_an_oblique_volume_keeps_its_directions(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    image = read_image(save(tmp_path, affine=turn @ AFFINE))
    assert image.affine is not None
    np.testing.assert_allclose(image.affine @ [0, 3, 2, 1], turn @ AFFINE @ [0, 0, 0, 1], atol=1e-5)
    np.testing.assert_array_equal(image.values[..., 0], VALUES.T[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.array([0.0], "<f4"), "gives the spacing 0, 3, 4"),
        (np.array([np.nan], "<f4"), "gives the spacing nan, 3, 4"),
        (np.array([-2.0], "<f4"), "gives the spacing -2, 3, 4"),
    ],
)
def test_a_spacing_that_is_no_length_is_refused_not_mended(tmp_path, content, words):
    with pytest.raises(UnreadableFile, match=words):
        read_image(patched(save(tmp_path), 80, content.tobytes()))


def test_a_fourth_axis_is_channels_only_when_asked_for(tmp_path):
    values = np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2)
    path = save(tmp_path, values)
    with pytest.raises(
        UnreadableFile, match=r"has the shape \(3, 4, 5, 2\): more than a volume.*fourth_axis='channels'"
    ):
        read_image(path)
    image = read_image(path, fourth_axis="channels")
    np.testing.assert_array_equal(image.values[..., 1], values[..., 1].T[:, ::-1, ::-1])
    single = save(tmp_path, values[..., :1], name="b.nii.gz")
    assert read_image(single).values.shape == (5, 4, 3, 1)


def test_a_plane_is_a_volume_of_one_slice(tmp_path):
    image = read_image(save(tmp_path, VALUES[..., 0]))
    assert image.values.shape == (1, 4, 3, 1)
    assert image.spacing == (4.0, 3.0, 2.0)


def test_colours_are_channels(tmp_path):
    rgb = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["G"], rgb["B"] = VALUES, VALUES + 100, VALUES + 150
    image = read_image(save(tmp_path, rgb))
    wanted = np.stack([VALUES, VALUES + 100, VALUES + 150], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(image.values, np.swapaxes(wanted, 0, 2)[:, ::-1, ::-1])


def test_complex_values_are_refused(tmp_path):
    with pytest.raises(UnreadableFile, match="holds values of type complex64"):
        read_image(save(tmp_path, VALUES.astype(np.complex64)))


def test_a_header_beyond_the_file_is_refused_before_memory_is_taken(tmp_path):
    path = patched(save(tmp_path), 42, np.array([500, 500, 500], "<i2").tobytes())
    with pytest.raises(UnreadableFile, match=r"has 472 bytes, its header promises 250,000,352"):
        read_image(path)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UnreadableFile, match=r"promises 250,000,000 bytes of values, which \d+ bytes cannot hold"):
        read_image(packed)


def test_a_flipped_bit_in_a_compressed_volume_is_found_by_its_checksum(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**15, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path, values)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableFile, match=r"CRC|decompressing|Error -3"):
        read_image(path)


def test_pairs_of_header_and_image_are_refused_with_the_way_out(tmp_path):
    nibabel.Nifti1Pair(VALUES, AFFINE).to_filename(tmp_path / "a.hdr")
    with pytest.raises(
        UnreadableFile, match=r"no NIfTI header of one file.*Join header and image into one `.nii` file"
    ):
        read_image(tmp_path / "a.hdr", reader="nifti")


def test_quirks_that_nibabel_logs_do_not_reach_the_screen(tmp_path, capfd):
    path = patched(save(tmp_path), 76, np.array([5.0], "<f4").tobytes())
    read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("patient", ["STS_008", "STS_018"])
@pytest.mark.parametrize(("name", "array"), [("CT_image", "ct"), ("CT_mask", "ct_mask"), ("PET_image", "pet")])
def test_real_volumes_hold_the_arrays_that_were_cut_from_them(real, patient, name, array):
    whole = read_image(real / "sts_petct" / "nifti_sample" / patient / f"{name}.nii.gz")
    affine = array.split("_")[0] + "_affine"
    part = read_image(real / "sts_petct" / "volumes" / f"{patient}.npz", array=array, axes="xyz", affine=affine)
    start = (np.linalg.inv(whole.affine) @ part.affine)[:3, 3]
    np.testing.assert_allclose(start, np.rint(start), atol=1e-6)
    d, h, w = np.rint(start).astype(int)
    depth, height, width, _ = part.values.shape
    cut = whole.values[d : d + depth, h : h + height, w : w + width]
    np.testing.assert_array_equal(cut.astype(part.values.dtype), part.values)
    assert whole.spacing == pytest.approx(part.spacing)


def test_the_real_liver_lies_on_the_right_of_the_patient(real):
    """The liver at small w (the patient's right), the spleen at large w and further back."""
    labels = read_image(real / "liver_ct_totalseg" / "labels.nii.gz", unit="label").values[..., 0]
    liver, spleen = (np.argwhere(labels == number).mean(axis=0) for number in (5, 1))
    assert liver[2] < labels.shape[2] / 2 < spleen[2]
    assert spleen[1] > liver[1]
    ct = read_image(real / "liver_ct_totalseg" / "ct.nii.gz", unit="HU")
    assert ct.values.shape == (*labels.shape, 1)
    assert 30 < ct.values[..., 0][labels == 5].mean() < 60  # not enhanced
