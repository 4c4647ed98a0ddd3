"""python -m devcluster: the command line of the dev cluster."""

import argparse
import os
import subprocess
import sys

from devcluster import cluster, engines, images, mounts, other, paths, status
from devcluster.errors import DevClusterError

HELP = {
    "up": "bring the cluster up; what runs already stays, what is half dead is started anew",
    "down": "take it away with all its objects and claims; images and caches stay",
    "status": "what runs; exits with 1 unless all of it is well",
    "logs": "the end of the components' logs",
    "kubeconfig": "print the path of the administrator's kubeconfig",
    "images": "build the images of trainer and operator into the kubelet's image store",
    "install": "what jobs may also run on, into the running cluster: Trainer wants JobSet before it",
    "remove": "take that away again, with all objects of its kinds",
    "clean-cache": "take the cluster away with its images, and everything that was built or downloaded",
}


def main() -> None:
    """Exits with 0, or with 1 and a message that names the remedy."""
    arguments = _parser().parse_args()
    name = os.environ.get("CLUSTER", "")
    try:
        if name:
            _other(name, arguments.command)
        else:
            _ours(arguments)
    except DevClusterError as error:
        sys.exit(f"devcluster: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says it; the next command clears what is half done


def _ours(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "up":
            cluster.up(agreed=arguments.yes or os.environ.get("CI") == "true")
        case "down":
            cluster.down()
        case "status":
            sys.exit(0 if status.show() else 1)
        case "logs":
            _logs(arguments.component, arguments.lines, follow=arguments.follow)
        case "kubeconfig":
            print(paths.KUBECONFIG)
        case "images":
            for image in [arguments.name] if arguments.name else images.NAMES:
                images.build(image)
        case "install" | "remove" as act:
            for engine in arguments.names:
                (engines.install if act == "install" else engines.remove)(engine)
        case "clean-cache":
            cluster.down()
            for folder in (paths.STATE, paths.CACHE):
                mounts.remove(folder)


def _other(name: str, command: str) -> None:
    if name not in other.NAMES:
        raise DevClusterError(
            f"CLUSTER={name}: must be one of {', '.join(other.NAMES)}, or not set for the dev cluster"
        )
    match command:
        case "up":
            other.up(name)
        case "down":
            other.down(name)
        case "kubeconfig":
            print(other.kubeconfig(name))
        case _:
            raise DevClusterError(f"{command} is for the dev cluster; leave CLUSTER={name} out")


def _logs(component: str | None, lines: int, *, follow: bool) -> None:
    names = [component] if component else list(cluster.COMMANDS)
    files = [file for name in names if (file := paths.LOGS / f"{name}.log").exists()]
    if not files:
        raise DevClusterError(f"no logs in {paths.LOGS}: the cluster has not been up; make cluster-up")
    subprocess.run(["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), *files], check=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=text) for name, text in HELP.items()}
    parsers["up"].add_argument(
        "-y", "--yes", action="store_true", help="install missing Debian packages without asking"
    )
    parsers["logs"].add_argument("component", nargs="?", choices=list(cluster.COMMANDS))
    parsers["logs"].add_argument("--lines", type=int, default=20)
    parsers["logs"].add_argument("-f", "--follow", action="store_true")
    for name in ("install", "remove"):
        parsers[name].add_argument("names", nargs="+", choices=list(engines.ENGINES))
    parsers["images"].add_argument("name", nargs="?", choices=images.NAMES)
    return parser


if __name__ == "__main__":
    main()
