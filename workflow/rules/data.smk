# Archives, prepared data sets, encoder weights, test episodes.

DATASETS = {AT.data(spec): spec for spec in PLAN.datasets.values()}
ENCODERS = {AT.encoder(spec): spec for spec in PLAN.encoders.values() if AT.encoder(spec)}
EPISODES = {AT.episodes(spec): spec for spec in PLAN.evaluations.values()}


rule download:
    # The archive itself is not declared: Snakemake deletes declared outputs, and users may have placed it there.
    output:
        f"{AT.archives}/{{archive}}.verified",
    params:
        settings=lambda wc: canonical({n: s.model_dump(exclude_none=True) for n, s in STUDY.archives.items()}),
        folder=AT.archives,
    log:
        "logs/download/{archive}.log",
    benchmark:
        "logs/benchmarks/download/{archive}.tsv"
    retries: 2
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet download {wildcards.archive:q} --folder {params.folder:q} --settings {params.settings:q}"
        " 2>&1 | tee {log:q}"


rule data:
    input:
        lambda wc: [AT.verified(a) for a in AT.archive_names("dataset", DATASETS[f"{AT.work}/data/{wc.name}"])],
    output:
        f"{AT.work}/data/{{name}}/dataset.json",
    params:
        spec=lambda wc: canonical(DATASETS[f"{AT.work}/data/{wc.name}"]),
        archives=AT.archives,
        extracted=lambda wc: AT.extracted(DATASETS[f"{AT.work}/data/{wc.name}"]),
        out=f"{AT.work}/data/{{name}}",
    log:
        "logs/data/{name}.log",
    benchmark:
        "logs/benchmarks/data/{name}.tsv"
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet prepare --spec {params.spec:q} --archives {params.archives:q}"
        " --extracted {params.extracted:q} --out {params.out:q} > {log:q} 2>&1"


rule encoder:
    input:
        lambda wc: [AT.verified(a) for a in AT.archive_names("encoder", ENCODERS[f"{AT.work}/encoders/{wc.name}.safetensors"])],
    output:
        f"{AT.work}/encoders/{{name}}.safetensors",
    params:
        spec=lambda wc: canonical(ENCODERS[f"{AT.work}/encoders/{wc.name}.safetensors"]),
        archives=AT.archives,
    log:
        "logs/encoder/{name}.log",
    benchmark:
        "logs/benchmarks/encoder/{name}.tsv"
    threads: STUDY.threads
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet encoder --spec {params.spec:q} --archives {params.archives:q} --out {output:q}"
        " --threads {threads} > {log:q} 2>&1"


rule episodes:
    input:
        lambda wc: f"{AT.data(EPISODES[f'{AT.results}/episodes/{wc.name}.csv']['train']['dataset'])}/dataset.json",
    output:
        f"{AT.results}/episodes/{{name}}.csv",
        f"{AT.results}/episodes/{{name}}.json",
    params:
        spec=lambda wc: canonical(resolve.episodes_spec(EPISODES[f"{AT.results}/episodes/{wc.name}.csv"])),
        data=lambda wc: AT.data(EPISODES[f"{AT.results}/episodes/{wc.name}.csv"]["train"]["dataset"]),
    log:
        "logs/episodes/{name}.log",
    benchmark:
        "logs/benchmarks/episodes/{name}.tsv"
    conda:
        "../../environment.yml"
    shell:
        "python -m crnet episodes --spec {params.spec:q} --data {params.data:q} --out {output[0]:q} > {log:q} 2>&1"
