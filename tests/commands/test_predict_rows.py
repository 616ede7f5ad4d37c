"""clrun-predict for rows: new samples of arrays and of tables, without the data of the run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clrun.runs import network_file
from clrun.runs.answering import answering
from clrun.runs.train import train_run

SMALL = ("model.widths=[16]", "device=cpu", "iterations=30", "tasks=2", "pictures=false", "scenario=class")
KINDS = ["fir", "larch", "oak", "yew"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(prepared_of):
    def train(*overrides):
        run = prepared_of(*SMALL, *overrides)
        train_run(run, quiet=True)
        return run

    return train


def trees(n=80) -> pd.DataFrame:
    """Rows with numbers, texts, truth values and codes; some values are missing."""
    random, kind = np.random.default_rng(0), np.arange(n) % 4
    frame = pd.DataFrame(
        {
            "height": kind * 3 + random.normal(size=n) + 1e4,  # far from 0, so that the last digits count
            "bark": np.array(["rough", "smooth", "scaly"])[(kind + random.integers(0, 2, n)) % 3],
            "evergreen": kind % 2 == 0,
            "zone": random.integers(1, 4, n) * 100 + kind % 2,
            "age": random.integers(1, 200, n).astype(float),
            "kind": np.array(KINDS)[kind],
            "test": np.arange(n) >= 3 * n // 4,
        }
    )
    frame.loc[5, "age"], frame.loc[n - 1, "age"], frame.loc[7, "bark"] = np.nan, np.nan, None
    return frame


OF_TREES = (
    "dataset=table", "dataset.file=trees.csv", "dataset.label=kind", "dataset.test=test", "dataset.missing=mean",
    "dataset.categories=[zone]",
)  # fmt: skip


@pytest.fixture
def of_trees(trained):
    trees().to_csv("trees.csv", index=False)
    run = trained(*OF_TREES)
    Path("trees.csv").unlink()
    return run


def expected(run, x: torch.Tensor) -> tuple[list[str], list[float]]:
    """The likeliest class of each sample and its probability, by the run's network."""
    network = network_file.read(run.directory / network_file.NAME)
    answers = answering(network, 0)
    with torch.no_grad():
        likeliest = answers(x).softmax(-1).max(-1)
    return [network.names[answers.answers[k]] for k in likeliest.indices.tolist()], likeliest.values.tolist()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_of_a_table_become_the_same_inputs(of_trees, answer, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    new = trees()[trees()["test"]].drop(columns=["test", "kind"])[["age", "zone", "bark", "evergreen", "height"]]
    new.insert(1, "note", "a column that is no input")
    name = f"new{suffix}"
    new.to_parquet(name) if suffix == ".parquet" else new.to_csv(name, index=False)
    code, rows, err = answer(of_trees.directory, name)
    assert code == 0 and err == (
        f"clrun: {name}: 1 missing value replaced (columns: age): numbers by the mean of the training rows, texts by a "
        "category of their own.\n"
    )
    classes, probabilities = expected(of_trees, of_trees.images.x[of_trees.images.train :])
    assert [row["class"] for row in rows] == classes and [row["row"] for row in rows] == [str(k + 1) for k in range(20)]
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, abs=1e-4)
    right = np.mean([row["class"] == kind for row, kind in zip(rows, trees()["kind"][60:], strict=True)])
    summary = pd.read_csv(of_trees.directory / "summary.csv")
    assert right == pytest.approx(summary.at[0, "overall_accuracy"])


def test_rows_one_by_one_and_a_category_that_is_new(of_trees, answer):
    """A file of one row has neither a mean nor categories of its own."""
    whole = trees()[trees()["test"]].drop(columns=["test", "kind", "age"]).assign(age=50.0)
    whole.to_csv("new.csv", index=False)
    _, together, _ = answer(of_trees.directory, "new.csv", "--top", "2")
    for k in (0, 7):
        whole.iloc[k : k + 1].to_csv("one.csv", index=False)
        _, alone, _ = answer(of_trees.directory, "one.csv", "--top", "2")
        assert [row["class"] for row in alone] == [row["class"] for row in together[2 * k : 2 * k + 2]]
        assert [row["rank"] for row in alone] == ["1", "2"] and alone[0]["probability"] == together[2 * k][
            "probability"
        ]
    whole.assign(bark="striped").to_csv("new.csv", index=False)
    code, rows, err = answer(of_trees.directory, "new.csv")
    assert code == 0 and len(rows) == 20
    assert "column bark: 20 rows have a value that no training row has (striped); all categories of such a row" in err


