"""Settings of training, evaluation and episodes, with the paper's or its group's values as defaults.

Sources: [P] the paper; [CANet] icoz69/CaNet@fdce946, public code of the same group; [ours] where neither says.
A behaviour change of the code that should make finished runs stale raises ``rev`` by one.
"""

from crnet.data.grid import alignment_of, fitted

TRAIN = {
    "rev": 2,
    # Side of the square input in pixels, photo squashed to it [CANet]; taken as the nearest that fits the encoder's
    # cells: 8n + 1 for ResNets, 8n for VGG16
    "size": 321,
    "batch": 4,  # episodes a step [CANet]
    "epochs": 200,  # [CANet]; the last one is the result
    "epoch_episodes": 0,  # episodes an epoch; 0: as many as the fold has training pairs [CANet walks its list]
    "optimizer": "sgd",  # [CANet]
    # effective rate [CANet: ten times the stated 2.5e-4 in every group that trains]; of a list each is tried with the
    # whole budget, and the one stays that is best at base classes
    "lr": 2.5e-3,
    "momentum": 0.9,  # [CANet]; first beta of adamw
    "weight_decay": 5e-4,  # [CANet]
    "schedule": "constant",  # [CANet: the power argument is unused]
    "augment": "support",  # which image is scaled 1 to 1.5, cropped and flipped [CANet: the support]
    # "cached": the frozen encoder runs once per photo and view, no augmentation but views; in a study's own ``train``
    # it also says that test photos are encoded once for all evaluations
    "features": "live",
    "views": "identity",  # finite transforms applied alike to a whole episode, for cached features [ours]
    "novel_pixels": "background",  # of novel classes in training photos [CANet; protocols that differ: void, drop]
    # The data set's void pixels, object borders in PASCAL: out of the loss and of the category vector, or "background"
    # [CANet: every value but the class's is 0].
    "void": "ignored",
    "precision": "bfloat16",  # autocast, where the device has it; float32 elsewhere [ours]
    "base_episodes": 100,  # episodes of base classes scored after each epoch, for the log and a choice of rates [ours]
}

TRAIN_LIMITS = {
    "size": (32, 1024),
    "batch": (1, 256),
    "epochs": (1, 100_000),
    "epoch_episodes": (0, 10_000_000),
    "optimizer": {"sgd", "adamw"},
    "lr": (1e-8, 10.0),
    "momentum": (0.0, 0.999),
    "weight_decay": (0.0, 1.0),
    "schedule": {"constant", "poly", "one-cycle"},
    "augment": {"none", "support", "both"},
    "features": {"live", "cached"},
    "views": {"identity", "flip", "recolour"},
    "novel_pixels": {"background", "void", "drop"},
    "void": {"ignored", "background"},
    "precision": {"float32", "bfloat16"},
    "base_episodes": (0, 10_000),
}

EVALUATE = {
    "rev": 2,
    "shots": 1,
    "strategy": "fusion",  # of several supports [P 4.6, 6]: "fusion", "finetune" or "finetune-fusion"
    "size": 321,  # likewise, at scale 1; scored at the photo's original size [CANet#6]
    "scales": [1.0],  # query and support resized alike, probabilities averaged [P 6, Table 3]
    "refinements": 5,  # runs of the mask refinement module [P 5.1]
    "precision": "bfloat16",
}

EVALUATE_LIMITS = {
    "shots": (1, 20),
    "strategy": {"fusion", "finetune", "finetune-fusion"},
    "size": (32, 1024),
    "scales": (0.25, 4.0),
    "refinements": (1, 50),
    "precision": {"float32", "bfloat16"},
}

FINETUNE = {
    "rev": 2,
    "pairs": "distinct",  # ordered pairs of two supports, k(k - 1); "all" adds each with itself, k^2 [P 4.6 "at most"]
    "batch": 5,  # pairs a step [ours]
    "optimizer": "sgd",  # [ours]
    "momentum": 0.9,
    "weight_decay": 0.0,
    # Tried, each rate with each number of steps, and no step; for a fold the best of the other folds' trials [ours].
    "lr": [2.5e-4, 1e-3, 4e-3],
    "steps": [25, 100, 300],
    "trial_episodes": 40,  # a fold
    "trial_shots": 5,
}

FINETUNE_LIMITS = {
    "pairs": {"distinct", "all"},
    "batch": (1, 400),
    "optimizer": {"sgd", "adamw"},
    "momentum": (0.0, 0.999),
    "weight_decay": (0.0, 1.0),
    "lr": (1e-8, 10.0),
    "steps": (1, 10_000),
    "trial_episodes": (1, 100_000),
    "trial_shots": (2, 20),
}

EPISODES = {
    "rev": 1,
    "count": 1000,  # an episode seed; "the settings of [17]" [P 5.2]
    "seeds": [0, 1, 2, 3, 4],
    "shots": 1,  # supports stored per episode; runs with fewer shots take the first ones
    "too_few": "error",  # a class with fewer photos than shots + 1: "error", or "leave out" and name it
}

EPISODES_LIMITS = {
    "count": (1, 100_000),
    "seeds": (0, 2**31 - 1),
    "shots": (1, 20),
    "too_few": {"error", "leave out"},
}


def scaled(size: int, scale: float) -> int:
    """Side in pixels of the input at a scale: the nearest that fits the encoder as ``size``, that at scale 1, does.

    Specifications carry fitted sizes (``crnet/config/resolve.py``), so that cells lie alike at all scales: those of
    ResNets at pixels 8i of 8n + 1, e.g. 241, 321 and 401 px, those of VGG16 at 8i + 3.5 of 8n, e.g. 240, 320 and 400.

    Raises:
        CrnetError: ``size`` fits no encoder.
    """
    return fitted(size * scale, alignment_of(size))
