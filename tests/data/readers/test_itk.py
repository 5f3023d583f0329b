import nibabel
import numpy as np
import pytest
import SimpleITK

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image

VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def itk_image(values=VALUES, vector=False):
    image = SimpleITK.GetImageFromArray(values, isVector=vector)
    image.SetSpacing((2.0, 3.0, 4.0)[: image.GetDimension()] + (1.0,) * (image.GetDimension() - 3))
    image.SetOrigin((-10.0, 20.0, 30.0)[: image.GetDimension()] + (0.0,) * (image.GetDimension() - 3))
    return image


def save(path, image=None, *, compress=False):
    SimpleITK.WriteImage(itk_image() if image is None else image, str(path), compress)
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_volumes_of_itk_are_canonical_already_where_axes_are_aligned(tmp_path, name, compress, dtype):
    image = read_image(save(tmp_path / name, itk_image(VALUES.astype(dtype)), compress=compress), unit="HU")
    np.testing.assert_array_equal(image.values[..., 0], VALUES)
    assert image.values.dtype == dtype
    assert (image.spacing, image.unit) == ((4.0, 3.0, 2.0), "HU")
    # Origin in LPS (-10, 20, 30) is (10, -20, 30) in RAS.
    np.testing.assert_allclose(image.affine, [[0, 0, -2, 10], [0, -3, 0, -20], [4, 0, 0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_the_same_volume_in_any_orientation_is_the_same_as_through_nifti(tmp_path, suffix):
    """SimpleITK writes NIfTI, too: two readers, one result."""
    for code in ("RAS", "PIR", "ASL", "LPS"):
        image = SimpleITK.DICOMOrient(itk_image(), code)
        ours = read_image(save(tmp_path / f"a.{suffix}", image))
        nifti = read_image(save(tmp_path / "a.nii.gz", image))
        np.testing.assert_array_equal(ours.values, nifti.values)
        np.testing.assert_allclose(ours.affine, nifti.affine, atol=1e-5)
        np.testing.assert_array_equal(ours.values[..., 0], VALUES)
        nibabel.load(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_vectors_are_channels(tmp_path, suffix):
    values = np.arange(180, dtype=np.uint8).reshape(3, 4, 5, 3)
    image = read_image(save(tmp_path / f"a.{suffix}", itk_image(values, vector=True)))
    np.testing.assert_array_equal(image.values, values)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_plane_is_an_image(tmp_path, suffix):
    image = read_image(save(tmp_path / f"a.{suffix}", itk_image(VALUES[0])))
    np.testing.assert_array_equal(image.values[..., 0], VALUES[0])
    assert (image.spacing, image.affine) == ((3.0, 2.0), None)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_fourth_axis_is_channels_only_when_asked_for(tmp_path, suffix):
    values = np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5)
    path = save(tmp_path / f"a.{suffix}", SimpleITK.GetImageFromArray(values, isVector=False))
    with pytest.raises(UnreadableFile, match="more than a volume"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, fourth_axis="channels").values, np.moveaxis(values, 0, -1))
    assert peek_image(path, fourth_axis="channels").shape == (3, 4, 5, 2)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
@pytest.mark.parametrize("place", ["../secret.raw", "/etc/passwd", "a%03d.raw 1 9 1", "LIST", "sub/b.raw", "c:\\b.raw"])
def test_data_files_elsewhere_are_refused(tmp_path, name, place):
    header = save(tmp_path / name)
    (tmp_path.parent / "secret.raw").write_bytes(b"0" * 1000)
    raw = next(path.name for path in tmp_path.iterdir() if path != header)
    header.write_text(header.read_text(errors="replace").replace(raw, place))
    with pytest.raises(UnreadableFile, match=r"keeps its data in .* Expected one file in the folder of the header"):
        read_image(header)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_a_missing_or_linked_data_file_is_named(tmp_path, name):
    header = save(tmp_path / name)
    raw = next(path for path in tmp_path.iterdir() if path != header)
    raw.rename(tmp_path.parent / "moved.raw")
    with pytest.raises(UnreadableFile, match=f"keeps its data in '{raw.name}', which is not beside it"):
        read_image(header)
    raw.symlink_to(tmp_path.parent / "moved.raw")
    with pytest.raises(UnreadableFile, match="which is not beside it"):
        read_image(header)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_header_beyond_the_file_is_refused_before_memory_is_taken(tmp_path, name):
    path = save(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"5 4 3", b"500 400 300"))
    with pytest.raises(UnreadableFile, match=r"holds 120 bytes of values, its header promises 120,000,000"):
        read_image(path)
    path.write_bytes(content.replace(b"5 4 3", b"50000 40000 30000"))
    with pytest.raises(UnreadableFile, match="more than the limit"):
        read_image(path)


def test_headers_that_are_no_header_are_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\n\n")
    with pytest.raises(UnreadableFile, match="has no field 'dimension'"):
        read_image(tmp_path / "a.nrrd")
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    with pytest.raises(UnreadableFile, match="has no field 'DimSize'"):
        read_image(tmp_path / "a.mha")
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\ntype: block\ndimension: 1\nsizes: 4\nencoding: raw\n\n")
    with pytest.raises(UnreadableFile, match="holds values of type 'block'"):
        read_image(tmp_path / "b.nrrd")


def test_itk_says_nothing_on_the_screen(tmp_path, capfd):
    content = save(tmp_path / "a.mha", compress=True).read_bytes()
    for old, new in (
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 7 0 0"),
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0"),
        (b"NDims = 3\n", b""),
        (b"DimSize = 5 4 3", b"DimSize = 5 4 9"),
        (b"Offset = ", b"Offset : "),
    ):
        (tmp_path / "a.mha").write_bytes(content.replace(old, new))
        with pytest.raises(UnreadableFile):
            read_image(tmp_path / "a.mha")
    assert capfd.readouterr() == ("", "")
