"""The Hydra launcher: all jobs of a sweep are composed and checked before any is trained, and equal jobs run once.

The runs that are not finished are then trained by clrun/sweep/execution.py, or as jobs by clrun/sweep/cluster.py.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from clrun.config.catalog import CLUSTER, GROUPS, Catalog
from clrun.config.check_values import check
from clrun.config.composition import Composed, Composer, composed_from, value_at
from clrun.config.messages import unsupported
from clrun.config.settings import Settings
from clrun.system.atomic_files import write_text
from clrun.system.errors import RunsFailed, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from clrun.runs.prepared import Prepared


class Job(NamedTuple):
    """A job of a sweep. Its configuration is composed when it is asked for: those of thousands would fill gigabytes."""

    overrides: Sequence[str]
    options: DictConfig  # what its options compose to, before other keys have the values that were typed
    composer: Composer

    def compose(self) -> Composed:
        """Return its configuration."""
        return self.composer(self.overrides)


Jobs = Sequence[Job]


class StackedLauncher(Launcher):
    """The launcher that `-m` uses; conf/hydra/launcher/stacked.yaml names it.

    check: whether the jobs are checked and nothing else is done (`clrun -m --check`). folders: a file into which the
    folders of all runs are written, one a line (for `clrun.run`).
    """

    def __init__(self, check: bool = False, folders: str | None = None) -> None:
        self.check_only, self.folders = check, folders

    def setup(self, *, hydra_context: HydraContext, task_function: Callable[[Any], Any], config: DictConfig) -> None:
        """Keep what `launch` needs. Hydra's sweeper composes every job to see whether it can be: only options can fail
        in that, so that they are all that is composed."""
        self.config, loader = config, hydra_context.config_loader
        compose = loader.load_sweep_config
        self.composer = Composer(lambda overrides: compose(config, list(overrides)))

        def options(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
            return self.composer.options(sweep_overrides)

        loader.load_sweep_config = options  # type: ignore # a patch of the sweeper's loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Train what is not finished, and print a table of all runs.

        Raise UsageError if a job cannot be trained; then none has been. Raise RunsFailed if some have crashed; then all
        others are done.
        """
        setup_globals()
        refuse_empty(self.config.hydra.overrides.task, job_overrides)
        jobs = [Job(tuple(one), self.composer.options(one), self.composer) for one in job_overrides]
        catalog, typed = composed_from(self.config.hydra)
        if self.check_only:
            check_jobs(jobs, catalog, typed)
            return []
        prepared, errors = train_jobs(jobs, catalog, typed)
        if self.folders is not None:
            write_text(Path(self.folders), "".join(f"{run.directory.absolute()}\n" for run in prepared))
        summaries = report(list({run.id: run for run in prepared}.values()), errors)
        return [
            job_return(job.overrides, run, summaries[run.id])
            for job, run in zip(jobs, prepared, strict=True)
            if run.id in summaries  # not those of a cluster that the command does not wait for
        ]


def register() -> None:
    """Make Hydra accept a launcher that is part of this package. It changes Hydra's class for the whole process."""
    accepted = getattr(Plugins, "is_in_toplevel_plugins_module", None)
    if accepted:  # Hydra 1.3 insists on the module name `hydra_plugins.`; 1.4 takes any registered class
        name = f"{__name__}.{StackedLauncher.__name__}"
        patched = staticmethod(lambda plugin: plugin == name or accepted(plugin))
        Plugins.is_in_toplevel_plugins_module = patched  # type: ignore # a patch: there is no other way to register it
    Plugins.instance().register(StackedLauncher)


def check_jobs(jobs: Jobs, catalog: Catalog, typed: Sequence[str]) -> None:
    """Check the settings of all jobs, and say how many runs they are; load no data and train nothing."""
    settings = settings_of(jobs, catalog, typed)
    from clrun.runs import prepare  # torch, from here on

    different = {repr(one.values): one for one in settings}
    for one in different.values():
        prepare.refuse_without_data(one)
    runs = f"{len(different)} runs, of {len(jobs)} jobs, have" if len(different) != 1 else "1 run has"
    print(f"Checked: {runs} legal settings. No data were loaded and nothing was trained.")


def train_jobs(jobs: Jobs, catalog: Catalog, typed: Sequence[str]) -> tuple[list["Prepared"], dict[str, str]]:
    """Check and prepare all jobs, then train their runs that are not finished, here or on a cluster. Return the run of
    each job, and the reason of each crash by the run's id. Raise UsageError before any is trained."""
    settings = settings_of(jobs, catalog, typed)
    from clrun.sweep import cluster, execution, workers  # pandas, from here on

    target = cluster.cluster_of([job.compose() for job in one_of_each_cluster(jobs)], catalog)
    if target is None:
        workers.warm_up_if_several(settings)
    prepared = prepare_all(settings)
    todo = unfinished(list({run.id: run for run in prepared}.values()), len(jobs))
    errors = execution.train_sweep(todo) if target is None else cluster.submit(todo, target)
    return prepared, errors


def report(runs: Sequence["Prepared"], errors: Mapping[str, str]) -> dict[str, "pd.Series"]:
    """Print how the runs of a sweep have ended. Return the rows of their summary.csv by the runs' ids. Raise RunsFailed
    if some have crashed (errors: id -> reason), where files of some cannot be read, or results not be written."""
    from clrun.sweep import summary

    ended = [run for run in runs if run.id not in errors and run.finished]
    summaries, damaged = summary.read_all(ended)
    failures = summary.show([run for run in ended if run.id in summaries], summaries)
    print(summary.tally(len(runs), summaries, len(errors), len(damaged)))
    if damaged:
        failures = [summary.damages(damaged, len(runs)), *failures]
    if errors:
        crashed = [run for run in runs if run.id in errors]
        failures = [summary.failures(crashed, errors, len(runs)), *failures]
    if failures:
        raise RunsFailed("\n".join(failures))
    return summaries


