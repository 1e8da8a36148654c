# docker build -f docker/cpu.Dockerfile -t ddip-pl:cpu .
FROM python:3.11.13-slim-bookworm

WORKDIR /build
COPY constraints.txt docker/requirements.txt ./
# PyTorch's own index has builds without CUDA; pip prefers them to PyPI's builds of the same version.
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY ddip_pl ddip_pl
RUN pip install --no-cache-dir --no-deps .

RUN useradd --uid 1000 ddip && install -d -m 1777 /cache /data
ENV HOME=/cache XDG_CACHE_HOME=/cache
USER 1000
WORKDIR /data
ENTRYPOINT ["ddip-pl"]
CMD ["--help"]
