import importlib.util
import logging
import sys
import types
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fusion_jax.encoders import ResNet
from fusion_jax.encoders.mobilenet import MobileNetV3
from fusion_jax.encoders.pretrained import (
    Initialisation,
    convert,
    flatten,
    load_pretrained,
    load_state_dict,
    unflatten,
)
from fusion_jax.ops.conv import conv
from tests.helpers import assert_close

# Beside this file; the folder is no package.
_spec = importlib.util.spec_from_file_location("torch_models", Path(__file__).with_name("torch_models.py"))
torch_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_models)


@cache
def shapes(module, axes=2, channels=3):
    x = jnp.zeros((1, *(32,) * axes, channels))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))


@cache
def resnet_state(depth, width=4, axes=2, **settings):
    return torch_models.random_state(torch_models.resnet_shapes(depth, width=width, axes=axes, **settings))


@cache
def mobilenet_state(size):
    return torch_models.random_state(torch_models.mobilenet_shapes(size))


def arrays(variables):
    """How many leaves there are, all of them arrays in single precision."""
    leaves = jax.tree.leaves(variables)
    assert {type(leaf).__name__ for leaf in leaves} == {"ArrayImpl"}
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    return len(leaves)


@pytest.mark.parametrize(("depth", "axes"), [(18, 2), (50, 3), (152, 2)])
def test_every_tensor_of_a_resnet_has_its_place(depth, axes):
    state = resnet_state(depth, axes=axes)
    variables = convert(state, shapes(ResNet(depth, width=4), axes))
    counted = [name for name in state if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    assert arrays(variables) == len(counted)
    params, running = variables["params"], variables["batch_stats"]
    last = max(i for i in range(50) if f"layer3_{i}" in params)
    kernel = np.moveaxis(state[f"layer3.{last}.conv2.weight"], (0, 1), (-1, -2))
    assert_close(params[f"layer3_{last}"]["conv2"]["kernel"], kernel, 0)
    assert_close(params["layer4_0"]["downsample_bn"]["scale"], state["layer4.0.downsample.1.weight"], 0)
    assert_close(params["layer4_0"]["downsample_bn"]["bias"], state["layer4.0.downsample.1.bias"], 0)
    assert_close(running["layer2_1"]["bn1"]["mean"], state["layer2.1.bn1.running_mean"], 0)
    assert_close(running["bn1"]["var"], state["bn1.running_var"], 0)


def timm_name(name, size):
    """Of torchvision's name; timm counts blocks within stages of these many."""
    stages = {"small": (1, 2, 3, 2, 3), "large": (1, 2, 3, 4, 2, 3)}[size]
    if not name.startswith("features."):
        return {"0": "conv_head.", "3": "classifier."}[name.split(".")[1]] + name.split(".")[-1]
    _, number, *rest = name.split(".")
    if number == "0":
        return f"{('conv_stem', 'bn1')[int(rest[0])]}.{rest[1]}"
    if int(number) > sum(stages):
        return f"blocks.{len(stages)}.0.{('conv', 'bn1')[int(rest[0])]}.{rest[1]}"
    stage, within = [(s, i) for s, count in enumerate(stages) for i in range(count)][int(number) - 1]
    _, part, inner, *leaf = rest
    excites = torch_models.MOBILE[size][int(number) - 1][3]
    expands = f"features.{number}.block.{3 if excites else 2}.0.weight" in mobilenet_state(size)
    roles = ["pw", "dw", *(["se"] if excites else []), "pwl"] if expands else ["dw", *(["se"] if excites else []), "pw"]
    role = roles[int(part)]
    norm = 1 + [other for other in roles if other != "se"].index(role) if role != "se" else None
    inside = {
        "0": f"conv_{role}",
        "1": f"bn{norm}",
        "fc1": "se.conv_reduce",
        "fc2": "se.conv_expand",
    }[inner]
    return f"blocks.{stage}.{within}.{inside}.{leaf[0]}"


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_tensor_of_a_mobilenet_has_its_place_under_both_names(size):
    state = mobilenet_state(size)
    module = MobileNetV3(size, embedding=True)
    variables = convert(state, shapes(module))
    assert arrays(variables) == sum(not name.endswith("num_batches_tracked") for name in state) - 2  # the classes
    theirs = {timm_name(name, size): tensor for name, tensor in state.items()}
    assert len(theirs) == len(state)
    assert {"blocks.0.0.conv_dw.weight", "blocks.1.0.conv_pwl.weight", "blocks.2.1.se.conv_reduce.bias"} < set(theirs)
    # timm's hidden layer is a convolution of one position.
    theirs["conv_head.weight"] = theirs["conv_head.weight"][:, :, None, None]
    assert jax.tree.all(jax.tree.map(np.array_equal, convert(theirs, shapes(module)), variables))


# First features of the first image, by PyTorch in double precision:
# tests/encoders/torch_models.py NAME OUT --size 32 --as-drawn [--width 4].
GOLDEN = [
    (ResNet(18, width=4), resnet_state(18), [26.919777, 6.110539, 0, 4.406115, 0, 0, 0, 20.762893]),
    (
        ResNet(50, width=4),
        resnet_state(50),
        [0, 26.60372, 62.129683, 201.81154, 78.591353, 100.585405, 337.59165, 27.494641],
    ),
    (
        MobileNetV3("small"),
        mobilenet_state("small"),
        [0.2517809, 0.29122, -0.0207872, -0.1626475, -0.0102153, 0.0100351, -0.1521869, 0.2623258],
    ),
]


@pytest.mark.parametrize(("module", "state", "expected"), GOLDEN, ids=["ResNet-18", "ResNet-50", "MobileNetV3"])
def test_features_are_those_of_pytorch_with_these_weights(module, state, expected):
    x = np.moveaxis(torch_models.random_input(2, 3, 32, 32), 1, -1)
    variables = convert(state, shapes(module))
    features = jax.jit(lambda variables, x: module.apply(variables, x, train=False))(variables, x)
    assert_close(features[0, : len(expected)], np.array(expected), 1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_first_convolution_answers_equal_channels_as_before(channels):
    state = resnet_state(18)
    kernel = convert(state, shapes(ResNet(18, width=4), channels=channels))["params"]["conv1"]["kernel"]
    published = np.moveaxis(state["conv1.weight"], (0, 1), (-1, -2))
    assert kernel.shape == (7, 7, channels, 4)
    assert_close(kernel.sum(axis=2), published.sum(axis=2), 1e-6)
    assert_close(kernel, np.broadcast_to(kernel[:, :, :1], kernel.shape), 0)
    assert_close(kernel[:, :, 0], published.mean(axis=2) * 3 / channels, 1e-6)


def test_weights_of_our_own_move_from_one_model_to_another():
    module = ResNet(18, width=4, projection=6)
    trained = jax.tree.map(lambda leaf: leaf + 1, model_variables(module))
    file = flatten(trained)
    found = convert(file, model_variables(module), at=("encoders_image",))
    assert set(np.asarray(found["params"]["encoders_image"]["projection"]["kernel"]).ravel()) == {8.0}
    assert found["params"]["head"]["kernel"].tolist() == [1.0, 1.0, 1.0]
    alone = {"params": trained["params"]["encoders_image"], "batch_stats": trained["batch_stats"]["encoders_image"]}
    for variables in (flatten(alone), flatten(alone | {"encoding": {"centre": np.ones(2)}})):
        assert_close(convert(variables, model_variables(module), at=("encoders_image",)), found, 0)
    group = shapes(ResNet(18, width=4, norm="group"))
    file = {name: np.ones(leaf.shape) for name, leaf in flatten(group, as_they_are=True).items()}
    assert arrays(convert(file, group)) == len(file)
    del file["params/layer1_0/conv1/kernel"]
    with pytest.raises(
        ValueError, match=r"(?s)tensors of another model of ours do not fit .*1 missing.*layer1_0/conv1"
    ):
        convert(file, group)


def test_only_the_first_convolution_is_adapted():
    state = dict(resnet_state(18))
    state["layer1.0.conv1.weight"] = np.zeros((4, 3, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"1 of another shape.*: layer1\.0\.conv1\.weight \(4, 3, 3, 3\) for params"):
        convert(state, shapes(ResNet(18, width=4)))


@pytest.mark.parametrize("inflate", ["repeat", "centre"])
def test_an_inflated_kernel_answers_a_volume_without_depth_as_the_image(inflate):
    state = resnet_state(18)
    kernel = convert(state, shapes(ResNet(18, width=4), 3), inflate=inflate)["params"]["layer1_0"]["conv1"]["kernel"]
    flat = np.moveaxis(state["layer1.0.conv1.weight"], (0, 1), (-1, -2))
    image = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)
    volume = np.repeat(image[:, None], 5, axis=1)
    assert kernel.shape == (3, 3, 3, 4, 4)
    assert_close(conv(volume, kernel, padding=1)[:, 2], conv(image, flat, padding=1), 1e-5)
    assert (np.asarray(kernel[0]) == 0).all() == (inflate == "centre")


def model_variables(module):
    """Variables of a model around an encoder, with what others keep there."""
    inside = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), shapes(module))
    return {
        "params": {"encoders_image": inside["params"], "head": {"kernel": np.ones(3)}},
        "batch_stats": {"encoders_image": inside["batch_stats"]},
        "objective": {},
    }


