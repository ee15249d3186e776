# SPDX-License-Identifier: Apache-2.0
"""`python -m study.real`. The clock starts before torch is loaded, which takes its time."""

import time


if __name__ == "__main__":
    start = time.monotonic()
    from .run import main

    raise SystemExit(main(start=start))
