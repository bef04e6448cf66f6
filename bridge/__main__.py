"""Where the command `bridge` begins, before its imports, which take seconds."""

import os
import signal


def main() -> None:
    # The kernel drops a signal that process 1 has no handler for. In a container a
    # bridge that is told to stop while it starts would go on, and be killed in the end.
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from bridge.cli.commands import app

    app()


if __name__ == "__main__":
    main()
