"""Faults in a row, from a seed, on three brokers, two workers, a gateway and a trainer.

    python -m tests.proof.chaos --rounds 100 --seed 1
    python -m tests.proof.chaos --seed 1 --only 37      # that round again

In each round mixed traffic runs, one fault comes and goes, what died is started again as an
orchestrator would, and once traffic has ended every rule of ``rules`` must hold. Needs root (for
network namespaces and small file systems), ``ip`` and a C compiler.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil

from infra.kafka.broker import BrokerStatus, EmbeddedKafka, Progress
from infra.kafka.broker_node import Layout
from infra.local.supervisor import Child, feedloom_command
from tests.proof.deployment import MODEL, READY_S, Deployment, Plan
from tests.proof.faults import BROKERS, SERVICES, Fault, drawn
from tests.proof.rules import registry_is_one
from tests.proof.skew import Skew, build
from tests.proof.switchboard import Switchboard

GATEWAY_PORT = 8_900
"""In the gateway's own network, where nothing else is."""
BROKER_DISK, TRAINER_DISK = "512m", "96m"
STUCK_S = 120.0


class SmallDisk:
    """A file system of its own, which can be filled."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        self._folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """To the last byte."""
        with suppress(OSError), self._ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self._folder], check=True)


class NetworkedKafka(EmbeddedKafka):
    """Each broker in a network of its own, where everybody finds it at its usual address."""

    def __init__(self, home: Path, networks: Switchboard, *, brokers: int) -> None:
        super().__init__(home, brokers=brokers)
        self._networks = networks
        self._open: dict[int, tuple[int, int]] = {}

    def start(
        self,
        progress: Progress | None = None,
        *,
        attached: bool = False,
        jar_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> BrokerStatus:
        """As ever; first the addresses of those that have ended are free for them."""
        status = self.status()
        running = {node.number for node in status.nodes} if status else set()
        for number in self._open.keys() - running:
            for port in self._open.pop(number):
                self._networks.withdraw(port)
        return super().start(progress, attached=attached, jar_progress=jar_progress)

    def extra_properties(self, layout: Layout, number: int) -> str:
        """None; but what is configured here is about to start."""
        name = BROKERS[number - 1]
        own = layout.ports[number - 1], layout.controller_ports[number - 1]
        self._open[number] = own
        if name not in self._networks:
            others = {*layout.ports, *layout.controller_ports} - {*own}
            self._networks.add(name, sorted(others))
            self.node(number).prefix = tuple(self._networks.inside(name, ()))
        for port in own:
            self._networks.publish(name, port, at=port)
        return super().extra_properties(layout, number)


class Arena(Deployment):
    """A deployment whose processes can be hit."""

    def __init__(self, home: Path, plan: Plan, say: Callable[[str], None]) -> None:
        super().__init__(home, plan, say)
        self._stack = ExitStack()
        self.skews: dict[str, Skew] = {}
        self.disks: dict[str, SmallDisk] = {}
        self.revived: Counter[str] = Counter()
        self._api_key: str | None = None

    def _start(self) -> None:
        library = build(self.home)
        self.networks = self._stack.enter_context(Switchboard(f"fl{self.home.name[-6:]}"))
        self.kafka = NetworkedKafka(self.home, self.networks, brokers=self.plan.brokers)
        for name in SERVICES + BROKERS:
            self.skews[name] = Skew(library, self.home / f"{name}.skew")
        self._mount("trainer", self.home / "artifacts", TRAINER_DISK)
        for number, name in enumerate(BROKERS, 1):
            self._mount(name, self.home / "kafka" / name / "data", BROKER_DISK)
            self.kafka.node(number).environment = self.skews[name].environment
        super()._start()

    def _mount(self, name: str, folder: Path, size: str) -> None:
        self.disks[name] = SmallDisk(folder, size)
        self._stack.callback(self.disks[name].close)

    def close(self) -> None:
        super().close()
        self._stack.close()

    def start(self, name: str, words: Sequence[str], **environment: str) -> Child:
        if name not in self.networks:
            ports = [int(server.rpartition(":")[2]) for server in self.servers.split(",")]
            self.networks.add(name, ports)
        return super().start(name, words, **environment, **self.skews[name].environment)

    def command(self, name: str, words: Sequence[str]) -> Sequence[str]:
        return self.networks.inside(name, feedloom_command(words))

    def start_gateway(self) -> None:
        self.start("gateway", ["gateway", "--port", str(GATEWAY_PORT)])
        if self.url is None:
            self.url = f"http://127.0.0.1:{self.networks.publish('gateway', GATEWAY_PORT)}"
        self.wait("the gateway to be ready", self._gateway_is_ready, READY_S, child="gateway")

    def _gateway_is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        return False

    def key(self) -> str:
        if self._api_key is None:
            self._api_key = super().key()
        return self._api_key

    def process(self, name: str) -> psutil.Process:
        """The program itself: its child, or the broker."""
        if name not in BROKERS:
            return psutil.Process(self.children[name].pid)
        status = self.kafka.status()
        assert status is not None
        number = BROKERS.index(name) + 1
        (pid,) = [node.pid for node in status.nodes if node.number == number]
        return psutil.Process(pid)

    def hit(self, fault: Fault) -> None:
        """Begin."""
        name, skew = fault.target, self.skews[fault.target]
        match fault.kind:
            case "kill":
                self.process(name).send_signal(signal.SIGKILL)
            case "pause":
                self.process(name).send_signal(signal.SIGSTOP)
            case "stop":
                self.process(name).send_signal(signal.SIGTERM)
            case "disk full":
                self.disks[name].fill()
            case "slow disk":
                skew.set(disk_s=fault.size)
            case "clock forward":
                skew.set(clock_s=fault.size)
            case "clock back":
                skew.set(clock_s=-fault.size)
            case "network cut":
                self.networks.cut(name)
            case "network reset":
                self.networks.reset(name)
            case "network delay":
                self.networks.delay(name, fault.size)

    def heal(self, fault: Fault) -> None:
        """End it, as far as it does not end by itself."""
        name = fault.target
        match fault.kind:
            case "pause":
                self.process(name).send_signal(signal.SIGCONT)
            case "disk full":
                self.disks[name].free()
            case "slow disk" | "clock forward" | "clock back":
                self.skews[name].set()
            case "network cut" | "network delay":
                self.networks.heal(name)

    def revive(self) -> None:
        """Start what has ended, as whoever supervises it would."""
        status = self.kafka.status()
        if status is None or len(status.nodes) < self.plan.brokers:
            self.revived["broker"] += 1
            self.kafka.start(attached=True)
        for name in SERVICES:
            if self.children[name].exit_status is None:
                continue
            self.revived[name] += 1
            self.children[name].stop(1)
            match name:
                case "gateway":
                    self.start_gateway()
                case "trainer":
                    self.start_trainer()
                case worker:
                    self.start_worker(worker)

    def ask_for_stacks(self) -> None:
        """Into the logs of those that run."""
        for name in SERVICES:
            if self.children[name].exit_status is None:
                self.process(name).send_signal(signal.SIGUSR1)
        time.sleep(5.0)

    def _faults(self) -> list[str]:
        self.revive()
        found = super()._faults()
        views: dict[str, str | None] = {"the gateway": None}
        with suppress(httpx.TransportError):
            answer = httpx.get(
                f"{self.url}/v1/models/{MODEL}", headers={"Authorization": f"Bearer {self.key()}"}
            )
            views["the gateway"] = answer.json().get("version")
        return found + registry_is_one(self.journal.records, MODEL, views)


def round_of(place: Arena, number: int, fault: Fault) -> list[str]:
    """Broken rules after it."""
    place.start_traffic(number=number)
    time.sleep(fault.wait_s)
    place.hit(fault)
    time.sleep(fault.last_s)
    place.heal(fault)
    place.revive()
    time.sleep(1.0)
    place.stop_traffic()
    found = place.faults(STUCK_S)
    if found:
        place.ask_for_stacks()
        place.keep_records()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="this round alone")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--home", type=Path, help="an empty folder, which is kept")
    options = parser.parse_args()
    # As Ctrl-C does: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    numbers = range(options.first, options.rounds + 1)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    plan = Plan(
        brokers=len(BROKERS),
        rate=12.0,
        min_examples=40,
        seed=options.seed,
        # Far more than a clock jumps: what is older than that may be forgotten.
        feedback_window_s=7 * 86_400.0,
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        home = options.home or Path(temporary)
        with Arena(home, plan, say) as place:
            for number in numbers:
                fault = drawn(options.seed, number)
                begin = time.monotonic()
                found = round_of(place, number, fault)
                took = time.monotonic() - begin
                say(f"{number:4} {fault}: {'ok' if not found else 'BROKEN'}, {took:.0f} s")
                if found:
                    say("\n".join(found))
                    return 1
            say(f"started again: {dict(place.revived)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
