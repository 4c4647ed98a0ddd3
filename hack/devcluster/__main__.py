"""python -m devcluster: the command line of the dev cluster."""

import argparse
import os
import sys

from devcluster import cluster, paths
from devcluster.errors import DevClusterError


def main() -> None:
    """Exits with 0, or with 1 and a message that names the remedy."""
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the cluster up; what runs already stays")
    up.add_argument("-y", "--yes", action="store_true", help="install missing Debian packages without asking")
    commands.add_parser("down", help="take everything away but images and caches")
    commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                cluster.up(agreed=arguments.yes or os.environ.get("CI") == "true")
            case "down":
                cluster.down()
            case "kubeconfig":
                print(paths.KUBECONFIG)
    except DevClusterError as error:
        sys.exit(f"devcluster: {error}")


if __name__ == "__main__":
    main()
