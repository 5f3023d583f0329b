"""ResNet and MobileNetV3 in plain PyTorch, with torchvision's names: what our encoders are compared with.

    .venv-peers/bin/python tests/encoders/torch_models.py resnet50 OUT.safetensors --size 64

The file holds the weights as `state.NAME`, the images as `input` (PyTorch's layout) and the features as `output`,
computed in double precision; `--weights FILE.pt` takes the weights of a file instead of random ones. Tables of shapes
and random weights need NumPy alone, and give the same numbers everywhere; PyTorch is imported by what computes with it.
"""

import argparse
import zlib
from importlib import import_module

import numpy as np

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Window, expansion, outputs, squeeze-and-excitation, hard swish, stride: Howard et al. 2019, Tables 1 and 2.
MOBILE = {
    "large": [
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ],
    "small": [
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ],
}
HIDDEN = {"large": 1280, "small": 1024}


# Tables of shapes.


def _norm(name, channels):
    vectors = {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def resnet_shapes(depth, *, width=64, channels=3, axes=2, stem=(7, 7, 7), classes=1000):
    bottleneck = depth >= 50
    shapes = {"conv1.weight": (width, channels, *stem[-axes:])} | _norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        outputs = 4 * inner if bottleneck else inner
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            plan = [(inner, 1), (inner, 3), (outputs, 1)] if bottleneck else [(inner, 3), (outputs, 3)]
            before = inputs
            for i, (after, window) in enumerate(plan, start=1):
                shapes[f"{name}.conv{i}.weight"] = (after, before, *(window,) * axes)
                shapes |= _norm(f"{name}.bn{i}", after)
                before = after
            if inputs != outputs or (block == 0 and stage):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, *(1,) * axes)
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def mobilenet_shapes(size, *, channels=3, classes=1000):
    shapes = {"features.0.0.weight": (16, channels, 3, 3)} | _norm("features.0.1", 16)
    inputs = 16
    for number, (window, expansion, outputs, squeeze, _, _) in enumerate(MOBILE[size], start=1):
        layers = [(expansion, inputs, 1)] if expansion != inputs else []
        layers += [(expansion, 1, window), "squeeze"] if squeeze else [(expansion, 1, window)]
        layers += [(outputs, expansion, 1)]
        for part, layer in enumerate(layers):
            name = f"features.{number}.block.{part}"
            if layer == "squeeze":
                squeezed = divisible(expansion // 4)
                shapes |= {f"{name}.fc1.weight": (squeezed, expansion, 1, 1), f"{name}.fc1.bias": (squeezed,)}
                shapes |= {f"{name}.fc2.weight": (expansion, squeezed, 1, 1), f"{name}.fc2.bias": (expansion,)}
            else:
                after, before, window = layer
                shapes[f"{name}.0.weight"] = (after, before, window, window)
                shapes |= _norm(f"{name}.1", after)
        inputs = outputs
    last = f"features.{len(MOBILE[size]) + 1}"
    shapes[f"{last}.0.weight"] = (6 * inputs, inputs, 1, 1)
    shapes |= _norm(f"{last}.1", 6 * inputs)
    shapes |= {"classifier.0.weight": (HIDDEN[size], 6 * inputs), "classifier.0.bias": (HIDDEN[size],)}
    return shapes | {"classifier.3.weight": (classes, HIDDEN[size]), "classifier.3.bias": (classes,)}


def divisible(value, by=8):
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


def random_state(shapes):
    """Weights of variance 2 / inputs, and norms that are not the identity; each tensor drawn from its own name."""
    state = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = draw.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            state[name] = draw.normal(0, 0.1, shape).astype(np.float32)
        else:
            state[name] = draw.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
    return state


def random_input(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Networks: functions of a state dict.


class Layers:
    """Convolution and batch norm by name, in double precision.

    `calibrate` sets running moments to those of the images at hand first: random weights would otherwise let the values
    of a deep network grow or fade.
    """

    def __init__(self, state, epsilon, *, calibrate=False):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.epsilon, self.calibrate = epsilon, calibrate

    def convolve(self, x, name, **options):
        nnf = import_module("torch.nn.functional")

        function = nnf.conv3d if x.ndim == 5 else nnf.conv2d
        return function(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def normalise(self, x, name):
        nnf = import_module("torch.nn.functional")

        if self.calibrate:
            axes = [0, *range(2, x.ndim)]
            self.state[f"{name}.running_mean"] = x.mean(axes) + 0.1 * self.state[f"{name}.running_mean"]
            self.state[f"{name}.running_var"] = x.var(axes) * self.state[f"{name}.running_var"] + 1e-3
        leaves = [self.state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return nnf.batch_norm(x, *leaves, eps=self.epsilon)


def resnet(layers, x, depth, *, stem_strides=2):
    nnf = import_module("torch.nn.functional")

    bottleneck = depth >= 50
    stem = layers.state["conv1.weight"].shape[2:]
    x = layers.convolve(x, "conv1", stride=stem_strides, padding=[window // 2 for window in stem])
    x = layers.normalise(x, "bn1").relu()
    pool = nnf.max_pool3d if x.ndim == 5 else nnf.max_pool2d
    x = pool(x, 3, stride=2, padding=1)
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            y = x
            for i, window in enumerate((1, 3, 1) if bottleneck else (3, 3), start=1):
                # Version 1.5: the first convolution of three is what strides.
                strides = stride if i == (2 if bottleneck else 1) else 1
                y = layers.convolve(y if i == 1 else y.relu(), f"{name}.conv{i}", stride=strides, padding=window // 2)
                y = layers.normalise(y, f"{name}.bn{i}")
            if f"{name}.downsample.0.weight" in layers.state:
                x = layers.convolve(x, f"{name}.downsample.0", stride=stride)
                x = layers.normalise(x, f"{name}.downsample.1")
            x = (x + y).relu()
    return x.flatten(2).mean(2)


def mobilenet(layers, x, size):
    nnf = import_module("torch.nn.functional")

    x = nnf.hardswish(layers.normalise(layers.convolve(x, "features.0.0", stride=2, padding=1), "features.0.1"))
    for number, (window, expansion, _, squeeze, swish, stride) in enumerate(MOBILE[size], start=1):
        activate = nnf.hardswish if swish else nnf.relu
        before, name, part = x, f"features.{number}.block", 0
        if expansion != x.shape[1]:
            x = activate(layers.normalise(layers.convolve(x, f"{name}.0.0"), f"{name}.0.1"))
            part = 1
        options = {"stride": stride, "padding": window // 2, "groups": expansion}
        x = activate(layers.normalise(layers.convolve(x, f"{name}.{part}.0", **options), f"{name}.{part}.1"))
        if squeeze:
            part += 1
            pooled = x.mean((2, 3), keepdim=True)
            gate = layers.convolve(layers.convolve(pooled, f"{name}.{part}.fc1").relu(), f"{name}.{part}.fc2")
            x = x * nnf.hardsigmoid(gate)
        x = layers.normalise(layers.convolve(x, f"{name}.{part + 1}.0"), f"{name}.{part + 1}.1")
        if stride == 1 and x.shape == before.shape:
            x = x + before
    name = f"features.{len(MOBILE[size]) + 1}"
    return nnf.hardswish(layers.normalise(layers.convolve(x, f"{name}.0"), f"{name}.1")).mean((2, 3))


def hidden(layers, features):
    """The classifier's first layer, as the published network ends but for the classes."""
    nnf = import_module("torch.nn.functional")

    return nnf.hardswish(nnf.linear(features, layers.state["classifier.0.weight"], layers.state["classifier.0.bias"]))


def main():
    torch = import_module("torch")
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="resnetN, resnetN_3d, mobilenet_v3_small or mobilenet_v3_large")
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=16, help="slices of a 3-D input")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--weights", help="a state dict of PyTorch's, for resnetN_3d inflated from two dimensions")
    parser.add_argument("--as-drawn", action="store_true", help="running moments as they were drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, channels = options.size, options.channels
    mobile = options.network.removeprefix("mobilenet_v3_") if options.network.startswith("mobile") else None
    axes = 3 if options.network.endswith("_3d") else 2
    depth = None if mobile else int(options.network.removeprefix("resnet").removesuffix("_3d"))
    stem_strides = 2
    if options.weights:
        content = torch.load(options.weights, map_location="cpu", weights_only=True)
        state = {name: tensor.float() for name, tensor in content.get("state_dict", content).items()}
        channels = state["conv1.weight"].shape[1]
        stem_strides = (1, 2, 2)
    else:
        if mobile:
            shapes = mobilenet_shapes(mobile, channels=channels)
        else:
            shapes = resnet_shapes(depth, width=options.width, channels=channels, axes=axes)
        state = {name: torch.from_numpy(array) for name, array in random_state(shapes).items()}
        for name in state:
            # Random branches as strong as what they are added to would amplify rounding a thousand times by layer 152.
            if not options.as_drawn and name.endswith("bn3.weight"):
                state[name] = 0.2 * state[name]
    sizes = (options.depth, size, size)[-axes:]
    x = torch.from_numpy(random_input(options.batch, channels, *sizes))

    def run(state, *, calibrate):
        layers = Layers(state, 1e-3 if mobile else 1e-5, calibrate=calibrate)
        if not mobile:
            return {"output": resnet(layers, x.double(), depth, stem_strides=stem_strides)}, layers.state
        features = mobilenet(layers, x.double(), mobile)
        return {"output": features, "hidden": hidden(layers, features)}, layers.state

    with torch.no_grad():
        if not options.weights and not options.as_drawn:
            _, calibrated = run(state, calibrate=True)
            state = {name: tensor.float() for name, tensor in calibrated.items()}
        outputs, _ = run(state, calibrate=False)
    saved = {f"state.{name}": tensor.float().contiguous() for name, tensor in state.items()}
    save_file(saved | {"input": x} | {name: tensor.float() for name, tensor in outputs.items()}, options.out)
    shown = outputs["output"].flatten()[:8].tolist()
    print(f"{options.network}: {len(state)} tensors, output {tuple(outputs['output'].shape)}, first {shown}")


if __name__ == "__main__":
    main()
