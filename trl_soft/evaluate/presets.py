# SPDX-License-Identifier: Apache-2.0
"""How each paper evaluates: prompts, caps, sampling, and the part of a completion that holds the answer.

prompt = build_prompt(problem, "soft_grpo", tokenizer)
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from .grading.forced import ANNOUNCED, final_box
from .problems import Problem


@dataclass(frozen=True)
class PromptFormat:
    """
    The prompt of a preset for one kind of benchmark, and where the answer stands.

    Args:
        user (`str`):
            The user's message, or the whole prompt if the preset has no chat. It holds `{question}`. For MBPP it may
            also hold `{tests}`.
        answer_after (`str`, *optional*):
            The answer is the text after the first occurrence of this text. `None`: the whole completion.
        answer_prefill (`tuple[str, str]`, *optional*):
            Text that is forced after the thought: after a thought that ended itself, and after a thought that was cut.
        max_answer_length (`int`, *optional*): cap of the answer in tokens. `None`: all tokens that the thought left.
    """

    user: str
    answer_after: str | None = None
    answer_prefill: tuple[str, str] | None = None
    max_answer_length: int | None = None


@dataclass(frozen=True)
class Preset:
    """
    How a paper evaluates.

    Args:
        name (`str`).
        formats (`dict[str, PromptFormat]`): one for each of `KINDS`.
        chat (`bool`): apply the chat template of the tokenizer, if it has one.
        end_of_thinking (`str`): as in `ThinkingSettings`.
        max_thinking_length, max_completion_length (`int`, *optional*):
            Caps at evaluation, in tokens. Where the second is `None`, `completion_length` computes it.
        thinking (`dict`): the other fields of `ThinkingSettings`.
        sampling (`dict`): `temperature`, `top_p` and `top_k` of the answer.
        num_samples (`int`): completions of each problem.
    """

    name: str
    formats: dict[str, PromptFormat]
    chat: bool
    end_of_thinking: str
    max_thinking_length: int | None
    max_completion_length: int | None
    thinking: dict[str, Any]
    sampling: dict[str, Any]
    num_samples: int

    def thinking_settings(self, kind: str) -> dict[str, Any]:
        """Keyword arguments of `ThinkingSettings` for one kind of benchmark."""
        prefill = self.formats[kind].answer_prefill
        return {
            "end_of_thinking": self.end_of_thinking,
            "max_thinking_length": self.max_thinking_length,
            "answer_prefill": None if prefill is None else list(prefill),
            "max_answer_length": self.formats[kind].max_answer_length,
            **self.thinking,
        }

    def completion_length(self, kind: str, tokenizer) -> int:
        """Cap of thought, prefill and answer together, in tokens. The answer also has a cap of its own."""
        if self.max_completion_length is not None:
            return self.max_completion_length
        prompt = self.formats[kind]
        prefills = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt.answer_prefill or ()]
        return (self.max_thinking_length or 0) + max(map(len, prefills), default=0) + (prompt.max_answer_length or 0)


# SofT-GRPO's released code (zz1358m/SofT-GRPO-master): `run_sglang_softthinking.py` and `run_sample_gumbel.sh` in
# `Soft-Thinking+noise+loss-main`. They agree with Tables 6-8 of the paper (arXiv 2511.06411). The four prompts are copied
# from the script. It reads the answer with math-verify from the whole completion, thought included (`matheval.py`), and
# code from the last ```python block of the completion (`mbppeval.py`).
_SOFT_GRPO = Preset(
    name="soft_grpo",
    formats={
        "math": PromptFormat("{question} Let's think step by step and output the final answer within \\boxed{}."),
        "choice": PromptFormat(
            "Please solve the following multiple-choice question. Please show your choice in the answer field with only "
            'the choice letter, e.g.,"answer": "C".\n\n{question}'
        ),
        "humaneval": PromptFormat(
            "Please solve the programming task below in Python. Code should be wrapped in a markdown code block.\n\n"
            "```python\n{question}\n```"
        ),
        "mbpp": PromptFormat(
            "Please solve the programming task with test cases below in Python. Make sure your code satisfies the "
            "following requirements:\n"
            "1. The function name and signature must match exactly as specified in the test cases.\n"
            "2. Your code should be wrapped in a markdown code block without including any test cases.\n\n"
            "Task:\n{question}\n\nTest Cases:\n```python\n{tests}\n```"
        ),
        # not stated; ours: any other question gets the prompt for mathematics
        "question": PromptFormat("{question} Let's think step by step and output the final answer within \\boxed{}."),
    },
    chat=True,  # run_sglang_softthinking.py: one user message, `add_generation_prompt`, no system message
    end_of_thinking="</think>",  # run_sglang_softthinking.py: `think_end_str`
    max_thinking_length=None,  # only the whole completion has a cap
    max_completion_length=32768,  # run_sample_gumbel.sh: `max_generated_tokens`
    thinking={  # run_sample_gumbel.sh: `temperature`, `top_k` and `max_topk`, `top_p`, `gumbel_softmax_temperature`
        "thought": "gumbel",
        "thinking_temperature": 1.0,
        "thinking_top_k": 5,
        "thinking_top_p": 0.95,
        "gumbel_temperature": 0.1,
        "noise_scale": 1.0,  # `noise_factor`
        "gumbel_density": "softgrpo",  # sampler.py: every Gumbel number is clamped to [-1.5, 3], in evaluation too
    },
    # run_sample_gumbel.sh: `after_thinking_*`. The released sampler never reads them: it takes the answer token with the
    # largest clamped number. Here the token is drawn from the same truncated distribution, without the clamp. The clamp
    # raises the probability of likely tokens: (.9, .1) becomes (.909, .091).
    sampling={"temperature": 1.0, "top_p": 0.95, "top_k": 5},
    num_samples=32,  # run_sample_gumbel.sh: `num_samples`
)

# Soft Tokens, Hard Truths (arXiv 2509.19170), appendix B: one prompt for all models, no chat template mentioned.
_CONVERSATION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The assistant "
    "must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
    "\\boxed{[answer]}.' User: {question} Assistant:"
)
_BOX = PromptFormat(
    _CONVERSATION,
    # A thought stops at the first "The final answer is: "; a thought that is cut has this text forced. The answer follows.
    answer_after=ANNOUNCED,
    answer_prefill=("\\boxed{", ANNOUNCED),  # appendix C
    max_answer_length=32,  # section 4
)
# not stated; ours: the paper evaluates no code. This is its prompt with a code block in place of the box.
_CODE = replace(
    _BOX,
    user=_CONVERSATION.replace("the final answer in \\boxed{}", "the final answer in a Python code block").replace(
        "\\boxed{[answer]}", "```python [code]```"
    ),
    answer_after="The final answer is: ",
    answer_prefill=("\n```python\n", "The final answer is: \n```python\n"),
    max_answer_length=512,
)
_SOFT_TOKENS = Preset(
    name="soft_tokens",
    formats={
        "math": _BOX,
        "choice": _BOX,  # not stated; ours: the paper scores choices by likelihood only. Here the letter stands in the box
        "humaneval": _CODE,
        "mbpp": replace(
            _CODE, user=_CODE.user.replace("{question}", "{question} Your code should pass these tests:\n{tests}\n")
        ),
        "question": _BOX,
    },
    chat=False,
    end_of_thinking="The final answer is: ",  # appendix C: read in the shadow of most likely tokens
    max_thinking_length=512,  # section 4: at every evaluation
    max_completion_length=None,  # the sum of thought, prefill and answer
    # Section 4: "soft sample", one of the paper's six inference settings; the others differ in these three.
    thinking={"thought": "gaussian", "thinking_temperature": 0.5, "noise_scale": 0.33},
    sampling={"temperature": 0.0, "top_p": 1.0, "top_k": 0},  # section 4: answers at test time are greedy
    num_samples=32,  # section 4 reports pass@k up to 32; the number of samples is not stated; ours
)

# All of this is ours: the question, a short request for an answer that can be graded, and the model's own distribution.
_PLAIN = Preset(
    name="plain",
    formats={
        "math": PromptFormat("{question}\n\nReason step by step and put the final answer in \\boxed{}.", "</think>"),
        "choice": PromptFormat(
            "{question}\n\nReason step by step and put the letter of the right option in \\boxed{}.", "</think>"
        ),
        "humaneval": PromptFormat(
            "Complete this function in a Python code block.\n\n```python\n{question}\n```", "</think>"
        ),
        # The tests are part of the prompt, as in Austin et al. 2021, section 4: only they name the function.
        "mbpp": PromptFormat(
            "{question}\n\nAnswer in a Python code block. The code should pass these tests:\n\n```python\n{tests}\n```",
            "</think>",
        ),
        "question": PromptFormat("{question}", "</think>"),
    },
    chat=True,
    end_of_thinking="</think>",
    max_thinking_length=None,
    max_completion_length=2048,
    thinking={"thought": "hard"},
    sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    num_samples=32,
)


def _reasoning(name: str, math: str, **settings) -> Preset:
    """A preset whose paper asks for a box after `</think>` and has its own words for mathematics. The other words are `plain`'s."""
    formats = _PLAIN.formats | {kind: PromptFormat(math, "</think>") for kind in ("math", "question")}
    return replace(_PLAIN, name=name, formats=formats, **settings)


