# SPDX-License-Identifier: Apache-2.0
"""vLLM's model classes, each with the method that makes Model Runner V2 use our state."""

import importlib

from .engine_support import ARCHITECTURES


class SoftMixin:
    """
    What the state needs from a model: its name there, the hidden states behind the logits, and whether weights came.

    Attributes:
        soft_loads (`int`): how often weights were loaded. A trainer loads them after each update.
    """

    soft_loads = 0

    @staticmethod
    def get_model_state_cls():
        from .model_state import SoftModelState

        return SoftModelState

    def load_weights(self, weights):
        self.soft_loads += 1
        return super().load_weights(weights)  # type: ignore[misc]

    def compute_logits(self, hidden_states):
        # For thoughts that are made of hidden states. The sampler is called next. A module's own way to set an attribute takes long.
        self.__dict__["soft_hidden"] = hidden_states
        return super().compute_logits(hidden_states)  # type: ignore[misc]

    def soft_project(self, hidden_states):
        """Logits of other hidden states."""
        return super().compute_logits(hidden_states)  # type: ignore[misc]


def __getattr__(name: str):
    # vLLM asks for "SoftQwen3ForCausalLM" only if it serves a Qwen3. Only then is the module imported.
    architecture = name.removeprefix("Soft")
    if not name.startswith("Soft") or architecture not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"vllm.model_executor.models.{ARCHITECTURES[architecture]}")
    made = type(name, (SoftMixin, getattr(module, architecture)), {"__module__": __name__})
    globals()[name] = made
    return made
