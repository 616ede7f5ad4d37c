"""The columns of health.csv that a strategy adds to those that every run has."""

# column -> what it holds, for one task; unless another unit is named, a mean over the training steps of the task
MEANINGS: dict[str, str] = {
    "penalty": "penalty for changing weights, which is part of the loss",
    "penalty_over_loss": "`penalty` divided by `loss`",
    "fisher_sum": "sum of the Fisher information over all weights, after the task",
    "fisher_max": "largest Fisher information of a weight, after the task",
    "fisher_zero_share": "share of the weights whose Fisher information is zero, after the task",
    "importance_sum": "sum over all weights of the importance, called Omega in the papers, after the task",
    "importance_max": "largest importance of a weight, after the task",
    "importance_zero_share": "share of the weights whose importance is zero, after the task",
    "distillation": "how far the outputs are from those of the teacher, before it is multiplied by `lambda`",
    "replay_loss": "loss on the samples that were drawn from the memory, 0 while the memory is empty",
    "memory_fill": "share of the memory that holds samples, after the task",
    "memory_classes": "number of classes in the memory, a class counting once per task, after the task",
    "memory_balance": "samples of the rarest class in the memory divided by those of the commonest, after the task",
    "barred_share": "share of the samples of a batch whose softmax leaves out an output that may answer",
    "chosen_interference": "how much more the virtual step raises the loss of what is replayed than that of the "
    "candidates on the average",
    "exemplar_share": "share of the training samples that are exemplars of earlier tasks",
    "means": "number of outputs that have a mean of exemplars, after the task",
    "gamma": "what the weights of the new outputs were multiplied by, after the task",
    "alpha": "what the logits of the task's outputs are multiplied by, after the task",
    "beta": "what is added to the logits of the task's outputs, after the task",
    "held_out": "samples of the memory that are held out of training, after the task",
    "projections": "number of steps since the start of the run whose gradient was projected",
    "projected_share": "share of the steps whose gradient was projected",
    "others_share": "share of the training samples that belong to other tasks",
    "networks": "number of networks so far, after the task",
    "nearest_network": "distance of this task's weights to those of the nearest earlier network, divided by their "
    "norm, at most 1; after the task",
    "taken_share": "share of the weights of hidden layers that this task keeps, after the task",
    "free_share": "share of the weights of hidden layers that are free for later tasks, after the task",
    "used_share": "share of the hidden units that the tasks so far use, after the task; with `gates=sigmoid` a unit "
    "may count in part",
    "undecided_share": "share of the hidden units that count in part in `used_share`, after the task",
    "open_share": "share of the free units that the gates of the task open; `lambda` times this is added to the loss",
    "merge_distance": "distance of the merged weights to those trained on this task, divided by the norm of the "
    "latter, after the task",
    "precision_sum": "sum over all weights of what they count in the merge so far, after the task: their Fisher "
    "information, or with `merge=mean` the number of tasks",
    "memory_max": "largest absolute value of a memory unit",
    "summed_samples": "number of samples in the sums that the head follows from, after the task",
    "summed_outputs": "number of outputs that have a sample in these sums, after the task",
    "shrinkage_used": "share of the identity in the covariance of the head, after the task",
    "samples_per_feature": "samples of the output that has fewest, divided by the number of features, after the task",
    "ridge_used": "strength of the ridge that the head was fitted with, after the task",
    "distance_from_start": "distance of the weights from the initial ones, divided by their norm, after the task",
    "reset_distance": "how far the weights were moved before the task, divided by their norm; 0 before the first",
    "protection_mean": "mean over all weights of the share of a step that they do not take, after the task",
    "protection_max": "largest share of a step that a weight does not take, after the task",
    "replaced_units": "number of hidden units that began anew, since the start of the run",
    "useless_share": "share of the hidden units whose utility is 0, after the task",
    "push_rms": "how much memory units add to a hidden unit: the root of the mean square",
}

_FISHER = ("fisher_sum", "fisher_max", "fisher_zero_share")
_IMPORTANCE = ("importance_sum", "importance_max", "importance_zero_share")
_MEMORY = ("memory_fill", "memory_classes", "memory_balance")
_PENALTY = ("penalty", "penalty_over_loss")

# strategy -> its columns, with its default settings. tests/project/test_reference.py runs each strategy and compares.
COLUMNS: dict[str, tuple[str, ...]] = {
    "agem": ("projected_share", "replay_loss", "projections", *_MEMORY),
    "amn": ("memory_max", "push_rms", *_PENALTY, *_FISHER),
    "bic": ("distillation", "exemplar_share", "alpha", "beta", "held_out", *_MEMORY),
    "cbp": ("replaced_units", "useless_share"),
    "cumulative": ("others_share",),
    "der": ("replay_loss", *_MEMORY),
    "derpp": ("replay_loss", *_MEMORY),
    "er": ("replay_loss", *_MEMORY),
    "er_ace": ("replay_loss", "barred_share", *_MEMORY),
    "ewc": (*_PENALTY, *_FISHER),
    "fdr": ("replay_loss", *_MEMORY),
    "fecam": ("summed_samples", "summed_outputs", "samples_per_feature"),
    "finetune": (),
    "gdumb": _MEMORY,
    "gem": ("projected_share", "replay_loss", "projections", *_MEMORY),
    "hat": ("open_share", "used_share", "undecided_share"),
    "icarl": ("distillation", "exemplar_share", "means", *_MEMORY),
    "imm": ("penalty", "merge_distance", "precision_sum"),
    "joint": ("others_share",),
    "l2_init": ("penalty", "penalty_over_loss", "distance_from_start"),
    "lwf": ("distillation",),
    "mas": (*_PENALTY, *_IMPORTANCE),
    "mir": ("replay_loss", "chosen_interference", *_MEMORY),
    "ncm": ("summed_samples", "summed_outputs"),
    "packnet": ("taken_share", "free_share"),
    "ranpac": ("summed_samples", "summed_outputs", "ridge_used"),
    "scratch": ("others_share",),
    "separate": ("networks", "nearest_network"),
    "shrink_perturb": ("reset_distance",),
    "si": (*_PENALTY, *_IMPORTANCE),
    "slda": ("summed_samples", "summed_outputs", "shrinkage_used"),
    "upgd": ("protection_mean", "protection_max"),
    "wa": ("distillation", "exemplar_share", "gamma", *_MEMORY),
}
