# SPDX-License-Identifier: Apache-2.0
"""Part B's section of docs/study.md, from the result files alone."""

from collections.abc import Sequence
from typing import Any

from ..results import Results
from ..rules import NOT_RUN
from ..tables import run_only, significant, table
from . import trained_page as training
from .arms import RealDesign
from .page_parts import interval, title
from .questions import QUESTIONS, Arms, Difference, Finding, models, powers


def section(design: RealDesign, results: Results, readme: str, pictures: Sequence[str] = ()) -> str:
    """
    The section, with its heading.

    Args:
        readme (`str`): link to the page that registers the questions.
        pictures (`Sequence[str]`): links to the figures.
    """
    found, trained = models(design, results), models(design, results, "train")
    head = f"""## Part B. A real model

[The questions and the rules]({readme}) were registered before the first run. `make study-gpu` draws for eight minutes on a GPU and
continues when it is called again. Intervals are over problems, at 95 %. Scores are in points."""
    shown = [f"![pass@k of each arm, by model and benchmark]({link})" for link in pictures]
    parts = [head, *shown, *(_model(design, name, arms) for name, arms in found.items())]
    if not found:
        parts.append("### Without training\n\nNot run: no result yet. The command is ready: `make study-gpu`.")
    parts += [training.trained(design, name, arms) for name, arms in trained.items()]
    if not trained:
        arms = ", ".join(f"`{arm}`" for arm in design["training"]["arms"])
        parts.append(
            f'### With training\n\nNot run: {arms}. The command is ready: `make study-gpu STUDY="--train ARM"`.'
        )
    return "\n\n".join([*parts, training.PUBLISHED]) + "\n"


def _model(design: RealDesign, name: str, arms: Arms) -> str:
    benchmarks = list(dict.fromkeys(b for result in arms.values() for b in result["scores"]))
    answers = {
        key: {benchmark: rule(design, arms, benchmark) for benchmark in benchmarks}
        for key, (_, rule) in QUESTIONS.items()
    }
    model = title(name, arms)
    parts = [f"### {model}, without training", _answers(answers), _provenance(arms)]
    for benchmark in benchmarks:
        parts += [f"Scores of {model} on `{benchmark}`:", scores(design, arms, benchmark)]
        parts += [f"pass@k of {model} on `{benchmark}`:", pass_at(design, arms, benchmark)]
    for key, (question, _) in QUESTIONS.items():
        for benchmark, finding in answers[key].items():
            parts += [f"({key}) {question} {model} on `{benchmark}`: *{finding.word}*.", *_differences(finding)]
    return "\n\n".join(parts)


def _answers(answers: dict[str, dict[str, Finding]]) -> str:
    lines = []
    for key, found in answers.items():
        words = ", ".join(f"{finding.word} on `{benchmark}`" for benchmark, finding in found.items())
        lines.append(f"- ({key}) {QUESTIONS[key][0]} {words[0].upper()}{words[1:]}.")
    return "\n".join(lines)


def _provenance(arms: Arms) -> str:
    """Where and with what the arms were drawn."""

    def every(read) -> str:
        environments = [e for result in arms.values() for e in (result["environment"], *result["later"])]
        return ", ".join(sorted({str(read(e)) for e in environments}))

    spent = [result["spent"] for result in arms.values()]
    seconds, tokens = sum(s["seconds"] for s in spent), sum(s["tokens"] for s in spent)
    versions = [
        f"{name} {every(lambda e, n=name: e['versions'].get(n))}" for name in ("trl_soft", "transformers", "torch")
    ]
    dtypes = ", ".join(sorted({result["model"]["dtype"] for result in arms.values()}))
    registered = ", ".join(sorted({str(result["environment"].get("registered")) for result in arms.values()}))
    return (
        f"{len(arms)} arms, {tokens / 1e6:.2f} million tokens in {seconds:.0f} seconds of drawing, {tokens / max(seconds, 1e-9):.0f} "
        f"tokens a second, weights in {dtypes}. Device: {every(lambda e: e['device'])}. Versions: {'; '.join(versions)}. Commits: "
        f"{every(lambda e: e['commit'])}. Commit of the registered questions: {registered}."
    )


def scores(design: RealDesign, arms: Arms, benchmark: str) -> str:
    """Every arm and its scores on one benchmark."""
    rows = []
    for name in design.arms:
        if name not in arms:
            rows.append([f"`{name}`", *[NOT_RUN] * 9])
            continue
        own, n = _own(arms, name, benchmark), str(_own(arms, name, benchmark)["samples"])
        rows.append(
            [
                f"`{name}`", n, interval(own["mean@n"]), interval(own["pass@k"][n]), interval(own["maj@k"].get(n)),
                significant(own["entropy"]), f"{own['thinking_length']:.0f}", f"{100 * own['thinking_cut']:.0f}",
                f"{100 * own['clipped']:.0f}", f"{arms[name]['spent']['tokens_per_second']:.0f}",
            ]
        )  # fmt: skip
    heading = [
        "arm",
        "n",
        "mean@n",
        "pass@n",
        "maj@n",
        "entropy of thoughts, nats",
        "thoughts",
        "thoughts cut, %",
        "clipped, %",
    ]
    return run_only([*heading, "tokens/s"], rows)


def pass_at(design: RealDesign, arms: Arms, benchmark: str) -> str:
    """pass@k of every arm with more than one sample."""
    many = {name: _own(arms, name, benchmark) for name in design.arms if name in arms}
    many = {name: own for name, own in many.items() if own["samples"] > 1}
    if not many:
        return f"{NOT_RUN.capitalize()}."
    ks = powers(max(own["samples"] for own in many.values()))
    rows = [
        [f"`{name}`", *(f"{100 * own['pass@k'][str(k)][0]:.1f}" if str(k) in own["pass@k"] else "-" for k in ks)]
        for name, own in many.items()
    ]
    return table(["arm", *(f"pass@{k}" for k in ks)], rows)


def _own(arms: Arms, name: str, benchmark: str) -> dict[str, Any]:
    return arms[name]["scores"][benchmark]["own"]


def _differences(finding: Finding) -> list[str]:
    if not finding.differences:
        return []
    rows = [[d.name, f"`{d.arm}`", f"`{d.other}`", *_shown(d)] for d in finding.differences]
    return [table(["figure", "arm", "less", "difference", "strict interval"], rows)]


def _shown(d: Difference) -> list[str]:
    return [
        f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})",
        f"{100 * d.strict_low:+.1f} to {100 * d.strict_high:+.1f}",
    ]
