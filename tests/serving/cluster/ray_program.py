"""A local Ray cluster with two replicas of a model, until its stdin ends.

It runs in its own process because Ray changes signals, threads and logging permanently.
Arguments: port and folder of the model.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

from vip_llava.serving.cluster.ray_serve import ClusterSettings, build
from vip_llava.serving.settings import Limits


def main(port: int, folder: str) -> None:
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = ClusterSettings(
        models={"tiny": folder},
        min_replicas=2,
        max_replicas=2,
        limits=Limits(rate=0, tokens=40),
    )
    serve.run(build(settings))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
