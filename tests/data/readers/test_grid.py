import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.data.readers.grid import canonical_grid, ras_from_lps


def world(affine, index):
    return affine @ [*index, 1]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_every_order_and_direction_of_axes_becomes_canonical_and_keeps_its_places(axes, signs):
    """All 48 ways to store the same volume give the same values and the same places in the patient."""
    shape = (4, 5, 6)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, stored] = sign * (axis + 1.5)
    affine[:3, 3] = [-7, 11, 3]
    grid = canonical_grid(shape, affine)
    values = np.arange(120).reshape(shape)
    turned = grid.arrange(values)
    assert turned.shape == grid.shape
    np.testing.assert_allclose(grid.affine[:3, :3], [[0, 0, -1.5], [0, -2.5, 0], [3.5, 0, 0]])
    assert grid.spacing == (3.5, 2.5, 1.5)
    for index in itertools.product(*map(range, shape)):
        place = world(affine, index)
        canonical = np.rint(np.linalg.solve(grid.affine, place)[:3]).astype(int)
        assert turned[tuple(canonical)] == values[index]


@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    mirrored=st.booleans(),
)
def test_oblique_grids_agree_with_nibabel(angles, spacing, mirrored):
    a, b, c = angles
    turn = (
        np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1 if mirrored else 1, 1, 1]) * spacing
    affine[:3, 3] = [5, -6, 7]
    values = np.arange(24).reshape(2, 3, 4)
    grid = canonical_grid(values.shape, affine)
    # Places are kept, whatever the order.
    corner = tuple(length - 1 for length in grid.shape)
    stored = np.linalg.solve(affine, world(grid.affine, corner))[:3]
    assert grid.arrange(values)[corner] == values[tuple(np.rint(stored).astype(int))]
    assert np.allclose(sorted(grid.spacing), sorted(spacing))
    # nibabel chooses axes greedily, we the best sum: they part only where axes compete.
    closeness = np.sort(np.abs(turn), axis=0)
    if (closeness[2] - closeness[1] > 0.3).all():
        codes = nibabel.aff2axcodes(affine)
        target = nibabel.orientations.axcodes2ornt("SPL")
        moves = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt(codes), target)
        np.testing.assert_array_equal(grid.arrange(values), nibabel.orientations.apply_orientation(values, moves))


def test_channels_stay_last():
    values = np.arange(48).reshape(2, 3, 4, 2)
    turned = canonical_grid((2, 3, 4), np.eye(4)).arrange(values)
    np.testing.assert_array_equal(turned[..., 1] - turned[..., 0], np.ones((4, 3, 2)))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.full((4, 4), np.nan), "finite"),
        (np.diag([1.0, 1, 0, 1]), "lengths above zero"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "parallel"),
        (np.eye(4) * 2, "0, 0, 0, 1"),
    ],
)
def test_affines_that_are_no_grid_are_refused(affine, message):
    with pytest.raises(ValueError, match=message):
        canonical_grid((2, 2, 2), affine)


def test_lps_and_ras_differ_in_the_first_two_axes():
    affine = np.arange(16.0).reshape(4, 4)
    affine[3] = [0, 0, 0, 1]
    np.testing.assert_array_equal(world(ras_from_lps(affine), (1, 2, 3)), world(affine, (1, 2, 3)) * [-1, -1, 1, 1])
