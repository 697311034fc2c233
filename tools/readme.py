"""Keep README's generated parts current.

python tools/readme.py            write the tables of papers and benchmarks
python tools/readme.py --run      also run the commands of the blocks marked <!-- run --> and put in what they print
python tools/readme.py --check    write nothing; exit code 1 and a difference when a table is not what it would be
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import tables  # noqa: E402

from offprint.files import atomic_write  # noqa: E402

FILE = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- run -->\n```console\n)(.*?)(```)", re.S)


def fill(text: str) -> str:
    """The text with its tables made anew."""
    parts = {"papers": tables.kinds, "levels": tables.levels, "benchmarks": tables.speed}
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)", re.S)
        assert pattern.search(text), f"README has no part {name}"
        text = pattern.sub(lambda m, made=make(): f"{m[1]}{made}\n{m[2]}", text)
    return text


def rerun(text: str) -> str:
    """The text with the output of its commands as they print now, all run in one empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**os.environ, "COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1",
                    "OFFPRINT_LEDGER": f"{folder}/.ledger.sqlite"}  # fmt: skip

        def block(match) -> str:
            lines = []
            for command in re.findall(r"^\$ (.*)$", match[2], flags=re.M):
                print(f"$ {command}")
                done = subprocess.run(
                    ["bash", "-c", f"set -o pipefail; {command}"],
                    cwd=folder,
                    env=settings,
                    capture_output=True,
                    text=True,
                )
                if done.returncode not in (0, 141) and "head" not in command:
                    raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
                shown = done.stdout.replace(f"{folder}/", "").rstrip()
                lines += [f"$ {command}", *(line.rstrip() for line in shown.splitlines() if line.strip())]
            return match[1] + "\n".join(lines) + "\n" + match[3]

        return BLOCK.sub(block, text)


def main() -> int:
    before = FILE.read_text()
    after = fill(rerun(before) if "--run" in sys.argv else before)
    if "--check" in sys.argv:
        sys.stdout.writelines(
            difflib.unified_diff(before.splitlines(True), after.splitlines(True), "README.md", "generated")
        )
        return int(before != after)
    atomic_write(FILE, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
