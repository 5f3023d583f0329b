import numpy as np
import pytest
import scipy.stats

from fusion_jax.data.obfuscation import obfuscate_indication

N = 6000
RNG = np.random.default_rng(0)
INDICATION = RNG.integers(0, 4, N)
BIRADS = RNG.choice([1.0, 2.0, 4.0, 6.0, np.nan], N)
CASES = [f"exam_{i}" for i in range(N)]
REVEALING = (BIRADS == 6) & (INDICATION == 3)


def test_no_known_cancer_keeps_its_indication_and_all_others_do():
    after = obfuscate_indication(INDICATION, BIRADS, CASES, seed=1)
    assert REVEALING.sum() > 200
    assert not (after[REVEALING] == 3).any()
    np.testing.assert_array_equal(after[~REVEALING], INDICATION[~REVEALING])
    assert (after[BIRADS != 6] == 3).any()
    assert after.dtype == INDICATION.dtype


def test_the_draw_is_uniform():
    everyone = np.full(N, 3)
    after = obfuscate_indication(everyone, np.full(N, 6), CASES, seed=5)
    assert scipy.stats.chisquare(np.bincount(after, minlength=3)).pvalue > 0.01


def test_the_draw_depends_on_case_and_seed_alone():
    after = obfuscate_indication(INDICATION, BIRADS, CASES, seed=1)
    order = RNG.permutation(N)[: N // 2]
    part = obfuscate_indication(INDICATION[order], BIRADS[order], [CASES[i] for i in order], seed=1)
    np.testing.assert_array_equal(part, after[order])
    other = obfuscate_indication(INDICATION, BIRADS, CASES, seed=2)
    assert 0.55 < np.mean(other[REVEALING] != after[REVEALING]) < 0.78


def test_words_are_replaced_by_words_of_any_length():
    words = {"revealing": "extent", "replacements": ("other", "screening", "diagnostic")}
    for indication in (np.array(["extent"] * 50), np.array(["extent"] * 49 + [None], object)):
        after = obfuscate_indication(indication, np.full(50, 6), CASES[:50], seed=0, **words)
        assert set(after[:49].tolist()) == {"other", "screening", "diagnostic"}
    assert after[49] is None


def test_types_that_would_never_match_are_refused():
    ids = CASES[:2]
    with pytest.raises(TypeError, match=r"BI-RADS categories have the dtype .*; expected numbers"):
        obfuscate_indication(np.array([3, 3]), np.array(["6", "6"]), ids, seed=0)
    with pytest.raises(TypeError, match="the revealing one is 3; expected both words or both numbers"):
        obfuscate_indication(np.array(["3", "1"]), np.array([6, 6]), ids, seed=0)
    with pytest.raises(TypeError, match="the revealing one is 'extent'"):
        obfuscate_indication(np.array([3, 1]), np.array([6, 6]), ids, seed=0, revealing="extent", replacements=("a",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"case_id": ["a", "a"]}, "case ids repeat"),
        ({"case_id": ["a"]}, "2 indications, 2 BI-RADS categories and 1 case ids"),
        ({"replacements": ()}, "expected other indications than 3"),
        ({"replacements": (0, 3)}, "expected other indications than 3"),
    ],
)
def test_rows_that_do_not_fit_are_refused(arguments, message):
    given = {"indication": np.array([3, 3]), "birads": np.array([6, 6]), "case_id": ["a", "b"], "seed": 0}
    with pytest.raises(ValueError, match=message):
        obfuscate_indication(**given | arguments)
