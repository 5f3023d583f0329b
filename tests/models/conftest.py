"""A tiny cohort that every recipe can be fitted to."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Arrays, Cohort, Columns, Image, Lazy, k_fold
from fusion_jax.models.registry import make_recipe
from fusion_jax.training.keys import run_key

CASES = 16

SMALL = {"epochs": 3, "features": 8, "head": [4], "encoder": {"name": "cnn", "widths": [4]}, "learning_rate": 0.01}
"""Arguments of a network that is trained in a moment, but for its compilation."""


CELLS = {
    "genotype": {"normal": [["conv3", 0], ["skip", 1]], "reduce": [], "normal_concat": [2], "reduce_concat": []},
    "settings": {"layout": "N", "channels": 2, "stem_multiplier": 1, "head": []},
}
"""Arguments of a network of the smallest cell."""

SEARCHED = {
    "layout": "N",
    "nodes": 1,
    "channels": 2,
    "derived_channels": 2,
    "stem_multiplier": 1,
    "head": [],
    "space": ["none", "skip", "conv3"],
    "search_epochs": 2,
    "search_batch_size": 4,
    "architecture_rate": 0.1,
    "retrain": {"epochs": 2, "batch_size": 4, "quality": "none"},
}
"""Arguments of a search that takes a moment, but for its compilation."""


class Pictures:
    """Reader of small pictures that knows which rows were asked for."""

    def __init__(self, values, unit="HU"):
        self.values, self.unit, self.asked = values, unit, []

    def __call__(self, row):
        self.asked.append(row)
        return Image(self.values[row], (1.0, 1.0), None, self.unit)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """The cohort and the reader behind its image."""

    cohort: Cohort
    reader: Pictures


def tiny_cohort(cases=CASES, *, seed=0, survival=False, classes=2, size=8):
    """Image, clinical columns and a mask; the third case has no image, the fourth no clinical data."""
    rng = np.random.default_rng([seed, cases])
    label = np.arange(cases) % classes
    values = rng.normal(size=(cases, size, size, 1)).astype(np.float32) + label[:, None, None, None].astype(np.float32)
    table = pd.DataFrame(
        {
            "age": (60 + 8 * rng.normal(size=cases) + 6 * label).round(1),
            "sex": rng.choice(["f", "m"], cases),
            "hospital": "A",
        }
    )
    table.loc[:1, "sex"] = ["f", "m"]
    roles = {"age": "input", "sex": "input", "hospital": "input"}
    if survival:
        table["days"] = rng.exponential(100, cases).round(1) + 1 - 0.5 * label
        table["died"] = (np.arange(cases) % 4 != 0).astype(int)
        roles |= {"days": "time", "died": "event"}
    reader = Pictures(values)
    mask = np.zeros((cases, size, size, 1), np.uint8)
    mask[:, 2:6, 2:6] = 1
    mask[::3, 2, 2] = 0
    there = np.ones(cases, bool)
    there[2] = False
    known = np.ones(cases, bool)
    known[3] = False
    names = {"label": [f"class {code}" for code in label]} if not survival else {}
    cohort = Cohort.from_arrays(
        {
            "image": Lazy(reader, np.arange(cases), "image", "tiny"),
            "clinical": Columns(("age", "sex", "hospital"), cases),
            "lesion": Arrays(mask, "mask", [(1.0, 1.0)] * cases),
        },
        table=table,
        roles=roles,
        patient_id=[f"P{row:03d}" for row in range(cases)],
        name="tiny",
        units={"age": "years"},
        **names,
    )
    cohort = dataclasses.replace(cohort, present={**cohort.present, "image": there, "clinical": known})
    return Tiny(cohort, reader)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that was trained once for all tests of the default run, each of which would compile it again.

    Attributes:
      recipe, tiny, split, folder: what was trained, on what, and where it lies.
      read: rows whose image was read until the fit had ended.
    """

    recipe: Any
    tiny: Tiny
    split: Any
    folder: Path
    read: set[int]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    tiny = tiny_cohort(24)
    split = k_fold(tiny.cohort, 2, seed=0, validation=0.4).splits[0]
    recipe = make_recipe("concatenate", SMALL)
    folder = tmp_path_factory.mktemp("trained")
    seen = tiny.cohort.take(np.sort(np.concatenate(split.rows(tiny.cohort)[:2])))
    recipe.fit(seen, split._replace(test=()), run_key(0), folder)
    return Trained(recipe, tiny, split, folder, set(tiny.reader.asked))


@pytest.fixture
def tiny():
    return tiny_cohort()


@pytest.fixture
def make_tiny():
    return tiny_cohort
