"""Learned feature fusion of a ResNet and clinical values in PyTorch: what `benchmarks.resnet` is timed beside.

Runs inside the server of `benchmarks.torch_peer`, which hands the module `torch` over. Names of modules are those of
torchvision, so that weights come from the flat names of the JAX side by one rule.
"""

from typing import Any, NamedTuple

import numpy as np

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
LEARNING_RATE = 1e-4

Array = np.ndarray


class Work(NamedTuple):
    """What is timed, and how its result looks on the JAX side."""

    call: Any
    export: Any


def network(torch: Any, depth: int, channels: int, clinical: int) -> Any:
    """[L,L]-Fusion (Holste et al. 2021), without dropout."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            bottleneck = depth >= 50
            out = 4 * width if bottleneck else width
            plan = [(width, 1, 1), (width, 3, stride), (out, 1, 1)] if bottleneck else [(width, 3, stride), (out, 3, 1)]
            last = before
            for i, (after, window, steps) in enumerate(plan, start=1):
                setattr(self, f"conv{i}", nn.Conv2d(last, after, window, steps, window // 2, bias=False))
                setattr(self, f"bn{i}", nn.BatchNorm2d(after))
                last = after
            self.layers = len(plan)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if before != out:
                self.downsample = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.layers + 1):
                y = y if i == 1 else self.relu(y)
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            x = x if self.downsample is None else self.downsample(x)
            y += x
            return self.relu(y)

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
            before = 64
            for stage, blocks in enumerate(BLOCKS[depth]):
                width, made = 64 * 2**stage, []
                for i in range(blocks):
                    made.append(Block(before, width, 2 if stage and not i else 1))
                    before = 4 * width if depth >= 50 else width
                setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
            self.projection = nn.Linear(before, 512)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.relu(self.projection(x.mean((2, 3))))

    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = Trunk()
            self.clinical = nn.Sequential(nn.Linear(clinical, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(1024, 512), nn.ReLU())
            self.classifier = nn.Linear(512, 1)

        def forward(self, image: Any, clinical: Any) -> Any:
            return self.classifier(self.head(torch.cat([self.image(image), self.clinical(clinical)], 1)))[:, 0]

    return Fusion()


def state_dict(torch: Any, arrays: dict[str, Array]) -> dict[str, Any]:
    """Weights by PyTorch's names from ours, such as `params/encoders_image/layer1_0/conv1/kernel`."""
    state = {}
    for name, array in arrays.items():
        if "/" not in name:  # an input
            continue
        _, *path, leaf = name.split("/")
        path = [part.replace("encoders_", "") for part in path]
        if "Dense" in path[-1] or "dense" in path[-1]:
            # Layers of an MLP are numbered; every second module of ours is a ReLU.
            path[-1] = str(2 * int(path[-1].rpartition("_")[2]))
        if path[-1].startswith("downsample_"):
            path[-1] = "downsample.0" if path[-1].endswith("conv") else "downsample.1"
        leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        target = ".".join([*(part.replace("_", ".") if part.startswith("layer") else part for part in path), leaf])
        state[target] = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
    return state


def resnet_fusion(torch: Any, device: str, arrays: dict[str, Array], options: dict[str, Any]) -> Work:
    """Work of one mode: "training" (a step of Adam), "eager" inference, or "frozen", traced with batch norm folded.

    Results are: loss, norm of the gradient and running variance of the first norm after one training step from the
    weights given; the logits in inference.
    """
    layout = torch.channels_last if options["layout"] == "channels_last" else torch.contiguous_format
    image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays["image"], -1, 1))).to(device)
    image = image.to(memory_format=layout)
    clinical = torch.from_numpy(arrays["clinical"]).to(device)
    model = network(torch, options["depth"], image.shape[1], clinical.shape[1])
    state = state_dict(torch, arrays)
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
    model = model.to(device, memory_format=layout)
    if options["mode"] != "training":
        model.eval()
        if options["mode"] == "frozen":
            with torch.no_grad():
                model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, (image, clinical))))

        def infer() -> Any:
            with torch.inference_mode():
                return model(image, clinical)

        return Work(infer, lambda logits: [logits.cpu().numpy()])
    label = torch.from_numpy(arrays["label"]).to(device, torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    lossy = torch.nn.BCEWithLogitsLoss()
    first: list[Array] = []

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = lossy(model(image, clinical), label)
        loss.backward()
        if not first:
            squares = sum(float(p.grad.double().square().sum()) for p in model.parameters())
            first.extend([loss.item(), squares**0.5, model.image.bn1.running_var.cpu().numpy().copy()])
        optimiser.step()

    return Work(step, lambda _: [np.asarray(value) for value in first])
