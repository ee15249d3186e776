# SPDX-License-Identifier: Apache-2.0
"""The differences between plans that are drawn together, as tables on the device: one row for each plan.

A step looks up the row of each completion, so its operations do not depend on the number of plans.
"""

import torch

from .interface import Plan
from .matcher import EndMatcher


# One entry for each plan.
RULES = (
    "end",  # token that ends a thought; -1: none
    "cap",  # longest thought
    "cold_length",  # cold steps in a row that end a thought
    "answer_cap",  # longest answer
    "filler",  # token that a finished completion continues with
    "script",  # row of `scripts` where its forced texts begin
    "text_length",  # bytes of the text that ends a thought; 0: none
    "classes",  # start of that text's tables in `classes`
    "matches",  # start of them in `matches`
    "width",  # classes of its tokens
    "kinds",  # row of `kinds` where its rests begin
)
_NEVER = 2**62
# Texts of dropped plans stay until there are more than this many, and more than the texts in use.
_SLACK = 64


class _Shelf:
    """Tensors one after the other, in memory that doubles when it is full."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device):
        self.all = torch.zeros(1, *shape, dtype=dtype, device=device)
        self.used = 1  # the first entry means none

    def add(self, values: torch.Tensor) -> int:
        """Where they begin."""
        begin, self.used = self.used, self.used + len(values)
        kind = torch.promote_types(self.all.dtype, values.dtype)
        if self.used > len(self.all) or kind != self.all.dtype:
            more = torch.zeros(
                max(2 * len(self.all), self.used), *self.all.shape[1:], dtype=kind, device=self.all.device
            )
            more[:begin] = self.all[:begin]
            self.all = more
        self.all[begin : self.used] = values.to(self.all.device)
        return begin


class Rules:
    """
    Args:
        device.

    Attributes (P plans, E the largest number of ends of sequence of a plan):
        numbers (`torch.Tensor` of shape `(P, len(RULES))`, int64): columns in the order of `RULES`.
        eos (`torch.Tensor` of shape `(P, E)`, int64): ends of sequence, then -1. E is a power of two.
        cold_entropy, penalty (`torch.Tensor` of shape `(P,)`, float32): entropy of Cold Stop, repetition penalty.
        texts (`bool`): whether any plan has a text that ends thoughts.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self.numbers, self.eos = self._on([[0] * len(RULES)]), self._on([[-1]])
        self.cold_entropy, self.penalty = (torch.zeros(1, device=device) for _ in "ep")
        self._plans: dict[int, Plan] = {}
        self._gone = 0
        self._clear()

    def _clear(self) -> None:
        self._scripts, self._script_ids = _Shelf((2,), torch.long, self.device), _Shelf((), torch.long, self.device)
        self._classes, self._matches = _Shelf((), torch.int16, self.device), _Shelf((), torch.int16, self.device)
        self._kinds = _Shelf((2,), torch.long, self.device)
        self._texts: dict[int, tuple[EndMatcher, dict[str, int]]] = {}  # by identity

    def _on(self, values) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    @property
    def scripts(self) -> torch.Tensor:
        """Start of each forced text in `script_ids`, and its length: (rows, 2) int64."""
        return self._scripts.all

    @property
    def script_ids(self) -> torch.Tensor:
        return self._script_ids.all

    @property
    def classes(self) -> torch.Tensor:
        """`EndMatcher.classes` of all texts, one after the other."""
        return self._classes.all

    @property
    def matches(self) -> torch.Tensor:
        """`EndMatcher.table` of all texts, row by row, one after the other."""
        return self._matches.all

    @property
    def kinds(self) -> torch.Tensor:
        """`EndMatcher.surplus` and `.script` of all texts: (kinds of rests, 2) int64."""
        return self._kinds.all

    @property
    def texts(self) -> bool:
        return bool(self._texts)

    def memory(self) -> tuple:
        """Where the tables lie, and their forms. It changes when one moves or grows, and when the first text comes."""
        tables = (
            self.numbers, self.eos, self.cold_entropy, self.penalty, self.scripts, self.script_ids, self.classes, self.matches,
            self.kinds,
        )  # fmt: skip
        return self.texts, *((table.data_ptr(), table.shape, table.dtype) for table in tables)

    def add(self, plan: Plan) -> int:
        """Add a plan. Returns its row."""
        row = next(i for i in range(len(self._plans) + 1) if i not in self._plans)
        self._plans[row] = plan
        while self.eos.size(1) < len(plan.eos_token_ids):
            self.eos = torch.cat((self.eos, torch.full_like(self.eos, -1)), 1)
        while len(self.numbers) <= row:
            for name in ("numbers", "eos", "cold_entropy", "penalty"):
                setattr(self, name, torch.cat((getattr(self, name), torch.zeros_like(getattr(self, name)))))
        self._write(row, plan)
        return row

    def drop(self, row: int) -> None:
        """Drop a plan without completions. The next plan gets its row."""
        del self._plans[row]
        self._gone += 1
        if self._gone > max(_SLACK, len(self._plans)):
            self._gone = 0
            self._clear()
            for kept, plan in self._plans.items():
                self._write(kept, plan)

    def _write(self, row: int, plan: Plan) -> None:
        end, stop = plan.stop.end, plan.stop
        of = {
            "end": end.ids[0] if end.is_token else -1,
            "cap": _NEVER if stop.cap is None else stop.cap,
            "cold_length": _NEVER if stop.cold_entropy is None else stop.cold_length,
            "answer_cap": _NEVER if plan.max_answer_length is None else plan.max_answer_length,
            "filler": plan.eos_token_ids[0] if plan.eos_token_ids else plan.pad_token_id,
            "script": self._script(plan),
            **(self._text(end) if isinstance(end, EndMatcher) else {}),
        }
        self.numbers[row] = self._on([of.get(name, 0) for name in RULES])
        self.eos[row] = self._on(plan.eos_token_ids + [-1] * (self.eos.size(1) - len(plan.eos_token_ids)))
        self.cold_entropy[row] = -torch.inf if stop.cold_entropy is None else stop.cold_entropy
        self.penalty[row] = plan.repetition_penalty

    def _script(self, plan: Plan) -> int:
        """The row of a plan's first forced text."""
        lengths = torch.tensor([len(ids) for ids in plan.forced])
        begin = self._script_ids.add(torch.tensor([i for ids in plan.forced for i in ids], dtype=torch.long))
        return self._scripts.add(torch.stack((begin + lengths.cumsum(0) - lengths, lengths), -1))

    def _text(self, end: EndMatcher) -> dict[str, int]:
        """The places of a text's tables. Plans with the same text share them."""
        if id(end) not in self._texts:
            where = {
                "text_length": len(end.table), "width": end.table.size(1), "classes": self._classes.add(end.classes),
                "matches": self._matches.add(end.table.flatten()),
                "kinds": self._kinds.add(torch.stack((end.surplus, end.script), -1)),
            }  # fmt: skip
            self._texts[id(end)] = end, where
        return self._texts[id(end)][1]
