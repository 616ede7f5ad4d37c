"""The Hydra launcher: all jobs of a sweep are composed and checked before any runs, and equal jobs run once.

What is to be trained then goes to clrun/sweep.py.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from clrun.config.catalog import GROUPS, Catalog
from clrun.config.check import check
from clrun.config.composition import composed_from, remembering
from clrun.config.messages import unsupported
from clrun.config.settings import Settings
from clrun.system.errors import RunsFailed, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from clrun.runs.prepared import Prepared


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
        # pandas, from here on
        from clrun.results import run_files
        from clrun.sweep import cluster, execution, summary, workers

        where = cluster.of([cfg for _, cfg in jobs], known)
        if where is None:
            workers.warm_up_if_several(settings)
        prepared = prepare_all(settings)
        runs = list({one.id: one for one in prepared}.values())
        todo = unfinished(runs, len(jobs))
        errors = execution.train_all(todo) if where is None else cluster.train_all(todo, where)
        ended = {one.id: run_files.summary_of(one.directory) for one in runs if one.id not in errors and one.finished}
        trouble = summary.show([one for one in runs if one.id in ended], ended)
        print(summary.tally(len(runs), ended, len(errors)))
        if errors:
            trouble = [summary.failures([one for one in runs if one.id in errors], errors, len(runs)), *trouble]
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
        raise UsageError(unsupported(given[0], known, tuple(",".join(names) for names in chosen)))


def keys_taken(cfg: DictConfig, known: Catalog) -> set[str]:
    """The knobs of a job's options; empty for a job that check() will refuse."""
    chosen = [(group, OmegaConf.select(cfg, f"{group}.name")) for group in GROUPS]
    return {key for group, name in chosen if name in known.options[group] for key in known.knobs(group, name)}


def owners(cfg: DictConfig, key: str, known: Catalog) -> set[str]:
    """The job's options that could have taken a key, such as strategy=finetune."""
    return {f"{group}={cfg[group].name}" for group, _ in known.takers(key)}


def prepare_all(settings: Sequence[Settings]) -> list["Prepared"]:
    """All jobs prepared, equal ones once. UsageError before anything has run."""
    from clrun.runs import prepare  # torch, from here on

    seen: dict[str, Prepared] = {}
    return [
        seen.setdefault(key, seen.get(key) or prepare.prepare(one)) for one in settings for key in [repr(one.values)]
    ]


# ---------------------------------------------------------------- running


def unfinished(runs: Sequence["Prepared"], jobs: int) -> list["Prepared"]:
    """Those that remain to be trained; says how many there are."""
    from clrun.runs.show import warn
    from clrun.sweep.summary import counted

    todo = [one for one in runs if one.settings["rerun"] or not one.finished]
    coincide = f", of {jobs} jobs" if jobs != len(runs) else ""
    print(f"{counted(len(runs))}{coincide}: {len(todo)} to train, {len(runs) - len(todo)} done already.")
    warn(todo)
    return todo


def job_return(overrides: Sequence[str], cfg: DictConfig, prepared: "Prepared", summary: "pd.Series") -> JobReturn:
    """What a sweeper wants to know: the average accuracy."""
    done = JobReturn(overrides=list(overrides), cfg=cfg, working_dir=str(prepared.directory), task_name="clrun")
    done.return_value, done.status = float(summary["average_accuracy"]), JobStatus.COMPLETED
    return done


# ---------------------------------------------------------------- afterwards
