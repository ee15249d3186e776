# SPDX-License-Identifier: Apache-2.0
"""The peak memory that `trl-soft plan` estimates, against what a trainer takes on the CPU.

    python benchmarks/memory.py [CASE ...] [--resident]

Two steps of a real SoftGRPOTrainer on a random model, for each case: the second has optimiser states from its beginning.
Completions have their full length. Measured is what torch's operations hold (`measure.Held`); `--resident` measures the
process as well, each case in a process of its own. Prints one JSON object last: for each case bytes
measured and estimated by phase, and `ratio`, estimated over measured, of the largest.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import torch
from datasets import Dataset
from measure import Held, peak
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import ModelConfig

from trl_soft import SoftGRPOConfig, SoftGRPOTrainer
from trl_soft.plan.recipe import estimate


def shape(kind: str, V: int, H: int, F: int, layers: int, heads: int, kv: int, tied: bool = False, **more) -> dict:
    return {
        "model_type": kind, "vocab_size": V, "hidden_size": H, "intermediate_size": F, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": tied,
        "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, **more,
    }  # fmt: skip


WIDE = shape("llama", V=32_000, H=256, F=768, layers=4, heads=8, kv=4)  # 20M, mostly vocabulary
DEEP = shape("qwen2", V=4096, H=384, F=1024, layers=16, heads=6, kv=2, tied=True)  # 26M, mostly layers
SMALL = shape("llama", V=8000, H=256, F=704, layers=8, heads=8, kv=8)  # 11M
LARGE = shape("qwen2", V=32_000, H=512, F=1536, layers=12, heads=8, kv=2)  # 68M

# Training settings of each case, the model's under `model`, the adapter's under `lora`.
CASES: dict[str, dict] = {
    "wide vocabulary, gumbel": {"model": WIDE},
    "wide vocabulary, gaussian": {"model": WIDE, "thought": "gaussian"},
    "deep, checkpointing": {"model": DEEP, "gradient_checkpointing": True},
    "deep, no checkpointing": {"model": DEEP},
    "long completions": {"model": SMALL, "max_completion_length": 512, "per_device_train_batch_size": 2},
    "long answers": {
        "model": SMALL,
        "max_completion_length": 384,
        "max_thinking_length": 64,
        "per_device_train_batch_size": 4,
    },
    "long, checkpointing, accumulation": {
        "model": SMALL,
        "max_completion_length": 512,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    },
    "beta > 0": {"model": SMALL, "beta": 0.01},
    "LoRA": {"model": LARGE, "lora": {"r": 16}, "gradient_checkpointing": True},
    "LoRA, no checkpointing": {"model": DEEP, "lora": {"r": 8}, "per_device_train_batch_size": 2},
    "many slots": {
        "model": shape("llama", V=8000, H=256, F=512, layers=8, heads=8, kv=8),
        "max_completion_length": 24,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 128,
        "optim": "sgd",
        "prompt": 192,
    },
    "60M, gumbel, checkpointing": {"model": LARGE, "gradient_checkpointing": True, "per_device_train_batch_size": 2},
    "bf16 weights": {"model": SMALL | {"dtype": "bfloat16"}, "bf16": True},
    "bf16 autocast": {"model": SMALL, "bf16": True},
    "bf16 autocast, rollouts on a copy": {"model": SMALL, "bf16": True, "rollout_dtype": "bfloat16"},
}


def case_settings(case: dict) -> tuple[dict, dict, dict | None, int]:
    """Model, training and adapter settings of a case, and the length of its prompts."""
    case = dict(case)
    model, lora, prompt = case.pop("model"), case.pop("lora", None), case.pop("prompt", 24)
    training = {
        "use_cpu": True,
        "bf16": False,
        "thought": "gumbel",
        "max_completion_length": 96,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "gradient_checkpointing": False,
        "beta": 0.0,
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 0,
    } | case
    training.setdefault("max_thinking_length", training["max_completion_length"] - 16)
    if training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1) < 4:
        training["gradient_accumulation_steps"] = 2
    return model, training, lora, prompt


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "</think>": 2, "a": 3}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_tokens(["</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def model_config(values: dict):
    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build(case: dict, folder: str) -> SoftGRPOTrainer:
    """The trainer of a case, on a random model that never ends a completion by itself."""
    settings, training, lora, prompt = case_settings(case)
    config = model_config(settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if training["beta"]:  # the trainer reads the reference from where the model came from
        model.save_pretrained(folder)
        model.config._name_or_path = folder
    with torch.no_grad():
        # An end is drawn once in a few thousand tokens; a row of zeros against rows of noise makes it rarer still.
        model.get_output_embeddings().weight.mul_(4)
        model.get_output_embeddings().weight[:3] = 0
    rows = Dataset.from_dict({"prompt": ["a" * prompt, "a" * (prompt - 7)] * 64})
    return SoftGRPOTrainer(
        model,
        lambda completion_ids, **kwargs: [float(ids[0] % 7) for ids in completion_ids],
        SoftGRPOConfig(folder, **training),
        rows,
        processing_class=tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
    )


def enters(held: Held, trainer) -> None:
    """Tell `held` of the phases of training: rollout, scoring, update, optimizer."""

    def around(name: str, before: str, after: str):
        function = getattr(trainer, name)

        def wrapped(*args, **kwargs):
            held.enter(before)
            try:
                return function(*args, **kwargs)
            finally:
                held.enter(after)

        setattr(trainer, name, wrapped)

    class Phases(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            held.enter("optimizer")

        def on_step_end(self, *args, **kwargs):
            held.enter("between")

    around("_generate", "rollout", "scoring")
    around("_generate_and_score_completions", "rollout", "update")
    around("training_step", "update", "update")
    trainer.add_callback(Phases())


def measured(case: dict) -> dict[str, int]:
    """Bytes held at most in each phase of two steps."""
    with tempfile.TemporaryDirectory() as folder, Held() as held:
        held.enter("load")
        trainer = build(case, folder)
        enters(held, trainer)
        trainer.train()
    return {phase: held.most[phase] for phase in ("rollout", "scoring", "update", "optimizer")}


def estimated(case: dict) -> dict[str, float]:
    """The same as `trl_soft.plan` works it out from the settings."""
    settings, training, lora, prompt = case_settings(case)
    config = model_config(settings)
    options = {"dtype": settings.get("dtype", "float32")}
    if lora:
        options |= {"use_peft": True, "lora_r": lora["r"], "lora_dropout": 0.0}
    return estimate(
        SoftGRPOConfig("unused", **training), config, ModelConfig(**options), prompt_length=prompt, cuda=False
    ).peaks


def resident_peak(case: dict) -> int:
    """The same by the process's resident memory, above what a trainer of next to nothing leaves of modules and caches."""

    def run(case: dict) -> None:
        with tempfile.TemporaryDirectory() as folder:
            build(case, folder).train()

    small = shape("llama", V=64, H=16, F=32, layers=1, heads=2, kv=2)
    run(case | {"model": small, "max_completion_length": 32, "max_thinking_length": 16})
    return peak(lambda: run(case))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="; ".join(CASES))
    parser.add_argument("--resident", action="store_true")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"no case is called {unknown}; choose among {'; '.join(CASES)}")
    results = {}
    for name in options.cases or CASES:
        if options.resident and len(options.cases) == 1:
            print(json.dumps({name: resident_peak(CASES[name])}))
            return
        found, expected = measured(CASES[name]), estimated(CASES[name])
        results[name] = {
            "measured": found,
            "estimated": {phase: round(value) for phase, value in expected.items()},
            "ratio": max(expected.values()) / max(found.values()),
        }
        if options.resident:
            # In a process of its own, which has freed nothing yet that could be used again.
            command = [sys.executable, __file__, name, "--resident"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name]["resident"] = json.loads(done.stdout.splitlines()[-1])[name]
        print(name, json.dumps(results[name]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
