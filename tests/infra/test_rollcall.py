"""The roll call of several processes, played by threads."""

from concurrent.futures import ThreadPoolExecutor
import socket
import time

import pytest

from msg_jax.errors import UserError
from msg_jax.infra.rollcall import roll_call


def _call(present, processes, seconds):
    with socket.create_server(("", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"

    def message(process):
        try:
            roll_call(address, processes, process, seconds)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(message, present))


def test_returns_when_all_are_here():
    assert _call([0, 1, 2], 3, 20) == [None] * 3


def test_every_process_names_the_missing():
    for sentence in _call([0, 2], 4, 1.0):
        assert sentence.startswith("Processes 1, 3 of 4 are missing, after 1 s: start all 4 processes with")


def test_without_process_0_the_others_name_its_address():
    begun = time.monotonic()
    (sentence,) = _call([1], 2, 0.5)
    assert sentence.startswith("Process 0 is missing at localhost:") and time.monotonic() - begun < 5


def test_refuses_two_processes_with_one_number():
    for sentence in _call([0, 1, 1], 3, 2):
        assert sentence.startswith("Two processes have the number 1 of 3")


@pytest.mark.parametrize(("address", "process", "words"), [
    ("nowhere", 0, "JAX_COORDINATOR_ADDRESS=nowhere is no address"),
    ("localhost:1", 5, "JAX_PROCESS_ID=5 is not one of JAX_NUM_PROCESSES=2"),
])
def test_refuses_bad_variables(address, process, words):
    with pytest.raises(UserError, match=words):
        roll_call(address, 2, process, 1)
