# The same image as `bentoml containerize` makes, for hosts that build from a repository (RunPod's GitHub build):
# same lock, same entry point, same user. Layers go from what changes least to what changes most.
FROM python:3.11-slim-bookworm AS packages
WORKDIR /app
COPY requirements/tools.lock.txt requirements/runtime.lock.txt requirements/
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/tools.lock.txt \
    && .venv/bin/uv pip install --no-cache --require-hashes --compile-bytecode -r requirements/runtime.lock.txt

FROM python:3.11-slim-bookworm
# Triton compiles its launcher with a C compiler at run time; bitsandbytes needs libgomp, which comes with gcc.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1034 --create-home bentoml
WORKDIR /app
COPY --from=packages /app/.venv .venv
COPY service.py README.md ./
COPY runners runners
COPY zopilot_gpu zopilot_gpu
ENV PATH=/app/.venv/bin:$PATH \
    BENTOML_CONTAINERIZED=1 \
    BENTOML_DO_NOT_TRACK=True \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
USER bentoml
EXPOSE 3000
ENTRYPOINT ["sh", "-c", "exec bentoml serve service:ZopilotGPU --host 0.0.0.0 --port ${PORT:-3000}"]
