r"""Weights that others trained: a PyTorch state dict becomes the variables of an encoder, by name and exactly.

Nothing is downloaded. Torchvision's ImageNet weights are files such as `resnet18-f37072fd.pth`,
`resnet50-0676ba61.pth`, `resnet152-394f9c45.pth`, `mobilenet_v3_small-047dcff4.pth` and
`mobilenet_v3_large-8738ca79.pth`, whose names end in the first eight digits of their SHA-256; timm's are
`model.safetensors` in the repositories `timm/resnet50.a1_in1k`, `timm/resnet152.a1h_in1k`,
`timm/mobilenetv3_large_100.ra_in1k` and their like. Give the SHA-256 that your source states: it is checked, and
recorded with the run either way. ImageNet networks expect three channels in [0, 1], less (0.485, 0.456, 0.406), over
(0.229, 0.224, 0.225). timm's own MobileNetV3, other than its `tf_` ones, was trained with an epsilon of 1e-5 in batch
norm where ours, as published, has 1e-3: features differ a little until they are trained further.

Names of torchvision and timm are understood for residual networks, in 2-D and inflated to 3-D, and for MobileNetV3:

=====================================  ==========================================  ====================================
theirs                                 ours                                        tensor
=====================================  ==========================================  ====================================
`layer1.0.conv1.weight`                `params/layer1_0/conv1/kernel`              (o, i, *k) becomes (*k, i, o)
`layer1.0.downsample.1.weight`         `params/layer1_0/downsample_bn/scale`       as it is
`layer1.0.bn1.running_mean`            `batch_stats/layer1_0/bn1/mean`             as it is
`features.4.block.2.fc1.weight`        `params/block_3/se_reduce/kernel`           as above; a dense layer has no k
`bn1.num_batches_tracked`              none                                        ignored
`fc`, `classifier`                     none, but a hidden layer that we have too   dropped, with a line in the log
=====================================  ==========================================  ====================================
"""

import hashlib
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fusion_jax.arrays import Variables
from fusion_jax.wording import listed

__all__ = [
    "Inflation",
    "Initialisation",
    "Loaded",
    "StateDict",
    "convert",
    "flatten",
    "load_pretrained",
    "load_state_dict",
    "unflatten",
]

logger = logging.getLogger(__name__)

Inflation = Literal["repeat", "centre"]

SHOWN = 4
"""Tensors of each kind of mismatch that a message names."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the state dict beside an optimiser's."""

OWN = "another model of ours"

KEPT = "projection"
"""Our own layer behind a network: published files lack it, and then it keeps its initial values."""

STEMS = ("conv1/kernel", "stem_conv/kernel")
ROLES = ("expand", "depthwise", "project")
"""Convolutions of a block of MobileNetV3."""
CLASSIFIERS = ("fc", "classifier", "classifier.0", "classifier.3", "conv_head", "head.fc")


class Initialisation(NamedTuple):
    """How the weights of a source's encoder began; `_asdict()` is its record in a run folder.

    Attributes:
      kind: "random" or "pretrained".
      file: name of the weight file, without its folder.
      sha256: of the file, 64 hexadecimal digits.
      origin: where its user says it came from.
    """

    kind: Literal["random", "pretrained"] = "random"
    file: str = ""
    sha256: str = ""
    origin: str = ""


class StateDict(NamedTuple):
    """Tensors of a weight file by name, and which file it was.

    Attributes:
      tensors: name to array; floating ones in float32.
      file: name of the file.
      sha256: of the whole file.
    """

    tensors: Mapping[str, np.ndarray]
    file: str
    sha256: str


class Loaded(NamedTuple):
    """What `load_pretrained` returns.

    Attributes:
      variables: of the model, with the encoder's weights replaced.
      initialisation: for the record.
    """

    variables: Variables
    initialisation: Initialisation


