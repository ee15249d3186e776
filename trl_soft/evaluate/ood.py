# SPDX-License-Identifier: Apache-2.0
"""Out-of-domain evaluation: how training on soft thoughts changed other abilities, by lm-evaluation-harness.

    python -m trl_soft.evaluate.ood MODEL -o outputs/ood [--data_dir DATA] [--tasks hellaswag arc_challenge mmlu]

The model does not think: it reads a question and answers. Each task has these metrics, with an interval over questions:

    greedy    success of greedy sampling: the prompt has the options, and the model writes the letter of the right one
    nll       negative log-likelihood of the right answer per token, in nats
    nll_sum   the same, summed over the answer
    acc       whether the right answer is the most likely one; acc_norm: the same per byte, as the harness computes it

Section 4 of Soft Tokens, Hard Truths (arXiv 2509.19170) reports `greedy` and `nll`; the other metrics are the harness's.
The wording of the prompts is ours, without examples. The answer is the text of an option, and in MMLU its letter.
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..command_line import CommandParser, model_at, one_sentence
from ..files import in_one_line
from ..hub import hub_or_cache
from .intervals import interval


LETTERS = "ABCDEFGHIJ"
_OPTIONS = "{% for option in options %}\n{{'" + LETTERS + "'[loop.index0]}}. {{option}}{% endfor %}"
_WITH_OPTIONS = "{{question}}" + _OPTIONS + "\nAnswer:"
_ABCD = list(LETTERS[:4])
_GREEDY = "_greedy"  # suffix of the name, in the harness, of a task whose answer the model writes


def _hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    if "ctx_a" in row:  # the hub's rows have WikiHow's marks; they are removed as in the harness
        texts = [f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}", *row["endings"]]
        question, *options = (
            re.sub(r"\[.*?\]", "", t.strip().replace(" [title]", ". ")).replace("  ", " ") for t in texts
        )
    else:
        question, options = f"{row['activity_label']}: {row['ctx']}", row["endings"]
    return {"question": question, "options": list(options), "right": int(row["label"])}


def _arc(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row["question"], dict):  # rows of the authors' files
        question, choices = row["question"]["stem"], row["question"]["choices"]
        texts, labels = [choice["text"] for choice in choices], [choice["label"] for choice in choices]
    else:
        question, texts, labels = row["question"], row["choices"]["text"], row["choices"]["label"]
    return {"question": question, "options": texts, "right": labels.index(row["answerKey"])}


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"].strip(), "options": row["choices"], "right": int(row["answer"])}


@dataclass(frozen=True)
class Task:
    """
    A multiple-choice task.

    Args:
        hub (`tuple`): id, configuration (or `None`) and split of the data on the hub.
        file (`str`): name of the same data in a folder with local files.
        read: turns a row of the hub or of a file into `question`, `options` and `right`, the number of the right option.
        text (`str`), choices (`str` or list): the harness's templates of the prompt and of the answers to score.
    """

    hub: tuple[str, str | None, str]
    file: str
    read: Callable[[dict[str, Any]], dict[str, Any]]
    text: str
    choices: str | list[str] = "{{options}}"

    def configs(self, name: str, data_dir: str | None) -> list[dict[str, Any]]:
        """The harness's configurations: one scores likelihoods, one writes greedily."""
        read, (path, config, split) = self.read, self.hub
        source: dict[str, Any] = {"dataset_path": path, "dataset_name": config, "test_split": split}
        if data_dir is not None:
            files = {"test": [os.path.join(data_dir, self.file)]}
            source = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        metrics = [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ]
        common = {
            **source,
            "process_docs": lambda rows: rows.map(read, remove_columns=rows.column_names),
            "num_fewshot": 0,
        }
        likelihood = {
            "task": name,
            "output_type": "multiple_choice",
            "doc_to_text": self.text,
            "doc_to_choice": self.choices,
            "doc_to_target": "{{right}}",
            "metric_list": metrics,
        }
        generation = {
            "task": name + _GREEDY,
            "output_type": "generate_until",
            "doc_to_text": _WITH_OPTIONS,
            "doc_to_target": "{{right}}",
            "generation_kwargs": {"do_sample": False, "until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        return [common | likelihood, common | generation]


TASKS: dict[str, Task] = {
    "hellaswag": Task(("Rowan/hellaswag", None, "validation"), "hellaswag_val.jsonl.gz", _hellaswag, "{{question}}"),
    "arc_challenge": Task(
        ("allenai/ai2_arc", "ARC-Challenge", "test"),
        "arc_challenge_test.jsonl.gz",
        _arc,
        "Question: {{question}}\nAnswer:",
    ),
    "mmlu": Task(("cais/mmlu", "all", "test"), "mmlu_test.jsonl.gz", _mmlu, _WITH_OPTIONS, _ABCD),
    # Not the questions of the papers' tables. For users without the test split.
    "mmlu_validation": Task(
        ("cais/mmlu", "all", "validation"), "mmlu_validation.jsonl.gz", _mmlu, _WITH_OPTIONS, _ABCD
    ),
}
DEFAULT = ("hellaswag", "arc_challenge", "mmlu")
METRICS = ("greedy", "nll", "nll_sum", "acc", "acc_norm")


def configurations(name: str, data_dir: str | None) -> list[Any]:
    """The harness's configurations of one task. Raises `ValueError` or `FileNotFoundError` without local files."""
    if name in TASKS:
        task = TASKS[name]
        if data_dir is not None and not os.path.isfile(os.path.join(data_dir, task.file)):
            other = " `mmlu_validation` reads the validation split." if name == "mmlu" else ""
            raise FileNotFoundError(
                f"{os.path.join(data_dir, task.file)} does not exist. Put it there, or leave out `data_dir` to ask the "
                f"hub.{other}"
            )
        return list(task.configs(name, data_dir))
    if data_dir is not None:
        raise ValueError(f"`tasks` holds {name!r}, which has no local files. Choose among {', '.join(TASKS)}.")
    return [name]  # a task of the harness


def out_of_domain(
    model,
    tokenizer,
    tasks: list[str],
    data_dir: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Any]]:
    """
    Score a model on multiple-choice tasks, without thoughts.

    Args:
        model, tokenizer: of transformers.
        tasks: keys of `TASKS`. Without `data_dir` also other multiple-choice tasks of the harness, or groups of them;
            these have no `greedy`.
        limit (`int`, *optional*): use only this many questions of each task, from the first.

    Returns:
        For each of `tasks` the number of `questions`, and the metrics listed at the head of this file, each as
        `{"value", "low", "high"}`. The questions of a group are pooled.
    """
    configs = [config for name in tasks for config in configurations(name, data_dir)]
    try:
        from datasets.exceptions import DatasetNotFoundError
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "Out-of-domain evaluation needs lm-evaluation-harness, which is not installed: `pip install trl_soft[eval]`."
        ) from error
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        with hub_or_cache() if data_dir is None else nullcontext():
            output = simple_evaluate(
                model=harness, tasks=configs, limit=limit, log_samples=True, bootstrap_iters=0, random_seed=0
            )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise OSError(
            f"The data of `tasks` {', '.join(tasks)} cannot be had from the hub: {in_one_line(error)}. Give the folder of local "
            f"files as `data_dir`, or fill the hub's cache where there is a network. Local files exist for {', '.join(TASKS)}."
        ) from error
    except AssertionError as error:
        if str(error):
            raise
        raise ValueError(
            "lm-evaluation-harness stopped without a reason. It does so where the tokenizer makes no token of a question: these "
            "tasks need a model that reads English."
        ) from error
    if output is None:  # only the first process gets the results of the harness
        return {}
    results: dict[str, dict[str, Any]] = {}
    for name in tasks:
        leaves = leaves_of(name, output.get("group_subtasks") or {})
        samples = [sample for leaf in leaves for sample in output["samples"][leaf]]
        columns = _likelihoods(harness, samples)
        columns["greedy"] = [_success(sample) for sample in output["samples"].get(name + _GREEDY, ())]
        scores = {metric: _estimate(np.array(values), metric) for metric, values in columns.items() if values}
        results[name] = {"questions": len(samples), **scores}
    return results


