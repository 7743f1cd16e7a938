# docker build --tag substyle .                       # --build-arg EXTRA=gpu with TensorRT, for a GPU machine
# docker run --rm --volume $PWD/runs:/substyle/runs substyle make demo
# docker run --rm --gpus all substyle make gpu-check
FROM python:3.11.11-slim-bookworm

# kernels are compiled for the processor that runs them
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /substyle
COPY . .

ARG EXTRA=cpu
ENV EXTRA=$EXTRA PATH=/substyle/.venv/bin:$PATH
RUN make setup

CMD ["make", "demo"]
