# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what recipes name and a test cannot load: models of the same family, tokenizers, slices of data.

A model is its shape in `recipes/models` (a Qwen3 for the quickstart's) with two layers of 32, random. A tokenizer is a byte-level BPE of a few hundred
pieces made here, with the special tokens of the real one and the chat template that TRL ships for its family. Data are
the shortest questions of the real files where they lie beside the clone (`TRL_SOFT_SHARED`), else made-up rows with the
same fields.
"""

import gzip
import json
import os
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("TRL_SOFT_SHARED", ROOT.parent / "shared"))

# For each model: special tokens by role, whether a prompt begins with bos, and TRL's name of the chat template.
TOKENIZERS = {
    "DeepSeek-R1-Distill-Qwen-1.5B": "deepseek",
    "DeepSeek-R1-Distill-Qwen-7B": "deepseek",
    "Llama-3.2-3B-Instruct": "llama",
    "Llama-3.1-8B-Instruct": "llama",
    "Qwen2.5-3B-Instruct": "qwen",
    "Qwen3-0.6B": "qwen3",
}
# DeepSeek writes a bar that is not the keyboard's.
_BAR = "\uff5c"
_BEGIN, _END = (f"<{_BAR}{name}\u2581of\u2581sentence{_BAR}>" for name in ("begin", "end"))
FAMILIES: dict[str, dict] = {
    "deepseek": {
        "bos": _BEGIN,
        "eos": _END,
        "pad": _END,
        "special": [_BEGIN, _END],
        "added": [f"<{_BAR}User{_BAR}>", f"<{_BAR}Assistant{_BAR}>", "<think>", "</think>"],
        "adds_bos": True,
        "template": "deepseek_r1_distill.jinja",
    },
    "llama": {
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
        "pad": None,
        "special": [
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
        ],
        "added": [],
        "adds_bos": True,
        "template": "llama3_2.jinja",
    },
    "qwen": {
        "bos": None,
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "added": [],
        "adds_bos": False,
        "template": "qwen2_5.jinja",
    },
    "qwen3": {
        "bos": None,
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "added": ["<think>", "</think>"],
        "adds_bos": False,
        "template": "qwen3.jinja",
    },
}  # fmt: skip
# How Llama 3 and Qwen 2.5 cut text before BPE, but for the number of digits in a piece.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The assistant "
    "must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
    "\\boxed{[answer]}.' User: Let's think step by step and output the final answer within \\boxed{}. Please reason, and "
    "put your answer in the end. What is the sum of all integers such that x + y = 10? How many are there in total?",
] * 4  # fmt: skip


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The stand-in for the tokenizer of a model in `recipes/models`."""
    family = FAMILIES[TOKENIZERS[name]]
    core = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens(family["special"])
    core.add_tokens(family["added"])
    if family["adds_bos"]:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family['bos']} $A", special_tokens=[(family["bos"], core.token_to_id(family["bos"]))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family["bos"], eos_token=family["eos"], pad_token=family["pad"], padding_side="left"
    )  # fmt: skip
    made.chat_template = files("trl").joinpath("chat_templates", family["template"]).read_text(encoding="utf-8")
    return made


def save_model(name: str, folder: Path) -> Path:
    """The stand-in for a model, with its tokenizer, in `folder / name`."""
    path, made, family = folder / name, tokenizer(name), FAMILIES[TOKENIZERS[name]]
    file = ROOT / "recipes/models" / f"{name}.json"
    shape = json.loads(file.read_text()) if file.is_file() else {"model_type": "qwen3", "tie_word_embeddings": True}
    torch.manual_seed(0)
    shape |= {"vocab_size": len(made), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "dtype": "float32"}
    shape |= {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)  # predictions far from uniform
        if "</think>" in family["added"] and not shape["tie_word_embeddings"]:
            # As likely as the token it likes best, so that some thoughts end themselves.
            ids = made(_CORPUS[0], return_tensors="pt")["input_ids"]
            favourite = net(ids).logits[0].argmax(-1).mode().values
            head = net.get_output_embeddings().weight
            head[made.convert_tokens_to_ids("</think>")] = 1.05 * head[favourite]
    net.save_pretrained(path)
    made.save_pretrained(path)
    return path


_MADE_UP = {
    "gsm8k_train.jsonl.gz": {"question": "Ann has {i} apples and buys {i} more. How many?", "answer": "So\n#### {i}"},
    "gsm8k_test.jsonl.gz": {"question": "Bob has {i} pears and eats one. How many?", "answer": "So\n#### {i}"},
    "math_train.jsonl.gz": {"problem": "What is ${i} + {i}$?", "level": "Level 1", "type": "A", "solution": r"\boxed{{i}}"},
    "math_test.jsonl.gz": {"problem": "What is ${i} - 1$?", "level": "Level 1", "type": "A", "solution": r"\boxed{{i}}"},
    "math500.jsonl.gz": {"problem": "What is ${i}^2$?", "answer": "{i}", "unique_id": "test/{i}"},
    "aime24.jsonl.gz": {"problem": "What is ${i}!$?", "answer": "07{i}"},
    "aime25.jsonl.gz": {"problem": "What is ${i}!!$?", "answer": "{i}"},
    "amc23.jsonl.gz": {"question": "What is ${i}^3$?", "answer": "{i}.0"},
    "olympiadbench_math_en.jsonl.gz": {
        "id": "{i}", "question": "Find ${i}^4$.", "final_answer": ["{i}"], "is_multiple_answer": False, "unit": None,
        "answer_type": "Numerical", "error": None,
    },
    "deepscaler_subset.jsonl.gz": {"index": "{i}", "problem": "What is ${i} \\cdot 2$?", "answer": "{i}"},
    "gpqa_diamond.csv": {
        "Question": "Which is {i}?", "Correct Answer": "{i}", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
        "Incorrect Answer 3": "c",
    },
    "HumanEval.jsonl.gz": {
        "task_id": "t/{i}", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f() == 1\n",
    },
    "mbpp_sanitized.json.gz": {
        "prompt": "Write f.", "code": "def f(): pass", "task_id": "1{i}", "test_imports": [], "test_list": ["assert f"],
    },
}  # fmt: skip


def save_data(folder: Path, count: int = 12) -> Path:
    """`count` short rows of every benchmark and training set that a recipe names."""
    folder.mkdir()
    for name, row in _MADE_UP.items():
        real = SHARED / "data" / name
        if real.exists():
            text = gzip.decompress(real.read_bytes()).decode()
            rows = json.loads(text) if ".json." in name else [json.loads(line) for line in text.splitlines()]
            question = next(key for key in ("question", "problem", "prompt", "text") if key in rows[0])
            if name.startswith("mbpp"):
                rows = [row for row in rows if 11 <= row["task_id"] <= 510]
            rows = sorted(rows, key=lambda row: len(row[question]))[:count]
        else:
            filled = [json.dumps(row).replace("{i}", str(i)) for i in range(1, count + 1)]
            rows = [
                json.loads(text) | ({"task_id": i + 10} if "mbpp" in name else {}) for i, text in enumerate(filled, 1)
            ]
        if name.endswith(".csv"):
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            (folder / name).write_text("\n".join(lines) + "\n")
        else:
            written = json.dumps(rows) if ".json." in name else "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name).write_bytes(gzip.compress(written.encode()))
    return folder
