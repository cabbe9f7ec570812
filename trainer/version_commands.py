"""``feedloom models list|show|diff|lineage|verify|evaluate``: what is known of a version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.contracts.events.model import GateCheck, ModelVersionPublished
    from infra.registry.state import RegistryState


def registry_state() -> RegistryState:
    """The registry as it stands now. Raises FatalError when the topics cannot be read."""
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        return read_registry(bus)


def surveyed() -> tuple[RegistryState, Mapping[tuple[str, str], list[str]]]:
    """The registry, and by model and version what is to be forgotten and was learnt from.

    By the version itself or by its parents; only versions with any. Reads the versions' files, if
    anything at all is to be forgotten.
    """
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.registry.lineage import Lineages, forgotten
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings

    settings = load_settings()
    with connect(settings) as bus:
        state, wanted = read_registry(bus), forgotten(bus)
    if not wanted:
        return state, {}
    lineages = Lineages(ArtifactStore(settings.artifacts), state)
    return state, {
        (version.model, version.version): sorted(wanted.keys() & lineages.all_requests(version))
        for version, _ in lineages.learners(wanted)
    }


def find(state: RegistryState, reference: str) -> ModelVersionPublished:
    """``MODEL@VERSION``, or a version of the default model.

    Raises ConfigurationError that says which versions there are.
    """
    from infra.contracts.errors import ConfigurationError
    from infra.registry.state import named

    model, version = named(reference)
    found = state.version(model, version)
    if found is None:
        known = [
            f"{one.model}@{one.version}" for name in state.models() for one in state.versions(name)
        ]
        raise ConfigurationError(
            f"there is no version {model}@{version}; there are: " + (", ".join(known) or "none")
        )
    return found


def standing(state: RegistryState, version: ModelVersionPublished) -> str:
    """Where a version stands, in words."""
    from infra.registry.transitions import stage_of

    return stage_of(state, version).replace("_", " ")


@click.command(name="list")
def list_versions() -> None:
    """List every version: where it stands, its parent, how it scored.

    A version that learnt from feedback that is to be forgotten is flagged.
    """
    state, flagged = surveyed()
    for model in state.models():
        for version in state.versions(model):
            where = standing(state, version)
            mark = "*" if where == "stable" else " "
            loss = version.metrics.get("heldout_loss_after")
            scored = f"held-out loss {loss:.3f}" if loss is not None else ""
            parent = version.lineage.parent or "-"
            forgotten = flagged.get((model, version.version), ())
            flag = f"  learnt from {len(forgotten)} to be forgotten" if forgotten else ""
            click.echo(
                f"{mark} {f'{model}@{version.version}':16} {where:11} parent {parent:4} "
                f"{version.lineage.objective:12} {scored}{flag}".rstrip()
            )
    if not state.models():
        click.echo("no version yet: `feedloom models bootstrap`", err=True)


@click.command()
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="The event, as JSON.")
def show(version: str, as_json: bool) -> None:
    """Show one VERSION (MODEL@VERSION): lineage, measures, the gate's reasons, files."""
    import msgspec

    state, forgotten = surveyed()
    found = find(state, version)
    flagged = forgotten.get((found.model, found.version), [])
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    lineage = found.lineage
    rows = [
        ("version", f"{found.model}@{found.version}, {standing(state, found)}"),
        ("created", _time(found.created_at_ms)),
        ("parent", lineage.parent or "-"),
        ("objective", _objective(found)),
        ("feedback", f"{lineage.feedback_examples} examples"),
        *(
            ("", f"{span.topic}/{span.partition} from {span.start} to {span.end}")
            for span in lineage.feedback
        ),
        ("replay", f"{lineage.replay_fraction:.0%} of the tokens"),
        *(
            ("", f"{name} {digest[:12]}".rstrip())
            for name, digest in zip(
                lineage.replay_shards,
                lineage.replay_sha256 or ("",) * len(lineage.replay_shards),
                strict=True,
            )
        ),
        *(("" if i else "to forget", request_id) for i, request_id in enumerate(flagged)),
        ("seed", str(lineage.seed)),
        ("code", lineage.code_version or "-"),
        ("artifact", found.artifact_uri),
        *(("", f"{file.path} {file.size:,} {file.sha256[:12]}") for file in found.manifest),
        *(("gate" if not i else "", _check(check)) for i, check in enumerate(_checks(found))),
        *(
            ("measures" if not i else "", f"{name:36} {value:.5g}")
            for i, (name, value) in enumerate(sorted(found.metrics.items()))
        ),
    ]
    for label, text in rows:
        click.echo(f"{label:10} {text}")


