# SPDX-License-Identifier: Apache-2.0
"""cuDNN's attention is kept out of training where its gradient can be NaN, and nowhere else."""

import pytest
import torch
from transformers import TrainerCallback

import trl_soft.training.attention_gradients
from tests import tiny
from trl_soft import SoftGRPOConfig, SoftGRPOTrainer, SoftRLOOConfig, SoftRLOOTrainer
from trl_soft.training.attention_gradients import has_nan_gradients, sound_gradients


@pytest.mark.parametrize(
    ("version", "capability", "attention", "wrong"),
    [
        ("2.11.0+cu130", (9, 0), "sdpa", True),
        ("2.12.1", (9, 0), None, True),
        ("2.13.0a0+git1", (9, 0), "sdpa", True),
        ("2.13.0", (9, 0), "my_own_attention", True),
        ("2.10.1", (9, 0), "sdpa", False),
        ("2.14.0", (9, 0), "sdpa", False),
        ("2.12.0", (8, 0), "sdpa", False),  # A100
        ("2.12.0", (10, 0), "sdpa", False),  # B200
        ("2.12.0", None, "sdpa", False),
        ("2.12.0", (9, 0), "eager", False),
        ("2.12.0", (9, 0), "flash_attention_2", False),
        ("2.12.0", (9, 0), "kernels-community/vllm-flash-attn3", False),
        ("2.12.0", (9, 0), "flex_attention", False),
    ],
)
def test_where_the_gradient_can_be_nan(version, capability, attention, wrong):
    assert has_nan_gradients(version, capability, attention) is wrong


class Look(TrainerCallback):
    def __init__(self, fail: bool):
        self.enabled, self.fail = [], fail

    def on_step_end(self, args, state, control, **kwargs):
        self.enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        if self.fail:
            raise KeyError("a user's own error")


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("classes", [(SoftGRPOTrainer, SoftGRPOConfig), (SoftRLOOTrainer, SoftRLOOConfig)])
def test_off_in_training_and_as_found_afterwards(tmp_path, monkeypatch, classes, fail):
    """As on a Hopper device; the flag is torch's own and is there without one."""
    told, look = [], Look(fail)
    monkeypatch.setattr(trl_soft.training.attention_gradients, "has_nan_gradients", lambda *device: True)
    monkeypatch.setattr(trl_soft.training.attention_gradients.logger, "warning_once", told.append)
    trainer = tiny.trainer(tmp_path, None, *classes, max_steps=1, beta=0.0, callbacks=[look])
    assert torch.backends.cuda.cudnn_sdp_enabled()
    if fail:
        with pytest.raises(KeyError):
            trainer.train()
    else:
        trainer.train()
    assert look.enabled == [False] and torch.backends.cuda.cudnn_sdp_enabled()
    assert len(told) == 1 and "cuDNN's attention is off while training" in told[0]


def test_untouched_elsewhere_and_where_the_user_turned_it_off(monkeypatch):
    model, device = tiny.model(), torch.device("cpu")
    with sound_gradients(model, device):
        assert torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(trl_soft.training.attention_gradients, "has_nan_gradients", lambda *device: True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with sound_gradients(model, device):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
