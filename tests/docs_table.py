"""What is made of each command that README.md and docs/ show.

A page in ``PAGES`` has its commands run on a small platform (``tests/integration/
test_docs_commands.py``), in the order in which pages and commands stand, unless an entry says
otherwise. A command of any other page needs an entry. Whatever becomes of it, its words are read by
click, make and the file system (``tests/unit/test_docs_commands.py``).

An entry is chosen by how the command begins; of several the longest. One that begins with ``$ ``
is of commands whose output is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.docs import Command


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """It does not run here, for this reason; ``test`` runs the same or more, if there is one."""

    why: str
    test: str | None = None


@dataclass(frozen=True)
class Instead:
    """These run, as what is shown cannot as it stands. ``@NAME@`` is a fact of the platform."""

    commands: Sequence[str]


@dataclass(frozen=True)
class Unlike:
    """It runs as it stands; what it prints is not what the page shows, for this reason."""

    why: str


Entry = Elsewhere | Instead | Unlike


@dataclass(frozen=True, kw_only=True)
class Page:
    """``words``: what stands in a command for something of the reader's. ``folder``: where."""

    words: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)
    folder: str = ""


LOOP = "tests/e2e/test_loop.py::test_feedback_makes_a_version_that_the_worker_switches_to"
CLUSTER = "tests/integration/test_kafka_cluster.py"
SECURED = "tests/integration/test_kafka_security.py"
RECOVERY = "tests/integration/test_recovery_kafka.py"

PLATFORM = Elsewhere(why="starts the platform, on vLLM, for as long as it runs", test=LOOP)
ROUND = Elsewhere(why="trains", test=LOOP)
PRETRAINING = Elsewhere(
    why="trains from scratch",
    test="tests/unit/test_trainer_pretraining.py"
    "::test_every_family_trains_and_is_scored_through_the_same_command",
)
PREPARING = Elsewhere(
    why="prepares text for a minute",
    test="tests/unit/test_trainer_pile.py"
    "::test_two_processes_give_what_one_gives_and_the_commands_show_it",
)
REPLAYED = Elsewhere(
    why="a day's requests, on vLLM",
    test="tests/unit/test_worker_replay.py::test_the_command_compares_and_publishes_nothing",
)
DECIDED = Elsewhere(
    why="a story of a hundred users and their thumbs, on vLLM",
    test="tests/integration/test_rollout_loop.py::test_people_decide_which_version_stays",
)
BACKUP = Elsewhere(
    why="needs an S3 store, a signing key and a broker that may die",
    test=f"{RECOVERY}::test_a_platform_outlives_its_broker",
)

COMMON: Mapping[str, Entry] = {
    "docker ": Elsewhere(why="needs a Docker engine"),
    "kubectl ": Elsewhere(why="needs a cluster"),
    "kafka-configs.sh ": Elsewhere(why="is Kafka's own, and not among the jars"),
    "helm install ": Elsewhere(why="needs a cluster"),
    "make ": Elsewhere(why="the suite itself is one of them; that the target is there is checked"),
    "make demo": Elsewhere(
        why="takes minutes",
        test="tests/e2e/test_loop.py::test_the_demo_reports_every_key_on_a_small_setting",
    ),
    "feedloom up": PLATFORM,
    "feedloom gateway": Elsewhere(
        why="runs until it is stopped: the platform here has one",
        test="tests/integration/test_gateway_kafka.py::test_answers_come_over_http_and_a_stream_outlives_its_gateway",
    ),
    "feedloom trainer ": ROUND,
    "feedloom kafka ": Elsewhere(
        why="starts and stops brokers",
        test=f"{CLUSTER}::test_everything_is_restarted_in_turn_under_load_and_no_request_fails",
    ),
}
"""For every page, after its own."""

