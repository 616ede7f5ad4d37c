"""results.csv and its index: always what the folders of runs say, whatever happens to either."""

import csv
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from helpers import python_path
from outcomes import SUMMARY, VALUES, lines, placed

from clrun.results import collection, index, results_file, run_files, tables
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL


def written_from_folders(outputs: Path) -> bytes:
    """results.csv as a reader of all folders writes it, without an index and without copies among the folders."""
    rows = []
    for path in sorted(outputs.glob("runs/*/*/summary.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    between = dict.fromkeys(key for row in rows for key in row if key not in (*SUMMARY_HEAD, *SUMMARY_TAIL))
    table = tables.objects(rows, [*SUMMARY_HEAD, *between, *SUMMARY_TAIL]).fillna("")
    return table.to_csv(index=False, lineterminator="\n").encode()


def results(outputs: Path) -> bytes:
    return (outputs / "results.csv").read_bytes()


def edited(path: Path, old: str, new: str) -> None:
    """Change a file in its place, as an editor may."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outputs(tmp_path) -> Path:
    """Twelve runs of three strategies with different keys, indexed."""
    for seed in range(4):
        placed(tmp_path, "ewc", seed, warnings=['a "quoted", one', "größe"])
        placed(tmp_path, "finetune", seed, values=VALUES | {"strategy": "finetune", "seed": seed, "own": seed})
        placed(tmp_path, "si", seed, values=VALUES | {"strategy": "si", "seed": seed, "c": 0.1 * seed})
    collection.update(tmp_path)
    assert results(tmp_path) == written_from_folders(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- what results.csv holds


def test_collect(tmp_path):
    """One row a run, sorted by path, whatever its keys; hashes that look like numbers stay text."""
    placed(tmp_path, "si", 1, values=VALUES | {"strategy": "si", "seed": 1, "c": 0.1, "note": "None"})
    placed(tmp_path, "ewc", 10)
    placed(tmp_path, "ewc", 2)
    table = collection.collect(tmp_path)
    assert list(table["run"]) == ["0000000010", "0000000002", "3000000001"]
    assert list(table["group"]) == ["12e4567890"] * 3
    header = SUMMARY.replace("outputs,", "outputs,c,note,")
    assert lines(tmp_path / "results.csv")[0] == header == ",".join(table.columns)
    assert table["c"].isna().tolist() == [True, True, False]
    assert table["note"].iloc[2] == "None"
    text = results(tmp_path)
    pd.testing.assert_frame_equal(collection.collect(tmp_path), table)
    assert results(tmp_path) == text


def test_collect_keeps_cells_as_written(tmp_path):
    made = placed(tmp_path, costs={"train_seconds": 0.1 + 0.2})
    collection.collect(tmp_path)
    assert results(tmp_path) == (made.directory / "summary.csv").read_bytes()


@pytest.mark.parametrize("there", [(), ("runs/ewc/begun", "runs/.hidden")])
def test_collect_without_runs(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert collection.collect(tmp_path).empty and collection.collect(tmp_path / "nowhere").empty
    assert sorted(tmp_path.rglob("*")) == before


def new_first(outputs: Path) -> None:
    placed(outputs, "ewc", 40, values=VALUES | {"strategy": "ewc", "seed": 40})


def new_last(outputs: Path) -> None:
    placed(outputs, "si", 99, values=VALUES | {"strategy": "si", "seed": 99, "c": 1})


def new_keys(outputs: Path) -> None:
    placed(outputs, "ewc", 0, values=VALUES | {"another": 1})


def several(outputs: Path) -> None:
    for change in (new_first, new_last, removed, longer):
        change(outputs)


def several_more(outputs: Path) -> None:
    for seed in range(200, 230):
        placed(outputs, "ewc", seed)
    shutil.rmtree(outputs / "runs/si")


def removed(outputs: Path) -> None:
    shutil.rmtree(outputs / "runs/ewc/digits-1")


def last_with_these_keys_removed(outputs: Path) -> None:
    shutil.rmtree(outputs / "runs/finetune")


def renamed(outputs: Path) -> None:
    (outputs / "runs/ewc/digits-1").rename(outputs / "runs/ewc/zz the best")


def longer(outputs: Path) -> None:
    edited(outputs / "runs/finetune/digits-2/summary.csv", "done", "diverged")


def same_length(outputs: Path) -> None:
    """And the time of modification is set back, as some tools do."""
    path = outputs / "runs/finetune/digits-2/summary.csv"
    before = path.stat()
    edited(path, "1.25", "1.35")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def trained_again(outputs: Path) -> None:
    placed(outputs, "si", 2, costs={"train_seconds": 9})


def back_to_unfinished(outputs: Path) -> None:
    (outputs / "runs/si/digits-2/summary.csv").unlink()


def touched(outputs: Path) -> None:
    os.utime(outputs / "runs/si/digits-2/summary.csv")


def unfinished(outputs: Path) -> None:
    (outputs / "runs/ewc/begun").mkdir()
    (outputs / "runs/a file").write_text("")
    (outputs / "runs/ewc/a file").write_text("")


def results_removed(outputs: Path) -> None:
    (outputs / "results.csv").unlink()


def results_cut(outputs: Path) -> None:
    os.truncate(outputs / "results.csv", 700)


def results_edited(outputs: Path) -> None:
    edited(outputs / "results.csv", "ewc", "abc")


CHANGES = [
    new_first, new_last, new_keys, several, removed, last_with_these_keys_removed, renamed, longer, same_length,
    trained_again, back_to_unfinished, touched, unfinished, results_removed, results_cut, results_edited,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", [collection.update, collection.collect])
def test_the_index_equals_the_folders_after_every_change(outputs, change, how):
    change(outputs)
    how(outputs)
    assert results(outputs) == written_from_folders(outputs)
    before = results(outputs)
    how(outputs)
    assert results(outputs) == before
    pd.testing.assert_frame_equal(
        collection.collect(outputs), run_files.read_summary(outputs / "results.csv"), check_exact=True
    )


def test_changes_one_after_another(outputs):
    """Each finds what the last one has left."""
    for change in (new_first, renamed, longer, touched, several_more, results_cut, new_keys, new_last, trained_again):
        change(outputs)
        collection.update(outputs)
        assert results(outputs) == written_from_folders(outputs), change


@pytest.mark.parametrize("read_at_once", [1, 5, 100])
def test_changes_are_kept_piece_by_piece(outputs, read_at_once):
    """A first index of many runs does not hold them all in memory: pieces of the size asked for, and the same file,
    also where a copy, its original and a run that is gone are in different pieces."""
    first, second, third = sorted(outputs.glob("runs/ewc/*"))[:3]
    shutil.copytree(first, first.with_name("digits-0.bak"))
    shutil.copytree(second, outputs / "runs" / "si" / "z-copy")
    shutil.rmtree(third)
    edited(second / "summary.csv", "größe", "anders")
    with index.opened(outputs / index.NAME) as open_index:
        pieces = list(collection.changes(open_index, outputs, (), None, read_at_once))
        assert max(len(piece.found) for piece in pieces) == min(read_at_once, 3)
        assert sum(len(piece.found) for piece in pieces) == 3 and sum(len(piece.gone) for piece in pieces) == 1
        anything, left_out = collection.apply(open_index, outputs, (), None, read_at_once)
    assert anything and [copy.name for copy, _ in left_out.copies] == ["digits-0.bak", "z-copy"]
    written = results(outputs)
    (outputs / index.NAME).unlink()
    collection.update(outputs, say=lambda _: None)
    assert results(outputs) == written


def test_folders_of_runs_are_found(outputs):
    """With the index, and without it by their names; a run of which only a row is left has none."""
    shutil.move(outputs / "runs/ewc/digits-0", outputs / "runs/ewc/digits-0000000000")
    collection.update(outputs)
    runs = {"0000000000": outputs / "runs/ewc/digits-0000000000", "3000000001": outputs / "runs/si/digits-1"}
    assert collection.folders(outputs, [*runs, "unknown"]) == runs
    (outputs / index.NAME).unlink()
    assert collection.folders(outputs, [*runs, "unknown"]) == {"0000000000": runs["0000000000"]}


def test_an_update_does_not_read_what_it_knows(outputs, monkeypatch):
    """And changes the file without reading the index's rows: a summary that cannot be read is not opened."""
    made = placed(outputs, "ewc", 40)
    time.sleep(collection.COARSE_CLOCK / 1e9 + 0.1)  # until the stamps of all files are sure
    collection.update(outputs)
    inode = (outputs / "results.csv").stat().st_ino
    new_last(outputs)
    expected = written_from_folders(outputs)
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: opened.append(path) or original(path, *args, **kw))
    collection.update(outputs, [made.directory])
    assert [path.parent.name for path in opened if path.name == "summary.csv"] == ["digits-99"]
    assert results(outputs) == expected and (outputs / "results.csv").stat().st_ino != inode


def test_known_summaries_are_checked_in_turn(outputs):
    """A few at every update, and the run that has just ended at once; all of them for a report."""
    longer(outputs)
    trained_again(outputs)
    collection.update(outputs, [outputs / "runs/si/digits-2"], checked=0)
    table = run_files.read_summary(outputs / "results.csv").set_index("run")
    assert table.at["3000000002", "train_seconds"] == 9 and (table["status"] == "done").all()
    updates = 0
    while results(outputs) != written_from_folders(outputs):
        collection.update(outputs, checked=5)
        updates += 1
    assert 1 <= updates <= 3
    same_length(outputs)
    collection.collect(outputs)
    assert results(outputs) == written_from_folders(outputs)


def test_the_turn_reaches_every_summary(outputs):
    with index.opened(outputs / index.NAME) as opened:
        turns = [[place for place, _ in opened.stamps(5)] for _ in range(12)]
        everything = {place for place, _ in opened.stamps(None)}
        assert all(len(turn) == len(set(turn)) == 5 for turn in turns)
        counts = [sum(place in turn for turn in turns) for place in everything]
        assert counts == [5] * 12
        assert {place for place, _ in opened.stamps(100)} == everything


def test_a_table_of_many_rows_has_one_kind_of_cell_in_a_column(tmp_path):
    """pandas reads large files in pieces, and would make some cells numbers and others text."""
    made = placed(tmp_path, "ewc", 0, values=VALUES | {"knob": "5"})
    text = (made.directory / "summary.csv").read_text()
    for seed in range(1, 3):
        placed(tmp_path, "ewc", seed, values=VALUES | {"knob": "auto", "seed": seed})
    header, row = text.splitlines()
    big = "\n".join([header, *[row] * 9000, *(row.replace(",5,", ",auto,"),) * 9000, ""])
    (tmp_path / "big.csv").write_text(big)
    assert {type(cell) for cell in run_files.read_summary(tmp_path / "big.csv")["knob"]} == {str}


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("name", ["{}.bak", "{} (copy)", "Copy of {}", "../ewc_old/{}", "0", "{}-2", "zz", ".{}"])
def test_a_copied_folder_is_left_out_and_named(tmp_path, said, name):
    """Whatever its name, and whichever is first: the folder with the run's own name counts."""
    made = placed(tmp_path, "ewc", 3)
    proper = made.directory.rename(made.directory.with_name(f"digits-seed=3-{made.run}"))
    placed(tmp_path, "finetune", 3)
    collection.update(tmp_path, say=said.append)
    alone = results(tmp_path)
    assert said == []
    copy = (proper.parent / name.format(proper.name)).resolve()
    shutil.copytree(proper, copy)
    edited(copy / "summary.csv", "1.25", "1000.25")
    table = collection.collect(tmp_path, say=said.append)
    assert results(tmp_path) == alone and len(table) == 2
    assert len(said) == 1 and str(copy) in said[0] and proper.name in said[0]
    (tmp_path / index.NAME).unlink()
    collection.update(tmp_path)
    assert results(tmp_path) == alone
    shutil.rmtree(proper)
    collection.update(tmp_path)
    assert b"1000.25" in results(tmp_path), "the copy is all that is left of the run"
    shutil.copytree(copy, proper)
    edited(proper / "summary.csv", "1000.25", "7.25")
    collection.update(tmp_path)
    assert b",7.25," in results(tmp_path) and b"1000.25" not in results(tmp_path)


def test_many_copies_are_one_sentence(outputs, said):
    for seed in range(4):
        for name in ("a", "b"):
            shutil.copytree(outputs / f"runs/ewc/digits-{seed}", outputs / f"runs/ewc/digits-{seed}.{name}")
    assert len(collection.collect(outputs, say=said.append)) == 12
    assert len(said) == 1 and "8 folders" in said[0] and "and 5 more" in said[0]


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


# ---------------------------------------------------------------- one row of many


def test_the_first_row_that_is_done(outputs):
    """With the index and without it: the same row, or none."""
    placed(outputs, "joint", 1, status="diverged")
    placed(outputs, "joint", 12, values=VALUES | {"strategy": "joint", "seed": 1})
    placed(outputs, "joint", 11, values=VALUES | {"strategy": "joint", "seed": 1}, setup="another")
    collection.update(outputs)
    asked = [
        ("joint", "0000000007", "1"),
        ("joint", "0000000007", "0"),
        ("ewc", "another", "1"),
        ("si", "0000000007", "2"),
    ]
    with_index = [collection.first_done(outputs, *one) for one in asked]
    (outputs / index.NAME).unlink()
    without = [collection.first_done(outputs, *one) for one in asked]
    assert [row is None for row in with_index] == [row is None for row in without] == [False, True, True, False]
    for one, other in zip(with_index, without, strict=True):
        assert one is None or one["run"] == other["run"]
        assert one is None or one["average_accuracy"] == other["average_accuracy"]
    assert with_index[0]["run"] == "2000000012"


def test_a_row_is_not_asked_of_an_index_that_is_behind(outputs):
    """results.csv was written without the index, which does not know its rows."""
    made = placed(outputs, "joint", 1)
    collection.update_without_index(outputs)
    assert collection.first_done(outputs, "joint", made.setup, "1")["run"] == made.run


def test_files_beside_the_results(outputs):
    names = {path.name for path in outputs.iterdir()} - {collection.LOCK}
    assert names == {"runs", "results.csv", index.NAME}
    assert stat.S_IMODE((outputs / "results.csv").stat().st_mode) & 0o600 == 0o600


def test_a_torn_summary_is_left_out_and_named(outputs):
    path = outputs / "runs/ewc/digits-1/summary.csv"
    whole, before = path.read_bytes(), results(outputs)
    os.truncate(path, 300)
    for _ in range(2):  # in every update, and not only when it is noticed first
        said: list[str] = []
        collection.update(outputs, say=said.append)
        (sentence,) = said
        assert sentence.startswith(f"left out: {path} cannot be read")
        assert results(outputs).count(b"\n") == before.count(b"\n") - 1
    path.write_bytes(whole)
    collection.update(outputs)
    assert results(outputs) == before
    path.unlink()
    collection.update(outputs)
    assert results(outputs) == written_from_folders(outputs)


def test_lines_are_rendered_as_pandas_does(tmp_path):
    cells = ["", " a", 'b"c', "d,e", "f\ng", "h\ri", "'", "1e5", "größe", "=1", '""', "\t"]
    names = [f"c{i}" for i in range(len(cells))]
    made = results_file.Lines(names)
    expected = pd.DataFrame([cells], columns=names, dtype=object).to_csv(index=False, lineterminator="\n")
    assert (made.header() + made.line(cells)).decode() == expected
