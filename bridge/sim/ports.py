"""Ports of loopback for the servers of tests and benchmarks; it listens at none."""

import socket
import sys

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that no other program is given as long as this process runs.

    A port that is only looked up can be given to another program before its server
    listens. So, on Linux, this process keeps a socket bound to the port: the kernel
    then neither gives the port to a connection nor to a server that asks for any port,
    and a server that names the port (with SO_REUSEADDR, as all servers do) gets it.
    Other systems would refuse such a server; there, the port is only looked up.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, 0))
    port: int = holder.getsockname()[1]
    if sys.platform == "linux":
        holder.detach()  # stays bound until this process ends
    else:
        holder.close()
    return port
