"""Two stages with clinical data: padding, absence, degenerate fusion, and what inference may read."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch
from fusion_jax.detection.detector import make_detector
from fusion_jax.detection.losses import summed
from fusion_jax.detection.mask_rcnn import box_masks
from tests.helpers import assert_close

_spec = importlib.util.spec_from_file_location("tiny_detectors", Path(__file__).with_name("tiny_detectors.py"))
tiny_detectors = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_detectors)
tiny, batch_of, quickly = tiny_detectors.tiny, tiny_detectors.batch_of, tiny_detectors.quickly
random_variables = tiny_detectors.random_variables

KEY = jax.random.key(3)
CONFIG = tiny()


class Trained:
    """The compiled training pass of the tiny MDF-Net, and how often it was traced."""

    def __init__(self, config):
        self.detector = make_detector(config)
        self.batch = batch_of(rows=3)
        self.variables = random_variables(self.detector, self.batch)
        self.traces = 0
        objective = summed(config.loss_names)

        def loss(params, variables, batch, key):
            self.traces += 1
            outputs, moved = self.detector.model.apply({**variables, "params": params}, batch, train=True, key=key)
            return objective.loss({}, outputs, batch)[0], (outputs, moved["batch_stats"])

        self.run = quickly(jax.value_and_grad(loss, has_aux=True))

    def __call__(self, batch, key=KEY, params=None):
        params = self.variables["params"] if params is None else params
        (_, (outputs, statistics)), slopes = self.run(params, self.variables, batch, key)
        return outputs, statistics, slopes


# The second trunk doubles the program; what holds with it is among the slow tests.
@pytest.fixture(scope="module", params=["repeat", pytest.param("blocks", marks=pytest.mark.slow)])
def trained(request):
    return Trained(tiny(spatialise=request.param))


@pytest.fixture(scope="module")
def found():
    """The compiled inference of the tiny MDF-Net: `found(batch, variables) -> (outputs, stages)`."""
    detector, batch = make_detector(CONFIG), batch_of(rows=3)
    variables = random_variables(detector, batch)

    @quickly
    def run(variables, batch):
        return detector.model.apply(variables, batch, train=False)[0], detector.stages(variables, batch)

    def ask(batch=batch, variables=variables):
        return run(variables, batch._replace(target={}))

    told: Any = ask
    told.batch, told.variables, told.detector = batch, variables, detector
    return told


def rows(tree, order):
    return jax.tree.map(lambda a: a[np.asarray(order)], tree)


def changed(batch, *, valid=None, clinical=None, **target):
    present = dict(batch.present)
    if clinical is not None:
        present["clinical"] = np.asarray(clinical)
    return batch._replace(
        valid=batch.valid if valid is None else np.asarray(valid),
        present=present,
        target={**batch.target, **target},
    )


# Training.


def test_there_are_five_losses_and_all_of_them_count(trained):
    outputs, _, slopes = trained(trained.batch)
    assert set(outputs.losses) == {"objectness", "proposal_boxes", "classes", "boxes", "masks"}
    assert outputs.detections is None
    assert all(float(loss) > 0 for loss in outputs.losses.values())
    for name, part in slopes["maps"].items():
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part)), f"no gradient reaches {name}"


def test_padded_boxes_hold_anything(trained):
    batch = trained.batch
    valid = np.array([[True, False], [True, True], [True, False]])
    padded = changed(batch, box_valid=valid)
    junk = np.where(valid[:, :, None], batch.target["boxes"], np.float32(np.nan))
    assert_close(trained(changed(padded, boxes=junk)), trained(padded), 0)


def test_padded_rows_hold_anything(trained):
    batch = changed(trained.batch, valid=[True, True, False])
    image = batch.inputs["image"].copy()
    image[2] = np.nan
    clinical = batch.inputs["clinical"].copy()
    clinical[2] = 1e6
    junk = batch._replace(inputs={"image": image, "clinical": clinical})
    junk = changed(junk, boxes=batch.target["boxes"] * np.array([1, 1, 0.3], np.float32)[:, None, None])
    expected, ours = trained(batch), trained(junk)
    for features in (expected[0].features, ours[0].features):
        for name in features:
            features[name] = features[name][:2]
    assert_close(ours, expected, 0)


def test_losses_are_those_of_the_cases_without_padding(trained):
    """Two rows and padding weigh as two rows alone: the losses of one row and two differ."""
    two = trained(changed(trained.batch, valid=[True, True, False]))[0].losses
    three = trained(trained.batch)[0].losses
    assert all(abs(float(two[name] - three[name])) > 1e-6 for name in two)
    doubled = trained(rows(trained.batch, [0, 1, 1])._replace(valid=np.array([True, True, False])))[0].losses
    assert_close(doubled, two, 0)


def test_what_is_drawn_follows_the_case_and_not_its_place(trained):
    order = [2, 0, 1]
    assert_close(trained(rows(trained.batch, order))[0].losses, trained(trained.batch)[0].losses, 1e-5)
    other = trained(trained.batch._replace(index=np.array([7, 8, 9], np.int32)))[0].losses
    assert float(other["objectness"]) != float(trained(trained.batch)[0].losses["objectness"])


def test_gradients_are_finite_without_any_box(trained):
    outputs, statistics, slopes = trained(changed(trained.batch, box_valid=np.zeros((3, 2), bool)))
    assert [float(outputs.losses[name]) for name in ("proposal_boxes", "boxes", "masks")] == [0, 0, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs.losses, statistics, slopes)))


def test_a_batch_of_padding_teaches_nothing(trained):
    outputs, statistics, slopes = trained(changed(trained.batch, valid=[False] * 3))
    assert [float(loss) for loss in outputs.losses.values()] == [0] * 5
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes))
    assert_close(statistics, trained.variables["batch_stats"], 0)


def test_absent_clinical_data_moves_no_clinical_statistics(trained):
    none = trained(changed(trained.batch, clinical=[False] * 3))
    before = trained.variables["batch_stats"]["maps"]
    for name in {"spatialise", "clinical_trunk"} & set(before):
        assert_close(none[1]["maps"][name], before[name], 0)
    assert float(jnp.abs(none[1]["maps"]["image_trunk"]["halving_2"]["bn1"]["mean"]).max()) > 0
    junk = trained.batch.inputs["clinical"] * np.float32(np.nan)
    batch = changed(trained.batch, clinical=[False] * 3)
    assert_close(trained(batch._replace(inputs={**batch.inputs, "clinical": junk})), none, 0)


@pytest.mark.parametrize("label", [0, 1])
def test_class_j_is_answer_j_plus_1(trained, label):
    """A head that always answers with one class, and with its masks full, is right where the truth is that class."""
    batch = changed(trained.batch, classes=np.full((3, 2), label, np.int32))
    losses = []
    for answer in (1, 2):
        params = jax.tree.map(np.array, trained.variables["params"])
        for part, name in (("box_predictor", "classes"), ("mask_predictor", "logits")):
            params[part][name]["kernel"][:] = 0
            params[part][name]["bias"][:] = np.where(np.arange(3) == answer, 5, 0)
        losses.append(trained(batch, params=params)[0].losses)
    right, wrong = losses[label], losses[1 - label]
    assert float(right["classes"]) < float(wrong["classes"])
    assert float(wrong["masks"]) == pytest.approx(np.log(2), rel=1e-5)
    assert float(right["masks"]) != pytest.approx(np.log(2), rel=1e-2)


def test_one_program_serves_every_batch_of_a_shape(trained):
    trained(trained.batch)
    traces = trained.traces
    trained(changed(batch_of(rows=3, seed=9), valid=[True, False, True]), jax.random.key(8))
    assert trained.traces == traces


# Inference.


def test_inference_reads_no_target(found):
    class Untouchable(dict):
        def __getitem__(self, name):
            raise AssertionError(f"inference read {name!r} of the target")

    for name in ("get", "keys", "items", "values", "__iter__"):
        setattr(Untouchable, name, Untouchable.__getitem__)
    batch = found.batch
    target = Untouchable(batch.target)
    outputs = jax.eval_shape(
        lambda variables, inputs: found.detector.model.apply(
            variables, Batch(inputs, target, batch.valid, batch.present, batch.index), train=False
        )[0],
        found.variables,
        dict(batch.inputs),
    )
    assert outputs.losses == {}
    assert outputs.masks.shape == (3, 4, 28, 28)


def test_swapping_the_clinical_data_of_two_patients_swaps_what_is_found(found):
    batch, order = found.batch, [1, 0, 2]
    same_image = np.broadcast_to(batch.inputs["image"][:1], batch.inputs["image"].shape)
    first = batch._replace(inputs={**batch.inputs, "image": same_image})
    second = first._replace(inputs={**first.inputs, "clinical": batch.inputs["clinical"][order]})
    one, other = found(first)[0], found(second)[0]
    assert one.detections.valid.any(axis=1).all()
    assert np.abs(np.asarray(one.detections.score[0] - one.detections.score[1])).max() > 1e-4
    assert_close(other, rows(one, order), 1e-5)


def test_padding_and_rows_without_an_image_find_nothing(found):
    batch = found.batch
    absent = batch._replace(
        valid=np.array([True, False, True]), present={**batch.present, "image": np.array([True, True, False])}
    )
    outputs, stages = found(absent)
    assert outputs.detections.valid.any(axis=1).tolist() == [True, False, False]
    assert stages.proposals.valid.any(axis=1).tolist() == [True, False, False]
    assert not np.asarray(outputs.masks[1:]).any()
    assert_close(rows(outputs.detections, [0]), rows(found()[0].detections, [0]), 1e-5)


def test_without_clinical_data_the_map_of_the_image_is_all_there_is(found):
    outputs, stages = found(changed(found.batch, clinical=[True, False, True]))
    assert_close(stages.maps["fused"][1], stages.maps["image"][1], 0)
    assert not np.asarray(stages.maps["clinical"][1]).any()
    assert not np.asarray(outputs.features["clinical"][1]).any()
    assert np.abs(np.asarray(stages.maps["fused"][0] - stages.maps["image"][0])).max() > 1e-3


def silenced(variables):
    """The last norm of the clinical trunk at zero, as are the weights that the box head has for the vector."""
    variables = jax.tree.map(np.array, variables)
    last = variables["params"]["maps"]["clinical_trunk"]["halving_4"]["bn2"]
    last["scale"][:] = 0
    last["bias"][:] = 0
    variables["params"]["maps"]["clinical_neck"]["conv"]["bias"][:] = 0
    variables["params"]["box_head"]["fc6"]["kernel"][-CONFIG.clinical_width :] = 0
    return variables


def test_a_silenced_clinical_path_leaves_the_baseline(found):
    variables = silenced(found.variables)
    outputs, stages = found(variables=variables)
    assert_close(stages.maps["fused"], stages.maps["image"], 0)
    baseline = make_detector(tiny("mask-rcnn"))
    own = jax.eval_shape(baseline.model.init, jax.random.key(0), found.batch)

    def part(shapes, values):
        if isinstance(shapes, dict):
            return {name: part(shapes[name], values[name]) for name in shapes}
        return values[tuple(slice(size) for size in shapes.shape)]

    def alone(variables, batch):
        return baseline.model.apply(variables, batch, train=False)[0]

    batch = found.batch._replace(target={})
    expected = quickly(alone)(part(own, variables), batch)
    assert expected.detections.valid.any(axis=1).all()
    assert_close((outputs.detections, outputs.masks), (expected.detections, expected.masks), 1e-5)
    assert list(expected.features) == ["image"]


def test_masks_are_those_of_the_own_class(found):
    variables = jax.tree.map(np.array, found.variables)
    last = variables["params"]["mask_predictor"]["logits"]
    last["kernel"][:] = 0
    last["bias"][:] = [9, -9, 0]
    # Both classes are found: the head answers with neither of them surely.
    outputs, _ = found(variables=variables)
    labels = np.asarray(outputs.detections.label)
    assert set(labels.ravel()) == {0, 1}
    expected = np.where(labels == 0, 1 / (1 + np.exp(9)), 0.5)
    assert_close(outputs.masks, np.broadcast_to(expected[:, :, None, None], outputs.masks.shape), 1e-5)


def test_stages_are_those_of_the_detections(found):
    outputs, stages = found()
    assert_close((stages.detections, stages.masks), (outputs.detections, outputs.masks), 0)
    assert stages.spatialised.shape == (3, 32, 32, 3)
    assert {name: one.shape for name, one in stages.maps.items()} == dict.fromkeys(
        ("image", "clinical", "fused"), (3, 8, 8, 8)
    )
    assert stages.proposals.boxes.shape == (3, 8, 4)
    pooled = {name: jnp.mean(stages.maps[name], axis=(1, 2)) for name in ("image", "clinical")}
    assert_close(outputs.features, pooled, 1e-5)


# Masks of boxes.


def test_masks_cover_what_the_box_covers():
    regions = np.array([[0, 0, 8, 4], [0, 0, 8, 4], [10, 10, 12, 12], [3, 3, 3, 3]], np.float32)
    truth = np.array([[0, 0, 8, 4], [2, 1, 6, 4], [0, 0, 8, 8], [0, 0, 9, 9]], np.float32)
    whole, part, outside, empty = np.asarray(quickly(partial(box_masks, size=4))(truth, regions))
    assert whole.tolist() == [[1.0] * 4] * 4
    assert part.tolist() == [[0.0] * 4, *[[0.0, 1.0, 1.0, 0.0]] * 3]
    assert not outside.any()
    assert not empty.any()


def test_masks_hold_the_area_of_the_overlap():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (50, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (50, 2, 2))], axis=2).astype(np.float32)
    truth, regions = boxes[:, 0], boxes[:, 1]
    extent = np.minimum(truth[:, 2:], regions[:, 2:]) - np.maximum(truth[:, :2], regions[:, :2])
    area = np.prod(np.maximum(extent, 0), axis=1) / np.prod(regions[:, 2:] - regions[:, :2], axis=1)
    masks = np.asarray(quickly(partial(box_masks, size=28))(truth, regions))
    assert_close(masks.mean(axis=(1, 2)), area, 1e-5)


# Slow: other settings, each a program of its own.


@pytest.mark.slow
def test_computing_blocks_again_changes_no_number(trained):
    again = Trained(dataclasses.replace(trained.detector.config, remat=True))
    assert_close(again(again.batch), trained(trained.batch), 1e-5)


@pytest.mark.slow
def test_images_share_the_places_for_masks():
    """The two positives of the only image with boxes fit into three places of three images, one each."""
    batch = batch_of(rows=3)
    batch = changed(batch, box_valid=np.array([[False] * 2, [True] * 2, [False] * 2]))
    found = []
    for places in (1, 2):
        detector = make_detector(tiny("mask-rcnn", mask_rois=places))
        found.append(quickly(detector.losses)(random_variables(detector, batch), batch, KEY))
    assert float(found[0]["masks"]) > 0
    assert_close(*found, 1e-5)


@pytest.mark.slow
def test_half_precision_stays_close(trained):
    half = Trained(dataclasses.replace(trained.detector.config, dtype="bfloat16"))
    outputs, statistics, slopes = half(half.batch)
    leaves = jax.tree.leaves((outputs, statistics, slopes))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    expected = trained(trained.batch)[0].losses
    for name, loss in outputs.losses.items():
        assert float(loss) == pytest.approx(float(expected[name]), rel=0.15, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"spatialise": "repeat", "fuse": "concatenate", "fuse_depth": 1, "masks": False},
        {"fuse": "gate", "fuse_depth": 2, "fuse_residual": True, "clinical_mlp": (8,)},
        {
            "pyramid": True,
            "anchors": {"sizes": [[8], [16], [32], [64]], "ratios": [0.5, 1], "strides": [8, 16, 32, 64]},
            "fuse": "film",
            "norm": "group",
            # The coarsest level has few anchors, and is read by the proposals alone: all of them are drawn.
            "rpn_batch": 512,
        },
        {"backbone": "resnet-18", "width": 0.0625, "levels": (), "numeric": 3},
    ],
)
def test_every_way_to_fuse_trains_and_finds(changes):
    one = Trained(tiny(**changes))
    if changes.get("norm") == "group":
        one.variables = {**one.variables, "batch_stats": {}}
    outputs, _, slopes = one(one.batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs.losses, slopes)))
    for name, part in slopes["maps"].items():
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part)), f"no gradient reaches {name}"
    detect = quickly(lambda variables, batch: one.detector.model.apply(variables, batch, train=False)[0])
    found = detect(one.variables, one.batch._replace(target={}))
    assert found.detections.valid.any()
    assert (found.masks is None) == (not one.detector.config.masks)
