"""Masks by nnU-Net: what is checked before it runs, the orientation it sees, and, where it is installed, itself."""

import json
import logging
import shutil
import sys
from importlib import import_module

import numpy as np
import pytest

from fusion_jax.data import segmentation
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.segmentation import segment

AFFINE = np.array([[0.0, 0, -2, 50], [0, -2, 0, 60], [3, 0, 0, -20], [0, 0, 0, 1]])

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [2, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.modules.activation.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}

RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}

PLANS = {
    "dataset_name": "Dataset900_Shift",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [3.0, 2.0, 2.0],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [16, 16, 16],
            "spacing": [3.0, 2.0, 2.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": RESAMPLING,
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": RESAMPLING,
            "batch_dice": False,
            "architecture": ARCHITECTURE,
        }
    },
}

DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "shifted": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def folder(tmp_path):
    """A model's folder with two folds whose checkpoints are no checkpoints yet."""
    model = tmp_path / "model"
    for fold in ("0", "3"):
        (model / f"fold_{fold}").mkdir(parents=True)
        (model / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(b"not read here")
    write(model, "dataset.json", DATASET)
    write(model, "plans.json", PLANS)
    return model


def write(model, name, content):
    (model / name).write_text(json.dumps(content))


def bright(at=(6, 9, 12), shape=(20, 24, 28)) -> Image:
    """A volume with one bright block, in noise."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    d, h, w = at
    values[d : d + 3, h : h + 4, w : w + 5] += 20
    return Image(values[..., None], (3.0, 2.0, 2.0), AFFINE, "HU")


def beside(image: Image, step: tuple[int, int, int]) -> np.ndarray:
    return np.roll(image.values[..., 0] > 10, step, (0, 1, 2))


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """In place of nnU-Net: labels one voxel up, two back and three left of what is bright, as it sees the array."""
    seen = []

    def predict(values, spacing, model, device, mirroring):
        seen.append((values, spacing, model, device, mirroring))
        return np.roll(values[0] > 10, (1, 2, 3), (0, 1, 2)).astype(np.uint8)

    monkeypatch.setattr(segmentation, "_predict", predict)
    return seen


# Orientation


def test_the_model_sees_z_y_x_with_the_spacing_in_that_order(folder, calls):
    image = bright()
    labels = segment(image, folder, device="cuda:1", mirroring=False)
    [(values, spacing, model, device, mirroring)] = calls
    assert values.shape == (1, 20, 24, 28)
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values[0], image.values[..., 0])
    assert spacing == [3.0, 2.0, 2.0]
    assert [path.parent.name for path in model.checkpoints] == ["fold_0", "fold_3"]
    assert (device, mirroring) == ("cuda:1", False)
    assert (labels.spacing, labels.unit) == (image.spacing, "label")
    np.testing.assert_array_equal(labels.affine, AFFINE)
    np.testing.assert_array_equal(labels.values[..., 0], beside(image, (1, 2, 3)))


@pytest.mark.parametrize(
    ("reader", "axes", "step"),
    [
        ("SimpleITKIO", "LPS", (1, 2, 3)),
        ("SimpleITKIO", "RAS", (1, -2, -3)),
        ("NibabelIO", "LAS", (1, -2, 3)),
        ("Tiff3DIO", "RPI", (-1, 2, -3)),
        ("NibabelIOWithReorient", None, (1, -2, -3)),
        ("SimpleITKIOWithReorient", "RAS", (1, -2, -3)),
    ],
)
def test_the_model_sees_the_orientation_it_was_trained_on_and_the_mask_comes_back(folder, calls, reader, axes, step):
    write(folder, "plans.json", PLANS | {"image_reader_writer": reader})
    image = bright()
    labels = segment(image, folder, axes=axes)
    np.testing.assert_array_equal(labels.values[..., 0], beside(image, step))


def test_channels_go_first(folder, calls):
    write(folder, "dataset.json", DATASET | {"channel_names": {"0": "CT", "1": "PET"}})
    image = bright()
    segment(image._replace(values=np.concatenate([image.values, -image.values], axis=-1)), folder)
    np.testing.assert_array_equal(calls[0][0], np.stack([image.values[..., 0], -image.values[..., 0]]))


@pytest.mark.parametrize(
    ("reader", "axes", "message"),
    [
        ("SimpleITKIO", "PLS", r"axes 'PLS': expected one letter of L and R"),
        ("SimpleITKIO", "LP", r"axes 'LP': expected one letter"),
        ("SimpleITKIO", "ras", r"axes 'ras': expected one letter"),
        ("NibabelIOWithReorient", "LPS", r"NibabelIOWithReorient, turns every image to RAS. Leave it out"),
        ("NaturalImage2DIO", None, r"plans.json: a model of NaturalImage2DIO images; expected one of volumes"),
    ],
)
def test_axes_that_no_volume_has_are_refused(folder, calls, reader, axes, message):
    write(folder, "plans.json", PLANS | {"image_reader_writer": reader})
    with pytest.raises(ValueError, match=message):
        segment(bright(), folder, axes=axes)
    assert not calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones((4, 4, 4, 2))}, r"shape \(4, 4, 4, 2\): expected .* channels, CT \(1\)"),
        ({"values": np.ones((4, 4, 1))}, r"shape \(4, 4, 1\): expected a volume"),
        ({"spacing": None}, "image: spacing is None"),
        ({"spacing": (1.0, 1.0)}, "image: spacing is"),
        ({"values": np.full((4, 4, 4, 1), np.nan)}, "values are not finite"),
        ({"values": np.zeros((4, 4, 4, 1))}, "every value is 0"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(folder, calls, change, message):
    with pytest.raises(ValueError, match=message):
        segment(bright()._replace(**change), folder)
    assert not calls


# The model's folder


def test_all_numbered_folds_are_used_and_told(folder, calls, caplog):
    (folder / "fold_all").mkdir()
    (folder / "fold_all" / "checkpoint_final.pth").touch()
    (folder / "fold_4").mkdir()
    with caplog.at_level(logging.INFO, logger="fusion_jax.data.segmentation"):
        segment(bright(), folder)
    assert [path.parent.name for path in calls[0][2].checkpoints] == ["fold_0", "fold_3"]
    assert caplog.messages == [f"{folder}: folds 0, 3"]
    segment(bright(), folder, folds=["all", 3])
    assert [path.parent.name for path in calls[1][2].checkpoints] == ["fold_all", "fold_3"]


def test_fold_all_is_used_where_it_is_alone(folder, calls):
    (folder / "fold_0").rename(folder / "fold_all")
    (folder / "fold_3" / "checkpoint_final.pth").unlink()
    segment(bright(), folder)
    assert [path.parent.name for path in calls[0][2].checkpoints] == ["fold_all"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"folds": (1,)}, FileNotFoundError, r"fold_1.checkpoint_final.pth: absent; .* is in the folds 0, 3"),
        ({"checkpoint": "checkpoint_best.pth"}, FileNotFoundError, "no fold holds checkpoint_best.pth"),
        ({"folds": (0,), "checkpoint": "b.pth"}, FileNotFoundError, r"b.pth is in the folds \(none\)"),
        ({"folds": ()}, FileNotFoundError, "no fold holds"),
        ({"folds": ("../0",)}, ValueError, r"folds: '\.\./0' is neither a number nor 'all'"),
        ({"checkpoint": "../x.pth"}, ValueError, r"checkpoint '\.\./x\.pth': expected the name of a file"),
    ],
)
def test_a_fold_that_is_not_there_is_named(folder, calls, arguments, error, message):
    with pytest.raises(error, match=message):
        segment(bright(), folder, **arguments)
    assert not calls


@pytest.mark.parametrize("name", ["dataset.json", "plans.json"])
def test_a_missing_or_damaged_description_is_named(folder, calls, name):
    (folder / name).write_text("[1, 2]")
    with pytest.raises(UnreadableFile, match=rf"{name}: holds a list, not an object"):
        segment(bright(), folder)
    (folder / name).write_bytes(b'{"labels": \xff')
    with pytest.raises(UnreadableFile, match=rf"{name}: is no JSON"):
        segment(bright(), folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: absent"):
        segment(bright(), folder)
    assert not calls


@pytest.mark.parametrize(
    ("name", "key"),
    [("dataset.json", "channel_names"), ("dataset.json", "labels"), ("plans.json", "configurations")],
)
def test_a_description_of_something_else_is_named(folder, calls, name, key):
    content = dict(DATASET if name == "dataset.json" else PLANS)
    del content[key]
    write(folder, name, content)
    with pytest.raises(UnreadableFile, match=rf"{name}: has no entry '{key}'.*version 2"):
        segment(bright(), folder)


@pytest.mark.parametrize("where", ["network_class_name", "conv_op"])
def test_plans_cannot_have_anything_imported(folder, calls, where):
    plans = json.loads(json.dumps(PLANS))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    if where == "conv_op":
        architecture["arch_kwargs"]["conv_op"] = "os.system"
    else:
        architecture["network_class_name"] = "os.system"
    write(folder, "plans.json", plans)
    with pytest.raises(ValueError, match=r"plans.json: names 'os.system' to be imported"):
        segment(bright(), folder)
    assert not calls


@pytest.mark.parametrize(
    "change",
    [
        {"configurations": [1]},
        {"configurations": {"3d_fullres": 1}},
        {"configurations": {"3d_fullres": {"architecture": "UNet"}}},
        {"configurations": {"3d_fullres": {"architecture": {"arch_kwargs": {}}}}},
        {"configurations": {"3d_fullres": {"architecture": ARCHITECTURE | {"arch_kwargs": {}}}}},
        {"image_reader_writer": 1},
    ],
)
def test_damaged_plans_are_named(folder, calls, change):
    write(folder, "plans.json", PLANS | change)
    with pytest.raises(UnreadableFile, match=r"plans.json: (has a damaged entry|describes no network)"):
        segment(bright(), folder)
    assert not calls


def test_without_nnunet_the_install_command_is_given(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "fusion-jax\[segmentation\]"'):
        segment(bright(), folder)


# nnU-Net itself

SHIFT = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that nnU-Net built, trained here to label what lies three voxels to the left of what is bright."""
    installed = 'nnunetv2 is not installed: pip install "fusion-jax[segmentation]" in an environment of its own'
    torch = pytest.importorskip("torch", reason=installed)
    pytest.importorskip("nnunetv2", reason=installed)
    training = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    planning = import_module("nnunetv2.utilities.plans_handling.plans_handler")
    torch.manual_seed(0)
    plans = planning.PlansManager(PLANS)
    network = training.nnUNetTrainer.build_network_architecture(
        plans, plans.get_configuration("3d_fullres"), 1, 2, False
    )
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    rng = np.random.default_rng(1)
    for _ in range(100):
        values = rng.normal(size=(2, 1, 16, 16, 16)).astype(np.float32)
        for sample in values[:, 0]:
            d, h, w = rng.integers(1, 10, 3)
            sample[d : d + 3, h : h + 4, w : w + 5] += 20
        labels = np.roll(values[:, 0] > 10, SHIFT, -1)
        labels[..., :SHIFT] = False
        values /= values.std()
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(values)), torch.from_numpy(labels.astype(np.int64)), torch.tensor([1.0, 5.0])
        )
        loss.backward()
        optimiser.step()
    model = tmp_path_factory.mktemp("nnunet") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    write(model, "dataset.json", DATASET)
    write(model, "plans.json", PLANS)
    # The entries that nnUNetTrainer.save_checkpoint writes, NumPy numbers of the log included.
    state = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"plans": PLANS, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(state, model / "fold_0" / "checkpoint_final.pth")
    return model


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "step"), [("LPS", SHIFT), ("RAS", -SHIFT)])
def test_a_trained_model_labels_what_it_learnt(trained, capsys, axes, step):
    image = bright()
    labels = segment(image, trained, axes=axes)
    assert labels.values.shape == image.values.shape
    assert labels.values.dtype.kind in "iu"
    mask = labels.values[..., 0] == 1
    assert dice(mask, beside(image, (0, 0, step))) > 0.9
    # nnU-Net prints; the library does not.
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "reader", "stored", "axes"),
    [
        ("simpleitk", "SimpleITKIO", "LPS", "LPS"),
        ("simpleitk", "SimpleITKIO", "RAS", "RAS"),
        ("simpleitk", "SimpleITKIO", "LAS", "LAS"),
        ("simpleitk", "SimpleITKIOWithReorient", "LPS", None),
        ("simpleitk", "SimpleITKIOWithReorient", "LAI", None),
        ("nibabel", "NibabelIO", "RPS", "RPS"),
        ("nibabel", "NibabelIOWithReorient", "LPS", None),
        ("nibabel", "NibabelIOWithReorient", "LAI", None),
    ],
)
def test_the_model_sees_what_the_reader_of_nnunet_reads(trained, tmp_path, calls, module, reader, stored, axes):
    nibabel = import_module("nibabel")
    image = bright()
    # Indices w, h, d: the directions of AFFINE are those of LPS.
    file = nibabel.Nifti1Image(image.values[..., 0].transpose(2, 1, 0), AFFINE[:, [2, 1, 0, 3]])
    assert "".join(nibabel.aff2axcodes(file.affine)) == "LPS"
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(file.affine), nibabel.orientations.axcodes2ornt(stored)
    )
    nibabel.save(file.as_reoriented(turn), tmp_path / "case_0000.nii.gz")
    readers = import_module(f"nnunetv2.imageio.{module}_reader_writer")
    values, properties = getattr(readers, reader)().read_images([str(tmp_path / "case_0000.nii.gz")])

    model = shutil.copytree(trained, tmp_path / "model")
    write(model, "plans.json", PLANS | {"image_reader_writer": reader})
    segment(image, model, axes=axes)
    np.testing.assert_allclose(calls[0][0], values, rtol=1e-6)
    np.testing.assert_allclose(calls[0][1], properties["spacing"])


