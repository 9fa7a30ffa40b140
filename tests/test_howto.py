# The how-to pages: what they show is in files, each of which something runs or parses, and each
# command on them is run by a test, or the page says that it was not.

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from snaptun_trio import open_batch_pump, serve_udp
from snaptun_trio._sockets import DEFAULT_BUFFER

from . import ends, relaying
from .examples import EXAMPLES, ROOT

HOWTO = EXAMPLES / "howto"
PAGES = {
    page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs/howto").glob("*.rst")
}
PAGES["compatibility"] = (ROOT / "docs/compatibility.rst").read_text(encoding="utf-8")

# Who runs a program, or loads a file.
CHECKED_BY = {
    "tests/test_howto_programs.py": [
        "after_asyncio.py",
        "after_rust.py",
        "after_trio.py",
        "ask_many.py",
        "before_asyncio.py",
        "before_trio.py",
        "busy_poll.py",
        "cpus.py",
        "own_loop.py",
        "protocol_relay.py",
        "relay_client.py",
        "relay_functions.py",
        "sizes.py",
        "supervisor.py",
        "watch.py",
    ],
    "tests/faults/test_howto_drops.py": ["drops.py"],
    "tests/faults/test_balancer.py": ["balancer.nft"],
    "tests/test_howto.py": [
        "Containerfile",
        "alerts.yaml",
        "envoy.yaml",
        "kubernetes.yaml",
        "udp.conf",
        "udp-worker@.service",
        "udp-worker@.socket",
    ],
}
# Commands of console blocks, by their beginning: the test that runs them, and its words for it.
DROPS, BALANCER = "tests/faults/test_howto_drops.py", "tests/faults/test_balancer.py"
PROGRAMS = "tests/test_howto_programs.py"
RUN = {
    "ss --udp --all --numeric --memory": (DROPS, "ss --udp --all --numeric --memory"),
    "nstat --json": (DROPS, "nstat --json --zeros --ignore --noupdate"),
    "tc -s -json qdisc show dev": (DROPS, "tc -s -json qdisc show dev"),
    "nft list ruleset": (DROPS, "nft list ruleset"),
    "nft -f": (BALANCER, "nft -f -"),
    "conntrack --delete": (BALANCER, "conntrack --delete --protonum udp --reply-src 10.0.1.2"),
    "snaptun-trio probe": ("tests/faults/test_howto_kernel.py", '"probe"'),
    "python drops.py": (DROPS, '"howto" / "drops.py"'),
    "python sizes.py": (PROGRAMS, 'program("howto/sizes"'),
    "python supervisor.py": (PROGRAMS, 'program("howto/supervisor"'),
    "python protocol_relay.py": (PROGRAMS, 'program("howto/protocol_relay"'),
    "python relay_functions.py": (PROGRAMS, 'program("howto/relay_functions"'),
    "python relay_client.py": (PROGRAMS, 'program("howto/relay_client"'),
    "python echo_server.py": (PROGRAMS, 'program("echo_server"'),
    "python ask_many.py": (PROGRAMS, 'program("howto/ask_many"'),
}
NOT_RUN = ("systemctl ", "docker ", "podman ", "kubectl ", "ethtool ", "dropwatch", "sysctl ")


def commands() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, page in PAGES.items():
        for block in re.findall(
            r"^\.\. code-block:: console\n\n((?:   .*\n|\n)+)", page, re.MULTILINE
        ):
            found += [(name, line[5:]) for line in block.splitlines() if line.startswith("   $ ")]
    return found


def test_every_file_is_shown_and_checked() -> None:
    shown = {
        path
        for page in PAGES.values()
        for path in re.findall(r"literalinclude:: \.\./examples/howto/(\S+)", page)
    }
    there = {path.name for path in HOWTO.iterdir() if path.is_file()}
    assert shown == there
    assert there == {name for names in CHECKED_BY.values() for name in names}
    for test, names in CHECKED_BY.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        for name in names:
            wanted = f"howto/{name.removesuffix('.py')}"
            assert wanted in text or f'"{name}"' in text, f"{test} does not know {name}"


def test_pages_have_no_code_of_their_own_but_commands() -> None:
    for name, page in PAGES.items():
        assert set(re.findall(r"code-block:: *(\S+)", page)) <= {"console"}, name
        assert "::\n\n" not in re.sub(r"^\.\. .*$", "", page, flags=re.MULTILINE), name


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_is_run_or_said_not_to_be(page: str, command: str) -> None:
    bare = command.removeprefix("sudo ")
    for start, (test, words) in RUN.items():
        if bare.startswith(start):
            assert words in (ROOT / test).read_text(encoding="utf-8")
            return
    assert bare.startswith(NOT_RUN), f"no test runs {command!r}"
    assert "not run here" in PAGES[page], f"{page} does not say that {command!r} was not run"


