# Training on NVIDIA GPUs:   docker build -t trl_soft .
#                            docker run --gpus all -it -v "$PWD/outputs:/opt/trl_soft/outputs" trl_soft trl-soft doctor
# With vLLM, whose constraints are its own:   docker build --build-arg EXTRAS=peft,vllm --build-arg CONSTRAINTS= -t trl_soft .
#
# torch brings its CUDA libraries. The base image adds nvcc, with which DeepSpeed compiles, and a C compiler, which Triton needs.
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE}

ARG EXTRAS=peft,tensorboard,eval
ARG CONSTRAINTS=constraints.txt

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv build-essential git \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN python3 -m venv $VIRTUAL_ENV

WORKDIR /opt/trl_soft
COPY . .
# torch comes first and by itself, so that packages that probe for it while they are built find it.
RUN if [ -n "$CONSTRAINTS" ]; then export PIP_CONSTRAINT=/opt/trl_soft/$CONSTRAINTS; fi \
    && pip install --no-cache-dir pip setuptools wheel \
    && pip install --no-cache-dir torch \
    && pip install --no-cache-dir -e ".[$EXTRAS]"

CMD ["trl-soft", "doctor"]
