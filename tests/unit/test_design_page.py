"""docs/design.md and docs/adr name files that exist, and code and tests cite headings that exist."""

import re
from pathlib import Path

import pytest

from srm import errors
from srm.api.http_errors import HTTP_ERRORS
from srm.errors import SrmError
from tests.support import ROOT

PAGE = ROOT / "docs" / "design.md"
TEXT = PAGE.read_text()
HEADINGS = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
NAMED = re.compile(r"`((?:srm|tests|docs|deploy|migrations|requirements)/[\w./-]+?)/?`")
CITED = re.compile(r"design\.md, (?:\"([^\"]+)\"|(Invariants? \d+(?:(?:, | and )\d+)*))")


def sources() -> list[Path]:
    folders = ("srm", "tests", "migrations", "bench", "deploy")
    found = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sql", ".conf")
    ]
    return [path for path in found if path != Path(__file__)]


def catalogue(error: type[SrmError]) -> set[tuple[str, int, str]]:
    """Triples of errorCode, HTTP status and status for an error and its subclasses."""
    http = HTTP_ERRORS.get(error)
    found = set() if http is None else {(error.error_code, http.code, http.status)}
    return found.union(*(catalogue(each) for each in error.__subclasses__()))


@pytest.mark.parametrize("page", [PAGE, *DECISIONS], ids=lambda page: page.name)
def test_files_named_in_the_design_and_decisions_exist(page: Path) -> None:
    named = set(NAMED.findall(page.read_text()))

    assert [path for path in named if "*" not in path and not (ROOT / path).exists()] == []


def test_every_invariant_names_tests_that_name_it() -> None:
    sections = re.findall(r"^### Invariant (\d+): [^\n]+\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)

    assert [number for number, _ in sections] == [str(number) for number in range(1, 9)]
    for number, section in sections:
        (listed,) = re.findall(r"^Tests: (.*?)\n\n", section, re.MULTILINE | re.DOTALL)
        for path in re.findall(r"`(tests/[\w/.]+)`", listed):
            invariants = [all_ for _, all_ in CITED.findall((ROOT / path).read_text())]
            assert number in re.findall(r"\d+", " ".join(invariants)), f"{path} does not cite Invariant {number}"


def test_code_and_tests_cite_headings_that_the_design_has() -> None:
    cited = [(path, *names) for path in sources() for names in CITED.findall(path.read_text())]

    assert len(cited) >= 10
    for path, heading, invariants in cited:
        wanted = [heading] if heading else [f"Invariant {number}:" for number in re.findall(r"\d+", invariants)]
        for start in wanted:
            assert any(each.startswith(start) for each in HEADINGS), (path, start)


def test_no_rule_of_the_design_is_cited_without_naming_the_page() -> None:
    """A reader could not find "invariant 1" or "the wire contract"."""
    loose = re.compile(r"invariants? \d|wire contract", re.IGNORECASE)

    for path in sources():
        assert not loose.search(re.sub(CITED, "", path.read_text())), path


def test_the_table_of_errors_in_the_design_equals_the_code() -> None:
    table = re.findall(r"^\| (SRM-\d{4}) \| ([\d, ]+) \| (\w+) \|", TEXT, re.MULTILINE)
    shown = {(code, int(number), status) for code, numbers, status in table for number in numbers.split(", ")}

    assert errors.InternalError.error_code == "SRM-0001"
    assert shown == catalogue(SrmError)


def test_the_index_of_decisions_lists_every_decision() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()

    assert len(DECISIONS) >= 8
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", index) == [path.name for path in DECISIONS]
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequence"]
