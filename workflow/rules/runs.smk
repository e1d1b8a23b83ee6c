# Features, trainings, evaluations. Everything a job uses is in its params: a changed value reruns its own jobs only.
# Inputs that only have to be there are `ancient`: their content is fixed by their name, and git gives new mtimes.


localrules:
    choice,


rule features:
    input:
        unpack(lambda wc: data_files(FEATURES[f"{AT.work}/features/{wc.name}"])),
    output:
        f"{AT.work}/features/{{name}}/features.json",
    log:
        "logs/features/{name}.log",
    benchmark:
        "logs/benchmarks/features/{name}.tsv"
    group:
        together()
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("features"),
        gpu=GPU,
        limits=LIMITS,
    params:
        spec=lambda wc: canonical(FEATURES[f"{AT.work}/features/{wc.name}"]),
        data=lambda wc, input: os.path.dirname(input.data),
        encoder=lambda wc, input: encoder_option(input),
        out=lambda wc, output: os.path.dirname(output[0]),
        device=STUDY.device,
    shell:
        "python -m crnet job features --spec {params.spec:q} --data {params.data:q} {params.encoder:q}"
        " --out {params.out:q} --limits {resources.limits:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


rule train:
    input:
        unpack(lambda wc: data_files(PLAN.trainings[wc.run])),
        feasible=ancient(rules.feasible.output),
        features=lambda wc: [ancient(f"{f}/features.json") for f in [AT.features(PLAN.trainings[wc.run])] if f],
    output:
        f"{AT.work}/train/{{run}}/model.safetensors",
        f"{AT.work}/train/{{run}}/log.csv",
        f"{AT.work}/train/{{run}}/train.json",
    log:
        "logs/train/{run}.log",
    benchmark:
        "logs/benchmarks/train/{run}.tsv"
    group:
        together()
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("train"),
        gpu=GPU,
        limits=LIMITS,
    params:
        spec=lambda wc: canonical(PLAN.trainings[wc.run]),
        data=lambda wc, input: os.path.dirname(input.data),
        encoder=lambda wc, input: encoder_option(input),
        features=lambda wc, input: [f"--features={os.path.dirname(f)}" for f in input.features],
        out=lambda wc, output: os.path.dirname(output[0]),
        # Undeclared on purpose: Snakemake deletes declared outputs before each attempt.
        state=f"{AT.work}/state/{{run}}.pt",
        # One loader beside one thread would share its core, and import torch anew each epoch.
        workers=lambda wc, input: 0 if input.features or STUDY.threads == 1 else STUDY.threads,
        device=STUDY.device,
    shell:
        "python -m crnet job train --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.features:q}"
        " --out {params.out:q} --state {params.state:q} --workers {params.workers}"
        " --limits {resources.limits:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


rule trials:
    input:
        unpack(lambda wc: predicting_files(PLAN.trials[wc.name])),
        weights=lambda wc: AT.weights(PLAN.trials[wc.name]),
    output:
        f"{AT.results}/finetune/{{name}}/trials.json",
        f"{AT.results}/finetune/{{name}}/trials.csv",
    log:
        "logs/finetune/{name}.log",
    benchmark:
        "logs/benchmarks/finetune/{name}.tsv"
    group:
        together()
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("trials"),
        gpu=GPU,
        limits=LIMITS,
    params:
        spec=lambda wc: canonical(PLAN.trials[wc.name]),
        data=lambda wc, input: os.path.dirname(input.data),
        encoder=lambda wc, input: encoder_option(input),
        features=lambda wc, input: features_options(input),
        out=lambda wc, output: os.path.dirname(output[0]),
        state=f"{AT.work}/state/{{name}}.trials.json",
        device=STUDY.device,
    shell:
        "python -m crnet job trials --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.features:q}"
        " --weights {input.weights:q} --state {params.state:q} --out {params.out:q}"
        " --limits {resources.limits:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


