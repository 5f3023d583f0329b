"""Detection functions against torchvision. Needs .venv-peers, and torchvision in a folder of its own inside it."""

import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion_jax.detection.anchors import Anchors, anchors_per_level, make_anchors
from fusion_jax.detection.losses import (
    box_regression_loss,
    classification_loss,
    focal_loss,
    giou_loss,
    l1_loss,
    objectness_loss,
)
from fusion_jax.detection.matching import match
from fusion_jax.detection.postprocessing import postprocess, postprocess_anchors
from fusion_jax.detection.proposals import Proposals, add_truth, propose
from fusion_jax.ops import decode_boxes, encode_boxes, roi_align
from tests.helpers import ROOT, assert_close

PEERS = ROOT / ".venv-peers"
SCRIPT = Path(__file__).with_name("torch_detection.py")
INSTALL = f"{PEERS.name}/bin/python -m pip install --no-deps --target {PEERS.name}/torchvision torchvision==0.28.0"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.checkout,
    pytest.mark.skipif(not (PEERS / "torchvision").is_dir(), reason=f"no torchvision; `make peers`, then `{INSTALL}`"),
]

IMAGE, IMAGES = (192, 256), 2
DESIGN = Anchors(((24.0, 40.0), (64.0, 96.0)), (0.5, 1.0, 2.0), (16, 32))
LEVELS = anchors_per_level(DESIGN, *IMAGE)
ANCHORS = make_anchors(DESIGN, *IMAGE)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    out = tmp_path_factory.mktemp("peer") / "peer.safetensors"
    command = [str(part) for part in (PEERS / "bin" / "python", SCRIPT, out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out)


def padded_truth(peer):
    """Boxes, 0-based labels and what is valid, of both images, three places each."""
    boxes, labels = np.zeros((IMAGES, 3, 4), np.float32), np.zeros((IMAGES, 3), np.int32)
    valid = np.zeros((IMAGES, 3), bool)
    for image in range(IMAGES):
        count = len(peer[f"truth_{image}"])
        boxes[image, :count], labels[image, :count] = peer[f"truth_{image}"], peer[f"labels_{image}"]
        valid[image, :count] = True
    return boxes, labels, valid


def matched_by(truth, valid, **settings):
    return jax.jit(jax.vmap(partial(match, ANCHORS, **settings)))(truth, valid)


def test_anchors_are_the_same(peer):
    np.testing.assert_array_equal(ANCHORS, peer["anchors"])


def test_anchors_match_the_same_boxes(peer):
    truth, _, valid = padded_truth(peer)
    found = matched_by(truth, valid, foreground=0.7, background=0.3, low_quality=True)
    for image in range(IMAGES):
        expected = peer[f"matched_{image}"]
        assert (expected >= 0).sum() >= 2
        np.testing.assert_array_equal(found.positive[image], expected >= 0)
        np.testing.assert_array_equal(found.negative[image], expected == -1)
        positive = expected >= 0
        np.testing.assert_array_equal(found.row[image][positive], expected[positive])


def test_losses_of_the_first_stage_are_the_same(peer):
    truth, _, valid = padded_truth(peer)
    found = matched_by(truth, valid, foreground=0.7, background=0.3, low_quality=True)
    targets = encode_boxes(
        np.take_along_axis(truth, np.asarray(found.row)[..., None], axis=1), jnp.stack([ANCHORS] * 2)
    )
    sampled = found.positive | found.negative
    assert_close(objectness_loss(peer["objectness"], found.positive, sampled), peer["objectness_loss"])
    boxes = box_regression_loss(peer["deltas"], targets, found.positive, sampled)
    assert_close(boxes, peer["proposal_boxes_loss"])


@pytest.mark.parametrize(("name", "before", "after"), [("proposals", 200, 120), ("inferred", 150, 60)])
def test_proposals_are_the_same(peer, name, before, after):
    settings = {"levels": LEVELS, "before": before, "after": after, "overlap": 0.3}
    function = jax.jit(partial(propose, image_size=IMAGE, **settings))
    for image in range(IMAGES):
        found, expected = function(peer["objectness"][image], peer["deltas"][image], ANCHORS), peer[f"{name}_{image}"]
        assert int(found.valid.sum()) == len(expected)
        assert len(expected) > 40
        assert_close(found.boxes[: len(expected)], expected, 1e-5)


def test_second_stage_learns_from_the_same_proposals_with_the_same_losses(peer):
    truth, labels, valid = padded_truth(peer)
    count = [len(peer[f"chosen_{image}"]) for image in range(IMAGES)]
    logits = np.split(peer["class_logits"], np.cumsum(count)[:-1])
    deltas = np.split(peer["box_deltas"].reshape(sum(count), -1, 4), np.cumsum(count)[:-1])
    parts = []
    for image in range(IMAGES):
        boxes = peer[f"proposals_{image}"]
        proposals = Proposals(jnp.asarray(boxes), jnp.zeros(len(boxes)), jnp.ones(len(boxes), bool))
        proposals = add_truth(proposals, truth[image], valid[image])
        there = np.asarray(proposals.valid)
        np.testing.assert_array_equal(np.asarray(proposals.boxes)[there], peer[f"chosen_{image}"])
        found = match(
            proposals.boxes,
            truth[image],
            valid[image],
            foreground=0.5,
            background=0.5,
            low_quality=False,
            valid=proposals.valid,
        )
        own = np.where(found.positive, labels[image][np.asarray(found.row)] + 1, 0)[there]
        np.testing.assert_array_equal(own, peer[f"chosen_labels_{image}"])
        target = encode_boxes(truth[image][np.asarray(found.row)], proposals.boxes, weights=(10.0, 10.0, 5.0, 5.0))
        picked = np.take_along_axis(deltas[image], own[:, None, None].repeat(4, axis=2), axis=1)[:, 0]
        parts.append((logits[image], own, picked, np.asarray(target)[there], np.asarray(found.positive)[there]))
    logits, own, picked, target, positive = (np.concatenate(part) for part in zip(*parts, strict=True))
    everything = np.ones(len(own), bool)
    assert_close(classification_loss(logits, own.astype(np.int32), everything), peer["classes_loss"])
    assert_close(box_regression_loss(picked, target, positive, everything), peer["boxes_loss"])


def check_found(found, boxes, scores, labels):
    count = len(boxes)
    assert int(found.valid.sum()) == count > 3
    assert_close(found.boxes[:count], boxes, 1e-5)
    assert_close(found.score[:count], scores, 1e-5)
    np.testing.assert_array_equal(found.label[:count], labels)


def test_detections_of_two_stages_are_the_same(peer):
    start = 0
    for image in range(IMAGES):
        boxes = jnp.asarray(peer[f"chosen_{image}"])
        own = slice(start, start + len(boxes))
        proposals = Proposals(boxes, jnp.zeros(len(boxes)), jnp.ones(len(boxes), bool))
        deltas = peer["box_deltas"][own].reshape(len(boxes), -1, 4)
        found = postprocess(peer["class_logits"][own], deltas, proposals, IMAGE)
        names = (f"found_{part}_{image}" for part in ("boxes", "scores", "labels"))
        expected = [peer[name] for name in names]
        check_found(found, expected[0], expected[1], expected[2] - 1)
        start += len(boxes)


def test_losses_of_one_stage_are_the_same(peer):
    truth, labels, valid = padded_truth(peer)
    found = matched_by(truth, valid, foreground=0.5, background=0.4, low_quality=True)
    row = np.asarray(found.row)
    counts = found.positive | found.negative
    loss = focal_loss(peer["logits"], np.take_along_axis(labels, row, axis=1), found.positive, counts)
    assert_close(loss, peer["focal_loss"])
    matched, anchors = np.take_along_axis(truth, row[..., None], axis=1), jnp.stack([ANCHORS] * IMAGES)
    loss = l1_loss(peer["deltas"], encode_boxes(matched, anchors), found.positive, counts)
    assert_close(loss, peer["l1_loss"])
    loss = giou_loss(decode_boxes(peer["deltas"], anchors), matched, found.positive, counts)
    assert_close(loss, peer["giou_loss"])


def test_detections_of_one_stage_are_the_same(peer):
    function = jax.jit(partial(postprocess_anchors, image_size=IMAGE, levels=LEVELS, before=300, size=20))
    for image in range(IMAGES):
        found = function(peer["logits"][image], peer["deltas"][image], ANCHORS)
        check_found(found, *(peer[f"one_stage_{part}_{image}"] for part in ("boxes", "scores", "labels")))


def test_features_of_regions_are_the_same(peer):
    maps = np.moveaxis(peer["maps"][1], 0, -1)
    found = roi_align(maps, peer["rois"], scale=1 / 16)
    assert_close(found, np.moveaxis(peer["aligned"], 1, -1), 1e-5)
