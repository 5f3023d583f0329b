"""Cells drawn at random, judged once each."""

import numpy as np
import pytest

from fusion_jax.nas.genotype import read_genotype
from fusion_jax.nas.random_search import random_search

SPACE = {"nodes": 2, "operations": ("none", "skip", "conv3", "max_pool")}


def convolutions(genotype):
    return sum(operation == "conv3" for operation, _ in genotype.normal + genotype.reduce)


def test_the_draw_of_the_smallest_loss_is_kept(tmp_path):
    folders = []

    def judge(genotype, folder):
        folders.append(folder)
        return 8.0 - convolutions(genotype)

    found = random_search(judge, draws=12, seed=3, folder=tmp_path, **SPACE)
    assert convolutions(found.genotype) == max(map(convolutions, found.drawn)) > 3
    assert len(set(found.drawn)) > 6
    assert found.losses == tuple(8.0 - convolutions(genotype) for genotype in found.drawn)
    assert read_genotype(tmp_path / "genotype.json") == found.genotype
    assert folders == [tmp_path / f"draw_{number:03d}" for number in range(12)]
    other = random_search(judge, draws=3, seed=4, folder=tmp_path / "other", **SPACE)
    assert other.drawn != found.drawn[:3]


def test_a_search_that_was_killed_judges_only_what_is_left(tmp_path):
    judged = []

    def judge(genotype, folder):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(genotype)
        return float("nan") if len(judged) == 1 else 1.0

    with pytest.raises(KeyboardInterrupt):
        random_search(judge, draws=4, seed=0, folder=tmp_path, **SPACE)
    found = random_search(lambda genotype, folder: 0.5, draws=4, seed=0, folder=tmp_path, **SPACE)
    assert np.isnan(found.losses[0])
    assert found.losses[1:] == (1.0, 0.5, 0.5)
    assert list(found.drawn[:2]) == judged
    assert found.genotype == found.drawn[2]
    # More draws leave the first ones as they were; another space is refused.
    more = random_search(lambda genotype, folder: 2.0, draws=5, seed=0, folder=tmp_path, **SPACE)
    assert more.drawn[:4] == found.drawn
    with pytest.raises(ValueError, match=r"draw_000.judged\.json: holds another genotype"):
        random_search(lambda genotype, folder: 0.5, draws=4, seed=1, folder=tmp_path, **SPACE)


def test_no_draw_and_no_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="draws is 0"):
        random_search(lambda genotype, folder: 0.5, draws=0, seed=0, folder=tmp_path, **SPACE)
    with pytest.raises(ValueError, match="the loss of all 2 draws is not a number"):
        random_search(lambda genotype, folder: float("nan"), draws=2, seed=0, folder=tmp_path, **SPACE)
