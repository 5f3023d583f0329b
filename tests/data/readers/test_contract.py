"""What holds for every reader: one table of valid files, and what becomes of them when they are damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import READERS, peek_image, read_image, reader_name


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def stems(path: Path) -> list[Path]:
    """Every file that holds a part of the image: slices of a folder, header and data of a detached pair."""
    return files_of(path) if path.is_dir() else sorted(path.parent.glob(path.name.split(".")[0] + ".*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_every_reader_is_in_the_table_of_valid_files(writers):
    assert {name.partition(",")[0] for name in writers} == set(READERS)


def test_the_content_names_the_reader(valid):
    name, path, _ = valid
    assert reader_name(path) == name


def test_values_have_a_channel_axis_and_a_number_type(valid):
    _, path, options = valid
    image = read_image(path, **options)
    assert image.values.ndim in (3, 4)
    assert image.values.dtype.kind in "uif"
    assert image.values.dtype.isnative
    assert image.values.flags.c_contiguous
    assert type(image.values) is np.ndarray
    assert image.unit in ("", "HU", "SUV", "label")
    if image.spacing is not None:
        assert len(image.spacing) == image.values.ndim - 1
        assert np.isfinite(image.spacing).all()
        assert min(image.spacing) > 0
    if image.affine is not None:
        assert image.values.ndim == 4
        # Canonical: to the head, to the back, to the left.
        assert image.affine[2, 0] > 0
        assert image.affine[1, 1] < 0
        assert image.affine[0, 2] < 0
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), image.spacing)


def test_reading_twice_gives_the_same_and_writes_nothing(valid, tmp_path):
    _, path, options = valid
    before = contents(tmp_path)
    first, second = read_image(path, **options), read_image(path, **options)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.values.dtype == second.values.dtype
    assert first.spacing == second.spacing
    assert contents(tmp_path) == before


def test_the_header_agrees_with_the_image(valid):
    _, path, options = valid
    image, header = read_image(path, **options), peek_image(path, **options)
    assert (header.shape, header.dtype) == (image.values.shape, image.values.dtype)
    assert (header.spacing, header.unit) == (image.spacing, image.unit)
    if image.affine is None:
        assert header.affine is None
    else:
        np.testing.assert_array_equal(header.affine, image.affine)


def test_an_image_over_the_limit_is_refused_from_its_header(valid):
    _, path, options = valid
    size = read_image(path, **options).values.size
    assert read_image(path, max_voxels=size, **options).values.size == size
    for function in (read_image, peek_image):
        with pytest.raises(UnreadableFile, match="more than the limit of") as error:
            function(path, max_voxels=size - 1, **options)
        assert "max_voxels" in str(error.value)


def test_an_unknown_option_lists_the_known_ones(valid):
    name, path, options = valid
    for function in (read_image, peek_image):
        with pytest.raises(TypeError, match=f"reader '{name}' has no option 'smooth'; it has .*max_voxels"):
            function(path, smooth=True, **options)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75, 0.97])
def test_a_truncated_file_is_refused_by_its_name(valid, part):
    name, path, options = valid
    file = max(stems(path), key=lambda one: one.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UnreadableFile) as error:
        read_image(path, reader=name, **options)
    assert str(error.value.path) in (str(path), str(file))
    assert error.value.advice.endswith(".")


def test_an_empty_file_is_refused(valid):
    name, path, options = valid
    for file in files_of(path):
        file.write_bytes(b"")
    with pytest.raises(UnreadableFile, match=r"is empty \(0 bytes\)"):
        read_image(path, reader=name, **options)


def test_a_text_with_the_suffix_of_an_image_is_refused(valid):
    name, path, options = valid
    for file in files_of(path):
        file.write_text("patient,age\n1,52\n" * 40)
    with pytest.raises(UnreadableFile, match=files_of(path)[0].name):
        read_image(path, reader=name, **options)


def test_a_missing_file_stays_a_missing_file(valid):
    name, path, options = valid
    for read in (read_image, peek_image):
        with pytest.raises(FileNotFoundError, match="absent"):
            read(path.with_name("absent" + path.suffix), reader=name, **options)


@pytest.mark.parametrize("function", [read_image, peek_image])
def test_a_folder_without_slices_is_refused(tmp_path, function):
    (tmp_path / "patient" / "study").mkdir(parents=True)
    with pytest.raises(UnreadableFile, match=r"patient: holds no files \(1 folders\)"):
        function(tmp_path / "patient")


def test_a_folder_given_as_a_file_is_refused(valid, tmp_path):
    name, _, options = valid
    if name == "dicom_series":
        pytest.skip("its path is a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableFile, match="is a folder"):
        read_image(tmp_path / "folder", reader=name, **options)


def test_no_permission_stays_an_error_of_the_system(valid, monkeypatch):
    """As root every file may be read, so that the system is made to refuse."""
    name, path, options = valid

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(args[0]))

    monkeypatch.setattr("io.FileIO", refuse)
    with pytest.raises(PermissionError):
        read_image(path, reader=name, **options)


def is_refused_or_read(path: Path, name: str, options: dict) -> None:
    """A damaged file is read (the damage hit a voxel) or refused by the one error; nothing else."""
    refusal = None
    try:
        assert read_image(path, reader=name, max_voxels=2**22, **options).values.size <= 2**22
    except UnreadableFile as error:
        refusal = error
    if refusal is not None:
        assert len(str(refusal)) < 2000
        # A wrong annotation of ours must not pass for a damaged file.
        assert not type(refusal.__cause__).__module__.startswith(("jaxtyping", "beartype")), refusal


@given(data=st.data())
@settings(max_examples=30)
def test_flipped_bits_are_read_or_refused(valid, data, tmp_path):
    name, path, options = valid
    file = data.draw(st.sampled_from(stems(path)), label="file")
    content = file.read_bytes()
    # Half of the flips go to the first bytes: there the headers are.
    end = data.draw(st.sampled_from([min(400, len(content)), len(content)]), label="end")
    places = data.draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 7)), min_size=1, max_size=6))
    damaged = bytearray(content)
    for at, bit in places:
        damaged[at] ^= 1 << bit
    try:
        file.write_bytes(bytes(damaged))
        is_refused_or_read(path, name, options)
    finally:
        file.write_bytes(content)


@given(data=st.data())
@settings(max_examples=30)
def test_overwritten_and_lengthened_bytes_are_read_or_refused(valid, data):
    name, path, options = valid
    file = data.draw(st.sampled_from(stems(path)), label="file")
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    with_ = data.draw(
        st.one_of(st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0" * 8, b"9999999"]), st.binary())
    )
    keep = data.draw(st.booleans(), label="lengthened")
    try:
        file.write_bytes(content[:at] + with_ + content[at if keep else at + len(with_) :])
        is_refused_or_read(path, name, options)
    finally:
        file.write_bytes(content)


def test_a_wrong_suffix_does_not_matter(valid, tmp_path):
    _, path, options = valid
    if path.is_dir() or len(stems(path)) > 1:
        pytest.skip("the image is in several files")
    other = tmp_path / "image.bin"
    shutil.copy(path, other)
    np.testing.assert_array_equal(read_image(other, **options).values, read_image(path, **options).values)


def test_a_file_of_no_known_kind_lists_the_suffixes(tmp_path):
    (tmp_path / "notes.doc").write_bytes(b"nothing known")
    with pytest.raises(UnreadableFile, match=r"notes.doc: is of no kind known here. Expected .*\.nii\.gz"):
        read_image(tmp_path / "notes.doc")


def test_an_unknown_reader_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"reader is 'bmp'; expected one of png, jpeg, .*rtstruct"):
        read_image(tmp_path / "a.bmp", reader="bmp")
