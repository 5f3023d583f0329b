"""Who may import whom, inside the package and from outside it."""

import ast
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.utils import canonicalize_name

from tests.helpers import ROOT, declared_requirements

PACKAGE = ROOT / "fusion_jax"

FLOORS = {
    "arrays": 0,
    "cpu": 0,
    "lazy": 0,
    "wording": 0,
    "ops": 1,
    "quality": 1,
    "records": 1,
    "data": 2,
    "evaluation": 2,
    "training": 3,
    "encoders": 4,
    "fusion": 5,
    "nas": 6,
    "detection": 6,
    "models": 7,
    "reporting": 8,
    "commands": 9,
}

ONLY_IN = {
    "flax": ("encoders/", "fusion/", "nas/", "detection/", "models/"),
    "torch": ("encoders/pretrained.py", "data/segmentation.py"),
    "tyro": ("commands/",),
    "rich": ("commands/",),
}
"""Third-party modules that may be imported in these places alone."""

NEVER_IN = {"records/": {"jax", "jaxlib", "flax", "optax"}}

DISTRIBUTIONS = {"absl": "absl-py", "sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint"}
"""Modules whose distribution has another name."""


class Import(NamedTuple):
    """One imported module; `deferred` inside a function or under `TYPE_CHECKING`."""

    module: str
    line: int
    deferred: bool


def imports(source: str) -> list[Import]:
    """Every import in `source`, wherever it stands, and every `import_module("…")` with a literal name."""
    return list(_imports(ast.parse(source), deferred=False))


def _imports(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                yield from (Import(alias.name, child.lineno, deferred) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                # `from fusion_jax import data` imports the package `data`; relative imports keep their dots.
                for alias in names if module in (None, "fusion_jax") else names[:1]:
                    name = f"{module}.{alias.name}" if module == "fusion_jax" else module or alias.name
                    yield Import("." * level + name, child.lineno, deferred)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in ("import_module", "__import__"):
                    yield Import(name, child.lineno, deferred)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, deferred=deferred or inside or type_checking)


def sources(package: Path) -> list[tuple[str, Path]]:
    """Python files of the package by their path in it; the lazy `__init__.py` at the top is the roof."""
    found = ((path.relative_to(package).as_posix(), path) for path in sorted(package.rglob("*.py")))
    return [(name, path) for name, path in found if name != "__init__.py"]


def floor_violations(package: Path) -> list[str]:
    """Imports inside `package` that do not go down the floors, as `file:line: what is wrong`."""
    violations = []
    for name, path in sources(package):
        room = name.split("/")[0].removesuffix(".py")
        if room not in FLOORS:
            violations.append(f"{name}: {room} is on no floor")
            continue
        for module, line, _ in imports(path.read_text(encoding="utf-8")):
            parts = module.split(".")
            if module.startswith("."):
                violations.append(f"{name}:{line}: relative import of {module}")
            elif parts == ["fusion_jax"]:
                violations.append(f"{name}:{line}: imports the whole of fusion_jax, not one of its packages")
            elif parts[0] == "fusion_jax" and parts[1] not in (room, "__version__"):
                floor = FLOORS.get(parts[1])
                if floor is None:
                    violations.append(f"{name}:{line}: {module} is on no floor")
                elif floor >= FLOORS[room]:
                    violations.append(
                        f"{name}:{line}: {room} (floor {FLOORS[room]}) imports {parts[1]} (floor {floor})"
                    )
    return violations


def third_party_violations(package: Path, runtime: Container[str], optional: Container[str]) -> list[str]:
    """Imports of other people's packages that are undeclared, out of place, or optional and yet at the top of a file.

    `runtime` and `optional` are names of distributions: those that are always installed and those behind an extra.
    """
    violations = []
    for name, path in sources(package):
        for module, line, deferred in imports(path.read_text(encoding="utf-8")):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("", "fusion_jax"):
                continue
            distribution = canonicalize_name(DISTRIBUTIONS.get(top, top))
            if distribution not in runtime and distribution not in optional:
                violations.append(f"{name}:{line}: {top} is no requirement of setup.cfg")
            elif distribution not in runtime and not deferred:
                violations.append(
                    f"{name}:{line}: {top} belongs to an extra; import it inside the function that needs it"
                )
            if top in ONLY_IN and not name.startswith(ONLY_IN[top]):
                violations.append(f"{name}:{line}: {top} may be imported in {', '.join(ONLY_IN[top])} only")
            if any(name.startswith(place) and top in banned for place, banned in NEVER_IN.items()):
                violations.append(f"{name}:{line}: {top} may not be imported here")
    return violations


def plant(package: Path, files: dict[str, str]) -> Path:
    """A package made of `files`."""
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("quality/a.py", "from fusion_jax.data.cohort import Cohort", "quality (floor 1) imports data (floor 2)"),
        ("quality/a.py", "import fusion_jax.ops.conv", "quality (floor 1) imports ops (floor 1)"),
        ("arrays.py", "from fusion_jax import records", "arrays (floor 0) imports records (floor 1)"),
        ("data/a.py", "from fusion_jax.arrays import Array\nfrom fusion_jax import quality, models", "imports models"),
        (
            "data/a.py",
            "def late():\n    from fusion_jax.training import fit",
            "data/a.py:2: data (floor 2) imports training",
        ),
        ("data/a.py", "class A:\n    async def late(self):\n        import fusion_jax.models", "imports models"),
        ("data/a.py", "if TYPE_CHECKING:\n    from fusion_jax.training import fit", "imports training"),
        ("data/a.py", "try:\n    from fusion_jax.nas import cell\nexcept ImportError:\n    cell = None", "imports nas"),
        ("data/a.py", "importlib.import_module('fusion_jax.models')", "imports models"),
        ("data/a.py", "import fusion_jax", "the whole of fusion_jax"),
        ("data/a.py", "from fusion_jax import fusion_quality", "fusion_jax.fusion_quality is on no floor"),
        ("data/a.py", "from . import b", "relative import of .b"),
        ("attic/a.py", "", "attic is on no floor"),
        ("attic.py", "", "attic is on no floor"),
    ],
)
def test_the_floor_rule_finds(tmp_path, name, text, message):
    [violation] = floor_violations(plant(tmp_path, {name: text}))
    assert message in violation


