"""Masks made by a trained nnU-Net v2, for images that come without them.

A mask is usually read from a file like any other image. Where there is none, `segment` runs a model that somebody
trained with nnU-Net: the folder that `nnUNetv2_train` wrote, with `dataset.json`, `plans.json` and one `fold_…` folder
with a checkpoint for each fold. Needs the optional extra: `pip install "fusion-jax[segmentation]"`.

**Foreign checkpoints.** nnU-Net reads checkpoints by unrestricted unpickling, which runs whatever code is in the file
(2.8.1, `torch.load(..., weights_only=False)`). Here every checkpoint is first read by PyTorch's restricted unpickler,
which accepts tensors, plain containers and NumPy numbers and stops at anything else; of what it read, the four entries
that prediction needs are written to a private temporary folder, and nnU-Net gets those files. It never opens the
foreign one. `plans.json` names classes to import; only PyTorch's layers and nnU-Net's own architectures are accepted.
What is left to trust is that PyTorch's restricted unpickler has no hole, and the installed nnU-Net itself.
"""

import codecs
import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Integer

from fusion_jax.data.image import Image, UnreadableFile

__all__ = ["segment"]

logger = logging.getLogger(__name__)

INSTALL = 'pip install "fusion-jax[segmentation]"'
NEEDED = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")
"""What prediction reads of a checkpoint; the rest is the state of the optimiser and the log."""

IMPORTABLE = ("dynamic_network_architectures.", "torch.nn.")

READER_AXES = {"NibabelIOWithReorient": "RAS", "SimpleITKIOWithReorient": "RAS"}
"""Readers of nnU-Net that turn every image to one orientation; the others keep that of the file."""

CANONICAL_AXES = "LPS"
"""Directions in which w, h and d grow in an `Image`: to the left, to the back, to the head."""


class Model(NamedTuple):
    """A trained model on disk, whose files are there and whose JSON was read."""

    folder: Path
    dataset: dict[str, Any]
    plans: dict[str, Any]
    checkpoints: tuple[Path, ...]


def segment(
    image: Image,
    model_folder: str | Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: str = "cpu",
    mirroring: bool = True,
    axes: str | None = None,
) -> Image:
    """Labels of a volume by a trained nnU-Net v2, on the volume's own grid.

    Resampling, normalisation, tiling and the average over folds and mirrored copies are nnU-Net's.

    Args:
      image: volume with spacing and one channel for each of the model's, in the units it was trained on (HU for CT).
      model_folder: the folder with `dataset.json`, `plans.json` and `fold_…`.
      folds: numbers, or "all" for the model trained on every case; all numbered folds that hold the checkpoint unless
        given, and `fold_all` where there are none.
      checkpoint: name of the file in each fold.
      device: as PyTorch names it: "cpu", "cuda", "cuda:1", "mps".
      mirroring: average over mirrored copies, up to 8 times slower; nnU-Net's default.
      axes: directions in which x, y and z grew in the files that the model was trained on, as three letters: "LPS" as
        scanners store axial slices, "RAS", "LAS" as many converters to NIfTI write. nnU-Net itself keeps the
        orientation of a file, so a model sees the mirror image where files differ. "LPS" unless given, and "RAS" for
        models whose reader reorients.

    Returns:
      Integer labels, shape `(d, h, w, 1)`, with the spacing and affine of `image`; what they mean is in `dataset.json`.

    Raises:
      FileNotFoundError: if a file of the model is absent; it is named.
      UnreadableFile: if one is damaged, or a checkpoint holds more than tensors, plain values and NumPy numbers.
      ValueError: if image and model do not fit, or the model needs what is not supported (cascades, classes of others).
      ImportError: if nnU-Net is not installed.

    Example:
      >>> ct = Image(np.zeros((8, 8, 8, 1), np.float32), (1.0, 1.0, 1.0), None, "HU")
      >>> segment(ct, "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres")
      Traceback (most recent call last):
      FileNotFoundError: Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres: no such folder. ...

    References:
      Isensee et al. 2021, nnU-Net, Nature Methods 18:203, doi:10.1038/s41592-020-01008-z.
    """
    model = _read_model(Path(model_folder), folds, checkpoint)
    flips = _flips(axes, model)
    values, spacing = _to_network(image, flips, model)
    labels = _predict(values, spacing, model, device, mirroring)
    # A flip is its own inverse.
    return Image(np.ascontiguousarray(np.flip(labels, flips))[..., None], image.spacing, image.affine, "label")


