"""The profiles the chart is tested with: those it has, and those that switch on the rest."""

from __future__ import annotations

from typing import Any

from tests.deploy import Object, render

_EXTERNAL = ("worker", "gateway", "console", "rollouts", "trainer", "operator", "autoscaler")
_MORE: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "laptop": ("laptop", {}),
    "gpu": ("gpu", {}),
    "production": ("production", {}),
    "ambient": (
        "production",
        {
            "mesh": {
                "mode": "ambient",
                "requestAuthentication": {
                    "enabled": True,
                    "issuer": "https://login.example.com/realm",
                    "audiences": ["feedloom"],
                },
            },
            "networkPolicy": {"consoleNamespaces": ["operations"]},
            "pretraining": {"enabled": True, "kind": "trainjob"},
            "trainer": {"mode": "cronjob", "bootstrap": True},
        },
    ),
    # Nothing runs while nothing waits, on somebody else's Kafka.
    "external": (
        None,
        {
            "kafka": {
                "mode": "external",
                "topicPrefix": "Team_A.",
                "external": {
                    "bootstrapServers": "kafka.example.com:9094",
                    "caSecret": {"name": "kafka-authority"},
                    "usernames": {"worker": "team-a-worker"},
                },
            },
            "secrets": {
                "kafka": {
                    **{one: {"remote": {"key": f"kafka/{one}"}} for one in _EXTERNAL},
                    "trainer": {"existing": "trainer-kafka"},
                },
                "objectStore": {"existing": "minio"},
                "publicKey": {"existing": "signing"},
            },
            "externalSecrets": {"store": {"name": "vault", "kind": "SecretStore"}},
            "artifacts": {
                "url": "s3://models/artifacts",
                "endpointUrl": "http://minio.minio.svc:9000",
            },
            "workers": {
                "pools": {
                    "main": {
                        "kind": "cpu",
                        "autoscaling": {"enabled": True, "scaleOn": "all", "minReplicas": 0},
                    }
                }
            },
            "gateway": {"canary": {"enabled": True, "tag": "9.9.9"}},
            "edge": {"ingress": {"enabled": True, "tlsSecret": "edge"}},
            "pretraining": {"enabled": True},
            "trainer": {"mode": "job"},
            "networkPolicy": {
                "externalKafka": {"cidrs": ["10.1.0.0/16"], "ports": [9094]},
                "metadata": ["169.254.170.23/32"],
            },
        },
    ),
}
PROFILES = tuple(_MORE)


def rendered(profile: str) -> tuple[Object, ...]:
    """Every object of a profile."""
    name, values = _MORE[profile]
    return render(name, **values)