rule choice:
    input:
        # They follow from their specs and weights; a clone may write files of results in any order.
        trials=lambda wc: [ancient(f"{AT.finetuning(name)}/trials.json") for name in trials_of(PLAN.choices[wc.name])],
        counts=lambda wc: [ancient(f"{AT.finetuning(name)}/trials.csv") for name in trials_of(PLAN.choices[wc.name])],
    output:
        f"{AT.results}/finetune/{{name}}/choice.json",
    log:
        "logs/finetune/{name}.log",
    conda:
        "../../environment.yml"
    params:
        spec=lambda wc: canonical(PLAN.choices[wc.name]),
        trials=lambda wc, input: [f"--trials={os.path.dirname(f)}" for f in input.trials],
        out=lambda wc, output: os.path.dirname(output[0]),
    shell:
        "python -m crnet job choice --spec {params.spec:q} {params.trials:q} --out {params.out:q} > {log:q} 2>&1"


rule evaluate:
    input:
        unpack(lambda wc: predicting_files(PLAN.evaluations[wc.run])),
        episodes=lambda wc: ancient(AT.episodes(PLAN.evaluations[wc.run])),
        weights=lambda wc: AT.weights(PLAN.evaluations[wc.run]) or [],
    output:
        f"{AT.results}/evaluate/{{run}}/counts.csv",
        f"{AT.results}/evaluate/{{run}}/evaluation.json",
    log:
        "logs/evaluate/{run}.log",
    benchmark:
        "logs/benchmarks/evaluate/{run}.tsv"
    wildcard_constraints:
        run=r"(?!.*-finetuned-)[^/]+",
    group:
        together()
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("evaluate"),
        gpu=GPU,
        limits=LIMITS,
    params:
        spec=lambda wc: canonical(PLAN.evaluations[wc.run]),
        data=lambda wc, input: os.path.dirname(input.data),
        encoder=lambda wc, input: encoder_option(input),
        features=lambda wc, input: features_options(input),
        weights=lambda wc, input: [f"--weights={input.weights}"] if input.weights else [],
        choice=lambda wc, input: [f"--choice={input.choice}"] if hasattr(input, "choice") else [],
        out=lambda wc, output: os.path.dirname(output[0]),
        state=f"{AT.work}/state/{{run}}.json",
        device=STUDY.device,
    shell:
        "python -m crnet job evaluate --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.features:q}"
        " {params.weights:q} {params.choice:q} --episodes {input.episodes:q} --state {params.state:q} --out {params.out:q}"
        " --limits {resources.limits:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


use rule evaluate as finetune with:
    # One job for both readings: the query by the first support, and by all of them.
    input:
        unpack(lambda wc: predicting_files(PLAN.evaluations[wc.run])),
        episodes=lambda wc: ancient(AT.episodes(PLAN.evaluations[wc.run])),
        weights=lambda wc: AT.weights(PLAN.evaluations[wc.run]),
        # It follows from its spec and the weights; a clone may write the two files of results in either order.
        choice=lambda wc: ancient(AT.choice(PLAN.evaluations[wc.run])),
    output:
        f"{AT.results}/evaluate/{{run}}/counts.csv",
        f"{AT.results}/evaluate/{{run}}/counts-fusion.csv",
        f"{AT.results}/evaluate/{{run}}/evaluation.json",
    wildcard_constraints:
        run=r".+-finetuned-[0-9a-f]{8}",


rule probe:
    # Not of the evaluation's counts: it predicts its episodes untouched, too, in the same batches.
    input:
        unpack(lambda wc: predicting_files(PLAN.probes[wc.run])),
        episodes=lambda wc: ancient(AT.episodes(PLAN.probes[wc.run])),
        weights=lambda wc: AT.weights(PLAN.probes[wc.run]),
    output:
        f"{AT.results}/probe/{{run}}/counts.csv",
        f"{AT.results}/probe/{{run}}/probe.json",
    log:
        "logs/probe/{run}.log",
    benchmark:
        "logs/benchmarks/probe/{run}.tsv"
    group:
        together()
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("probe"),
        gpu=GPU,
        limits=LIMITS,
    params:
        spec=lambda wc: canonical(PLAN.probes[wc.run]),
        data=lambda wc, input: os.path.dirname(input.data),
        encoder=lambda wc, input: encoder_option(input),
        features=lambda wc, input: features_options(input),
        out=lambda wc, output: os.path.dirname(output[0]),
        state=f"{AT.work}/state/{{run}}.json",
        device=STUDY.device,
    shell:
        "python -m crnet job probe --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.features:q}"
        " --weights {input.weights:q} --episodes {input.episodes:q} --state {params.state:q} --out {params.out:q}"
        " --limits {resources.limits:q} --device {params.device} --threads {threads} > {log:q} 2>&1"
