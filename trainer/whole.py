"""A version as one folder of whole weights, whether it was published so or as an adapter."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from infra.contracts.errors import FatalError
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.manifest import digest_of
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from trainer.model import load_model, save_model
from trainer.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


def whole(
    version: ModelVersionPublished, *, state: RegistryState, store: ArtifactStore, cache: Path
) -> Path:
    """The folder of a version's weights and tokenizer; an adapter is merged into its base once.

    Merged ones are kept in ``cache``, and given out only while adapter and base are still what may
    be loaded: a key may have been set since. Raises as ``ArtifactStore.resolve`` does, and
    FatalError when an adapter's base is not in the registry.
    """
    folder = Path(store.resolve(version))
    if version.kind == "full":
        return folder
    base = state.version(version.model, version.base or "")
    if base is None or base.kind != "full":
        raise FatalError(
            f"{version.model}@{version.version} is an adapter of {version.base}, which is no full "
            "version in the registry"
        )
    below = Path(store.resolve(base))
    target = cache / f"{version.model}-{version.version}-{digest_of(version.manifest)[:16]}"
    if not target.is_dir():
        _merge(below, folder, target)
        log.info("merged %s@%s into %s", version.model, version.version, base.version)
    return target


def _merge(base: Path, adapter: Path, target: Path) -> None:
    from peft import PeftModel

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".merging-", dir=target.parent))
    try:
        model = PeftModel.from_pretrained(load_model(base), str(adapter)).merge_and_unload()
        save_model(model, load_tokenizer(base), staging)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
