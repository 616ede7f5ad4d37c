"""results.csv: always what the folders of runs say, whatever happens to either."""

import os
import shutil
import stat
import time
from pathlib import Path

import pandas as pd
import pytest
from outcomes import SUMMARY, VALUES, lines, placed
from run_changes import (
    CHANGES,
    edited,
    indexed,
    longer,
    new_first,
    new_keys,
    new_last,
    renamed,
    results,
    results_cut,
    same_length,
    several_more,
    touched,
    trained_again,
    written_from_folders,
)  # fmt: skip

from clrun.results import collection, index, results_file, run_files


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outputs(tmp_path) -> Path:
    return indexed(tmp_path)


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