# SwiReasoning (arXiv 2510.05069), released code sdc17/SwiReasoning: run.py (prompt, sampling, cap) and generate_swir of its
# generation_utils.py. A soft step mixes the whole vocabulary at temperature 1. A hard step is sampled.
_SWIREASONING = _reasoning(
    "swireasoning",
    "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    max_completion_length=32768,  # run.sh: --max_new_tokens; 38,912 on AIME
    thinking={
        "thought": "gaussian",  # without noise: the mixture itself
        "noise_scale": 0.0,
        "thinking_temperature": 1.0,
        "thinking_gate": "entropy_trend",
        "gate_dwell": 512,  # window_size
    },
    sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    num_samples=1,  # run.py: one completion of each problem
)

# SeLaR (arXiv 2604.08299), released code Parker-rfu/SeLaReasoning: scripts/run.py and generate_selar of src/generation_utils.py.
_SELAR = _reasoning(
    "selar",
    "{question}\nPlease reason step by step, and make sure put your final answer within \\boxed{}.",
    max_completion_length=32768,  # README; 38,912 on AIME
    thinking={
        "thought": "soft",
        "thinking_temperature": 0.6,
        "thinking_top_k": 20,
        "thinking_top_p": 0.95,
        "thinking_min_p": 0.0,
        "soft_width": 3,  # --selar_topk
        "soft_contrast": 1.0,  # contrastive_weight
        "thinking_gate": "entropy",
        "gate_top_k": 3,  # --selar_topk
        "gate_entropy": 0.5493,  # --entropy_threshold 0.5, a share of log 3
        # get_math_symbols_ids: letters, digits and signs, and the commands of LaTeX
        "hard_token_pattern": r"^([0-9A-Za-z]|[-+*/^=<>()\[\]{}_|]|\\[A-Za-z]*)$",
    },
    sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    num_samples=1,
)

