# docker build -t rgpo .                                   CPU
# docker build -t rgpo --build-arg TORCH_BACKEND=cu130 .   CUDA; docker run then needs --gpus all
# docker run --rm -v "$PWD/results:/home/rgpo/results" rgpo rgpo-run algo=rgpo task=cartpole
# Layers, from seldom to often: compiler, user, torch, the other packages, the source (1 MB).
FROM python:3.11.14-slim-bookworm

ARG TORCH_BACKEND=cpu
ARG EXTRAS=joblib
ARG UID=1000
ENV VIRTUAL_ENV=/opt/venv PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
ENV PATH=$VIRTUAL_ENV/bin:$PATH

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid "$UID" rgpo \
    && mkdir /home/rgpo/results \
    && chown rgpo /home/rgpo/results
RUN python -m venv "$VIRTUAL_ENV"
RUN uv="$(mktemp -d)" \
    && pip install --target "$uv" uv \
    && "$uv/bin/uv" pip install --no-cache --torch-backend "$TORCH_BACKEND" torch==2.13.0 \
    && rm -rf "$uv"

WORKDIR /opt/rgpo
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir conf claims rgpo \
    && touch rgpo/__init__.py \
    && echo '__version__ = "0"' > rgpo/version.py \
    && pip install --constraint constraints.txt ".[$EXTRAS]"
COPY conf conf
COPY claims claims
COPY rgpo rgpo
RUN pip install --no-deps --force-reinstall .

USER rgpo
WORKDIR /home/rgpo
CMD ["rgpo-run", "--help"]