def test_an_encoder_inside_a_model_is_replaced_and_nothing_else():
    module = ResNet(18, width=4, projection=6)
    before = model_variables(module)
    after = convert(resnet_state(18), before, at=("encoders_image",))
    alone = convert(resnet_state(18), shapes(ResNet(18, width=4)))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert after["objective"] == {}
    assert after["params"]["head"]["kernel"] is before["params"]["head"]["kernel"]
    assert_close(after["batch_stats"]["encoders_image"], alone["batch_stats"], 0)
    replaced = dict(after["params"]["encoders_image"])
    assert set(np.asarray(replaced.pop("projection")["kernel"]).ravel()) == {7.0}
    assert_close(replaced, alone["params"], 0)
    assert {float(leaf.min()) for leaf in jax.tree.leaves(before["params"]["encoders_image"])} == {7.0}


def test_the_classifier_is_left_out_and_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "fusion_jax.encoders.pretrained"):
        convert(resnet_state(18), shapes(ResNet(18, width=4), channels=1))
    assert caplog.messages == [
        "params/conv1/kernel: adapted from 3 channels to 1",
        "a ResNet: left out what comes after it, fc.weight, fc.bias",
    ]


def test_prefixes_are_taken_off():
    expected = convert(resnet_state(18), shapes(ResNet(18, width=4)))
    parallel = {f"module.{name}": tensor for name, tensor in resnet_state(18).items()}
    assert_close(convert(parallel, shapes(ResNet(18, width=4))), expected, 0)
    whole = {f"visual.trunk.{name}": tensor for name, tensor in resnet_state(18).items()} | {"text.weight": np.ones(2)}
    assert_close(convert(whole, shapes(ResNet(18, width=4)), prefix="visual.trunk."), expected, 0)
    with pytest.raises(ValueError, match=r"no tensor begins with 'image\.'; found visual\.trunk\.conv1\.weight"):
        convert(whole, shapes(ResNet(18, width=4)), prefix="image.")


