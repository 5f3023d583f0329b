"""One stage with clinical data: the same fusion as with two stages, and the same rules of padding and absence."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fusion_jax.detection.detector import make_detector
from fusion_jax.detection.losses import summed
from tests.helpers import assert_close

_spec = importlib.util.spec_from_file_location("tiny_detectors", Path(__file__).with_name("tiny_detectors.py"))
tiny_detectors = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_detectors)
tiny, batch_of, quickly = tiny_detectors.tiny, tiny_detectors.batch_of, tiny_detectors.quickly

KEY = jax.random.key(3)
CONFIG = tiny("retinanet-dual")


@pytest.fixture(scope="module")
def asked():
    """`asked(batch) -> (losses, outputs, stages)` of the tiny RetinaNet, in one program."""
    detector, batch = make_detector(CONFIG), batch_of(rows=3)
    variables = tiny_detectors.random_variables(detector, batch)

    @quickly
    def run(variables, batch):
        losses = detector.losses(variables, batch, KEY)
        inference = batch._replace(target={})
        return losses, detector.model.apply(variables, inference, train=False)[0], detector.stages(variables, inference)

    def ask(batch=batch):
        return run(variables, batch)

    told: Any = ask
    told.batch, told.variables, told.detector = batch, variables, detector
    return told


def test_there_are_two_losses_and_no_masks(asked):
    losses, outputs, stages = asked()
    assert set(losses) == set(CONFIG.loss_names) == {"classes", "boxes"}
    assert all(float(loss) > 0 for loss in losses.values())
    assert outputs.masks is None
    assert outputs.detections.boxes.shape == (3, 4, 4)
    assert_close(stages.detections, outputs.detections, 0)
    assert (np.diff(stages.proposals.score, axis=1) <= 0).all()


def test_padding_changes_nothing(asked):
    batch = asked.batch
    valid = np.array([[True, False], [True, True], [True, True]])
    padded = batch._replace(valid=np.array([True, True, False]), target={**batch.target, "box_valid": valid})
    losses, outputs, _ = asked(padded)
    image, boxes = batch.inputs["image"].copy(), batch.target["boxes"].copy()
    image[2], boxes[0, 1], boxes[2] = np.nan, np.nan, 3.0
    junk = padded._replace(inputs={**batch.inputs, "image": image}, target={**padded.target, "boxes": boxes})
    again, found, _ = asked(junk)
    assert_close((again, found.detections), (losses, outputs.detections), 0)
    assert not outputs.detections.valid[2].any()
    assert not np.asarray(outputs.detections.boxes[2]).any()


def test_no_box_costs_no_box_loss_and_scores_still_count(asked):
    batch = asked.batch
    losses, _, _ = asked(batch._replace(target={**batch.target, "box_valid": np.zeros((3, 2), bool)}))
    assert float(losses["boxes"]) == 0
    assert np.isfinite(losses["classes"])
    assert float(losses["classes"]) > 0


def test_swapping_clinical_data_swaps_what_is_found(asked):
    batch, order = asked.batch, np.array([1, 0, 2])
    image = np.broadcast_to(batch.inputs["image"][:1], batch.inputs["image"].shape)
    clinical = batch.inputs["clinical"]
    first = asked(batch._replace(inputs={"image": image, "clinical": clinical}))[1].detections
    second = asked(batch._replace(inputs={"image": image, "clinical": clinical[order]}))[1].detections
    assert np.abs(np.asarray(first.score[0] - first.score[1])).max() > 1e-4
    assert_close(second, jax.tree.map(lambda a: a[order], first), 1e-5)


def test_the_clinical_modules_are_those_of_two_stages(asked):
    """What fuses has the same modules and shapes; only what reads the fused maps differs."""
    two = make_detector(tiny("mdf-net"))
    other = jax.eval_shape(two.model.init, KEY, asked.batch)["params"]["maps"]
    own = asked.variables["params"]["maps"]
    assert jax.tree.map(lambda a: a.shape, own) == jax.tree.map(lambda a: a.shape, other)
    # Every cell of the map carries the vector: one-stage regions are cells.
    kernel = asked.variables["params"]["head"]["classes_conv_0"]["kernel"]
    assert kernel.shape[2] == CONFIG.channels + CONFIG.clinical_width


def test_without_clinical_data_the_map_is_that_of_the_image(asked):
    batch = asked.batch
    absent = batch._replace(present={**batch.present, "clinical": np.array([True, False, True])})
    _, outputs, stages = asked(absent)
    assert_close(stages.maps["fused"][1], stages.maps["image"][1], 0)
    assert not np.asarray(outputs.features["clinical"][1]).any()


@pytest.mark.slow
def test_gradients_reach_every_module_and_are_finite_without_boxes(asked):
    objective = summed(CONFIG.loss_names)

    def loss(params, batch):
        variables = {**asked.variables, "params": params}
        outputs, _ = asked.detector.model.apply(variables, batch, train=True, key=KEY)
        return objective.loss({}, outputs, batch)[0]

    slopes = quickly(jax.grad(loss))
    batch = asked.batch
    for valid in (True, False):
        target = {**batch.target, "box_valid": np.full((3, 2), valid)}
        found = slopes(asked.variables["params"], batch._replace(target=target))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        if valid:
            assert all(any(np.asarray(a).any() for a in jax.tree.leaves(part)) for part in found["maps"].values())