def _read_model(folder: Path, folds: Sequence[int | str] | None, checkpoint: str) -> Model:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Give the folder that nnUNetv2_train wrote, "
            "DATASET/TRAINER__PLANS__CONFIGURATION; it holds dataset.json, plans.json and fold_0 or fold_all."
        )
    dataset, plans = (_read_json(folder / name) for name in ("dataset.json", "plans.json"))
    for name, content, key, kind in (
        ("dataset.json", dataset, "channel_names", dict),
        ("dataset.json", dataset, "labels", dict),
        ("plans.json", plans, "configurations", dict),
        ("plans.json", plans, "image_reader_writer", str),
    ):
        if not isinstance(content.get(key), kind):
            found = f"has {'no' if key not in content else 'a damaged'} entry {key!r}"
            raise UnreadableFile(folder / name, found, "Give the folder of a model of nnU-Net version 2.")
    for name in _imported_names(folder / "plans.json", plans["configurations"]):
        if not str(name).startswith(IMPORTABLE):
            raise ValueError(
                f"{folder / 'plans.json'}: names {name!r} to be imported; expected nnU-Net's own architectures and "
                "PyTorch's layers. Run a model with other classes by nnUNetv2_predict and read its masks from files."
            )
    return Model(folder, dataset, plans, _checkpoints(folder, folds, checkpoint))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: absent. nnUNetv2_train writes it beside the folds; copy it from the model's source."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(path, f"is no JSON ({error})", "Copy it again from the model's source.") from error
    if not isinstance(content, dict):
        raise UnreadableFile(path, f"holds a {type(content).__name__}, not an object", "Copy it again.")
    return content


def _imported_names(path: Path, configurations: dict[str, Any]) -> list[Any]:
    """Names that nnU-Net imports to build the network."""
    names = []
    try:
        for configuration in configurations.values():
            if architecture := configuration.get("architecture"):
                arguments = architecture["arch_kwargs"]
                imported = [arguments[key] for key in architecture["_kw_requires_import"]]
                names += [architecture["network_class_name"], *(name for name in imported if name is not None)]
    except (AttributeError, KeyError, TypeError) as error:
        raise UnreadableFile(
            path, f"describes no network ({_first_line(error)})", "Give the folder of a model of nnU-Net version 2."
        ) from error
    return names


def _checkpoints(folder: Path, folds: Sequence[int | str] | None, checkpoint: str) -> tuple[Path, ...]:
    if Path(checkpoint).name != checkpoint:
        raise ValueError(f"checkpoint {checkpoint!r}: expected the name of a file in each fold, without a folder.")
    there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if folds is None:
        folds = [fold for fold in there if fold.isdecimal()] or [fold for fold in there if fold == "all"]
        logger.info("%s: folds %s", folder, ", ".join(folds))
    if not folds:
        raise FileNotFoundError(
            f"{folder}: no fold holds {checkpoint}. Name another `checkpoint`, such as checkpoint_best.pth, or copy "
            "the folds from the model's source."
        )
    for fold in folds:
        if str(fold) != "all" and not str(fold).isdecimal():
            raise ValueError(f"folds: {fold!r} is neither a number nor 'all'.")
        if not (folder / f"fold_{fold}" / checkpoint).is_file():
            raise FileNotFoundError(
                f"{folder / f'fold_{fold}' / checkpoint}: absent; {checkpoint} is in the folds "
                f"{', '.join(there) or '(none)'}. Choose `folds` of these, or another `checkpoint`."
            )
    return tuple(folder / f"fold_{fold}" / checkpoint for fold in folds)


def _flips(axes: str | None, model: Model) -> tuple[int, ...]:
    """Axes of a canonical `(d, h, w)` volume along which the model saw the mirror image."""
    reader = model.plans["image_reader_writer"]
    if reader == "NaturalImage2DIO":
        raise ValueError(f"{model.folder / 'plans.json'}: a model of {reader} images; expected one of volumes.")
    fixed = READER_AXES.get(reader)
    if fixed and axes not in (None, fixed):
        raise ValueError(f"axes {axes!r}: the model's reader, {reader}, turns every image to {fixed}. Leave it out.")
    wanted = fixed or axes or CANONICAL_AXES
    opposite = str.maketrans("LRPASI", "RLAPIS")
    if len(wanted) != 3 or any(
        letter not in (own, own.translate(opposite)) for letter, own in zip(wanted, CANONICAL_AXES, strict=True)
    ):
        raise ValueError(
            f"axes {axes!r}: expected one letter of L and R, one of P and A, one of S and I, such as 'LPS' or 'RAS'."
        )
    # x is the last axis of an array and the first letter.
    return tuple(2 - i for i, (letter, own) in enumerate(zip(wanted, CANONICAL_AXES, strict=True)) if letter != own)


