"""LoRA adapters beside an engine's weights: do they fit, which are loaded, which are in use."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from safetensors import SafetensorError, safe_open

from stream_workers.engine import Displaced, SwitchFailed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_UNSUPPORTED = {"use_dora": False, "modules_to_save": None, "bias": "none"}
H = TypeVar("H")


class Adapters(Generic[H]):
    """An engine's loaded adapters: its handle of each by version, and the requests that use it."""

    def __init__(self) -> None:
        self._handles: dict[str, H] = {}
        self._users: dict[str, Counter[str]] = {}
        self._displaced: set[str] = set()
        self._unused: dict[str, asyncio.Event] = {}

    def __contains__(self, version: str) -> bool:
        return version in self._handles

    def versions(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        return tuple(self._handles)

    def add(self, version: str, handle: H) -> None:
        """It may be used from now on."""
        self._handles[version] = handle

    @contextmanager
    def using(self, version: str, request_id: str) -> Iterator[H | None]:
        """The version's handle, kept until the block ends; ``None`` when it is no adapter."""
        handle = self._handles.get(version)
        if handle is None:
            yield None
            return
        users = self._users.setdefault(version, Counter())
        users[request_id] += 1
        try:
            yield handle
        finally:
            # A beam search holds it as a whole and for each step.
            users[request_id] -= 1
            if not users[request_id]:
                del users[request_id]
            if not users and version in self._unused:
                self._unused[version].set()

    def displace(self, version: str) -> tuple[str, ...]:
        """From now on ``check`` raises for this version; the requests that use it."""
        self._displaced.add(version)
        return tuple(self._users.get(version, ()))

    def check(self, version: str) -> None:
        """Raises Displaced if the version's requests are to go on elsewhere."""
        if version in self._displaced:
            raise Displaced(f"{version} was unloaded")

    async def remove(self, version: str) -> H | None:
        """Forget an adapter when its last request has ended; its handle, if it was loaded."""
        while self._users.get(version):
            unused = self._unused[version] = asyncio.Event()
            await unused.wait()
        for kept in (self._unused, self._users):
            kept.pop(version, None)
        self._displaced.discard(version)
        return self._handles.pop(version, None)


def check_fit(adapter: Path, base: Path, *, max_rank: int) -> int:
    """The rank of a PEFT adapter that fits the weights in ``base``.

    Every adapted module must be one of the base's, of its shape. Raises SwitchFailed with the
    first thing that does not fit; no weights are read, only names and shapes.
    """
    try:
        config = json.loads((adapter / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise SwitchFailed(f"{CONFIG} of the adapter cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SwitchFailed(f"{CONFIG} does not describe a LoRA adapter")
    for name, wanted in _UNSUPPORTED.items():
        if (config.get(name) or wanted) != wanted:
            raise SwitchFailed(f"adapters with {name}={config[name]!r} cannot be served")
    shapes, of_base = _shapes([adapter / WEIGHTS]), _shapes(sorted(base.glob("*.safetensors")))
    rank = 0
    for name, shape in shapes.items():
        module = name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B)
        target = of_base.get(f"{module}.weight")
        if not name.endswith((_A, _B)) or target is None:
            raise SwitchFailed(f"the adapter has {name}, and the base has no module {module}")
        inner, outer = (shape[0], shape[1]) if name.endswith(_A) else (shape[1], shape[0])
        if outer != target[1 if name.endswith(_A) else 0]:
            raise SwitchFailed(f"{name} is {shape}, and the base's {module} is {target}")
        rank = max(rank, inner)
    if not shapes:
        raise SwitchFailed("the adapter has no weights")
    if rank > max_rank:
        raise SwitchFailed(
            f"the adapter's rank is {rank}; this worker takes {max_rank} at most "
            "(FEEDLOOM_WORKER__MAX_ADAPTER_RANK)"
        )
    return rank


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    found[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise SwitchFailed(f"{file.name} cannot be read: {error}") from error
    return found
