"""Who is there: before JAX's own rendezvous, which ends a process without a word on who is missing."""

import contextlib
import socket
import time

from msg_jax.errors import UserError


def roll_call(coordinator: str, processes: int, process: int, timeout_sec: float) -> None:
    """Returns once all `processes` have reported to process 0, at the port after that of `coordinator` ("host:port").

    Raises UserError in every process after `timeout_sec`, naming those that are missing, and when two have one number.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS={coordinator} is no address: give HOST:PORT.")
    if not 0 <= process < processes:
        raise UserError(f"JAX_PROCESS_ID={process} is not one of JAX_NUM_PROCESSES={processes}: count from 0.")
    deadline = time.monotonic() + timeout_sec
    if process == 0:
        answer = _listen(int(port) + 1, processes, deadline)
    else:
        answer = _report(host, int(port) + 1, process, deadline)
    if answer:
        raise UserError(f"{answer}, after {timeout_sec:g} s: start all {processes} processes with "
                        f"JAX_COORDINATOR_ADDRESS={coordinator} and a JAX_PROCESS_ID of their own, or see why a host is down.")


def _listen(port: int, processes: int, deadline: float) -> str:
    """What process 0 finds, and tells the others; empty if all are here."""
    here, connections = set(), []
    twice = None
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(f"Process 0 cannot listen at port {port} ({error.strerror}): choose another port in "
                        "JAX_COORDINATOR_ADDRESS.") from error
    with server:
        while len(here) < processes - 1 and twice is None and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError):
                connection, _ = server.accept()
                connection.settimeout(5)
                connections.append(connection)
                number = int(connection.recv(16))
                twice = number if number in here or number == 0 else None
                here.add(number)
        missing = sorted(set(range(1, processes)) - here)
        answer = f"Processes {', '.join(map(str, missing))} of {processes} are missing" if missing else ""
        if twice is not None:
            answer = f"Two processes say that they are number {twice} of {processes}"
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(answer.encode() + b"\n")
                connection.close()
    return answer


def _report(host: str, port: int, process: int, deadline: float) -> str:
    """What process 0 tells this one."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(process).encode())
                connection.settimeout(left + 5)  # process 0 counts to the same end
                if answer := connection.recv(1024).decode():
                    return answer.strip()
        except TimeoutError:
            break
        except OSError:  # not there yet
            pass
        time.sleep(0.2)
    return f"Process 0 is missing at {host}:{port}"
