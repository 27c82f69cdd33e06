"""The marks of `make bench` and `make bench-peer` are judged rightly. No load runs here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.marks import EMPTY_THREADS, INTERIM, KEEP_ALIVE, PAIR, PEER, SERVICE, SETUP, STOP, TEARDOWN
from bench.rounds import Mark, Rounds, conclude

SERVICE_MARKS = tuple(mark for marks in SERVICE.values() for mark in marks)
ALL = (*SERVICE_MARKS, *PEER)


def rounds(**figures: float) -> Rounds:
    """One round of the loads a and b with the figure rps."""
    found = Rounds(1)
    for load, rps in figures.items():
        found.add(load, {"rps": rps})
    return found


def at_the_bound(mark: Mark, factor: float = 1) -> Rounds:
    """Rounds in which the load of the mark is at its bound, multiplied by the factor."""
    found = Rounds(1)
    for other in mark.of:
        if other != mark.load:
            found.add(other, {mark.figure: 1000})
    found.add(mark.load, {mark.figure: mark.bound * factor * (1000 if mark.of else 1)})
    return found


@pytest.mark.parametrize("mark", ALL, ids=lambda mark: f"{mark.load}, {mark.figure} of {len(mark.of)}")
def test_a_mark_is_met_on_its_right_side_and_missed_on_the_other(mark: Mark) -> None:
    better, worse = (0.99, 1.01) if mark.at_most else (1.01, 0.99)

    assert mark.is_met(at_the_bound(mark, better))
    assert not mark.is_met(at_the_bound(mark, worse))
    assert mark.says(at_the_bound(mark, better)).startswith("met")
    assert mark.says(at_the_bound(mark, worse)).startswith("MISSED")


def test_a_value_equal_to_the_bound_meets_the_mark() -> None:
    assert Mark("a", 0.9, of=("b",)).is_met(rounds(a=90, b=100))
    assert Mark("a", 5, at_most=True).is_met(rounds(a=5))


def test_marks_compare_the_medians_of_the_rounds() -> None:
    found = Rounds(3)
    for ours, theirs in ((100, 1), (200, 100), (300, 10_000)):
        found.add("a", {"rps": ours})
        found.add("b", {"rps": theirs})

    assert Mark("a", 1, of=("b",)).found(found) == 2


def test_a_load_is_compared_with_the_best_of_several() -> None:
    assert Mark("a", 0.9, of=("a", "b", "c")).found(rounds(a=80, b=100, c=90)) == 0.8


def test_a_mark_whose_load_was_not_measured_is_no_mark_that_is_met() -> None:
    with pytest.raises(KeyError):
        Mark("a", 1, of=("b",)).is_met(rounds(a=1))


@pytest.mark.parametrize(
    ("load", "of", "bound"),
    [
        (KEEP_ALIVE, INTERIM["on"], 1.3),
        (KEEP_ALIVE, INTERIM["off"], 1.0),
        (KEEP_ALIVE, EMPTY_THREADS, 1.2),
        (TEARDOWN, STOP["on"], 1.0),
        (SETUP, PAIR["on"], 1.0),
    ],
)
def test_the_comparison_with_freeradius_has_the_marks_that_were_promised(load: str, of: str, bound: float) -> None:
    assert Mark(load, bound, of=(of,)) in PEER


def test_marks_have_bounds_that_bind() -> None:
    at_most = {(mark.load, mark.bound) for mark in SERVICE_MARKS if mark.figure == "p99_ms"}

    assert {bound for _, bound in at_most} == {5, 8}
    assert all(mark.at_most for mark in SERVICE_MARKS if mark.figure in ("p99_ms", "cpu_us"))
    assert all(not mark.at_most and mark.bound >= 0.9 for mark in ALL if mark.figure == "rps")


def test_the_run_ends_with_1_when_a_mark_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "var" / "bench.json"
    marks = [Mark("a", 0.9, of=("b",)), Mark("b", 0.9, of=("a",))]

    conclude(file, rounds(a=100, b=100), marks, {})
    assert json.loads(file.read_text())["targets_missed"] == []
    with pytest.raises(SystemExit) as ended:
        conclude(file, rounds(a=50, b=100), marks, {})

    assert ended.value.code == 1
    report = json.loads(file.read_text())
    assert [line.split()[0] for line in report["marks"]] == ["MISSED", "met"]
    assert len(report["targets_missed"]) == 1
    assert report["medians"] == {"a": {"rps": 50}, "b": {"rps": 100}}


@pytest.mark.parametrize("marks", [SERVICE_MARKS, PEER], ids=["bench", "bench-peer"])
def test_the_verdict_turns_when_the_comparison_is_turned_round(marks: tuple[Mark, ...], tmp_path: Path) -> None:
    mark = next(mark for mark in marks if mark.of and mark.bound >= 1 and not mark.at_most)
    turned = replace(mark, load=mark.of[0], of=(mark.load,))
    found = at_the_bound(mark, 1.01)

    conclude(tmp_path / "bench.json", found, [mark], {})
    with pytest.raises(SystemExit):
        conclude(tmp_path / "bench.json", found, [turned], {})
