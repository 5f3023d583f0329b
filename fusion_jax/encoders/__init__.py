"""Encoders: from one source of a case to features."""

from fusion_jax.encoders.layers import Conv, ConvTranspose

__all__ = ["Conv", "ConvTranspose"]
