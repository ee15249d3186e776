# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` on a CPU, as the tests need it: linear layers that read their own weights. Takes the same arguments."""

import sys

from tests.vllm.served import plain_linear


if __name__ == "__main__":
    plain_linear()
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", "serve", *sys.argv[1:]]
    main()
