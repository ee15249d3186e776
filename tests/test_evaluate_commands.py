# SPDX-License-Identifier: Apache-2.0
"""The commands and the public names of the evaluation are where the documentation says."""

import runpy
import sys

import pytest

from trl_soft import evaluate


@pytest.mark.parametrize("command", ["compare", "inspect", "ood", "paper_table", "report"])
def test_a_command_says_how_it_is_called(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"trl_soft.evaluate.{command}", run_name="__main__", alter_sys=True)
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


def test_every_public_name_is_there():
    assert all(getattr(evaluate, name).__name__ == name for name in evaluate.__all__ if name[1].islower())
    assert evaluate.PRESETS and evaluate.BENCHMARKS and evaluate.GRADERS
    with pytest.raises(AttributeError, match="has no name 'training_rows'"):
        _ = evaluate.training_rows
