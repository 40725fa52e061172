"""A roll call before JAX's own rendezvous, which ends a process without naming those that are missing."""

import contextlib
import socket
import time

from msg_jax.errors import UserError


def roll_call(coordinator: str, processes: int, process: int, timeout_sec: float) -> None:
    """Blocks until all `processes` have connected to process 0, on the port after that of `coordinator` ("host:port").

    Raises UserError in every process, after at most `timeout_sec`, if processes are missing or two have the same number.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS={coordinator} is no address: give HOST:PORT.")
    if not 0 <= process < processes:
        raise UserError(f"JAX_PROCESS_ID={process} is not one of JAX_NUM_PROCESSES={processes}: count from 0.")
    deadline = time.monotonic() + timeout_sec
    if process == 0:
        fault = _listen(int(port) + 1, processes, deadline)
    else:
        fault = _report(host, int(port) + 1, process, deadline)
    if fault:
        raise UserError(f"{fault}, after {timeout_sec:g} s: start all {processes} processes with "
                        f"JAX_COORDINATOR_ADDRESS={coordinator} and a JAX_PROCESS_ID of their own, or check the hosts.")


def _listen(port: int, processes: int, deadline: float) -> str:
    """Waits for the other processes and sends them the result: the fault, or an empty string if all are here."""
    here, connections = set(), []
    duplicate = None
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(f"Process 0 cannot listen at port {port} ({error.strerror}): choose another port in "
                        "JAX_COORDINATOR_ADDRESS.") from error
    with server:
        while len(here) < processes - 1 and duplicate is None and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError):
                connection, _ = server.accept()
                connection.settimeout(5)
                connections.append(connection)
                number = int(connection.recv(16))
                duplicate = number if number in here or number == 0 else None
                here.add(number)
        missing = sorted(set(range(1, processes)) - here)
        fault = f"Processes {', '.join(map(str, missing))} of {processes} are missing" if missing else ""
        if duplicate is not None:
            fault = f"Two processes have the number {duplicate} of {processes}"
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(fault.encode() + b"\n")
                connection.close()
    return fault


def _report(host: str, port: int, process: int, deadline: float) -> str:
    """Connects to process 0 and returns the fault that it finds; an empty string if all are here."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(process).encode())
                connection.settimeout(left + 5)  # process 0 may wait until the same deadline
                if answer := connection.recv(1024).decode():
                    return answer.strip()
        except TimeoutError:
            break
        except OSError:  # process 0 does not listen yet
            pass
        time.sleep(0.2)
    return f"Process 0 is missing at {host}:{port}"