# ---------------------------------------------------------------- before anything runs


def refuse_empty(texts: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
    """Raise UsageError where a list without values, such as seed=range(0), leaves no job."""
    if jobs:
        return
    parser = OverridesParser.create()
    overrides = {text: parser.parse_override(text) for text in texts}
    swept = [text for text, o in overrides.items() if o.is_sweep_override() and not isinstance(o.value(), Glob)]
    empty = [text for text in swept if not list(parser.parse_override(text).sweep_iterator())] or swept
    raise UsageError(f"{' '.join(empty)} has no values, so there is nothing to run; range(5) counts from 0 to 4.")


def settings_of(jobs: Jobs, catalog: Catalog, typed: Sequence[str]) -> list[Settings]:
    """Return the checked settings of all jobs. A knob is dropped in the jobs whose strategy does not take it.

    Raise UsageError where a job cannot be trained, or where no job takes a knob.
    """
    taken = {id(options): keys_taken(options, catalog) for options in different_options(jobs)}
    accepted = set().union(*taken.values())
    refuse_unsupported([key for key in typed if key not in accepted], jobs, catalog)
    dropped: dict[str, None] = {}
    settings = []
    for job in jobs:
        cfg = job.compose()
        try:
            settings.append(check(cfg, accepted, catalog, typed))
        except UsageError as error:
            text = " ".join(filter_overrides(job.overrides))
            raise UsageError(f"{error} (In the job {text}; no job was started.)") from None
        unused = [key for key in accepted - taken[id(job.options)] if value_at(cfg, key) is not None]
        dropped |= dict.fromkeys(f"{key} ({', '.join(sorted(owners(cfg, key, catalog)))})" for key in sorted(unused))
    if dropped:
        print(f"Left out where it is not taken: {'; '.join(dropped)}.")
    return settings


def refuse_unsupported(keys: Sequence[str], jobs: Jobs, catalog: Catalog) -> None:
    """Raise UsageError where a typed knob belongs to options, of strategies, models ..., that no job chooses."""
    of_options = [key for key in keys if any(group in GROUPS for group, _ in catalog.takers(key))]
    given = [key for key in of_options if any(value_at(job.compose(), key) is not None for job in jobs)]
    if given:
        options = different_options(jobs)
        chosen = [dict.fromkeys(str(value_at(one, f"{group}.name")) for one in options) for group in GROUPS]
        raise UsageError(unsupported(given[0], catalog, tuple(",".join(names) for names in chosen)))


def different_options(jobs: Jobs) -> list[DictConfig]:
    """Return each choice of options of a sweep once."""
    return list({id(job.options): job.options for job in jobs}.values())


def one_of_each_cluster(jobs: Jobs) -> list[Job]:
    """Return jobs such that every cluster that the sweep has named is among theirs."""
    named = {}
    for job in jobs:
        texts = [text for text in job.overrides if text.lstrip("+").startswith(CLUSTER)]
        named[id(job.options), *texts] = job
    return list(named.values())


def keys_taken(cfg: DictConfig, catalog: Catalog) -> set[str]:
    """Return the knobs that a job's options take; none for a job that `check` will refuse."""
    chosen = [(group, value_at(cfg, f"{group}.name")) for group in GROUPS]
    return {key for group, name in chosen if name in catalog.options[group] for key in catalog.knobs(group, name)}


def owners(cfg: Composed, key: str, catalog: Catalog) -> set[str]:
    """Return the job's options that could have taken a key, such as strategy=finetune."""
    return {f"{group}={value_at(cfg, f'{group}.name')}" for group, _ in catalog.takers(key)}


def prepare_all(settings: Sequence[Settings]) -> list["Prepared"]:
    """Return the run of each job; jobs with equal settings share one. Raise UsageError before any is trained."""
    from clrun.runs import prepare  # torch, from here on

    by_values: dict[str, Prepared] = {}
    for job in settings:
        if repr(job.values) not in by_values:
            by_values[repr(job.values)] = prepare.prepare(job)
    return [by_values[repr(job.values)] for job in settings]


def unfinished(runs: Sequence["Prepared"], jobs: int) -> list["Prepared"]:
    """Return the runs that remain to be trained, and print how many there are, and what they are known to fail in.
    Remove what killed processes have left in the folders of the others."""
    from clrun.runs.failures import tidy_finished
    from clrun.runs.show import warn
    from clrun.sweep.summary import counted

    todo = [run for run in runs if run.needs_training]
    tidy_finished(runs)
    coincide = f", of {jobs} jobs" if jobs != len(runs) else ""
    print(f"{counted(len(runs))}{coincide}: {len(todo)} to train, {len(runs) - len(todo)} done already.")
    warn(todo)
    return todo


# ---------------------------------------------------------------- afterwards


def job_return(overrides: Sequence[str], prepared: "Prepared", summary: "pd.Series") -> JobReturn:
    """Return what a sweeper of Hydra's asks for: the average accuracy."""
    done = JobReturn(overrides=list(overrides), working_dir=str(prepared.directory), task_name="clrun")
    done.return_value, done.status = float(summary["average_accuracy"]), JobStatus.COMPLETED
    return done
