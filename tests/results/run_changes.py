"""Runs below a folder whose results.csv is kept, and what may happen to them."""

import csv
import os
import shutil
from pathlib import Path

from helpers import summaries
from outcomes import VALUES, placed

from clrun.results import collection, tables
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL


def written_from_folders(outputs: Path) -> bytes:
    """results.csv as a reader of all folders writes it, without an index and without copies among the folders."""
    rows = []
    for path in summaries(outputs=outputs):
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


def indexed(outputs: Path) -> Path:
    """Put twelve runs of three strategies with different keys below a folder, and make the index. Return the folder."""
    for seed in range(4):
        placed(outputs, "ewc", seed, warnings=['a "quoted", one', "größe"])
        placed(outputs, "finetune", seed, values=VALUES | {"strategy": "finetune", "seed": seed, "own": seed})
        placed(outputs, "si", seed, values=VALUES | {"strategy": "si", "seed": seed, "c": 0.1 * seed})
    collection.update(outputs)
    assert results(outputs) == written_from_folders(outputs)
    return outputs


# ---------------------------------------------------------------- what happens to them


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
