# The benchmark in a container, as a user who is not root. It passes hadolint; no daemon was at hand to build it.
#   docker build -t crnet --build-arg CPU_WHEELS=URL .         # CPU: URL is the index of PyTorch's CPU wheels
#   docker build -t crnet:cuda --build-arg DEVICE=cuda .       # GPUs: run it with --gpus all
#   docker run --rm -v "$PWD/out:/crnet/out" -v "$PWD/work:/crnet/work" --user "$(id -u):$(id -g)" crnet
#   apptainer build crnet.sif docker-daemon://crnet:latest     # clusters; run it with --nv where there are GPUs
ARG PYTHON=3.11.7
FROM python:${PYTHON}-slim-bookworm

# cpu: torch from CPU_WHEELS, without CUDA; cuda: the versions of requirements.lock as they stand, with CUDA's libraries.
ARG DEVICE=cpu
ARG CPU_WHEELS=

# git: runs record their commit. No compiler: every package is there as a wheel. Debian's mirrors keep no old versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 crnet

WORKDIR /crnet
COPY requirements.lock pyproject.toml README.md ./
RUN if [ "$DEVICE" = cuda ]; then \
        pip install --no-cache-dir --requirement requirements.lock; \
    elif [ "$DEVICE" = cpu ] && [ -n "$CPU_WHEELS" ]; then \
        grep -E '^torch(vision)?==' requirements.lock > /tmp/torch.txt \
        && grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' requirements.lock > /tmp/others.txt \
        && pip install --no-cache-dir --no-deps --index-url "$CPU_WHEELS" --requirement /tmp/torch.txt \
        && pip install --no-cache-dir --no-deps --requirement /tmp/others.txt; \
    else \
        echo "DEVICE is cuda, or cpu with CPU_WHEELS, the index of PyTorch's CPU wheels" >&2; exit 1; \
    fi \
    && rm -f /tmp/torch.txt /tmp/others.txt

# What changes from day to day comes last: the layers above stay.
COPY . .
RUN pip install --no-cache-dir --no-deps --editable . \
    && mkdir -p work out data logs .snakemake \
    && chown crnet:crnet . work out data logs .snakemake \
    && chmod 1777 . work out data logs .snakemake

# A user of another number, as `docker run --user` or Apptainer has it, owns nothing here: HOME may be written to by all,
# and Git believes the folder though it is another's.
RUN git config --system --add safe.directory /crnet
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
USER 1000
ENTRYPOINT ["snakemake"]
CMD ["--cores", "all"]
