"""docs/results/reproduction.md: its numbers, tolerances and verdicts follow from the rows and from each other."""

import re
import statistics

import pandas as pd
import pytest

from clrun.commands.verify import VERDICT, Case, Finding, rows
from clrun.system.paths import CONF

RESULTS = CONF.parent / "docs" / "results"
PAGE = RESULTS / "reproduction.md"
ROUNDING = 0.006  # of two decimals
OF_ROUNDED = 0.015  # a mean, or its error, of numbers that are rounded themselves

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ lies in a checkout alone")


def cells(heading: str) -> list[list[str]]:
    """The lines of the table below a heading, as cells."""
    section = PAGE.read_text(encoding="utf-8").partition(f"### {heading}\n")[2].partition("\n### ")[0]
    lines = re.findall(r"^\| (\d+ \| .*) \|$", section, re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def finding(row: str, case: Case, mean: float, error: float, n: int) -> Finding:
    return Finding(row, "", case, "", mean, error, n, 0.0, "")


def told(found: Finding) -> tuple[str, str, str]:
    """What the page says of a case: the published number, what is allowed, and the verdict."""
    error = f" ± {found.case.se:.2f}" if found.case.se > 0 else ""
    verdict = f"**{found.verdict}**" if found.verdict.startswith("out") else found.verdict
    return f"{found.case.target:.2f}{error}", f"± {found.allowed:.2f}", verdict


def possible(row: str, published: str) -> list[Case]:
    """The cases of a row with this published number, of which several may have the same."""
    return [case for case in rows()[row].cases.values() if f"{case.target:.2f}" == published.split()[0]]


QUICK = cells("Quick checks on a CPU") if PAGE.is_file() else []
FINAL = cells("The verdict, with 20 seeds") if PAGE.is_file() else []


def test_both_tables_are_found():
    assert len(QUICK) > 90
    assert len(FINAL) > 30
    assert {line[0] for line in QUICK + FINAL} <= set(rows())


@pytest.mark.parametrize("line", QUICK, ids=lambda line: "-".join(line[:3]))
def test_a_quick_check_follows_from_its_numbers(line):
    row, _, _, listed, mean, error, n, published, allowed, verdict = line[:10]
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", listed)]
    if "five times" in listed:
        numbers *= 5
    spread = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    assert len(numbers) == int(n)
    assert float(mean) == pytest.approx(statistics.mean(numbers), abs=OF_ROUNDED)
    assert float(error or "nan") == pytest.approx(spread, abs=OF_ROUNDED, nan_ok=True)
    candidates = [
        finding(row, case, statistics.mean(numbers), spread, len(numbers)) for case in possible(row, published)
    ]
    assert (published, allowed, verdict) in [told(candidate) for candidate in candidates]


@pytest.mark.parametrize("line", FINAL, ids=lambda line: "-".join(line[:3]))
def test_a_verdict_follows_from_the_seeds_in_the_file(line):
    row, _, _, mean, error, n, ends, published, allowed, verdict = line[:10]
    measured = pd.read_csv(RESULTS / "reproduction_cuda.csv", dtype={"row": str})
    of_cases = {name: group["accuracy"] for name, group in measured[measured["row"] == row].groupby("case")}
    told_of = []
    for name, case in rows()[row].cases.items():
        seeds = of_cases.get(name)
        if seeds is not None and float(mean) == pytest.approx(seeds.mean(), abs=ROUNDING):
            assert f"{seeds.min():.2f} to {seeds.max():.2f}" == ends
            assert len(seeds) == int(n) >= VERDICT
            assert float(error) == pytest.approx(seeds.sem(), abs=ROUNDING)
            told_of.append(told(finding(row, case, seeds.mean(), seeds.sem(), len(seeds))))
    assert (published, allowed, verdict) in told_of
