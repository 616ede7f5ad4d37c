"""MLflow: runs of the experiment `clrun` in outputs/mlflow.db, or where MLFLOW_TRACKING_URI says."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from filelock import FileLock
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from clrun.loggers.points import Point
from clrun.loggers.sink import Identity

EXPERIMENT = "clrun"

# What MLflow takes in one request.
AT_ONCE = {"metrics": 1000, "params": 100}

LOCK_SECONDS = 60.0  # to wait for other workers that write into the database

STATUSES = {"done": "FINISHED"}  # of clrun -> of MLflow; all others have failed


class MLflow:
    """A run of MLflow's."""

    def __init__(self, identity: Identity, key: str | None) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.identity, self.uri = identity, os.environ.get("MLFLOW_TRACKING_URI")
        with self.alone():
            outputs = identity.outputs.resolve()
            self.client = MlflowClient(tracking_uri=self.uri or f"sqlite:///{outputs / 'mlflow.db'}")
            self.key = self.begun() if key is None else key
            if key is not None:
                self.client.update_run(key, status="RUNNING")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other workers from a database that is a file meanwhile; a server needs no such thing."""
        lock = FileLock(self.identity.outputs / ".mlflow.lock", timeout=LOCK_SECONDS)
        with nullcontext() if self.uri else lock:
            yield

    def begun(self) -> str:
        """Begin a run, with its settings. Return its identity at MLflow's."""
        tags = {"clrun.run": self.identity.run, "clrun.group": self.identity.group}
        found = self.client.create_run(self.experiment(), run_name=self.identity.name, tags=tags)
        key: str = found.info.run_id
        params = [Param(name, value) for name, value in self.identity.settings.items()]
        for start in range(0, len(params), AT_ONCE["params"]):
            self.client.log_batch(key, params=params[start : start + AT_ONCE["params"]])
        return key

    def experiment(self) -> str:
        """Return the identity of the experiment, which is made where there is none."""
        artifacts = None if self.uri else (self.identity.outputs.resolve() / "mlartifacts").as_uri()
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                made: str = self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)
                return made
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id)

    def points(self, points: Sequence[Point]) -> None:
        self.log([Metric(point.name, point.value, now(), point.x) for point in points])

    def log(self, metrics: Sequence[Metric]) -> None:
        """Log metrics, so many at once as MLflow takes."""
        with self.alone():
            for start in range(0, len(metrics), AT_ONCE["metrics"]):
                self.client.log_batch(self.key, metrics=metrics[start : start + AT_ONCE["metrics"]])

    def picture(self, name: str, figure: Figure, task: int) -> None:
        with self.alone():
            self.client.log_figure(self.key, figure, f"{name}/after_task_{task}.png")

    def end(self, status: str, summary: Mapping[str, float]) -> None:
        self.log([Metric(f"summary/{name}", value, now(), 0) for name, value in summary.items()])
        with self.alone():
            self.client.set_terminated(self.key, STATUSES.get(status, "FAILED"))

    def pause(self) -> None:
        with self.alone():
            self.client.set_terminated(self.key, "KILLED")


def opened(identity: Identity, key: str | None) -> MLflow:
    """Return the sink of a run."""
    return MLflow(identity, key)


def now() -> int:
    """Return the time in milliseconds, as MLflow wants it."""
    return int(1000 * time.time())
