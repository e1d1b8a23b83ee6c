# The whole benchmark: archives -> data -> episodes -> trainings -> evaluations -> tables, plots, MLflow.
# One study a run: `snakemake --cores all --configfile configs/studies/<study>.yaml`; without it, the demo.
import os
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.settings.types import SharedFSUsage
from snakemake_interface_logger_plugins.common import LogEvent

from crnet import warm
from crnet.runtime import surroundings, work_lock
from crnet.config import claims as paper_claims, encoders, labels, requests, resolve, study as studies, tuning
from crnet.config.jobs import headline_table, page_job, probe_job, sheet_job, table_job
from crnet.config.layout import Layout, check_folders, from_published
from crnet.errors import CrnetError
from crnet.report.headline import headline
from crnet.runtime.files import canonical
from crnet.runtime.gpu import has_nvidia_gpu

# Snakemake's own answer to SIGTERM waits for a lock; in the thread that holds it, it would wait for ever (9.27). Not by
# `onstart`, which a cluster's nodes leave out.
leave = JobScheduler.exit_gracefully
JobScheduler.exit_gracefully = lambda *notice: threading.Thread(target=leave, args=notice).start()

surroundings.make_up()
studies.export_package(workflow.basedir)
try:
    surroundings.check_root(Path(workflow.basedir))
    # Of --config alone: in `config` the files are merged as Snakemake does it, which keeps what a new name replaces.
    PLAN = studies.load(workflow.configfiles, workflow.config_settings.config, Path(workflow.basedir))
    AT = Layout(PLAN)
    check_folders(AT)
    AT.forget_absent_archives()
    CLAIMS = paper_claims.claims_job(PLAN, AT, Path(workflow.basedir) / paper_claims.CLAIMS)
except CrnetError as error:
    raise WorkflowError(f"crnet: {error}")

STUDY = PLAN.study
TABLES = {name: table_job(PLAN, AT, name) for name in PLAN.tables}
PROBE = probe_job(PLAN, AT)
JOBS = {**TABLES, "claims": CLAIMS, **({"probe": PROBE} if PROBE else {})}
SHEET = sheet_job(PLAN, AT)
K_SHOT = "table4" if "table4" in TABLES else None
# What the report's first words take; jobs do not see it.
config |= {"title": STUDY.title, "caption": STUDY.caption}
FORMATS = ["png", "svg"]
WATCH = []


wildcard_constraints:
    archive=r"[^/]+",
    name=r"[^/]+",
    run=r"[^/]+",
    table="|".join(TABLES),
    job="|".join(JOBS),


resource_scopes:
    gpu="local",


report: "workflow/report/study.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/report.smk"


logger.addFilter(is_spoken)


onstart:
    try:
        work_lock.hold(Path(AT.work))
    except CrnetError as error:
        raise WorkflowError(f"crnet: {error}")
    for sentence in surroundings.warnings(Path(workflow.basedir)):
        print(f"crnet: {sentence}.", file=sys.stderr)
    if workflow.local_exec and "tables" in workflow.dag_settings.targets and (published := from_published(AT)):
        # Whoever asks for tables alone expects no training.
        made = f"`crnet render`, with the same --configfile, makes the tables of the counts in {published}"
        print(f"crnet: {AT.results} is not there, so all of it is run; {made}.")
    if workflow.local_exec and NEED_ENCODER & {job.rule.name for job in workflow.dag.needrun_jobs()}:
        for spec in PLAN.encoders.values():
            if absent := encoders.absent(spec["name"]):
                raise WorkflowError(f"crnet: study {STUDY.study}: {absent}")
    if STUDY.device == "cuda" and workflow.local_exec and not has_nvidia_gpu():
        raise WorkflowError(
            f"crnet: study {STUDY.study} needs a GPU (device: cuda) and this machine has none; run it on one, "
            "through a cluster profile, or set 'device: cpu'."
        )
    # Else a node's Snakemake knows batches of one job each, and starts another Snakemake for each of them.
    workflow.executor_plugin.common_settings.pass_group_args = True
    if STUDY.device == "cpu" and workflow.local_exec:
        warm.start()
    if workflow.local_exec:
        trains = "train" in {job.rule.name for job in workflow.dag.needrun_jobs()}
        for name in ["watch", "follow"] if trains else ["watch"]:
            words = ["job", name, "--study", canonical(STUDY.model_dump(mode="json"))]
            # It ends when this process does, which holds its standard input; Ctrl-C is for the jobs.
            options = {"stdin": subprocess.PIPE, "start_new_session": True}
            WATCH.append(subprocess.Popen([sys.executable, "-m", "crnet", *words], **options))


onsuccess:
    # Snakemake skips what is missing behind an ancient input that this call made anew: say so instead of looking done.
    if missing := [path for path in asked_files(workflow) if not Path(path).exists()]:
        raise WorkflowError(
            f"crnet: {len(missing)} of the files asked for {'are' if len(missing) > 1 else 'is'} not made yet, "
            f"e.g. {missing[0]}; call snakemake again to go on."
        )
    if asked_files(workflow) and set(workflow.dag_settings.targets) <= {"all", "tables"}:
        print(headline(Path(AT.results), headline_table(PLAN)))


onerror:
    print("crnet: not finished; the same command goes on from here, and `crnet status` says how far it is.")


rule all:
    default_target: True
    input:
        rules.tables.input,
        f"{AT.results}/runs.csv",
        f"{AT.work}/tracked/{STUDY.study}.txt",
        [f"{AT.results}/figures/episodes.{suffix}" for suffix in FORMATS if SHEET],
        # Weights are asked for by name: a checkout that ships results without weights makes them again.
        [f"{AT.training(name)}/model.safetensors" for name in PLAN.trainings],
