# A client that nobody here wrote: Debian's dnsperf, against the tutorial's DNS server.
#
# Its own report says whether anything was lost, or answered with anything but an address. Many
# clients make many ports, and so many peers, each with a task of its own.

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from . import ends
from .examples import example, program

if TYPE_CHECKING:
    from pathlib import Path

DNSPERF = shutil.which("dnsperf")
QUERIES = 100_000
CLIENTS = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DNSPERF is None, reason="dnsperf is not installed"),
]


def test_dnsperf_loses_no_query_and_gets_no_wrong_answer(backend: str, tmp_path: Path) -> None:
    hosts: list[bytes] = list(example("dns_message").HOSTS)
    questions = tmp_path / "questions"
    questions.write_text("".join(f"{name.decode()} A\n" for name in hosts), encoding="ascii")
    with program("dns_server", "127.0.0.1", "0") as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        assert DNSPERF is not None
        command = [DNSPERF, "-s", "127.0.0.1", "-p", port, "-d", str(questions)]
        command += ["-n", str(QUERIES // len(hosts)), "-c", str(CLIENTS), "-T", "1"]
        command += ["-t", str(ends.PATIENCE)]  # a busy machine is no reason to give a query up
        report = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
        )
        server.send_signal(signal.SIGTERM)
        out, errors = server.communicate(timeout=ends.PATIENCE)
    print(report.stdout)
    assert report.stderr == ""  # it warns of answers that it did not expect
    figures = dict(
        re.findall(r"^ *Queries (sent|completed|lost): +(\d+)", report.stdout, re.MULTILINE)
    )
    assert figures == {"sent": f"{QUERIES}", "completed": f"{QUERIES}", "lost": "0"}
    codes = re.search(r"^ *Response codes: +(.*)$", report.stdout, re.MULTILINE)
    assert codes is not None
    assert codes[1] == f"NOERROR {QUERIES} (100.00%)"
    assert (server.returncode, errors) == (0, "")
    assert out == f"{QUERIES} received, {QUERIES} sent\n"
