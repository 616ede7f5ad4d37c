"""Every column of every CSV file that clrun writes, with its meaning and its unit, in the order of the columns.

docs/reference/files.md is generated from `FILES`. A name in angle brackets stands for several columns: `task_<k>` for
one column per task (k = 1 ... T), `<key>` for one column per key of the configuration, with the key as its name.
Accuracies and what follows from them are fractions, 1 for 100 %. An empty cell means "not measured" or "not defined".
"""

from collections.abc import Mapping

# The first columns of summary.csv, which say what the run is; then `stream`, `setup` and the keys; then SUMMARY_TAIL.
SUMMARY_HEAD_MEANINGS = {
    "run": "identity of the run: 10 hexadecimal digits, a hash of its settings and of its data",
    "group": "the same hash without the seed: runs of one group differ in nothing but the seed",
    "status": "`done` or `diverged`",
    "strategy": "name of the strategy",
    "dataset": "name of the data set",
    "split": "how the data are divided into tasks",
    "scenario": "`task`, `domain` or `class`: what is known and asked at test time",
    "tasks": "number of tasks into which the data are divided",
    "model": "name of the network",
    "seed": "seed of every random choice of the run",
}

KEY_MEANINGS = {
    "stream": "identity of the stream: a hash of the data and of the settings that say what is learnt and asked: those "
    "of dataset, split and features, and tasks, first_tasks, scenario, active, task_id_at_test and validation. "
    "Accuracies of one stream can be compared. Earlier versions wrote here what is `setup` now",
    "setup": "identity of the setup: a hash of the data and of all settings but the seed, the strategy and the keys of "
    "the strategy; a run is measured against joint and finetune of its setup",
    "<key>": "value of this key; a list is written as JSON (the key `stream` has no column: `passes` is empty without "
    "stream=online)",
}

METRIC_MEANINGS = {
    "average_accuracy": "accuracy after the last task, mean over the tasks",
    "average_incremental_accuracy": "mean over the stages of the mean accuracy on the tasks learnt so far, in which "
    "every task counts the same; empty for `joint`, which has one stage, so that it cannot be compared",
    "learning_accuracy": "accuracy on each task just after it was learnt, mean over the tasks",
    "forgetting": "best accuracy before the last task minus the final accuracy, mean over all tasks but the last",
    "backward_transfer": "final accuracy minus the accuracy just after learning, mean over all tasks but the last",
    "forward_transfer": "accuracy just before learning minus that of the untrained network, mean over all tasks but "
    "the first",
}

OVERALL_MEANINGS = {
    "overall_accuracy": "accuracy over all test samples of all tasks after the last task: a task counts by its number "
    "of samples; what papers report where tasks differ in size",
    "overall_incremental_accuracy": "mean over the stages of the accuracy over all test samples of the tasks learnt so "
    "far (the average incremental accuracy of iCaRL); empty for `joint`",
}

VALIDATION_MEANINGS = {
    "validation_accuracy": "`average_accuracy` on held-out training data; needs `validation` above 0",
}

TASK_AWARE_MEANINGS = {
    "task_aware_accuracy": "`average_accuracy` where the task is given at test, so that its own outputs alone answer, "
    "mean over the tasks with several outputs; with `measure=task_aware`",
}

CONTINUAL_METRIC_MEANINGS = {
    "min_accuracy": "lowest accuracy on each task at any evaluation after its own training, mean over all tasks but "
    "the last; needs `evaluate_every` above 0",
    "worst_case_accuracy": "final accuracy on the last task, weighted 1/T, and `min_accuracy`, weighted 1 - 1/T; needs "
    "`evaluate_every` above 0",
    "stability_gap": "accuracy before a change of task minus the lowest accuracy while the next task is learnt, mean "
    "over the old tasks and the changes; needs `evaluate_every` above 0",
}

ONLINE_MEANINGS = {
    "online_accuracy": "share of all training samples that were classified correctly just before they were learnt; "
    "with `stream=online`",
    "accuracy_auc": "area under the accuracy on the tasks seen so far, over the steps (A_AUC); needs `evaluate_every` "
    "above 0",
}

COST_MEANINGS = {
    "train_seconds": "seconds of training steps; of a run in a stack its share, as for all costs",
    "consolidate_seconds": "seconds of what the strategy does after a pass over a task, such as EWC's Fisher",
    "eval_seconds": "seconds of evaluation",
    "wall_seconds": "seconds from the start of the run to its end, including setup, plots and checkpoints",
    "cpu_seconds": "seconds of processor time over the same span, of all threads of the process: it may exceed "
    "`wall_seconds`, and on a busy machine it stays about the same while that grows",
    "samples_per_second": "training samples divided by `train_seconds`",
    "peak_memory_mb": "largest memory in use, in megabytes (10^6 bytes): allocated on the GPU, or held by the process",
    "state_mb": "megabytes (10^6 bytes) that the strategy keeps in addition to the network, including stored images; "
    "of a memory, what it holds counts and not its empty slots",
    "energy_wh": "energy that the GPU has drawn, in watt-hours",
    "stack_size": "number of runs that were trained together",
    "threads": "CPU threads per run",
    "carbon_g": "grams of CO2-equivalent: `energy_wh` / 1000 * `grams_per_kwh`",
    "money": "`wall_seconds` / 3600 * `price_per_hour`, in the currency of the price",
}

