"""Full disks, limits, read-only folders, damaged states: one sentence, nothing lost, and on when there is room."""

import errno
import fcntl
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import encode, one_sentence, paths, training

from crnet.cli import main
from crnet.data.index import Index
from crnet.encoders.features import FeatureStore
from crnet.errors import CrnetError
from crnet.runtime import files
from crnet.runtime.checkpoint import load_json, load_state, save_json, save_state
from crnet.runtime.files import DamagedFile, atomic_write, read_csv, read_json, require_writable
from crnet.training.loop import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


KILLED = """
import os, signal, sys
from crnet.runtime.files import atomic_write
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
atomic_write(sys.argv[1], "b" * 100_000)
"""
WRITING = """
import sys
from crnet.runtime.files import atomic_write
for _ in range(100):
    atomic_write(sys.argv[1], sys.argv[2] * 100_000)
"""
LIMITED = """
import resource, sys
from pathlib import Path
from crnet.runtime.checkpoint import load_json, load_state, save_json, save_state
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
folder = Path(sys.argv[1])
for write in (lambda: atomic_write(folder / "a.txt", "x" * 50_000),
              lambda: save_state(folder / "s.pt", {"step": 3, "w": torch.zeros(50_000)})):
    try:
        write()
    except CrnetError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert (folder / "a.txt").read_text() == "before"
assert load_state(folder / "s.pt") == {"step": 2} and load_state(folder / "s.pt.previous") == {"step": 1}
save_state(folder / "s.pt", {"step": 3})
"""


