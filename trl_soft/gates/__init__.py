# SPDX-License-Identifier: Apache-2.0
"""
When a thinking step is soft. A *gate* decides it before each step of a thought, around any kind of thought.

A step that the gate makes hard is an ordinary token: it is drawn, fed and scored like a token of the answer, and the record's
`thinking_mask` is False there. So the update reads the decision from the record and never takes it again. A rule is one function
of a [`GateStep`]. A rule of your own:

    @register_gate
    class Alternate(Gate):
        name = "alternate"

        def soft(self, step):
            return step.position % 2 == 0

Letters: N thinking steps, V vocabulary.
"""

from .gate import Gate as Gate
from .gate import GateStep as GateStep
from .gate_registry import GATES as GATES
from .gate_registry import check_gate as check_gate
from .gate_registry import gate_options as gate_options
from .gate_registry import gate_options_for_settings as gate_options_for_settings
from .gate_registry import register_gate as register_gate
from .gate_registry import values_of as values_of
from .gate_rules import Always as Always
from .gate_rules import Confidence as Confidence
from .gate_rules import Entropy as Entropy
from .gate_rules import EntropyTrend as EntropyTrend
from .gate_rules import First as First
from .gate_rules import Random as Random
