# What the rules look up: which specification a file stands for, and which files a job reads.

DATASETS = {AT.data(spec): spec for spec in PLAN.datasets.values()}
ENCODERS = {AT.encoder(spec): spec for spec in PLAN.encoders.values() if AT.encoder(spec)}
EPISODES = {AT.episodes(spec): spec for spec in PLAN.evaluations.values()}
FEATURES = {AT.features(spec): spec for spec in PLAN.trainings.values() if AT.features(spec)}
GPU = 1 if STUDY.device == "cuda" else 0


def data_files(spec):
    """What every job on photos reads: the prepared data set, and the encoder's weights unless it brings its own."""
    files = {"data": f"{AT.data(spec['dataset'])}/dataset.json"}
    if AT.encoder(spec["encoder"]):
        files["encoder"] = AT.encoder(spec["encoder"])
    return {key: ancient(path) for key, path in files.items()}


def encoder_option(files):
    return ["--encoder", files.encoder] if hasattr(files, "encoder") else []
