# SPDX-License-Identifier: Apache-2.0
"""Switch off the attention kernel whose gradient can be NaN, while training runs.

On Hopper (compute capability 9), torch 2.11 to 2.13 use cuDNN's attention by default. Its backward returns NaN if a mask is
passed, the padded length is 64 modulo 128, and a row's logsumexp is below -88.7 nats. Qwen2.5 has a head with such rows
(https://github.com/pytorch/pytorch/issues/196678, https://github.com/huggingface/trl/issues/7181). torch's other kernels are
right on the same inputs.
"""

from contextlib import contextmanager

import torch
from packaging.version import Version
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The reported range, with both ends. pyproject.toml does not allow torch 2.14 yet.
_FIRST, _LAST = (2, 11), (2, 13)
_HOPPER = 9
# Kernels that never reach torch's `scaled_dot_product_attention`. A user's own attention may reach it.
_OTHER_KERNELS = ("eager", "flash", "flex")


def has_nan_gradients(torch_version: str, capability: tuple[int, int] | None, attention: str | None) -> bool:
    """
    Whether training with cuDNN's attention can give NaN.

    Args:
        torch_version (`str`): `torch.__version__`.
        capability (`tuple[int, int]`, *optional*): compute capability of the CUDA device. `None`: no CUDA device is used.
        attention (`str`, *optional*): the model's attention implementation. `None` means transformers' choice, sdpa.
    """
    if capability is None or capability[0] != _HOPPER:
        return False
    if any(kernel in (attention or "sdpa") for kernel in _OTHER_KERNELS):
        return False
    return _FIRST <= Version(torch_version).release[:2] <= _LAST


@contextmanager
def sound_gradients(model, device: torch.device):
    """Inside the block cuDNN's attention is off if its gradient can be NaN, and the log says so. Later it is on again."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    attention = model.config.get_text_config()._attn_implementation
    if not torch.backends.cuda.cudnn_sdp_enabled() or not has_nan_gradients(torch.__version__, capability, attention):
        yield
        return
    logger.warning_once(
        f"cuDNN's attention is off while training: its gradient can be NaN on this device with torch {torch.__version__} "
        "(pytorch/pytorch#196678). torch's other attention kernels run instead."
    )
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
