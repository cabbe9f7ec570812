"""Ray Serve LLM with the engine's arguments, as Ray's documentation writes it."""

from __future__ import annotations

import os
import signal

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

config = LLMConfig(
    model_loading_config={"model_id": "default", "model_source": os.environ["PEERS_MODEL"]},
    deployment_config={"num_replicas": 1, "max_ongoing_requests": 512},
    placement_group_config={"bundles": [{"CPU": 1}]},
    log_engine_metrics=False,
    engine_kwargs={
        "dtype": os.environ["PEERS_DTYPE"],
        "max_num_seqs": 256,
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 512 * 1024**2,
        "disable_log_stats": True,
        "seed": 0,
    },
)

if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=8, object_store_memory=128 * 1024**2)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEERS_PORT"])})
    serve.run(build_openai_app({"llm_configs": [config]}))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
