"""Names, addresses and ports of the one-node cluster."""

NODE = "node-0"
BRIDGE = "trl0"

ADDRESS = "10.244.0.1"  # of the bridge: the node's, the API server's for pods, and the DNS server's
POD_RANGE = "10.244.0.0/24"
FIRST_POD_ADDRESS = "10.244.0.10"
SERVICE_RANGE = "10.96.0.0/16"
FIRST_SERVICE_ADDRESS = "10.96.0.1"  # of the service kubernetes.default
DOMAIN = "cluster.local"
NETWORK = "trl-cluster"  # CNI's name for the pods' network
CGROUP = "trl-cluster"  # all pods run below this cgroup

API_PORT = 6443
SERVER = f"https://127.0.0.1:{API_PORT}"
# Every TCP port that a component listens on, all on 127.0.0.1, the bridge or every address.
PORTS = {
    2379: "etcd (clients)",
    2380: "etcd (peers)",
    API_PORT: "kube-apiserver",
    10257: "kube-controller-manager",
    10259: "kube-scheduler",
    10248: "kubelet (health)",
    10250: "kubelet",
    10249: "kube-proxy (metrics)",
    10256: "kube-proxy (health)",
}
