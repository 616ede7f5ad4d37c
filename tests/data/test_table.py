"""A table of the user's as a data set: what becomes of its columns, what a run of it is, and what is refused."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import summaries
from test_bad_input import refused, written

from clrun.config.check_keys import last_of_each
from clrun.data import table
from clrun.data.batches import make_data
from clrun.runs.prepare import SharedImages
from clrun.system.errors import UsageError

pytestmark = pytest.mark.usefixtures("empty_folder")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "plots=false", "tasks=2", "scenario=class")
TYPED = ("dataset=table", "dataset.file=my.csv", "dataset.label=animal")
HELD = (*TYPED, "dataset.test_fraction=0.25")


def frame(n: int = 48, **changed) -> pd.DataFrame:
    """Four animals, with numbers, a text, a boolean, a constant, and a column that says what is for testing."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "weight": random.normal(40, 9, n),
            "year": 1_700_000_000 + np.arange(n),
            "town": np.array(["Rom", "Oslo", "Bern"])[np.arange(n) % 3],
            "wild": np.arange(n) % 2 == 0,
            "same": 7,
            "animal": np.array(["cat", "dog", "owl", "ant"])[np.arange(n) // 3 % 4],
            "test": (np.arange(n) >= n - 12).astype(int),
        }
        | changed
    )


def write(found: pd.DataFrame, path: str = "my.csv", **options) -> None:
    found.to_csv(path, index=False, **options)


def read(found: pd.DataFrame, **typed):
    write(found)
    return table.read(table.Typed("my.csv", "animal", **{"test": "test", **typed}))


def test_what_becomes_of_each_column():
    found, made = frame(), read(frame())
    train = found[found.test == 0]
    assert made.x.shape == (48, 7) and made.x.dtype == np.float32 and made.train == 36 and made.standardised
    for k, name in enumerate(["weight", "year"]):
        assert np.allclose(made.x[:, k], (found[name] - train[name].mean()) / train[name].std(ddof=0), atol=1e-5)
    assert np.array_equal(made.x[:, 2:5], [[t == name for name in ("Bern", "Oslo", "Rom")] for t in found.town])
    assert np.array_equal(made.x[:, 5], found.wild) and not made.x[:, 6].any()
    assert made.classes == ("ant", "cat", "dog", "owl") and [made.classes[k] for k in made.y] == list(found.animal)


def test_test_rows_teach_nothing_and_unseen_categories_are_said(capsys):
    found = frame()
    found.loc[40:, "weight"] = 1e6
    found.loc[47, "town"] = "Ur"
    made, before = read(found), read(frame())
    assert np.array_equal(made.x[:36], before.x[:36]) and made.x[40, 0] > 1000
    assert not made.x[47, 2:5].any() and made.x[46, 2:5].any()
    assert "column town: 1 test row has a value that no training row has (Ur)" in capsys.readouterr().err


def test_missing_values_become_means_and_a_category(capsys):
    found = frame()
    found.loc[[3, 45], "weight"] = None
    found.loc[[4, 46], "town"] = None
    found["wild"] = found.wild.astype(object)
    found.loc[5, "wild"] = None
    made = read(found, missing="mean")
    assert made.x.shape == (48, 8) and not made.x[[3, 45], 0].any()
    assert made.x[[4, 46], 2:6].tolist() == [[0, 0, 0, 1]] * 2
    assert np.isclose(made.x[5, 6], 18 / 35)
    assert "5 missing values replaced (columns: weight, town, wild)" in capsys.readouterr().err
    found.loc[4, "town"] = "Rom"  # now no training row is without a town
    assert not read(found, missing="mean").x[46, 2:5].any()
    assert "column town: 1 test row has a value that no training row has ((missing))" in capsys.readouterr().err


def test_numbers_that_are_categories_and_columns_that_are_ignored():
    made = read(frame(code=np.arange(48) % 5), categories=("code",), ignore=("year", "weight"))
    assert made.x.shape == (48, 3 + 1 + 1 + 5) and np.array_equal(made.x[:, 5:], np.eye(5)[np.arange(48) % 5])


@pytest.mark.parametrize("words", [("0", "1"), ("false", "TRUE"), ("train", "test")])
def test_what_is_for_testing_in_words(words):
    assert read(frame(test=np.array(words)[(np.arange(48) >= 36).astype(int)])).train == 36


