"""``feedloom gateway``."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks one.")
def gateway(host: str | None, port: int | None) -> None:
    """Serve the HTTP API.

    Callers bring an API key (`feedloom keys create`) or a token of the configured issuer.
    """
    from infra.settings import load_settings
    from producers.gateway.server import serve

    settings = load_settings()
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    serve(settings.model_copy(update={"gateway": settings.gateway.model_copy(update=changes)}))
