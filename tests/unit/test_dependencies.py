"""setup.cfg declares all imported packages, and requirements/ locks all declared ones."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

OWN = {"srm", "tests", "bench", "migrations", "wsgi"}
OPTIONAL = {"srm/db/embedded.py": "embedded"}
"""Module → the extra that it may need."""
LOCKS = {"production": [], "run": ["embedded"], "dev": ["embedded", "dev"]}
"""File in requirements/ → the extras that it is locked with."""
PIN = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ; [^\n]+?)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n    # via (.+)\n", re.MULTILINE
)
DISTRIBUTIONS = packages_distributions()


def declared(extra: str | None = None) -> dict[str, Requirement]:
    """The requirements of SRM, or of one of its extras, by name."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = config["options.extras_require"][extra] if extra else config["options"]["install_requires"]
    requirements = map(Requirement, text.split("\n")[1:])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Version and origin (`# via …`) of each package in a file of requirements/."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    pins = {match[1]: (match[2], match[4]) for match in PIN.finditer(text)}
    assert len(pins) == text.count("==") - len(re.findall(r" ; .*==", text))
    return pins


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a module imports, in a function too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def distributions(path: Path) -> set[str]:
    """The distributions that a module needs."""
    names = set(imported(path)) - OWN - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS[name][0]) for name in names}


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_setup_cfg_declares_every_package_that_srm_imports() -> None:
    undeclared = {}
    for path in [*modules("srm", "migrations", "deploy"), ROOT / "wsgi.py"]:
        name = str(path.relative_to(ROOT))
        allowed = {**declared(), **(declared(OPTIONAL[name]) if name in OPTIONAL else {})}
        undeclared[name] = distributions(path) - set(allowed)

    assert len(undeclared) > 40
    assert {name: missing for name, missing in undeclared.items() if missing} == {}


def test_setup_cfg_declares_every_package_that_tests_and_benches_import() -> None:
    allowed = {**declared(), **declared("embedded"), **declared("dev")}

    undeclared = {path.name: distributions(path) - set(allowed) for path in modules("tests", "bench")}

    assert {name: missing for name, missing in undeclared.items() if missing} == {}


def test_srm_imports_every_package_that_setup_cfg_declares() -> None:
    used = set().union(*(distributions(path) for path in modules("srm", "migrations")))

    assert {**declared(), **declared("embedded")}.keys() - used == set()


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_the_lock_is_made_from_setup_cfg(name: str, extras: list[str]) -> None:
    """When this fails, run `make lock`."""
    wanted = declared()
    for extra in extras:
        wanted |= declared(extra)
    (builder,) = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    pins = locked(name)

    direct = {package for package, (_, origin) in pins.items() if "srm (setup.cfg)" in origin}
    assert direct == wanted.keys()
    for package, requirement in {**wanted, builder.name: builder}.items():
        assert requirement.specifier.contains(pins[package][0]), f"{package} {pins[package][0]} is locked"


def test_all_locks_have_equal_versions() -> None:
    everything = locked("dev")

    for name in ("production", "run"):
        assert {package: everything[package][0] for package in locked(name)} == {
            package: version for package, (version, _) in locked(name).items()
        }


def test_gunicorn_accepts_the_locked_version_of_its_parser() -> None:
    (parser,) = [
        requirement
        for requirement in map(Requirement, requires("gunicorn") or [])
        if requirement.marker and requirement.marker.evaluate({"extra": "fast"})
    ]

    ((package, (version, _)),) = locked("fast").items()

    assert package == canonicalize_name(parser.name)
    assert parser.specifier.contains(version)


def test_locks_name_no_package_index() -> None:
    files = list((ROOT / "requirements").glob("*.txt"))

    assert {path.stem for path in files} == {*LOCKS, "fast", "uv"}
    for path in files:
        assert not re.search(r"://|^-", path.read_text(), re.MULTILINE), path.name
        assert locked(path.stem)