SIZE_MEANINGS = {
    "sample_count": "number of samples of the data set, for training and testing",
}

# All columns of the next two groups hold text, and all others after the keys hold numbers.
REMARK_MEANINGS = {
    "diverged_at": "task and step at which a loss or a weight was first not finite",
    "warnings": "warnings about the run, separated by ` | `",
}

PROVENANCE_MEANINGS = {
    "device": "kind of the device and its model name",
    "torch_version": "version of PyTorch",
    "clrun_version": "version of clrun",
    "pillow_version": "version of Pillow that decoded picture files, yours or torchvision's; empty for other data sets",
    "commit": "commit of clrun's checkout, with `+` if files differ from it; empty if clrun was installed as a wheel",
}

FORGETTING_MEANINGS = {
    "task": "number of the task, from 1; `average` in the last row, which holds the means of the defined cells; "
    "that of `accuracy_when_learned` is empty where a task was not measured, as in summary.csv",
    "accuracy_untrained": "accuracy of the untrained network",
    "accuracy_when_learned": "accuracy just after the task was learnt",
    "best_accuracy": "best accuracy after any task but the last; of the last task its final accuracy",
    "final_accuracy": "accuracy after the last task",
    "forgetting": "`best_accuracy` - `final_accuracy`",
    "backward_transfer": "`final_accuracy` - `accuracy_when_learned`",
    "forward_transfer": "accuracy just before the task was learnt - `accuracy_untrained`",
}

TASK_COST_MEANINGS = {
    "task": "number of the task, from 1; 0 for the evaluation before any training",
    "train_seconds": "seconds of training steps; of a run in a stack its share, as for all costs",
    "consolidate_seconds": "seconds of what the strategy does after a pass over the task",
    "eval_seconds": "seconds of evaluation",
    "samples": "training samples, each counted as often as it was used",
    "energy_wh": "energy that the GPU has drawn, in watt-hours",
}

# The metrics that clrun-report derives from several runs; `finetune` and `joint` are runs of the same setup and seed.
REPORT_METRIC_MEANINGS = {
    "total_seconds": "`train_seconds` + `consolidate_seconds`",
    "relative_seconds": "`total_seconds` divided by that of finetune",
    "accuracy_kept": "`average_accuracy` minus that of finetune",
    "kept_per_second": "`accuracy_kept` / `total_seconds`",
    "kept_per_mb": "`accuracy_kept` / `state_mb`",
    "kept_per_wh": "`accuracy_kept` / `energy_wh`",
    "gap_closed": "(`average_accuracy` - finetune) / mean over the seeds of (joint - finetune)",
    "own_metric": "what the function of `--metric` returns for the `predictions.csv` of a run; more is better",
    "intransigence": "joint's `average_accuracy` - `learning_accuracy`; the reference is joint training on all tasks, "
    "and not on tasks 1 to k as in Chaudhry et al. 2018",
}

_MATRIX = {
    "after_task": "number of tasks that have been learnt; 0 for the untrained network",
    "task_<k>": "accuracy on task k; empty where its outputs may not answer yet (`scenario=class active=seen`)",
    "average": "mean accuracy on the tasks learnt so far, every task counts the same; in row 0 and for `joint` on all "
    "tasks",
    "overall": "accuracy over all samples of the tasks learnt so far, a task counts by its number of samples; in row 0 "
    "and for `joint` of all tasks",
}

_SUMMARY = (
    SUMMARY_HEAD_MEANINGS
    | KEY_MEANINGS
    | METRIC_MEANINGS
    | OVERALL_MEANINGS
    | VALIDATION_MEANINGS
    | TASK_AWARE_MEANINGS
    | CONTINUAL_METRIC_MEANINGS
    | ONLINE_MEANINGS
    | COST_MEANINGS
    | SIZE_MEANINGS
    | REMARK_MEANINGS
    | PROVENANCE_MEANINGS
)

