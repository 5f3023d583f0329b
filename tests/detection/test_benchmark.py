"""The detector beside the same network in PyTorch: what the benchmark compares, and that the two agree."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import ROOT

# Not beside the installed wheel, where the mark below leaves these tests out.
detection = pytest.importorskip("benchmarks.detection")
detection_kernels = pytest.importorskip("benchmarks.detection_kernels")
torch_detection = pytest.importorskip("benchmarks.torch_detection")
torch_peer = pytest.importorskip("benchmarks.torch_peer")

pytestmark = pytest.mark.checkout


def test_nothing_is_left_to_chance_where_versions_are_compared():
    config = detection.without_chance("mdf-net", 64)
    anchors = 15 * 2 * 2
    assert (config.rpn_batch, config.rpn_positive, config.roi_positive) == (anchors, 1.0, 1.0)
    assert config.rpn_after_train >= anchors
    assert config.roi_batch >= config.rpn_after_train + detection.BOXES
    assert config.roi_background == config.roi_foreground  # every proposal is one or the other


def test_boxes_of_the_batch_lie_in_its_images_and_padding_is_zeros():
    config = detection.config_of("mask-rcnn", 64)
    batch = detection.random_batch(config, 16)
    boxes, valid = batch.target["boxes"], batch.target["box_valid"]
    assert set(valid.sum(axis=1)) <= set(range(1, 6))
    assert not boxes[~valid].any()
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (boxes[valid][:, 2:] - boxes[valid][:, :2]).min() > 10


def test_the_peer_suppresses_as_the_other_one_in_numpy():
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 50, (200, 2))
    boxes = np.concatenate([low, low + draw.uniform(5, 40, (200, 2))], axis=1).astype(np.float32)
    scores = draw.random(200).astype(np.float32)
    wanted = detection_kernels.numpy_nms(boxes[None], scores[None], 50)[0]
    found = torch_detection.suppress(boxes, scores, detection_kernels.THRESHOLD, 50)
    assert found.tolist() == wanted[wanted >= 0].tolist()
    assert len(torch_detection.suppress(boxes[:0], scores[:0], 0.5, 5)) == 0


def test_masks_are_trained_on_the_first_region_of_every_image_before_the_second_of_any():
    assert torch_detection.shares([5, 0, 2, 1], 5) == [2, 0, 2, 1]
    assert torch_detection.shares([5, 0, 2, 1], 4) == [2, 0, 1, 1]
    assert torch_detection.shares([1, 1], 8) == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not torch_peer.PYTHON.exists(), reason="no .venv-peers with PyTorch; `make peers` sets it up")
@pytest.mark.parametrize("model", ["mask-rcnn", "mdf-net"])
def test_maps_detections_losses_and_gradients_are_those_of_pytorch(model, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.detection", "--quick", "--no-costs", "--only", model]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = json.loads(out.read_text(encoding="utf-8"))
    assert run["header"]["peers missing"] == "none"
    agreements = run["agreements"]
    assert len(agreements) == 13
    assert any("detections compared" in agreement["what"] for agreement in agreements)
    for agreement in agreements:
        assert 0 <= agreement["difference"] <= agreement["tolerance"] <= 2e-3, agreement["what"]
    [table] = run["tables"]
    assert [row["work"] for row in table["rows"]] == ["training step", "inference"]
    for row in table["rows"]:
        assert row["PyTorch, ms"] > 0
        assert row["time / PyTorch"] == pytest.approx(row["ms"] / row["PyTorch, ms"])
