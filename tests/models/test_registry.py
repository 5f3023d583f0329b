"""Names and JSON arguments: read strictly, described, written back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from fusion_jax.models.registry import RECIPES, describe, make_recipe
from fusion_jax.models.strategies import STRATEGIES, strategy_sources
from fusion_jax.records.arguments import as_json, from_json


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    widths: tuple[int, ...] = ()
    encoder: str | Mapping[str, Any] | None = None
    inside: Mapping[str, float] = dataclasses.field(default_factory=dict)


def test_values_of_every_type_are_read():
    value = {"count": 2, "rate": 1, "kind": "b", "widths": [4, 8], "encoder": {"name": "cnn"}, "inside": {"x": 0.5}}
    read = from_json(Settings, value, where="settings")
    assert read == Settings(2, 1, "b", (4, 8), {"name": "cnn"}, {"x": 0.5})
    assert as_json(dataclasses.asdict(read)) == value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"cuont": 2}, ValueError, r"settings: no argument 'cuont'; did you mean 'count'\?"),
        ({"kind": "c"}, ValueError, r"settings: kind is 'c'; there is 'a', 'b'"),
        ({"count": True}, TypeError, r"count is True; expected a whole number"),
        ({"count": 1.5}, TypeError, r"count is 1.5; expected a whole number"),
        ({"rate": "fast"}, TypeError, r"rate is 'fast'; expected a number"),
        ({"widths": [1, "2"]}, TypeError, r"widths\[1\] is '2'; expected a whole number"),
        ({"widths": 3}, TypeError, r"widths is 3; expected a list"),
        ({"encoder": 3}, TypeError, r"encoder is 3; expected text"),
        ({"inside": {"x": None}}, TypeError, r"inside\['x'\] is None; expected a number"),
        ([1], TypeError, r"settings: arguments are \[1\]; expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_hint(value, error, message, unchecked):
    with pytest.raises(error, match=message):
        from_json(Settings, value, where="settings")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gatd", {}, r"no recipe 'gatd'; did you mean 'gated'\?.*`<source>-only`"),
        ("gated", {"epoch": 3}, r"recipe 'gated': no argument 'epoch'; did you mean 'epochs' or 'min_epochs'\? Fix"),
        ("gated", {"objective": "jiont"}, r"objective is 'jiont'; did you mean 'joint'"),
        ("gated", {"augment": "flip"}, r"no augmentation 'flip'; did you mean 'flips'"),
        ("gated", {"epochs": 0}, r"recipe 'gated': epochs is 0; expected at least 1"),
        ("gated", {"model": "L+L"}, r"model is 'L\+L'; expected given with the recipe 'published' alone"),
        ("gated", {"name": "film"}, r"no argument 'name'"),
        ("random-forest", {"strenght": 1.0}, r"no argument 'strenght'; did you mean 'strength'"),
        ("cox", {"strength": 0.0}, r"cox: strength is 0.0; expected a positive number"),
    ],
)
def test_messages_name_recipe_argument_and_way_out(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(name, arguments)


def test_the_table_describes_every_recipe_as_json():
    table = describe()
    assert [line.name for line in table] == list(RECIPES)
    json.dumps([line.arguments for line in table])
    assert all(line.text and line.kind in ("deep", "classical", "searched", "tuned") for line in table)
    assert next(line for line in table if line.name == "cox+measurements").arguments["features"] == "all"


def test_the_table_has_every_strategy():
    assert {name for name, entry in RECIPES.items() if entry.kind == "deep"} == set(STRATEGIES)


def test_arguments_are_those_that_differ_from_what_the_name_stands_for():
    assert make_recipe("cox+measurements").arguments() == {}
    assert make_recipe("cox+measurements", {"features": "clinical"}).arguments() == {"features": "clinical"}
    assert make_recipe("pet-only", {"epochs": 60, "patience": None}).arguments() == {"patience": None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imgae-only", r"tiny: imgae-only reads a source 'imgae'; did you mean 'image'\?"),
        ("lesion-only", r"reads a source 'lesion'"),
    ],
)
def test_a_strategy_that_does_not_fit_the_cohort_says_so(name, message, tiny):
    with pytest.raises(ValueError, match=message):
        make_recipe(name).sources(tiny.cohort)


def test_fusion_of_one_source_is_refused(tiny):
    with pytest.raises(ValueError, match=r"tiny: gated fuses at least two sources; it has the images image and the"):
        strategy_sources(tiny.cohort, "gated", ("image",))
    with pytest.raises(ValueError, match=r"no source 'imag' that a network reads; did you mean 'image'\?"):
        strategy_sources(tiny.cohort, "gated", ("imag",))
