"""Cells that are searched among training patients, and networks of a genotype, as recipes."""

import dataclasses
import importlib
import json
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Arrays, Cohort, k_fold
from fusion_jax.data.splits import Split
from fusion_jax.models.architecture import network_sources, of_genotype_file
from fusion_jax.models.registry import make_recipe, resolved
from fusion_jax.models.task import run_split
from fusion_jax.nas import memory
from fusion_jax.nas.genotype import Genotype, genotype_to_json, read_genotype, write_genotype
from fusion_jax.nas.paired import paired_batches
from fusion_jax.training.keys import run_key
from tests.models.conftest import SEARCHED

CELLS = Genotype((("conv3", 0), ("skip", 1)), (), (2,), ())


def two_images(cases=16, *, sizes=(8, 8)):
    rng = np.random.default_rng(cases)
    label = np.arange(cases) % 2
    images = {
        name: Arrays(rng.normal(size=(cases, size, size, 1)).astype(np.float32) + label[:, None, None, None])
        for name, size in zip(("pet", "ct"), sizes, strict=True)
    }
    clinical = Arrays(rng.normal(size=(cases, 2)).astype(np.float32), "array")
    # Two cases a patient, so that halves by case would part patients.
    return Cohort.from_arrays(
        {**images, "clinical": clinical}, label=label, patient_id=[f"P{row // 2 % 4}{row % 2}" for row in range(cases)]
    )