# ThinkRouter (arXiv 2602.11683): no code was released. It routes Soft Thinking's steps, whose settings these are.
_THINKROUTER = replace(
    _PLAIN,
    name="thinkrouter",
    max_completion_length=32768,  # Soft Thinking's; not found for ThinkRouter
    thinking={
        "thought": "soft",
        "thinking_gate": "confidence",
        "gate_confidence": 0.7,  # ours; the paper chooses among 0.4 to 0.9 on 10 problems of each data set
    },
    sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 30},  # Soft Thinking's
    num_samples=1,
)

# N-GRPO (arXiv 2606.10768), released code ZJUSCL/N-GRPO: data_prepocess/math_500.py has the words of deepscaler.py, and
# configs/eval_1_5b.yaml the sampling. Evaluation is hard, and the thought below is that of training.
_N_GRPO = _reasoning(
    "n_grpo",
    "{question} Let's think step by step and output the final answer within \\boxed{}",
    max_completion_length=8192,  # max_response_length
    thinking={
        "thought": "neighbour",
        "neighbour_width": 3,
        "thinking_gate": "random",
        "gate_probability": 0.1,
        "eval_thought": "hard",
    },
    sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 0},
    num_samples=32,
)

# LEPO (arXiv 2604.17892), released code YuyanZhou/lepo: src/data/datasets.py (prompt), configs/lepo/qwen2_3b_latent64_gumbel030.yaml.
_LEPO = _reasoning(
    "lepo",
    "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    max_completion_length=2048,
    thinking={
        "thought": "gumbel",
        "gumbel_temperature": 0.3,  # noise_strength
        "thinking_top_k": 30,
        "thinking_top_p": 0.95,
        "thinking_gate": "first",
        "gate_length": 64,  # latent_length
    },
    sampling={"temperature": 1.0, "top_p": 0.95, "top_k": 30},
    num_samples=8,  # configs/eval
)

