# SPDX-License-Identifier: Apache-2.0
"""Kernels of `trl_soft.rollout.book`: the state of a step, with one launch for each function.

Numbers and flags of a row are read and written in place. A kernel gets columns by their numbers, as constants.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..rollout.columns import FLAGS, NUMBERS
from ..rollout.rules import RULES
from . import launch


# Columns, for the kernels.
_NUMBERS: tl.constexpr = tl.constexpr(len(NUMBERS))
_FLAGS: tl.constexpr = tl.constexpr(len(FLAGS))
_RULES: tl.constexpr = tl.constexpr(len(RULES))
_RULE: tl.constexpr = tl.constexpr(NUMBERS.index("rule"))
_PROMPT_LENGTH: tl.constexpr = tl.constexpr(NUMBERS.index("prompt_length"))
_T: tl.constexpr = tl.constexpr(NUMBERS.index("t"))
_LIMIT: tl.constexpr = tl.constexpr(NUMBERS.index("limit"))
_CURSOR: tl.constexpr = tl.constexpr(NUMBERS.index("cursor"))
_ANSWERED: tl.constexpr = tl.constexpr(NUMBERS.index("answered"))
_CALM: tl.constexpr = tl.constexpr(NUMBERS.index("calm"))
_THINKING_LENGTH: tl.constexpr = tl.constexpr(NUMBERS.index("thinking_length"))
_MATCHED: tl.constexpr = tl.constexpr(NUMBERS.index("matched"))
_SURPLUS: tl.constexpr = tl.constexpr(NUMBERS.index("surplus"))
_SCRIPT: tl.constexpr = tl.constexpr(NUMBERS.index("script"))
_ACTIVE: tl.constexpr = tl.constexpr(FLAGS.index("active"))
_THINKING: tl.constexpr = tl.constexpr(FLAGS.index("thinking"))
_DONE: tl.constexpr = tl.constexpr(FLAGS.index("done"))
_CUT: tl.constexpr = tl.constexpr(FLAGS.index("cut"))
_END: tl.constexpr = tl.constexpr(RULES.index("end"))
_CAP: tl.constexpr = tl.constexpr(RULES.index("cap"))
_COLD_LENGTH: tl.constexpr = tl.constexpr(RULES.index("cold_length"))
_ANSWER_CAP: tl.constexpr = tl.constexpr(RULES.index("answer_cap"))
_FILLER: tl.constexpr = tl.constexpr(RULES.index("filler"))
_SCRIPTS: tl.constexpr = tl.constexpr(RULES.index("script"))
_CLASSES: tl.constexpr = tl.constexpr(RULES.index("classes"))
_MATCHES: tl.constexpr = tl.constexpr(RULES.index("matches"))
_WIDTH: tl.constexpr = tl.constexpr(RULES.index("width"))
_TEXT_LENGTH: tl.constexpr = tl.constexpr(RULES.index("text_length"))
_KINDS: tl.constexpr = tl.constexpr(RULES.index("kinds"))
_ROWS = 32  # rows of one program of `decide`


@triton.jit
def decide_rows(
    numbers, flags, masks, ids, undo_numbers, undo_flags, index,
    rules, eos, scripts, script_ids, classes, matches, kinds, cold_entropy,
    thought_token, answer_token, cold, soft,
    out_token, out_written, out_t, out_flags,
    n, length,
    UNDO: tl.constexpr, TEXTS: tl.constexpr, COLD: tl.constexpr, GATED: tl.constexpr,
    CLOSES_AS_TOKEN: tl.constexpr, EOS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`trl_soft.rollout.book.decide` for ROWS rows. `out_flags` is (4, N): active, thinks, answers, closed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    slot = tl.load(index + row, mask=here, other=0)
    number, flag = numbers + slot * _NUMBERS, flags + slot * _FLAGS
    t = tl.load(number + _T, mask=here, other=0)
    if UNDO > 0:
        place = slot * UNDO + t % UNDO
        for column in tl.static_range(_NUMBERS):
            tl.store(undo_numbers + place * _NUMBERS + column, tl.load(number + column, mask=here), mask=here)
        for column in tl.static_range(_FLAGS):
            tl.store(undo_flags + place * _FLAGS + column, tl.load(flag + column, mask=here), mask=here)
    plan = tl.load(number + _RULE, mask=here, other=0)
    rule = rules + plan * _RULES
    active = here & (tl.load(flag + _ACTIVE, mask=here, other=0) != 0)
    thinking = tl.load(flag + _THINKING, mask=here, other=0) != 0
    # Who thinks, is forced, answers.
    script = tl.load(number + _SCRIPT, mask=here, other=0)
    cursor = tl.load(number + _CURSOR, mask=here, other=0)
    text = (tl.load(rule + _SCRIPTS, mask=here, other=0) + script) * 2
    scripted = cursor < tl.load(scripts + text + 1, mask=here, other=0)
    thinks, forced, answers = active & thinking, active & ~thinking & scripted, active & ~thinking & ~scripted
    begin = tl.load(scripts + text, mask=here, other=0)
    token = tl.load(script_ids + begin + cursor, mask=here & scripted, other=0)
    softly, drawn = thinks, answers
    if GATED:
        softly = thinks & (tl.load(soft + row, mask=here, other=0) != 0)
        drawn = answers | (thinks & ~softly)
    token = tl.where(drawn, tl.load(answer_token + row, mask=here, other=0), token)
    token = tl.where(softly, tl.load(thought_token + row, mask=here, other=0), token)
    # The state after the token.
    end = tl.arange(0, EOS)
    ends = tl.load(eos + plan[:, None] * EOS + end[None, :], mask=here[:, None], other=-1)
    is_eos = tl.max((ends == token[:, None]).to(tl.int32), axis=1) > 0
    ended = token == tl.load(rule + _END, mask=here, other=0)
    if TEXTS:
        m = tl.load(rule + _TEXT_LENGTH, mask=here, other=0)
        has = thinks & (m > 0)
        matched = tl.load(number + _MATCHED, mask=here, other=0)
        token_class = tl.load(classes + tl.load(rule + _CLASSES, mask=here, other=0) + token, mask=has, other=0)
        place = tl.minimum(matched, m - 1) * tl.load(rule + _WIDTH, mask=here, other=0) + token_class
        place = place + tl.load(rule + _MATCHES, mask=here, other=0)
        after = tl.load(matches + place, mask=has, other=0).to(tl.int64)
        kind = tl.maximum(after - m, 0) + tl.load(rule + _KINDS, mask=here, other=0)
        surplus = tl.load(kinds + kind * 2, mask=has, other=0)
        script = tl.where(has, tl.load(kinds + kind * 2 + 1, mask=has, other=0), script)
        ended = ended | (has & (after >= m))
    closed = thinks & (ended | is_eos)
    thinking_length = tl.load(number + _THINKING_LENGTH, mask=here, other=0) + 1
    too_long = thinking_length >= tl.load(rule + _CAP, mask=here, other=0)
    if COLD:
        low = tl.load(cold + row, mask=here, other=0) < tl.load(cold_entropy + plan, mask=here, other=0)
        calm = tl.where(low, tl.load(number + _CALM, mask=here, other=0) + 1, 0)
        too_long = too_long | (calm >= tl.load(rule + _COLD_LENGTH, mask=here, other=0))
    too_long = thinks & too_long & ~closed
    answered = tl.load(number + _ANSWERED, mask=here, other=0) + tl.where(answers, 1, 0)
    done = tl.where(thinks | answers, is_eos, tl.load(flag + _DONE, mask=here, other=0) != 0)
    goes_on = ~done & (t + 1 < tl.load(number + _LIMIT, mask=here, other=0))
    goes_on = goes_on & (answered < tl.load(rule + _ANSWER_CAP, mask=here, other=0))
    column = tl.minimum(t, length - 1)
    at = slot * length + column
    filler = tl.load(rule + _FILLER, mask=here, other=0)
    tl.debug_barrier()  # every thread has read before any thread writes
    if TEXTS:
        tl.store(number + _MATCHED, after, mask=has)
        tl.store(number + _SURPLUS, tl.where(is_eos, 0, surplus), mask=has)
    if COLD:
        tl.store(number + _CALM, calm, mask=thinks)
    tl.store(number + _T, t + 1, mask=active)
    tl.store(number + _CURSOR, cursor + 1, mask=forced)
    tl.store(number + _ANSWERED, answered, mask=answers)
    tl.store(number + _THINKING_LENGTH, thinking_length, mask=thinks)
    tl.store(number + _SCRIPT, tl.where(too_long, 1, script), mask=thinks)
    tl.store(flag + _ACTIVE, goes_on.to(tl.uint8), mask=active)
    tl.store(flag + _THINKING, (~((closed & ~is_eos) | too_long)).to(tl.uint8), mask=thinks)
    tl.store(flag + _DONE, done.to(tl.uint8), mask=active)
    tl.store(flag + _CUT, too_long.to(tl.uint8), mask=thinks)
    tl.store(ids + at, token, mask=active)
    is_thought = softly
    if CLOSES_AS_TOKEN:
        is_thought = softly & ~closed
    tl.store(masks + at * 3, active.to(tl.uint8), mask=active)
    tl.store(masks + at * 3 + 1, is_thought.to(tl.uint8), mask=active)
    tl.store(masks + at * 3 + 2, forced.to(tl.uint8), mask=active)
    tl.store(out_token + row, token, mask=here)
    tl.store(out_written + row, tl.where(active, token, filler), mask=here)
    tl.store(out_t + row, column, mask=here)
    tl.store(out_flags + row, active.to(tl.uint8), mask=here)
    tl.store(out_flags + n + row, softly.to(tl.uint8), mask=here)
    tl.store(out_flags + 2 * n + row, drawn.to(tl.uint8), mask=here)
    tl.store(out_flags + 3 * n + row, closed.to(tl.uint8), mask=here)


@triton.jit
def put_rows(
    targets, values, widths, to_row, to_column, index, t, mask, n, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """`trl_soft.rollout.book.put`: the i-th target has `to_row[i]` numbers between rows and `to_column[i]` between columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = row < n
    here = here & (tl.load(mask + row, mask=here, other=0) != 0)
    slot, column = tl.load(index + row, mask=here, other=0), tl.load(t + row, mask=here, other=0)
    for i in tl.static_range(len(targets)):
        place = slot * to_row[i] + column * to_column[i]
        inside = here[:, None] & (part < widths[i])[None, :]
        x = tl.load(values[i] + row[:, None].to(tl.int64) * widths[i] + part[None, :], mask=inside)
        tl.store(targets[i] + place[:, None] + part[None, :], x.to(targets[i].dtype.element_ty), mask=inside)


