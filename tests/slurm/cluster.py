"""A real Slurm on this machine: a controller and nodes, each a host in namespaces of its own.

Every host has its own name, address, processes, mounts and `/dev/shm`; all share the disk, as a cluster's
hosts share a file system. The folder holds configuration, state and logs; when the controller's first
process ends, the kernel ends everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

HOST = Path(__file__).with_name("host.sh")
FREEZER = Path("/sys/fs/cgroup/freezer")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "setpriv", "ip")

CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost=ctl(10.77.0.1)
SlurmctldPort=27810
SlurmdPort=27811
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the credentials of its last start have expired: 120 s by default.
AuthInfo=socket=/run/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_min_interval=0,sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdTimeout={node_timeout}
# Seconds for a save after scancel; and, below, after a preemption: the ranks of many jobs share few cores.
KillWait=300
MessageTimeout=10
TCPTimeout=2
UnkillableStepTimeout=60
MinJobAge=3600
EnforcePartLimits=ALL
GresTypes=gpu
MailProg=/bin/true
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=-1
NodeName=n[1-{nodes}] CPUs=8 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000
NodeName=big[1-64] CPUs=128 RealMemory=1000000 Gres=gpu:h100:8 State=CLOUD
PartitionName=urgent Nodes=n[1-{nodes}] PriorityTier=10 PreemptMode=OFF
PartitionName=big Nodes=big[1-64] MaxTime=3-00:00:00
"""
PARTITION = (
    "PartitionName={name} Nodes={nodes} DefaultTime=60 MaxTime=INFINITE PriorityTier=1 GraceTime=600\n"
)

Value = TypeVar("Value")


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge iproute2)"
    if os.geteuid() != 0:
        return "a cluster of namespaces needs root"
    words = ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--mount-proc", "ip", "link", "add"]
    probe = subprocess.run([*words, "lan", "type", "bridge"], capture_output=True, text=True)
    return f"namespaces and bridges are not allowed here: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass
