"""environment.yml from requirements.lock: conda users get the very same versions.

python -m crnet.environment requirements.lock environment.yml
"""

import sys
from pathlib import Path

HEAD = """\
# The versions of requirements.lock for conda; made by `make lock`, held to it by tests/test_environment.py.
name: crnet
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def environment(lock: str) -> str:
    """The text of environment.yml for the text of a lock file: every pin, with its platform marker."""
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]
    return HEAD + "".join(f'      - "{pin}"\n' for pin in pins)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(environment(source.read_text()))
