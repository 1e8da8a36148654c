# docker build -f docker/cuda.Dockerfile -t ddip-pl:cuda .
# PyTorch from PyPI includes the CUDA libraries; the host provides the driver.
FROM python:3.11.13-slim-bookworm

WORKDIR /build
COPY docker/torch-cuda.txt docker/requirements.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r torch-cuda.txt \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY ddip_pl ddip_pl
RUN pip install --no-cache-dir --no-deps .

RUN useradd --uid 1000 ddip && install -d -m 1777 /cache /data
ENV HOME=/cache XDG_CACHE_HOME=/cache NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
ENTRYPOINT ["ddip-pl"]
CMD ["--help"]
