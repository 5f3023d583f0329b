"""Configs of detectors, their published sizes, pretrained trunks, and what a batch must hold."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fusion_jax.arrays import Batch
from fusion_jax.detection.anchors import Anchors
from fusion_jax.detection.detector import DetectorConfig, load_trunk, make_detector, named_config
from fusion_jax.encoders import count_parameters
from tests.helpers import assert_close


def beside(path):
    """A module beside this file or in a folder near it; the folders are no packages."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_detectors = beside("tiny_detectors.py")
torch_models = beside("../encoders/torch_models.py")
tiny, batch_of, shapes_of = tiny_detectors.tiny, tiny_detectors.batch_of, tiny_detectors.shapes_of

FIVE = ("heart", "atelectasis", "pleura", "consolidation", "edema")


def published(name, numeric=9, **changes):
    config = named_config(name, classes=FIVE, numeric=numeric, levels=(2,), **changes)
    batch = shapes_of(batch_of(rows=1, columns=numeric + 1, size=config.image_size[0]))
    return jax.eval_shape(make_detector(config).model.init, jax.random.key(0), batch)


# The size of the image counts only where a clinical map is made: as many blocks as the side has doublings.
@pytest.mark.parametrize(
    ("name", "numeric", "size", "parameters"),
    [
        ("mask-rcnn", 9, 64, 3_689_423),
        ("msf-net-1d", 9, 64, 3_693_629),
        ("msf-net-3d", 9, 512, 5_395_750),
        ("mdf-net", 9, 512, 5_399_846),
        ("mdf-net", 2, 512, 5_399_860),
    ],
)
def test_detectors_have_their_published_size(name, numeric, size, parameters):
    assert count_parameters(published(name, numeric, image_size=(size, size))) == parameters


def test_equal_configs_are_one_detector():
    assert make_detector(tiny()) is make_detector(DetectorConfig.from_json(tiny().to_json()))
    assert make_detector(tiny()) is not make_detector(tiny(roi_fusion=False))


