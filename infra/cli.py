"""The ``feedloom`` command. Finds each package's commands by entry point and imports them lazily.

An entry point in the group ``feedloom.commands`` is named after its command and points at a click
command. ``GROUP.COMMAND`` adds a command to another package's group, which need not know of it.
``feedloom --help`` prints the names with the summaries below and imports none of them.
"""

from __future__ import annotations

import copy
import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import click

from infra.contracts.errors import FeedloomError

GROUP = "feedloom.commands"

PACKAGES = ("infra", "observability", "producers", "stream_workers", "trainer")
EXTRAS = ("worker", "worker-cpu", "trainer", "gateway", "local")

# Summaries live here, so that --help need not import torch or vllm to learn them.
SUMMARIES = {
    "backup": "Back up and restore registry, rollouts, settings and keys.",
    "config": "Show and change dynamic settings.",
    "demo": "Run the whole loop on real Kafka and real vLLM, and print a report.",
    "dlq": "List, show, replay and drop dead letters.",
    "doctor": "Check Java, ports, disk, memory, model and broker.",
    "feedback": "Say what you think of a result; have it forgotten.",
    "gateway": "Serve the HTTP API.",
    "generate": "Ask for one completion.",
    "kafka": "Start, stop and inspect the embedded Kafka broker.",
    "keys": "Create, list, rotate and revoke API keys.",
    "lag": "Show how far consumer groups are behind, by partition.",
    "models": "Build, publish, list, compare and verify model versions.",
    "models.replay": "Put past requests to a version, and compare its answers.",
    "pile": "Prepare, inspect and count text for training.",
    "plan": "Plan a deployment: GPUs, partitions, brokers, clusters, regions.",
    "publish": "Publish a file of prompts and collect the results.",
    "rollouts": "Watch canaries: promote, hold or roll back; show their figures.",
    "top": "Watch the platform: lag, workers, tokens, versions, dead letters.",
    "topics": "Apply and show the topic catalogue.",
    "trace": "Show the path of one request, and what came of it.",
    "trainer": "Train on feedback, or from scratch.",
    "up": "Run the whole platform in the foreground.",
    "worker": "Run a stream worker.",
}


class LazyCommand(click.Command):
    """Stands for a command of a group until it is called; its summary is that of SUMMARIES."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(entry.name.rpartition(".")[2], short_help=SUMMARIES.get(entry.name, ""))
        self._entry = entry

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Of the command itself, which click then invokes."""
        return _loaded(self._entry).make_context(info_name, args, parent, **extra)


class LazyGroup(click.Group):
    """A group whose commands are entry points, loaded when they are called."""

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name in self._entries() if "." not in name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entries = self._entries()
        if "." in cmd_name or cmd_name not in entries:
            return None
        added = [entry for name, entry in entries.items() if name.startswith(f"{cmd_name}.")]
        command = _loaded(entries[cmd_name])
        return _extended(command, added) if added else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _loaded(entry: EntryPoint) -> click.Command:
    command = entry.load()
    assert isinstance(command, click.Command)
    return command


def _extended(group: click.Command, added: list[EntryPoint]) -> click.Group:
    """A copy: the package's own group stays as that package made it."""
    assert isinstance(group, click.Group)
    extended = copy.copy(group)
    commands = [LazyCommand(entry) for entry in added]
    extended.commands = {**group.commands, **{str(one.name): one for one in commands}}
    return extended


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("feedloom"), prog_name="feedloom")
def cli() -> None:
    """Event-driven text generation on Kafka and vLLM that learns from feedback."""


def main() -> None:
    """Entry point: a Feedloom error becomes one line and exit status 1, not a traceback."""
    try:
        cli(prog_name="feedloom")
    except FeedloomError as error:
        click.echo(f"feedloom: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in PACKAGES:
            raise
        click.echo(
            f"feedloom: this command needs {error.name}, which is not installed here: install "
            f"feedloom[EXTRA], EXTRA being one of {', '.join(EXTRAS)} (or use its image)",
            err=True,
        )
        sys.exit(1)