SHAPE = "of another shape, the file's beside the encoder's"
EXPECTATION = "Expected the weights of the same architecture, depth and width, trained with batch norm "


def test_everything_that_does_not_fit_stands_in_one_message():
    state = dict(resnet_state(18))
    del state["bn1.weight"], state["layer4.1.bn2.running_var"]
    state["layer1.0.conv3.weight"] = np.ones((4, 4, 1, 1))
    state["layer2.0.bn2.weight"] = np.ones(5)
    state["layer2.0.bn1.bias"] = np.full(8, np.nan)
    with pytest.raises(ValueError, match="tensors of a ResNet do not fit the encoder at encoders_image") as error:
        convert(state, model_variables(ResNet(18, width=4)), at=("encoders_image",))
    assert str(error.value).splitlines()[1:] == [
        "  2 missing in the file: params/bn1/scale, batch_stats/layer4_1/bn2/var",
        "  1 not in the encoder: layer1.0.conv3.weight",
        f"  1 {SHAPE}: layer2.0.bn2.weight (5,) for params/layer2_0/bn2/scale (8,)",
        "  1 not finite: layer2.0.bn1.bias",
        EXPECTATION + "(98 of 100 have a place).",
    ]


def test_weights_of_another_depth_or_width_are_refused():
    with pytest.raises(ValueError, match=r"\d+ missing in the file: .* and \d+ more"):
        convert(resnet_state(18), shapes(ResNet(34, width=4)))
    with pytest.raises(ValueError, match=r"\d+ not in the encoder: layer1\.2\.conv1\.weight"):
        convert(resnet_state(34), shapes(ResNet(18, width=4)))
    with pytest.raises(ValueError, match="100 of another shape"):
        convert(resnet_state(18), shapes(ResNet(18, width=8)))


