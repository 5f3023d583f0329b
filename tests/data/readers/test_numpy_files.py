import zipfile

import numpy as np
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image


def save(path, values, **options):
    np.save(path / "a.npy", values, **options)
    return path / "a.npy"


@pytest.mark.parametrize(
    ("stored", "axes", "shape"),
    [
        ((5, 7), None, (5, 7, 1)),
        ((5, 7, 3), None, (5, 7, 3)),
        ((5, 6, 16), None, (5, 6, 16, 1)),
        ((5, 7, 9), "hwc", (5, 7, 9)),
        ((5, 7, 9), "dhw", (5, 7, 9, 1)),
        ((5, 7, 9), "xyz", (9, 7, 5, 1)),
        ((5, 7, 9, 2), None, (5, 7, 9, 2)),
        ((5, 7, 9, 2), "xyzc", (9, 7, 5, 2)),
    ],
)
def test_axes_of_an_array(tmp_path, stored, axes, shape):
    values = np.arange(np.prod(stored), dtype=np.int32).reshape(stored)
    image = read_image(save(tmp_path, values), axes=axes)
    assert image.values.shape == peek_image(tmp_path / "a.npy", axes=axes).shape == shape
    wanted = values if axes is None or not axes.startswith("xyz") else np.swapaxes(values, 0, 2)
    np.testing.assert_array_equal(image.values, wanted.reshape(shape))


def test_three_axes_that_may_be_either_are_never_guessed(tmp_path):
    path = save(tmp_path, np.zeros((9, 8, 7)))
    with pytest.raises(UnreadableFile, match=r"may be channels or voxels. Say which: axes='hwc' or 'dhw'"):
        read_image(path)
    with pytest.raises(ValueError, match=r"axes='hw' for an array of shape \(9, 8, 7\); expected 3 letters"):
        read_image(path, axes="hw")


def test_an_affine_turns_the_array_into_canonical_order(tmp_path):
    values = np.arange(60).reshape(3, 4, 5)
    np.savez(tmp_path / "a.npz", ct=values, matrix=np.diag([-2.0, -3.0, 4.0, 1.0]), gap=[1.0, 2.0, 3.0])
    image = read_image(tmp_path / "a.npz", array="ct", axes="xyz", affine="matrix")
    np.testing.assert_array_equal(image.values[..., 0], values.T)
    assert image.spacing == (4.0, 3.0, 2.0)
    np.testing.assert_array_equal(image.affine, [[0, 0, -2, 0], [0, -3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]])
    given = read_image(tmp_path / "a.npz", array="ct", axes="xyz", affine=np.diag([-2.0, -3.0, 4.0, 1.0]))
    np.testing.assert_array_equal(given.affine, image.affine)
    assert read_image(tmp_path / "a.npz", array="ct", axes="xyz", spacing="gap").spacing == (3.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="differs from that of the affine"):
        read_image(tmp_path / "a.npz", array="ct", axes="xyz", spacing="gap", affine="matrix")


def test_the_array_must_be_named_where_there_are_several(tmp_path):
    np.savez(tmp_path / "a.npz", pet=np.zeros((2, 2)), ct=np.ones((2, 2)))
    with pytest.raises(UnreadableFile, match=r"holds 2 arrays \(pet, ct\). Name one with `array`"):
        read_image(tmp_path / "a.npz")
    with pytest.raises(UnreadableFile, match="has no array 'mr'; it holds pet, ct"):
        read_image(tmp_path / "a.npz", array="mr")
    assert read_image(tmp_path / "a.npz", array="ct").values.all()


@pytest.mark.parametrize(
    "values",
    [np.array([{"a": 1}], object), np.array([["a", "b"]]), np.zeros((2, 2), complex), np.zeros(4, [("a", int)])],
)
def test_arrays_that_hold_no_numbers_are_refused_and_nothing_is_unpickled(tmp_path, values):
    path = save(tmp_path, values, allow_pickle=True)
    with pytest.raises(UnreadableFile, match="nothing is unpickled"):
        read_image(path)
    np.savez(tmp_path / "b.npz", a=values)
    with pytest.raises(UnreadableFile, match="nothing is unpickled"):
        read_image(tmp_path / "b.npz")


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path, np.zeros((4, 4)))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(4, 4), }", b"(9000, 9000), }")[: len(content)])
    with pytest.raises(UnreadableFile, match=r"holds 1\d\d bytes of values, its header promises 648,000,000"):
        read_image(path)
    path.write_bytes(content.replace(b"(4, 4), }", b"(99999, 99999), }")[: len(content)])
    with pytest.raises(UnreadableFile, match="more than the limit"):
        read_image(path)


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 2, 2, 2, 2)])
def test_shapes_of_no_image_are_refused(tmp_path, shape):
    with pytest.raises(UnreadableFile, match=r"axes|shape"):
        read_image(save(tmp_path, np.zeros(shape)))


def test_other_byte_and_storage_orders_give_the_same(tmp_path):
    values = np.arange(80, dtype=np.float32).reshape(5, 16)
    for stored in (values.astype(">f4"), np.asfortranarray(values)):
        image = read_image(save(tmp_path, stored))
        np.testing.assert_array_equal(image.values[..., 0], values)
        assert image.values.dtype == np.float32
        assert image.values.flags.c_contiguous


def test_a_memory_map_leaves_the_values_on_disk(tmp_path):
    values = np.arange(35.0).reshape(5, 7)
    mapped = read_image(save(tmp_path, values), memory_map=True).values
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped[..., 0], values)
    # Rearranged values cannot stay on disk.
    assert not isinstance(read_image(save(tmp_path, np.asfortranarray(values)), memory_map=True).values, np.memmap)


def test_spacing_must_fit_the_axes(tmp_path):
    path = save(tmp_path, np.zeros((5, 7)))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, np.nan), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="expected 2 lengths in mm above zero"):
            read_image(path, spacing=spacing)
    with pytest.raises(ValueError, match="expected \\(4, 4\\) and a volume"):
        read_image(path, affine=np.eye(4))


def test_a_member_that_unpacks_to_more_than_its_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", (tmp_path / "a.npy").read_bytes() + b"\0" * 10_000_000)
    with pytest.raises(UnreadableFile, match="holds 10,000,128 bytes of values, its header promises 128"):
        read_image(tmp_path / "b.npz")
