# SPDX-License-Identifier: Apache-2.0
"""Records in transport: many completions as one bulk of arrays, and a bulk as a `Rollout` again.

A bulk is a dict of plain values, so that any transport can carry it:

    requests, children     request id and number of the completion of each record; B entries
    lengths                tokens of each record
    finished               False for a completion that was aborted or that a `stop` of the request ended
    thinking_lengths, surpluses, cut
                           as in `Rollout`
    thought                name of the thought
    layout                 places of an action's tensors in its bytes
    arrays                 name -> bytes: ids (T,) int32, masks (T, 3) bool, values (T, 2) float32, actions (T, W) bytes.
                           T is the sum of lengths. A bytearray, or base64 text if the transport is JSON
"""

import base64
import math
from collections.abc import Sequence

import numpy as np
import torch

from ...record import SoftTokens
from ..columns import FLAGS, NUMBERS
from ..interface import Plan, Rollout
from .layout import Layout
from .pool import Parked


def bulks(records: Sequence[tuple[str, int, Parked]], as_text: bool = False) -> list[dict]:
    """A bulk for each kind of thought. Each record comes with its request and the number of its completion."""
    kinds: dict[tuple[str, Layout], list[tuple[str, int, Parked]]] = {}
    for record in records:
        kinds.setdefault((record[2].thought, record[2].layout), []).append(record)
    return [_bulk(*kind, some, as_text) for kind, some in kinds.items()]


def _bulk(thought: str, layout: Layout, records: list[tuple[str, int, Parked]], as_text: bool) -> dict:
    rows = [parked.rows for _, _, parked in records]
    numbers, flags = (torch.stack([row[name] for row in rows]) for name in ("numbers", "flags"))
    number, flag = (dict(zip(n, x.unbind(-1), strict=True)) for n, x in ((NUMBERS, numbers), (FLAGS, flags)))
    lengths = number["t"].tolist()

    def joined(name: str, dtype: torch.dtype):
        parts = [row[name][:length] for row, length in zip(rows, lengths, strict=True)]
        shape = sum(lengths), *parts[0].shape[1:]
        # Each number is copied once, into the buffer that is sent.
        data = bytearray(max(dtype.itemsize * math.prod(shape), 1))
        if sum(lengths):
            torch.cat([part.to(dtype) for part in parts], out=torch.frombuffer(data, dtype=dtype).view(shape))
        return base64.b64encode(data).decode() if as_text else data

    return {
        "requests": [request for request, _, _ in records],
        "children": [child for _, child, _ in records],
        "lengths": lengths,
        "thinking_lengths": number["thinking_length"].tolist(),
        "surpluses": number["surplus"].tolist(),
        "cut": (flag["cut"] | (flag["thinking"] & ~flag["done"])).tolist(),
        # False: aborted, ended by a stop string of the request, or not yet continued.
        "finished": (~flag["active"]).tolist(),
        "thought": thought,
        "layout": layout.to_json(),
        "arrays": {
            "ids": joined("ids", torch.int32),
            "masks": joined("masks", torch.bool),
            "values": joined("values", torch.float32),
            "actions": joined("arena", torch.uint8),
        },
    }


def rollout_of(bulk: dict, plan: Plan, order: Sequence[tuple[str, int]]) -> Rollout:
    """
    The `Rollout` that an engine would have returned.

    Args:
        bulk: see the top of this file.
        plan (`Plan`): the plan of all its completions. It gives the thought and the padding.
        order: request and number of the completion of each of the B rows.

    Raises:
        ValueError: if a record is missing, or was made under another plan.
    """
    lengths = torch.tensor(bulk["lengths"])
    layout = Layout.from_json(bulk["layout"])
    place = {key: i for i, key in enumerate(zip(bulk["requests"], bulk["children"], strict=True))}
    missing = [key for key in order if key not in place]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(order)} records did not come back, for example that of request {missing[0][0]!r}, completion "
            f"{missing[0][1]}. They were fetched before, or the server was restarted."
        )
    if bulk["thought"] != plan.thought.name:
        raise ValueError(f"The records are of {bulk['thought']} thoughts, and the plan's are {plan.thought.name}.")
    total, longest = int(lengths.sum()), int(lengths.max())
    mask = torch.arange(longest) < lengths.unsqueeze(-1)

    def spread(flat: torch.Tensor, fill=0) -> torch.Tensor:
        """(T, ...) -> (B, C, ...)."""
        out = flat.new_full((len(lengths), longest, *flat.shape[1:]), fill)
        out[mask] = flat
        return out

    arrays = {name: _array(data) for name, data in bulk["arrays"].items()}
    masks = arrays["masks"].view(torch.bool).view(total, 3)
    values = arrays["values"].view(torch.float32).view(total, 2)
    _, thinking, forced = spread(masks).unbind(-1)
    log_probs, entropies = spread(values).unbind(-1)
    # In a separate block: a view with narrower rows cannot be reinterpreted.
    action = layout.views(spread(arrays["actions"].view(total, -1)))
    record = SoftTokens(plan.thought, thinking, action, log_probs, forced)
    ids = spread(arrays["ids"].view(torch.int32).long(), plan.pad_token_id)
    of_thought = (torch.tensor(bulk[name]) for name in ("thinking_lengths", "surpluses", "cut"))
    rollout = Rollout(ids, mask, record, entropies, *of_thought)
    rows = torch.tensor([place[key] for key in order])
    return rollout._map(lambda x: x[rows])


def _array(data: bytearray | bytes | str) -> torch.Tensor:
    """Bytes as a new tensor, aligned for any type."""
    raw = base64.b64decode(data) if isinstance(data, str) else data
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