def test_the_rules_are_in_the_file(of_trees):
    rules = network_file.read(of_trees.directory / network_file.NAME).columns
    assert rules == of_trees.images.columns and [rule.name for rule in rules] == [
        "height",
        "bark",
        "evergreen",
        "zone",
        "age",
    ]
    height = trees()["height"][:60]
    assert (rules[0].mean, rules[0].deviation) == pytest.approx((height.mean(), height.std(ddof=0)), rel=1e-12)
    assert rules[1].categories == ("rough", "scaly", "smooth", None)
    assert rules[3].categories == tuple(sorted(map(str, set(trees()["zone"][:60]))))


@pytest.mark.parametrize(
    "shape, kind, keys",
    [
        ((5,), np.float64, ()),
        ((2, 9), np.float32, ()),
        ((6, 7), np.uint8, ("dataset.pad=1",)),
        ((3, 6, 6), np.uint8, ()),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_new_samples_of_arrays(trained, answer, shape, kind, keys, suffix):
    random, y = np.random.default_rng(0), np.arange(60) % 4
    x = (random.normal(size=(60, *shape)) * 30 + 20 * y.reshape(-1, *[1] * len(shape)) + 90).clip(0, 255).astype(kind)
    np.savez("my.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:], names=KINDS)
    run = trained("dataset=arrays", "dataset.file=my.npz", *keys)
    Path("my.npz").unlink()
    if suffix == ".npz":
        np.savez("new.npz", x=x[40:])
    else:
        from safetensors.numpy import save_file

        save_file({"x_test": x[40:]}, "new.safetensors")
    code, rows, err = answer(run.directory, f"new{suffix}")
    assert (code, err, len(rows)) == (0, "", 20)
    block = torch.from_numpy(x[40:].astype(np.uint8 if kind == np.uint8 else np.float32))
    classes, probabilities = expected(run, block[:, None] if shape == (6, 7) else block)
    assert [row["class"] for row in rows] == classes and set(classes) <= set(KINDS)
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, abs=1e-4)
    if shape == (5,) and suffix == ".npz":
        pd.DataFrame(x[40:]).to_csv("new.csv", index=False)
        assert answer(run.directory, "new.csv")[1] == [row | {"file": "new.csv"} for row in rows]


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def of_numbers(trained):
    random, y = np.random.default_rng(0), np.arange(60) % 4
    x = random.normal(size=(60, 3))
    np.savez("my.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return trained("dataset=arrays", "dataset.file=my.npz")


def file_of(text: str | bytes, name: str = "new.csv") -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def array(**given) -> str:
    np.savez("new.npz", **given)
    return "new.npz"


def table_of(**changed) -> str:
    frame = trees()[trees()["test"]].drop(columns=["test", "kind"]).fillna({"age": 9.0})
    for name, values in changed.items():
        frame = frame.drop(columns=name) if values is None else frame.assign(**{name: values})
    frame.to_csv("new.csv", index=False)
    return "new.csv"


def semicolons() -> str:
    Path("new.csv").write_text(Path(table_of()).read_text().replace(",", ";"))
    return "new.csv"


def longer_row() -> str:
    with open(table_of(), "a") as file:
        file.write("1,2,3,4,5,6,7,8\n")
    return "new.csv"


WRONG_ROWS = {
    "absent": (lambda: "no.csv", "no.csv does not exist; name your file, a table or arrays"),
    "empty": (lambda: file_of(""), "new.csv: its first line is empty"),
    "no rows": (lambda: file_of("height,bark,evergreen,zone,age\n"), "there is no row below the names of the columns"),
    "bytes": (lambda: file_of(b"\xff\xfe\0a"), "it is no text in UTF-8"),
    "semicolons": (
        semicolons,
        "its first line has no comma, which the run's dataset.separator=comma wants, but semicolons",
    ),
    "longer rows": (longer_row, "its rows are of different lengths"),
    "a column missing": (
        lambda: table_of(age=None),
        "there is no column age; add it, since the network was trained on it",
    ),
    "a column renamed": (
        lambda: table_of(age=None, ages=3.0),
        "there is no column age; is it ages, which must be renamed?",
    ),
    "text in place of numbers": (
        lambda: table_of(height="tall"),
        "column height held numbers in training and holds other",
    ),
    "a damaged number": (
        lambda: table_of(height=["1.0"] * 19 + ["x"]),
        "column height holds numbers but 'x' in row 20",
    ),
    "infinity": (lambda: table_of(age=np.inf), "column age is inf in row 1; write a finite number"),
    "a number too large": (lambda: table_of(age=1e300), "column age has a number too large"),
    "numbers in place of truth": (lambda: table_of(evergreen=7), "column evergreen held true and false in training"),
    "arrays": (
        lambda: array(x=np.zeros((2, 5))),
        "new.npz: the network was trained on a table; name one with the same",
    ),
    "a picture": (lambda: file_of(b"x", "a.png"), "a.png is no file of rows: clrun-predict needs pictures"),
    "two kinds": (lambda: ("new.csv", "a.png"), "new.csv holds rows and a.png does not; name files of rows alone"),
}


@pytest.mark.parametrize("make, said", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_rows(of_trees, answer, make, said):
    typed = make()
    code, rows, err = answer(of_trees.directory, *([typed] if isinstance(typed, str) else typed))
    assert said in err and (code, rows) == (2, []) and err.count("\n") == 1 and err.startswith("clrun: ")


WRONG_ARRAYS = {
    "no x": (lambda: array(y=np.zeros((2, 3))), "there is no array x in it, but y; write it by numpy.savez"),
    "nothing": (array, "there is no array x in it, but nothing"),
    "another width": (lambda: array(x=np.zeros((2, 4))), "x has samples of the shape (4,), and the network takes (3,)"),
    "one sample alone": (lambda: array(x=np.zeros(3)), "x has the shape (3,), but the first axis must count samples"),
    "no samples": (lambda: array(x=np.zeros((0, 3))), "in which there is no number"),
    "NaN": (lambda: array(x=np.full((2, 3), np.nan)), "x[0, 0] is nan, which is no finite number"),
    "words": (lambda: array(x=np.full((2, 3), "a")), "x holds text; give an array of numbers"),
    "objects": (lambda: array(x=np.array([[{}]], object)), "holds Python objects, which are never unpickled"),
    "cut": (
        lambda: file_of(Path(array(x=np.zeros((2, 3)))).read_bytes()[:-50], "new.npz"),
        "the file is damaged or cut",
    ),
    "no safetensors": (lambda: file_of("x", "new.safetensors"), "the file cannot be read"),
    "other columns": (lambda: file_of("a,b\n1,2\n"), "it has 2 columns, and a sample of this network has 3 numbers"),
    "texts": (lambda: file_of("a,b,c\n1,2,x\n"), "column c holds texts; the network takes numbers alone"),
    "missing": (
        lambda: file_of("a,b,c\n1,,3\n"),
        "1 value is missing, the first in column b, row 1 (columns: b); fill them",
    ),
    "a picture": (lambda: file_of(b"x", "a.png"), "is no file of rows: clrun-predict needs pictures"),
}


@pytest.mark.parametrize("make, said", WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_wrong_arrays(of_numbers, answer, make, said):
    code, rows, err = answer(of_numbers.directory, make())
    assert said in err and (code, rows) == (2, []) and err.count("\n") == 1 and err.startswith("clrun: ")


def test_a_table_of_a_network_of_pictures(trained, answer):
    run = trained("strategy=finetune")
    assert "a sample of this network is a picture" in answer(run.directory, file_of("a,b\n1,2\n"))[2]
    np.savez("new.npz", x=run.images.x[:3].numpy())
    assert len(answer(run.directory, "new.npz")[1]) == 3
    np.savez("new.npz", x=run.images.x[:3].float().numpy())
    assert (
        "x is float32, and the network takes pictures; write whole numbers as uint8"
        in answer(run.directory, "new.npz")[2]
    )


def test_a_network_of_an_earlier_version_has_no_columns(of_trees, answer):
    from dataclasses import replace

    network_file.write(
        of_trees.directory, replace(network_file.read(of_trees.directory / network_file.NAME), columns=())
    )
    assert "was kept by an earlier version of clrun, without the columns" in answer(of_trees.directory, table_of())[2]


def test_two_tables_of_equal_numbers_keep_their_own_columns(prepared_of):
    """The same z-scores come from metres and from feet; each run keeps its own mean."""
    frame = trees().drop(columns=["bark", "age", "zone"])
    typed = (*OF_TREES[2:4], *SMALL)
    for name, scale in (("metres", 1.0), ("feet", 4.0)):  # a power of two, so that all digits are equal
        frame.assign(height=frame["height"] * scale).to_csv(f"{name}.csv", index=False)
    metres, feet = (prepared_of("dataset=table", f"dataset.file={name}.csv", *typed) for name in ("metres", "feet"))
    assert metres.id == feet.id and torch.equal(metres.images.x, feet.images.x)
    assert feet.images.columns[0].mean == 4 * metres.images.columns[0].mean


def test_an_exported_network_says_its_columns(of_trees):
    from clrun.runs.exporting import description

    about = description(network_file.read(of_trees.directory / network_file.NAME), 0, False)
    assert about["input"]["is"] == "the inputs that columns become"
    assert json.loads(json.dumps(about))["columns"][0]["name"] == "height"
