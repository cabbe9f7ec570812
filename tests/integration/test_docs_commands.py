"""What README.md and docs/ tell a reader to type is typed, on one small platform for all pages.

A real Kafka, a worker whose engine draws words of the prompt, a gateway, four versions, an answer
with feedback, two dead letters. ``tests/docs_table.py`` says which commands run, and how.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.contracts import catalogue
from infra.kafka.bus import KafkaBus
from infra.kafka.dead_letters import open_dead_letters
from infra.settings import KafkaSettings, Settings
from producers.client import GenerationClient
from producers.feedback import FeedbackClient
from tests.conftest import PARTITIONS, new_deployment
from tests.docs import ROOT, Command, blocks, commands, spelled_out
from tests.docs_shell import NAMES, Programs, Shell, compare
from tests.docs_table import PAGES, PYTHON, Elsewhere, Instead, Page, Unlike, entry_of
from tests.integration.conftest import Gateways, Workers, child_environment

pytestmark = pytest.mark.kafka

ASKED, UNWANTED, FORGOTTEN = "asked", "unwanted", "forgotten"
TEXT = {"text": "The csv module reads rows. " * 20, "meta": {"pile_set_name": "Github"}}
DEPLOY = ROOT / ".feedloom" / "deploy"


@dataclass(frozen=True)
class Reader:
    """Somebody at a keyboard. ``facts``: what ``@NAME@`` stands for."""

    facts: Mapping[str, str]
    environment: Mapping[str, str]

    def typed(self, text: str, words: Mapping[str, str]) -> str:
        """A command with the reader's own words in place of the page's."""
        for word, own in words.items():
            edge = r"(?<![\w.])" if word[0].isalnum() else ""
            text = re.sub(f"{edge}{re.escape(word)}(?!\\w)", own.replace("\\", r"\\"), text)
        return re.sub(r"@([a-z_]+)@", lambda fact: self.facts[fact[1]], text)


@pytest.fixture(scope="module")
def reader(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home, kafka = tmp_path_factory.mktemp("docs"), new_deployment(kafka_bootstrap)
    bus = KafkaBus(kafka)
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("FEEDLOOM_TELEMETRY__SPAN_DIRECTORY", str(home / "spans"))
        programs = stack.enter_context(closing(Programs(home)))
        workers = stack.enter_context(closing(Workers(bus, kafka, home)))
        gateways = stack.enter_context(closing(Gateways(kafka, home)))
        worker, gateway = workers.launch(), gateways.launch()
        path = [str(programs.folder), os.environ["PATH"], str(DEPLOY), str(DEPLOY / "go/go/bin")]
        settings = {
            **child_environment(home, kafka),
            "FEEDLOOM_KAFKA__PARTITIONS": str(PARTITIONS),
            "PATH": ":".join(path),
        }
        folders = reader_files(home)
        with closing(Shell(home, settings)) as shell:
            register_versions(shell, folders)
            key, another = (new_key(shell, name) for name in ("reader", "another"))
        workers.wait_ready(worker)
        url = gateways.wait_ready(gateway)
        ask(bus, workers)
        letter, another_letter = dead_letters(kafka, workers)
        facts = {
            "adapter": str(folders["adapter"]),
            "another_letter": another_letter,
            "asked": ASKED,
            "copy": f"{kafka.topic_prefix}copy.",
            "forgotten": FORGOTTEN,
            "gateway": url,
            "home": str(home),
            "kafka": kafka_bootstrap,
            "key": key,
            "key_id": another.rpartition("_")[0],
            "letter": letter,
            "prefix": kafka.topic_prefix,
            "prompts": str(folders["prompts"]),
            "text": str(folders["text"]),
            "unwanted": UNWANTED,
        }
        yield Reader(facts=facts, environment={**settings, "KEY": key})


def reader_files(home: Path) -> dict[str, Path]:
    made = {name: home / name for name in ("full", "adapter", "prompts", "text")}
    for name, config in (("full", "config.json"), ("adapter", "adapter_config.json")):
        made[name].mkdir()
        (made[name] / config).write_text("{}")
    made["prompts"].write_text('{"prompt": "One"}\n{"prompt": "Two", "batch": true}\n')
    made["text"].mkdir()
    (made["text"] / "some.jsonl").write_text(f"{json.dumps(TEXT)}\n" * 3)
    return made


def register_versions(shell: Shell, folders: Mapping[str, Path]) -> None:
    """2 and 3 of full weights, and 4, an adapter of 3."""
    for version in ("2", "3"):
        (folders["full"] / "weights").write_text(version)
        assert shell.run(f"feedloom models register {folders['full']}")[0] == 0
    status, printed = shell.run(f"feedloom models register {folders['adapter']} --base 3")
    assert status == 0, printed


def new_key(shell: Shell, name: str) -> str:
    roles = "--role caller --role feedback --role operator"
    status, printed = shell.run(f"feedloom keys create --tenant docs --name {name} {roles}")
    assert status == 0, printed
    return next(line for line in printed if re.fullmatch(r"fl_\w+_\w+", line))


def ask(bus: KafkaBus, workers: Workers) -> None:
    """Answers with feedback that is joined."""
    names = (ASKED, UNWANTED, FORGOTTEN)
    with GenerationClient(bus, source="docs") as client:
        handles = [client.submit(f"The {name} module", request_id=name) for name in names]
        assert all(handle.result(60).error is None for handle in handles)
    with FeedbackClient(bus, source="docs") as feedback:
        for name in names:
            feedback.edit(name, "is there")
    examples = catalogue.EXAMPLES.name
    workers.wait("the join", lambda: len({r.key for r in workers.records(examples)}) == len(names))


def dead_letters(kafka: KafkaSettings, workers: Workers) -> list[str]:
    topic = catalogue.REQUESTS
    with closing(workers.bus.publisher()) as publisher:
        for value in (b"no event", b"none either"):
            publisher.publish(topic.name, key=b"k", value=value)
    letters = catalogue.dead_letter_topic(topic).name
    workers.wait("the dead letters", lambda: len(workers.records(letters)) == 2)
    with open_dead_letters(Settings(kafka=kafka)) as found:
        return [str(letter.id) for letter in found.letters([topic.name])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, reader: Reader, folder: Path) -> None:
    treated = PAGES[page]
    for block in blocks(page):
        if block.language == "go":
            prefixed = re.sub(
                r'"(?=(generation|feedback)\.)', f'"{reader.facts["prefix"]}', block.text
            )
            (folder / "main.go").write_text(prefixed)
    names: dict[str, str] = {}
    with closing(
        Shell(ROOT / treated.folder if treated.folder else folder, reader.environment)
    ) as shell:
        for command in commands(page):
            run(command, treated, reader, shell, names)


def run(
    command: Command, treated: Page, reader: Reader, shell: Shell, names: dict[str, str]
) -> None:
    """``names``: what the page calls something, and what it is called here; added to."""
    entry = entry_of(command)[1]
    if isinstance(entry, Elsewhere):
        return
    refused = any(line.startswith(("feedloom: ", "Error: ")) for line in command.output)
    instead = entry.commands if isinstance(entry, Instead) else spelled_out(command.text)
    for text in instead:
        typed = reader.typed(text, {**treated.words, **names})
        status, printed = shell.run(typed)
        said = f"{command.place}: {typed}\nended with {status} and printed\n" + "\n".join(printed)
        assert (status != 0) == refused, said
        if isinstance(entry, Unlike):
            shown = NAMES.findall("\n".join(command.output))
            names.update(zip(shown, NAMES.findall("\n".join(printed)), strict=False))
        elif not isinstance(entry, Instead):
            missing = compare(command.output, printed, names)
            assert missing is None, f"{said}\n\nwhere the page shows\n{missing}"


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page: str, reader: Reader, folder: Path) -> None:
    words = {"http://127.0.0.1:8000": "@gateway@", "fl_...": "@key@"}
    for block in blocks(page):
        if block.language == "json" and block.text.startswith('{"custom_id"'):
            (folder / "asks.jsonl").write_text(block.text)
    with closing(Shell(folder, reader.environment)) as shell:
        for block in (block for block in blocks(page) if block.language == "python"):
            code = 'import os\nKEY = os.environ["KEY"]\n' + reader.typed(block.text, words)
            (folder / "typed.py").write_text(code)
            status, printed = shell.run("python typed.py")
            assert status == 0, f"{block.place}:\n" + "\n".join(printed)
            assert printed or page == "docs/batches.md"


def test_go_is_there_to_build_the_client_with() -> None:
    assert shutil.which("go") or (DEPLOY / "go/go/bin/go").is_file(), "`make deploytools`"