def test_the_floor_rule_allows_what_lies_below(tmp_path):
    files = {
        "__init__.py": "from fusion_jax.commands import main",
        "arrays.py": "import jax",
        "quality/density.py": "from fusion_jax.arrays import Array\nfrom fusion_jax.quality import energy",
        "records/files.py": "from fusion_jax import __version__",
        "commands/quality.py": "from fusion_jax import quality\nfrom fusion_jax.reporting.html import page",
    }
    assert floor_violations(plant(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data/a.py", "import tensorflow", "tensorflow is no requirement"),
        ("data/a.py", "import nibabel", "nibabel belongs to an extra"),
        ("quality/a.py", "def f():\n    import flax.linen as nn", "flax may be imported in encoders/"),
        ("encoders/a.py", "def f():\n    import torch", "torch may be imported in encoders/pretrained.py, data"),
        ("training/a.py", "import rich.progress", "rich may be imported in commands/ only"),
        ("records/a.py", "import jax.numpy as jnp", "jax may not be imported here"),
    ],
)
def test_the_third_party_rule_finds(tmp_path, name, text, message):
    package = plant(tmp_path, {name: text})
    [violation] = third_party_violations(package, {"jax", "flax", "rich"}, {"nibabel", "torch"})
    assert message in violation


def test_the_third_party_rule_allows_declared_imports_in_their_place(tmp_path):
    files = {
        "data/a.py": "import json\nfrom PIL import Image\ndef read():\n    import nibabel",
        "encoders/resnet.py": "from flax import linen",
        "encoders/pretrained.py": "def convert():\n    import torch",
    }
    assert third_party_violations(plant(tmp_path, files), {"pillow", "flax"}, {"nibabel", "torch"}) == []


@pytest.mark.checkout
def test_imports_go_down_the_floors():
    assert floor_violations(PACKAGE) == []


@pytest.mark.checkout
def test_third_party_imports_are_declared_and_in_their_place():
    runtime, extras = declared_requirements()
    for tool in ("dev", "notebooks"):  # what developers and readers use is nothing the package may import
        del extras[tool]
    always = {canonicalize_name(requirement.name) for requirement in runtime}
    optional = {canonicalize_name(requirement.name) for extra in extras.values() for requirement in extra}
    assert third_party_violations(PACKAGE, always, optional) == []