@pytest.mark.parametrize("name", ["mask-rcnn", "mdf-net", "retinanet-dual"])
def test_a_config_survives_json(name):
    config = tiny(name, clinical_mlp=(4,), image_size=(48, 32))
    assert DetectorConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(DetectorConfig.from_json(config.to_json()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": ["a"]}, r"no argument 'clases'; did you mean 'classes'"),
        ({"classes": []}, "at least one name"),
        ({"classes": ["a", "a"]}, "each of them once"),
        ({"backbone": "resnet50"}, "backbone is 'resnet50'; did you mean 'resnet-50'"),
        ({"image_size": [16, 64]}, r"image_size is \(16, 64\); expected height and width of at least 32"),
        ({"rpn_overlap": 1.5}, "rpn_overlap is 1.5; expected a number between 0 and 1"),
        ({"roi_foreground": 0.4}, "roi_background is 0.5 and roi_foreground 0.4"),
        ({"detections": 0}, "detections is 0; expected at least 1"),
        ({"anchors": {"sizes": [[8]], "ratios": [1], "strides": [2]}}, "without a pyramid cnn gives one map"),
        ({"anchors": {"sizes": [[8], [9]], "ratios": [1], "strides": [8, 16]}}, "set pyramid"),
        ({"pyramid": True, "anchors": {"sizes": [[8], [9]], "ratios": [1], "strides": [8, 32]}}, "strides that double"),
        ({"anchors": {"sizes": [[8]], "ratios": [1]}}, "expected exactly sizes, ratios and strides"),
        ({"numeric": 0, "levels": []}, "reads clinical columns, and numeric is 0"),
        ({"vector": 2}, "leave no room for the embeddings of 1 categories. Expected at least 3"),
        ({"fuse_residual": True}, "fuse_residual needs fuse_depth above 0"),
        ({"width": 0.0}, "width is 0.0"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        DetectorConfig.from_json({**tiny().to_json(), **changes}, "run/recipe.json")


@pytest.mark.parametrize("changes", [{"classes": "nodule"}, {"detections": 2.5}, {"masks": 1}])
def test_values_of_another_type_are_refused(changes):
    with pytest.raises(TypeError, match=f"run/recipe.json: {next(iter(changes))} is"):
        DetectorConfig.from_json({**tiny().to_json(), **changes}, "run/recipe.json")


def test_missing_classes_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="the field 'classes' is missing"):
        DetectorConfig.from_json({})
    with pytest.raises(ValueError, match="no detector 'mdf'; known: mask-rcnn"):
        named_config("mdf", classes=("a",))


def test_fused_detectors_have_nothing_of_what_they_do_not_read():
    assert sorted(published("mask-rcnn", image_size=(64, 64))["params"]["maps"]) == ["image_neck", "image_trunk"]
    only_vector = published("msf-net-1d", image_size=(64, 64))["params"]
    assert sorted(only_vector["maps"]) == ["embedding", "image_neck", "image_trunk"]
    assert only_vector["box_head"]["fc6"]["kernel"].shape == (3200, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {}}, "reads image, clinical; the batch holds no source and lacks image, clinical"),
        ({"image": (2, 32, 32, 1)}, r"images have shape \(2, 32, 32, 1\); expected \(b, 32, 32, 3\)"),
        ({"image": (2, 32, 48, 3)}, r"images have shape \(2, 32, 48, 3\)"),
        ({"clinical": (2, 5)}, "has 5 columns; expected 2 numbers and then 1 codes"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change, message):
    batch = batch_of(rows=2)
    inputs = change.get(
        "inputs", {**batch.inputs, **{name: np.zeros(s, np.float32) for name, s in change.items() if s}}
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_detector(tiny()).model.init, jax.random.key(0), batch._replace(inputs=inputs))


def test_training_asks_for_boxes_and_a_key():
    detector, batch = make_detector(tiny()), batch_of(rows=2)
    with pytest.raises(ValueError, match="got no key"):
        detector.model.apply({}, batch, train=True)
    with pytest.raises(ValueError, match="lacks boxes, classes, box_valid"):
        detector.model.apply({}, batch._replace(target={}), train=True, key=jax.random.key(0))
    without = {name: batch.target[name] for name in ("boxes", "classes")}
    with pytest.raises(ValueError, match="lacks box_valid"):
        detector.losses({}, batch._replace(target=without), jax.random.key(0))


# Pretrained trunks.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with torchvision's names and random values."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v3_small.safetensors"
    save_file(torch_models.random_state(torch_models.mobilenet_shapes("small")), path)
    return path


@pytest.mark.parametrize("trunk", ["image", "clinical"])
def test_each_trunk_takes_published_weights_by_itself(trunk, weights):
    anchors = Anchors(((32.0,),), (1.0,), (16,))
    changes = {"backbone": "mobilenet-v3-small", "width": 1.0, "anchors": anchors}
    config = tiny("msf-net-3d", **changes)
    shapes = jax.eval_shape(make_detector(config).model.init, jax.random.key(0), shapes_of(batch_of(rows=1)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    found, record = load_trunk(config, variables, trunk, weights, origin="made up")
    assert record.kind == "pretrained"
    assert record.file == weights.name
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    state = torch_models.random_state(torch_models.mobilenet_shapes("small"))
    own, other = (found["params"]["maps"][f"{name}_trunk"] for name in (trunk, *{"image", "clinical"} - {trunk}))
    assert_close(own["stem_conv"]["kernel"], np.moveaxis(state["features.0.0.weight"], (0, 1), (-1, -2)), 0)
    running = found["batch_stats"]["maps"][f"{trunk}_trunk"]["block_1"]["expand_bn"]["mean"]
    assert_close(running, state["features.2.block.0.1.running_mean"], 0)
    # A map of stride 16 ends before the eighth block of the file.
    assert "block_7" in own
    assert "block_8" not in own
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(other))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(variables))


def test_trunks_that_a_detector_lacks_are_refused(weights, unchecked):
    config = tiny("mask-rcnn", backbone="mobilenet-v3-small", width=1.0)
    shapes = jax.eval_shape(make_detector(config).model.init, jax.random.key(0), shapes_of(batch_of(rows=1)))
    with pytest.raises(ValueError, match="has no trunk 'clinical'"):
        load_trunk(config, shapes, "clinical", weights)
    with pytest.raises(ValueError, match="there is no trunk 'text'; expected one of image, clinical"):
        load_trunk(config, shapes, "text", weights)
    with pytest.raises(ValueError, match="no weights are published for the backbone 'cnn'"):
        load_trunk(tiny(), shapes, "image", weights)


def test_batches_have_no_target_at_initialisation():
    """The target may be empty: variables depend on nothing in it."""
    detector, batch = make_detector(tiny("msf-net-1d")), shapes_of(batch_of(rows=2))
    full = jax.eval_shape(detector.model.init, jax.random.key(0), batch)
    empty = jax.eval_shape(detector.model.init, jax.random.key(0), Batch(batch.inputs, {}, *batch[2:]))
    assert full == empty