PAGES: Mapping[str, Page] = {
    "docs/quickstart.md": Page(
        words={"http://127.0.0.1:8000": "@gateway@", "127.0.0.1:52489": "@kafka@"},
        entries={
            "feedloom generate": Unlike("another text, without vLLM"),
            # A round would take two minutes; what follows needs that version 2 serves.
            "feedloom trainer once": Instead(["feedloom models promote 2"]),
            "feedloom models list": Unlike("other versions are there"),
            "feedloom feedback lineage": Unlike("no round has learnt from it"),
            "curl ": Unlike("another text, without vLLM"),
            "./example ": Unlike("another text, without vLLM"),
        },
    ),
    "README.md": Page(
        words={"REQUEST_ID": "@asked@", "PROMPT": "The csv module", "prompts.jsonl": "@prompts@"},
        entries={
            "feedloom doctor": Instead(
                # It asks for memory and disk that a busy machine may not have.
                ["feedloom doctor | grep -e broker -e topics"]
            ),
            "feedloom feedback forget": Instead(["feedloom feedback forget @unwanted@"]),
            # What a synopsis names beside these runs on the pages about it.
            "feedloom models list|": Instead(["feedloom models list"]),
            "feedloom models status|": Instead(
                ["feedloom models promote 3", "feedloom models rollback"]
            ),
            "feedloom models replay": Instead(
                ["feedloom models replay --version 2 --engine memory"]
            ),
            "feedloom models canary 2": Instead(
                ["feedloom models canary 3 --weight 5", "feedloom models rollback"]
            ),
            "feedloom dlq list|": Instead(
                [
                    "feedloom dlq list",
                    "feedloom dlq show @letter@",
                    "feedloom dlq replay @letter@ --yes",
                    "feedloom dlq drop @another_letter@ --yes",
                ]
            ),
            "feedloom config list|": Instead(["feedloom config list"]),
            "feedloom rollouts show|": Instead(["feedloom rollouts show"]),
            "feedloom backup create|": Instead(
                [
                    "feedloom backup create @home@/backup",
                    "feedloom backup verify @home@/backup",
                    "FEEDLOOM_KAFKA__TOPIC_PREFIX=@copy@ "
                    "feedloom backup restore @home@/backup --dry-run",
                ]
            ),
            "feedloom plan": Instead(
                [
                    "feedloom plan --rps 100 --gpu h200 --prompt-tokens 512 --output-tokens 256"
                    " --model llama-3.1-8b"
                ]
            ),
            "feedloom top": Instead(["feedloom top --once"]),
        },
    ),
    "docs/authentication.md": Page(words={"KEY_ID": "@key_id@"}),
    "docs/configuration.md": Page(
        words={"KEY": "worker.chunk_max_tokens", "VALUE": "32", "REVISION": "1", "N": "5"}
    ),
    "docs/gateway.md": Page(),
    "docs/console.md": Page(),
    "docs/deployment.md": Page(
        words={"http://127.0.0.1:8000": "@gateway@", "$(cat key.txt)": "@key@"},
        entries={
            "sh infra/deploy/compose/make-secrets.sh": Elsewhere(
                why="writes keys into the checkout",
                test="tests/unit/test_compose.py::test_the_keys_that_are_made_sign_and_verify",
            )
        },
    ),
    "docs/kafka-security.md": Page(
        entries={
            "feedloom topics acls --apply": Elsewhere(
                why="needs a broker with ACLs",
                test=f"{SECURED}::test_the_command_line_applies_what_it_prints",
            ),
            "feedloom kafka start --secured": Elsewhere(
                why="starts a broker",
                test=f"{SECURED}::test_passwords_are_in_files_of_their_owner_and_in_no_log",
            ),
            "FEEDLOOM_KAFKA__LOCAL_USER=worker": Elsewhere(
                why="runs until it is stopped",
                test=f"{SECURED}::test_a_real_worker_answers_with_no_more_than_its_rights",
            ),
            "FEEDLOOM_KAFKA__LOCAL_USER=": Elsewhere(
                why="needs a broker with ACLs",
                test=f"{SECURED}::test_a_component_reads_its_topics_and_no_others",
            ),
        }
    ),
    "docs/kubernetes.md": Page(folder="infra/deploy/helm"),
    "docs/operations/README.md": Page(
        entries={
            "python -m observability.dashboards": Elsewhere(
                why="writes into the checkout",
                test="tests/unit/test_dashboards.py::test_the_files_are_what_the_code_says",
            ),
            "python -m observability.alerts": Elsewhere(
                why="writes into the checkout",
                test="tests/unit/test_alerts.py::test_the_files_are_what_the_code_says",
            ),
        }
    ),
    "docs/replay.md": Page(
        entries={
            "feedloom models replay --version 2": Instead(
                ["feedloom models replay --version 2 --engine memory"]
            ),
            "feedloom models replay --version default@3 --since 7d": Instead(
                [
                    "feedloom models replay --version default@3 --since 7d --batch --limit 500"
                    " --engine memory"
                ]
            ),
            "feedloom models replay --version 3 --against stable": Instead(
                ["feedloom models replay --version 3 --against stable --engine memory"]
            ),
            "feedloom models replay --version 2 --since 1h": REPLAYED,
            "feedloom models replay --version default@3 --since 2h": REPLAYED,
        },
    ),
    "docs/rollouts.md": Page(
        entries={
            "feedloom models replay --version 4": Instead(
                ["feedloom models replay --version 4 --since 24h --engine memory"]
            ),
            "feedloom models register DIRECTORY": Instead(
                ["feedloom models register @adapter@ --base 1"]
            ),
            "feedloom models register ./worse": DECIDED,
            "feedloom models shadow 2 --share 50": DECIDED,
            "feedloom models canary 2 --weight 30": DECIDED,
            "$ feedloom models status": DECIDED,
            "$ feedloom rollouts ": DECIDED,
        },
    ),
    "docs/scaling.md": Page(
        entries={
            "feedloom plan ": Elsewhere(
                why="all that it prints is compared elsewhere",
                test="tests/unit/test_planning_plan.py"
                "::test_outputs_in_the_document_are_those_of_the_command",
            )
        }
    ),
    "docs/tracing.md": Page(
        entries={
            "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:1": Elsewhere(
                why="waits a quarter of a minute for a broker",
                test="tests/integration/test_kafka_lag.py::test_no_broker_is_said_so",
            ),
            "feedloom trace 8ba69671": Unlike("spans are in one folder here"),
        }
    ),
    "docs/training-data.md": Page(
        words={"SOURCES...": "@text@"},
        entries={"feedloom pile prepare": PREPARING, "feedloom pile tokenize": PREPARING},
    ),
    "docs/training.md": Page(
        words={"REQUEST_ID ...": "@forgotten@", "REQUEST_ID": "@asked@"},
        entries={
            "feedloom pile prepare": PREPARING,
            "feedloom trainer pretrain": PRETRAINING,
            "torchrun ": Elsewhere(
                why="trains in two processes",
                test="tests/integration/test_trainer_distributed.py"
                "::test_losses_in_two_processes_are_those_in_one",
            ),
            "feedloom models evaluate": Elsewhere(
                why="fetches a task from a hub",
                test="tests/unit/test_trainer_harness.py::test_the_command_prints_a_line_a_measure",
            ),
            "model_signing verify": Elsewhere(
                why="needs a signed version",
                test="tests/unit/test_registry_signing.py"
                "::test_models_verify_reports_the_signature",
            ),
        },
    ),
    "docs/disaster-recovery.md": Page(
        entries={
            "feedloom backup ": BACKUP,
            ".venv/bin/python -m pytest": Elsewhere(
                why="is part of the suite", test=f"{RECOVERY}::test_a_platform_outlives_its_broker"
            ),
        }
    ),
    "docs/upgrades.md": Page(),
}


PYTHON = ("README.md", "docs/index.md", "docs/gateway.md", "docs/batches.md")
"""Pages whose Python runs."""


def entry_of(command: Command) -> tuple[str, Entry | None]:
    """How a command begins, and what the table says of it; of a command that just runs, nothing."""
    for entries in (PAGES.get(command.page, Page()).entries, COMMON):
        shown = f"$ {command.text}" if command.output else command.text
        begins = [one for one in entries if shown.startswith(one) or command.text.startswith(one)]
        if begins:
            longest = max(begins, key=len)
            return longest, entries[longest]
    return "", None