def test_the_defaults_on_the_page_of_sizes_are_those_of_the_functions() -> None:
    def default(function: Any, name: str) -> Any:  # noqa: ANN401
        return inspect.signature(function).parameters[name].default

    def shown(value: float) -> str:
        return "4 MiB" if value == 4 << 20 else f"{int(value):,}".replace(",", " ")

    said = dict(re.findall(r"^   \* - ``(\w+)``.*\n     - (.+)$", PAGES["sizes"], re.MULTILINE))
    for function, names in (
        (serve_udp, ["receive_buffer", "send_buffer", "max_peers", "peer_queue", "idle_timeout"]),
        (open_batch_pump, ["capacity", "batch_size", "max_segments"]),
    ):
        for name in names:
            assert said.pop(name).removesuffix(" s") == shown(default(function, name)), name
    assert set(said) == {"max_sessions"}


# --- the files ------------------------------------------------------------------------------------


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((HOWTO / name).read_text(encoding="utf-8")))


def test_the_kubernetes_objects_fit_together_and_their_command_relays() -> None:
    service, deployment = documents("kubernetes.yaml")
    assert (service["kind"], deployment["kind"]) == ("Service", "Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port for port in container["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    program, command, listen, target, *options = container["command"]
    assert (program, command) == ("snaptun-trio", "relay")
    assert listen == f":{ports['udp']['containerPort']}"
    assert target.endswith(":53")
    metrics = options.index("--metrics") + 1
    assert options[metrics] == f":{ports['metrics']['containerPort']}"
    options[metrics] = "127.0.0.1:0"
    with relaying.open_relay("127.0.0.1:9", *options) as relay:
        for probe in ("readinessProbe", "livenessProbe"):
            get = container[probe]["httpGet"]
            assert get["port"] in ports
            while relaying.status_of(relay.metrics, get["path"]) != 200:
                pass
        assert relay.end()[0] == 0
    grace = int(options[options.index("--grace") + 1])
    (pause,) = container["lifecycle"]["preStop"]["exec"]["command"][1:]
    assert int(pause) + grace < template["spec"]["terminationGracePeriodSeconds"]


def test_the_envoy_configuration_names_its_cluster_and_the_hosts_of_the_balancer() -> None:
    (config,) = documents("envoy.yaml")
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    proxy = listener["listener_filters"][0]["typed_config"]
    action = proxy["matcher"]["on_no_match"]["action"]["typed_config"]
    assert action["cluster"] == cluster["name"] == cluster["load_assignment"]["cluster_name"]
    hosts = {
        endpoint["endpoint"]["address"]["socket_address"]["address"]
        for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    }
    rules = (HOWTO / "balancer.nft").read_text(encoding="utf-8")
    assert hosts == set(re.findall(r"10\.0\.\d\.2", rules))


def test_the_alerts_ask_for_metrics_that_a_relay_has() -> None:
    (rules,) = documents("alerts.yaml")
    text = " ".join(rule["expr"] for rule in rules["groups"][0]["rules"])
    asked = set(re.findall(r"snaptun_trio_\w+", text))
    with (
        ends.bound_socket() as target,
        relaying.open_relay(relaying.at(ends.deafen(target)), "--metrics", "127.0.0.1:0") as relay,
    ):
        with relay.client() as client:
            told = ""
            while "asynchronous_errors" not in told:  # there since the first
                client.send(b"is anybody there?")
                told = relaying.get(relay.metrics, "/metrics")[1]
    there = set(re.findall(r"^(snaptun_trio_\w+)[ {]", told, re.MULTILINE))
    assert asked <= there
    # "answer" is there with --duplicate only.
    for label, value in re.findall(r'(\w+)="(\w+)"', text):
        assert f'{label}="{value}"' in told or (label, value) == ("reason", "answer")


def test_the_sysctls_are_there_and_as_large_as_what_is_asked_for() -> None:
    lines = (HOWTO / "udp.conf").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("#"):
            continue
        name, value = line.split(" = ")
        path = Path("/proc/sys", *name.split("."))
        if path.parent.exists():
            assert path.exists()
        assert int(value) == DEFAULT_BUFFER


UNITS = ("udp-worker@.socket", "udp-worker@.service")


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    units = [str(directory / name.replace("@", "@1")) for name in UNITS]
    return subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_units_and_lets_them_make_the_calls(tmp_path: Path) -> None:
    for name in UNITS:
        text = (HOWTO / name).read_text(encoding="utf-8")
        program = shutil.which("true")
        assert program is not None
        (tmp_path / name).write_text(
            re.sub(r"ExecStart=\S+", f"ExecStart={program}", text), encoding="utf-8"
        )
    done = verify(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    unit = tmp_path / UNITS[1]
    unit.write_text(
        unit.read_text(encoding="utf-8").replace("Restart=", "Rerun="), encoding="utf-8"
    )
    assert "Rerun" in verify(tmp_path).stderr  # or it would have said nothing of anything
    calls = subprocess.run(
        ["systemd-analyze", "syscall-filter", "@network-io"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"recvmmsg", "sendmmsg"} <= set(calls)


def test_the_container_starts_a_relay_that_there_is() -> None:
    text = (HOWTO / "Containerfile").read_text(encoding="utf-8")
    words = [
        word
        for line in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", text, re.MULTILINE)
        for word in json.loads(line)
    ]
    assert words[:2] == ["snaptun-trio", "relay"]
    assert re.findall(r"EXPOSE (\d+)/udp (\d+)/tcp", text) == [
        (words[2].removeprefix(":"), words[words.index("--metrics") + 1].removeprefix(":"))
    ]
    assert "[cli]" in text
