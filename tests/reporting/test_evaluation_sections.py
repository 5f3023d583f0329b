"""What the sections of an evaluation say where nothing is said by a test of the whole command."""

import math
from types import SimpleNamespace

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation, Survival
from fusion_jax.evaluation.operating import READ_OFF
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.subgroups import Cell
from fusion_jax.reporting.evaluation.decisions import _of_models
from fusion_jax.reporting.evaluation.spread import _subgroup_table
from fusion_jax.reporting.evaluation.survival import survival_summary

CELL = Cell(
    model="image", column="sex", value="female", metric="auc", rule="", rows=60, events=20, patients=None,
    estimate=0.8, low=0.7, high=0.9, difference=math.nan, difference_low=math.nan, difference_high=math.nan,
    withheld="",
)  # fmt: skip


def evaluation(**fields):
    """An evaluation that holds nothing else."""
    empty = {**dict.fromkeys(Evaluation._fields), "view": SimpleNamespace(models=("image", "fused"))}
    return Evaluation(**(empty | {"benefits": (), "protocol": Protocol()} | fields))


def test_a_survival_summary_gives_every_model_its_concordance():
    ends = SimpleNamespace(harrell=SimpleNamespace(low=np.array([0.5, 0.6]), high=np.array([0.7, 0.8])))
    comparison = SimpleNamespace(estimates=SimpleNamespace(harrell=np.array([0.6, 0.7])), intervals=ends)
    survival = Survival(comparison, np.array([1.0]), {}, ())
    found = evaluation(survival=survival)
    assert survival_summary(found) == ("Harrell's C: image 0.600 [0.500, 0.700]; fused 0.700 [0.600, 0.800].",)
    assert survival_summary(evaluation()) == ()


def test_models_stand_side_by_side_in_the_table_of_subgroups():
    fused = CELL._replace(model="fused", estimate=0.85, difference=0.05, difference_low=-0.02, difference_high=0.12)
    small = CELL._replace(value="male", withheld="fewer than 20 rows", rows=-1, events=-1)
    read_off = CELL._replace(metric="sensitivity", rule=READ_OFF)
    table = _subgroup_table(evaluation(cells=(CELL, fused, small, small._replace(model="fused"), read_off)))
    assert table.columns == ("column", "part", "rows", "events", "figure", "image", "fused")
    assert [tuple(map(str, row)) for row in table.rows] == [
        ("sex", "female", "60", "20", "AUC", "0.800 [0.700, 0.900]", "0.850 [0.700, 0.900]"),
        ("sex", "female", "60", "20", "AUC less that of image", "–", "+0.050 [−0.020, +0.120]"),
        ("sex", "male", "–", "–", "AUC", "withheld: fewer than 20 rows", "withheld: fewer than 20 rows"),
    ]


def test_notes_of_one_text_name_their_models_together():
    notes = ["image: few rows: 6.", "fused: few rows: 6.", "fused: steep.", "No recalibration was tried: none."]
    told = ["image, fused: few rows: 6.", "fused: steep.", "No recalibration was tried: none."]
    assert _of_models(notes, ("image", "fused")) == told
