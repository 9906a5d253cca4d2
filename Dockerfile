# One recipe for every image; docs/image.md says what is in it and why.
#
#   docker build .                                                        torch 2.6 cu124: A6000, L40S, A100, H100, H200, RTX 4090
#   docker build --build-arg LOCK=requirements/blackwell.lock.txt .       torch 2.8 cu128: RTX 50xx and those from sm_70 on
#   make containerize                                                     either of them, from a bento
#
# The bentofiles name this file as their template. BentoML renders it with Jinja, which takes the lines between `if` and `endif` out and
# writes others in their place; to Docker all of that is comment. A bento holds one lock besides that of the tools.
ARG BASE=python:3.11-slim-bookworm
# {% if false %}
ARG SOURCE=.
ARG LOCK=requirements/runtime.lock.txt
# {% endif %}
# {{ "\nARG SOURCE=src\nARG LOCK=src/requirements/[^t]*.lock.txt" }}

# Layers go from what changes least to what changes most: system, packages, code.
FROM ${BASE} AS system
# Triton compiles its launcher with a C compiler at run time; bitsandbytes needs libgomp, which comes with gcc.
# Who runs the image as another user in group 0 (OpenShift does) may write where the image's own may: its home and /models.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/log/apt /var/log/*.log \
    && groupadd --gid 1034 bentoml \
    && useradd --uid 1034 --gid 1034 --no-log-init --home-dir /var/lib/zopilot-gpu bentoml \
    && install --directory --owner 1034 --group 0 --mode 2775 /var/lib/zopilot-gpu /models
WORKDIR /app

FROM scratch AS locks
ARG SOURCE
ARG LOCK
COPY ${LOCK} /lock/
COPY ${SOURCE}/requirements/tools.lock.txt ${SOURCE}/image/trim.py /

FROM scratch AS checks
ARG SOURCE
COPY ${SOURCE}/image/check.py /

# All in one layer, so that what is taken out again is not carried along: uv, its cache, and what the service never loads.
FROM system AS packages
COPY --from=locks /lock requirements
RUN --mount=type=cache,target=/var/cache/uv --mount=type=bind,from=locks,target=/build \
    python -m venv /tmp/tools \
    && /tmp/tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /build/tools.lock.txt \
    && export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 \
    && /tmp/tools/bin/uv venv --quiet --python "$(command -v python)" .venv \
    && /tmp/tools/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --require-hashes -r /build/lock/*.lock.txt \
    && .venv/bin/python -I /build/trim.py .venv/lib/python3.11/site-packages \
    && /tmp/tools/bin/uv pip check --python .venv/bin/python \
    && rm -rf /tmp/tools
RUN --mount=type=bind,from=checks,target=/build \
    TRITON_CACHE_DIR=/tmp/triton .venv/bin/python -IB /build/check.py \
    && rm -rf /tmp/triton

FROM system AS code
ARG SOURCE
COPY ${SOURCE}/service.py ${SOURCE}/image/healthcheck.py ./
COPY ${SOURCE}/runners runners
COPY ${SOURCE}/zopilot_gpu zopilot_gpu
# The service's user may not write here, so Python's bytecode is made now; `zopilot-gpu` is the command of an installed package.
RUN python -m compileall -q . \
    && install --directory bin \
    && printf '#!/bin/sh\nPYTHONPATH=/app exec /app/.venv/bin/python -m zopilot_gpu.cli "$@"\n' > bin/zopilot-gpu \
    && chmod 755 bin/zopilot-gpu

FROM packages
LABEL org.opencontainers.image.title="ZopilotGPU" \
      org.opencontainers.image.description="Mixtral-8x7B-Instruct in 4-bit NF4 behind POST /prompt, as a BentoML service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
ENV HOME=/var/lib/zopilot-gpu \
    PATH=/app/bin:/app/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    BENTOML_CONTAINERIZED=1 \
    BENTOML_DO_NOT_TRACK=True \
    HF_HUB_DISABLE_TELEMETRY=1
COPY --from=code /app ./
USER 1034:1034
# Here the build ends where the image can't serve, as the image's user with the image's environment.
RUN PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=/tmp/triton zopilot-gpu doctor --build && rm -rf /tmp/triton
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-I", "/app/healthcheck.py"]
ENTRYPOINT ["sh", "-c", "exec bentoml serve service:ZopilotGPU --host 0.0.0.0 --port ${PORT:-3000}"]
