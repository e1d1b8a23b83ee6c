"""What accounts, shells, containers and paths do to a run: nothing, or one sentence before any work."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from snake import command, copy_workflow, environment

from crnet.data.formats import lists
from crnet.data.formats.palette import PALETTE, check_palette
from crnet.data.index import relative
from crnet.errors import CrnetError
from crnet.runtime import capacity, provenance, surroundings

ROOT = Path(__file__).resolve().parents[1]
TEXT_CALLS = {"read_text", "write_text"}


def test_every_text_file_has_an_encoding():
    """Also where ruff does not see that it is a path."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "crnet").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        if (isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_CALLS)
        or any(keyword.arg == "text" and isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
        if "encoding" not in {keyword.arg for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute)
        if node.func.attr in {*TEXT_CALLS, "run", "Popen"}
    ]
    assert not bare


def test_what_snakemake_reads_is_ascii():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        assert path.read_bytes().isascii(), path


def test_a_clone_keeps_line_ends(tmp_path):
    files = {".gitattributes": (ROOT / ".gitattributes").read_bytes(), "a.csv": b"a\nb\n", "a.png": b"\x89PNG\r\n\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    git = ["git", "-C", tmp_path, "-c", "user.name=T", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", tmp_path, tmp_path / "clone"], check=True)
    assert {name: (tmp_path / "clone" / name).read_bytes() for name in files} == files


def test_a_terminal_that_cannot_show_a_letter_stops_nothing():
    code = "from crnet.runtime import surroundings as s; s.make_up(); print('\\u2212')"
    for encoding in ("latin-1", "ascii"):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=True)
        assert done.stdout == b"\\u2212\n"


