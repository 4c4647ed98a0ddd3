"""`python -m trl_trainer --job FILE` asks a warm process (warm.py) for the rank, and passes signals and the end on.

It is put on the path as sitecustomize, which Python runs before anything else, and touches no other program.
"""

import json
import os
import signal
import socket
import sys
import traceback

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{os.environ['TRL_WARM']}")
    socket.send_fds(connection, [b"-"], [1, 2])
    connection.sendall(json.dumps([arguments, dict(os.environ)]).encode() + b"\n")
    for number in SIGNALS:
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = int(connection.recv(16))
    if code < 0:
        if -code in SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


words = sys.orig_argv
if "trl_trainer" in words:
    at = words.index("trl_trainer")
    if words[at - 1] == "-m" and words[at + 1 : at + 2] == ["--job"]:
        try:
            main(words[at + 1 :])
        finally:
            # Python would go on without sitecustomize, and be the rank itself.
            traceback.print_exc()
            os._exit(99)
