"""A rank that has imported everything and waits for its job: the next part's imports cost no time of the GPU.

It is told the job in one line of JSON. A forked process could not use CUDA once any import has.
"""

import json
import sys

from warm import become


def main() -> None:
    import trl_trainer.rank  # noqa: F401  (the point of this process)

    line = sys.stdin.readline()
    if line:
        become(json.loads(line), rank=0)


if __name__ == "__main__":
    main()