# file -> column -> meaning
FILES: Mapping[str, Mapping[str, str]] = {
    "accuracy_matrix.csv": _MATRIX,
    "validation_matrix.csv": _MATRIX
    | {"task_<k>": "accuracy on the held-out training samples of task k; needs `validation` above 0"},
    "forgetting.csv": FORGETTING_MEANINGS,
    "accuracy.csv": {
        "run": "identity of the run",
        "strategy": "name of the strategy",
        "seed": "seed of the run",
        "after_task": "number of tasks that have been learnt; 0 for the untrained network",
        "eval_task": "number of the task that was evaluated, from 1",
        "correct": "number of test samples that were classified correctly",
        "n": "number of test samples of the task",
        "accuracy": "`correct` / `n`",
    },
    "accuracy_over_training.csv": {
        "run": "identity of the run",
        "seed": "seed of the run",
        "step": "optimizer steps since the start of the run",
        "stage": "number of the task that is being learnt, from 1; 0 for the untrained network",
        "eval_task": "number of the task that was evaluated, from 1",
        "accuracy": "test accuracy; empty where it is in the accuracy matrix, since no output of the task may answer",
    },
    "online_accuracy.csv": {
        "task": "number of the task that was being learnt, from 1; `all` in the last row",
        "samples": "training samples that were new then",
        "correct": "number of them that the network classified correctly just before it learnt from them",
        "online_accuracy": "`correct` / `samples`",
    },
    "confusion.csv": {
        "true_class": "class of the test samples",
        "predicted_class": "class that the network predicted, at the end of the run",
        "count": "number of test samples",
    },
    "confusion_over_tasks.csv": {
        "after_task": "number of tasks that have been learnt",
        "eval_task": "number of the task of the test samples, from 1",
        "true_class": "class of the test samples",
        "predicted_class": "class that the network predicted",
        "count": "number of test samples; pairs of classes that do not occur have no row",
        "true_output": "number of the output that is right, from 1: classes of different tasks may have one name",
        "predicted_output": "number of the output that the network predicted, from 1",
        "sample": "number of the first of these test samples in the data set, from 0, all training samples first",
    },
    "class_accuracy.csv": {
        "after_task": "number of tasks that have been learnt",
        "eval_task": "number of the task of the test samples, from 1",
        "class": "class of the test samples",
        "output": "number of the output that is right, from 1: classes of different tasks may have one name",
        "correct": "number of test samples of the class that were classified correctly",
        "n": "number of test samples of the class",
        "accuracy": "`correct` / `n`: the recall of the class",
    },
    "predictions.csv": {
        "after_task": "number of tasks that have been learnt",
        "eval_task": "number of the task of the test sample, from 1",
        "sample": "number of the sample in the data set, from 0, all training samples first",
        "true_class": "class of the sample",
        "predicted_class": "class that the network predicted",
        "true_output": "number of the output that is right, from 1: classes of different tasks may have one name",
        "predicted_output": "number of the output that the network predicted, from 1",
    },
    "probe.csv": {
        "after_task": "number of tasks that have been learnt; 0 for the untrained network",
        "eval_task": "number of the task that was probed, from 1",
        "correct": "number of its test samples that its linear probe answers correctly",
        "n": "number of its test samples",
        "probe_accuracy": "`correct` / `n`",
        "accuracy": "accuracy of the run itself, as in accuracy.csv",
        "forgotten_in_features": "best `probe_accuracy` on the task since it was learnt, minus that of this row",
        "forgotten": "best `accuracy` on the task since it was learnt, minus that of this row",
    },
    "calibration.csv": {
        "after_task": "number of tasks that have been learnt",
        "eval_task": "number of the task of the test samples, from 1; `all` for all tasks learnt so far together",
        "n": "number of test samples",
        "accuracy": "share of them that were classified correctly",
        "confidence": "largest value of the softmax over the outputs that may answer, mean over the samples",
        "ece": "expected calibration error with 15 bins of equal width (Guo et al. 2017, equation 3)",
    },
    "task_aware.csv": {
        "after_task": "number of tasks that have been learnt",
        "eval_task": "number of the task of the test samples, from 1",
        "correct": "number of them that were classified correctly where the outputs of this task alone may answer",
        "n": "number of test samples",
        "accuracy": "`correct` / `n`",
    },
    "health.csv": {
        "task": "number of the task, from 1",
        "steps": "optimizer steps of the task",
        "steps_not_finite": "steps at which the loss or the norm of the gradient was not finite",
        "loss": "training loss including the penalties of the strategy, mean over the steps",
        "gradient_norm": "Euclidean norm of the gradient, mean over the steps (from those at which it is computed)",
        "average_distance": "with average=ema: distance of the average of the weights, which is evaluated, from the "
        "weights, divided by the norm of the latter, after the task; of a strategy that fits something to the weights "
        "when a task ends, such as icarl, before the average takes their place",
        "dead_share": "with measure=plasticity: share of the hidden units (of convolutions: channels) whose activation "
        "is the same for all of 512 training samples of the task, after the task; with ReLU that is 0",
        "effective_rank": "with measure=plasticity: how many directions the features of the last hidden layer use on "
        "these samples: exp(entropy of the singular values divided by their sum) (Roy & Vetterli 2007)",
        "weight_norm": "with measure=plasticity: Euclidean norm of the weights of the network, after the task",
    },
    "costs.csv": TASK_COST_MEANINGS,
    "tasks.csv": {
        "task": "number of the task, from 1",
        "class": "name of one of its classes, in the order of the outputs; where tasks differ by their classes",
        "domain": "its domain; with `split=domains`",
        "angle": "rotation of its images in degrees, counter-clockwise; where tasks differ by their rotation",
    },
    "class_counts.csv": {
        "task": "number of the task that is being learnt, from 1",
        "class": "name of a class of which samples come then",
        "of_task": "number of the task that these samples belong to, from 1, with which the class is tested",
        "samples": "number of these training samples",
        "first_angle": "rotation of the first of them in degrees, counter-clockwise; with `split.circle`",
        "last_angle": "rotation of the last of them; it grows from sample to sample, around at 360",
    },
    "pictures.csv": {
        "part": "`train` or `test`",
        "class": "name of the class",
        "pictures": "number of its pictures",
        "digest": "digest of the bytes of these files: 16 hexadecimal digits",
        "settings": "identity of the run's settings without its data: 10 hexadecimal digits",
    },
    "summary.csv": _SUMMARY,
    "results.csv": _SUMMARY,
    "report.csv": {
        "group": "identity of the group: runs that differ in nothing but the seed",
        "<key>": "value of a key in which the groups differ; `strategy` is always the first of them",
        "metric": "name of a metric of summary.csv or of one that the report derives; `diverged` for the share of the "
        "runs that diverged",
        "n": "number of runs",
        "mean": "mean over the runs",
        "sd": "standard deviation over the runs (with n - 1)",
        "low": "lower end of the 95 % t-interval of the mean",
        "high": "upper end of the 95 % t-interval of the mean",
    },
    "comparison.csv": {
        "stream": "identity of the stream of both rows",
        "first": "the row that was named first",
        "second": "the row whose values are subtracted",
        "measure": "name of the measure",
        "n": "number of pairs of runs with the same seed",
        "mean": "mean of the differences first - second",
        "sd": "standard deviation of the differences (with n - 1)",
        "low": "lower end of the 95 % t-interval of the mean",
        "high": "upper end of the 95 % t-interval of the mean",
        "diverged": "number of runs of both rows that have diverged, and are in no pair",
    },
    "trials.csv": {
        "trial": "number of the trial, from 1",
        "status": "`done`, `diverged` or `unfinished`",
        "validation_accuracy": "validation accuracy, mean over the seeds",
        "<key>": "value of a key that is searched",
    },
}

