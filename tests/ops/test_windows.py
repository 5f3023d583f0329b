import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.ops.windows import output_sizes, padding_pairs, per_axis, windows_inside

small = st.integers(1, 7)


@pytest.mark.usefixtures("unchecked")
def test_one_number_stands_for_every_axis_and_a_sequence_for_its_own():
    assert per_axis(2, 3, "strides") == (2, 2, 2)
    assert per_axis([1, 2], 2, "strides") == per_axis(np.array([1, 2]), 2, "strides") == (1, 2)
    assert padding_pairs(np.array([[1, 2], [0, 1]]), (5, 5), (3, 3), (1, 1), (1, 1)) == ((1, 2), (0, 1))
    assert padding_pairs(np.int64(2), (5, 5), (3, 3), (1, 1), (1, 1)) == ((2, 2), (2, 2))
    assert per_axis(np.int64(4), 1, "window") == (4,)
    assert all(type(v) is int for v in per_axis((np.int32(4), 5), 2, "window"))
    assert per_axis(0, 2, "padding", smallest=0) == (0, 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [1.0, True, "3", (1, 2.0), None])
def test_what_is_no_integer_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"strides is .*; expected an integer, or one for each of 2 spatial axes"):
        per_axis(value, 2, "strides")


def test_wrong_numbers_of_values_and_small_values_are_refused():
    with pytest.raises(ValueError, match="window has 2 values for 3 spatial axes; give one number, or 3"):
        per_axis((1, 2), 3, "window")
    with pytest.raises(ValueError, match="window is 0; every value must be at least 1"):
        per_axis(0, 3, "window")
    with pytest.raises(ValueError, match=r"padding is .*; every value must be at least 0"):
        padding_pairs([(0, -1)], (8,), (3,), (1,), (1,))


@pytest.mark.usefixtures("unchecked")
def test_padding_takes_one_number_one_an_axis_or_a_pair_an_axis():
    geometry = ((8, 9), (3, 3), (1, 1), (1, 1))
    assert padding_pairs("VALID", *geometry) == ((0, 0), (0, 0))
    assert padding_pairs(2, *geometry) == ((2, 2), (2, 2))
    assert padding_pairs((1, 2), *geometry) == ((1, 1), (2, 2))
    assert padding_pairs([(1, 0), 2], *geometry) == ((1, 0), (2, 2))
    with pytest.raises(ValueError, match="padding is 'same'; expected 'SAME', 'VALID' or numbers"):
        padding_pairs("same", *geometry)
    with pytest.raises(ValueError, match="padding has 3 values for 2 spatial axes"):
        padding_pairs((1, 2, 3), *geometry)


@given(st.tuples(small, small, small), st.tuples(small, small, small))
def test_padding_equals_that_of_xla(first, second):
    (size, width, stride), (other, wider, longer) = first, second
    found = padding_pairs("SAME", (size, other), (width, wider), (stride, longer), (1, 1))
    assert found == tuple(jax.lax.padtype_to_pads((size, other), (width, wider), (stride, longer), "SAME"))


@given(small, small, small, st.integers(1, 3))
def test_same_gives_one_window_a_stride_with_the_odd_position_after(size, width, stride, step):
    ((before, after),) = pairs = padding_pairs("SAME", (size,), (width,), (stride,), (step,))
    assert after - before in (0, 1)
    assert output_sizes((size,), (width,), (stride,), (step,), pairs) == (-(-size // stride),)


@pytest.mark.parametrize("step", [1, 2])
def test_windows_are_counted_as_by_sliding_them(step):
    for size, width, stride in itertools.product(range(9), range(1, 5), range(1, 4)):
        starts = [start for start in range(0, size, stride) if start + (width - 1) * step < size]
        assert windows_inside(size, width, stride, step) == len(starts)
        padded = output_sizes((size,), (width,), (stride,), (step,), ((2, 1),))
        assert padded == (windows_inside(size + 3, width, stride, step),)


def test_padding_of_an_axis_with_more_than_two_sides_is_refused_as_what_it_is():
    with pytest.raises(ValueError, match=r"padding holds \(1, 1, 1\); expected one number for both sides of an axis"):
        padding_pairs([(1, 1, 1), 0, 0], (5, 5, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1))
