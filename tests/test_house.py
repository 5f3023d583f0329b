"""What users and contributors rely on around the code: quick help, one version, a whole lock, a README that runs."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fusion_jax
from fusion_jax.commands.main import COMMANDS
from tests.helpers import ROOT, declared_requirements

LOCK = ROOT / "requirements-dev.lock"

LEAK = r"(?<![\w.~])/(?:work|root|home|Users)/\S*|pypi[.]org|python[h]osted|debian[.]org|npm[j]s|download[.]pytorch"


def python_blocks(path: Path) -> list[str]:
    """The fenced Python examples of a Markdown file; none where the file is not, as beside the installed wheel."""
    return re.findall(
        r"^```python\n(.*?)^```", path.read_text(encoding="utf-8") if path.exists() else "", re.DOTALL | re.MULTILINE
    )


READMES = [ROOT / "README.md", *sorted(ROOT.glob("experiments/*/README.md"))]
README_BLOCKS = [
    pytest.param(block, id=f"{path.parent.name}-{number}")
    for path in READMES
    for number, block in enumerate(python_blocks(path))
]

COMMANDS_FOLDER = Path(fusion_jax.__file__).parent / "commands"

HEAVY = ("jax", "jaxlib", "flax", "scipy", "pandas", "sklearn", "matplotlib", "pyarrow")
"""Modules that take a good part of a second to import."""

ASK_FOR_HELP = f"""
import sys
from fusion_jax.commands.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("\\nLOADED", *sorted({set(HEAVY)!r} & sys.modules.keys()))
sys.exit(code)
"""


def ask_for_help(*command: str) -> tuple[str, str]:
    """What `fusion-jax COMMAND --help` says, and the heavy modules that it loaded."""
    asked = [sys.executable, "-c", ASK_FOR_HELP, *command, "--help"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    text, _, loaded = answer.stdout.rpartition("LOADED")
    return text, loaded.strip()


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, fusion_jax; print(*sorted({set(HEAVY)!r} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.mark.parametrize("name", fusion_jax.__all__)
def test_public_names_are_found_on_first_use(name):
    assert getattr(fusion_jax, name) is getattr(fusion_jax, name)
    assert name in dir(fusion_jax)


def test_an_unknown_name_says_what_there_is():
    misspelt = "fusion_qualty"
    with pytest.raises(AttributeError, match=r"no attribute 'fusion_qualty'; it offers .*fusion_quality"):
        getattr(fusion_jax, misspelt)


def test_every_command_has_a_file_and_every_file_a_command():
    files = {path.stem for path in COMMANDS_FOLDER.glob("*.py")} - {"__init__", "main"}
    assert files == {re.sub("[ -]", "_", name) for name in COMMANDS}


@pytest.mark.parametrize(
    "command", [(), *(tuple(name.split()) for name in COMMANDS)], ids=lambda words: " ".join(words) or "all"
)
def test_help_loads_nothing_heavy(command):
    text, loaded = ask_for_help(*command)
    assert "usage" in text.lower()
    assert loaded == ""


def test_help_comes_in_under_a_second():
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy, the code may not be slow
        start = time.perf_counter()
        ask_for_help()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def pins() -> list[Requirement]:
    """The pins of the lock, each with its marker."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.removesuffix("\\").strip()) for line in lines if re.match(r"[a-zA-Z0-9]", line)]


@pytest.mark.checkout
def test_the_lock_hashes_every_pin_and_names_no_host():
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", re.sub("--no-emit-[a-z-]+", "", text))
    entries = re.split(r"\n(?=[a-zA-Z0-9])", text)[1:]
    assert len(entries) == len(pins()) > 50
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []


@pytest.mark.checkout
@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_satisfies_what_setup_cfg_asks_for(python, system):
    machine = {"sys_platform": system, "python_version": python, "python_full_version": f"{python}.5"}
    locked = {canonicalize_name(pin.name): pin for pin in pins() if pin.marker is None or pin.marker.evaluate(machine)}
    runtime, extras = declared_requirements()
    for wanted in runtime + extras["dev"] + extras["notebooks"]:
        pin = locked.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted} is not in the lock; run `make lock`"
        [version] = [str(specifier.version) for specifier in pin.specifier]
        assert wanted.specifier.contains(version), f"the lock has {pin}, setup.cfg wants {wanted}; run `make lock`"


@pytest.mark.checkout
def test_citation_and_changelog_tell_the_version_of_the_package():
    citation = re.search(r"^version: \"?([^\s\"]+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert newest is not None
    assert citation[1] == newest[1] == fusion_jax.__version__


def leaks(text: str) -> list[str]:
    """Paths of somebody's machine and hosts of package registries in `text`."""
    return [match[0] for match in re.finditer(LEAK, text)]


def test_leaks_are_found():
    # Put together here, so that this file does not hold what it looks for.
    slash, dot = "/", "."
    planted = [f"{slash}root{slash}data", f"{slash}home{slash}me", f"{slash}Users{slash}me", f"pypi{dot}org"]
    assert [bool(leaks(f"see {text} there")) for text in planted] == [True] * len(planted)
    assert leaks("results/root/a, ~/home, ./work/b and https://doi.org/10.1002/mp.16792") == []


@pytest.mark.checkout
def test_no_file_names_a_machine_or_a_registry():
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {}
    for path in (ROOT / name for name in names if name):
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data[:8192] and (leaked := leaks(data.decode(errors="replace"))):
                found[path.name] = leaked
    assert found == {}


@pytest.mark.checkout
def test_the_readme_has_examples():
    assert README_BLOCKS


@pytest.mark.checkout
@pytest.mark.parametrize("block", README_BLOCKS)
def test_the_readme_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever an example writes
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
