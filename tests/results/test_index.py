"""The index of results.csv: what happens when it is damaged, locked or out of reach, and when several write to it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import python_path
from outcomes import placed
from run_changes import indexed, new_first, new_keys, new_last, results, touched, written_from_folders

from clrun.results import collection, index, run_files


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outputs(tmp_path) -> Path:
    return indexed(tmp_path)


# ---------------------------------------------------------------- the index itself


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 10_000)


def zeros_within(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(path.stat().st_size - 9000))


def cells_changed(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE content SET cells = replace(CAST(cells AS TEXT), 'done', 'dome')")
    (path.parent / "results.csv").unlink()  # so that all rows are asked for


def lengths_changed(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE run SET bytes = bytes + 1")


def rows_lost(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM content WHERE number % 2")
    (path.parent / "results.csv").unlink()


def table_lost(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE layout")


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE run (place BLOB, modified, changed, size)")


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {index.VERSION + 1}")


def lost(path: Path) -> None:
    path.unlink()


DAMAGES = [
    cut, emptied, garbage, zeros_within, cells_changed, lengths_changed, rows_lost, table_lost, foreign,
    of_another_version, lost,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("change", [new_first, new_keys, touched])
def test_a_damaged_index_is_made_again(outputs, said, damage, change):
    damage(outputs / index.NAME)
    change(outputs)
    collection.update(outputs, say=said.append)
    assert results(outputs) == written_from_folders(outputs) and said == []
    with sqlite3.connect(outputs / index.NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    new_last(outputs)
    collection.update(outputs, say=said.append)
    assert results(outputs) == written_from_folders(outputs) and said == []


@pytest.mark.parametrize("how", [collection.update, collection.collect])
def test_an_index_that_another_program_has_locked_is_done_without(outputs, said, how):
    new_first(outputs)
    connection = sqlite3.connect(outputs / index.NAME, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    how(outputs, say=said.append, lock_seconds=0.1)
    assert results(outputs) == written_from_folders(outputs)
    assert len(said) == 1 and "locked" in said[0] and index.NAME in said[0]
    connection.close()
    how(outputs, say=said.append, lock_seconds=0.1)
    assert len(said) == 1


def test_a_process_that_does_not_let_go_is_not_waited_for_for_ever(outputs, said):
    with FileLock(outputs / collection.LOCK):
        new_first(outputs)
        with ThreadPoolExecutor(1) as other:
            other.submit(collection.update, outputs, say=said.append, lock_seconds=0.2).result()
    assert results(outputs) == written_from_folders(outputs)
    assert len(said) == 1 and collection.LOCK in said[0]
    new_last(outputs)
    collection.update(outputs, say=said.append)
    assert results(outputs) == written_from_folders(outputs) and len(said) == 1


def test_a_folder_in_the_place_of_the_index(outputs, said):
    (outputs / index.NAME).unlink()
    (outputs / index.NAME).mkdir()
    new_first(outputs)
    collection.update(outputs, say=said.append)
    assert results(outputs) == written_from_folders(outputs) and len(said) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a folder read-only")
@pytest.mark.parametrize("indexed", [True, False])
def test_a_read_only_disk(outputs, indexed):
    """The rows are all there, and it is said that no file was written."""
    if not indexed:
        (outputs / index.NAME).unlink()
    new_first(outputs)
    expected, before = written_from_folders(outputs), results(outputs)
    code = (
        "import sys; from pathlib import Path; from clrun.results import collection; from clrun.results import tables\n"
        "table = collection.collect(Path(sys.argv[1])); print(len(table), table['run'].nunique())"
    )
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", str(outputs), sys.executable, code]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment())
    if "unshare" in answer.stderr or "mount" in answer.stderr:
        pytest.skip(answer.stderr)
    assert answer.stdout.split() == ["13", "13"], answer.stderr
    assert len(answer.stderr.splitlines()) == 2 and "read-only" in answer.stderr.lower()
    assert results(outputs) == before != expected


def test_a_folder_without_permission_to_write(outputs, said, monkeypatch):
    """As root may write anywhere, the system's answer is replaced."""
    new_first(outputs)
    expected = written_from_folders(outputs)

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        collection.update(outputs, say=said.append)
    table = collection.collect(outputs, say=said.append)
    assert len(table) == 13 and table.to_csv(index=False).count("\n") == expected.count(b"\n")
    assert any("read-only" in line for line in said) and "Permission denied" in said[-1]


def test_a_full_disk_changes_nothing_and_is_made_up_for(outputs, monkeypatch):
    before = results(outputs)
    new_first(outputs)
    with monkeypatch.context() as patch:

        def full(source, target):
            raise OSError(28, "No space left on device", str(target))

        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            collection.update(outputs)
    assert results(outputs) == before
    assert not list(outputs.glob(".results.csv.*"))
    collection.update(outputs)
    assert results(outputs) == written_from_folders(outputs)


# ---------------------------------------------------------------- several processes

WRITER = """
import sys
from pathlib import Path
from outcomes import placed
from clrun.results import collection
outputs, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, first + count):
    made = placed(outputs, "ewc", seed)
    collection.update(outputs, [made.directory])
    held = (outputs / "results.csv").read_bytes()
    assert made.run.encode() in held, "its own row"
    assert held.endswith(b"\\n") and len(set(map(len, __import__("csv").reader(held.decode().splitlines())))) == 1
"""


def environment() -> dict[str, str]:
    root = Path(run_files.__file__).parents[2]
    return {**os.environ, "PYTHONPATH": python_path(root, root / "tests")}


def writer(outputs: Path, first: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(outputs), str(first), str(count)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_several_writers_at_once(tmp_path):
    """Also at the first update, which makes the index: every row is there, and the file is whole at all times."""
    placed(tmp_path, "si", 0)
    writers = [writer(tmp_path, 100 * number, 15) for number in range(3)]
    while any(process.poll() is None for process in writers):
        if (tmp_path / "results.csv").is_file():
            run_files.read_summary(tmp_path / "results.csv")
    said = [process.communicate()[1] for process in writers]
    assert [process.returncode for process in writers] == [0, 0, 0] and said == ["", "", ""]
    assert len(run_files.read_summary(tmp_path / "results.csv")) == 46
    assert results(tmp_path) == written_from_folders(tmp_path)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2)])
def test_killed_writers(tmp_path, seed):
    """Killed while they write, at any moment: the next update is right, and waits for nobody."""
    placed(tmp_path, "si", 0)
    for turn in range(4):
        process = writer(tmp_path, 100 * turn, 100)
        began = time.monotonic()
        while not list(tmp_path.glob(f"runs/ewc/digits-{100 * turn + 1}")) and time.monotonic() - began < 20:
            time.sleep(0.01)
        time.sleep(0.013 * (4 * seed + turn))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        if (tmp_path / "results.csv").is_file():
            run_files.read_summary(tmp_path / "results.csv")
        for half in tmp_path.glob("runs/*/*"):
            if not run_files.finished(half):
                shutil.rmtree(half)
    began = time.monotonic()
    collection.update(tmp_path)
    assert time.monotonic() - began < 5
    assert results(tmp_path) == written_from_folders(tmp_path)