def test_a_user_without_a_name_gets_one(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONUTF8", "0")  # put back afterwards
    monkeypatch.setenv("LOGNAME", "")
    surroundings.make_up()
    assert os.environ["LOGNAME"] == f"user-{os.getuid()}"


@pytest.mark.parametrize("variables", [{"HOME": "/proc", "USER": "me"}, {"HOME": "/proc"}])
def test_no_home_and_no_name_stop_snakemake(tmp_path, monkeypatch, variables):
    folder = copy_workflow(tmp_path / "clone")
    shutil.copy(ROOT / "tests/tiny.yaml", folder / "study.yaml")
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\n\n\ndef none(uid):\n    raise KeyError(uid)\n\n\npwd.getpwuid = none\n", encoding="utf-8"
    )
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    given = environment() | variables
    given["PYTHONPATH"] = os.pathsep.join([str(tmp_path), given["PYTHONPATH"]])
    done = subprocess.run(command("-n"), cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_long_tmpdir_leaves_room_for_sockets(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    code = (
        "import multiprocessing.connection as c; from crnet.runtime.surroundings import make_up; {}"
        "c.Listener(family='AF_UNIX').close(); print('listened')"
    )
    for before, listened in (("", False), ("make_up(); ", True)):
        run = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(run, env=os.environ | {"TMPDIR": str(long)}, capture_output=True, check=False)
        assert (b"listened" in done.stdout) is listened, done.stderr


@pytest.mark.parametrize(
    ("name", "words"), [("a{b}", "{ or }"), ("a:b", "a colon"), (b"a\xff".decode(errors="surrogateescape"), "UTF-8")]
)
def test_a_path_that_snakemake_or_python_cannot_take_is_refused(name, words):
    with pytest.raises(CrnetError, match=words) as refused:
        surroundings.check_root(Path("/home") / name / "crnet")
    assert "move or rename it" in str(refused.value)


@pytest.mark.parametrize("name", ["o'Brien", "with space", 'a"b', "ü", "a%20b#1", "a[1]*?", "$HOME;&"])
def test_other_paths_are_taken(name):
    surroundings.check_root(Path("/home") / name / "crnet")


class TestUnknownCommit:
    def test_a_checkout_of_another_owner(self, tmp_path, monkeypatch):
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        (tmp_path / "crnet").mkdir()
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        [said] = surroundings.warnings(tmp_path)
        assert "the commit is unknown" in said
        assert f"--add safe.directory {tmp_path}" in said

    def test_no_checkout_and_no_git(self, tmp_path, monkeypatch):
        (tmp_path / "crnet").mkdir()
        assert "no Git checkout" in provenance.why_unknown(tmp_path / "crnet")
        (tmp_path / ".git").mkdir()
        monkeypatch.setenv("PATH", "")
        assert "no git on the PATH" in provenance.why_unknown(tmp_path / "crnet")

    def test_nothing_is_said_of_a_known_one(self, monkeypatch):
        monkeypatch.setattr(surroundings, "checkout", lambda package: ("0" * 40, False))
        assert list(surroundings.warnings(ROOT)) == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("module", ["_sqlite3", "_lzma"])
def test_a_python_without_a_module_is_refused_by_make(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n", encoding="utf-8")
    for name in ("python3", "python3.11", "python3.12"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    run = ["make", "-C", tmp_path, ".venv/ready"]
    path = os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"])
    done = subprocess.run(run, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode and "needs Python 3.11 or 3.12 with the modules" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_installed_package_says_that_it_needs_a_checkout_and_works_in_one(tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "crnet", site / "crnet", ignore=shutil.ignore_patterns("__pycache__"))

    def crnet(folder, *words):
        run = [sys.executable, "-m", "crnet", *words]
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(run, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    for words in (["list", "studies"], ["plan"], ["status"], ["render"], ["audit", str(ROOT / "results/demo")]):
        done = crnet(elsewhere, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.count("\n") == 1, words
        assert "start it in the folder of a checkout (git clone)" in done.stderr or "there is no configs" in done.stderr
    assert "crnet" in crnet(elsewhere, "list", "methods").stdout
    inside = crnet(ROOT, "list", "studies")
    assert "demo" in inside.stdout, inside.stderr
    assert "trainings" in crnet(ROOT, "plan").stdout


def test_the_users_matplotlibrc_changes_no_byte(tmp_path):
    log = ROOT / "results/demo/training.csv"
    settings = {"plain": "", "usetex": "text.usetex: True\n", "style": "axes.facecolor: red\nsavefig.bbox: tight\n"}
    for name, text in settings.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "matplotlibrc").write_text(text, encoding="utf-8")
        run = [sys.executable, "-m", "crnet", "job", "losses", "--training-log", log, "--out", tmp_path / name / "plot"]
        subprocess.run(run, env=os.environ | {"MPLCONFIGDIR": str(tmp_path / name)}, cwd=ROOT, check=True)
    for name in ("usetex", "style"):
        for suffix in ("png", "svg"):
            plain, other = (tmp_path / kind / f"plot.{suffix}" for kind in ("plain", name))
            assert plain.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_as_editors_write_them(tmp_path, encoding, end):
    text = "2007_000032\n2007_000039\n".replace("\n", end)
    text, encoding = ("\ufeff" + text, "utf-16-le") if "BOM" in encoding else (text, encoding)
    (tmp_path / "ids.txt").write_bytes(text.encode(encoding))
    assert lists.words(tmp_path / "ids.txt") == ["2007_000032", "2007_000039"]


@pytest.mark.parametrize("content", ["a\n".encode("utf-16-le"), "ä\n".encode("latin-1")])
def test_a_list_in_another_encoding_is_one_sentence(tmp_path, content):
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(CrnetError, match=r"ids\.txt is no text in UTF-8 .*save it as plain text in UTF-8"):
        lists.words(tmp_path / "ids.txt")


class TestPalette:
    def save(self, path: Path, ids: list[int], palette: list[int]) -> Path:
        mask = Image.new("P", (len(ids), 1))
        mask.putdata(ids)
        mask.putpalette(palette)
        mask.save(path)
        return path

    def test_sorted_anew_it_is_refused(self, tmp_path):
        moved = [0, 0, 0, *PALETTE[45:48], *PALETTE[765:768]]  # background, person (15), void
        path = self.save(tmp_path / "m.png", [0, 1, 1, 2], moved)
        with pytest.raises(CrnetError, match=r"m\.png shows id 1 in VOC's colour of id 15"):
            check_palette(path, [0, 1, 2])

    @pytest.mark.parametrize("palette", [PALETTE, [v // 3 for v in range(768)], [v % 251 for v in range(768)]])
    def test_vocs_own_and_foreign_ones_pass(self, tmp_path, palette):
        check_palette(self.save(tmp_path / "m.png", [0, 1, 15, 255], palette), [0, 1, 15, 255])


def test_links_on_the_way_are_followed(tmp_path):
    (tmp_path / "disk/a/b").mkdir(parents=True)
    (tmp_path / "user/photos").mkdir(parents=True)
    (tmp_path / "user/photos/p.jpg").write_bytes(b"p")
    (tmp_path / "user/linked").symlink_to(tmp_path / "disk/a/b")
    out = tmp_path / "user/linked/data"
    out.mkdir()
    assert (out / relative(tmp_path / "user/photos/p.jpg", out)).read_bytes() == b"p"


class TestContainer:
    @pytest.fixture
    def group(self, tmp_path, monkeypatch):
        """The folder of this process's group, below one that may set limits too."""
        own = tmp_path / "root/outer/inner"
        own.mkdir(parents=True)
        (tmp_path / "own").write_text("1:cpu:/x\n0::/outer/inner\n", encoding="utf-8")
        monkeypatch.setattr(capacity, "ROOT", tmp_path / "root")
        monkeypatch.setattr(capacity, "OWN", tmp_path / "own")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
        return own

    def test_without_limits_it_is_the_machine(self, group):
        (group / "cpu.max").write_text("max 100000\n", encoding="utf-8")
        (group / "memory.max").write_text("max\n", encoding="utf-8")
        assert capacity.cores() == 16
        assert capacity.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def test_the_smallest_limit_counts_wherever_it_is_set(self, group):
        (group / "cpu.max").write_text("800000 100000\n", encoding="utf-8")
        (group.parent / "cpu.max").write_text("150000 100000\n", encoding="utf-8")
        (group.parent / "memory.max").write_text(f"{1 << 30}\n", encoding="utf-8")
        assert capacity.cores() == 2
        assert capacity.memory_bytes() == 1 << 30

    def test_free_is_what_the_limit_leaves_and_files_read_are_given_back(self, group):
        (group / "memory.max").write_text("1000000\n", encoding="utf-8")
        (group / "memory.current").write_text("700000\n", encoding="utf-8")
        (group / "memory.stat").write_text("anon 400000\ninactive_file 100000\nactive_file 50000\n", encoding="utf-8")
        assert capacity.free_memory_bytes() == 450000
