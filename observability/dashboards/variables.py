"""The choices that the dashboards share."""

from __future__ import annotations

from observability.dashboards.panels import Variable
from observability.instruments import DESTINATION, MODEL, REQUEST_MODEL, RESPONSE_MODEL, VERSION

MODEL_SERVED = Variable(
    name="model",
    title="Model",
    source="gen_ai.server.request.duration",
    attribute=REQUEST_MODEL,
    attributes=(REQUEST_MODEL, MODEL),
)
MODEL_TRAINED = Variable(
    name="model",
    title="Model",
    source="feedloom.trainer.rounds.open",
    attribute=MODEL,
    attributes=(REQUEST_MODEL, MODEL),
)
VERSION_SERVED = Variable(
    name="version",
    title="Version",
    source="gen_ai.server.request.duration",
    attribute=RESPONSE_MODEL,
    attributes=(RESPONSE_MODEL,),
)
VERSION_TRAINED = Variable(
    name="version",
    title="Version",
    source="feedloom.trainer.heldout.loss",
    attribute=VERSION,
    attributes=(VERSION,),
)
VERSION_CANARY = Variable(
    name="version",
    title="Version",
    source="feedloom.rollout.requests",
    attribute=VERSION,
    attributes=(VERSION,),
)
WORKER = Variable(
    name="worker",
    title="Worker",
    source="feedloom.engine.alive",
    attribute="instance",
    attributes=("instance",),
)
TOPIC = Variable(
    name="topic",
    title="Topic",
    source="feedloom.worker.lag",
    attribute=DESTINATION,
    attributes=(DESTINATION,),
)
