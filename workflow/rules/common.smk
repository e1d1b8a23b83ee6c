# What the rules look up: which specification a file stands for, and which files a job reads.

DATASETS = {AT.data(spec): spec for spec in PLAN.datasets.values()}
ENCODERS = {AT.encoder(spec): spec for spec in PLAN.encoders.values() if AT.encoder(spec)}
EPISODES = {AT.episodes(spec): spec for spec in PLAN.evaluations.values()}
FEATURES = {AT.features_folder(spec): spec for spec in PLAN.features.values()}
NEED_ENCODER = {
    "features",
    "train",
    "trials",
    "evaluate",
    "finetune",
    "probe",
    "sheet",
}  # rules whose jobs run a network
GPU = 1 if STUDY.device == "cuda" else 0
# Among the resources, not the params: other limits give the same results, and start nothing again.
LIMITS = canonical(STUDY.limits.model_dump())


def data_files(spec):
    """What every job on photos reads: the prepared data set, and the encoder's weights unless it brings its own."""
    files = {"data": f"{AT.data(spec['dataset'])}/dataset.json"}
    if AT.encoder(spec["encoder"]):
        files["encoder"] = AT.encoder(spec["encoder"])
    return {key: ancient(path) for key, path in files.items()}


def predicting_files(spec):
    """What a job reads that predicts episodes: photos, and their features where they are cached."""
    return data_files(spec["train"]) | {"features": [ancient(f"{f}/features.json") for f in AT.test_features(spec)]}


def trials_of(choice):
    """Names of the trials of which a choice is made."""
    return [tuning.trials_name(spec) for spec in tuning.trials_specs(choice)]


def features_options(files):
    return [f"--features={os.path.dirname(f)}" for f in files.features]


def encoder_option(files):
    return ["--encoder", files.encoder] if hasattr(files, "encoder") else []


def labelled(text):
    """How the report's lists call a file."""
    return {"what": text}


# Some ten lines a job of Snakemake's own, and a list of the rules; `crnet job watch` speaks in their place, and
# `--verbose` brings them back.
OF_JOBS = {LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS, LogEvent.SHELLCMD}
OF_JOBS |= {LogEvent.RUN_INFO, LogEvent.RESOURCES_INFO}

# After Ctrl-C each job that it ended would be reported as an error, with its whole command and log.
OF_ERRORS = {LogEvent.JOB_ERROR, LogEvent.ERROR}
INTERRUPTED = []


def is_spoken(record):
    text, event = record.getMessage(), getattr(record, "event", None)
    if text.startswith("Terminating processes on user request"):
        INTERRUPTED.append(True)
    if INTERRUPTED and (
        event in OF_ERRORS or text.startswith(("RuleException", "CalledProcessError", "WorkflowError"))
    ):
        return False
    if workflow.dryrun or workflow.output_settings.verbose or not workflow.local_exec:
        return True
    words = "Select jobs to execute", "Execute ", "Touching output file"
    return event not in OF_JOBS and not text.startswith(words)


def asked_files(workflow):
    """The files that this call was asked for, by themselves or by a rule; none where it was told to stop on the way."""
    asked = workflow.dag_settings
    if asked.until or asked.omit_from or asked.allowed_rules or asked.target_jobs:
        return []
    named = {each.name: each for each in workflow.rules}
    files = [target for target in asked.targets if target not in named]
    for each in [named[target] for target in asked.targets or ["all"] if target in named]:
        # One that writes nothing stands for what it reads.
        files += map(str, each.output or (path for path in each.input if not callable(path)))
    return files
