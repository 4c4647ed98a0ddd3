"""The bridge that the pods hang on, and the firewall rules that components leave behind."""

import re
import subprocess
from pathlib import Path

from devcluster import paths, sysctls
from devcluster.layout import ADDRESS, BRIDGE
from devcluster.process import run
from devcluster.waiting import wait_for

INTERFACES = Path("/sys/class/net")
CNI_RESULTS = Path("/var/lib/cni/results")  # the one folder that containerd does not let us move
CHAIN = re.compile(r"(KUBE|CNI)-[A-Za-z0-9-]+")


def load_module() -> None:
    """The kernel shows iptables what crosses a bridge, or can be told to; some have that in a module."""
    if not (sysctls.ROOT / "net" / "bridge").exists():
        run("modprobe", "br_netfilter")


def add() -> None:
    """The bridge has the node's address, packets are forwarded, and iptables sees what crosses the bridge."""
    sysctls.write("net/ipv4/ip_forward", "1")
    sysctls.write("net/bridge/bridge-nf-call-iptables", "1")
    if not (INTERFACES / BRIDGE).exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def remove() -> None:
    """No bridge, no interface of a pod and no rule of kube-proxy, the kubelet or CNI is left."""
    ports = INTERFACES / BRIDGE / "brif"
    if ports.exists():
        for port in ports.iterdir():
            # Each also goes by itself, a moment after its network namespace.
            subprocess.run(["ip", "link", "delete", port.name], stderr=subprocess.DEVNULL)
        wait_for(f"the interfaces on {BRIDGE} go", lambda: not list(ports.iterdir()), 30)
        run("ip", "link", "delete", BRIDGE)
    for family in ("iptables", "ip6tables"):
        if rules := deletion(run(f"{family}-save")):
            run(f"{family}-restore", "--noflush", given=rules)
    for result in CNI_RESULTS.glob("*"):
        # The path of the pod's network namespace.
        if str(paths.RUN) in result.read_text():
            result.unlink()


def deletion(saved: str) -> str:
    """Input for `iptables-restore --noflush` that removes the cluster's chains and rules from what was saved."""
    lines: list[str] = []
    for table in re.split(r"^(?=\*)", saved, flags=re.M)[1:]:
        chains = [chain for chain in re.findall(r"^:(\S+) ", table, re.M) if CHAIN.fullmatch(chain)]
        rules = [
            f"-D {chain} {rest}"
            for chain, rest in re.findall(r"^-A (\S+) (.*)$", table, re.M)
            if chain not in chains and CHAIN.search(rest)
        ]
        if chains or rules:
            lines += [table.split("\n", 1)[0], *rules]
            lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains] + ["COMMIT"]
    return "".join(f"{line}\n" for line in lines)