@pytest.mark.slow
def test_another_spacing_is_resampled_and_back(trained):
    coarse = bright()
    fine = coarse._replace(values=np.repeat(coarse.values, 2, axis=1), spacing=(3.0, 1.0, 2.0))
    mask = segment(fine, trained).values[..., 0] == 1
    assert mask.shape == fine.values.shape[:3]
    assert dice(mask, beside(fine, (0, 0, SHIFT))) > 0.85


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.slow
def test_a_checkpoint_that_holds_code_is_refused_unrun(trained, tmp_path):
    torch = import_module("torch")
    sprung = tmp_path / "sprung"
    model = shutil.copytree(trained, tmp_path / "model")
    path = model / "fold_0" / "checkpoint_final.pth"
    state = torch.load(path, weights_only=False)
    torch.save(state | {"logging": Trap(sprung)}, path)
    with pytest.raises(UnreadableFile, match=r"checkpoint_final.pth: PyTorch's restricted unpickler refuses it"):
        segment(bright(), model)
    assert not sprung.exists()
    # The trap works: nnU-Net's own way of reading would have run it.
    torch.load(path, weights_only=False)
    assert sprung.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "flipped"])
def test_a_damaged_checkpoint_is_named(trained, tmp_path, damage):
    model = shutil.copytree(trained, tmp_path / "model")
    path = model / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    # The first member of the archive is the pickle of the structure.
    flipped[whole.index(b"network_weights") - 1] ^= 0xFF
    bad = {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 9, "flipped": flipped}
    path.write_bytes(bad[damage])
    with pytest.raises(UnreadableFile, match=r"checkpoint_final.pth"):
        segment(bright(), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"weights": 1}, "has no network_weights, trainer_name, init_args"),
        (lambda state: [1, 2], "has no network_weights"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(trained, tmp_path, change, message):
    torch = import_module("torch")
    model = shutil.copytree(trained, tmp_path / "model")
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save(change(None), path)
    with pytest.raises(UnreadableFile, match=message):
        segment(bright(), model)


@pytest.mark.slow
def test_a_device_that_is_none_is_named(trained):
    with pytest.raises(ValueError, match="device 'gpu': PyTorch knows no such device"):
        segment(bright(), trained, device="gpu")


@pytest.mark.slow
def test_a_cascade_is_refused(trained, tmp_path):
    model = shutil.copytree(trained, tmp_path / "model")
    plans = json.loads(json.dumps(PLANS))
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    write(model, "plans.json", plans)
    with pytest.raises(ValueError, match="a model of 3d_fullres, which refines the masks of another"):
        segment(bright(), model)
