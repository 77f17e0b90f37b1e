"""The HTTP service: images in, probabilities, features and patch evidence out. Needs the extra `serve`; imports no torch by itself.

- settings: what may be asked for, and how much
- schemas: the JSON that is answered
- limits: what is refused before a body is parsed, and the body itself
- uploads: a body -> images -> pixels of the model's size
- batcher: many requests, one engine
- evidence: which patches speak for a class, where the model can say it
- metrics: what Prometheus reads
- app: the endpoints; `make_app` puts it all together
- page: the page at / and the one at /docs
- server: sockets, signals, several workers
"""