SUMMARY_HEAD = tuple(SUMMARY_HEAD_MEANINGS)
SUMMARY_METRICS = tuple(METRIC_MEANINGS)
OVERALL_METRICS = tuple(OVERALL_MEANINGS)
CONTINUAL_METRICS = tuple(CONTINUAL_METRIC_MEANINGS)
COSTS = tuple(COST_MEANINGS)
PROVENANCE = tuple(PROVENANCE_MEANINGS)
SUMMARY_TAIL = (
    *SUMMARY_METRICS,
    *OVERALL_METRICS,
    *VALIDATION_MEANINGS,
    *TASK_AWARE_MEANINGS,
    *CONTINUAL_METRICS,
    *ONLINE_MEANINGS,
    *COSTS,
    *SIZE_MEANINGS,
    *REMARK_MEANINGS,
    *PROVENANCE,
)
SUMMARY_TEXTS = (*REMARK_MEANINGS, *PROVENANCE)  # the columns of SUMMARY_TAIL that hold text

TIMED_FILES = ("summary.csv", "costs.csv")  # files of a run that hold times; equal runs have equal other files

# Keys that hold a digest of the user's file in which a class is defined, or a package's version, digests of the initial
# weights and of the run from which one goes on, and that run's group and stream; absent for clrun's own classes and for
# random weights.
SOURCES = (
    "source", "model.source", "optimizer.source", "features.source",
    "model.weights_source", "features.weights_source", "init_source", "init_group", "init_stream",
)  # fmt: skip

# Columns that are read as text, although "0012345678" and "12e4567890" look like numbers.
HASH_COLUMNS = ("run", "group", "stream", "setup", "commit", *SOURCES)

# Columns of summary.csv and results.csv that are read as text: hashes, and versions such as 12.0.
TEXT_COLUMNS = tuple(dict.fromkeys([*HASH_COLUMNS, *SUMMARY_TEXTS]))

WARNING_SEPARATOR = " | "  # between the warnings in one cell of summary.csv
