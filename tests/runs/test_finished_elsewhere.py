"""Runs that another process finishes or trains again meanwhile, and what is left beside the files of a finished run."""

import errno
import os

import pandas as pd
import pytest
from helpers import hold, summaries

from clrun.runs import checkpoint, show, train

SHORT = ("iterations=6", "model.widths=[12,8]", "device=cpu")


def test_what_another_process_has_finished_is_not_trained_again(prepared_of):
    """It may have ended between the sweep's look and the claim."""
    prepared = prepared_of(*SHORT)
    train.train_run(prepared, quiet=True)
    before = (prepared.directory / "summary.csv").stat().st_mtime_ns
    (status,) = train.train_runs([prepared], trainer=lambda *_: pytest.fail("trained again"))
    assert status == "done by another process"
    assert (prepared.directory / "summary.csv").stat().st_mtime_ns == before


def test_what_a_killed_process_left_beside_its_summary_goes_with_the_claim(prepared_of):
    prepared = prepared_of(*SHORT)
    train.train_run(prepared, quiet=True)
    left = prepared.directory / "checkpoint.safetensors"
    left.write_text("left")
    os.utime(left, (0, 0))
    assert train.train_runs([prepared], quiet=True) == ["done by another process"] and not left.exists()


def test_a_checkpoint_that_cannot_be_removed_is_no_failure_of_the_run(prepared_of, monkeypatch, capsys):
    def refused(directory, guard):
        raise PermissionError(errno.EACCES, "Permission denied", str(directory / "checkpoint.safetensors"))

    monkeypatch.setattr(checkpoint, "remove", refused)
    prepared = prepared_of(*SHORT)
    assert train.train_runs([prepared], quiet=True) == ["done"]
    assert prepared.finished and not (prepared.directory / "failed.txt").exists()
    assert "its checkpoint could not be removed ([Errno 13] Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_a_run_that_another_process_trains_again_is_not_called_damaged(clrun, empty_folder, neighbour, sweep):
    """Its tables are those of the new training, and its summary.csv is of the earlier one."""
    assert clrun(*SHORT, "outputs=shared")[0] == 0
    (ended,) = summaries(outputs="shared")
    matrix = pd.read_csv(ended.parent / "accuracy_matrix.csv")
    matrix.iloc[3:, 1:] = float("nan")
    matrix.to_csv(ended.parent / "accuracy_matrix.csv", index=False)
    hold(ended.parent, neighbour)
    code, out, err = clrun(*sweep, *SHORT, "outputs=shared")
    assert code == 1 and f"process {neighbour.pid} on" in err and "is training this run again" in err
    assert "elete the folder" not in out + err
    (ended.parent / "lock.json").unlink()
    code, out, err = clrun(*sweep, *SHORT, "outputs=shared")
    assert code == 1 and "elete the folder" in err and "it has no accuracy after the last task" in err


def test_a_command_says_that_another_process_was_faster(clrun, empty_folder, monkeypatch):
    monkeypatch.setattr(show, "warn", lambda runs: train.train_run(runs[0], quiet=True))  # after the command's look
    code, out, _ = clrun(*SHORT, "outputs=shared")
    (ended,) = summaries(outputs="shared")
    assert code == 0 and f"Done by another process meanwhile: {ended.parent} (rerun=true trains it again)" in out
    assert "average accuracy" in out  # and shows it
