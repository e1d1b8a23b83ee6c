# Rows, tables, plots, MLflow. Cheap, and made from stored counts alone.


localrules:
    runs,
    job,
    table,
    claims,
    probe_table,
    k_shot,
    classes,
    losses,
    page,
    track,
    tables,


PAGE = page_job(PLAN)
HEADLINE = headline_table(PLAN)
HEADINGS = {name: labels.table_heading(name, table.title) for name, table in PLAN.tables.items()}


rule runs:
    input:
        trainings=[f"{AT.training(name)}/train.json" for name in PLAN.trainings],
        trials=[f"{AT.finetuning(name)}/trials.json" for name in PLAN.trials],
        choices=[f"{AT.finetuning(name)}/choice.json" for name in PLAN.choices],
        evaluations=[f"{AT.evaluation(name)}/evaluation.json" for name in PLAN.evaluations],
    output:
        runs=report(
            f"{AT.results}/runs.csv",
            category="5 Runs",
            caption="../report/runs.rst",
            labels=labelled("Every run with its settings"),
        ),
        log=f"{AT.results}/training.csv",
    log:
        f"logs/report/{STUDY.study}-runs.log",
    conda:
        "../../environment.yml"
    params:
        trainings=lambda wc, input: [f"--train={os.path.dirname(f)}" for f in input.trainings],
        trials=lambda wc, input: [f"--trials={os.path.dirname(f)}" for f in input.trials],
        choices=lambda wc, input: [f"--choice={os.path.dirname(f)}" for f in input.choices],
        evaluations=lambda wc, input: [f"--evaluation={os.path.dirname(f)}" for f in input.evaluations],
    shell:
        "python -m crnet job collect {params.trainings:q} {params.trials:q} {params.choices:q} {params.evaluations:q}"
        " --runs {output.runs:q} --training-log {output.log:q} > {log:q} 2>&1"


rule job:
    # A clone knows no params of the past, and has no such file: it renders what may have been asked differently before.
    output:
        AT.job("{job}"),
    log:
        f"logs/report/{STUDY.study}-{{job}}-job.log",
    conda:
        "../../environment.yml"
    params:
        job=lambda wc: canonical(JOBS[wc.job]),
    shell:
        "printf '%s\\n' {params.job:q} > {output:q} 2> {log:q}"


rule table:
    input:
        lambda wc: [cell["counts"] for row in TABLES[wc.table]["rows"] for cell in row["cells"]],
        job=AT.job("{table}"),
    output:
        f"{AT.results}/tables/{{table}}.csv",
        f"{AT.results}/tables/{{table}}.md",
        f"{AT.results}/tables/{{table}}.tex",
        report(
            f"{AT.results}/figures/{{table}}.png",
            category="3 Plots",
            caption="../report/plot.rst",
            labels=lambda wc: labelled(HEADINGS[wc.table]),
        ),
        f"{AT.results}/figures/{{table}}.svg",
    log:
        f"logs/report/{STUDY.study}-{{table}}.log",
    conda:
        "../../environment.yml"
    params:
        job=lambda wc: canonical(TABLES[wc.table]),
        tables=lambda wc, output: os.path.dirname(output[0]),
        figures=lambda wc, output: os.path.dirname(output[-1]),
    shell:
        "python -m crnet job table --job {params.job:q} --tables {params.tables:q} --figures {params.figures:q} > {log:q} 2>&1"


rule claims:
    input:
        [cell["counts"] for place in CLAIMS["places"].values() for cell in place["cells"]],
        job=AT.job("claims"),
    output:
        f"{AT.results}/claims.csv",
        f"{AT.results}/claims.md",
        report(
            f"{AT.results}/figures/claims.png",
            category="4 Claims",
            caption="../report/claims.rst",
            labels=labelled("Claims, plot"),
        ),
        f"{AT.results}/figures/claims.svg",
    log:
        f"logs/report/{STUDY.study}-claims.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical(CLAIMS),
        out=lambda wc, output: os.path.splitext(output[0])[0],
        figures=lambda wc, output: os.path.splitext(output[2])[0],
    shell:
        "python -m crnet job claims --job {params.job:q} --out {params.out:q} --figures {params.figures:q} > {log:q} 2>&1"


rule probe_table:
    input:
        [cell["counts"] for row in PROBE["rows"] for cell in row["cells"]] if PROBE else [],
        job=AT.job("probe"),
    output:
        f"{AT.results}/probe/table.csv",
        f"{AT.results}/probe/table.md",
    log:
        f"logs/report/{STUDY.study}-probe.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical(PROBE),
        out=lambda wc, output: os.path.splitext(output[0])[0],
    shell:
        "python -m crnet job probe-table --job {params.job:q} --out {params.out:q} > {log:q} 2>&1"


rule k_shot:
    input:
        f"{AT.results}/tables/table4.csv",
    output:
        report(
            f"{AT.results}/figures/k-shot.png",
            category="3 Plots",
            caption="../report/k-shot.rst",
            labels=labelled("Shots and strategies"),
        ),
        f"{AT.results}/figures/k-shot.svg",
    log:
        f"logs/report/{STUDY.study}-k-shot.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical(TABLES.get(K_SHOT)),
        out=lambda wc, output: os.path.splitext(output[0])[0],
    shell:
        "python -m crnet job k-shot --job {params.job:q} --table {input:q} --out {params.out:q} > {log:q} 2>&1"


