"""A key that was renamed is taken by its former name for one release: typed, and in a yaml."""

import pytest

from clrun.config import compose
from clrun.config.check_keys import parsed
from clrun.config.typed_texts import RENAMED, as_typed, with_current_keys


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_is_the_name_of_now(former):
    now = RENAMED[former]
    assert as_typed(f"{former}=false") == f"{now}=false"
    assert as_typed(f"+{former}=false") == f"+{now}=false"
    assert as_typed(f"++{former}=false") == f"++{now}=false"
    assert as_typed(f"~{former}") == f"~{now}"
    assert compose(f"{former}=false")[now] is False
    assert parsed(f"{former}=false").key_or_group == now


def test_names_of_library_networks_and_data_sets_are_typed_as_elsewhere():
    network = compose("model=torchvision", "model.name=resnet18", "dataset=torchvision", "dataset.name=SVHN")
    frozen = compose("features=torchvision", "features.name=vit_b_16", "model=linear")
    assert (network["model"], network["model.arch"]) == ("torchvision", "resnet18")
    assert (network["dataset"], network["dataset.set"]) == ("torchvision", "SVHN")
    assert (frozen["features"], frozen["features.arch"]) == ("torchvision", "vit_b_16")


@pytest.mark.parametrize("share", ["0.3", ".3", "0.2,0.3"])
def test_a_share_for_testing_may_be_typed_where_a_column_may(share):
    assert as_typed(f"dataset.test={share}") == f"dataset.test_fraction={share}"
    assert as_typed(f"++dataset.test={share}") == f"++dataset.test_fraction={share}"
    assert compose("dataset=table", "dataset.file=a.csv", "dataset.label=b", "dataset.test=0.3")["dataset.test"] is None


@pytest.mark.parametrize("column", ["part", "1", "'0.3'", "0.3x", "3", "null"])
def test_a_column_for_testing_stays_one(column):
    assert as_typed(f"dataset.test={column}") == f"dataset.test={column}"


def test_a_value_and_a_longer_key_keep_the_word():
    assert as_typed("dataset.root=pictures") == "dataset.root=pictures"
    assert as_typed("dataset.pictures=false") == "dataset.pictures=false"
    assert as_typed("pictured=false") == "pictured=false"


def test_a_yaml_with_the_former_name_is_read():
    assert with_current_keys({"pictures": False, "seed": 1}) == {"plots": False, "seed": 1}
    assert with_current_keys({"pictures": False, "plots": None}) == {"plots": False}
    assert with_current_keys({"pictures": None, "plots": False}) == {"plots": False}
    assert with_current_keys({"pictures": False, "plots": True}) == {"plots": True}


def test_both_names_at_once_are_refused(clrun):
    code, _, err = clrun("pictures=false", "plots=true")
    assert code == 2
    assert "plots is typed twice" in err


def test_an_experiment_with_the_former_name(clrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "quick.yaml").write_text("# @package _global_\npictures: false\niterations: 2\ntasks: 2\n")
    code, _, _ = clrun("--config-dir", str(tmp_path / "mine"), "+experiment=quick", "device=cpu")
    assert code == 0
    (config,) = tmp_path.glob("outputs/runs/*/*/config.yaml")
    assert "plots: false" in config.read_text()
    assert not list(config.parent.glob("*.png"))
