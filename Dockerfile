# syntax=docker/dockerfile:1
# The worker. CUDA comes with the torch wheels, so the base needs none and makes no demand on the
# host's driver of its own.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
# Another lock is another CUDA: see docs/deploy-runpod.md, "The image".
ARG LOCK=requirements.lock
COPY ${LOCK} /tmp/requirements.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes --no-deps \
        -r /tmp/requirements.lock

FROM packages AS safety
WORKDIR /app
COPY wan_engine wan_engine
# The Hub's key is in no layer: the mount exists while this runs, and only where it was given.
RUN --mount=type=secret,id=hf_token,env=HF_TOKEN \
    HF_HOME=/opt/wan/huggingface /opt/venv/bin/python -m wan_engine download safety

FROM ${PYTHON}
# What torch compiles with: Triton's driver is C, inductor's code for a CPU C++; Python's headers are
# in the base. tini is the first process: it passes signals on and buries children.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev tini \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 wan && mkdir -p /app/outputs && chown wan /app/outputs
COPY --from=packages /opt/venv /opt/venv
COPY --from=safety /opt/wan /opt/wan
WORKDIR /app
# For a ready set: `python -m builder.prepare`.
COPY builder builder
COPY wan_engine wan_engine
COPY LICENSE handler.py test_input.json ./
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 \
    PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1,expandable_segments:True
# `root` where the worker has to write to a volume that belongs to root.
ARG RUN_AS=wan
USER ${RUN_AS}
# As this user, for both kinds of code: prints what is missing.
RUN ["python", "-c", "import sys; from wan_engine.runtime.compiler import problem; sys.exit(problem('cpu') or problem('cuda'))"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "handler.py"]
