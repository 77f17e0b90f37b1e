"""The HTTP service: images in; probabilities, features or patch evidence out.

Needs the extra `serve` and does not import torch itself.

- settings: the limits of the service
- schemas: JSON responses
- limits: middleware that enforces the limits before a body is parsed
- uploads: request body -> images -> pixels at the model's size
- batcher: combines requests into batches
- evidence: per-patch contributions to a class, for models that provide them
- metrics: Prometheus metrics
- app: endpoints; `make_app` assembles the service
- page: the pages at / and /docs
- server: sockets, signals and worker processes
"""
