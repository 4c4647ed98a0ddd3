"""`python -m trl_trainer --job FILE`: one rank, under torchrun or alone.
`python -m trl_trainer run job.yaml` and `explain job.yaml`: a job on this machine, without a cluster."""

import argparse
import faulthandler
import gc
import logging
import os
import sys

from trl_contract.resolve import resolve
from trl_trainer.launch.job import JOB_FILE, library_settings, read_job
from trl_trainer.launch.termination import Termination
from trl_trainer.local import cli


def main() -> None:
    # When it is imported on some CPUs it misses a kernel of the hub, which no job needs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if sys.argv[1:2] and sys.argv[1] in (*cli.COMMANDS, "-h", "--help"):
        sys.exit(cli.main(sys.argv[1:]))
    parser = argparse.ArgumentParser(prog="python -m trl_trainer", description=__doc__)
    parser.add_argument("--job", default=JOB_FILE, help="job file (default %(default)s)")
    arguments = parser.parse_args()
    termination = Termination()
    # The last words of a rank that crashes in native code.
    faulthandler.enable()
    job = resolve(read_job(arguments.job))
    os.environ.update(library_settings(job))

    from trl_trainer import rank

    # What is imported stays: a full collection would walk a million objects of libraries in the middle of training.
    gc.freeze()
    code = rank.main(job, termination)
    sys.stdout.flush()
    sys.stderr.flush()
    # Native teardown of gloo threads has been seen to abort a run that had ended well.
    os._exit(code)


if __name__ == "__main__":
    main()
