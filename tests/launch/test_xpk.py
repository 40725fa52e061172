"""xpk.sh: the storage and the workload that it creates, also as xpk itself reads them."""

import argparse
import re
import shlex

import pytest

from msg_jax.infra import preemption, runtime
from tests.launch.stand_ins import ARGUMENTS


@pytest.fixture
def commands(stand_ins) -> list[list[str]]:
    """The arguments of each call of xpk."""
    code, out, err = stand_ins.run("xpk.sh", "--dry_run", "--", *ARGUMENTS, BUCKET="my_bucket.test")
    assert code == 0, err
    commands = [shlex.split(line) for line in out.splitlines()]
    assert [command[0] for command in commands] == ["xpk"] * 2
    return [command[1:] for command in commands]


def test_the_bucket_is_attached_and_used_by_the_workload(commands):
    attach, create = commands
    assert attach[:3] == ["storage", "attach", "my-bucket-test"] and create[:2] == ["workload", "create"]
    assert {"--bucket=my_bucket.test", "--mount-point=/workdir", "--readonly=false"} <= set(attach)
    assert {"--storage=my-bucket-test", "--max-restarts=100", "--restart-on-exit-codes=75,143"} <= set(create)


def test_the_process_replaces_its_shell_so_that_it_gets_sigterm(commands):
    command = commands[1][-1].removeprefix("--command=")
    assert re.match(r"ln -sfn /workdir runs && exec python -m msg_jax.main ", command)


def test_xpk_reads_the_commands_and_restarts_as_it_should(commands):
    parsers = pytest.importorskip("xpk.parser.core", reason="xpk is not installed: pip install xpk>=0.7.1")
    from xpk.commands.workload import get_restart_exit_codes

    parser = argparse.ArgumentParser()
    parsers.set_parser(parser)
    attach, create = (parser.parse_args(command) for command in commands)
    assert (attach.type, attach.bucket, attach.mount_point) == ("gcsfuse", "my_bucket.test", "/workdir")
    assert not attach.readonly and not attach.auto_mount and not attach.prefetch_metadata
    assert attach.mount_options.split(",")[-2:] == ["metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"]
    assert create.storage == [attach.name] and create.tpu_type == "v5litepod-256" and create.base_docker_image == "image"
    assert shlex.split(create.command)[-3:] == ARGUMENTS
    assert {"JAX_NUM_PROCESSES=64", "JAX_NUM_DEVICES=256", "PYTHONPATH=."} <= set(create.env)
    restarts = get_restart_exit_codes(create)
    assert {preemption.EXIT_CODE, runtime.LOST_PROCESS} <= set(restarts) and not {0, 1, runtime.USER_ERROR} & set(restarts)
    assert create.max_restarts == "100"
