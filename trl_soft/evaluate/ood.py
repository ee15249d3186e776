# SPDX-License-Identifier: Apache-2.0
"""Out of domain: what training on soft thoughts did to everything else a model knows, by lm-evaluation-harness.

    python -m trl_soft.evaluate.ood MODEL -o outputs/ood [--data_dir DATA] [--tasks hellaswag arc_challenge mmlu]

Likelihoods of plain text, no thoughts: accuracy, length-normalised accuracy and the negative log-likelihood of the right
answer (2509.19170, section 4), each with its interval over questions. With `--data_dir` the questions come from local
files and are asked without examples; without it the harness's own tasks load theirs from the hub.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .metrics import interval


_OPTIONS = "{% for choice in choices %}\n{{'ABCD'[loop.index0]}}. {{choice}}{% endfor %}"
_ARC = "arc_challenge_test.jsonl.gz", "arc_challenge_validation.jsonl.gz"
# For each task: its files in a data folder, and how the harness asks a row of theirs.
LOCAL: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "hellaswag": (
        ("hellaswag_val.jsonl.gz",),
        {
            "doc_to_text": "{{activity_label}}: {{ctx}}",
            "doc_to_choice": "endings",
            "doc_to_target": "{{label}}",
        },
    ),
    "arc_challenge": (
        _ARC[:1],
        {
            "doc_to_text": "Question: {{question.stem}}\nAnswer:",
            "doc_to_choice": "{{question.choices | map(attribute='text') | list}}",
            "doc_to_target": "{{(question.choices | map(attribute='label') | list).index(answerKey)}}",
        },
    ),
    "mmlu": (
        ("mmlu_validation.jsonl.gz",),
        {
            "doc_to_text": "{{question.strip()}}" + _OPTIONS + "\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "{{answer}}",
        },
    ),
}


def local_task(name: str, data_dir: str) -> dict[str, Any]:
    """The harness's configuration of a task on local files; `ValueError` or `FileNotFoundError` where there are none."""
    if name not in LOCAL:
        raise ValueError(f"`tasks` holds {name!r}, which has no local files. Choose among {', '.join(LOCAL)}.")
    files, config = LOCAL[name]
    paths = [os.path.join(data_dir, file) for file in files]
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} does not exist. Put it there, or leave out `data_dir` to ask the hub.")
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    return {
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": paths}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "metric_list": metrics,
        **config,
    }


def out_of_domain(
    model,
    tokenizer,
    tasks: list[str],
    data_dir: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Any]]:
    """
    Args:
        model, tokenizer: of transformers. tasks: keys of `LOCAL`, or the harness's own names without `data_dir`.
        limit (`int`, *optional*): only the first so many questions of each task.

    Returns:
        For each task `questions`, and `acc`, `acc_norm` and `nll` as `{"value", "low", "high"}`.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "Out-of-domain evaluation needs lm-evaluation-harness, which is not installed: `pip install trl_soft[eval]`."
        ) from error
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    asked = [name if data_dir is None else local_task(name, data_dir) for name in tasks]
    found = simple_evaluate(
        model=harness, tasks=asked, limit=limit, log_samples=True, bootstrap_iters=0, random_seed=0
    )
    if found is None:  # the harness gives its results to the first process alone
        return {}
    results: dict[str, dict[str, Any]] = {}
    for name, samples in found["samples"].items():
        columns: dict[str, list[float]] = {"acc": [], "acc_norm": [], "nll": []}
        for sample in samples:
            target = sample["target"]
            target = int(target) if str(target).lstrip("-").isdigit() else "ABCD".index(str(target).strip())
            columns["nll"].append(-float(sample["filtered_resps"][target][0]))
            for metric in ("acc", "acc_norm"):
                if metric in sample:
                    columns[metric].append(float(sample[metric]))
        results[name.removesuffix("_local")] = {
            "questions": len(samples),
            **{metric: _scored(np.array(values), metric) for metric, values in columns.items() if values},
        }
    return results


def _scored(values: np.ndarray, metric: str) -> dict[str, float]:
    low, high = interval(values, bounds=None if metric == "nll" else (0.0, 1.0))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def main(argv: list[str] | None = None) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path or hub id")
    parser.add_argument("-o", "--output_dir", type=Path, default=Path("outputs/ood"))
    parser.add_argument("--tasks", nargs="+", default=list(LOCAL))
    parser.add_argument("--data_dir", help="folder with local files; unset: the hub")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args(argv)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    results = out_of_domain(model, tokenizer, options.tasks, options.data_dir, options.limit, options.batch_size)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "ood.json"
    path.write_text(json.dumps({"model": options.model, "tasks": results}, indent=2) + "\n")
    for name, row in results.items():
        scores = ", ".join(
            f"{metric} {row[metric]['value']:.4f}" for metric in ("acc", "acc_norm", "nll") if metric in row
        )
        print(f"{name}: {row['questions']} questions, {scores}")
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
