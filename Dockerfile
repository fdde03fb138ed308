# A CPU image that trains, evaluates and predicts; runs are kept in the volume /runs:
#
#   docker build -t rlcore .
#   docker run -v rlcore-runs:/runs rlcore train cartpole_dqn
#   docker run -v rlcore-runs:/runs rlcore evaluate latest
#   docker run -v rlcore-runs:/runs rlcore predict latest '[0.1, 0, -0.2, 0]'
FROM python:3.11-slim

WORKDIR /opt/rlcore
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY rlcore rlcore
COPY agents agents
COPY envs envs
COPY scripts scripts
# PyPI's torch brings CUDA, several GB of it, so that torch comes from the index of builds for the CPU, and all else,
# what torch needs too, from PyPI. Another index: docker build --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt --no-deps --index-url "$TORCH_INDEX" torch
RUN pip install --no-cache-dir -c constraints.txt ".[plot,text,images,export]"

RUN useradd --create-home --uid 1000 rlcore && mkdir -p /runs/runs && chown -R rlcore /runs
USER rlcore
# Runs are written to ./runs.
WORKDIR /runs
VOLUME /runs
ENTRYPOINT ["/bin/sh", "-c", "command=$1; shift; exec rlcore-$command \"$@\"", "rlcore"]
CMD ["train", "--help"]
