"""A supernet of mixed cells and one step of its search in PyTorch: what `benchmarks.supernet` is timed beside.

Runs inside the server of `benchmarks.torch_peer`, which hands the module `torch` over. Edges are modules that sum over
a list of operations, one edge after the other, as the published search of Liu et al. 2018 has them. What that
code does for nothing is left out: `none` is no product with zero, gradients of the architecture do not come with those
of the weights, and the second order copies no model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MOMENTUM, WEIGHT_DECAY, CLIP = 0.9, 3e-4, 5.0
ARCHITECTURE = {"lr": 5e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3}
PROBE = 0.01
"""Length of the finite difference, in units of the weights (Liu et al. 2018, section 2.3)."""

Array = np.ndarray


class Work(NamedTuple):
    """What is timed, and how its result looks on the JAX side."""

    call: Any
    export: Any


def network(torch: Any, options: Mapping[str, Any]) -> Any:
    """The supernet of two modalities: stems, mixed cells, a head of two convolutions."""
    nn, axes = torch.nn, options["axes"]
    convolve, max_pool, average_pool = (getattr(nn, f"{name}{axes}d") for name in ("Conv", "MaxPool", "AvgPool"))
    operations: Sequence[str] = options["operations"]
    nodes: int = options["nodes"]

    def norm(channels: int, affine: bool) -> Any:
        groups = math.gcd(max(1, channels // 4), channels)
        return nn.GroupNorm(groups, channels, affine=affine)

    def convolution(before: int, after: int, window: int, stride: int = 1, **more: Any) -> Any:
        padding = more.get("dilation", 1) * (window // 2)
        return convolve(before, after, window, stride, padding, **{"bias": False} | more)

    class FactorisedReduce(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.here = convolution(before, after // 2, 1, 2)
            self.next = convolution(before, after - after // 2, 1, 2)
            self.norm = norm(after, affine=False)

        def forward(self, x: Any) -> Any:
            x = nn.functional.relu(x)
            return self.norm(torch.cat([self.here(x), self.next(x[(..., *(slice(1, None),) * axes)])], 1))

    def operation(name: str, channels: int, stride: int) -> Any:
        if name == "skip":
            return nn.Identity() if stride == 1 else FactorisedReduce(channels, channels)
        if name.endswith("pool"):
            pool = max_pool(3, stride, 1) if name == "max_pool" else average_pool(3, stride, 1, count_include_pad=False)
            return nn.Sequential(pool, norm(channels, affine=False))
        kind, window = name[:-1], int(name[-1])
        layers = []
        for step in (stride, 1) if kind == "sep" else (stride,):
            groups, dilation = 1 if kind == "conv" else channels, 2 if kind == "dil" else 1
            # Not in place: other operations read the same map.
            layers += [nn.ReLU(), convolution(channels, channels, window, step, dilation=dilation, groups=groups)]
            layers += [] if kind == "conv" else [convolution(channels, channels, 1)]
            layers.append(norm(channels, affine=False))
        return nn.Sequential(*layers)

    class MixedOperation(nn.Module):
        def __init__(self, channels: int, stride: int) -> None:
            super().__init__()
            self.operations = nn.ModuleDict(
                {name: operation(name, channels, stride) for name in operations if name != "none"}
            )
            self.places = [place for place, name in enumerate(operations) if name != "none"]

        def forward(self, x: Any, weights: Any) -> Any:
            return sum(
                weights[place] * apply(x) for place, apply in zip(self.places, self.operations.values(), strict=True)
            )

    class Cell(nn.Module):
        def __init__(self, before: Sequence[int], channels: int, *, reduction: bool, reduction_before: bool) -> None:
            super().__init__()
            self.reduction = reduction
            self.inputs = nn.ModuleList(
                FactorisedReduce(width, channels)
                if reduction_before and not number
                else nn.Sequential(nn.ReLU(), convolution(width, channels, 1), norm(channels, affine=False))
                for number, width in enumerate(before)
            )
            self.edges = nn.ModuleList(
                MixedOperation(channels, 2 if reduction and source < 2 else 1)
                for node in range(nodes)
                for source in range(2 + node)
            )

        def forward(self, inputs: Sequence[Any], weights: Any) -> Any:
            states = [apply(x) for apply, x in zip(self.inputs, inputs, strict=True)]
            first = 0
            for _ in range(nodes):
                states.append(sum(self.edges[first + k](state, weights[first + k]) for k, state in enumerate(states)))
                first += len(states) - 1
            return torch.cat(states[2:], 1)

    class SuperNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels, width = options["channels"], options["channels"] * options["stem_multiplier"]
            self.stems = nn.ModuleList(
                nn.Sequential(convolution(1, width, 3, options["stem_stride"], bias=True), norm(width, affine=True))
                for _ in range(3)
            )
            self.cells = nn.ModuleList()
            before, reduced = [width, width], False
            for number, kind in enumerate(options["layout"]):
                channels *= 1 + (kind == "R")
                self.cells.append(Cell(before, channels, reduction=kind == "R", reduction_before=reduced))
                before = [width if not number else before[1], nodes * channels]
                reduced = kind == "R"
            layers: list[Any] = []
            last = before[1]
            for features in options["head"]:
                layers += [convolution(last, features, 3), norm(features, affine=True), nn.ReLU()]
                last = features
            self.head, self.classifier = nn.Sequential(*layers), nn.Linear(last, 2)

        def forward(self, images: Sequence[Any], architecture: Mapping[str, Any]) -> Any:
            pet, ct = images
            stems = [stem(image) for stem, image in zip(self.stems, (pet, ct, pet + ct), strict=True)]
            weights = {name: torch.softmax(table, -1) for name, table in architecture.items()}
            earlier, last = stems[0], stems[1]
            for number, cell in enumerate(self.cells):
                made = cell((earlier, last), weights["reduce" if cell.reduction else "normal"])
                earlier, last = (stems[2] if not number else last), made
            return self.classifier(self.head(last).flatten(2).mean(2))

    return SuperNet()


def supernet_step(torch: Any, device: str, arrays: dict[str, Array], options: dict[str, Any]) -> Work:
    """One step of the search: the architecture by Adam, of first or second order, then the weights by SGD.

    Options are `order` ("first", "exact", "finite-difference"), `layout_of_memory`, `rate`, and those of the network.
    Arrays are `train/...` and `validation/...` with two images and labels, tables under `architecture/`, and weights by
    PyTorch's names, each in PyTorch's order of axes. The result is that of the first step: the validation loss that the
    architecture saw, the training loss, the norm of its gradient, and the gradients of the tables.
    """
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[options["network"]["axes"]]
    memory = last if options["layout"] == "channels_last" else torch.contiguous_format

    def images(part: str) -> list[Any]:
        found = [arrays[f"{part}/{name}"] for name in options["sources"]]
        tensors = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1))) for image in found]
        return [tensor.to(device).to(memory_format=memory) for tensor in tensors]

    batches = {
        part: (images(part), torch.from_numpy(arrays[f"{part}/label"]).long().to(device))
        for part in ("train", "validation")
    }
    model = network(torch, options["network"])
    state = {name: torch.from_numpy(array) for name, array in arrays.items() if "/" not in name}
    model.load_state_dict(state, strict=True)
    model = model.to(device, memory_format=memory)
    tables = {
        name.removeprefix("architecture/"): torch.from_numpy(array).to(device).requires_grad_(True)
        for name, array in arrays.items()
        if name.startswith("architecture/")
    }
    weights = dict(model.named_parameters())
    rate = options["rate"]
    # Biases and norms do not decay, as in the optimisers of fusion_jax.
    decays = {name: WEIGHT_DECAY if weight.ndim > 1 else 0.0 for name, weight in weights.items()}
    groups = [
        {"params": [weight for name, weight in weights.items() if decays[name] == decay], "weight_decay": decay}
        for decay in (WEIGHT_DECAY, 0.0)
    ]
    sgd = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    adam = torch.optim.Adam(tables.values(), **ARCHITECTURE)
    grad, first = torch.autograd.grad, []

    def loss_of(part: str, own: Mapping[str, Any] | None = None) -> Any:
        inputs, label = batches[part]
        logits = model(inputs, tables) if own is None else torch.func.functional_call(model, own, (inputs, tables))
        return torch.nn.functional.cross_entropy(logits, label)

    def unrolled(gradients: Sequence[Any]) -> dict[str, Any]:
        ahead = {}
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                direction = gradient + decays[name] * weight
                buffer = sgd.state[weight].get("momentum_buffer")
                direction = direction if buffer is None else direction + MOMENTUM * buffer
                ahead[name] = (weight - rate * direction).requires_grad_(True)
        return ahead

    def first_order() -> tuple[Any, Sequence[Any]]:
        loss = loss_of("validation")
        return loss, grad(loss, list(tables.values()))

    def second_order() -> tuple[Any, Sequence[Any]]:
        exact = options["order"] == "exact"
        # With its graph kept, the gradient can be differentiated by the architecture afterwards.
        slopes = grad(loss_of("train"), list(weights.values()), create_graph=exact)
        ahead = unrolled([slope.detach() for slope in slopes])
        loss = loss_of("validation", ahead)
        found = grad(loss, [*tables.values(), *ahead.values()])
        direct, along = found[: len(tables)], found[len(tables) :]
        if exact:
            mixed = grad(list(slopes), list(tables.values()), grad_outputs=list(along))
        else:
            length = PROBE / torch.sqrt(sum(part.square().sum() for part in along)).clamp(min=1e-12)
            mixed = _difference(length, along)
        return loss, [own - rate * second for own, second in zip(direct, mixed, strict=True)]

    def _difference(length: Any, along: Sequence[Any]) -> list[Any]:
        def shift(by: Any) -> None:
            with torch.no_grad():
                torch._foreach_add_(list(weights.values()), torch._foreach_mul(along, by))

        sides = []
        for by in (length, -2 * length):
            shift(by)
            sides.append(grad(loss_of("train"), list(tables.values())))
        shift(length)
        return [(ahead - behind) / (2 * length) for ahead, behind in zip(*sides, strict=True)]

    def step() -> None:
        seen, gradients = first_order() if options["order"] == "first" else second_order()
        for table, gradient in zip(tables.values(), gradients, strict=True):
            table.grad = gradient
        adam.step()
        sgd.zero_grad(set_to_none=True)
        loss = loss_of("train")
        for weight, gradient in zip(weights.values(), grad(loss, list(weights.values())), strict=True):
            weight.grad = gradient
        length = torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        sgd.step()
        if not first:
            first.extend(np.asarray(value.item()) for value in (seen, loss, length))
            first.extend(gradient.detach().cpu().numpy().copy() for gradient in gradients)

    return Work(step, lambda _: list(first))
