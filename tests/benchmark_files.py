# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own files, where they are at hand; the tests that read them skip with a reason where not."""

import gzip
import json
import os
from pathlib import Path

import pytest


DATA = Path(os.environ.get("TRL_SOFT_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmarks' files (TRL_SOFT_DATA)")
FULL = os.environ.get("TRL_SOFT_FULL") == "1"


def rows(name: str) -> list[dict]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return json.load(lines) if name.endswith(".json.gz") else [json.loads(line) for line in lines]
