"""The version tells two commits apart: in a checkout by git, elsewhere by the stamp of the build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from srm import version
from srm.cli.main import cli
from tests.support import ROOT, environment

BUILD = "from srm import version; print(version.build())"
STAMP = "from srm import version; print(version.stamp())"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with srm/version.py alone, outside a checkout."""
    (tmp_path / "srm").mkdir()
    (tmp_path / "srm" / "__init__.py").touch()
    shutil.copy(ROOT / "srm" / "version.py", tmp_path / "srm")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@srm.example"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=clean, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def commit(folder: Path) -> str:
    """Commit srm/; return the short name of the commit."""
    git(folder, "add", "srm")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "a change")
    return git(folder, "rev-parse", "--short=10", "HEAD")


def said(folder: Path, code: str, **variables: str) -> str:
    """Run Python code in that folder; return the output."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(**variables),
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip()


def test_the_version_of_a_checkout_has_its_commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    first = commit(folder)
    assert said(folder, BUILD) == said(folder, STAMP) == f"{version.RELEASE}+g{first}"

    second = commit(folder)
    assert second != first
    assert said(folder, BUILD) == f"{version.RELEASE}+g{second}"

    with (folder / "srm" / "version.py").open("a") as file:
        file.write("# changed\n")
    assert said(folder, BUILD) == f"{version.RELEASE}+g{second}.dirty"


def test_a_tag_does_not_hide_the_commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    name = commit(folder)
    git(folder, "tag", "v9.9")

    assert said(folder, BUILD) == f"{version.RELEASE}+g{name}"


def test_a_git_hook_of_another_repository_does_not_change_the_version(folder: Path) -> None:
    git(folder, "init", "--quiet")
    name = commit(folder)

    assert said(folder, BUILD, GIT_DIR=str(ROOT / ".git")) == f"{version.RELEASE}+g{name}"


@pytest.mark.parametrize("broken", ["no git", "no commit", "not a repository"])
def test_the_version_is_the_release_when_git_has_no_answer(folder: Path, broken: str) -> None:
    if broken == "not a repository":
        (folder / ".git").mkdir()
    else:
        git(folder, "init", "--quiet")
    if broken == "no git":
        commit(folder)
    path = str(folder / "empty") if broken == "no git" else os.environ["PATH"]

    assert said(folder, BUILD, PATH=path) == version.RELEASE


def test_files_without_git_do_not_take_the_commit_of_an_installed_srm(folder: Path) -> None:
    assert said(folder, BUILD) == version.RELEASE


def test_a_repository_around_the_folder_does_not_give_its_commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    commit(folder)
    (folder / "unpacked").mkdir()
    shutil.copytree(folder / "srm", folder / "unpacked" / "srm")

    assert said(folder / "unpacked", BUILD) == version.RELEASE


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ""), ("1a2b3c4d5e", "+g1a2b3c4d5e"), ("1a2b3c4d5e-dirty", "+g1a2b3c4d5e.dirty"), ("0" * 40, "+g" + "0" * 40)],
)
def test_a_build_without_git_takes_its_commit_from_the_environment(folder: Path, value: str, expected: str) -> None:
    assert said(folder, STAMP, BUILD_COMMIT=value) == version.RELEASE + expected


@pytest.mark.parametrize("value", ["main", "1a2b3c", "1a2b3c4d5e\nx", "$(git rev-parse HEAD)"])
def test_a_build_refuses_a_value_that_is_no_commit(folder: Path, value: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        said(folder, STAMP, BUILD_COMMIT=value)

    assert "BUILD_COMMIT=" in failure.value.stderr


def test_srm_version_prints_the_version_of_the_build() -> None:
    result = CliRunner().invoke(cli, ["--version"])

    assert (result.exit_code, result.output) == (0, f"srm, version {version.build()}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+g[0-9a-f]{10}(\.dirty)?)?", version.build())