class TestDisks:
    def test_a_file_that_is_too_large(self, tmp_path):
        atomic_write(tmp_path / "a.txt", "before")
        save_state(tmp_path / "s.pt", {"step": 1})
        save_state(tmp_path / "s.pt", {"step": 2})
        command = [sys.executable, "-c", LIMITED, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert f"{tmp_path / 'a.txt'}: 48.8 KiB cannot be written (File too large); raise the limit" in first
        assert f"{tmp_path / 's.pt'}: " in second
        assert load_state(tmp_path / "s.pt") == {"step": 3}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "s.pt", "s.pt.previous"], "nothing is left over"

    def test_killed_while_it_writes_the_next_write_clears_what_is_left(self, tmp_path):
        path = tmp_path / "a.txt"
        atomic_write(path, "before")
        done = subprocess.run([sys.executable, "-c", KILLED, path], check=False, cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == "before"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".a.txt.partial", "a.txt"]
        atomic_write(path, "after")
        assert path.read_text() == "after"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_two_that_write_the_same_file_at_once(self, tmp_path):
        path = tmp_path / "a.txt"
        writers = [subprocess.Popen([sys.executable, "-c", WRITING, path, letter], cwd=ROOT) for letter in "xy"]
        seen = set()
        while any(writer.poll() is None for writer in writers):
            if path.exists():
                content = path.read_text()
                assert content in ("x" * 100_000, "y" * 100_000)
                seen.add(content[0])
        assert [writer.returncode for writer in writers] == [0, 0]
        assert seen == {"x", "y"}
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_one_that_stands_still_while_it_writes_holds_nobody_up(self, tmp_path, monkeypatch):
        """As a suspended job, or one on a node that was thought dead: its file stays its own."""
        monkeypatch.setattr(files, "PATIENCE", 0.2)
        path, begun = tmp_path / "a.txt", tmp_path / ".a.txt.partial"
        with open(begun, "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(b"half of it")
            stream.flush()
            for content in ("once", "twice"):
                atomic_write(path, content)
                assert path.read_text() == content and begun.read_text() == "half of it"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".a.txt.partial", "a.txt"]
        atomic_write(path, "after")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_a_training_whose_state_cannot_be_written_goes_on_when_it_can(self, tiny, tmp_path):
        where = paths(tiny, tmp_path)
        command = [sys.executable, "-m", "crnet", *training(tiny.training(), where, "--checkpoint-seconds=0")]
        script = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]
        done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"crnet: {where.state}: " in done.stderr
        assert "cannot be written (File too large)" in done.stderr
        assert not where.state.exists()
        train(tiny.training(), where, "cpu", 1)
        assert (where.out / "train.json").is_file()

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        words = r"a\.txt: 1 bytes cannot be written .*a file stands where a folder"
        with pytest.raises(CrnetError, match=words) as caught:
            atomic_write(tmp_path / "file" / "a.txt", "x")
        one_sentence(caught.value, tmp_path / "file" / "a.txt")

    def test_a_path_that_cannot_be_written_is_refused_before_the_work(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        for path, words in (
            (tmp_path, r"cannot be written \(Is a directory\); a folder stands where the file has to be"),
            (tmp_path / "file" / "a.txt", "a file stands where a folder has to be"),
        ):
            with pytest.raises(CrnetError, match=words) as caught:
                require_writable(path)
            one_sentence(caught.value, path)
        require_writable(tmp_path / "file")
        require_writable(tmp_path / "new" / "a.txt")
        assert (tmp_path / "file").read_text() == "kept"
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "new"], "nothing is left over"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
    def test_a_read_only_folder(self, tmp_path):
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
        with pytest.raises(CrnetError, match=r"Permission denied\); choose a folder that you may write to"):
            atomic_write(folder / "a.txt", "x")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
    def test_a_disk_that_refuses(self, tmp_path, monkeypatch, code):
        """As a full disk answers, where none can be mounted: at the sync, when all bytes seemed to be written."""
        save_state(tmp_path / "s.pt", {"step": 1})

        def refuse(_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(CrnetError, match=rf"s\.pt: .* cannot be written \({os.strerror(code)}\)"):
            save_state(tmp_path / "s.pt", {"step": 2})
        monkeypatch.undo()
        assert load_state(tmp_path / "s.pt") == {"step": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["s.pt"]

    def test_a_disk_that_is_full(self, small_disk, tiny):
        atomic_write(small_disk / "a.txt", "before")
        with pytest.raises(CrnetError, match=r"a\.txt: 4\.0 MiB .* \(No space left on device\); make room"):
            atomic_write(small_disk / "a.txt", bytes(4 << 20))
        assert (small_disk / "a.txt").read_text() == "before"
        with pytest.raises(CrnetError, match="No space left on device"):
            encode(tiny, small_disk / "features")
        assert not list((small_disk / "features").glob("*.npy")), "no half store takes the room"

    def test_no_room_for_features_is_found_at_once(self, tiny, tmp_path, monkeypatch):
        """A mapped file that meets a full disk kills the process (SIGBUS): the room is taken before it is used."""

        def full(handle, offset, length):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(CrnetError, match=r"features: .*MiB .* \(No space left on device\); make room"):
            encode(tiny, tmp_path / "features")
        assert not list((tmp_path / "features").glob("*"))
        monkeypatch.undo()
        encode(tiny, tmp_path / "features")
        for name in ("map0.npy", "map1.npy"):
            assert (tmp_path / "features" / name).read_bytes() == (tiny.features / name).read_bytes()
            status = (tmp_path / "features" / name).stat()
            assert status.st_blocks * 512 >= status.st_size, "a sparse file may still meet a full disk"

    def test_features_within_a_limit_on_sizes(self, tiny, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(CrnetError, match=r"features: .*File too large"):
                encode(tiny, tmp_path / "features")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)

    def test_a_store_cut_short_is_refused(self, tiny, tmp_path):
        encode(tiny, tmp_path / "features")
        digest = read_json(tmp_path / "features/features.json")["encoder_digest"]
        with open(tmp_path / "features/map0.npy", "r+b") as stream:
            stream.truncate(5000)
        with pytest.raises(CrnetError, match=r"map0\.npy: is absent or cut short"):
            FeatureStore(tmp_path / "features", Index.load(tiny.data), digest)
        (tmp_path / "features/features.json").write_text("{")
        with pytest.raises(CrnetError, match=r"features\.json: is no JSON any more"):
            FeatureStore(tmp_path / "features", Index.load(tiny.data), digest)

    def test_what_the_machine_refuses_elsewhere_is_one_sentence(self, monkeypatch, capsys):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/photo.jpg")

        monkeypatch.setattr("crnet.cli.cli", full)
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert capsys.readouterr().err == (
            "crnet: /somewhere/photo.jpg: No space left on device; make room on its disk, then start again.\n"
        )


class TestTables:
    def test_a_table_is_read_as_it_was_written(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('x,y\n1,"a, ""b""\nc"\n\n,\n')
        assert read_csv(path) == [{"x": "1", "y": 'a, "b"\nc'}, {"x": "", "y": ""}]
        path.write_text("")
        assert read_csv(path) == []

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("x,y,z\n1,2,3\n4,5", "line 3 has 2 cells, its header 3"),
            ("x,y\n1,2,3\n4,5\n", "line 2 has 3 cells, its header 2"),
        ],
    )
    def test_a_row_that_is_cut_short_or_too_long_is_refused(self, tmp_path, content, words):
        path = tmp_path / "a.csv"
        path.write_text(content)
        with pytest.raises(DamagedFile, match=rf"a\.csv: is no CSV any more \({words}\); put it back") as caught:
            read_csv(path)
        one_sentence(caught.value, path)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.what) == (str(caught.value), caught.value.what)


