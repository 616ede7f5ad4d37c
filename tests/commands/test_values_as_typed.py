"""A value reads the same wherever it is printed, and what is printed of it can be typed."""

import sys
from pathlib import Path

import pytest

from clrun.commands import report

pytestmark = pytest.mark.usefixtures("empty_folder")

QUICK = ("strategy=ewc", "iterations=1", "tasks=2", "model.widths=[4]", "plots=false")

# what is typed, and how it is printed
VALUES = {
    "lambda=1234567": "lambda=1234567",
    "lambda=1e-7": "lambda=1e-07",
    "lambda=0.30000000000000004": "lambda=0.30000000000000004",  # 0.1 + 0.2
    "lambda=1e22": "lambda=1e+22",
    "online=true": "online=true",
    "fisher_samples=20000000": "fisher_samples=20000000",
}


def reported(capfd, monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["clrun-report", "outputs", "--no-plots", *arguments])
    with pytest.raises(SystemExit):
        report.cli()
    return "\n".join(capfd.readouterr())


def cells(table: str) -> list[str]:
    return [cell for line in table.splitlines() for cell in line.split()]


@pytest.mark.parametrize(("typed", "printed"), VALUES.items())
def test_a_value_reads_the_same_everywhere(clrun, capfd, monkeypatch, typed, printed):
    key, _, text = printed.partition("=")
    other = "fisher_samples=null" if key == "fisher_samples" else f"{key}={'false' if key == 'online' else '3'}"
    for argument in (typed, other):
        code, heading, said = clrun(*QUICK, argument)
        assert code == 0, said
        if argument == typed:
            assert f" {printed} " in heading.replace("·", " ").replace("  ", " ")  # of the run's tables
    folders = [path.name for path in Path("outputs/runs/ewc").iterdir()]
    assert any(f"-{printed}-" in name for name in folders), folders
    code, table, _ = clrun("-m", *QUICK, f"{typed},{other.partition('=')[2]}")
    assert {text, other.partition("=")[2]} <= set(cells(table))  # of the sweep
    assert {text, other.partition("=")[2]} <= set(cells(reported(capfd, monkeypatch)))
    said = reported(capfd, monkeypatch, "--compare", typed, other)
    assert f"ewc {printed} minus ewc {other}:" in said


def test_lists_read_the_same_everywhere(clrun, capfd, monkeypatch):
    arguments = [argument for argument in QUICK if not argument.startswith("model")]
    code, table, said = clrun("-m", *arguments, "model.widths=[40,40],[8,8]")
    assert code == 0, said
    assert {"[40,40]", "[8,8]"} <= set(cells(table))
    said = reported(capfd, monkeypatch)
    assert "[40,40]" in said and "[40, 40]" not in said
    said = reported(capfd, monkeypatch, "--compare", "model.widths=[40,40]", "model.widths=[8,8]")
    assert "ewc model.widths=[40,40] minus ewc model.widths=[8,8]:" in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lambda=-1234567", "lambda=-1234567: must be"),
        ("lambda=-1e-7", "lambda=-1e-07: must be"),
        ("lambda=-0.30000000000000004", "lambda=-0.30000000000000004: must be"),
        ("lambda=-1e22", "lambda=-1e+22: must be"),
        ("lambda=true", "lambda=true: must be"),
        ("lambda=[400,400]", "lambda=[400,400]: must be"),
        ("gamma=0.30000000000000004", "gamma=0.30000000000000004 is read by online EWC alone"),
        ("online=1e22", "online=1e+22: must be"),
    ],
)
def test_a_value_reads_the_same_in_a_refusal(clrun, typed, said):
    code, _, error = clrun(*QUICK, typed)
    assert code == 2 and said in error
