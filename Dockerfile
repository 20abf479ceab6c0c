# scmmgpt on a CPU, as a user without rights, ready without a network:
#   docker build --tag scmmgpt .
#   docker run --rm --read-only --tmpfs /tmp --network none --volume "$PWD:/data" scmmgpt annotate my.h5ad --output out.h5ad
# With a GPU: docker build --build-arg TORCH=cuda --tag scmmgpt:gpu . and docker run --gpus all ...
# As an MCP server: docker run --rm --interactive --network none --volume "$PWD:/data" scmmgpt mcp --folder /data
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
ARG TORCH=cpu
ARG EXTRAS=eval,ontology,serve,mcp
# A folder of wheels to look into first.
ARG PIP_FIND_LINKS=
# Where wheels of torch lie; the plain index holds the build for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
RUN python3 -m venv /opt/scmmgpt
ENV PATH=/opt/scmmgpt/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt .
RUN if [ "$TORCH" = cpu ]; then pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" "torch==2.13.0+cpu" \
    || pip install --constraint constraints.txt torch; else pip install --constraint constraints.txt torch; fi
COPY . .
RUN pip install --constraint constraints.txt ".[$EXTRAS]"
# Compiled once here, although so few cells would do without: nothing needs to be written when it runs.
RUN NUMBA_CACHE_DIR=/opt/scmmgpt/numba HOME=/tmp python -c "from pathlib import Path; from scmmgpt import demo; \
    from scmmgpt.processing import gene_kernels_scmmgpt as kernels; \
    kernels.ENTRIES_WITHOUT_NUMBA = 0; demo.run_demo(Path('/tmp/demo'))" && chmod -R a+rX /opt/scmmgpt

FROM ${BASE}
LABEL org.opencontainers.image.title="scmmgpt" \
      org.opencontainers.image.description="Single cells and language: annotate, embed, describe, search and generate." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/scmmgpt /opt/scmmgpt
RUN useradd --create-home --uid 10001 scmmgpt && mkdir /data && chown scmmgpt /data
ENV PATH=/opt/scmmgpt/bin:$PATH HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/opt/scmmgpt/numba PYTHONDONTWRITEBYTECODE=1
USER scmmgpt
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=60s CMD ["scmmgpt", "info", "--json"]
ENTRYPOINT ["scmmgpt"]
CMD ["--help"]
