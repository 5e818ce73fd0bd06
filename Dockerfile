# syntax=docker/dockerfile:1
# The worker. CUDA comes with the torch wheels, so the base image needs none and adds no requirement
# for the host's driver.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
# Use another lock for another CUDA version: see docs/deploy-runpod.md, "The image".
ARG LOCK=requirements.lock
COPY ${LOCK} /tmp/requirements.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes --no-deps \
        -r /tmp/requirements.lock

FROM packages AS safety
WORKDIR /app
COPY wan_engine wan_engine
# The Hub's key is in no layer: the secret is mounted only while this command runs.
RUN --mount=type=secret,id=hf_token,env=HF_TOKEN \
    HF_HOME=/opt/wan/huggingface /opt/venv/bin/python -m wan_engine download safety

FROM ${PYTHON}
# torch needs compilers: Triton's driver is C, and inductor's code for a CPU is C++. The base has
# Python's headers. tini is the first process: it passes signals on and reaps ended children.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev tini \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 wan && mkdir -p /app/outputs && chown wan /app/outputs
COPY --from=packages /opt/venv /opt/venv
COPY --from=safety /opt/wan /opt/wan
WORKDIR /app
# To prepare a set of weights: `python -m builder.prepare`.
COPY builder builder
COPY wan_engine wan_engine
COPY LICENSE handler.py test_input.json ./
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 \
    PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1,expandable_segments:True
# Set to `root` if the worker must write to a volume that belongs to root.
ARG RUN_AS=wan
USER ${RUN_AS}
# Checks as this user that code for CPU and GPU can be compiled, and prints what is missing.
RUN ["python", "-c", "import sys; from wan_engine.runtime.compiler import problem; sys.exit(problem('cpu') or problem('cuda'))"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "handler.py"]
