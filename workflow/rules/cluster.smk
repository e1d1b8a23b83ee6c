# What jobs ask a cluster for, and which short ones go there together. Without a cluster it is nothing.
# It is one where `default-resources` are given, as profiles/slurm does: other executors than SLURM's may be too.

if workflow.storage_settings.default_storage_provider or SharedFSUsage.INPUT_OUTPUT not in (
    workflow.storage_settings.shared_fs_usage
):
    raise WorkflowError(
        "crnet: the jobs of a study need a file system that all machines share: states of trainings and features are "
        "files that do not travel to object storage; leave out --default-storage-provider and see docs/clusters.md."
    )

DEFAULTS = workflow.resource_settings.default_resources
REQUESTS = None

if DEFAULTS is not None:
    file = Path(AT.work) / "requests" / f"{STUDY.study}.json"
    ready = [folder for folder in DATASETS if Path(folder, "dataset.json").is_file()]
    if not workflow.remote_exec and not requests.is_of(file, requests.identity(PLAN, ready)):
        # Counting takes torch, some seconds; what Snakemake parses has none.
        words = ["job", "requests", "--study", canonical(STUDY.model_dump(mode="json")), "--out", file]
        if subprocess.run([sys.executable, "-m", "crnet", *words]).returncode:
            raise WorkflowError("crnet: the jobs' memory and time were not predicted, see above.")
    REQUESTS = requests.load(file, int(DEFAULTS["runtime"].value) if "runtime" in DEFAULTS else requests.LONGEST)
    # Else a group is what hangs together, and each of these jobs stands alone: `batch` is profiles/default's.
    workflow.parent_groupids.update(dict.fromkeys(REQUESTS.batches, "batch"))


def asked(rule):
    """``mem_mb`` and ``runtime`` among the resources of a rule."""
    return REQUESTS.resources(rule) if REQUESTS else {}


def together():
    """The group of a rule whose jobs may be short."""
    return (lambda wc: REQUESTS.batch("".join(wc))) if REQUESTS else None


# torch is imported once for the jobs of a batch, by the inner of a node's two Snakemakes, which runs them.
if "--local-groupid" in sys.argv and "--executor" not in sys.argv and STUDY.device == "cpu":
    warm.start_for_batch()
