# SPDX-License-Identifier: Apache-2.0
"""The list of `tests/breakages.py` fits the package, so that it cannot rot unseen."""

from tests.breakages import BREAKAGES, Breakage, problem_of


def test_there_are_enough_and_no_two_are_one():
    assert len(BREAKAGES) >= 20
    assert len({(b.file, b.old) for b in BREAKAGES}) == len({b.name for b in BREAKAGES}) == len(BREAKAGES)
    assert len({b.file.split("/")[0] for b in BREAKAGES}) >= 10


def test_each_breakage_can_be_made():
    assert not [problem for breakage in BREAKAGES if (problem := problem_of(breakage))]
    assert all(breakage.new != breakage.old for breakage in BREAKAGES)


def test_a_text_that_is_not_there_is_an_error():
    assert "stands 0 times in noise.py" in problem_of(Breakage("x", "noise.py", "no such text", "", "test_noise"))
    assert "does not exist" in problem_of(Breakage("x", "nowhere.py", "a", "", "test_noise"))
