# Rows, tables, plots, MLflow. Cheap, and made from stored counts alone.


localrules:
    runs,
    table,
    losses,
    sheet,
    track,
    tables,


rule runs:
    input:
        trainings=[f"{AT.training(name)}/train.json" for name in PLAN.trainings],
        evaluations=[f"{AT.evaluation(name)}/evaluation.json" for name in PLAN.evaluations],
    output:
        runs=report(f"{AT.results}/runs.csv", category="Runs", caption="../report/runs.rst"),
        log=f"{AT.results}/training.csv",
    params:
        trainings=[f"--train={AT.training(name)}" for name in PLAN.trainings],
        evaluations=[f"--evaluation={AT.evaluation(name)}" for name in PLAN.evaluations],
    log:
        f"logs/report/{STUDY.study}-runs.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet collect {params.trainings:q} {params.evaluations:q} --runs {output.runs:q}"
        " --training-log {output.log:q} > {log:q} 2>&1"


rule table:
    input:
        lambda wc: [cell["counts"] for row in TABLES[wc.table]["rows"] for cell in row["cells"]],
    output:
        f"{AT.results}/tables/{{table}}.csv",
        report(f"{AT.results}/tables/{{table}}.md", category="Tables", caption="../report/table.rst", labels={"table": "{table}"}),
        f"{AT.results}/tables/{{table}}.tex",
        report(f"{AT.results}/figures/{{table}}.png", category="Plots", caption="../report/plot.rst", labels={"table": "{table}"}),
        f"{AT.results}/figures/{{table}}.svg",
    params:
        job=lambda wc: canonical(TABLES[wc.table]),
        tables=f"{AT.results}/tables",
        figures=f"{AT.results}/figures",
    log:
        f"logs/report/{STUDY.study}-{{table}}.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet table --job {params.job:q} --tables {params.tables:q} --figures {params.figures:q} > {log:q} 2>&1"


rule losses:
    input:
        f"{AT.results}/training.csv",
    output:
        report(f"{AT.results}/figures/losses.png", category="Plots", caption="../report/losses.rst", labels={"table": "loss curves"}),
        f"{AT.results}/figures/losses.svg",
    params:
        out=f"{AT.results}/figures/losses",
    log:
        f"logs/report/{STUDY.study}-losses.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet losses --training-log {input:q} --out {params.out:q} > {log:q} 2>&1"


rule sheet:
    input:
        weights=[model["weights"] for model in SHEET["models"] if model["weights"]] if SHEET else [],
        episodes=[ancient(model["episodes"]) for model in SHEET["models"]] if SHEET else [],
    output:
        report(f"{AT.results}/figures/episodes.png", category="Episodes", caption="../report/episodes.rst"),
        f"{AT.results}/figures/episodes.svg",
    params:
        job=canonical(SHEET),
        out=f"{AT.results}/figures/episodes",
        device=STUDY.device,
    log:
        f"logs/report/{STUDY.study}-episodes.log",
    resources:
        gpu=GPU,
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet sheet --job {params.job:q} --out {params.out:q} --device {params.device} > {log:q} 2>&1"


rule track:
    input:
        f"{AT.results}/runs.csv",
    output:
        f"{AT.work}/tracked/{STUDY.study}.txt",
    params:
        results=AT.results,
    log:
        f"logs/report/{STUDY.study}-track.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet track {params.results:q} 2>&1 | tee {output:q} > {log:q}"


rule tables:
    input:
        [f"{AT.results}/tables/{name}.{suffix}" for name in TABLES for suffix in ["csv", "md", "tex"]],
        [f"{AT.results}/figures/{name}.{suffix}" for name in [*TABLES, "losses"] for suffix in FORMATS],