@triton.jit
def put_pairs(
    values, thought_p, thought_entropy, answer_p, answer_entropy, index, t, thinks, answers, n, length, ROWS: tl.constexpr
):  # fmt: skip
    """`trl_soft.rollout.book.put_scores`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    thought = here & (tl.load(thinks + row, mask=here, other=0) != 0)
    answer = here & (tl.load(answers + row, mask=here, other=0) != 0) & ~thought
    written = thought | answer
    place = (tl.load(index + row, mask=written, other=0) * length + tl.load(t + row, mask=written, other=0)) * 2
    p = tl.where(thought, tl.load(thought_p + row, mask=thought), tl.load(answer_p + row, mask=answer))
    entropy = tl.where(
        thought, tl.load(thought_entropy + row, mask=thought), tl.load(answer_entropy + row, mask=answer)
    )
    tl.store(values + place, p, mask=written)
    tl.store(values + place + 1, entropy, mask=written)


@triton.jit
def take_rows(
    sources, outs, widths, to_row, to_column, index, t, mask, n, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """`trl_soft.rollout.book.take`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = row < n
    taken = here & (tl.load(mask + row, mask=here, other=0) != 0)
    slot, column = tl.load(index + row, mask=taken, other=0), tl.load(t + row, mask=taken, other=0)
    for i in tl.static_range(len(sources)):
        place = slot * to_row[i] + column * to_column[i]
        inside = (part < widths[i])[None, :]
        x = tl.load(sources[i] + place[:, None] + part[None, :], mask=taken[:, None] & inside, other=0)
        tl.store(outs[i] + row[:, None].to(tl.int64) * widths[i] + part[None, :], x, mask=here[:, None] & inside)


