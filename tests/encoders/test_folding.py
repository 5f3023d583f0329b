"""Folding batch norm into convolutions changes nothing but the work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.arrays import Outputs
from fusion_jax.encoders import resnet
from fusion_jax.encoders.cnn import SmallCNN
from fusion_jax.encoders.folding import fold_batch_norm
from fusion_jax.encoders.mobilenet import MobileNetV3
from fusion_jax.encoders.norm import Norm
from fusion_jax.encoders.resnet import ResNet
from fusion_jax.encoders.tabular import MLP
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 16, 16, 1)).astype(np.float32)


def trained(module, *inputs, **keywords):
    """Variables as training might leave them: no scale is one, no mean zero."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False, **keywords))

    def drawn(path, leaf):
        name = path[-1].key
        low, high = {"scale": (0.5, 2), "var": (0.5, 2), "kernel": (-0.3, 0.3)}.get(name, (-0.5, 0.5))
        return jnp.asarray(RNG.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def in_use(module, variables, *inputs, **keywords):
    return jax.jit(lambda v: module.apply(v, *inputs, train=False, **keywords))(variables)


def names(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    "encoder",
    [
        ResNet(depth=8, width=4, projection=3),
        SmallCNN(widths=(4, 6), norm="batch"),
        pytest.param(MobileNetV3(width=0.25), marks=pytest.mark.slow),
    ],
    ids=["resnet", "small", "mobile"],
)
def test_folded_encoders_give_the_same(encoder, monkeypatch):
    monkeypatch.setitem(resnet.DESIGNS, 8, resnet._Design((1, 1), bottleneck=True))
    variables = trained(encoder, X)
    before = jax.tree.map(np.array, variables)
    folded, fewer = fold_batch_norm(encoder, variables)
    assert set(fewer) == {"params"}
    assert names(fewer) == names(jax.eval_shape(lambda: folded.init(jax.random.key(0), X, train=False)))
    assert_close(in_use(folded, fewer, X), in_use(encoder, variables, X), 1e-5)
    assert_close(variables, before, 0.0)


class Fusion(nn.Module):
    encoders: dict[str, nn.Module]
    members: tuple[nn.Module, ...] = ()
    head: nn.Module | None = None

    @nn.compact
    def __call__(self, inputs, *, present, valid, train):
        features = {name: encoder(inputs[name], train=train) for name, encoder in self.encoders.items()}
        for i, member in enumerate(self.members):
            features[f"member {i}"] = member(inputs["pet"], train=train)
        x = jnp.concatenate(list(features.values()), axis=-1)
        return Outputs(self.head(x, train=train) if self.head else x, {}, features)


SMALL = {"widths": (4,), "norm": "batch"}


def test_encoders_inside_a_model_are_folded_and_other_collections_kept():
    model = Fusion({"pet": SmallCNN(**SMALL), "age": MLP((3,))}, (SmallCNN(**SMALL), SmallCNN((4,))), MLP((2,)))
    inputs = {"pet": X, "age": RNG.normal(size=(2, 1)).astype(np.float32)}
    mask = np.ones(2, bool)
    context = {"present": dict.fromkeys(inputs, mask), "valid": mask}
    variables = trained(model, inputs, **context) | {"objective": {"weight": jnp.ones(())}}
    folded, fewer = fold_batch_norm(model, variables)
    assert set(fewer) == {"params", "objective"}
    assert folded.encoders["pet"].norm == folded.members[0].norm == "none"
    assert folded.members[1].norm == "group"
    assert_close(in_use(folded, fewer, inputs, **context), in_use(model, variables, inputs, **context), 1e-5)


def test_a_model_without_batch_norm_stays_as_it_is():
    encoder = SmallCNN(widths=(4,))
    variables = trained(encoder, X)
    folded, same = fold_batch_norm(encoder, variables)
    assert folded == encoder
    assert_close(same, variables, 0.0)


def test_batch_norm_that_is_not_ours_is_named():
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return Norm(name="calm")(x, train=train)

    with pytest.raises(ValueError, match="Foreign has batch norm in calm, made in its own code"):
        fold_batch_norm(Foreign(), trained(Foreign(), X))


def test_batch_norm_after_no_convolution_is_named():
    class Odd(nn.Module):
        norm: str = "batch"
        epsilon = 1e-5

        @nn.compact
        def __call__(self, x, *, train):
            return Norm(name="bn7")(x, train=train)

    with pytest.raises(ValueError, match="Odd: no convolution 'conv7' precedes the batch norm 'bn7'"):
        fold_batch_norm(Odd(), trained(Odd(), X))
