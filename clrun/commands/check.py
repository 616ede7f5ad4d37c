"""The command `clrun-check strategy=mine`, which checks what every strategy promises, on small runs.

Exit codes: 0 all promises are kept, 1 one is broken, 2 the user's mistake.
"""

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from clrun import __version__
from clrun.commands import console, run
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.user_frames import described

if TYPE_CHECKING:
    from clrun.config.catalog import Catalog
    from clrun.config.composition import Composed
    from clrun.config.settings import Settings
    from clrun.engine.stack import Stack
    from clrun.runs.prepared import Prepared

SCENARIOS = ("task", "domain", "class")
SEEDS = (0, 1, 2)
FACTORS = (0.25, 0.5, 1.0)  # of the default of each strength, for runs that differ in strengths

# What is typed unless the user types one of the keys behind it.
SIZE = {"model.widths=[12,8]": ("model", "model.widths"), "batch_size=48": ("batch_size",)}
QUIET = {"device=cpu": ("device",), "plots=false": ("plots",)}
LENGTH = ("iterations", "epochs", "stream")
SMALL = SIZE | QUIET | {"iterations=14": LENGTH}
WHOLE = SIZE | QUIET | {"epochs=1": LENGTH}  # tasks that differ in size then take other numbers of steps

OWN = ("outputs", "seed", "checkpoint_every")  # keys that clrun-check types itself

WIDTH = 10  # characters of the name of a check

DESCRIPTION = """Check what every strategy promises, on small runs: clrun-check strategy=mine [key=value ...]

    scenarios  in which it can be trained, and why not in the others
    pure       a step leaves what it is given as it was, and gives the same again
    padding    samples of weight 0, which fill up the batches of a stack, do not count
    stacked    runs of other seeds, trained as one program, equal the same runs alone
    strengths  so do runs that differ in the strengths of the method
    resumed    a run that is killed twice and goes on equals one that is not
    neutral    with the values that its yaml calls neutral, it is finetune
    health     its columns of health.csv are numbers, and its warnings are sentences

A line says ok, FAILED, or none where the class makes no such promise.
"""


class Answer(NamedTuple):
    """What a check returns."""

    broken: str | None  # a clause on what is broken
    sentence: str  # of a promise that is kept, or on why there is none
    made: bool = True  # whether the class makes the promise at all


@dataclass(frozen=True)
class Finding:
    """What a check has found: its name, whether the promise is kept, a sentence, and whether the promise is made."""

    name: str
    kept: bool
    sentence: str
    made: bool = True

    def __str__(self) -> str:
        word = "FAILED" if not self.kept else "ok" if self.made else "none"
        return f"{self.name:<{WIDTH}} {word:<6} {self.sentence}"


