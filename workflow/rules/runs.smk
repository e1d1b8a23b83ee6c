# Features, trainings, evaluations. Everything a job uses is in its params: a changed value reruns its own jobs only.
# Inputs that only have to be there are `ancient`: their content is fixed by their name, and git gives new mtimes.

FEATURES = {AT.features(spec): spec for spec in PLAN.trainings.values() if AT.features(spec)}
GPU = 1 if STUDY.device == "cuda" else 0


def data_files(spec):
    """What every job on photos reads: the prepared data set, and the encoder's weights unless it brings its own."""
    files = {"data": f"{AT.data(spec['dataset'])}/dataset.json"}
    if AT.encoder(spec["encoder"]):
        files["encoder"] = AT.encoder(spec["encoder"])
    return {key: ancient(path) for key, path in files.items()}


def encoder_option(spec):
    return ["--encoder", AT.encoder(spec["encoder"])] if AT.encoder(spec["encoder"]) else []


def fold_episodes(spec):
    """Episodes of a training's fold: drawn first, so that a class with too few photos stops it before it starts."""
    return [AT.episodes(e) for e in PLAN.evaluations.values() if e["train"] == spec]


rule features:
    input:
        unpack(lambda wc: data_files(FEATURES[f"{AT.work}/features/{wc.name}"])),
    output:
        f"{AT.work}/features/{{name}}/features.json",
    params:
        spec=lambda wc: canonical(resolve.features_spec(FEATURES[f"{AT.work}/features/{wc.name}"])),
        data=lambda wc: AT.data(FEATURES[f"{AT.work}/features/{wc.name}"]["dataset"]),
        encoder=lambda wc: encoder_option(FEATURES[f"{AT.work}/features/{wc.name}"]),
        out=f"{AT.work}/features/{{name}}",
        device=STUDY.device,
    log:
        "logs/features/{name}.log",
    benchmark:
        "logs/benchmarks/features/{name}.tsv"
    threads: STUDY.threads
    resources:
        gpu=GPU,
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet features --spec {params.spec:q} --data {params.data:q} {params.encoder:q}"
        " --out {params.out:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


rule train:
    input:
        unpack(lambda wc: data_files(PLAN.trainings[wc.run])),
        episodes=lambda wc: ancient(fold_episodes(PLAN.trainings[wc.run])),
        features=lambda wc: [ancient(f"{f}/features.json") for f in [AT.features(PLAN.trainings[wc.run])] if f],
    output:
        f"{AT.work}/train/{{run}}/model.safetensors",
        f"{AT.work}/train/{{run}}/log.csv",
        f"{AT.work}/train/{{run}}/train.json",
    params:
        spec=lambda wc: canonical(PLAN.trainings[wc.run]),
        data=lambda wc: AT.data(PLAN.trainings[wc.run]["dataset"]),
        encoder=lambda wc: encoder_option(PLAN.trainings[wc.run]),
        features=lambda wc: ["--features", f] if (f := AT.features(PLAN.trainings[wc.run])) else [],
        out=f"{AT.work}/train/{{run}}",
        # Undeclared on purpose: Snakemake deletes declared outputs before each attempt.
        state=f"{AT.work}/state/{{run}}.pt",
        device=STUDY.device,
    log:
        "logs/train/{run}.log",
    benchmark:
        "logs/benchmarks/train/{run}.tsv"
    threads: STUDY.threads
    resources:
        gpu=GPU,
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet train --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.features:q}"
        " --out {params.out:q} --state {params.state:q} --device {params.device} --threads {threads} > {log:q} 2>&1"


rule evaluate:
    input:
        unpack(lambda wc: data_files(PLAN.evaluations[wc.run]["train"])),
        episodes=lambda wc: ancient(AT.episodes(PLAN.evaluations[wc.run])),
        weights=lambda wc: AT.weights(PLAN.evaluations[wc.run]) or [],
    output:
        f"{AT.results}/evaluate/{{run}}/counts.csv",
        f"{AT.results}/evaluate/{{run}}/evaluation.json",
    params:
        spec=lambda wc: canonical(PLAN.evaluations[wc.run]),
        data=lambda wc: AT.data(PLAN.evaluations[wc.run]["train"]["dataset"]),
        encoder=lambda wc: encoder_option(PLAN.evaluations[wc.run]["train"]),
        weights=lambda wc: ["--weights", w] if (w := AT.weights(PLAN.evaluations[wc.run])) else [],
        out=f"{AT.results}/evaluate/{{run}}",
        device=STUDY.device,
    log:
        "logs/evaluate/{run}.log",
    benchmark:
        "logs/benchmarks/evaluate/{run}.tsv"
    threads: STUDY.threads
    resources:
        gpu=GPU,
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet evaluate --spec {params.spec:q} --data {params.data:q} {params.encoder:q} {params.weights:q}"
        " --episodes {input.episodes:q} --out {params.out:q} --device {params.device} --threads {threads}"
        " > {log:q} 2>&1"
