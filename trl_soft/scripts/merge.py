# SPDX-License-Identifier: Apache-2.0
"""`trl-soft merge`: merge an adapter into its model, and keep the thinking settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_line import DTYPES, CommandParser, model_at
from ..saved_settings import read, write


def merge(adapter: str, output: Path, model: str | None = None, dtype: str = "auto") -> Path:
    """
    Merge a LoRA adapter into the model that it was trained on, and save model, tokenizer and thinking settings.

    Args:
        adapter (`str`): folder or hub id of the adapter.
        output (`Path`): folder to write. It must be empty.
        model (`str`, *optional*): the model. `None`: the one that the adapter names.
        dtype (`str`): type of the weights. `auto`: that of the model.

    Raises:
        FileExistsError: if `output` holds files.
        ValueError: if `adapter` is not an adapter.
        ImportError: if PEFT is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError("PEFT is not installed, which merges adapters: `pip install trl_soft[peft]`.") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty. Give a folder that is empty, or does not exist yet.")
    try:
        config = PeftConfig.from_pretrained(adapter)
    except ValueError as error:
        raise ValueError(
            f"{adapter} holds no `adapter_config.json`, so there is nothing to merge. Give an adapter's folder."
        ) from error
    path = model or config.base_model_name_or_path
    with model_at(path):
        base: Any = AutoModelForCausalLM.from_pretrained(
            path, revision=None if model else config.revision, dtype=dtype
        )
    rows = trained_rows(adapter, base)
    if rows is not None and rows != base.get_input_embeddings().weight.size(0):
        base.resize_token_embeddings(rows)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(output)
    settings = read(adapter)
    if settings is not None:
        write(output, settings)
    return output


def trained_rows(adapter: str, base) -> int | None:
    """
    The number of tokens in the embedding or the head that an adapter was saved with. `None` if it was saved with neither: then the
    base has all rows. `AutoPeftModel` would add random rows where the tokenizer has more tokens than the base.
    """
    from peft.utils import load_peft_weights

    tables = (base.get_input_embeddings(), base.get_output_embeddings())
    names = tuple(f"{name}.weight" for name, module in base.named_modules() if module in tables)
    sizes = [w.size(0) for name, w in load_peft_weights(adapter, device="cpu").items() if name.endswith(names)]
    return sizes[0] if sizes else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="trl-soft merge outputs/adapter -o outputs/model",
        prog="trl-soft merge",
        description="Merge an adapter into its model.",
    )
    parser.add_argument("adapter", help="folder or hub id of the adapter")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", help="the model (default: the one that the adapter names)")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="type of the merged weights (default: the model's)"
    )
    options = parser.parse_args(argv)
    print(f"Wrote {merge(options.adapter, options.output, options.model, options.dtype)}")
