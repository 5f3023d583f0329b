"""What every recipe promises, whatever it is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from fusion_jax.data import k_fold
from fusion_jax.models.recipe import Recipe, open_recipe
from fusion_jax.models.registry import RECIPES, load_recipe, make_recipe, single
from fusion_jax.models.schema import Schema, check_schema
from fusion_jax.models.strategies import Design, build
from fusion_jax.training.keys import run_key
from tests.models.conftest import CELLS, SEARCHED

SMALL = {"epochs": 2, "features": 8, "head": [4], "encoder": {"name": "cnn", "widths": [4]}, "quality": "none"}
FAST = {"trees": 10}
TUNED = {"candidates": {"ridge": {"recipe": "logistic-regression"}, "lasso": {"recipe": "elastic-net"}}, "folds": 2}
QUICK_DEEP = "concatenate"
"""The network of the default run; one more costs its compilation."""


def arguments(name):
    entry = RECIPES.get(name)
    if entry is None or entry.kind == "deep":
        published = {"model": "markers only", "rename": {"markers": "clinical"}} if name == "published" else {}
        return SMALL | published | (CELLS if name == "genotype" else {})
    if entry.kind == "searched":
        return SEARCHED
    if entry.kind == "tuned":
        return TUNED
    return FAST if "trees" in entry.arguments else {}


NAMES = [
    pytest.param(
        name, marks=[pytest.mark.slow] if entry.kind in ("deep", "searched") and name != QUICK_DEEP else [], id=name
    )
    for name, entry in RECIPES.items()
]


@pytest.fixture
def fitted(request, tmp_path, make_tiny):
    name = request.param
    if name == QUICK_DEEP:
        trained = request.getfixturevalue("trained")
        return name, trained.recipe, trained.tiny.cohort, trained.split, trained.folder
    cohort = make_tiny(survival=name.startswith("cox")).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    recipe = make_recipe(name, arguments(name))
    seen = cohort.take(split.rows(cohort).train)
    recipe.fit(seen, split._replace(test=()), run_key(0), tmp_path)
    return name, recipe, cohort, split, tmp_path


@pytest.mark.parametrize("fitted", NAMES, indirect=True)
def test_a_recipe_predicts_every_case_from_its_folder_alone(fitted):
    name, recipe, cohort, split, folder = fitted
    assert isinstance(recipe, Recipe)
    rows = split.rows(cohort).test
    scores = recipe.predict(folder, cohort, rows)
    survival = name.startswith("cox")
    assert scores.shape == (len(rows), 1 if survival else 2)
    assert np.isfinite(scores).all()
    if not survival:
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
        assert (scores >= 0).all()
    loaded = load_recipe(folder)
    assert loaded == recipe
    np.testing.assert_array_equal(loaded.predict(folder, cohort, rows), scores)
    # Any order and any number of times, as importance asks for them.
    again = np.concatenate([rows[::-1], rows[:1]])
    np.testing.assert_allclose(recipe.predict(folder, cohort, again)[:-1][::-1], scores, atol=1e-6)
    # Training cases too: the gap between them and test cases is reported.
    assert np.isfinite(recipe.predict(folder, cohort, np.arange(len(cohort)))).all()
    # New ids, no label and no times: the next patients.
    table = cohort.table.drop(columns=[c for c in cohort.table.columns if cohort.role(c) not in ("input", "never")])
    renamed = type(cohort)(
        name="next",
        table=table.set_axis([f"new_{row}" for row in range(len(table))], axis=0),
        patient_id=cohort.patient_id,
        roles={column: cohort.role(column) for column in table.columns},
        sources=cohort.sources,
        present=cohort.present,
        units=cohort.units,
    )
    check_schema(Schema.from_json(open_recipe(folder)["schema"]), renamed)
    np.testing.assert_allclose(recipe.predict(folder, renamed, rows), scores, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_name_and_arguments_make_the_recipe_again(name):
    recipe = make_recipe(name, arguments(name))
    stored = json.loads(json.dumps(recipe.arguments()))
    assert make_recipe(recipe.name, stored) == recipe


@pytest.mark.parametrize("fitted", ["random-forest"], indirect=True)
def test_the_same_key_gives_the_same_bits_and_another_key_others(fitted, tmp_path_factory):
    _, recipe, cohort, split, folder = fitted
    rows = split.rows(cohort).test
    seen = cohort.take(split.rows(cohort).train)
    found = []
    for seed in (0, 1):
        other = tmp_path_factory.mktemp("again")
        recipe.fit(seen, split._replace(test=()), run_key(seed), other)
        found.append(recipe.predict(other, cohort, rows))
    np.testing.assert_array_equal(found[0], recipe.predict(folder, cohort, rows))
    assert (found[1] != found[0]).any()


FRESH = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[3])
from conftest import tiny_cohort
from fusion_jax.models.registry import load_recipe
cohort = tiny_cohort(int(sys.argv[4])).cohort
np.save(sys.argv[2], load_recipe(sys.argv[1]).predict(sys.argv[1], cohort, np.arange(len(cohort))))
"""


@pytest.mark.parametrize(
    "fitted", ["gradient-boosting", pytest.param("concatenate", marks=pytest.mark.slow)], indirect=True
)
def test_a_fresh_process_predicts_the_same(fitted, request):
    _, recipe, cohort, _, folder = fitted
    out = folder / "scores.npy"
    here = request.path.parent
    subprocess.run([sys.executable, "-c", FRESH, str(folder), str(out), str(here), str(len(cohort))], check=True)
    expected = recipe.predict(folder, cohort, np.arange(len(cohort)))
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, e in RECIPES.items() if e.kind == "deep" and n not in ("published",)])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_strategy_builds_for_images_and_clinical_data(name, classes, key):
    shapes = {"pet": (8, 8, 2), "ct": (6, 6, 6, 1), "clinical": (3,)}
    sources = {"image-only": ("pet", "ct"), "clinical-only": ("clinical",)}.get(name, tuple(shapes))
    module = build(
        Design(name, sources, shapes, classes, features=8, head=(4,), encoder={"name": "cnn", "widths": (4,)})
    )
    rows = jax.ShapeDtypeStruct((2,), bool)
    inputs = {source: jax.ShapeDtypeStruct((2, *shapes[source]), np.float32) for source in sources}
    present = dict.fromkeys(sources, rows)

    def run(key, inputs, present, valid):
        return module.init_with_output(key, inputs, present=present, valid=valid, train=False)[0]

    outputs = jax.eval_shape(run, key, inputs, present, rows)
    assert outputs.logits.shape == (2, classes)
    assert set(outputs.features) == set(sources)


def test_single_counts_sources_and_no_masks(tiny):
    assert single(tiny.cohort, make_recipe("image-only"))
    assert single(tiny.cohort, make_recipe("random-forest"))
    assert not single(tiny.cohort, make_recipe("gated"))
    assert not single(tiny.cohort, make_recipe("random-forest+measurements"))
    only = make_recipe("random-forest+measurements", {"features": "measurements"})
    assert only.sources(tiny.cohort) == ("image", "lesion")
    assert single(tiny.cohort, only)