class Cluster:
    """A running cluster: partitions of nodes `n1`, `n2`, ..., one, `urgent`, that preempts them all, and one,
    `big`, of 64 nodes with 8 GPUs each that are only declared.
    """

    folder: Path
    partitions: dict[str, tuple[str, ...]]
    node_timeout: int = 10
    """Seconds without an answer after which a node is down and its jobs are requeued."""
    inits: dict[str, int] = field(default_factory=dict)
    """First process of each host, as this process sees it."""

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start_host("ctl")
            for name in self.nodes:
                self._start_host(name)
            self.until(lambda: self.idle() == len(self.nodes), "all nodes are idle", timeout=60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._launcher.kill()
        self._launcher.wait()
        corner = self.folder / "freezer"
        if corner.is_symlink():
            self._remove_corner(Path(os.readlink(corner)))

    def run(self, *words: object, host: str = "ctl", timeout: float = 60) -> str:
        """Output of a command on a host.

        Raises:
            AssertionError: it failed, with what it said.
        """
        done = self.try_run(*words, host=host, timeout=timeout)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def try_run(
        self, *words: object, host: str = "ctl", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter(host), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
        )

    @property
    def nodes(self) -> list[str]:
        """`n1`, `n2`, ... without a gap."""
        return [node for nodes in self.partitions.values() for node in nodes]

    def idle(self) -> int:
        done = self.try_run("sinfo", "-h", "-N", "-p", "urgent", "-t", "idle", "-o", "%N")
        return len(set(done.stdout.split()))

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol` knows of a job, or of one task `ID_N` of an array."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def pull_the_plug(self, node: str) -> None:
        """A power failure."""
        os.kill(self.inits.pop(node), 9)

    def isolate(self, *nodes: str) -> None:
        """Part nodes from the controller and the other nodes, not from each other or the disk."""
        for node in nodes:
            self.run("ip", "link", "set", f"to-{node}", "master", "island")

    def until(self, met: Callable[[], Value], what: str, timeout: float = 120) -> Value:
        """Poll until `met` gives something true, and return it.

        Raises:
            AssertionError: it did not within `timeout` seconds; tells the cluster's state.
        """
        end = time.monotonic() + timeout
        while not (value := met()):
            assert time.monotonic() < end, f"not within {timeout} s: {what}\n{self.describe()}"
            time.sleep(0.3)
        return value

    def describe(self) -> str:
        """Queue, nodes and the end of the controller's log."""
        parts = [
            self.try_run("squeue", "-o", "%i %j %T %R").stdout,
            self.try_run("sinfo", "-N", "-p", "urgent", "-o", "%N %T %E").stdout,
        ]
        log = (self.folder / "log" / "slurmctld.log").read_text(errors="replace")
        return "\n".join([*parts, *log.splitlines()[-25:]])

    def _configure(self) -> None:
        for name in ("run", "log", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        addresses = {"ctl": 1, **{name: 10 + int(name[1:]) for name in self.nodes}}
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"10.77.0.{number} {name}\n" for name, number in addresses.items())
        )
        # What clusters use: signals go to a task's process group, SIGKILL to all of its processes.
        proctrack = "pgid"
        if os.access(FREEZER / "tasks", os.W_OK):
            proctrack = "cgroup"
            corner = FREEZER / f"slurm-{os.getpid()}-{self.folder.name}"
            corner.mkdir()
            (self.folder / "freezer").symlink_to(corner)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").touch()
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                nodes=len(self.nodes),
                node_timeout=self.node_timeout,
                proctrack=proctrack,
            )
            + "".join(
                PARTITION.format(name=name, nodes=",".join(nodes)) for name, nodes in self.partitions.items()
            )
        )

    def _start_host(self, name: str) -> None:
        number = 0 if name == "ctl" else int(name[1:])
        address = f"10.77.0.{10 + number if number else 1}/24"
        words = [
            "unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child=KILL", "--mount-proc",
            "--propagation", "private", "--", "bash", str(HOST), str(self.folder), name, address,
        ]  # fmt: skip
        if number:
            (self.folder / "spool" / name).mkdir()
        log = (self.folder / "log" / f"{name}.out").open("w")
        launcher = subprocess.Popen(
            [*(self._enter("ctl") if number else ["setpriv", "--pdeathsig", "KILL"]), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        if not number:
            self._launcher = launcher
        self.inits[name] = self.until_started(launcher, name)
        if number:
            # ip takes the other end's process id as the controller's namespace counts.
            inner = Path(f"/proc/{self.inits[name]}/status").read_text().split("NSpid:")[1].split("\n")[0]
            self.run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns",
                     inner.split()[-2])  # fmt: skip
            self.run("ip", "link", "set", f"to-{name}", "master", "lan", "up")
        else:
            self.until(lambda: self.try_run("scontrol", "ping").returncode == 0, "the controller answers")

    def until_started(self, launcher: subprocess.Popen[bytes], name: str) -> int:
        """The host's first process, once it is in its own namespaces."""

        def init() -> int | None:
            assert launcher.poll() is None, (self.folder / "log" / f"{name}.out").read_text()
            for process in descendants(launcher.pid):
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                if words[0] == b"bash":
                    return process
            return None

        end = time.monotonic() + 30
        while (found := init()) is None:
            assert time.monotonic() < end, f"{name} did not start"
            time.sleep(0.01)
        return found

    def _enter(self, host: str) -> list[str]:
        return ["nsenter", "-t", str(self.inits[host]), "-m", "-n", "-p", "-u", f"--wdns={Path.cwd()}", "--"]

    def _remove_corner(self, corner: Path) -> None:
        """Empty control groups vanish a moment after their last process."""
        end = time.monotonic() + 5
        while corner.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(corner, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    time.sleep(0.05)


def descendants(process: int) -> list[int]:
    found: list[int] = []
    children = Path(f"/proc/{process}/task/{process}/children")
    for child in children.read_text().split() if children.exists() else []:
        found += [int(child), *descendants(int(child))]
    return found