def main() -> NoReturn:
    """Run the console script `clrun-check`."""
    console.end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.KeyParser(
        prog="clrun-check", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("-cd", "--config-dir", help="the folder of your own yaml files")
    flags.add_argument("overrides", nargs="*", metavar="key=value")
    return flags


def command(argv: Sequence[str]) -> None:
    """Print a line for each check. Raise RunsFailed if a promise is broken."""
    from clrun.config import catalog, check_keys

    arguments = parser().parse_intermixed_args(argv)
    known = catalog.with_folder(arguments.config_dir)
    check_keys.refuse(arguments.overrides, False, known)
    typed = [text.partition("=")[0] for text in arguments.overrides]
    for key in typed:
        if key in OWN:
            raise UsageError(f"clrun-check trains small runs of its own and keeps none; leave {key} out.")
    if "strategy" not in typed:
        raise UsageError("clrun-check checks a strategy; name it, as in clrun-check strategy=ewc.")
    from clrun.config.composition import composer

    compose = composer(known, arguments.config_dir)
    with run.temporary_folder("clrun-check") as folder:
        findings = Checks(arguments.overrides, known, compose, Path(folder)).findings()
    broken = sum(not finding.kept for finding in findings)
    if broken:
        raise RunsFailed(f"{broken} of {len(findings)} promises are broken.")


@dataclass(frozen=True)
class Checks:
    """The checks of one strategy, with what was typed."""

    overrides: Sequence[str]
    catalog: "Catalog"
    compose: "Callable[[Sequence[str]], Composed]"
    folder: Path  # for runs that write files
    small: Mapping[str, Sequence[str]] = field(default_factory=lambda: SMALL)  # what is typed unless these keys are

    def settings(self, *more: str) -> "Settings":
        """Return the settings of what was typed, with these overrides. Raise UsageError."""
        from clrun.config.check_values import check

        keys = {text.partition("=")[0] for text in (*self.overrides, *more)}
        texts = [*self.overrides, *(text for text, unless in self.small.items() if keys.isdisjoint(unless)), *more]
        return check(self.compose(texts), catalog=self.catalog, typed=[text.partition("=")[0] for text in texts])

    def prepared(self, *more: str) -> "Prepared":
        """Return a run of what was typed, with these overrides. Raise UsageError."""
        from clrun.runs.prepare import prepare

        return prepare(self.settings(*more))

    def stack(self, runs: Sequence[Sequence[str]] = ((),)) -> "Stack":
        """Return a stack in float64 of runs, each with its own overrides."""
        import torch

        from clrun.runs.build import build

        return build([self.prepared(*own) for own in runs], torch.float64, device=torch.device("cpu"))

    # ------------------------------------------------------------ scenarios

    def findings(self) -> list[Finding]:
        """Print and return what each check finds. Raise UsageError where no run can be trained at all."""
        able, refusals = self.by_scenario()
        found = [Finding("scenarios", True, "; ".join([", ".join(able), *refusals]))]
        print(found[0], flush=True)
        checks: dict[str, Callable[[], Answer]] = {
            "pure": lambda: in_each(able, Checks.pure),
            "padding": lambda: in_each(able, Checks.padding),
            "stacked": lambda: in_each(able, Checks.stacked),
            "strengths": lambda: in_each(able, Checks.strengths),
            "resumed": lambda: in_each(able, Checks.resumed),
            "neutral": lambda: in_each(able, Checks.neutral),
            "health": lambda: in_each(able, Checks.health),
        }
        for name, check in checks.items():
            found.append(finding(name, check))
            print(found[-1], flush=True)
        return found

    def by_scenario(self) -> tuple[dict[str, "Checks"], list[str]]:
        """Return the checks in each scenario in which the strategy can be trained, and why it cannot in the others; of
        one scenario where it was typed. Raise UsageError where there is none."""
        if any(text.startswith("scenario=") for text in self.overrides):
            return {str(self.prepared().settings["scenario"]): self}, []
        able, refusals = {}, []
        for name in SCENARIOS:
            checks = replace(self, overrides=[*self.overrides, f"scenario={name}"])
            try:
                checks.prepared()
                able[name] = checks
            except UsageError as error:
                refusals.append(f"{name} is refused: {error}")
        if not able:
            self.prepared()  # says what keeps all of them from being trained
            raise UsageError(" ".join(refusals))
        return able, refusals

    # ------------------------------------------------------------ one check each

    def pure(self) -> Answer:
        """Check that a step is a function of what it is given."""
        from clrun.runs import contract

        broken = contract.pure(contract.SecondTask.of(self.stack()))
        return Answer(broken, "a step changes nothing that it is given, and gives the same again")

    def padding(self) -> Answer:
        """Check that samples of weight 0 do not count."""
        from clrun.runs import contract

        return Answer(contract.padding(contract.SecondTask.of(self.stack())), "samples of weight 0 change nothing")

    def stacked(self) -> Answer:
        """Check that runs of several seeds, whose tasks differ in size, may be stacked."""
        runs = [[f"seed={seed}"] for seed in SEEDS]
        broken = replace(self, small=WHOLE).as_alone(runs)
        return Answer(broken, "runs of three seeds as one program equal the same runs alone")

    def strengths(self) -> Answer:
        """Check that runs that differ in the strengths of the method may be stacked."""
        from clrun.runs.targets import python_name, strategy_class

        settings = self.settings()
        fields = strategy_class(settings).Hyper._fields
        typed = {text.partition("=")[0] for text in self.overrides}
        free = {key: v for key, v in settings.knobs.items() if python_name(key) in fields and key not in typed and v}
        values = {key: value for key, value in free.items() if self.may_type(key, value * FACTORS[0])}
        if not values:
            return Answer(None, "no strength that is not typed, not 0, and read with these settings", made=False)
        runs = [[f"{key}={value * factor}" for key, value in values.items()] for factor in FACTORS]
        return Answer(self.as_alone(runs), f"runs that differ in {', '.join(values)} stacked equal the same runs alone")

    def may_type(self, key: str, value: float) -> bool:
        """Return whether a strength may be typed beside what was, as EWC's gamma may beside online=true alone."""
        try:
            self.prepared(f"{key}={value}")
        except UsageError:
            return False
        return True

    def as_alone(self, runs: Sequence[Sequence[str]]) -> str | None:
        """Return how runs, each with its own overrides, differ in a stack from the same runs alone."""
        from clrun.runs import contract

        return contract.stacked(self.stack(runs), lambda r: self.stack([runs[r]]), [" ".join(own) for own in runs])

    def resumed(self) -> Answer:
        """Check that a run that is killed ends as one that is not."""
        from clrun.runs import contract

        folders = [f'outputs="{self.folder / name}"' for name in ("whole", "killed")]
        with redirect_stderr(io.StringIO()):  # it says that a run goes on, which is no news here
            broken = contract.resumed(*(self.prepared("checkpoint_every=1e-9", folder) for folder in folders))
        return Answer(broken, "killed within its first and its second task, a run ends with the same files")

    def neutral(self) -> Answer:
        """Check that the method is plain training at the values that its yaml calls neutral."""
        from clrun.runs import contract

        option = self.catalog.options["strategy"][str(self.settings()["strategy"])]
        values = getattr(option, "neutral", None)
        if values is None:
            return Answer(None, "its yaml states no neutral values", made=False)
        texts = [f"{key}={value}" for key, value in values.items()]
        others = [text for text in self.overrides if text.partition("=")[0] not in ("strategy", *option.knobs)]
        mine = replace(self, overrides=[f"strategy={option.name}", *others, *texts])
        plain = replace(self, overrides=["strategy=finetune", *others])
        when = f"with {' '.join(texts)} " if texts else ""
        return Answer(contract.neutral(mine.stack(), plain.stack()), f"{when}it is finetune, bit for bit")

    def health(self) -> Answer:
        """Check that the columns of health.csv and the scores are numbers, and that the warnings of the class are
        sentences."""
        from clrun.runs import contract

        stack = self.stack()
        _, reports = contract.trained(stack)
        rows = [{"task": number, **report.health[0]} for number, report in enumerate(reports, start=1)]
        warnings = type(stack.strategy).warnings(rows, self.settings().knobs)
        if not isinstance(warnings, list) or not all(isinstance(sentence, str) for sentence in warnings):
            return Answer(f"warnings returns {warnings!r}, and not a list of sentences", "")
        columns = f"columns {', '.join(reports[-1].health[0])}"
        said = "; ".join([columns, *(f"it warns: {sentence}" for sentence in warnings)])
        return Answer(contract.health(reports), said)


def in_each(able: Mapping[str, Checks], check: Callable[[Checks], Answer]) -> Answer:
    """Return the first broken promise in any of the scenarios, or that it is kept in all."""
    answers = []
    for scenario, checks in able.items():
        answers.append(check(checks))
        if answers[-1].broken is not None:
            return Answer(f"scenario={scenario}: {answers[-1].broken}", "")
    return Answer(None, f"{answers[-1].sentence} ({', '.join(able)})", any(answer.made for answer in answers))


def finding(name: str, check: Callable[[], Answer]) -> Finding:
    """Return what a check finds; an error of the class under check is a broken promise, with its place in the user's
    file."""
    try:
        answer = check()
    except Exception as error:
        return Finding(name, False, " ".join(described(error).split()))
    return Finding(name, answer.broken is None, answer.broken or answer.sentence, answer.made)


if __name__ == "__main__":
    main()