def test_a_share_is_held_out_of_every_class_and_domain():
    made = read(frame(), test=None, test_fraction=0.25, domain="town", ignore=("test",))
    assert made.train == 36 and made.domains == ("Bern", "Oslo", "Rom")
    cells = np.bincount(made.y[36:] + 4 * made.domain[36:], minlength=12)
    assert cells.tolist() == [1] * 12
    again = read(frame(), test=None, test_fraction=0.25, domain="town", ignore=("test",))
    assert np.array_equal(made.x, again.x)


@pytest.mark.parametrize(
    "labels, names",
    [([10, 9, 2], ("2", "9", "10")), ([True, False, True], ("False", "True")), ([2.0, 1.0, 10.0], ("1", "2", "10"))],
)
def test_names_of_classes(labels, names):
    assert read(frame(animal=np.array(labels)[np.arange(48) % 3])).classes == names


def test_separators_decimals_quotes_and_a_byte_order_mark():
    plain = read(frame())
    for path, separator, decimal in (("a.csv", "semicolon", "comma"), ("a.tsv", "tab", "point")):
        sep, point = table.SEPARATORS[separator], table.DECIMALS[decimal]
        write(frame(), path, sep=sep, decimal=point, encoding="utf-8-sig", quoting=2)
        made = table.read(table.Typed(path, "animal", "test", separator=separator, decimal=decimal))
        assert np.array_equal(made.x, plain.x)


def test_parquet_is_the_same_table():
    pytest.importorskip("pyarrow")
    plain, found = read(frame()), frame()
    found["town"] = found.town.astype("category")
    found["wild"] = found.wild.astype("boolean")
    found["same"] = found["same"].astype("Int8")
    found.to_parquet("my.parquet")
    made = table.read(table.Typed("my.parquet", "animal", "test"))
    assert np.array_equal(made.x, plain.x) and np.array_equal(made.y, plain.y) and made.classes == plain.classes
    found["when"] = pd.Timestamp("2020-01-01")
    found.to_parquet("my.parquet")
    with pytest.raises(UsageError, match=r"column when holds datetime64.* leave it out by dataset.ignore=.when."):
        table.read(table.Typed("my.parquet", "animal", "test"))
    Path("my.parquet").write_bytes(Path("my.parquet").read_bytes()[:-50])
    with pytest.raises(UsageError, match="the file cannot be read"):
        table.read(table.Typed("my.parquet", "animal", "test"))


def test_a_run_is_known_by_its_numbers(clrun, prepared_of):
    write(frame())
    code, _, err = clrun(*TYPED, "dataset.test=test", *SHORT, "split.classes=[[cat,dog],[owl,ant]]")
    assert code == 0, err
    (summary,) = summaries()
    same = (*TYPED, "dataset.test=test", "dataset.missing=mean", "dataset.categories=[]", *SHORT)
    write(frame(), "other.csv", sep=";")
    again = ("dataset.file=other.csv", "dataset.separator=semicolon", "split.classes=[[1,2],[3,0]]")
    assert prepared_of(*same, *again).id == summary.parent.name[-10:]
    assert prepared_of(*same, *again[:2], "split.classes=[[0,1],[2,3]]").id != summary.parent.name[-10:]
    ids = [
        prepared_of(*HELD, f"dataset.ignore=[{ignored}]", *SHORT).id for ignored in ("test", "test,year", "test,town")
    ]
    ids.append(prepared_of(*TYPED, "dataset.ignore=[test]", "dataset.test_fraction=0.5", *SHORT).id)
    assert len(set(ids)) == 4


def test_one_hot_columns_stay_0_and_1(prepared_of):
    write(frame())
    run = prepared_of(*TYPED, "dataset.test=test", *SHORT)
    data = make_data(run.images, run.settings, 2, 4, torch.device("cpu"), torch.float64)
    tables, rows = run.stream.tables, torch.arange(48)
    assert torch.equal(data.inputs(tables, rows, torch.zeros(48, dtype=torch.long)).float(), run.images.x)


def test_the_same_numbers_as_arrays_are_other_inputs(settings_of):
    """What is standardised already shares no memory with equal numbers that are yet to be."""
    write(frame())
    shared = SharedImages()
    typed = settings_of(*TYPED, "dataset.test=test", *SHORT).values
    first = shared.load(typed)
    np.savez(
        "my.npz", x_train=first.x[:36], y_train=first.y[:36], x_test=first.x[36:], y_test=first.y[36:],
        names=np.array(first.classes),
    )  # fmt: skip
    other = shared.load(settings_of("dataset=arrays", "dataset.file=my.npz", *SHORT).values)
    assert torch.equal(first.x, other.x) and first.standardised and not other.standardised


