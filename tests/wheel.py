"""Build the wheel, install it, and test what users get, away from the checkout.

    .venv/bin/python -m tests.wheel

The wheel goes into an environment of its own that borrows the dependencies of this one but not its editable install;
the tests go into an empty folder. Tests marked `checkout` need the tree and run there instead.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from tests.helpers import ROOT

EXPECTED = ("fusion_jax/py.typed", "fusion_jax/data/sample_files/", "fusion_jax/reporting/templates/")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fusion_jax-wheel-") as folder:
        archive, wheel = build(Path(folder) / "dist")
        check_contents(archive, wheel)
        binaries = install(wheel, Path(folder) / "environment")
        return run_tests(binaries, Path(folder) / "outside")


def build(out: Path) -> tuple[Path, Path]:
    """Source archive, and the wheel built from it, so that leftovers of earlier builds cannot get in."""
    # The pinned setuptools of this environment builds: no isolation, nothing is downloaded.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, stdout=subprocess.DEVNULL)
    [archive], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


def check_contents(archive: Path, wheel: Path) -> None:
    """Both hold every file of the package and the licence; neither holds tests or anything else that imports."""
    tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fusion_jax").rglob("*") if path.is_file()}
    tree = {name for name in tree if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as file:
        in_wheel = set(file.namelist())
    with tarfile.open(archive) as file:
        in_archive = {name.partition("/")[2] for name in file.getnames()}
    for kind, names in (("wheel", in_wheel), ("source archive", in_archive)):
        missing = sorted(tree - names) + [part for part in EXPECTED if not any(name.startswith(part) for name in names)]
        require(not missing, f"the {kind} lacks {missing}; see package_data in setup.cfg")
        require(any(name.endswith("LICENSE") for name in names), f"the {kind} has no LICENSE")
    strangers = sorted(name for name in in_wheel - tree if ".dist-info/" not in name)
    require(not strangers, f"the wheel holds files that are not in fusion_jax/: {strangers}")
    tests = sorted(name for name in in_archive if name.startswith("tests/"))
    require(not tests, f"the source archive holds a part of the tests: {tests}; see MANIFEST.in")


def install(wheel: Path, environment: Path) -> Path:
    """The folder of executables of a new environment with the wheel; dependencies come from this environment."""
    venv.create(environment, with_pip=False, symlinks=True)
    binaries = environment / "bin"
    python = ("pip", "--python", binaries / "python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", *python)
    paths = {"base": str(environment), "platbase": str(environment)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Folders that a .pth file names are searched last, and .pth files inside them are not read: the editable install
    # of the checkout stays out of sight.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def run_tests(binaries: Path, outside: Path) -> int:
    """Exit code of the tests in `outside`, which holds the tests and pytest's settings only."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", outside / "tests", ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", outside)
    asked = [binaries / "python", "-c", "import fusion_jax; print(fusion_jax.__file__)"]
    imported = Path(run(*asked, cwd=outside, stdout=subprocess.PIPE).stdout.strip())
    require(imported.is_relative_to(binaries.parent), f"fusion_jax is imported from {imported}, not from the wheel")
    run(binaries / "fusion-jax", "--help", cwd=outside, stdout=subprocess.DEVNULL)
    pytest = [
        binaries / "python",
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "-m",
        "not checkout and not slow",
        "tests",
    ]
    return run(*pytest, cwd=outside, check=False).returncode


def run(
    *command: str | Path, cwd: Path = ROOT, stdout: int | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `command` as a user would: no path of the checkout leaks into it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.setdefault("FUSION_JAX_DATA", str(ROOT.parent / "shared" / "data"))
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, stdout=stdout, check=check, text=True)


def require(condition: bool, message: str) -> None:
    """End with `message` unless `condition` holds."""
    if not condition:
        sys.exit(f"tests.wheel: {message}")


if __name__ == "__main__":
    sys.exit(main())
