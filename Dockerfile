# The image of launch/gke.sh (IMAGE) and launch/xpk.sh (BASE_IMAGE):
#   docker build --tag=REGISTRY/msg-jax --platform=linux/amd64 . && docker push REGISTRY/msg-jax
# For GPUs add --build-arg=EXTRA=cuda. PyAV's and soundfile's wheels bring the FFmpeg and libsndfile libraries.
FROM python:3.12-slim
ARG EXTRA=tpu
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir ".[$EXTRA,gcs]"
CMD ["msg-jax", "--help"]
