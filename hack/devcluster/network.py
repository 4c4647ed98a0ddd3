"""The bridge that the pods hang on, and the firewall rules that components leave behind."""

import re
import subprocess
from pathlib import Path

from devcluster import paths, sysctls
from devcluster.layout import ADDRESS, BRIDGE, NETWORK
from devcluster.process import run
from devcluster.waiting import wait_for

INTERFACES = Path("/sys/class/net")
CNI_RESULTS = Path("/var/lib/cni/results")  # the one folder that containerd does not let us move
COMMENT = f'name: \\"{NETWORK}\\"'  # CNI's, as iptables-save quotes it: the rules of other networks name others


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
        rules = re.findall(r"^-A (\S+) (.*)$", table, re.M)
        chains = [chain for chain in re.findall(r"^:(\S+) ", table, re.M) if _is_ours(chain, rules)]
        doomed = [
            f"-D {chain} {rest}"
            for chain, rest in rules
            if chain not in chains and (COMMENT in rest or not set(chains).isdisjoint(rest.split()))
        ]
        if chains or doomed:
            lines += [table.split("\n", 1)[0], *doomed]
            lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains] + ["COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def _is_ours(chain: str, rules: list[tuple[str, str]]) -> bool:
    """Whether a chain is the cluster's: Kubernetes' (it has no other), or CNI's for our network's pods alone."""
    if chain.startswith("CNI-HOSTPORT-"):
        # Made for the first pod with a port of the host, whosever it was, and kept.
        return all(COMMENT in rest for at, rest in rules if at == "CNI-HOSTPORT-DNAT")
    return chain.startswith("KUBE-") or any(COMMENT in rest and rest.endswith(f"-j {chain}") for _, rest in rules)
