"""The ``feedloom`` command. Finds each package's commands by entry point and imports them lazily.

An entry point in the group ``feedloom.commands`` is named after its command and points at a click
command. ``feedloom --help`` prints the names with the summaries below and imports none of them.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points, version

import click

from infra.contracts.errors import FeedloomError

GROUP = "feedloom.commands"

# Summaries live here, so that --help need not import torch or vllm to learn them.
SUMMARIES = {
    "config": "Show and change dynamic settings.",
    "demo": "Run the whole loop on real Kafka and real vLLM, and print a report.",
    "dlq": "List, show, replay and drop dead letters.",
    "doctor": "Check Java, ports, disk, memory, model and broker.",
    "feedback": "Say what you think of a result; have it forgotten.",
    "generate": "Ask for one completion.",
    "kafka": "Start, stop and inspect the embedded Kafka broker.",
    "models": "Build, publish, list, compare and verify model versions.",
    "pile": "Prepare, inspect and count text for training.",
    "publish": "Publish a file of prompts and collect the results.",
    "topics": "Apply and show the topic catalogue.",
    "trainer": "Train on feedback, or from scratch.",
    "up": "Run broker, worker and trainer in the foreground.",
    "worker": "Run a stream worker.",
}


class LazyGroup(click.Group):
    """A group whose commands are entry points, loaded when they are called."""

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries().get(cmd_name)
        if entry is None:
            return None
        command = entry.load()
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


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
