"""Figures of trained models: every number that a reader needs stands in the text beside them."""

from pathlib import Path

import numpy as np
import pytest

from fusion_jax.models.analysis import Analysis, Training
from fusion_jax.reporting.comparison.figures import (
    Balance,
    Course,
    Heat,
    heat_figure,
    quality_figure,
    training_figure,
)
from fusion_jax.reporting.comparison.training import training_section
from fusion_jax.training.cross_validation import Task


def test_training_curves_say_where_they_begin_and_end():
    course = Course([np.array([0.7, 0.5, 0.3]), np.array([0.9, 0.7])], [np.array([0.5, 0.9, 0.8])], [1])
    figure = training_figure({"CNN": course, "MLP": Course([np.array([0.6])], [], [])}, metric="AUC", caption="Two.")
    assert figure.alt == (
        "Loss over epochs: CNN, from 0.800 to 0.500 in 3 epochs at most; MLP, from 0.600 to 0.600 in 1 epoch at most; "
        "AUC of validation cases at most 0.900."
    )
    assert figure.light != figure.dark
    with pytest.raises(ValueError, match="no models"):
        training_figure({}, metric="AUC", caption="")


def test_curves_without_validation_cases_promise_none():
    figure = training_figure({"CNN": Course([np.array([0.7, 0.5])], [], [])}, metric="AUC", caption="One.")
    assert "AUC" not in figure.alt


def test_maps_say_what_the_largest_patch_does():
    picture = np.zeros((8, 6, 1), np.uint8)
    loss = np.array([[0.2, -0.1], [0.0, 0.05]])
    figure = heat_figure([Heat("case_1, ct", "score 0.70", picture, loss)], caption="One case, qualitative.")
    assert "takes at most 0.200 from the score and adds at most 0.100" in figure.alt
    with pytest.raises(ValueError, match="no cases"):
        heat_figure([], caption="")


def test_a_map_of_colours_and_one_without_any_effect_are_drawn():
    colours = np.full((4, 4, 3), 128, np.uint8)
    figure = heat_figure([Heat("a", "b", colours, np.zeros((2, 2)))] * 3, caption="Three.")
    assert figure.alt.count("takes at most 0 from the score") == 3


def test_balance_stands_beside_the_metric():
    balances = [
        Balance("gated", np.array([0.1, 0.3]), np.array([0.7, 0.8])),
        Balance("add", np.array([0.0]), np.array([0.6])),
    ]
    figure = quality_figure(balances, xlabel="gap", ylabel="AUC", caption="Three trainings.")
    assert figure.alt == "gap and AUC, means: gated 0.200 with 0.750; add 0 with 0.600."
    with pytest.raises(ValueError, match="no models"):
        quality_figure([], xlabel="", ylabel="", caption="")


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        (
            {"loss": 0.5},
            "Loss on training cases of 1 training; without inner validation cases the last epoch was kept.",
        ),
        ({"loss": 0.5, "validation_auc": 0.7}, "the dot is the epoch that was kept."),
    ],
)
def test_the_caption_of_training_curves_says_what_is_drawn(line, caption):
    task = Task("gated", 0, 0, 0)
    training = Training(task, Path("gated"), {"best_epoch": 0}, (line, line))
    section = training_section(Analysis({"gated": (training,)}))
    assert section is not None
    assert caption in section.items[0].caption