@click.command()
@click.argument("version")
def lineage(version: str) -> None:
    """List VERSION's ancestors and every request whose feedback is in it, a line each."""
    from infra.registry.lineage import ancestors, learnt_from
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings

    state, forgotten = surveyed()
    found = find(state, version)
    store = ArtifactStore(load_settings().artifacts)
    flagged = set(forgotten.get((found.model, found.version), ()))
    for one in (found, *ancestors(state, found)):
        requests = sorted(learnt_from(store, one))
        click.echo(f"{one.model}@{one.version}: {one.lineage.objective}, {len(requests)} requests")
        for request_id in requests:
            click.echo(f"  {request_id}{'  to be forgotten' if request_id in flagged else ''}")


@click.command()
@click.argument("one")
@click.argument("other")
def diff(one: str, other: str) -> None:
    """Compare ONE version with an OTHER: lineage, measures, files."""
    state = registry_state()
    first, second = find(state, one), find(state, other)
    names = [f"{version.model}@{version.version}" for version in (first, second)]
    click.echo(f"{'':36} {names[0]:>16} {names[1]:>16}")
    for label, values in (
        ("parent", [version.lineage.parent or "-" for version in (first, second)]),
        ("objective", [version.lineage.objective for version in (first, second)]),
        ("feedback examples", [str(v.lineage.feedback_examples) for v in (first, second)]),
        ("steps", [str(version.lineage.steps) for version in (first, second)]),
        ("stands as", [standing(state, version) for version in (first, second)]),
    ):
        click.echo(f"{label:36} {values[0]:>16} {values[1]:>16}")
    for name in sorted({*first.metrics, *second.metrics}):
        before, after = first.metrics.get(name), second.metrics.get(name)
        change = f"{after - before:+.4g}" if before is not None and after is not None else ""
        click.echo(f"{name:36} {_number(before):>16} {_number(after):>16} {change}".rstrip())
    files = [{file.path: file for file in version.manifest} for version in (first, second)]
    for path in sorted({*files[0], *files[1]}):
        mine, theirs = files[0].get(path), files[1].get(path)
        if mine != theirs:
            kind = "changed" if mine and theirs else "removed" if mine else "added"
            click.echo(f"{kind:8} {path}")


@click.command()
@click.argument("versions", nargs=-1)
def verify(versions: tuple[str, ...]) -> None:
    """Check every file of VERSIONS, by default of all, against what was published.

    Exit status 1 if one is missing, changed, of a kind that can run code or cannot be read, or if a
    public key is configured and a version is not signed with its pair.
    """
    from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings

    state = registry_state()
    store = ArtifactStore(load_settings().artifacts)
    chosen = [find(state, reference) for reference in versions] or [
        version for model in state.models() for version in state.versions(model)
    ]
    bad = 0
    for version in chosen:
        name = f"{version.model}@{version.version}"
        try:
            folder = store.resolve(version)
        except (ArtifactRejected, ArtifactStoreFailed) as error:
            bad += 1
            click.echo(f"{name}: {error}")
        else:
            size = sum(file.size for file in version.manifest)
            click.echo(
                f"{name}: {len(version.manifest)} files, {size:,} bytes, as published; "
                + store.signature_of(folder)
            )
    if bad:
        raise SystemExit(1)


def _checks(version: ModelVersionPublished) -> tuple[GateCheck, ...]:
    return version.gate.checks if version.gate is not None else ()


def _check(check: GateCheck) -> str:
    return f"{'passed' if check.passed else 'FAILED'}  {check.reason}"


def _objective(version: ModelVersionPublished) -> str:
    lineage = version.lineage
    rank = f", LoRA of rank {lineage.adapter_rank}, merged" if lineage.adapter_rank else ""
    return f"{lineage.objective}, {lineage.steps} steps{rank}"


def _time(epoch_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).isoformat(timespec="seconds")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


@click.command()
@click.argument("version")
@click.option("--task", "tasks", multiple=True, required=True, help="A task, a group or a pattern.")
@click.option(
    "--tasks-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="YAML files of tasks of one's own; a hub task fetches its data.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Documents a task.")
@click.option("--fewshot", type=click.IntRange(min=0), help="Examples before each question.")
def evaluate(
    version: str,
    tasks: tuple[str, ...],
    tasks_dir: Path | None,
    limit: int | None,
    fewshot: int | None,
) -> None:
    """Ask VERSION, or the model in a folder of that name, tasks of lm-eval.

    Needs the extra `lm-eval`.
    """
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings
    from trainer.harness import evaluate_tasks
    from trainer.whole import whole

    folder = Path(version)
    if not (folder / "config.json").is_file():
        settings, state = load_settings(), registry_state()
        folder = whole(
            find(state, version),
            state=state,
            store=ArtifactStore(settings.artifacts),
            cache=settings.home / "merged",
        )
    scores = evaluate_tasks(folder, tasks, directory=tasks_dir, limit=limit, fewshot=fewshot)
    for score in scores:
        error = "" if score.error is None else f" ± {score.error:.4f}"
        click.echo(
            f"{score.task:28} {score.metric:24} {score.value:.4f}{error} ({score.samples} samples)"
        )
