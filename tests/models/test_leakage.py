"""No test case is looked at while a recipe is fitted; a recipe that does look is caught."""

import dataclasses

import numpy as np
import pytest

from fusion_jax.data import k_fold
from fusion_jax.models.recipe import open_recipe
from fusion_jax.models.registry import RECIPES, make_recipe
from fusion_jax.models.task import run_split
from tests.models.conftest import CELLS, SEARCHED

TUNED = {"candidates": {"ridge": {"recipe": "logistic-regression"}, "lasso": {"recipe": "elastic-net"}}, "folds": 2}
SMALL = {"epochs": 1, "features": 8, "head": [4], "encoder": {"name": "cnn", "widths": [4]}}


@dataclasses.dataclass(frozen=True)
class Watched:
    """A recipe of which only the fit is let through; rows that were read until then are noted."""

    inner: object
    tiny: object
    seen: dict

    @property
    def name(self):
        return self.inner.name

    def arguments(self):
        return self.inner.arguments()

    def sources(self, cohort):
        return self.inner.sources(cohort)

    def fit(self, cohort, split, key, folder, *, report=None):
        self.seen["cases"] = set(cohort.case_id)
        before = len(self.tiny.reader.asked)
        self.inner.fit(cohort, split, key, folder, report=report)
        self.seen["images"] = {self.tiny.cohort.case_id[row] for row in self.tiny.reader.asked[before:]}

    def predict(self, folder, cohort, rows):
        return np.full((len(rows), 1 if open_recipe(folder)["target"]["kind"] == "survival" else 2), 0.5)


def spoiled(tiny, cases):
    """The cohort with cells that no encoder can read in the rows of some cases: who looks there fails."""
    table = tiny.cohort.table.copy()
    table["age"] = table["age"].astype(object)
    table.loc[list(cases), "age"] = "not a number"
    return dataclasses.replace(tiny.cohort, table=table)


def watched_fit(name, tiny, tmp_path):
    given = {"deep": SMALL, "classical": {"trees": 5}, "tuned": TUNED, "searched": SEARCHED}[RECIPES[name].kind]
    if name == "genotype":
        given = {**given, **CELLS}
    if name == "published":
        given = {**given, "model": "markers only", "rename": {"markers": "clinical"}}
    split = k_fold(tiny.cohort, 2, seed=0).splits[0]
    seen = {}
    recipe = Watched(make_recipe(name, given), tiny, seen)
    run_split(recipe, spoiled(tiny, split.test), split, seed=0, folder=tmp_path, model=name)
    return split, seen


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if entry.kind == "deep" else []) for name, entry in RECIPES.items()],
)
def test_fitting_touches_no_test_case(name, make_tiny, tmp_path):
    tiny = make_tiny(survival=name.startswith("cox"))
    split, seen = watched_fit(name, tiny, tmp_path)
    assert seen["cases"] == set(split.train)
    assert not seen["images"] & set(split.test)
    if name not in ("published", "tuned") and "image" in make_recipe(name).sources(tiny.cohort):
        assert seen["images"], "the test would see nothing if no image were read through the recorder"


def test_training_a_network_reads_no_test_image(trained):
    cohort, split = trained.tiny.cohort, trained.split
    test = {row for row, case in enumerate(cohort.case_id) if case in split.test}
    assert trained.read, "the test would see nothing if no image were read through the recorder"
    assert not trained.read & test


def test_a_recipe_that_keeps_the_whole_cohort_is_caught(tiny, tmp_path):
    split = k_fold(tiny.cohort, 2, seed=0).splits[0]

    class Cheat:
        """Normalises by all images, test images among them."""

        name = "logistic-regression"
        inner = make_recipe("logistic-regression")

        def arguments(self):
            return {}

        def sources(self, cohort):
            return self.inner.sources(cohort)

        def fit(self, cohort, split, key, folder, *, report=None):
            whole = tiny.cohort
            np.mean([whole.image("image", row).values for row in np.flatnonzero(whole.present["image"]).tolist()])
            self.inner.fit(cohort, split, key, folder, report=report)

    seen = {}
    run_split(Watched(Cheat(), tiny, seen), tiny.cohort, split, seed=0, folder=tmp_path, model="cheat")
    assert seen["images"] & set(split.test)


def test_an_encoder_that_looks_at_test_cells_is_caught(tiny):
    from fusion_jax.data.clinical import fit_columns

    split = k_fold(tiny.cohort, 2, seed=0).splits[0]
    whole = spoiled(tiny, split.test)
    fit_columns(whole, split.train, fold="f0")
    with pytest.raises(ValueError, match="not a number"):
        fit_columns(whole, split.train + split.test, fold="f0")


def test_patients_in_two_parts_stop_the_task(tiny, tmp_path):
    split = k_fold(tiny.cohort, 2, seed=0).splits[0]
    patients = tiny.cohort.patient_id.copy()
    index = list(tiny.cohort.case_id)
    patients[index.index(split.test[0])] = patients[index.index(split.train[0])]
    crossed = dataclasses.replace(tiny.cohort, patient_id=patients)
    with pytest.raises(ValueError, match=r"1 patients are in more than one part"):
        run_split(make_recipe("random-forest"), crossed, split, seed=0, folder=tmp_path, model="forest")