class Dangerous:
    """What a pickle would run when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch PWNED",)


class TestStates:
    def write(self, path: Path, step: int) -> bytes:
        save_state(path, {"step": step, "w": torch.full((100,), float(step))})
        return path.read_bytes()

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "flipped digest"])
    def test_a_damaged_state_is_passed_over_and_said(self, tmp_path, capsys, damage):
        path = tmp_path / "s.pt"
        self.write(path, 1)
        content = self.write(path, 2)
        harm = {
            "cut": content[: len(content) // 2],
            "flipped": content[:-200] + bytes([content[-200] ^ 4]) + content[-199:],
            "empty": b"",
            "flipped digest": bytes([content[0] ^ 1]) + content[1:],
        }
        path.write_bytes(harm[damage])
        assert load_state(path)["step"] == 1
        assert capsys.readouterr().err == f"{path}: damaged (its digest differs), it is passed over\n"
        (tmp_path / "s.pt.previous").write_bytes(b"")
        assert load_state(path) is None
        said = capsys.readouterr().err
        assert said.count(": damaged (") == 2
        assert "the work starts from the beginning" in said

    def test_a_state_gone_between_its_two_renamings(self, tmp_path):
        path = tmp_path / "s.pt"
        self.write(path, 1)
        path.rename(tmp_path / "s.pt.previous")
        assert load_state(path)["step"] == 1

    @pytest.mark.parametrize(
        "harm", [lambda c: c[:60], lambda c: c.replace(b"17", b"71"), lambda c: b"", lambda c: b"[]"]
    )
    def test_rows_of_an_evaluation_are_digested_too(self, tmp_path, capsys, harm):
        path = tmp_path / "e.json"
        for count in (1, 2):
            save_json(path, {"identity": "x", "rows": [{"query": [17, 3]}] * count, "seconds": 0.1})
        assert len(load_json(path)["rows"]) == 2
        path.write_bytes(harm(path.read_bytes()))
        assert load_json(path) == {"identity": "x", "rows": [{"query": [17, 3]}], "seconds": 0.1}
        assert capsys.readouterr().err == f"{path}: damaged (its digest differs), it is passed over\n"

    def test_no_code_is_unpickled(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_state(tmp_path / "s.pt", {"x": Dangerous()})
        with pytest.raises(CrnetError, match=r"s\.pt: holds more than tensors and plain values") as caught:
            load_state(tmp_path / "s.pt")
        one_sentence(caught.value, tmp_path / "s.pt")
        assert not (tmp_path / "PWNED").exists()

    def test_nothing_in_the_package_unpickles(self):
        """Weights are safetensors, states tensors and plain types; numpy arrays of objects are refused."""
        for file in sorted((ROOT / "crnet").rglob("*.py")):
            text = file.read_text()
            assert "allow_pickle=True" not in text, file
            assert "pickle.load" not in text, file
            for line in text.splitlines():
                assert "torch.load(" not in line or "weights_only=True" in line, f"{file}: {line}"