# CoT2 (arXiv 2505.23648), released code alperengozeten/CoT2: train/continuous_train_grpo_mts.py, K = 3. examples/cot2/mnns.py
# makes its task and model. The answer is one token.
_COT2 = replace(
    _PLAIN,
    name="cot2",
    max_thinking_length=3,
    max_completion_length=5,  # with </think>, which is ours
    thinking={"thought": "multiplex", "multiplex_width": 3, "thinking_temperature": 3.0},
    sampling={"temperature": 0.0, "top_p": 1.0, "top_k": 0},
    num_samples=1,
)

PRESETS: dict[str, Preset] = {
    p.name: p for p in (_SOFT_GRPO, _SOFT_TOKENS, _PLAIN, _SWIREASONING, _SELAR, _THINKROUTER, _N_GRPO, _LEPO, _COT2)
}


def get_preset(preset: str | Preset) -> Preset:
    """The preset with this name. A `Preset` is returned as it is."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}, which does not exist. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]


def question_text(problem: Problem, preset: str | Preset) -> str:
    """The user's message, or the whole prompt if the preset has no chat."""
    template = get_preset(preset).formats[problem.meta["kind"]].user
    tests = "\n".join(problem.gold["test_list"]) if isinstance(problem.gold, dict) and "{tests}" in template else ""
    # Both names are replaced in one pass, because a question may itself hold `{tests}`.
    return re.sub(r"\{(question|tests)\}", lambda m: problem.question if m[1] == "question" else tests, template)


def build_prompt(problem: Problem, preset: str | Preset, tokenizer) -> str:
    """
    The prompt of a problem, as `soft_generate` takes it: with the chat template applied, or plain text.

    Some templates write the beginning-of-sequence token, and some tokenizers add it. If both do, it is removed from the
    text, so that the prompt has it once.
    """
    preset, text = get_preset(preset), question_text(problem, preset)
    if not (preset.chat and tokenizer.chat_template):
        return text
    messages = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begin = tokenizer.bos_token
    if begin and text.startswith(begin) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        text = text.removeprefix(begin)
    return text


def answer_text(completion: str, preset: str | Preset, kind: str, answer_phase: str | None = None) -> str:
    r"""
    The part of a completion that the grader reads.

    - A preset that forces a box: that box alone, found by [`~trl_soft.evaluate.grading.forced.final_box`]; empty text
      where there is no such box.
    - A preset that forces another text, with `answer_phase` known: the answer phase behind the forced text.
    - Otherwise: the text after the first `answer_after`, or the whole completion if it does not occur.

    Args:
        answer_phase (`str`, *optional*):
            The completion behind its thought, with the forced text. `None` if it is not known or nothing is forced.
            See [`~trl_soft.rollout.completion_text.answer_phase`].
    """
    marker = get_preset(preset).formats[kind].answer_after
    if marker is not None and marker.endswith("\\boxed{"):
        box = final_box(completion, answer_phase, marker)
        return "" if box is None else f"\\boxed{{{box}}}"
    if answer_phase is not None:
        return answer_phase.removeprefix(marker or "")
    return completion if marker is None or marker not in completion else completion.partition(marker)[2]
