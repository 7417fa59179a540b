# docker build -t rgpo .                                   CPU
# docker build -t rgpo --build-arg TORCH_BACKEND=cu130 .   CUDA
# docker run --rm -v "$PWD/results:/home/rgpo/results" rgpo rgpo-run algo=rgpo task=cartpole
FROM python:3.11.14-slim-bookworm

ARG TORCH_BACKEND=cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rgpo
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY rgpo rgpo
RUN pip install uv \
    && uv pip install --system --torch-backend "$TORCH_BACKEND" --constraint constraints.txt .

RUN useradd --create-home --uid 1000 rgpo && mkdir /home/rgpo/results && chown rgpo /home/rgpo/results
USER rgpo
WORKDIR /home/rgpo
CMD ["rgpo-run", "--help"]
