"""The Hydra launcher: all jobs of a sweep are composed and checked before any runs, and equal jobs run once.

What is to be trained then goes to clrun/sweep.py.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from clrun import catalog
from clrun.catalog import GROUPS, SOURCES, Catalog, shown
from clrun.composing import remembering
from clrun.config import Settings, check, foreign
from clrun.errors import RunsFailed, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from clrun.prepare import Prepared

DATA = {"data_dir", "dataset.root"}  # no part of the identity, which knows what lies there
Jobs = Sequence[tuple[Sequence[str], DictConfig]]  # a job's overrides, and what they compose to


class StackedLauncher(Launcher):
    """What `-m` runs its jobs with."""

    def setup(self, *, hydra_context: HydraContext, task_function: Callable[[Any], Any], config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        loader = hydra_context.config_loader
        loader.load_sweep_config = remembering(loader.load_sweep_config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Train what is not finished, print a table of all.

        UsageError: one of the jobs cannot be; then none has run. RunsFailed: some crashed, all others are done.
        """
        setup_globals()
        refuse_empty(self.config.hydra.overrides.task, job_overrides)
        jobs = [
            (list(overrides), self.compose(overrides, n)) for n, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        known, typed = composed_from(self.config.hydra)
        settings = settings_of(jobs, known, typed)
        from clrun import cluster, plan, sweep  # pandas

        where = cluster.of([cfg for _, cfg in jobs], known)
        if where is None:
            plan.warm_up(settings)
        prepared = prepare_all(settings)
        runs = list({one.id: one for one in prepared}.values())
        todo = unfinished(runs, len(jobs))
        errors = sweep.train_all(todo) if where is None else cluster.train_all(todo, where)
        ended = {one.id: summary(one) for one in runs if one.id not in errors and one.finished}
        trouble = show([one for one in runs if one.id in ended], ended)
        print(tally(len(runs), ended, len(errors)))
        if errors:
            trouble = [failures([one for one in runs if one.id in errors], errors, len(runs)), *trouble]
        if trouble:
            raise RunsFailed("\n".join(trouble))
        return [
            job_return(overrides, cfg, one, ended[one.id])
            for (overrides, cfg), one in zip(jobs, prepared, strict=True)
            if one.id in ended
        ]

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        if "hydra" in cfg:
            with open_dict(cfg):
                cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return cfg


def register() -> None:
    """Make Hydra accept a launcher that lives in this package."""
    accepted = getattr(Plugins, "is_in_toplevel_plugins_module", None)
    if accepted:  # Hydra 1.3 insists on the module name `hydra_plugins.`; 1.4 takes any registered class
        Plugins.is_in_toplevel_plugins_module = staticmethod(
            lambda name: name == f"{__name__}.StackedLauncher" or accepted(name)
        )
    Plugins.instance().register(StackedLauncher)


# ---------------------------------------------------------------- before anything runs


def composed_from(hydra: DictConfig | None = None) -> tuple[Catalog, list[str]]:
    """The catalogue of the folders that Hydra composed from, and the keys that were typed."""
    hydra = HydraConfig.get() if hydra is None else hydra
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    folders = [catalog.CONF, *(folder for folder in folders if folder != catalog.CONF)]
    parser = OverridesParser.create()
    return catalog.read(tuple(folders)), [parser.parse_override(text).key_or_group for text in hydra.overrides.task]


def refuse_empty(texts: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
    """A list without values, as seed=range(0), leaves no job."""
    if not jobs:
        parser = OverridesParser.create()
        read = {text: parser.parse_override(text) for text in texts}
        swept = [text for text, one in read.items() if one.is_sweep_override() and not isinstance(one.value(), Glob)]
        empty = [text for text in swept if not list(parser.parse_override(text).sweep_iterator())] or swept
        raise UsageError(f"{' '.join(empty)} has no values, so there is nothing to run; range(5) counts from 0 to 4.")


def settings_of(jobs: Jobs, known: Catalog, typed: Sequence[str]) -> list[Settings]:
    """All jobs checked. A knob that some job's strategy takes is dropped in those whose strategy does not.

    UsageError: a job cannot be, or none takes a knob.
    """
    taken = {key for _, cfg in jobs for key in keys_taken(cfg, known)}
    refuse_foreign([key for key in typed if key not in taken], jobs, known)
    dropped: dict[str, None] = {}
    settings = []
    for overrides, cfg in jobs:
        try:
            settings.append(check(cfg, taken, known, typed))
        except UsageError as error:
            text = " ".join(filter_overrides(overrides))
            raise UsageError(f"{error} (In the job {text}; no job was started.)") from None
        idle = [key for key in taken - keys_taken(cfg, known) if OmegaConf.select(cfg, key) is not None]
        dropped |= dict.fromkeys(f"{key} ({', '.join(sorted(owners(cfg, key, known)))})" for key in sorted(idle))
    if dropped:
        print(f"Left out where it is not taken: {'; '.join(dropped)}.")
    return settings


def refuse_foreign(keys: Sequence[str], jobs: Jobs, known: Catalog) -> None:
    """A knob that none of the options takes that the jobs choose."""
    own = [key for key in keys if any(group in GROUPS for group, _ in known.takers(key))]
    given = [key for key in own if any(OmegaConf.select(cfg, key) is not None for _, cfg in jobs)]
    if given:
        chosen = [dict.fromkeys(str(OmegaConf.select(cfg, f"{group}.name")) for _, cfg in jobs) for group in GROUPS]
        raise UsageError(foreign(given[0], known, tuple(",".join(names) for names in chosen)))


def keys_taken(cfg: DictConfig, known: Catalog) -> set[str]:
    """The knobs of a job's options; empty for a job that check() will refuse."""
    chosen = [(group, OmegaConf.select(cfg, f"{group}.name")) for group in GROUPS]
    return {key for group, name in chosen if name in known.options[group] for key in known.knobs(group, name)}


def owners(cfg: DictConfig, key: str, known: Catalog) -> set[str]:
    """The job's options that could have taken a key, such as strategy=finetune."""
    return {f"{group}={cfg[group].name}" for group, _ in known.takers(key)}


def prepare_all(settings: Sequence[Settings]) -> list["Prepared"]:
    """All jobs prepared, equal ones once. UsageError before anything has run."""
    from clrun import run  # torch, from here on

    seen: dict[str, Prepared] = {}
    return [seen.setdefault(key, seen.get(key) or run.prepare(one)) for one in settings for key in [repr(one.values)]]


# ---------------------------------------------------------------- running


def unfinished(runs: Sequence["Prepared"], jobs: int) -> list["Prepared"]:
    """Those that remain to be trained; says how many there are."""
    todo = [one for one in runs if one.settings["rerun"] or not one.finished]
    coincide = f", of {jobs} jobs" if jobs != len(runs) else ""
    print(f"{counted(len(runs))}{coincide}: {len(todo)} to train, {len(runs) - len(todo)} done already.")
    warn(todo)
    return todo


def warn(todo: Sequence["Prepared"]) -> None:
    """Say of each strategy that it is known to fail in its scenario."""
    known = {(one.settings["strategy"], one.settings["scenario"]): one.settings.warning for one in todo}
    for (strategy, scenario), warning in known.items():
        if warning:
            print(f"Warning: strategy={strategy} scenario={scenario}: {warning}.")


def counted(runs: int) -> str:
    return f"{runs} run{'s' if runs != 1 else ''}"


def failures(failed: Sequence["Prepared"], errors: Mapping[str, str], runs: int) -> str:
    """Which runs crashed, why, and where it is written."""
    lines = [f"{len(failed)} of {runs} runs crashed; the same command again tries only these:"]
    for one in failed:
        lines.append(f"  {errors[one.id]} ({one.directory / 'failed.txt'})")
    return "\n".join(lines)


def job_return(overrides: Sequence[str], cfg: DictConfig, prepared: "Prepared", summary: "pd.Series") -> JobReturn:
    """What a sweeper wants to know: the average accuracy."""
    done = JobReturn(overrides=list(overrides), cfg=cfg, working_dir=str(prepared.directory), task_name="clrun")
    done.return_value, done.status = float(summary["average_accuracy"]), JobStatus.COMPLETED
    return done


# ---------------------------------------------------------------- afterwards


def summary(prepared: "Prepared") -> "pd.Series":
    """The row of a finished run's summary.csv."""
    from clrun import results

    return results.read_summary(prepared.directory / "summary.csv").iloc[0]


def varying(settings: Sequence[Settings]) -> list[str]:
    """The keys of the identity that differ between runs, but for the strategy; and where their data lie."""
    told = {"strategy", *SOURCES}  # a class has one source here
    keys = dict.fromkeys(key for one in settings for key in one.values if key not in one.private - DATA | told)
    return [key for key in keys if len({repr(one.values[key]) for one in settings if key in one.values}) > 1]


def show(runs: Sequence["Prepared"], ended: Mapping[str, "pd.Series"]) -> list[str]:
    """A table of the runs, what differs between them and what came out; with several seeds the means over them too.

    Returns why something of it is not written."""
    if not runs:
        return []
    import pandas as pd

    from clrun import run, terminal

    trouble = [run.pictured(one) for one in runs]
    trouble += [run.collected(one) for one in {one.settings["outputs"]: one for one in runs}.values()]
    keys = ["strategy", *varying([one.settings for one in runs])]
    told = [{key: shown(one.settings[key]) for key in keys if key in one.settings.values} for one in runs]
    table = pd.DataFrame([{**ended[one.id], **values} for one, values in zip(runs, told, strict=True)])
    table = table.assign(**{key: [values.get(key, "") for values in told] for key in keys})
    console = terminal.make_console()
    terminal.runs_table(console, table, keys)
    if "seed" in keys:
        terminal.sweep_table(console, table, keys)
    terminal.best_by_validation(console, table, keys)
    return [str(error) for error in trouble if error is not None]


def tally(runs: int, ended: Mapping[str, "pd.Series"], failed: int) -> str:
    """Such as "30 runs: 22 done, 5 diverged, 3 crashed or killed."."""
    counts = Counter(row["status"] for row in ended.values())
    counts["crashed or killed"] = failed
    return f"{counted(runs)}: {', '.join(f'{n} {what}' for what, n in counts.items() if n)}."
