"""A module that ends when its starter does, however that dies: ``-m experiments.job MODULE``.

Standard input is a pipe that the starter alone could write to, and never does: it ends with it.
"""

import os
import runpy
import signal
import sys
import threading
import time

REPEAT_SECONDS = 5.0


def main() -> None:
    """Run the module as the command line would."""
    threading.Thread(target=end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def end_with_starter() -> None:
    """A training that is told to leave saves first; whatever else runs here ends at once.

    Told until it is gone: between two owners of the signal, nobody may have heard the first.
    """
    while os.read(0, 1):
        pass
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(REPEAT_SECONDS)


if __name__ == "__main__":
    main()