def _to_network(
    image: Image, flips: tuple[int, ...], model: Model
) -> tuple[Float32[np.ndarray, "c d h w"], list[float]]:
    """Channels first, z y x, with the spacing in the same order."""
    channels = list(model.dataset["channel_names"].values())
    shape = image.values.shape
    if len(shape) != 4 or shape[3] != len(channels):
        raise ValueError(
            f"image of shape {shape}: expected a volume (d, h, w, c) with the model's channels, "
            f"{', '.join(map(str, channels))} ({len(channels)})."
        )
    if image.spacing is None or len(image.spacing) != 3:
        raise ValueError(f"image: spacing is {image.spacing}; expected (dz, dy, dx) in mm, which nnU-Net resamples by.")
    if not np.isfinite(image.values).all():
        raise ValueError("image: values are not finite. Replace them first.")
    if not image.values.any():
        raise ValueError("image: every value is 0. nnU-Net crops to what is not 0, so nothing would be left.")
    values = np.flip(image.values, flips)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32), [float(step) for step in image.spacing]


def _predict(
    values: Float32[np.ndarray, "c d h w"], spacing: list[float], model: Model, device: str, mirroring: bool
) -> Integer[np.ndarray, "d h w"]:
    """What nnU-Net makes of an array; what it prints goes to the log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), tempfile.TemporaryDirectory(prefix="fusion_jax_nnunet_") as copy:
            try:
                torch = import_module("torch")
                predict = import_module("nnunetv2.inference.predict_from_raw_data")
            except ImportError as error:
                raise ImportError(f"segmentation needs nnU-Net 2 and PyTorch: {INSTALL}") from error

            try:
                target = torch.device(device)
            except RuntimeError as error:
                raise ValueError(f"device {device!r}: PyTorch knows no such device ({_first_line(error)}).") from error
            _copy_restricted(model, Path(copy))
            predictor = predict.nnUNetPredictor(
                device=target,
                perform_everything_on_device=target.type == "cuda",
                use_mirroring=mirroring,
                allow_tqdm=False,
            )
            folds = tuple(path.parent.name.removeprefix("fold_") for path in model.checkpoints)
            predictor.initialize_from_trained_model_folder(copy, folds, model.checkpoints[0].name)
            labels = predictor.predict_single_npy_array(values, {"spacing": spacing})
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug("nnunetv2: %s", line)
    return np.asarray(labels)


def _copy_restricted(model: Model, copy: Path) -> None:
    """Write to `copy` what the restricted unpickler reads of the model's checkpoints, and both JSON files."""
    torch = import_module("torch")
    scalar = np.float64(0).__reduce__()[0]
    # Training logs are NumPy numbers; NumPy 1 kept their constructor under another name.
    harmless = [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
        (codecs.encode, "_codecs.encode"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    ]
    # Not copied from the files: these are the contents that were checked.
    for name, content in (("dataset.json", model.dataset), ("plans.json", model.plans)):
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
    for path in model.checkpoints:
        try:
            with torch.serialization.safe_globals(harmless):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a parser of foreign bytes: damaged ones end in nearly any class
            raise UnreadableFile(
                path,
                f"PyTorch's restricted unpickler refuses it ({_first_line(error)})",
                "Copy it again from the model's source; if it is whole, it holds objects of other classes, which could "
                "run code: have its author save tensors and plain values, or predict with nnUNetv2_predict.",
            ) from error
        missing = [key for key in NEEDED[:3] if not isinstance(state, dict) or key not in state]
        if missing:
            raise UnreadableFile(path, f"has no {', '.join(missing)}", "Give a checkpoint that nnUNetv2_train wrote.")
        configuration = state["init_args"].get("configuration")
        if (model.plans["configurations"].get(configuration) or {}).get("previous_stage"):
            raise ValueError(
                f"{path}: a model of {configuration}, which refines the masks of another model. Give the folder of a "
                "model that reads images alone, such as 3d_fullres."
            )
        kept = copy / path.parent.name
        kept.mkdir()
        torch.save({key: state.get(key) for key in NEEDED}, kept / path.name)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
