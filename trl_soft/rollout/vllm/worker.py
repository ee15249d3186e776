# SPDX-License-Identifier: Apache-2.0
"""The worker extension for clients: `--worker-extension-cls trl_soft.rollout.vllm.worker.SoftWorker`."""

from .records import bulks


class SoftWorker:
    """Methods that vLLM adds to its worker. Call them through `collective_rpc`."""

    def pop_soft_records(self, requests: list[str], as_text: bool = False) -> list[dict] | None:
        """
        Remove and return the records of finished requests that were made with `soft_record`.

        Args:
            requests: the names of the requests, or vLLM's ids.
            as_text: encode arrays as base64, for transports that carry JSON.

        Returns:
            Bulks, as `trl_soft.rollout.vllm.records` describes them. They leave out unknown requests. In a tensor-parallel
            group all workers hold the same records, and only the first returns them; the others return `None`. With
            `external_launcher` each worker has its own client and returns its records.
        """
        state = self.model_runner.model_state  # type: ignore[attr-defined]
        if getattr(state, "off", "") is not None:
            raise RuntimeError(
                f"This engine cannot think softly: {getattr(state, 'off', 'the plugin is not loaded')}."
            )
        records = state.take(requests)
        from vllm.distributed import get_tensor_model_parallel_rank

        backend = self.vllm_config.parallel_config.distributed_executor_backend  # type: ignore[attr-defined]
        asked = get_tensor_model_parallel_rank() == 0 or backend == "external_launcher"
        return bulks(records, as_text) if asked else None
