# SPDX-License-Identifier: Apache-2.0
"""One completion as a picture: the candidates and weights of each step, as an SVG file that fits light and dark pages.

python -m trl_soft.evaluate.picture outputs/quickstart/thoughts/after -o thought.svg
"""

import html
from collections.abc import Sequence
from pathlib import Path

from ...command_line import CommandParser
from ...files import printable
from .thoughts_page import read_samples


_WIDTH, _HEIGHT = 44, 96  # of a step's bar with the space beside it, in pixels
_IN_A_ROW = 18
_LEAST = 13  # height of a part of a bar that has room for its token
_STYLE = """
  text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1a1c1f; }
  .note { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #5a5f66; }
  .shadow { font-weight: 700; text-anchor: middle; }
  .in { font-size: 11px; text-anchor: middle; fill: #ffffff; }
  .in.other { fill: #1a1c1f; }
  .first.part { fill: #0a5fb4; }
  .other.part { fill: #9cc4ec; }
  .answer { fill: none; stroke: #5a5f66; stroke-dasharray: 4 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e8e4; }
    .note { fill: #a5abb3; }
    .first.part { fill: #7cbcff; }
    .in { fill: #10202f; }
    .other.part { fill: #2c4d70; }
    .in.other { fill: #e8e8e4; }
    .answer { stroke: #a5abb3; }
  }
"""
PathLike = str | Path


def thought_picture(
    run_folder: PathLike,
    output_svg: PathLike,
    decoding: str | None = None,
    problem: int | None = None,
    number: int | None = None,
) -> Path:
    """
    Draw one completion of a run.

    Args:
        run_folder (`path`): folder of an evaluation with `candidates`.
        output_svg (`path`): the picture.
        decoding (`str`, *optional*), problem (`int`, *optional*), number (`int`, *optional*):
            The completion to draw. Of those that fit, it is the right one whose thoughts are mixed most.

    Returns:
        The path of the picture.

    Raises:
        ValueError: if no completion fits, or none with recorded soft thoughts.
    """
    folder = Path(run_folder)
    fitting = [
        sample
        for sample in read_samples(folder)
        if decoding in (None, sample["decoding"])
        and problem in (None, sample["problem"])
        and number in (None, sample["sample"])
    ]
    drawn = [sample for sample in fitting if any(_is_mixture(step) for step in sample.get("thoughts") or ())]
    if not drawn:
        raise ValueError(
            f"{folder} has {len(fitting)} completions of decoding {decoding or 'any'}, problem {'any' if problem is None else problem} "
            f"and sample {'any' if number is None else number}, and none with recorded soft thoughts. Evaluate a soft decoding with "
            "`--candidates 8`."
        )
    best = max(
        drawn, key=lambda sample: (bool(sample.get("correct")), _mixed(sample), -sample["problem"], -sample["sample"])
    )
    output = Path(output_svg)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(svg(best), encoding="utf-8", newline="\n")
    return output


def _is_mixture(step: dict) -> bool:
    return bool(step.get("thought") and not step.get("drawn") and step.get("candidates"))


def _mixed(sample: dict) -> float:
    """Weight that is not the heaviest candidate's, over all steps."""
    return sum(1 - step["candidates"][0][1] for step in sample["thoughts"] if _is_mixture(step))


def svg(sample: dict) -> str:
    """The picture of one sample: a bar for each soft thought, cut by weights; a dashed box for each token of the answer."""
    steps = sample["thoughts"]
    rows = [steps[begin : begin + _IN_A_ROW] for begin in range(0, len(steps), _IN_A_ROW)]
    width = 20 + _WIDTH * min(len(steps), _IN_A_ROW)
    pitch = _HEIGHT + 40
    height = 40 + pitch * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>The thought of one completion: {_text(_question(sample))}</title>",
        f"<style>{_STYLE}</style>",
        f'<text x="10" y="22">{_text(_question(sample))}</text>',
    ]
    for row, part in enumerate(rows):
        top = 40 + pitch * row
        for column, step in enumerate(part):
            lines += _bar(step, 10 + _WIDTH * column, top)
    note = "Bars: soft thoughts, cut by the weights of their candidate tokens; below each, its shadow token. Dashed: the answer."
    lines.append(f'<text class="note" x="10" y="{height - 12}">{note}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _question(sample: dict) -> str:
    """The end of the prompt, which is short where it is shown."""
    prompt = str(sample.get("prompt") or "").strip().splitlines()
    return prompt[-1][-80:] if prompt else "prompt not recorded"


def _bar(step: dict, left: int, top: int) -> list[str]:
    width, middle = _WIDTH - 8, left + (_WIDTH - 8) / 2
    lines = []
    if _is_mixture(step):
        shares = [(token, max(weight or 0.0, 0.0)) for token, weight in step["candidates"]]
        total, below = sum(weight for _, weight in shares) or 1.0, float(top + _HEIGHT)
        for rank, (token, weight) in enumerate(shares):
            size = _HEIGHT * weight / max(total, 1.0)
            below -= size
            kind = "first" if rank == 0 else "other"
            lines.append(
                f'<rect class="{kind} part" x="{left}" y="{below:.1f}" width="{width}" height="{max(size - 1, 0.5):.1f}" rx="2">'
                f"<title>{_text(token)} {weight:.3f}</title></rect>"
            )
            if size >= _LEAST:
                where = f'x="{middle:g}" y="{below + size / 2 + 4:.1f}"'
                lines.append(f'<text class="in {kind}" {where}{_squeezed(token)}>{_text(token)}</text>')
    else:
        lines.append(f'<rect class="answer" x="{left}" y="{top}" width="{width}" height="{_HEIGHT}" rx="2"/>')
    lines.append(
        f'<text class="shadow" x="{middle:g}" y="{top + _HEIGHT + 18}"{_squeezed(step["token"])}>{_text(step["token"])}</text>'
    )
    return lines


def _squeezed(token: str) -> str:
    """An attribute that makes a long token as wide as its bar."""
    return f' textLength="{_WIDTH - 8}" lengthAdjust="spacingAndGlyphs"' if len(str(token)) > 4 else ""


def _text(token: str) -> str:
    """A token as XML holds it: blanks have a sign, and a long one is cut."""
    seen = printable(str(token).replace("\n", "⏎").replace("\t", "⇥"))
    seen = "·" if seen == " " else seen
    return html.escape(seen if len(seen) <= 80 else seen[:79] + "…")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `thought_picture`."""
    parser = CommandParser(
        example="python -m trl_soft.evaluate.picture outputs/quickstart/evaluation -o thought.svg",
        prog="python -m trl_soft.evaluate.picture",
        description="One completion as a picture of its thoughts.",
    )
    parser.add_argument("run", help="run folder, with its thoughts recorded")
    parser.add_argument("-o", "--output", required=True, metavar="SVG", help="the picture")
    parser.add_argument("--decoding", help="name of the decoding (default: any)")
    parser.add_argument("--problem", type=int, help="number of the problem (default: any)")
    parser.add_argument("--sample", type=int, help="number of the sample (default: any)")
    options = parser.parse_args(argv)
    try:
        picture = thought_picture(options.run, options.output, options.decoding, options.problem, options.sample)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{printable(str(error))}\n")
    print(f"Wrote {picture}.")
