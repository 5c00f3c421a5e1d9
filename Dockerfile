# curvverify with the competition's three scripts in /opt/curvverify/vnncomp; torch for CPUs.
#   docker build -t curvverify .
#   docker run --rm -v "$PWD/benchmark:/benchmark" curvverify \
#     bash run_instance.sh v1 CATEGORY /benchmark/net.onnx /benchmark/prop.vnnlib /benchmark/result.txt 60
FROM python:3.11-slim

# Where torch comes from: wheels without CUDA are a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/curvverify
COPY pyproject.toml constraints.txt README.md Makefile ./
COPY curvverify curvverify
COPY vnncomp vnncomp

# The environment that the scripts look for.  The stamp tells the Makefile that it is there: the tools of developers,
# which `make` would add, are left out.
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt '.[plots]' \
    && touch .venv/.installed \
    && bash vnncomp/install_tool.sh v1

ENV PATH=/opt/curvverify/.venv/bin:$PATH
WORKDIR /opt/curvverify/vnncomp
CMD ["curvverify", "--help"]