def test_a_depth_more_needs_to_be_asked_for():
    with pytest.raises(ValueError, match="2-D kernels enter a 3-D encoder with inflate='repeat' or 'centre'"):
        convert(resnet_state(18), shapes(ResNet(18, width=4), 3))


@pytest.mark.parametrize("norm", ["group", "none"])
def test_an_encoder_without_batch_norm_is_refused_with_the_way_out(norm):
    with pytest.raises(ValueError, match=r"bn1\.running_mean.*\n(.*\n)*.*; the encoder has none: take norm='batch'"):
        convert(resnet_state(18), shapes(ResNet(18, width=4, norm=norm)))


def test_other_families_and_places_are_refused():
    with pytest.raises(ValueError, match=r"no names of torchvision's or timm's .*; found blocks\.0\.attn\.qkv\.weight"):
        convert({"blocks.0.attn.qkv.weight": np.ones((3, 3))}, shapes(ResNet(18, width=4)))
    with pytest.raises(ValueError, match="no parameters at 'encoders_ct'; found the modules encoders_image, head"):
        convert(resnet_state(18), model_variables(ResNet(18, width=4)), at=("encoders_ct",))


# Files.


def test_half_precision_is_read_exactly(tmp_path):
    bfloat = jnp.asarray([1.0, 2.5, -3.0], jnp.bfloat16)
    tensors = {
        "a": np.asarray(bfloat),
        "b": np.float16([0.5, 7]),
        "c": np.float32([1e-8]),
        "d": np.array([3], np.int64),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    state = load_state_dict(tmp_path / "w.safetensors")
    assert {name: tensor.tolist() for name, tensor in state.tensors.items()} == {
        "a": [1.0, 2.5, -3.0],
        "b": [0.5, 7.0],
        "c": [np.float32(1e-8)],
        "d": [3],
    }
    assert [str(state.tensors[name].dtype) for name in "abcd"] == ["float32"] * 3 + ["int64"]


# SHA-256 of the three letters "abc", FIPS 180-4.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_is_that_of_the_file_and_is_checked_first(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"abc")
    for wrong in ("ba7816be", ABC[:-1] + "e", ABC[:8] + "0"):
        with pytest.raises(ValueError, match=rf"w\.safetensors: its SHA-256 is {ABC}, and {wrong} was expected"):
            load_state_dict(path, sha256=wrong)
    with pytest.raises(
        ValueError, match="sha256 is 'ba78'; expected 64 hexadecimal digits, or at least the first eigh"
    ):
        load_state_dict(path, sha256="ba78")
    for expected in (None, ABC, ABC.upper(), ABC[:8]):
        with pytest.raises(ValueError, match=r"w\.safetensors: no safetensors file .*Fetch it again"):
            load_state_dict(path, sha256=expected)


def test_absent_files_and_other_kinds_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"w\.pth: no such file; expected weights in \.safetensors"):
        load_state_dict(tmp_path / "w.pth")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"w\.h5: weights in \.h5; expected \.safetensors or \.pth"):
        load_state_dict(tmp_path / "w.h5")


def test_without_pytorch_the_message_installs_it(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'w\.pth: PyTorch .* pip install "fusion-jax\[convert\]"'):
        load_state_dict(tmp_path / "w.pth")