def test_domains_of_a_table(clrun):
    write(frame())
    typed = [text for text in SHORT if text not in ("tasks=2", "scenario=class")]
    code, _, err = clrun(
        *HELD, "dataset.ignore=[test]", "dataset.domain=town", "split=domains", "scenario=domain", *typed
    )
    assert code == 0, err
    assert len(list(Path("outputs").glob("runs/*/table-domains-domain-3tasks-*/summary.csv"))) == 1


def test_a_sweep_shows_what_was_loaded(clrun):
    write(frame())
    code, out, err = clrun("-m", *TYPED, "dataset.ignore=[test]", "dataset.test_fraction=0.25,0.5", *SHORT)
    assert code == 0 and "test_fraction" in out, err


# ---------------------------------------------------------------- wrong tables


def holding(*typed: str, **changed) -> Callable[[], tuple[str, ...]]:
    """Return a function that writes a table in which columns are changed, and returns what is typed."""

    def made() -> tuple[str, ...]:
        write(frame(**changed))
        return *TYPED, *(typed or ("dataset.test=test",))

    return made


def text(content: bytes | str, *typed: str, path: str = "my.csv") -> Callable[[], tuple[str, ...]]:
    """Return a function that writes a file, and returns what is typed."""

    def made() -> tuple[str, ...]:
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return *TYPED, f"dataset.file={path}", "dataset.test_fraction=0.5", *typed

    return made


def folder() -> tuple[str, ...]:
    Path("my.csv").mkdir()
    return HELD


def at(name: str, row: int, value) -> Callable[[], tuple[str, ...]]:
    """Return a function that writes a table with another value in one place."""

    def made() -> tuple[str, ...]:
        found = frame().astype({name: object})
        found.loc[row, name] = value
        write(found)
        return *TYPED, "dataset.test=test"

    return made


def with_index() -> tuple[str, ...]:
    frame().to_csv("my.csv")
    return *TYPED, "dataset.test=test"


ROWS = "a,animal\n" + "1,cat\n2,dog\n" * 4
WORDS = np.array([f"n{k}" for k in range(48)])

