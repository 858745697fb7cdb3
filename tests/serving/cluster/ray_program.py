"""A process of its own with a local Ray and two replicas of a model; ends when its stdin does.

Ray changes the process that it is started in for good (signals, threads, logging), so not the tests'.
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