def leaves_of(name: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks of a group and of the groups in it, each once. A task is its own only leaf."""
    if not groups.get(name):
        return [name]
    return list(dict.fromkeys(leaf for child in groups[name] for leaf in leaves_of(child, groups)))


def _likelihoods(harness, samples: list[dict]) -> dict[str, list[float]]:
    """The metrics of the harness and the likelihood of the right answer, one number for each question."""
    columns: dict[str, list[float]] = {"acc": [], "acc_norm": [], "nll": [], "nll_sum": []}
    for sample in samples:
        target = str(sample["target"]).strip()
        right = int(target) if target.isdigit() else LETTERS.index(target)
        nll = -float(sample["filtered_resps"][right][0])
        _, tokens = harness._encode_pair(*sample["arguments"][right])  # as the harness splits the text that it scores
        columns["nll_sum"].append(nll)
        columns["nll"].append(nll / len(tokens))
        for metric in ("acc", "acc_norm"):
            if metric in sample:
                columns[metric].append(float(sample[metric]))
    return columns


def _success(sample: dict) -> float:
    """Whether the first letter that stands alone in the text is that of the right option."""
    letter = re.search(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z])", sample["resps"][0][0])
    return float(letter is not None and LETTERS.index(letter.group()) == sample["doc"]["right"])


def _estimate(values: np.ndarray, metric: str) -> dict[str, float]:
    low, high = interval(values, bounds=None if metric.startswith("nll") else (0.0, 1.0))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def main(argv: list[str] | None = None) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = CommandParser(
        example="python -m trl_soft.evaluate.ood outputs/soft/model --data_dir data",
        prog="python -m trl_soft.evaluate.ood",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="path or hub id")
    parser.add_argument("-o", "--output_dir", type=Path, default=Path("outputs/ood"))
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT))
    parser.add_argument("--data_dir", help="folder with local files; unset: the hub")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args(argv)
    with model_at(options.model):
        model = AutoModelForCausalLM.from_pretrained(options.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    results = out_of_domain(model, tokenizer, options.tasks, options.data_dir, options.limit, options.batch_size)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "ood.json"
    content = {"model": options.model, "limit": options.limit, "tasks": results}
    path.write_text(json.dumps(content, indent=2) + "\n")
    for name, row in results.items():
        scores = ", ".join(f"{metric} {row[metric]['value']:.4f}" for metric in METRICS if metric in row)
        print(f"{name}: {row['questions']} questions, {scores}")
    print(f"Wrote {path}")


if __name__ == "__main__":
    with one_sentence():
        main()
