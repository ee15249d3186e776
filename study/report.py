# SPDX-License-Identifier: Apache-2.0
"""Write docs/study.md and its figures from the result files alone: `make study-report`. No figure of it is typed by hand."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from . import index_rows, tables
from .cells import DESIGN, Design
from .pictures import draw
from .questions import Answer, Comparison, answers
from .real import page as real
from .real.arms import RealDesign
from .real.pictures import draw as real_draw
from .results import RESULTS, Results
from .rules import BEATS, DECORATIVE, LOSES, MATTERS, NOT_RUN
from .runs import Runs
from .tasks import ROOT


PAGE = ROOT / "docs/study.md"
IMAGES = ROOT / "docs/images"
_CAPTIONS = {
    "study_forest": "Mean@n of each soft method less that of its control, with 95 % intervals over seeds",
    "study_reward": "Reward of each method's own samples over updates",
    "study_pass_at_k": "pass@k of each method on the test problems, by hard and by own inference",
}


def names(methods: Sequence[str]) -> str:
    """A list of methods in a sentence."""
    return ", ".join(f"`{name}`" for name in methods) if methods else "none"


def _of(answer: Answer, word: str, inference: str, noun: str = "") -> str:
    """`3 of 22 (`a`, `b`, `c`)`: the methods with a word on every task. `noun` says what the 22 are."""
    methods = len({comparison.method for comparison in answer.comparisons})
    found = answer.everywhere(word, inference)
    return f"{len(found)} of {methods}{noun and f' {noun}'}" + (f" ({names(found)})" if found else "")


def _partly(answer: Answer) -> str:
    """What a sentence ends with if some verdicts are missing."""
    missing = sum(comparison.word == NOT_RUN for comparison in answer.comparisons)
    return f" ({missing} of {len(answer.comparisons)} comparisons not run)" if missing else ""


def first_sentence(found: dict[str, Answer]) -> str:
    """Q1."""
    answer = found["Q1"]
    if not answer.is_run:
        return "Does a soft method beat hard tokens at equal truncation: not run."
    parts = [
        f"in {inference} inference {_of(answer, BEATS, inference, 'soft methods')} beat their hard control on every task, and "
        f"{_of(answer, LOSES, inference)} lose to it"
        for inference in ("hard", "own")
    ]
    return f"At equal truncation and with one budget, {'; '.join(parts)}{_partly(answer)}."


def second_sentence(found: dict[str, Answer]) -> str:
    """Q2 and Q8."""
    hard, soft = found["Q2"], found["Q8"]
    if not hard.is_run and not soft.is_run:
        return "Train soft and infer hard, and whether softness is decorative: not run."
    kind = "hard less own"
    return (
        f"Trained softly, {_of(hard, 'hard', kind)} are better with hard inference on every task and {_of(hard, 'own', kind)} with "
        f"their own{_partly(hard)}; the softness of thoughts at test time is decorative for {_of(soft, DECORATIVE, 'argmax')} and "
        f"matters for {_of(soft, MATTERS, 'argmax')}{_partly(soft)}."
    )


def _pair(comparison: Comparison) -> str:
    return f"`{comparison.method}` than `{comparison.other}` on `{comparison.task}`"


def third_sentence(found: dict[str, Answer], runs: Runs) -> str:
    """Q3, Q4 and Q5."""
    parts = []
    task, (without, with_it) = next(iter(runs.design["tasks"])), runs.design["questions"]["top_p"][0]
    pair = [runs.measured(task, method) for method in (without, with_it)]
    if all(pair):
        before, after = (measured["mean"] for measured in pair if measured)
        parts.append(
            f"Top-p takes the score variance of `{with_it}` on `{task}` from {before:.3g} to {after:.3g} on the untrained policy"
        )
    for question, text in (("Q3", "with top-p"), ("Q4", "among pairs of densities")):
        answer = found[question]
        if answer.is_run:
            faster = [_pair(c) for c in answer.comparisons if c.word == "faster"]
            slower = [_pair(c) for c in answer.comparisons if c.word == "slower"]
            parts.append(
                f"{text}, faster: {', '.join(faster) or 'none'}, slower: {', '.join(slower) or 'none'}{_partly(answer)}"
            )
    fuzzy = [(t, runs.measured(t, runs.design["questions"]["fuzzy"][0])) for t in runs.design["tasks"]]
    shares = [
        f"{100 * measured['zero_float32']:.1f} % of thoughts on `{name}`" for name, measured in fuzzy if measured
    ]
    if shares:
        parts.append(f"the gradient of fuzzy is exactly 0 on {' and '.join(shares)}")
    if not parts:
        return "What top-p does to the Gumbel score, which density learns fastest, and where fuzzy has no gradient: not run."
    return "; ".join(parts) + "."


def fourth_sentence(found: dict[str, Answer], runs: Runs) -> str:
    """Q6."""
    answer, many = found["Q6"], runs.design["evaluation"]["many"]
    if not answer.is_run:
        return f"Whether soft training keeps pass@{many} better than hard training with KL: not run."
    parts = [
        f"{_of(answer, BEATS, inference, 'soft methods')} have a higher pass@{many} than hard training with KL on every task in {inference} inference, "
        f"and {_of(answer, LOSES, inference)} a lower one"
        for inference in ("hard", "own")
    ]
    return f"{'; '.join(parts)}{_partly(answer)}."


def fifth_sentence(found: dict[str, Answer]) -> str:
    """Q7 and Q9."""
    gates, outside = found["Q7"], {name: answer for name, answer in found.items() if name.startswith("Q9")}
    if not gates.is_run and not any(answer.is_run for answer in outside.values()):
        return "Whether a gate matters, and whether anything transfers to other problems: not run."
    parts = [
        f"{_of(gates, BEATS, inference, 'gates')} help and {_of(gates, LOSES, inference)} harm in {inference} inference on every task"
        for inference in ("hard", "own")
    ]
    parts[-1] += _partly(gates)
    for name, answer in outside.items():
        counts = [f"{_of(answer, BEATS, i)} beat their control in {i} inference" for i in ("hard", "own")]
        parts.append(f"on `{name.removeprefix('Q9 ')}` problems {' and '.join(counts)}{_partly(answer)}")
    return "; ".join(parts) + "."


def sentences(found: dict[str, Answer], runs: Runs) -> list[str]:
    """The answers in five sentences."""
    told = [
        first_sentence(found), second_sentence(found), third_sentence(found, runs), fourth_sentence(found, runs),
        fifth_sentence(found),
    ]  # fmt: skip
    return [sentence[0].upper() + sentence[1:] for sentence in told]


def provenance(runs: Runs) -> str:
    """What was run, where, and with which commits."""
    design, results = runs.design, runs.results
    mine = [result for result in results.found.values() if result["cell"]["task"] in design["tasks"]]
    if not mine:
        return f"0 of {design.count()} cells have a result."

    def every(read) -> str:
        return ", ".join(sorted({str(read(result["environment"])) for result in mine}))

    hours = (
        sum(sum(r["seconds"][part] for part in ("training_cpu", "evaluation_cpu")) for r in mine if "seconds" in r)
        / 3600
    )
    versions = [
        f"{name} {every(lambda e, n=name: e['versions'].get(n))}"
        for name in ("trl_soft", "trl", "transformers", "torch")
    ]
    return (
        f"{design.done(results)} of {design.count()} cells have a result: {hours:.1f} hours of processor time. Processor: "
        f"{every(lambda e: e['processor'])}, one thread a run. Versions: {'; '.join(versions)}. Commits of the runs: "
        f"{every(lambda e: e['commit'])}. Commits of the registered questions: {every(lambda e: e['registered'])}."
    )


def missing(runs: Runs) -> list[str]:
    """What was not run, one sentence each."""
    found = []
    for name, method in runs.design.methods.items():
        have = {task: len(runs.of(task, name)) for task in runs.design["tasks"]}
        if method.waits:
            found.append(f"`{name}`: its kind of thought is not in this version.")
        elif any(count < runs.seeds for count in have.values()):
            counts = ", ".join(f"{count} of {runs.seeds} seeds on `{task}`" for task, count in have.items())
            found.append(f"`{name}`: {counts}.")
    return found


def strangers(runs: Runs) -> list[str]:
    """Results whose recipe is not that of the design, one sentence each."""
    found = []
    for name in runs.design.methods:
        for task in runs.design["tasks"]:
            for seed, result in runs.of(task, name).items():
                cell = next(
                    c
                    for c in runs.design.final_cells(name, runs.rates[name] or 0.0)
                    if (c.task, c.seed) == (task, seed)
                )
                wanted = runs.design.settings(cell, Path())
                wanted.pop("output_dir")
                if result["recipe"] != wanted:
                    found.append(f"`{cell.name}` was run with other settings than the design has today.")
    return found


def bullets(entries: Sequence[str], none: str) -> str:
    return "\n".join(f"- {entry}" for entry in entries) if entries else none


def page(
    runs: Runs, found: dict[str, Answer], pictures: Sequence[Path], folder: Path, real_pictures: Sequence[Path] = ()
) -> str:
    """The text of the page, which will lie in `folder`. `real_pictures`: the figures of part B."""
    design = runs.design
    health, failed = tables.health(runs)
    gumbels = [name for pair in design["questions"]["top_p"] for name in pair]
    outside = [
        f"### Problems of `{name.removeprefix('Q9 ')}`\n\n{tables.comparisons(runs, answer)}"
        for name, answer in found.items()
        if name.startswith("Q9")
    ]
    shown = [f"![{_CAPTIONS[path.stem]}]({os.path.relpath(path, folder)})" for path in pictures]
    readme = os.path.relpath(ROOT / "study/README.md", folder)
    head = f"""# The study: all methods, one budget

