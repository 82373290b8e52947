"""Runs the commands of the course's exercises, and keeps the last line that each prints.

python docs/course/exercises.py                  (into exercises.txt)
python docs/course/exercises.py --only moon lean
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict

HERE = Path(__file__).resolve().parent
OUT = HERE / "exercises.txt"
COMMANDS = {
    "none": "rules.py --rule none",
    "moon": "rules.py --rule none --gravity 1.62",
    "lean": "rules.py --rule lean",
    "gentle": "rules.py --rule gentle",
    "centre": "rules.py --rule centre",
    "far": "rules.py --rule centre --gamma 0.9",
}
"""By the name under which a page shows it"""


def run(command: str) -> str:
    """The last line that it prints."""
    done = subprocess.run([sys.executable, *command.split()], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    lines = done.stdout.splitlines()
    return lines[-1]


def sections(text: str) -> Dict[str, str]:
    """What a file like exercises.txt holds, by name."""
    return dict(re.findall(r"--8<-- \[start:(\w+)\]\n(.*?)--8<-- \[end:\1\]", text, re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    found = sections(OUT.read_text()) if OUT.exists() else {}
    for name in parser.parse_args().only:
        found[name] = f"$ python docs/course/{COMMANDS[name]}\n{run(COMMANDS[name])}\n"
        print(found[name], flush=True)
        kept = {each: found[each] for each in COMMANDS if each in found}
        OUT.write_text("".join(f"--8<-- [start:{each}]\n{text}--8<-- [end:{each}]\n" for each, text in kept.items()))


if __name__ == "__main__":
    main()
