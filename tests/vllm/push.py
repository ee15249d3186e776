# SPDX-License-Identifier: Apache-2.0
"""The worker of the tests' servers: TRL's weight push goes over NCCL, which needs CUDA; here it goes through a file."""

from safetensors.torch import load_file

from tests.vllm.served import plain_linear
from trl_soft.rollout.vllm.worker import SoftWorker


plain_linear()  # before a model is loaded


class Pushed(SoftWorker):
    def load_from(self, path: str) -> None:
        self.model_runner.model.load_weights(load_file(path).items())
