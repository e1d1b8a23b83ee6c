"""What the README says to paste works as pasted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_method_of_the_readme_is_found_and_passes_the_conformance_suite(tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Add a method")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    shutil.copytree(ROOT / "crnet", tmp_path / "crnet", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "crnet/methods/pasted.py").write_text(code, encoding="utf-8")
    for name in ("test_methods.py", "parts.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=environment, text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = run("crnet", "list", "methods")
    assert "pasted          co-FCN (Rakelly et al., ICLR workshop 2018), late fusion" in listed
    passed = re.search(r"(\d+) passed", run("pytest", "test_methods.py", "-k", "pasted", "-p", "no:cacheprovider"))
    assert int(passed[1]) >= 4
