"""Jobs on this machine, without a cluster: `run` trains them, `explain` says what one would do."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trl_contract.report import EXIT_CODES, USER_ERROR_EXIT_CODE
from trl_trainer.errors import TrainerError
from trl_trainer.local import Places, hub
from trl_trainer.local.resource import read, read_all

COMMANDS = ("run", "explain")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 10 for a mistake of the user, else the trainer's code by class."""
    given = _parser().parse_args(arguments)
    places = Places(given.storage, dict(given.volume), dict(given.config_map))
    try:
        # Each command imports what it needs: `explain` needs torch, whose import takes seconds.
        if given.command == "run":
            from trl_trainer.local.chain import run_all

            return run_all(read_all(given.file), places)
        hub.check(read(given.file), has_rows=False)
        from trl_trainer.local.explain import explain

        return explain(given.file, places)
    except TrainerError as error:
        print(f"error: {error.reason}: {error.message}", file=sys.stderr)
        return EXIT_CODES.get(error.reason, USER_ERROR_EXIT_CODE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USER_ERROR_EXIT_CODE, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trl_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name, text in (
        (
            "run",
            "train on this machine, on all its GPUs, else on the CPU: the job of a file, or all jobs of a folder, each"
            " after those whose results it uses",
        ),
        ("explain", "print the resolved TRL config, the plan, the memory estimate and what is worth a look"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", type=Path, help="the file, or folder, that one would `kubectl apply`")
        command.add_argument(
            "--storage",
            type=Path,
            metavar="DIR",
            help="folder in which the job makes its own (default: that of the claim of spec.storage, else this folder)",
        )
        command.add_argument(
            "--volume", type=_pair, action="append", default=[], metavar="CLAIM=DIR", help="where a claim's files are"
        )
        command.add_argument(
            "--config-map",
            type=_pair,
            action="append",
            default=[],
            metavar="NAME=DIR",
            help="where the keys of a ConfigMap that is not in the file are, as files",
        )
    return parser


def _pair(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    if not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{folder} is not a folder")
    return name, Path(folder)
