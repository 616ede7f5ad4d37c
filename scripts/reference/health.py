"""The columns of health.csv that a strategy adds to those that every run has."""

# column -> what it holds, for one task; unless another unit is named, a mean over the training steps of the task
MEANINGS: dict[str, str] = {
    "penalty": "the penalty on the weights, which is part of the loss",
    "penalty_over_loss": "`penalty` divided by `loss`",
    "fisher_sum": "sum of the Fisher information over all weights, after the task",
    "fisher_max": "largest Fisher information of a weight, after the task",
    "fisher_zero_share": "share of the weights whose Fisher information is zero, after the task",
    "importance_sum": "sum of the importance (Omega) over all weights, after the task",
    "importance_max": "largest importance of a weight, after the task",
    "importance_zero_share": "share of the weights whose importance is zero, after the task",
    "distillation": "the distillation loss, before it is multiplied by `lambda`",
    "replay_loss": "loss on the samples that were drawn from the memory; 0 while the memory is empty",
    "memory_fill": "share of the memory that is in use, after the task",
    "memory_classes": "number of classes in the memory, after the task",
    "memory_balance": "samples of the rarest class in the memory divided by those of the commonest, after the task",
    "projections": "number of steps so far whose gradient was projected",
    "projected_share": "share of the steps whose gradient was projected",
    "others_share": "share of the training samples that belong to other tasks",
    "networks": "number of networks so far",
    "nearest_network": "smallest distance from this task's network to an earlier one, relative to its norm; at most 1",
    "taken_share": "share of the hidden weights that this task keeps",
    "free_share": "share of the hidden weights that are free for later tasks, after the task",
    "used_share": "mean over the units of how much the tasks so far use them, after the task",
    "undecided_share": "share of the units whose gate lies strictly between 0 and 1, after the task",
    "open_share": "share of the free units that the task opens: the regularization term, before `lambda`",
    "merge_distance": "distance of the merged weights from the last task's, relative to the norm of the latter",
    "precision_sum": "sum over all weights of the precision of the merge, after the task",
    "memory_max": "largest absolute value of a memory unit",
    "push_rms": "root of the mean square of what memory units add to a hidden unit",
}

_FISHER = ("fisher_sum", "fisher_max", "fisher_zero_share")
_IMPORTANCE = ("importance_sum", "importance_max", "importance_zero_share")
_MEMORY = ("memory_fill", "memory_classes", "memory_balance")
_PENALTY = ("penalty", "penalty_over_loss")

# strategy -> its columns, with its default settings. tests/project/test_reference.py runs each strategy and compares.
COLUMNS: dict[str, tuple[str, ...]] = {
    "agem": ("projected_share", "replay_loss", "projections", *_MEMORY),
    "amn": ("memory_max", "push_rms", *_PENALTY, *_FISHER),
    "cumulative": ("others_share",),
    "der": ("replay_loss", *_MEMORY),
    "derpp": ("replay_loss", *_MEMORY),
    "er": ("replay_loss", *_MEMORY),
    "ewc": (*_PENALTY, *_FISHER),
    "finetune": (),
    "hat": ("open_share", "used_share", "undecided_share"),
    "imm": ("penalty", "merge_distance", "precision_sum"),
    "joint": ("others_share",),
    "lwf": ("distillation",),
    "mas": (*_PENALTY, *_IMPORTANCE),
    "packnet": ("taken_share", "free_share"),
    "scratch": ("others_share",),
    "separate": ("networks", "nearest_network"),
    "si": (*_PENALTY, *_IMPORTANCE),
}