class Tensor:
    """As much of PyTorch's tensor as reading one needs."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def is_floating_point(self):
        return self.values.dtype.kind == "f"

    def float(self):
        return Tensor(self.values.astype(np.float32))

    def contiguous(self):
        return self

    def numpy(self):
        return self.values


@pytest.fixture
def torch(monkeypatch, tmp_path):
    """A stand-in that holds `content`, and notes how it was asked; the slow tests read with PyTorch itself."""
    module = types.ModuleType("torch")
    module.Tensor, module.asked = Tensor, []

    def load(path, **options):
        module.asked.append(options)
        if isinstance(module.content, Exception):
            raise module.content
        return module.content

    module.load = load
    monkeypatch.setitem(sys.modules, "torch", module)
    (tmp_path / "w.pth").write_bytes(b"abc")
    return module


@pytest.mark.parametrize("around", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state, "optim": {}}])
def test_pytorch_reads_tensors_alone_and_a_checkpoint_is_opened(torch, tmp_path, around):
    torch.content = around({"a": Tensor(np.float64([1, 2])), "n": Tensor(np.int64(4)), "note": "resnet"})
    state = load_state_dict(tmp_path / "w.pth", sha256=ABC)
    assert torch.asked == [{"map_location": "cpu", "weights_only": True}]
    assert {name: (tensor.dtype.name, tensor.tolist()) for name, tensor in state.tensors.items()} == {
        "a": ("float32", [1.0, 2.0]),
        "n": ("int64", 4),
    }
    assert (state.file, state.sha256) == ("w.pth", ABC)


def test_pickles_that_hold_more_than_tensors_are_refused(torch, tmp_path):
    import pickle

    torch.content = pickle.UnpicklingError("Weights only load failed: Unsupported global\nmore")
    with pytest.raises(ValueError, match=r"holds more than tensors.*Unsupported global\).*Nothing in it was executed"):
        load_state_dict(tmp_path / "w.pth")
    torch.content = RuntimeError("PytorchStreamReader failed")
    with pytest.raises(ValueError, match=r"no whole file of PyTorch's \(PytorchStreamReader failed\)"):
        load_state_dict(tmp_path / "w.pth")
    torch.content = {"epoch": 3}
    with pytest.raises(ValueError, match="holds a dict without tensors; expected a state dict"):
        load_state_dict(tmp_path / "w.pth")


def test_a_pretrained_encoder_comes_with_its_record(tmp_path):
    path = tmp_path / "resnet18-tiny.safetensors"
    save_file(resnet_state(18), path)
    before = model_variables(ResNet(18, width=4))
    loaded = load_pretrained(path, before, at=("encoders_image",), origin="drawn for this test")
    assert_close(loaded.variables, convert(resnet_state(18), before, at=("encoders_image",)), 0)
    digest = load_state_dict(path).sha256
    assert loaded.initialisation._asdict() == {
        "kind": "pretrained",
        "file": "resnet18-tiny.safetensors",
        "sha256": digest,
        "origin": "drawn for this test",
    }
    assert Initialisation()._asdict() == {"kind": "random", "file": "", "sha256": "", "origin": ""}
    with pytest.raises(ValueError, match=r"resnet18-tiny\.safetensors: tensors of a ResNet do not fit the encoder\."):
        load_pretrained(path, shapes(ResNet(34, width=4)))


# Names.


def test_flat_names_go_there_and_back():
    nested = {"params": {"b": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "a": jnp.ones(())}, "objective": {}}
    flat = flatten(nested)
    assert list(flat) == ["params/a", "params/b/bias", "params/b/kernel"]
    assert {type(value) for value in flat.values()} == {np.ndarray}
    del nested["objective"]  # nothing in it
    assert_close(unflatten(flat), nested, 0)


def test_names_that_would_be_ambiguous_are_refused():
    with pytest.raises(ValueError, match="variables have the name 'pet/ct'; expected names without a slash"):
        flatten({"params": {"pet/ct": jnp.ones(1)}})
    with pytest.raises(ValueError, match="'params/a' is an array, and 'params/a/b' would lie inside it"):
        unflatten({"params/a": jnp.ones(1), "params/a/b": jnp.ones(1)})