WRONG_TABLES = {
    "a share as a column": (
        holding("dataset.test=2e-1"),
        "dataset.test=0.2: must be a text; for a share type dataset.test_fraction=0.2",
    ),
    "none named": (lambda: ("dataset=table",), "dataset=table needs your file and the column of the classes"),
    "absent": (lambda: HELD, "dataset.file=my.csv does not exist; name your file, .csv or .parquet"),
    "a folder": (folder, "dataset.file=my.csv is a folder; name a file in it"),
    "another kind": (text(ROWS, path="my.xlsx"), "ends in none of .csv, .tsv, .parquet; save the table as CSV"),
    "empty": (text(""), "its first line is empty; write the names of the columns there"),
    "names alone": (text("a,animal\n"), "there is no row below the names of the columns"),
    "latin-1": (text("a,animal\n1,Bär\n2,Hund\n".encode("latin-1")), "it is no text in UTF-8; save the table"),
    "latin-1 names": (text("ä,animal\n1,cat\n".encode("latin-1")), "it is no text in UTF-8; save the table"),
    "utf-16": (text(ROWS.encode("utf-16")), "it is no text in UTF-8; save the table"),
    "binary": (text(b"PK\x03\x04\0\0\n\0,1"), "it is no text in UTF-8; save the table"),
    "semicolons": (text(ROWS.replace(",", ";")), "no comma but semicolons between the names; type dataset.separator="),
    "tabs": (text(ROWS.replace(",", "\t")), "no comma but tabs between the names; type dataset.separator=tab"),
    "commas": (
        text(ROWS, "dataset.separator=tab"),
        "no tab but commas between the names; type dataset.separator=comma",
    ),
    "decimal commas": (
        text("a;animal\n" + "1,5;cat\n2,5;dog\n" * 4, "dataset.separator=semicolon"),
        "column a has numbers such as 1,5; type dataset.decimal=comma",
    ),
    "a long row": (text(ROWS + "1,cat,3\n"), "its rows are of different lengths (Expected 2 fields in line 10, saw 3)"),
    "long rows": (text("a,animal\n" + "1,cat,3\n2,dog,4\n" * 4), "its rows are of different lengths (Length of header"),
    "a short row": (text(ROWS + "1\n"), "column animal is empty in row 9; fill it in, or leave the row out"),
    "a name twice": (text(ROWS.replace("a,animal", "animal,animal")), "two columns have the name animal"),
    "an index": (with_index, "column 1 has no name, as where pandas wrote its index; write the table by"),
    "no label": (
        lambda: (holding()(), ("dataset=table", "dataset.file=my.csv", "dataset.test=test"))[1],
        "type the column of the classes, dataset.label=COLUMN; the columns are weight, year, town, wild, same, animal",
    ),
    "a label that is not there": (holding("dataset.test=test", "dataset.label=animl"), "no such column; did you mean"),
    "no names": (text("1,2,cat\n" * 9, "dataset.label=animal"), "The first row must hold the names of the columns"),
    "nothing for testing": (
        lambda: (holding()(), TYPED)[1],
        "which rows are for testing? Hold some out by dataset.test_fraction=0.2",
    ),
    "two tests": (holding("dataset.test=test", "dataset.test_fraction=0.2"), "both say which rows are for testing"),
    "a test that is not there": (holding("dataset.test=tset"), "dataset.test=tset: there is no such column; did you"),
    "a test of words": (holding("dataset.test=town"), "column town of dataset.test holds Rom in row 1; write 1, true"),
    "a test of 2": (at("test", 4, 2), "column test of dataset.test holds 2 in row 5; write 1, true or test"),
    "a test of nothing": (at("test", 4, None), "column test of dataset.test holds nothing in row 5"),
    "all for testing": (holding(test=1), "class ant of column animal has no training row"),
    "a class untested": (
        holding(test=(np.arange(48) // 3 % 4 == 1).astype(int)),
        "class dog of column animal has no training row; each needs some in both parts",
    ),
    "few rows": (
        text("a,animal\n" + "1,cat\n2,dog\n" * 4 + "3,owl\n"),
        "class owl of column animal has too few rows to split: dataset.test_fraction=0.5 of 1",
    ),
    "one class": (holding(animal="cat"), "column animal has the single value cat; two or more are needed"),
    "no class": (at("animal", 2, None), "column animal is empty in row 3; fill it in"),
    "fractions as classes": (
        holding("dataset.test=test", "dataset.label=weight"),
        "which names no class; write texts or whole numbers",
    ),
    "a class without letters": (
        at("animal", 2, "a\tb"),
        "column animal has the value 'a\\tb', which cannot be printed",
    ),
    "missing": (at("weight", 6, None), "1 value is missing, the first in column weight, row 7 (columns: weight)"),
    "missing text": (at("town", 6, None), "fill them in, or type dataset.missing=mean"),
    "an empty column": (
        holding("dataset.test=test", "dataset.missing=mean", same=None),
        "column same has no value in any training row; leave it out by dataset.ignore=[same]",
    ),
    "infinity": (at("weight", 6, "inf"), "column weight is inf in row 7; write a finite number"),
    "large numbers": (at("weight", 2, 1e308), "column weight has a number too large to train on, 1e+308"),
    "a word among numbers": (
        at("weight", 6, "?"),
        "column weight holds numbers but '?' in row 7; leave the value empty",
    ),
    "names of rows": (holding(town=WORDS), "column town has 36 different values in 36 training rows, and each would"),
    "a column in two parts": (
        holding("dataset.test=test", "dataset.domain=animal"),
        "dataset.label and dataset.domain both name the column animal",
    ),
    "ignored label": (holding("dataset.test=test", "dataset.ignore=[animal]"), "dataset.label and dataset.ignore both"),
    "an unknown ignored": (
        holding("dataset.test=test", "dataset.ignore=[yaer]"),
        "dataset.ignore=yaer: there is no such",
    ),
    "no input": (text("animal\n" + "cat\ndog\n" * 4), "no column is left as an input beside animal"),
    "a domain untested": (
        holding("dataset.test=test", "dataset.domain=place", place=np.where(np.arange(48) < 5, "sea", "lab")),
        "domain sea of column place has no test row",
    ),
    "no domains": (holding("dataset.test=test", "split=domains"), "by dataset.domain=COLUMN of dataset=table"),
    "rotated": (holding("dataset.test=test", "split=rotated"), "split=rotated needs pictures"),
    "another missing": (holding("dataset.test=test", "dataset.missing=median"), "must be one of refuse, mean"),
}


@pytest.mark.parametrize("make, said", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_wrong_tables(clrun, make, said):
    typed, short = make(), [text for text in SHORT if text != "tasks=2"]
    before = written()
    refused(clrun(*last_of_each([*typed, *short])), said, before)


def test_parquet_without_pyarrow(clrun):
    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    make = text(b"PAR1", path="my.parquet")
    typed = make()
    before = written()
    refused(clrun(*last_of_each([*typed, *SHORT])), "which is not installed; type pip install 'clrun[parquet]'", before)
