# The sidecar alone in an image: a static binary, CA certificates, licences, and
# its two directories. Built by `make image`, with buildah or docker.

FROM docker.io/library/golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
RUN make image-root VERSION="$VERSION" IMAGE_ROOT=/image

FROM scratch
ARG VERSION=devel
LABEL org.opencontainers.image.title="workflow-results-sidecar" \
      org.opencontainers.image.description="Takes workflow results over a Unix socket and publishes each exactly once to Kafka" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build --chown=65532:65532 /image/ /
# `kubectl exec POD -c workflow-results-sidecar -- sidecar status` finds it by its name.
ENV PATH=/
USER 65532:65532
ENTRYPOINT ["/sidecar"]
CMD ["run"]