def with_follow_up(cases=16):
    """Makes a cohort of a label and of days with an event, either of which may be given; and its days."""
    rng = np.random.default_rng(cases)
    days = rng.exponential(100, cases).round() + 1
    died = (np.arange(cases) // 2 % 2).astype(float)
    images = {name: Arrays(rng.normal(size=(cases, 8, 8, 1)).astype(np.float32)) for name in ("pet", "ct")}

    def made(label=None, time=None):
        return Cohort.from_arrays(
            images,
            label=np.arange(cases) % 2 if label is None else label,
            table=pd.DataFrame({"days": days if time is None else time, "died": died}),
            roles={"days": "time", "died": "event"},
        )

    return made, days


class Asked(NamedTuple):
    """What a search was asked for."""

    cohort: Cohort
    first: Any
    second: Any
    batch_size: int


class Stopped(Exception):
    """What stands in for a search."""


def asked_for(monkeypatch, cohort, arguments, folder, *, split=None, **keywords):
    """The search that a recipe comes to, which is not run."""
    found = []

    def search(_net, ready, first, second, *, batch_size, **_):
        found.append(Asked(ready, first, second, batch_size))
        raise Stopped

    monkeypatch.setattr(importlib.import_module("fusion_jax.nas.search"), "search", search)
    split = split or Split(0, 0, tuple(cohort.case_id), (), ())
    with pytest.raises(Stopped):
        make_recipe("mm-nas", {**SEARCHED, **arguments}).find(cohort, split, run_key(0), folder, **keywords)
    return found[0]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    cohort, folder = two_images(), tmp_path_factory.mktemp("searched")
    split = k_fold(cohort, 2, seed=0).splits[0]
    run_split(make_recipe("mm-nas", SEARCHED), cohort, split, seed=0, folder=folder, model="searched")
    return cohort, split, folder


def test_a_search_sees_halves_of_the_training_patients_and_nobody_else(searched):
    cohort, split, folder = searched
    halves = json.loads((folder / "search" / "genotype.json").read_text())["facts"]["record"]["halves"]
    patient = dict(zip(cohort.case_id, cohort.patient_id.tolist(), strict=True))
    first, second = (set(part) for part in halves)
    assert first | second == set(split.train)
    assert not {patient[case] for case in first} & {patient[case] for case in second}
    assert len(first) == len(second) == len(split.train) // 2


def test_a_gap_in_the_columns_of_another_task_refuses_no_search(monkeypatch, tmp_path):
    made, days = with_follow_up()
    label = (np.arange(16) % 2).tolist()
    no_time = made(time=np.where(np.arange(16) == 3, np.nan, days))
    no_label = made(label=[None if row == 3 else code for row, code in enumerate(label)])
    rare = made(label=[2 if row == 3 else code for row, code in enumerate(label)])
    for task, cohort in (("label", no_time), ("survival", no_label), ("survival", rare)):
        asked = asked_for(monkeypatch, cohort, {"task": task}, tmp_path)
        batch = paired_batches(asked.cohort, asked.first, asked.second, 8, (0,)).at(0).train
        assert set(batch.target) == ({"label"} if task == "label" else {"time", "event"})


def test_halves_of_survival_are_alike_in_their_events_whatever_the_label(monkeypatch, tmp_path):
    made, _ = with_follow_up()
    halves = []
    for shift in range(2):
        cohort = made(label=(np.arange(16) + shift) // 4 % 2)
        asked = asked_for(monkeypatch, cohort, {"task": "survival"}, tmp_path)
        halves.append([part.tolist() for part in (asked.first, asked.second)])
        events = [cohort.table["died"].iloc[part].sum() for part in halves[0]]
        assert events == [4, 4]
    assert halves[0] == halves[1]


def test_a_step_ranks_the_risks_of_many_cases_and_takes_four_where_classes_are_predicted(monkeypatch, tmp_path):
    default: dict[str, Any] = {"search_batch_size": None}
    cohort = with_follow_up(24)[0]()
    split = Split(0, 0, tuple(cohort.case_id[:18]), (), ())
    sizes = [
        asked_for(monkeypatch, cohort, {**changes, "task": task}, tmp_path, split=split).batch_size
        for task, changes in (("label", default), ("survival", default), ("survival", {"search_batch_size": 3}))
    ]
    assert sizes == [4, 9, 3]
    recipe: Any = make_recipe("mm-nas", {**SEARCHED, **default, "task": "survival"})
    assert "12 cases, remat" in recipe.memory(cohort)
    assert "9 cases, remat" in recipe.memory(cohort, cases=18)
    assert "64 cases, remat" in recipe.memory(with_follow_up(200)[0]())


def test_a_batch_without_risks_to_rank_is_neither_taken_nor_suggested(monkeypatch, tmp_path):
    cohort = with_follow_up(200)[0]()
    recipe: Any = make_recipe("mm-nas", {**SEARCHED, "search_batch_size": 1, "task": "survival"})
    with pytest.raises(ValueError, match=r"takes 1 case, and survival is predicted; .*Leave search_batch_size out"):
        recipe.find(cohort, Split(0, 0, tuple(cohort.case_id), (), ()), run_key(0), tmp_path)
    real = memory.check_memory

    def tight(net, shape, batch_size, order, **least):
        needed = memory.memory_estimate(net, shape, batch_size, order).total
        return real(net, shape, batch_size, order, available=needed, **least)

    monkeypatch.setattr(memory, "check_memory", tight)
    for task, offered in (("survival", {"8", "32"}), ("label", {"1", "2"})):
        recipe = make_recipe("mm-nas", {**SEARCHED, "channels": 16, "search_batch_size": None, "task": task})
        with pytest.raises(ValueError, match="These would fit") as caught:
            recipe.memory(cohort)
        assert set(re.findall(r"batches of (\d+)", str(caught.value))) == offered


def test_the_network_that_predicts_is_that_of_the_cells_that_were_found(searched):
    cohort, split, folder = searched
    found = read_genotype(folder / "genotype.json")
    chosen = json.loads((folder / "chosen" / "recipe.json").read_text())
    assert chosen["arguments"]["genotype"] == json.loads(json.dumps(genotype_to_json(found)))
    facts = json.loads((folder / "recipe.json").read_text())["facts"]
    assert facts["search"]["control"] == "search"
    assert facts["search"]["epochs"] == 2
    rows = split.rows(cohort).test
    scores = make_recipe("mm-nas", SEARCHED).predict(folder, cohort, rows)
    assert scores.shape == (len(rows), 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert not list(folder.rglob("checkpoints"))


def test_random_cells_are_drawn_by_the_key_and_not_searched(tmp_path):
    import jax

    cohort = two_images()
    split = k_fold(cohort, 2, seed=0).splits[0]
    recipe = make_recipe("mm-nas", {**SEARCHED, "nodes": 3, "control": "random"})
    found = [recipe.find(cohort, split, jax.random.key(k), tmp_path / str(n)) for n, k in enumerate((0, 0, 1))]
    assert found[0].genotype == found[1].genotype != found[2].genotype
    assert found[0].facts == {"control": "random"}
    assert not (tmp_path / "0" / "architecture.jsonl").exists()


def test_a_genotype_file_is_a_recipe_with_the_settings_of_its_search(tmp_path, searched):
    path = tmp_path / "cells.json"
    record = {"sources": ["pet", "ct"], "network": {"layout": "N", "channels": 2, "head": []}}
    write_genotype(path, CELLS, {"record": record})
    name, arguments = resolved(f"genotype:{path}", {"epochs": 3, "settings": {"channels": 5}})
    assert name == "genotype"
    assert arguments["inputs"] == ["pet", "ct"]
    assert arguments["settings"] == {"layout": "N", "channels": 5, "head": []}
    recipe = make_recipe(f"genotype:{path}", {"epochs": 3})
    path.unlink()  # the recipe holds the cells itself
    assert make_recipe(recipe.name, recipe.arguments()).arguments() == recipe.arguments()
    found = of_genotype_file(searched[2] / "genotype.json")
    assert found["settings"]["channels"] == SEARCHED["derived_channels"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("genotype", {}, "genotype is None; expected given with the recipe 'genotype' alone"),
        ("concatenate", {"genotype": {}}, "given with the recipe 'genotype' alone"),
        ("mm-nas", {"layout": "RN"}, "layout is 'RN'; expected N for normal"),
        ("mm-nas", {"space": ["conv9"]}, "no operation 'conv9'; expected some of none, skip"),
        ("mm-nas", {"space": "wide"}, "space is 'wide'; expected standard or darts"),
        ("mm-nas", {"nodes": 0}, "nodes is 0; expected at least 1"),
        ("mm-nas", {"stem_stride": 0}, "stem_stride is 0; expected at least 1"),
        ("mm-nas", {"stem_multiplier": 0}, "stem_multiplier is 0; expected at least 1"),
        ("mm-nas", {"retrain": {"epoch": 3}}, r"'mm-nas', retrain: recipe 'genotype': no argument 'epoch'; .*'epochs'"),
        ("mm-nas", {"retrain": {"epochs": 0}}, "'mm-nas', retrain: .*epochs is 0; expected at least 1"),
        (
            "mm-nas",
            {"collapse": "eigenvalue", "eigenvalue_every": 2},
            "eigenvalue_every is 2 of 15 search_epochs.* expected 10 measurements or more",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(name, arguments)


def test_an_argument_of_the_retraining_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"'mm-nas', retrain: recipe 'genotype': epochs is 'many'"):
        make_recipe("mm-nas", {"retrain": {"epochs": "many"}})


@pytest.mark.parametrize("source", ["ct", "clinical"])
def test_a_source_that_no_case_has_is_named(tmp_path, source):
    cohort = two_images()
    cohort = dataclasses.replace(cohort, present={**cohort.present, source: np.zeros(len(cohort), bool)})
    recipe: Any = make_recipe("mm-nas", SEARCHED)
    with pytest.raises(ValueError, match=f"no training case has '{source}'; expected at least one"):
        recipe.find(cohort, Split(0, 0, tuple(cohort.case_id), (), ()), run_key(0), tmp_path)


def test_a_genotype_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cells\.json: no such file"):
        make_recipe(f"genotype:{tmp_path / 'cells.json'}")


def test_images_of_several_shapes_are_refused_before_anything_is_compiled(tmp_path):
    cohort = two_images(sizes=(8, 6))
    split = k_fold(cohort, 2, seed=0).splits[0]
    with pytest.raises(ValueError, match=r"several shapes: pet \(8, 8, 1\), ct \(6, 6, 1\); expected one"):
        run_split(make_recipe("mm-nas", SEARCHED), cohort, split, seed=0, folder=tmp_path, model="searched")
    with pytest.raises(ValueError, match="none among age; expected at least one"):
        network_sources({"age": (3,)})