def load_pretrained(
    path: str | Path,
    variables: Variables,
    *,
    at: Sequence[str] = (),
    sha256: str | None = None,
    origin: str = "",
    prefix: str = "",
    inflate: Inflation | None = None,
) -> Loaded:
    """Variables of a model with the weights of a file in one of its encoders.

    Args:
      path: see `load_state_dict`.
      variables: of the model, as `init` gives them.
      at: names of the modules that lead to the encoder, `("encoders_image",)` for the source `image` of a
        `FusionClassifier`; empty where the variables are the encoder's own.
      sha256: expected SHA-256 of the file, see `load_state_dict`.
      origin: where the file came from, for the record.
      prefix, inflate: see `convert`.

    Returns:
      The variables and the record of the file.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `load_state_dict` and `convert`.
    """
    state = load_state_dict(path, sha256=sha256)
    try:
        converted = convert(state.tensors, variables, at=at, prefix=prefix, inflate=inflate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Loaded(converted, Initialisation("pretrained", state.file, state.sha256, origin))


def load_state_dict(path: str | Path, *, sha256: str | None = None) -> StateDict:
    """Tensors of a weight file; nothing in it is executed.

    Args:
      path: `.safetensors`, or PyTorch's `.pth`, `.pt`, `.bin` or `.ckpt`, which need PyTorch and are read with
        `weights_only=True`. A state dict inside a training script's checkpoint is found.
      sha256: expected SHA-256, or its first digits, at least eight. None takes the file as it is.

    Returns:
      The tensors, and the SHA-256 that the file has.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: a PyTorch file without PyTorch; the message has the install command.
      ValueError: another suffix or SHA-256, a damaged file, or one that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected weights in .safetensors, or PyTorch's .pth.")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ValueError(
            f"{path}: weights in {path.suffix or 'a file without suffix'}; expected .safetensors or "
            f"{', '.join(TORCH_SUFFIXES)}. Rename the file if it is one of them."
        )
    found = _sha256(path)
    if sha256 is not None:
        expected = sha256.lower()
        if not re.fullmatch(r"[0-9a-f]{8,64}", expected):
            raise ValueError(f"sha256 is {sha256!r}; expected 64 hexadecimal digits, or at least the first eight.")
        if not found.startswith(expected):
            raise ValueError(
                f"{path}: its SHA-256 is {found}, and {sha256} was expected: another file, or a damaged one. Fetch it "
                "again, or correct the expected value if you know where this one came from."
            )
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return StateDict(tensors, path.name, found)


def convert(
    state: Mapping[str, Any],
    variables: Variables,
    *,
    at: Sequence[str] = (),
    prefix: str = "",
    inflate: Inflation | None = None,
) -> Variables:
    r"""Variables with a state dict of PyTorch in the place of an encoder's.

    Every tensor of the encoder is replaced; only a layer `projection` of our own, which comes after the network, keeps
    what it has where the file lacks it. The first convolution is adapted to other numbers of channels: each of `c`
    channels gets :math:`\frac1c \sum_j W_j` of the published :math:`W_j`, three times their mean over `c`, so that an
    image with equal channels is answered as before.

    Args:
      state: name to tensor, from `load_state_dict`, of torchvision's or timm's ResNet or MobileNetV3, of a 3-D
        ResNet with their names, or with the names that `flatten` gives: of such an encoder alone, or of a model that
        has it at the same place.
      variables: of the model, as `init` gives them; the collections `params` and `batch_stats` are replaced at `at`.
      at: names of the modules that lead to the encoder.
      prefix: what the names of the encoder's tensors begin with, when the file holds more than it; tensors with other
        names are left out. `module.`, of parallel training, needs no mention.
      inflate: how 2-D kernels fill a 3-D encoder: "repeat" in each of `k` depths, divided by `k`, which answers an
        image that is constant in depth as before, or in the "centre" depth alone, which looks at each slice by itself.

    Returns:
      New variables, float32; the input is unchanged.

    Raises:
      ValueError: an unknown family of names, or tensors that are missing, too many, of another shape or not finite: one
        message with the first of each kind and their numbers.

    Example:
      >>> import jax
      >>> from fusion_jax.encoders import ResNet18
      >>> images, key = jnp.zeros((1, 32, 32, 1)), jax.random.key(0)
      >>> shapes = jax.eval_shape(lambda: ResNet18(width=8).init(key, images, train=False))
      >>> convert({"layer1.0.conv1.weight": np.zeros((8, 8, 3, 3)), "fc.weight": np.zeros((10, 64))}, shapes)
      Traceback (most recent call last):
      ValueError: tensors of a ResNet do not fit the encoder.
        99 missing in the file: params/bn1/bias, params/bn1/scale, params/conv1/kernel, ... and 95 more
      Expected the weights of the same architecture, depth and width, trained with batch norm (1 of 100 have a place).

    References:
      Carreira and Zisserman 2017 for the inflation of kernels.
    """
    if inflate not in (None, "repeat", "centre"):
        raise ValueError(f"inflate is {inflate!r}; expected None, 'repeat' or 'centre'.")
    named = _stripped(state, prefix)
    expected = _tensors_at(variables, at)
    family, targets = _targets(named, at)
    found: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    extra, dropped = [], []
    for name, target in targets.items():
        if target in expected:
            found[target], sources[target] = np.asarray(named[name]), name
        elif name.rpartition(".")[0] in CLASSIFIERS or KEPT in name.split("/"):
            dropped.append(name)
        else:
            extra.append(name)
    missing = [name for name in expected if name not in found and name.split("/")[1] != KEPT]
    missing.sort(key=lambda name: name.startswith("batch_stats/"))
    misshaped, infinite = [], []
    converted = _copied(variables)
    for name, tensor in found.items():
        ours = tensor if family == OWN else _transposed(name, tensor)
        placed = _fitted(name, ours, expected[name].shape, inflate)
        if placed is None:
            misshaped.append(f"{sources[name]} {tensor.shape} for {name} {expected[name].shape}")
        elif not np.isfinite(placed).all():
            infinite.append(sources[name])
        else:
            collection, *path, last = name.split("/")
            inner = converted[collection]
            for part in (*at, *path):
                inner = inner[part]
            inner[last] = jnp.asarray(placed)
    problems = {
        "missing in the file": missing,
        "not in the encoder": extra,
        "of another shape, the file's beside the encoder's": misshaped,
        "not finite": infinite,
    }
    if any(problems.values()):
        raise ValueError(_explain(family, at, problems, found, expected))
    if dropped:
        logger.info("%s: left out what comes after it, %s", family, listed(dropped))
    return converted


def flatten(variables: Mapping[str, Any], *, as_they_are: bool = False) -> dict[str, Any]:
    """Nested variables as one table of arrays, for files that hold names and tensors.

    Args:
      variables: nested mappings, collections first.
      as_they_are: leave the arrays on their devices; otherwise they are copied into NumPy's.

    Returns:
      Names such as `params/conv1/kernel`, sorted, to arrays. Empty mappings leave no trace.

    Raises:
      ValueError: a name with a slash, which could not be told from nesting.

    Example:
      >>> list(flatten({"params": {"out": {"kernel": jnp.ones(2), "bias": jnp.zeros(1)}}}))
      ['params/out/bias', 'params/out/kernel']
    """
    flat = {}
    for path, value in traverse_util.flatten_dict(dict(variables)).items():
        for part in path:
            if "/" in str(part):
                raise ValueError(
                    f"variables have the name {part!r}; expected names without a slash. Rename the source."
                )
        flat["/".join(map(str, path))] = value if as_they_are else np.asarray(value)
    return dict(sorted(flat.items()))


def unflatten(arrays: Mapping[str, Any]) -> Variables:
    """Nested variables from the table that `flatten` gives.

    Raises:
      ValueError: a name that is both an array and a mapping of others.

    Example:
      >>> unflatten({"params/out/bias": 0})
      {'params': {'out': {'bias': 0}}}
    """
    for name in arrays:
        parts = name.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in arrays:
                raise ValueError(f"{'/'.join(parts[:end])!r} is an array, and {name!r} would lie inside it.")
    return traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in arrays.items()})


# Files.


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: _single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file ({error}); expected a whole one. Fetch it again.") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        torch = import_module("torch")
    except ImportError:
        raise ImportError(
            f'{path}: PyTorch reads this kind of file, and is not installed: pip install "fusion-jax[convert]". '
            "A .safetensors file needs no PyTorch."
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: holds more than tensors, or is no file of PyTorch's ({reason}). Nothing in it was executed. "
            "Save its state_dict() alone, best as .safetensors."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: no whole file of PyTorch's ({error}). Fetch it again.") from None
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{path}: holds a {type(content).__name__} without tensors; expected a state dict, names to tensors."
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def _single(array: np.ndarray) -> np.ndarray:
    # bfloat16 comes as the dtype that JAX registers with NumPy, which knows only that it is no integer.
    return array if np.issubdtype(array.dtype, np.integer) or array.dtype == bool else array.astype(np.float32)


# Names.


def _stripped(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not prefix:
        return named
    chosen = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
    if not chosen:
        raise ValueError(f"no tensor begins with {prefix!r}; found {listed(named, SHOWN)}.")
    return chosen


def _targets(named: Mapping[str, Any], at: Sequence[str]) -> tuple[str, dict[str, str | None]]:
    """Which family the names are of, and our name for each that matters; None where we have none."""
    if any(name.startswith("params/") for name in named):
        return OWN, dict(_own_targets(named, at))
    family, rename = _family(named)
    targets = {}
    for name, tensor in named.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            ours = rename(module)
            targets[name] = None if ours is None else _leaf(ours, leaf, np.ndim(tensor))
    return family, targets


def _own_targets(names: Iterable[str], at: Sequence[str]) -> dict[str, str]:
    """Of a file with our names: those of the encoder, which may be the whole of it or lie at the same place."""
    collections = ("params", "batch_stats")
    alone = {name: name for name in names if name.split("/")[0] in collections}
    inside = {
        name: "/".join([name.split("/")[0], *name.split("/")[1 + len(at) :]])
        for name in alone
        if name.split("/")[1 : 1 + len(at)] == list(at)
    }
    return inside or alone


def _family(names: Iterable[str]) -> tuple[str, Callable[[str], str | None]]:
    """What a network it is, and the rule from the name of its modules to that of ours, None where there is none."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if "layer1.0.conv1" in modules:
        return "a ResNet", _rename_resnet
    if "features.1.block.0.0" in modules:
        return "a MobileNetV3", _torchvision_mobilenet(modules).get
    if "conv_stem" in modules:
        return "a MobileNetV3", _timm_mobilenet(modules).get
    raise ValueError(
        f"no names of torchvision's or timm's ResNet or MobileNetV3, and none of ours; found {listed(names, SHOWN)}. "
        "If a prefix hides them, name it as prefix=...; other families have no encoder here."
    )


def _rename_resnet(module: str) -> str | None:
    for pattern, ours in (
        (r"(conv1|bn1)", r"\1"),
        (r"layer(\d)\.(\d+)\.(conv\d|bn\d)", r"layer\1_\2/\3"),
        (r"layer(\d)\.(\d+)\.downsample\.0", r"layer\1_\2/downsample_conv"),
        (r"layer(\d)\.(\d+)\.downsample\.1", r"layer\1_\2/downsample_bn"),
    ):
        if match := re.fullmatch(pattern, module):
            return match.expand(ours)
    return None


def _torchvision_mobilenet(modules: list[str]) -> dict[str, str]:
    """`features.0` is the stem, the last of `features` the convolution before pooling, blocks lie between."""
    ours = {"classifier.0": "embedding", "features.0.0": "stem_conv", "features.0.1": "stem_bn"}
    last = max(int(name.split(".")[1]) for name in modules if name.startswith("features."))
    ours |= {f"features.{last}.0": "head_conv", f"features.{last}.1": "head_bn"}
    for number in range(1, last):
        inside, block = f"features.{number}.block.", f"block_{number - 1}"
        parts = dict.fromkeys(int(name.split(".")[3]) for name in modules if name.startswith(inside))
        convolutions = sorted(part for part in parts if f"{inside}{part}.0" in modules)
        # A block that is wide enough does not expand: there are two convolutions.
        for part, role in zip(convolutions, ROLES[-len(convolutions) :], strict=False):
            ours |= {f"{inside}{part}.0": f"{block}/{role}_conv", f"{inside}{part}.1": f"{block}/{role}_bn"}
        for part in parts:
            ours |= {f"{inside}{part}.fc1": f"{block}/se_reduce", f"{inside}{part}.fc2": f"{block}/se_expand"}
    return ours


def _timm_mobilenet(modules: list[str]) -> dict[str, str]:
    """Blocks are numbered within stages; the last stage is the convolution before pooling."""
    ours = {"conv_stem": "stem_conv", "bn1": "stem_bn", "conv_head": "embedding"}
    found = {tuple(map(int, name.split(".")[1:3])) for name in modules if name.startswith("blocks.")}
    for number, (stage, within) in enumerate(sorted(found)):
        theirs, block = f"blocks.{stage}.{within}.", f"block_{number}"
        if f"{theirs}conv" in modules:
            ours |= {f"{theirs}conv": "head_conv", f"{theirs}bn1": "head_bn"}
            continue
        expands = f"{theirs}conv_pwl" in modules
        convolutions = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
        roles = zip(convolutions, ROLES[-len(convolutions) :], strict=True)
        for norm, (convolution, role) in enumerate(roles, start=1):
            ours |= {theirs + convolution: f"{block}/{role}_conv", f"{theirs}bn{norm}": f"{block}/{role}_bn"}
        ours |= {f"{theirs}se.conv_reduce": f"{block}/se_reduce", f"{theirs}se.conv_expand": f"{block}/se_expand"}
    return ours


def _leaf(module: str, leaf: str, axes: int) -> str:
    if leaf in ("running_mean", "running_var"):
        return f"batch_stats/{module}/{leaf.removeprefix('running_')}"
    return f"params/{module}/{'bias' if leaf == 'bias' else 'kernel' if axes > 1 else 'scale'}"


# Tensors.


def _tensors_at(variables: Variables, at: Sequence[str]) -> dict[str, Any]:
    """Arrays of the encoder by the names that they would have in variables of its own."""
    flat = flatten({name: variables.get(name, {}) for name in ("params", "batch_stats")}, as_they_are=True)
    inside = {}
    for name, array in flat.items():
        collection, *path = name.split("/")
        if path[: len(at)] == list(at) and len(path) > len(at):
            inside["/".join([collection, *path[len(at) :]])] = array
    if not inside:
        modules = sorted(variables.get("params", {}))
        raise ValueError(
            f"the model has no parameters at {'/'.join(at)!r}; found the modules {listed(modules, SHOWN)}."
        )
    return inside


def _copied(tree: Any) -> Any:
    """Nested mappings as new dicts with the same arrays, empty ones included."""
    return {name: _copied(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _transposed(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor of PyTorch's, `(o, i, *k)`, in our layout, `(*k, i, o)`."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if name.endswith("/kernel") else tensor


def _fitted(name: str, array: np.ndarray, shape: tuple[int, ...], inflate: Inflation | None) -> np.ndarray | None:
    """The array, adapted to the encoder's shape where that keeps its meaning; None where it does not fit."""
    array = np.asarray(array, np.float32)
    if name.endswith("/kernel"):
        dense, pointwise = len(shape) == 2, all(size == 1 for size in array.shape[:-2])
        if pointwise and (dense or array.ndim == 2):
            # A dense layer is a convolution of one position.
            array = array.reshape((1,) * (len(shape) - 2) + array.shape[-2:])
        if inflate is not None and array.ndim == len(shape) - 1 == 4:
            array = _inflated(array, shape[0], inflate)
        channels = array.shape[-2]
        if name.removeprefix("params/") in STEMS and array.ndim == len(shape) and channels != shape[-2]:
            array = np.repeat(array.sum(axis=-2, keepdims=True) / shape[-2], shape[-2], axis=-2)
            logger.info("%s: adapted from %d channels to %d", name, channels, shape[-2])
    return array if array.shape == tuple(shape) else None


def _inflated(kernel: np.ndarray, depth: int, inflate: Inflation) -> np.ndarray:
    if inflate == "repeat":
        return np.repeat(kernel[None] / depth, depth, axis=0)
    inflated = np.zeros((depth, *kernel.shape), kernel.dtype)
    inflated[depth // 2] = kernel
    return inflated


def _explain(
    family: str,
    at: Sequence[str],
    problems: Mapping[str, list[str]],
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
) -> str:
    where = f" at {'/'.join(at)}" if at else ""
    lines = [f"tensors of {family} do not fit the encoder{where}."]
    lines += [f"  {len(names)} {problem}: {listed(names, SHOWN)}" for problem, names in problems.items() if names]
    expectation = "Expected the weights of the same architecture, depth and width"
    if family != OWN:
        expectation += ", trained with batch norm"
    deeper = any(expected[name].ndim == tensor.ndim + 1 == 5 for name, tensor in found.items())
    if problems["of another shape, the file's beside the encoder's"] and deeper:
        return "\n".join([*lines, "2-D kernels enter a 3-D encoder with inflate='repeat' or 'centre'."])
    if family != OWN and not any(name.startswith("batch_stats/") for name in expected):
        return "\n".join([*lines, f"{expectation}; the encoder has none: take norm='batch'."])
    return "\n".join([*lines, f"{expectation} ({len(found)} of {len(expected)} have a place)."])
