# What the pages on tuning the kernel and on containers say of Linux, as far as one machine can show
# it: limits that a network namespace cannot raise, steering to another processor, a sandbox.

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .. import ends, relaying
from . import netns, sandbox, sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this is about Linux")

RMEM_MAX = Path("/proc/sys/net/core/rmem_max")


def granted(asked: int, option: int = socket.SO_RCVBUF) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, option, asked)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def test_the_kernel_grants_twice_its_limit_at_most() -> None:
    assert granted(1 << 30) == 2 * int(RMEM_MAX.read_text(encoding="ascii"))


@pytest.mark.own_network
def test_inside_a_network_namespace_rmem_max_cannot_be_raised() -> None:
    with pytest.raises(OSError, match=r"rmem_max") as refused:
        RMEM_MAX.write_text("8388608\n", encoding="ascii")
    # Since Linux 6.11 it can be read there; before that it is not to be seen.
    assert refused.value.errno in (errno.EACCES, errno.EPERM, errno.ENOENT)
    with pytest.raises(PermissionError):  # root of a namespace is not root of the machine
        granted(1 << 30, sockets.SO_RCVBUFFORCE)


@pytest.mark.own_process
def test_a_sandbox_that_forbids_the_calls_is_found_by_the_probe() -> None:
    sandbox.forbid(errno.EPERM, "recvmmsg", "sendmmsg")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "snaptun_trio", "probe"],
        env=relaying.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=ends.PATIENCE,
        check=True,
    )
    assert "The backend is portable" in done.stdout


STEER = """
set -e
mount -t sysfs none /sys
ip link set lo up
echo 3 > /sys/class/net/lo/queues/rx-0/rps_cpus
ip link add va numtxqueues 2 numrxqueues 2 type veth peer name vb numtxqueues 2 numrxqueues 2
echo 1 > /sys/class/net/va/queues/tx-0/xps_cpus
echo 2 > /sys/class/net/va/queues/tx-1/xps_cpus
cat /sys/class/net/va/queues/tx-1/xps_cpus
exec "$@"
"""
SEND = """
import pathlib, socket
steered = lambda: sum(
    int(line.split()[9], 16)
    for line in pathlib.Path("/proc/net/softnet_stat").read_text().splitlines()
)
into = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
into.bind(("127.0.0.1", 0))
before = steered()
for number in range(200):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:  # a flow of its own
        out.sendto(b"hello", into.getsockname())
    into.recv(100)
print(steered() - before)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="to steer packets takes root")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
def test_rps_hands_flows_to_another_processor_and_xps_takes_a_mask() -> None:
    if shutil.which("unshare") is None or netns.why_no_network():
        pytest.skip("no namespace can be made here")
    command = ["unshare", "--net", "--mount", "sh", "-c", STEER, "sh", sys.executable, "-c", SEND]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=ends.PATIENCE, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this machine does not let us: {done.stderr.strip()}")
    mask, steered = done.stdout.split()
    assert int(mask, 16) == 2
    assert int(steered) > 0


SPIN = """
import pathlib, sys
group = pathlib.Path(sys.argv[1])
(group / "cgroup.procs").write_text("0")
stood_still = 0
while not stood_still:
    counts = dict(map(str.split, (group / "cpu.stat").read_text().splitlines()))
    stood_still = int(counts["nr_throttled"])
print(stood_still)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="to set a quota takes root")
def test_a_process_that_has_used_up_its_quota_stands_still_and_that_is_counted() -> None:
    cgroups = Path("/sys/fs/cgroup")
    first = cgroups / "cpu" if (cgroups / "cpu" / "cgroup.procs").exists() else None
    group = (first or cgroups) / f"snaptun-trio-test-{os.getpid()}"
    limits = {"cpu.cfs_quota_us": "5000"} if first else {"cpu.max": "5000 100000"}
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, value in limits.items():
            if not (group / name).exists():
                pytest.skip(f"control groups have no {name} here")
            (group / name).write_text(value, encoding="ascii")
        done = subprocess.run(
            [sys.executable, "-c", SPIN, str(group)],
            capture_output=True,
            text=True,
            timeout=ends.PATIENCE,
            check=True,
        )
        assert int(done.stdout) > 0
    finally:
        group.rmdir()