[The questions and the rules]({readme}) were registered before the first run. `make study` runs the study, and
`make study-report` writes this page from its result files: no figure here is typed by hand. Scores are in points. An interval is
that of the mean over seeds, at 95 %. A verdict reads a stricter interval, with Bonferroni's correction.

## Answers

{bullets(sentences(found, runs), "")}

## What was run

{provenance(runs)}
"""
    sections = {
        "Scores": tables.scores(runs),
        "Learning, lengths and costs": tables.costs(runs),
        "Learning rates": "Mean@n on the tuning problems, hard inference at temperature 1 and own inference, on the tuning seed.\n\n"
        + tables.rates(runs),
        "Q1. Does a soft method beat hard tokens at equal truncation?": "Method less control.\n\n"
        + tables.comparisons(runs, found["Q1"], "control"),
        "Q2. Train soft, infer hard": "Hard inference less own inference of the same runs.\n\n"
        + tables.comparisons(runs, found["Q2"]),
        "Q3. What does top-p do to the Gumbel score?": "`||d log pi / d z||^2` of the untrained policy's thoughts.\n\n"
        + tables.thoughts(runs, gumbels)
        + "\n\nUpdates until learned, with top-p less without.\n\n"
        + tables.comparisons(runs, found["Q3"], "without"),
        "Q4. Which density learns fastest?": "Updates until learned, the first less the second.\n\n"
        + tables.comparisons(runs, found["Q4"], "second"),
        "Q5. On how many thoughts is the gradient zero?": "`||d log pi / d z||^2` of the untrained policy's thoughts, for every method.\n\n"
        + tables.thoughts(runs, list(design.methods)),
        f"Q6. Is pass@{design['evaluation']['many']} kept better than by hard training with KL?": tables.comparisons(
            runs, found["Q6"], "less"
        )
        + "\n\nThe same difference of pass@n less mean@n.\n\n"
        + tables.gaps(runs),
        "Q7. Does the gate matter?": "Gated less ungated.\n\n" + tables.comparisons(runs, found["Q7"], "ungated"),
        "Q8. Is softness decorative?": "Own inference less the arg-max of each thought, and less a thought that is cut at half of its length.\n\n"
        + tables.comparisons(runs, found["Q8"]),
        "Q9. Does it transfer?": "Method less control, on problems outside of the training distribution.\n\n"
        + "\n\n".join(outside),
        "The runs themselves": "The worst update of all final runs of a method.\n\n" + health,
        "What failed": bullets(
            [*failed, *strangers(runs)], "Nothing, so far as there are results." if len(runs.results) else NOT_RUN
        ),
        "What was not run": bullets(missing(runs), "Nothing of the design."),
    }
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items())
    pictured = "\n" + "\n\n".join(shown) + "\n" if shown else ""
    links = [os.path.relpath(path, folder) for path in real_pictures]
    readme = os.path.relpath(ROOT / "study/real/README.md", folder)
    part_b = real.section(RealDesign(), runs.results, readme, links)
    return f"{head}{pictured}\n{body}\n{part_b}\n<!-- {made_from(design, runs.results)} -->\n"


def made_from(design: Design, results: Results) -> str:
    """What a page says that it was made from. A page with another text is out of date."""
    text = json.dumps([design.content, RealDesign().content], sort_keys=True)
    return f"Design {hashlib.sha256(text.encode()).hexdigest()[:16]}, results {results.digest()}."


def write(
    design: Design, results: Results, path: Path = PAGE, images: Path = IMAGES, index: Path | None = None
) -> None:
    """Write the page and its figures, and the rows of the study into the `index` of the recipes."""
    runs = Runs(design, results)
    found = answers(runs)
    pictures = draw(runs, found["Q1"], images)
    real_pictures = real_draw(RealDesign(), results, images)
    os.makedirs(path.parent, exist_ok=True)
    path.write_text(page(runs, found, pictures, path.parent, real_pictures), encoding="utf-8")
    if index is not None:
        index_rows.write(runs, index)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the page of the study from its result files.")
    parser.add_argument("--design", type=Path, default=DESIGN, help="the YAML file of the design")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of its figures")
    parser.add_argument("--index", type=Path, default=index_rows.INDEX, help="the index of the recipes")
    options = parser.parse_args()
    write(Design(options.design), Results(options.results), options.page, options.images, options.index)
    print(f"Wrote {options.page}, the figures in {options.images}, and rows of {options.index}")


if __name__ == "__main__":
    main()
