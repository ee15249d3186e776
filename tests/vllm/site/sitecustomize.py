# SPDX-License-Identifier: Apache-2.0
"""On PYTHONPATH with TRITON_INTERPRET=1: a Triton backend called "cpu" that compiles nothing and claims to be active."""

import os


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import Backend, backends
    from triton.backends.driver import DriverBase

    class Interpreted(DriverBase):
        @staticmethod
        def is_active():
            return True

        def get_current_target(self):
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self):
            import torch

            return torch.device("cpu")

        def get_device_interface(self):
            import torch

            return torch.cpu

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_benchmarker(self):
            raise NotImplementedError

    backends["cpu"] = Backend(compiler=None, driver=Interpreted)