rule classes:
    input:
        [cell["counts"] for row in TABLES[HEADLINE]["rows"] for cell in row["cells"]],
        job=AT.job(HEADLINE),
    output:
        f"{AT.results}/classes.csv",
        report(
            f"{AT.results}/figures/classes.png",
            category="3 Plots",
            caption="../report/classes.rst",
            labels=labelled("IoU by class"),
        ),
        f"{AT.results}/figures/classes.svg",
    log:
        f"logs/report/{STUDY.study}-classes.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical(TABLES[HEADLINE]),
        out=lambda wc, output: os.path.splitext(output[0])[0],
        figures=lambda wc, output: os.path.splitext(output[1])[0],
    shell:
        "python -m crnet job classes --job {params.job:q} --out {params.out:q} --figures {params.figures:q} > {log:q} 2>&1"


rule losses:
    input:
        f"{AT.results}/training.csv",
    output:
        report(
            f"{AT.results}/figures/losses.png",
            category="3 Plots",
            caption="../report/losses.rst",
            labels=labelled("Training"),
        ),
        f"{AT.results}/figures/losses.svg",
    log:
        f"logs/report/{STUDY.study}-losses.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical({key: PAGE[key] for key in ["title", "labels"]}),
        out=lambda wc, output: os.path.splitext(output[0])[0],
    shell:
        "python -m crnet job losses --job {params.job:q} --training-log {input:q} --out {params.out:q} > {log:q} 2>&1"


rule sheet:
    input:
        weights=[model["weights"] for model in SHEET["models"] if model["weights"]] if SHEET else [],
        episodes=[ancient(model["episodes"]) for model in SHEET["models"]] if SHEET else [],
    output:
        report(
            f"{AT.results}/figures/episodes.png",
            category="3 Plots",
            caption="../report/episodes.rst",
            labels=labelled("Test episodes"),
        ),
        f"{AT.results}/figures/episodes.svg",
    log:
        f"logs/report/{STUDY.study}-episodes.log",
    conda:
        "../../environment.yml"
    resources:
        **asked("sheet"),
        gpu=GPU,
        limits=LIMITS,
    params:
        job=canonical(SHEET),
        out=lambda wc, output: os.path.splitext(output[0])[0],
        device=STUDY.device,
    shell:
        "python -m crnet job sheet --job {params.job:q} --out {params.out:q} --limits {resources.limits:q} --device {params.device} > {log:q} 2>&1"


# What is made from stored counts alone.
RENDERED = [
    *[f"{AT.results}/tables/{name}.{suffix}" for name in TABLES for suffix in ["csv", "md", "tex"]],
    *[f"{AT.results}/figures/{name}.{suffix}" for name in [*TABLES, "losses"] for suffix in FORMATS],
    *[f"{AT.results}/figures/k-shot.{suffix}" for suffix in FORMATS if K_SHOT],
    *rules.claims.output,
    *rules.classes.output,
    *(rules.probe_table.output if PROBE else []),
]
# The page, tables and claims as Snakemake's report shows them.
HTML = f"{AT.work}/report/{STUDY.study}"


rule page:
    input:
        RENDERED,
        runs=f"{AT.results}/runs.csv",
        sheet=[f"{AT.results}/figures/episodes.png"] if SHEET else [],
    output:
        page=f"{AT.results}/README.md",
        html=report(f"{HTML}/page.html", category="1 Page", caption="../report/page.rst", labels=labelled("Page")),
        claims=report(
            f"{HTML}/claims.html",
            category="4 Claims",
            caption="../report/claims.rst",
            labels=labelled("Claims, table"),
        ),
        tables=[
            report(
                f"{HTML}/{name}.html",
                category="2 Tables",
                caption="../report/table.rst",
                labels=labelled(heading),
            )
            for name, heading in HEADINGS.items()
        ],
    log:
        f"logs/report/{STUDY.study}-page.log",
    conda:
        "../../environment.yml"
    params:
        job=canonical(PAGE),
        results=lambda wc, output: os.path.dirname(output.page),
        html=lambda wc, output: os.path.dirname(output.html),
    shell:
        "python -m crnet job page --job {params.job:q} --results {params.results:q} --html {params.html:q} > {log:q} 2>&1"


rule track:
    input:
        runs=f"{AT.results}/runs.csv",
        shown=[rules.page.output.page, rules.page.input],
    output:
        f"{AT.work}/tracked/{STUDY.study}.txt",
    log:
        f"logs/report/{STUDY.study}-track.log",
    conda:
        "../../environment.yml"
    params:
        study=canonical(STUDY.model_dump(mode="json", exclude={"limits"})),
        results=lambda wc, input: os.path.dirname(input.runs),
    shell:
        "python -m crnet job track --study {params.study:q} --results {params.results:q} 2>&1 | tee {output:q} {log:q}"


# Snakemake passes over what is missing behind an `ancient` file that is there and yet made anew, as after a kill between
# its last byte and Snakemake's own record: unless its target asks for that file too.
ANCIENT = [
    *[f"{data}/dataset.json" for data in DATASETS],
    *ENCODERS,
    *[f"{features}/features.json" for features in FEATURES],
    *EPISODES,
    *[f"{AT.finetuning(name)}/trials.{kind}" for name in PLAN.trials for kind in ("json", "csv")],
    *[f"{AT.finetuning(name)}/choice.json" for name in PLAN.choices],
    *rules.feasible.output,
]


rule tables:
    input:
        [AT.job(name) for name in JOBS],
        RENDERED,
        rules.page.output,
        [path for path in ANCIENT if os.path.exists(path)],
