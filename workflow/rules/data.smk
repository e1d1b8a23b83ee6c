# Archives, prepared data sets, encoder weights, test episodes.


# Nodes may have no way to the internet; the others take seconds.
localrules:
    download,
    episodes,
    feasible,


rule download:
    # The archive itself is not declared: Snakemake deletes declared outputs, and users may have placed it there.
    output:
        AT.verified("{archive}"),
    log:
        "logs/download/{archive}.log",
    benchmark:
        "logs/benchmarks/download/{archive}.tsv"
    retries: 2
    conda:
        "../../environment.yml"
    params:
        settings=lambda wc: canonical({n: s.model_dump(exclude_none=True) for n, s in STUDY.archives.items()}),
        folder=lambda wc: AT.archives,
    shell:
        "python -m crnet job download {wildcards.archive:q} --folder {params.folder:q} --settings {params.settings:q}"
        " --verified {output:q} 2>&1 | tee {log:q}"


rule data:
    input:
        lambda wc: [AT.verified(a) for a in AT.archive_names("dataset", DATASETS[f"{AT.work}/data/{wc.name}"])],
    output:
        f"{AT.work}/data/{{name}}/dataset.json",
    log:
        "logs/data/{name}.log",
    benchmark:
        "logs/benchmarks/data/{name}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **asked("data"),
    params:
        spec=lambda wc: canonical(DATASETS[f"{AT.work}/data/{wc.name}"]),
        archives=AT.archives,
        extracted=lambda wc: AT.extracted(DATASETS[f"{AT.work}/data/{wc.name}"]),
        out=lambda wc, output: os.path.dirname(output[0]),
    shell:
        "python -m crnet job prepare --spec {params.spec:q} --archives {params.archives:q}"
        " --extracted {params.extracted:q} --out {params.out:q} > {log:q} 2>&1"


rule encoder:
    input:
        lambda wc: [
            AT.verified(a) for a in AT.archive_names("encoder", ENCODERS[f"{AT.work}/encoders/{wc.name}.safetensors"])
        ],
    output:
        f"{AT.work}/encoders/{{name}}.safetensors",
    log:
        "logs/encoder/{name}.log",
    benchmark:
        "logs/benchmarks/encoder/{name}.tsv"
    conda:
        "../../environment.yml"
    threads: STUDY.threads
    resources:
        **asked("encoder"),
    params:
        spec=lambda wc: canonical(ENCODERS[f"{AT.work}/encoders/{wc.name}.safetensors"]),
        archives=AT.archives,
    shell:
        "python -m crnet job encoder --spec {params.spec:q} --archives {params.archives:q} --out {output:q}"
        " --threads {threads} > {log:q} 2>&1"


rule episodes:
    input:
        lambda wc: ancient(
            f"{AT.data(EPISODES[f'{AT.results}/episodes/{wc.name}.csv']['train']['dataset'])}/dataset.json"
        ),
    output:
        table=f"{AT.results}/episodes/{{name}}.csv",
        about=f"{AT.results}/episodes/{{name}}.json",
    log:
        "logs/episodes/{name}.log",
    benchmark:
        "logs/benchmarks/episodes/{name}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=lambda wc: canonical(resolve.episodes_spec(EPISODES[f"{AT.results}/episodes/{wc.name}.csv"])),
        data=lambda wc, input: os.path.dirname(input[0]),
    shell:
        "python -m crnet job episodes --spec {params.spec:q} --data {params.data:q} --out {output.table:q} > {log:q} 2>&1"


rule feasible:
    # Trainings wait for this, so that a class with too few test photos stops a study before it trains.
    input:
        list(EPISODES),
    output:
        touch(f"{AT.work}/feasible/{STUDY.study}.txt"),
    log:
        f"logs/episodes/{STUDY.study}-feasible.log",
    conda:
        "../../environment.yml"
    shell:
        "echo {input:q} > {log:q}"
