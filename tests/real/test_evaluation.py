# SPDX-License-Identifier: Apache-2.0
"""Ten questions of GSM8K, hard and soft: an evaluation, its report and its page of thoughts."""

import json

from tests.real.conftest import DATA
from trl_soft.evaluate import inspect, report
from trl_soft.evaluate.decoding import Decoding
from trl_soft.evaluate.runner import Evaluation, evaluate


def test_ten_questions(smollm2, tmp_path):
    """What the model earns is near nothing and not the point; that every part takes real text is."""
    entries = [{"name": "hard greedy", "thought": "hard", "temperature": 0.0}, {"name": "gumbel", "thought": "gumbel"}]
    run = Evaluation(
        model=str(smollm2), benchmarks=["gsm8k"], decodings=[Decoding.parse({**e, "num_samples": 1}) for e in entries],
        output_dir=str(tmp_path / "run"), preset="soft_grpo", data_dir=str(DATA), max_completion_length=40, candidates=5,
        name="SmolLM2",
    )  # fmt: skip
    metrics = evaluate(run)["gsm8k"]
    assert set(metrics) == {"hard greedy", "gumbel"}
    for row in metrics.values():
        assert row["problems"] == 10 and 0.0 <= row["mean@n"]["value"] <= 1.0 and 1 <= row["length"]["mean"] <= 40

    lines = [line for file in (tmp_path / "run/samples").glob("*.jsonl") for line in file.read_text().splitlines()]
    samples = [entry for entry in map(json.loads, lines) if "text" in entry]
    assert len(samples) == 20 and all(sample["text"].strip() for sample in samples)

    report.main([str(tmp_path / "run"), "-o", str(tmp_path / "report"), "--no_figures"])
    tables = [file.read_text() for file in (tmp_path / "report").rglob("*.md")]
    assert tables and any("SmolLM2" in table and "gumbel" in table for table in tables)

    page = tmp_path / "thoughts.html"
    inspect.main([str(tmp_path / "run"), "-o", str(page)])
    assert "How much does Ali have now?" in page.read_text(encoding="utf-8")