@triton.jit
def find_thoughts(
    numbers, masks, index, position, rows, column, found, n, length, PICKED: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """`trl_soft.rollout.book.thoughts_at`; PICKED: of `rows` of the positions."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    slot = tl.load(index + row, mask=here, other=0)
    at = tl.load(rows + row, mask=here, other=0) if PICKED else row
    t = tl.load(position + at, mask=here, other=0) - tl.load(
        numbers + slot * _NUMBERS + _PROMPT_LENGTH, mask=here, other=0
    )
    at = tl.maximum(tl.minimum(t, length - 1), 0)
    thought = tl.load(masks + (slot * length + at) * 3 + 1, mask=here, other=0) != 0
    tl.store(column + row, at, mask=here)
    tl.store(found + row, (thought & (t == at)).to(tl.uint8), mask=here)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Yes and no as bytes."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def decide(rows, rules, thought_token, answer_token, cold, closes_as_token: bool, soft=None):
    """The fields of `trl_soft.rollout.book.Turn`."""
    n, blocks, index, undo = len(rows), rows.blocks, rows.index, rows.undo
    token, written, t = (torch.empty_like(index) for _ in range(3))
    flags = torch.empty(4, n, dtype=torch.bool, device=index.device)
    masks = _bytes(blocks["masks"])
    launch(
        decide_rows, (triton.cdiv(n, _ROWS),),
        blocks["numbers"], _bytes(blocks["flags"]), masks, blocks["ids"],
        blocks["numbers"] if undo is None else undo["numbers"], masks if undo is None else _bytes(undo["flags"]), index,
        rules.numbers, rules.eos, rules.scripts, rules.script_ids, rules.classes, rules.matches, rules.kinds, rules.cold_entropy,
        thought_token.contiguous(), answer_token.contiguous(), rules.cold_entropy if cold is None else cold.contiguous(),
        masks if soft is None else _bytes(soft.contiguous()),
        token, written, t, _bytes(flags),
        n, blocks["ids"].size(1),
        UNDO=0 if undo is None else undo["numbers"].size(1), TEXTS=rules.texts, COLD=cold is not None,
        GATED=soft is not None, CLOSES_AS_TOKEN=closes_as_token, EOS=rules.eos.size(1), ROWS=_ROWS, num_warps=1,
        moved=n * 8 * (4 * len(NUMBERS) + len(RULES) + rules.eos.size(1) + 4 * rules.texts),
    )  # fmt: skip
    return token, written, t, *flags.unbind(0)


def _as(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The value in the type of the target, rounded as torch rounds. Whole numbers are cast when they are stored."""
    return (value.to(target.dtype) if value.is_floating_point() else value).contiguous()


def _moved(rows: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> int:
    """Bytes of a copy of some rows, and of their target indices."""
    pairs = zip(rows, places, strict=True)
    return sum(x.numel() * (x.element_size() + place.element_size()) for x, place in pairs) + len(rows[0]) * 17


def _tiles(n: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the tile of a copy of n rows, of which the widest has `width` numbers."""
    tile = min(triton.next_power_of_2(max(width, 1)), 1024)
    rows = max(1, min(32, 1024 // tile))
    return (triton.cdiv(n, rows), triton.cdiv(width, tile)), {"ROWS": rows, "WIDTH": tile}


def _widths(values: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple(value.numel() // max(len(value), 1) for value in values)


def _strides(tensors: Sequence[torch.Tensor], dim: int) -> tuple[int, ...]:
    return tuple(x.stride(dim) for x in tensors)


def put(targets, values, index: torch.Tensor, t: torch.Tensor, mask: torch.Tensor) -> None:
    values = [_as(value, target) for value, target in zip(values, targets, strict=True)]
    n, widths = len(index), _widths(values)
    grid, tile = _tiles(n, max(widths))
    launch(
        put_rows, grid, tuple(map(_bytes, targets)), tuple(map(_bytes, values)), widths, _strides(targets, 0),
        _strides(targets, 1), index, t, _bytes(mask), n,
        moved=_moved(values, targets), **tile,
    )  # fmt: skip


def put_scores(values: torch.Tensor, thought, answer, index: torch.Tensor, t: torch.Tensor, thinks, answers) -> None:
    scores = [x.contiguous() for x in (*thought, *answer)]
    n = len(index)
    launch(
        put_pairs, (triton.cdiv(n, _ROWS),), values, *scores, index, t, _bytes(thinks), _bytes(answers), n,
        values.size(1), ROWS=_ROWS, moved=n * 34,
    )  # fmt: skip


def feed(target: torch.Tensor, value: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> None:
    value = _as(value, target)
    n, width = value.shape
    grid, tile = _tiles(n, width)
    launch(
        put_rows, grid, (target,), (value,), (width,), (target.stride(0),), (0,), rows, rows, _bytes(mask), n,
        moved=_moved([value], [target]), **tile,
    )  # fmt: skip


def take(sources, index: torch.Tensor, t: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    n = len(index)
    outs = [torch.empty(n, *source.shape[2:], dtype=source.dtype, device=source.device) for source in sources]
    widths = _widths(outs)
    grid, tile = _tiles(n, max(widths))
    launch(
        take_rows, grid, tuple(map(_bytes, sources)), tuple(map(_bytes, outs)), widths, _strides(sources, 0),
        _strides(sources, 1), index, t, _bytes(mask), n,
        moved=_moved(outs, sources), **tile,
    )  # fmt: skip
    return outs


def thoughts_at(blocks: dict[str, torch.Tensor], index: torch.Tensor, position: torch.Tensor, rows=None):
    column = torch.empty_like(index)
    found = torch.empty_like(index, dtype=torch.bool)
    n = len(index)
    launch(
        find_thoughts, (triton.cdiv(n, _ROWS),), blocks["numbers"], _bytes(blocks["masks"]), index, position,
        index if rows is None else rows, column, _bytes(found), n, blocks["ids"].size(1),
        PICKED=rows is not None, ROWS=_ROWS, moved=n * (41 if rows is None else 49),
    )  # fmt: skip
    return column, found
