"""What the settings of a run are, what identifies it, and which classes its tasks get."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import given, settings
from hypothesis import strategies as st

from clrun.config import catalog, check_values
from clrun.config.settings import CHANGES, Settings
from clrun.data.split import assign_classes
from clrun.system.errors import UsageError
from clrun.system.paths import CONF
from clrun.system.text import format_value

DATA = "0123456789"  # a fingerprint


def refused(settings_of, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        settings_of(*overrides)
    return str(caught.value)


# ---------------------------------------------------------------- resolving


def test_defaults_are_resolved(settings_of, monkeypatch):
    monkeypatch.delenv("CLRUN_DATA_DIR", raising=False)
    settings = settings_of()
    expected = {"dataset": "digits", "split": "classes", "tasks": 5, "scenario": "task", "model": "mlp", "lr": 0.001}
    expected |= {"optimizer.name": "adam", "epochs": 100, "iterations": None, "strategy": "ewc", "lambda": 400.0}
    expected |= {"model.widths": [100, 100], "split.seed": None, "seed": 0, "device": "auto", "data_dir": None}
    assert {key: settings[key] for key in expected} == expected
    assert settings.target == "clrun.strategies.ewc.EWC"
    assert settings.knobs["lambda"] == 400.0 and "lr" not in settings.knobs


@pytest.mark.parametrize(
    "text, key, value", [("seed=0", "seed", 0), ("lambda=0", "lambda", 0.0), ("gamma=0", "gamma", 0)]
)
def test_zero_is_a_value(settings_of, text, key, value):
    assert settings_of(text)[key] == value


def test_validation_zero_is_a_value_and_one_is_not(settings_of):
    assert settings_of("validation=0")["validation"] == 0
    assert "below 1" in refused(settings_of, "validation=1")


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.1), ("adam", 0.001), ("adamw", 0.001)])
def test_lr_is_the_optimizers_own_unless_typed(settings_of, optimizer, lr):
    assert settings_of(f"optimizer={optimizer}")["lr"] == lr
    assert settings_of(f"optimizer={optimizer}", "lr=0.5")["lr"] == 0.5


def test_a_typed_budget_replaces_the_datasets(settings_of):
    assert (settings_of("iterations=7")["epochs"], settings_of("iterations=7")["iterations"]) == (None, 7)
    assert settings_of("epochs=7")["epochs"] == 7
    assert settings_of("dataset=mnist")["epochs"] == 5


def test_a_typed_budget_replaces_an_experiments(settings_of, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "short.yaml").write_text("# @package _global_\nepochs: 3\n")
    ConfigStore.instance().store(name="knobs", node=catalog.read().nulls())
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=short", "iterations=7"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    assert check_values.check(cfg, typed=["iterations"])["iterations"] == 7
    with pytest.raises(UsageError, match="one of them"):
        check_values.check(cfg)


def test_data_dir_is_typed_or_from_the_environment(settings_of, monkeypatch, tmp_path):
    monkeypatch.setenv("CLRUN_DATA_DIR", str(tmp_path))
    assert settings_of()["data_dir"] == str(tmp_path)
    (tmp_path / "other").mkdir()
    assert settings_of(f"data_dir={tmp_path}/other")["data_dir"] == f"{tmp_path}/other"
    monkeypatch.setenv("CLRUN_DATA_DIR", str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in refused(settings_of)


def test_listed_classes_say_how_many_tasks_and_in_what_order(settings_of):
    settings = settings_of("dataset=cifar10", "scenario=class", "split.classes=[[cat,5],[deer]]")
    assert settings["split.classes"] == [["cat", "dog"], ["deer"]]
    assert (settings["tasks"], settings["split.order"]) == (2, "fixed")
    assert "fixed" not in str(settings_of()["split.order"])


def test_a_nested_config_has_the_groups_as_mappings(settings_of):
    nested = settings_of("optimizer=sgd").nested()
    assert nested["optimizer"] == {"name": "sgd", "momentum": 0, "nesterov": False, "weight_decay": 0, "reset": False}
    assert nested["dataset"]["name"] == "digits" and nested["strategy"] == "ewc" and nested["lambda"] == 400


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["optimizer=sgd", "optimizer.nesterov=true"], "optimizer.momentum=0.9"),
        (["model.widths=[]", "model.norm=batch"], "model.widths=[100]"),
        (["split.order=seed", "split.classes=[[0,1],[2,3]]"], "leave split.order out"),
        (["tasks=3", "split.classes=[[0,1],[2,3]]"], "leave tasks out"),
        (["device=cpu", "precision=tf32"], "precision=float32"),
        (["split=permuted", "split.classes=[[0,1],[2,3]]"], "split=permuted takes no split.classes (classes does)"),
        (["scenario=domain", "split.classes=[[0,1],[2,3,4]]"], "equally many"),
        (["scenario=domain", "tasks=10"], "scenario=class"),
        (["split=rotated", "split.max_angle=0"], "above 0"),
        (["model.widths=[100,0]"], "each at least 1"),
        (["model.widths=100"], "[100,100]"),
        (["epochs=10.0"], "type epochs=10"),
        (["lambda=true"], "finite number"),
        (["seed=true"], "whole number"),
        (["drop_last=1"], "true or false"),
        (["outputs=2024"], "outputs=./2024"),
        (["split.classes=[[true,false]]"], "there is no class true"),
        (["lambda=-1", "seed=-1"], "lambda=-1: must be a finite number, at least 0; e.g. lambda=400\nseed=-1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_type(settings_of, overrides, said):
    assert said in refused(settings_of, *overrides)


@pytest.mark.parametrize(
    "override",
    ["strategy.knobs.lambda.default=3", "strategy._target_=os.system", "strategy.about=x", "knobs.lr.above=-1"],
)
def test_what_the_yamls_state_is_not_a_setting(settings_of, override):
    assert "is not a setting" in refused(settings_of, override)


def test_a_strategy_that_must_know_the_task_is_refused_without_it(settings_of, tmp_path):
    known = catalog.read((CONF, strategies(tmp_path, told=f"{STATED}needs_task_id: true\n")))
    ConfigStore.instance().store(name="knobs", node=known.nulls())

    def checked(*overrides: str) -> Settings:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            search = f"hydra.searchpath=[file://{tmp_path}]"
            return check_values.check(compose("config", overrides=[search, "strategy=told", *overrides]), catalog=known)

    assert checked().needs_task_id
    assert checked("scenario=domain", "task_id_at_test=true")["scenario"] == "domain"
    with pytest.raises(UsageError, match="task_id_at_test=true"):
        checked("scenario=domain")


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("text", ["lambda=100", "lambda=1e2", "lambda=100.0", "lambda=+100"])
def test_one_value_has_one_identity_and_one_directory(settings_of, text):
    one, other = settings_of("lambda=100.0"), settings_of(text)
    assert one.identity(DATA) == other.identity(DATA)
    assert one.directory(DATA) == other.directory(DATA)


@pytest.mark.parametrize(
    "text", ["lambda=400", "tasks=5", "lr=0.001", "epochs=100", "strategy=ewc", "split.order=seed"]
)
def test_a_typed_default_is_the_same_run(settings_of, text):
    assert settings_of().directory(DATA) == settings_of(text).directory(DATA)


def test_a_key_that_came_later_leaves_older_runs_what_they_were(settings_of):
    settings = settings_of()
    known = {key: v for key, v in settings.values.items() if key not in settings.later}
    before = replace(settings, values=known, later=frozenset())
    assert {"first_tasks", "schedule", "split.sizes"} <= settings.later
    assert settings["first_tasks"] is None and before.identity(DATA) == settings.identity(DATA)
    assert settings_of("first_tasks=5").identity(DATA) == settings.identity(DATA)  # all there are
    with pytest.raises(UsageError, match="first_tasks=6: the stream has 5 tasks"):
        settings_of("first_tasks=6")


def test_minus_zero_is_zero(settings_of):
    assert settings_of("lambda=-0.0").identity(DATA) == settings_of("lambda=0").identity(DATA)


def test_where_a_run_happens_is_not_what_it_is(settings_of, tmp_path):
    elsewhere = [f"outputs={tmp_path}", "device=cpu", f"data_dir={tmp_path}", "rerun=true"]
    assert settings_of(*elsewhere).identity(DATA) == settings_of().identity(DATA)


def test_class_names_and_numbers_are_one_run(settings_of):
    given = ("dataset=cifar10", "scenario=class")
    names = settings_of(*given, "split.classes=[[cat,dog],[deer]]")
    assert names.identity(DATA) == settings_of(*given, "split.classes=[[3,5],[4]]").identity(DATA)


KEYS = [
    "lambda=1",
    "lr=0.5",
    "tasks=2",
    "scenario=class",
    "active=all",
    "model.widths=[3]",
    "model=cnn",
    "iterations=1",
]
KEYS += ["batch_size=1", "drop_last=true", "augment=crop_flip", "validation=0.1", "evaluate_every=5", "threads=2"]
KEYS += ["precision=bfloat16", "deterministic=true", "task_id_at_test=true", "optimizer=adamw", "split.order=fixed"]
KEYS += ["first_tasks=2"]
KEYS += ["split.seed=0", "dataset.normalize=false", "dataset.pad=1", "fisher=empirical", "optimizer.reset=true"]


@pytest.mark.parametrize("text", KEYS)
def test_every_other_key_makes_another_run_in_another_group(settings_of, text):
    assert settings_of(text).identity(DATA) != settings_of().identity(DATA)
    assert settings_of(text).group(DATA) != settings_of().group(DATA)


def test_seed_strategy_and_data(settings_of):
    ewc, seed, finetune = settings_of(), settings_of("seed=1"), settings_of("strategy=finetune")
    assert len({ewc.identity(DATA), seed.identity(DATA), finetune.identity(DATA), ewc.identity("other")}) == 4
    assert ewc.group(DATA) == seed.group(DATA) != finetune.group(DATA)
    assert ewc.setup(DATA) == seed.setup(DATA) == finetune.setup(DATA) == settings_of("lambda=1").setup(DATA)
    assert ewc.setup(DATA) != settings_of("lr=0.5").setup(DATA)
    assert ewc.setup(DATA) == settings_of("evaluate_every=9").setup(DATA)
    assert ewc.stream(DATA) == seed.stream(DATA) == finetune.stream(DATA) != ewc.stream("other")


LEARNT = ["tasks=1", "scenario=class", "active=all", "task_id_at_test=true", "first_tasks=2", "validation=0.1"]
LEARNT += ["split=permuted", "split.seed=0", "split.order=fixed", "dataset=mnist", "dataset.pad=1"]
HOW = ["lr=0.5", "epochs=3", "iterations=7", "batch_size=1", "model=cnn", "model.widths=[9]", "optimizer=sgd"]
HOW += ["optimizer.weight_decay=0.1", "schedule=cosine", "clip_norm=1", "augment=crop_flip", "precision=bfloat16"]
HOW += ["average=ema", "measure=plasticity", "threads=2", "device=cpu", "outputs=elsewhere"]


@pytest.mark.parametrize(("text", "same"), [(text, False) for text in LEARNT] + [(text, True) for text in HOW])
def test_a_stream_is_what_is_learnt_and_not_how(settings_of, text, same):
    """Runs of one stream are compared; this says of each key whether it makes another stream."""
    assert (settings_of(text).stream(DATA) == settings_of().stream(DATA)) == same
    assert settings_of("strategy=er", text).stream(DATA) == settings_of(text).stream(DATA)


def test_a_stream_is_that_of_the_run_before(settings_of):
    streams = {settings_of().stream(DATA, before) for before in (None, "a", "b")}
    assert len(streams) == 3


@pytest.mark.parametrize("strategy", sorted(catalog.read().options["strategy"]))
@pytest.mark.parametrize("more", [(), ("model=resnet18", "model.norm=batch")])
def test_every_strategy_is_compared_on_one_stream(settings_of, strategy, more):
    """Whatever has changed in the meaning of a strategy."""
    ours, joint = settings_of(f"strategy={strategy}", *more), settings_of("strategy=joint", *more)
    assert (ours.stream(DATA), ours.setup(DATA)) == (joint.stream(DATA), joint.setup(DATA))


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        (("dataset=arrays", "dataset.file=a.npz", "split=rotated", "scenario=domain"), True),
        (("dataset=arrays", "dataset.file=a.npz"), False),
        (("dataset=mnist", "split=rotated", "scenario=domain"), False),
        (("dataset=mnist", "split.circle=9", "split.order=fixed", "scenario=class"), False),
    ],
)
def test_rotations_of_pictures_that_may_be_oblong_are_trained_again(settings_of, typed, again):
    assert CHANGES["rotations of oblong pictures"](dict(settings_of(*typed).values)) == again


def test_a_directory_is_readable_and_a_safe_file_name(settings_of):
    lists = "split.classes=[[airplane,automobile],[bird,cat],[deer,dog],[frog,horse],[ship,truck]]"
    settings = settings_of("dataset=cifar10", lists, "lambda=10", "model.widths=[1000,2000,3000]", "seed=3")
    path = settings.directory(DATA)
    assert path.parts[:3] == ("outputs", "runs", "ewc")
    assert re.fullmatch(r"cifar10-classes-task-5tasks-[\w.=+-]*seed=3-[0-9a-f]{10}", path.name)
    assert len(path.name) < 150
    assert "lambda=10-" in settings_of("lambda=10").directory(DATA).name


def test_a_long_name_is_shortened_by_whole_values(settings_of):
    texts = ("augment=crop_flip", "split.order=fixed", "model.widths=[1000,2000]", "batch_size=17", "validation=0.125")
    settings = settings_of("dataset=cifar10", "fisher_samples=12345", "lr=0.0123", *texts)
    parts = settings.directory(DATA).name.split("-")
    typed = {f"{key}={format_value(value)}" for key, value in settings.not_default.items()}
    named = {re.sub(r"[^\w.=+-]+", "_", text) for text in typed} | {"seed=0"}
    assert [part for part in parts if "=" in part and part not in named] == []
    assert settings_of("lambda=10").former_directory(DATA) is None


def test_a_run_under_a_name_that_was_cut_is_found(prepared_of):
    texts = ("augment=crop_flip", "split.order=fixed", "model.widths=[1000,2000]", "batch_size=17", "validation=0.125")
    prepared = prepared_of("dataset.pad=4", "fisher_samples=12345", "lr=0.0123", "iterations=3", *texts)
    former = prepared.settings.former_directory(prepared.images.fingerprint)
    assert former is not None and former.name[-18:] == prepared.directory.name[-18:] and former != prepared.directory
    assert not prepared.finished
    former.mkdir(parents=True)
    (former / "summary.csv").write_text("")
    assert prepared.directory == former and prepared.finished
    prepared.settings.directory(prepared.images.fingerprint).mkdir()
    assert prepared.directory != former  # a run that was trained again since


def test_a_run_named_with_fewer_digits_is_found(prepared_of):
    prepared = prepared_of("lambda=0.30000000000000004")
    former = prepared.settings.former_directory(prepared.images.fingerprint)
    assert (
        former is not None and "lambda=0.3-" in former.name and "lambda=0.30000000000000004-" in prepared.directory.name
    )
    former.mkdir(parents=True)
    assert prepared.directory == former


@pytest.fixture(scope="module")
def defaults(settings_of):
    return settings_of()


@settings(deadline=None)
@given(texts=st.dictionaries(st.text(min_size=1), st.text() | st.lists(st.text()), max_size=4))
def test_no_text_leads_out_of_the_outputs(defaults, texts):
    """Whatever stands in a value, such as the name of a class: one folder below outputs/runs/STRATEGY, short enough."""
    path = replace(defaults, not_default=texts).directory(DATA)
    assert path.parent == Path("outputs", "runs", "ewc") and len(path.parts) == 4
    assert os.path.normpath(path) == str(path) and len(os.fsencode(path.name)) < 200 and "\0" not in path.name


def test_values_are_plain_json(settings_of):
    values = settings_of("split.classes=[[0,1],[2,3]]", "fisher_samples=5").values
    assert json.loads(json.dumps(values)) == values


# ---------------------------------------------------------------- statements

STATED = "name: told\nabout: a strategy\n_target_: my.Told\n"


def strategies(folder: Path, **files: str) -> Path:
    (folder / "strategy").mkdir()
    for name, text in files.items():
        (folder / "strategy" / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text, said",
    [
        ("name: [", "not valid YAML"),
        ("just text", "must hold fields"),
        ("about: x\n_target_: a.B\n", "the field name is missing"),
        ("name: told\nabout: x\n", "the field _target_ is missing"),
        ("name: told\n_target_: a.B\n", "the field about is missing"),
        ("name: other\nabout: x\n_target_: a.B\n", "name: told"),
        ("name: told\nabout: x\n_target_: not dotted\n", "_target_"),
        (STATED + "warn: {class: x}\n", "no field warn"),
        (STATED + "knobs: {k: {default: 1, type: int, abuot: x}}\n", "knobs.k.abuot"),
        (STATED + "knobs: {k: {default: 1, type: integer, about: x}}\n", "knobs.k.type"),
        (STATED + "knobs: {k: {default: -1, type: int, min: 0, about: x}}\n", "must be a whole number, at least 0"),
        (STATED + "knobs: {k: {default: a, type: choice, about: x}}\n", "choices"),
        (STATED + "knobs: {k: {default: true, type: bool, min: 0, about: x}}\n", "no range"),
        (STATED + "knobs: {lr: {default: 1, type: int, about: x}}\n", "the knob lr has the name"),
        (STATED + "knobs: {a-b: {default: 1, type: int, about: x}}\n", "a-b"),
    ],
)
def test_a_wrong_yaml_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        catalog.read((CONF, strategies(tmp_path, told=text)))
    assert said in str(caught.value) and str(tmp_path / "strategy" / "told.yaml") in str(caught.value)


def test_a_name_that_is_taken_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a strategy ewc already"):
        catalog.read((CONF, strategies(tmp_path, ewc=STATED.replace("told", "ewc"))))


def test_numbers_in_statements_are_read_as_hydra_reads_them(tmp_path):
    text = STATED + "knobs: {k: {default: 1e-3, type: float, min: 1e-5, about: x}}\n"
    known = catalog.read((CONF, strategies(tmp_path, told=text)))
    assert known.knobs("strategy", "told")["k"].default == 1e-3


def test_every_key_can_be_typed(settings_of):
    known = catalog.read()
    tree = known.nulls()
    flat = {f"{k}.{inner}" for k, v in tree.items() if isinstance(v, dict) for inner in v}
    flat |= {k for k, v in tree.items() if v is None}
    assert flat | {*catalog.GROUPS, catalog.CLUSTER} == set(known.all_keys())
    assert {"lambda", "tasks", "model.width", "optimizer.nesterov", "split.max_angle"} <= flat


# ---------------------------------------------------------------- dealing

SETTINGS = {"split": "classes", "split.classes": None, "scenario": "class"}


@given(st.integers(2, 60), st.integers(1, 60))
def test_an_even_deal_gives_every_class_once_or_says_what_divides(classes, tasks):
    names = [f"class {k}" for k in range(classes)]
    if classes % tasks == 0:
        dealt = assign_classes(names, SETTINGS | {"tasks": tasks})
        assert [k for task in dealt for k in task] == list(range(classes)) and {len(task) for task in dealt} == {
            classes // tasks
        }
        return
    with pytest.raises(UsageError) as caught:
        assign_classes(names, SETTINGS | {"tasks": tasks})
    fitting = re.search(r"type tasks=([\d, or]+)", str(caught.value))[1]
    assert all(classes % int(n) == 0 for n in re.findall(r"\d+", fitting))


def test_the_unequal_deal_that_is_proposed_works():
    with pytest.raises(UsageError) as caught:
        assign_classes("abcdefghij", SETTINGS | {"tasks": 3})
    proposed = json.loads(re.search(r"split.classes=(\[\[.*\]\])", str(caught.value))[1])
    assert assign_classes("abcdefghij", SETTINGS | {"split.classes": proposed}) == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_lists_keep_their_order_and_mix_names_and_numbers():
    assert assign_classes(["ant", "bee", "cow"], SETTINGS | {"split.classes": [["cow", 0], ["bee"]]}) == [
        [2, 0],
        [1],
    ]
    assert assign_classes(["1", "2", "10"], SETTINGS | {"split.classes": [[10], [1, "2"]]}) == [[2], [0, 1]], "names"
    with pytest.raises(UsageError, match="no class 0"):
        assign_classes(["1", "2", "10"], SETTINGS | {"split.classes": [[0, 1]]})


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_other_splits_deal_no_classes(kind):
    assert assign_classes(["ant", "bee"], {"split": kind}) is None


@pytest.mark.parametrize(
    "lists, scenario, said",
    [
        ([["ant", "bee"], ["bee", "cow"]], "class", "bee cannot be listed twice"),
        ([["cow", 2]], "class", "cow cannot be listed twice"),
        ([["ant", "bea"]], "class", "did you mean bee?"),
        ([["ant", "unicorn"]], "class", "The classes are ant, bee, cow, dog"),
        ([[0, 4]], "class", "0 to 3"),
        ([[-1, 0]], "class", "0 to 3"),
        ([["ant", "bee"], ["cow"]], "task", "scenario=class"),
        ([["ant"], ["cow"]], "domain", "scenario=class"),
        ([["ant"]], "class", "two or more"),
    ],
)
def test_lists_that_make_no_tasks_are_refused(lists, scenario, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        assign_classes(["ant", "bee", "cow", "dog"], SETTINGS | {"split.classes": lists, "scenario": scenario})
