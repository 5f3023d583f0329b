"""Many trainings of a small network in PyTorch, one after the other: what `benchmarks.tabular_folds` is timed beside.

Runs inside the server of `benchmarks.torch_peer`, which hands the module `torch` over.
"""

from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE = 1e-3

Array = np.ndarray


class Work(NamedTuple):
    """What is timed, and how its result looks on the JAX side."""

    call: Any
    export: Any


def tabular_folds(torch: Any, device: str, arrays: dict[str, Array], options: dict[str, Any]) -> Work:
    """A loop over trainings, epochs and steps: the way this is usually written.

    `arrays` hold `values` (n, f), `label` (n,), `orders` (t, epochs, steps, batch) with -1 for padding, and the first
    weights of every training as `kernel_0` (t, f, h), `bias_0` (t, h) and so on; `options` the number of threads and
    whether Adam is PyTorch's fused one.
    """
    nn = torch.nn
    values, label = (torch.from_numpy(arrays[name]).to(device) for name in ("values", "label"))
    label = label.float()
    kernels = [arrays[name] for name in sorted(arrays) if name.startswith("kernel")]
    biases = [arrays[name] for name in sorted(arrays) if name.startswith("bias")]
    orders = [
        [[torch.from_numpy(rows[rows >= 0]).long().to(device) for rows in epoch if (rows >= 0).any()] for epoch in own]
        for own in arrays["orders"]
    ]
    measure = nn.BCEWithLogitsLoss()

    def network(number: int) -> Any:
        layers: list[Any] = []
        for kernel, bias in zip(kernels, biases, strict=True):
            linear = nn.Linear(*kernel.shape[1:], device=device)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel[number].T)))
                linear.bias.copy_(torch.from_numpy(bias[number]))
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def call() -> list[Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(options["threads"])
        trained = []
        for number, own in enumerate(orders):
            model = network(number)
            adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=options["fused"])
            for epoch in own:
                for rows in epoch:
                    adam.zero_grad()
                    measure(model(values[rows])[:, 0], label[rows]).backward()
                    adam.step()
            trained.append(model)
        torch.set_num_threads(before)
        return trained

    def export(trained: list[Any]) -> list[Array]:
        linear = [[layer for layer in model if hasattr(layer, "weight")] for model in trained]
        return [
            np.stack([getattr(layers[i], part).detach().cpu().numpy() for layers in linear])
            for i in range(len(kernels))
            for part in ("weight", "bias")
        ]

    return Work(call, export)
