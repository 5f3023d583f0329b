"""Encoders: from one source of a case to features; and the way from Flax modules to models."""

from fusion_jax.encoders.cnn import SmallCNN
from fusion_jax.encoders.folding import fold_batch_norm
from fusion_jax.encoders.layers import Conv, ConvTranspose
from fusion_jax.encoders.linen import as_model, count_parameters
from fusion_jax.encoders.mobilenet import MobileNetV3, MobileNetV3Large, MobileNetV3Maps, MobileNetV3Small
from fusion_jax.encoders.norm import Norm
from fusion_jax.encoders.positional import ValueEncoding, fit_value_encoding
from fusion_jax.encoders.pretrained import Initialisation, load_pretrained, load_state_dict
from fusion_jax.encoders.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, ResNetMaps
from fusion_jax.encoders.tabular import MLP, BitConv, PassThrough

__all__ = [
    "MLP",
    "BitConv",
    "Conv",
    "ConvTranspose",
    "Initialisation",
    "MobileNetV3",
    "MobileNetV3Large",
    "MobileNetV3Maps",
    "MobileNetV3Small",
    "Norm",
    "PassThrough",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "ResNetMaps",
    "SmallCNN",
    "ValueEncoding",
    "as_model",
    "count_parameters",
    "fit_value_encoding",
    "fold_batch_norm",
    "load_pretrained",
    "load_state_dict",
]
