"""The variables of the environment of child processes."""

import os
import subprocess
import sys

from clrun.system.environment import environment_of_clrun
from clrun.system.paths import PACKAGE


def test_a_child_imports_the_same_clrun_and_what_the_user_has_put_first(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("name = 'theirs'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = [sys.executable, "-P", "-c", "import clrun, theirs; print(clrun.__file__, theirs.name)"]
    done = subprocess.run(line, env=environment_of_clrun(), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(PACKAGE / "__init__.py"), "theirs"]


def test_a_checkout_comes_last_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "theirs")
    last = [] if "site-packages" in PACKAGE.parts else [str(PACKAGE.parent)]
    assert environment_of_clrun()["PYTHONPATH"].split(os.pathsep) == ["theirs", *last]


def test_more_variables_are_set_for_the_child_alone():
    environment = environment_of_clrun(CLRUN_TEST_VARIABLE="set")
    assert environment["CLRUN_TEST_VARIABLE"] == "set" and "CLRUN_TEST_VARIABLE" not in os.environ
    assert environment["PATH"] == os.environ["PATH"]
