# SPDX-License-Identifier: Apache-2.0
"""What a client can ask of a worker: `--worker-extension-cls trl_soft.rollout.vllm.worker.SoftWorker`."""

from .records import bulks


class SoftWorker:
    """Methods that vLLM adds to its worker; reach them through `collective_rpc`."""

    def pop_soft_records(self, requests: list[str], as_text: bool = False) -> list[dict] | None:
        """
        The records of finished requests that were made with `soft_record`, which are forgotten with that.

        Args:
            requests: the names they were given, or vLLM's ids.
            as_text: encode arrays as base64, for transports that carry JSON.

        Returns:
            Bulks, as `trl_soft.rollout.vllm.records` describes them; a request that is not known is not in them. `None`
            from all workers of a tensor-parallel group but the first, which hold the same, unless each has a client of
            its own (`external_launcher`).
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
