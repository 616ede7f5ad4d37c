"""A results.csv made by hand, for tests of the report."""

import numpy as np
import pandas as pd

from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL

ACCURACY = {  # (stream, group) -> accuracy by seed; nan: diverged
    ("s1", "e100"): [0.90, 0.92, 0.97, 0.93],
    ("s1", "e1000"): [0.95, 0.94, np.nan, np.nan],
    ("s1", "fine"): [0.60, 0.70, 0.65, 0.62, 0.90],
    ("s1", "top"): [0.99, 0.98, 0.97],
    ("s2", "other"): [0.10],
}
KEYS = {
    "e100": {"strategy": "ewc", "lambda": 100.0, "online": False},
    "e1000": {"strategy": "ewc", "lambda": 1000.0, "online": False},
    "fine": {"strategy": "finetune"},
    "top": {"strategy": "joint"},
    "other": {"strategy": "finetune", "tasks": 2},
}


def by_hand() -> pd.DataFrame:
    """A row a run."""
    rows = []
    for (stream, group), accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            status = "diverged" if np.isnan(accuracy) else "done"
            head = {"run": f"{group}{seed}", "group": group, "stream": stream, "setup": stream, "status": status}
            head["seed"] = seed
            same = {"dataset": "digits", "split": "classes", "scenario": "task", "tasks": 5, "model": "mlp"}
            found = {"average_accuracy": accuracy, "learning_accuracy": accuracy + 0.01, "forgetting": 0.1 * seed}
            seconds = 2.0 if KEYS[group]["strategy"] == "finetune" else 4.0
            costs = {"train_seconds": seconds, "consolidate_seconds": 0.5, "state_mb": 0.1 * seed, "device": "cpu"}
            rows.append({**head, **same, **KEYS[group], **found, **costs, "workers": seed})
    columns = [*SUMMARY_HEAD, "stream", "setup", "lambda", "online", "workers", *SUMMARY_TAIL]
    return pd.DataFrame(rows).reindex(columns=columns)


def values(stream: str, group: str) -> np.ndarray:
    found = np.array(ACCURACY[stream, group])
    return found[np.isfinite(found)]
