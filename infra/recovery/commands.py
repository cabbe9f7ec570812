"""``feedloom backup``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from infra.text import columns

if TYPE_CHECKING:
    from infra.recovery.places import Place
    from infra.recovery.restoring import Plan
    from infra.recovery.snapshot import Backup
    from infra.settings import KafkaSettings, Settings

_endpoint = click.option(
    "--endpoint-url",
    help="Of an S3-compatible store that is not Amazon's; else the artifact store's.",
)


@click.group()
def backup() -> None:
    """Back up and restore what a rebuilt platform starts from.

    That is the registry, rollouts and their decisions, dynamic settings with their history, API
    keys, what is to be forgotten, and the state of files and batches. Model files and files of
    batches are in their stores, which have backups of their own.
    """


@backup.command()
@click.argument("destination", metavar="DEST")
@click.option("--feedback", is_flag=True, help="With what the trainer learns from: people's texts.")
@_endpoint
def create(destination: str, feedback: bool, endpoint_url: str | None) -> None:
    """Back up the platform, which may be running, to DEST.

    DEST is a folder, s3://BUCKET/PATH or gs://BUCKET/PATH in which there is no backup yet. With
    FEEDLOOM_ARTIFACT_STORE__SIGNING_KEY the backup is signed.
    """
    from importlib.metadata import version

    from infra.kafka.bus import KafkaBus, resolve_kafka
    from infra.recovery.archive import check_free, write_backup
    from infra.recovery.references import dangling
    from infra.recovery.taking import take_backup
    from infra.registry.signing import Signer
    from infra.settings import load_settings

    settings = load_settings()
    key = settings.artifacts.signing_key
    signer = None if key is None else Signer(key)
    place = _place(settings, destination, endpoint_url)
    check_free(place)
    kafka = resolve_kafka(settings)
    began = time.monotonic()
    with KafkaBus(kafka) as bus:
        taken = take_backup(
            bus,
            cluster_id=_cluster_id(kafka),
            topic_prefix=kafka.topic_prefix,
            feedloom_version=version("feedloom"),
            now_ms=_now_ms,
            feedback=feedback,
        )
    write_backup(taken, place, signer=signer)
    _print_topics(taken)
    for line in dangling(taken):
        click.echo(f"warning: {line}", err=True)
    signed = "signed" if signer is not None else "not signed"
    click.echo(
        f"{_counted(taken)} in {place.where}, {signed}, read back whole; "
        f"took {time.monotonic() - began:.1f} s"
    )


@backup.command()
@click.argument("source", metavar="SRC")
@click.option("--artifacts", is_flag=True, help="The files of every version, too; reads them all.")
@click.option("--artifacts-at", metavar="OLD=NEW", help="As a restore with it would have them.")
@_endpoint
def verify(
    source: str, artifacts: bool, artifacts_at: str | None, endpoint_url: str | None
) -> None:
    """Check every byte of the backup SRC; exit status 1 if anything is wrong.

    With FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY it must be signed with the key's pair.
    """
    from infra.recovery.artifacts import check_artifacts
    from infra.recovery.references import dangling
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings

    settings = load_settings()
    found, place, signature = _read(settings, source, endpoint_url)
    found = _relocated(found, artifacts_at)
    click.echo(f"{place.where} is whole: {_counted(found)}; {signature}")
    for line in dangling(found):
        click.echo(f"warning: {line}", err=True)
    wrong = 0
    if artifacts:
        for version, complaint in check_artifacts(found, ArtifactStore(settings.artifacts)):
            click.echo(f"{version.model}@{version.version}: {complaint or 'whole'}")
            wrong += complaint is not None
    if wrong:
        raise SystemExit(1)


@backup.command()
@click.argument("source", metavar="SRC")
@_endpoint
def show(source: str, endpoint_url: str | None) -> None:
    """Say what is in the backup SRC, and where the files are that are not."""
    from infra.contracts.moments import utc
    from infra.settings import load_settings

    found, place, signature = _read(load_settings(), source, endpoint_url)
    manifest = found.manifest
    click.echo(f"{place.where}; {signature}")
    click.echo(
        f"of cluster {manifest.cluster_id}, topic prefix {manifest.topic_prefix or '(none)'}, by "
        f"feedloom {manifest.feedloom_version}"
    )
    click.echo(f"taken {utc(manifest.began_at_ms)} to {utc(manifest.ended_at_ms)}")
    _print_topics(found)
    for one in manifest.artifacts:
        click.echo(f"{one.model}@{one.version}  {one.size:,} bytes  {one.uri}")


@backup.command()
@click.argument("source", metavar="SRC")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option(
    "--merge",
    is_flag=True,
    help="Into topics that hold something: add what is missing, change nothing that is there.",
)
@click.option(
    "--artifacts-at",
    metavar="OLD=NEW",
    help="Model files whose URI begins with OLD are below NEW from now on.",
)
@_endpoint
def restore(
    source: str, dry_run: bool, merge: bool, artifacts_at: str | None, endpoint_url: str | None
) -> None:
    """Restore the backup SRC to a new, empty platform, before anything of it is started.

    Topics are made as the catalogue says. Run again after an interruption, it goes on; after it
    has finished, it writes nothing. What is written is read back and compared; exit status 1 if
    anything differs.
    """
    from infra.contracts.moments import utc
    from infra.kafka.bus import KafkaBus, resolve_kafka
    from infra.kafka.topics import apply_catalogue, missing_topics
    from infra.recovery.restoring import compare, execute, plan_restore
    from infra.recovery.writing import KafkaRecordWriter
    from infra.settings import load_settings

    settings = load_settings()
    began = time.monotonic()
    found, place, signature = _read(settings, source, endpoint_url)
    found = _relocated(found, artifacts_at)
    age_min = (_now_ms() - found.manifest.began_at_ms) / 60_000
    click.echo(
        f"{place.where}; {signature}\ntaken {utc(found.manifest.began_at_ms)}, {age_min:.0f} min "
        "ago: what was changed since is not in it"
    )
    kafka = resolve_kafka(settings)
    absent: list[str] = []
    if dry_run:
        absent = missing_topics(kafka)
        click.echo(f"topics: {len(absent)} are not there and would be made")
    else:
        made = apply_catalogue(kafka)
        click.echo(f"topics: {len(made)} made or corrected")
    with KafkaBus(kafka) as bus:
        plan = plan_restore(bus, found, now_ms=_now_ms(), merge=merge, absent=absent)
        _print_plan(plan)
        if dry_run:
            click.echo(f"nothing was written; {plan.to_write:,} records would be")
            return
        writer = KafkaRecordWriter(kafka)
        try:
            execute(plan, writer, say=click.echo)
        finally:
            writer.close()
        differing = compare(bus, found, plan, now_ms=_now_ms(), merge=merge)
    for line in differing:
        click.echo(f"differs: {line}", err=True)
    outcome = f"{len(differing)} differences" if differing else "all of it reads as in the backup"
    click.echo(
        f"{plan.to_write:,} records written, read back: {outcome}; "
        f"took {time.monotonic() - began:.1f} s"
    )
    if differing:
        raise SystemExit(1)


def _place(settings: Settings, url: str, endpoint_url: str | None) -> Place:
    from infra.recovery.places import place

    return place(url, endpoint_url=endpoint_url or settings.artifacts.endpoint_url)


def _read(settings: Settings, source: str, endpoint_url: str | None) -> tuple[Backup, Place, str]:
    """A backup, every byte checked, where it is, and what there is to say of its signature."""
    from infra.recovery.archive import is_signed, read_backup
    from infra.registry.signing import PUBLIC_KEY_SETTING, Verifier

    key = settings.artifacts.public_key
    verifier = None if key is None else Verifier(key)
    place = _place(settings, source, endpoint_url)
    found = read_backup(place, verifier=verifier)
    if verifier is not None:
        return found, place, "signature verified"
    if is_signed(place):
        return found, place, f"signature not verified ({PUBLIC_KEY_SETTING} is not set)"
    return found, place, "not signed"


def _relocated(found: Backup, artifacts_at: str | None) -> Backup:
    from infra.recovery.artifacts import relocated

    if artifacts_at is None:
        return found
    old, equals, new = artifacts_at.partition("=")
    if not (old and equals and new):
        raise click.BadParameter(
            "reads OLD=NEW, two beginnings of URIs, such as s3://old/models=s3://new/models",
            param_hint="--artifacts-at",
        )
    return relocated(found, old, new)


def _cluster_id(kafka: KafkaSettings) -> str:
    from infra.kafka.connection import admin_client, permitted, reachable

    with (
        reachable(kafka),
        admin_client(kafka) as admin,
        permitted(kafka, "describe the cluster"),
    ):
        return str(admin.describe_cluster()["cluster_id"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _counted(found: Backup) -> str:
    records = sum(topic.records for topic in found.manifest.topics)
    return f"{len(found.manifest.topics)} topics, {records:,} records"


def _print_topics(found: Backup) -> None:
    rows: list[Sequence[Any]] = [("TOPIC", "RECORDS")]
    rows += [(topic.name, f"{topic.records:,}") for topic in found.manifest.topics]
    _print_columns(rows)


def _print_plan(plan: Plan) -> None:
    rows: list[Sequence[Any]] = [("TOPIC", "IN BACKUP", "HERE", "TO WRITE")]
    rows += [
        (
            topic.spec.name,
            "fillers" if topic.fillers else f"{topic.saved:,}",
            f"{topic.here:,}",
            f"{topic.to_write:,}",
        )
        for topic in plan.topics
    ]
    _print_columns(rows)
    for note in plan.notes:
        click.echo(f"note: {note}")


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """The first to the left, the others to the right."""
    for line in columns(rows, right=range(1, len(rows[0]))):
        click.echo(line)
