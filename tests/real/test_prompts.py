# SPDX-License-Identifier: Apache-2.0
"""Real chat templates and tokenizers, with and without a thought that the template opens."""

import pytest
import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests import tiny
from tests.real.conftest import DATA
from trl_soft import SoftGRPOTrainer, ThinkingSettings, soft_generate
from trl_soft.data import load_rows, to_prompts


# As the templates of the DeepSeek-R1 distilled models do it: the answer's turn begins inside the thought.
GENERATION = "{{- '<|im_start|>assistant\\n' }}"
OPENED = "{{- '<|im_start|>assistant\\n<think>\\n' }}"


def opens_a_thought(template: str) -> str:
    """The template with a thought opened by its generation prompt, however it quotes it."""
    for plain in (GENERATION, "{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\n' }}"):
        head, found, tail = template.rpartition(plain)
        if found:
            return head + OPENED + tail
    raise AssertionError(f"no generation prompt in {template!r}")


def questions(count: int) -> Dataset:
    return load_rows(str(DATA / "gsm8k_train.jsonl")).select(range(count))


@pytest.mark.parametrize("opened", [False, True], ids=["plain", "opened"])
def test_a_real_model_thinks_behind_its_template(smollm2_in, smollm2_tokenizer, opened):
    """The thought begins with the first token after the template, and a cut one is closed by the end of thinking."""
    tokenizer = smollm2_tokenizer
    template = opens_a_thought(tokenizer.chat_template) if opened else tokenizer.chat_template
    (row,) = to_prompts(questions(1), tokenizer, answer_marker="####")
    text = tokenizer.apply_chat_template(
        row["prompt"], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n" + ("<think>\n" if opened else ""))
    out = soft_generate(
        smollm2_in("float32"), tokenizer, [text], ThinkingSettings(max_thinking_length=12), num_generations=2,
        max_completion_length=24, seed=1, progress=False,
    )  # fmt: skip
    for record, cut, length, ids in zip(
        out.records, out.thinking_cut, out.thinking_lengths, out.completion_ids, strict=True
    ):
        thoughts = record.thinking_mask[0]
        assert thoughts[:length].all() and not thoughts[length:].any()
        if cut:
            forced = torch.tensor(ids)[record.forced_mask[0]].tolist()
            assert length == 12 and tokenizer.decode(forced) == "</think>"


@pytest.mark.parametrize("opened", [False, True], ids=["plain", "opened"])
def test_a_trainer_takes_the_real_template(qwen_tokenizer, opened, tmp_path):
    """One update over messages, with Qwen2.5's tokenizer and 151,936 entries; its model is random and very small."""
    tokenizer, plain = qwen_tokenizer, qwen_tokenizer.chat_template
    seen = []

    class Trainer(SoftGRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            seen.extend(self.processing_class.batch_decode(prompt_ids))
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    rows = to_prompts(questions(4), tokenizer, answer_marker="####")
    tokenizer.chat_template = opens_a_thought(plain) if opened else plain
    try:
        trainer = tiny.trainer(
            tmp_path, Qwen2ForCausalLM(config), Trainer, train_dataset=rows, processing_class=tokenizer,
            reward_funcs=lengths_differ, max_steps=1,
            answer_prefill=["\\boxed{", "The final answer is: \\boxed{"], max_completion_length=24,
        )  # fmt: skip
        trainer.train()
    finally:
        tokenizer.chat_template = plain
    assert all(text.endswith("assistant\n" + ("<think>\n" if opened else "")) for text in seen)
    assert all(any(row["prompt"][0]["content"] in text for row in rows) for text in seen)
    log = trainer.state.log_history[0]
    assert log["grad_norm"] > 0 and log["thinking/logp_difference/mean"] < 1e-3


def lengths_differ(completion_ids, **kwargs) -> list[float]:
    """A number that depends on the ids, which a byte does not hold here."""
    return [sum(ids) % 101 / 101 for ids in completion_ids]
