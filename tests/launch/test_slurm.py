"""slurm.sbatch with a stand-in srun that starts two tasks, and scancel and scontrol that record their calls."""

import signal

import pytest

from tests.launch.stand_ins import ARGUMENTS, LAUNCH, TASK, ends

# As the real one, it kills its tasks when it gets SIGTERM, and exits with the largest code of a task.
_SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$FOLDER/calls"
trap 'kill -KILL "${tasks[@]}"' TERM
while [[ "$1" == --* ]]; do shift; done
for i in 0 1; do
  "$@" &
  tasks+=($!)
  echo $! >> "$FOLDER/tasks"
done
worst=0
for task in "${tasks[@]}"; do
  code=0
  wait "$task" || code=$?
  ((code > worst)) && worst=$code
done
exit "$worst"
"""
_SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$FOLDER/calls"
[[ "$*" == "--signal=TERM 42" ]] && kill -TERM $(cat "$FOLDER/tasks")
"""


@pytest.fixture
def job(stand_ins):
    """A function that starts the job and returns its process."""
    stand_ins.script("srun", _SRUN)
    stand_ins.script("scancel", _SCANCEL)
    stand_ins.answering("scontrol")
    variables = dict(SLURM_NTASKS="2", SLURM_JOB_ID="42", SLURM_CPUS_PER_TASK="12")

    def start(task: str = TASK, **more: str):
        return stand_ins.start("slurm.sbatch", PYTHON=str(stand_ins.script("task", task)), **variables, **more)

    return start


def _calls(stand_ins):
    return [call for call in stand_ins.calls if not call.startswith("srun")]


def test_before_its_time_is_over_the_job_saves_and_is_requeued(job, stand_ins):
    process = job()
    stand_ins.wait("started", 2)
    process.send_signal(signal.SIGUSR1)
    assert ends(process) == (143, "", "")
    stand_ins.wait("saved", 2)
    assert _calls(stand_ins) == ["scancel --signal=TERM 42", "scontrol requeue 42"]


def test_a_cancelled_or_preempted_job_saves_and_does_not_requeue_itself(job, stand_ins):
    process = job()
    stand_ins.wait("started", 2)
    process.send_signal(signal.SIGTERM)
    assert ends(process) == (143, "", "")
    stand_ins.wait("saved", 2)
    assert _calls(stand_ins) == ["scancel --signal=TERM 42"]


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_a_job_that_ends_by_itself_is_not_requeued(job, stand_ins, code):
    assert ends(job(END=str(code))) == (code, "", "")
    assert _calls(stand_ins) == []


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_finishes_or_fails_after_the_signal_is_not_requeued(job, stand_ins, code):
    process = job(TASK.replace("exit 143", f"exit {code}"))
    stand_ins.wait("started", 2)
    process.send_signal(signal.SIGUSR1)
    assert ends(process)[0] == code
    assert _calls(stand_ins) == ["scancel --signal=TERM 42"]


def test_srun_gets_the_cpus_of_a_task_and_the_arguments(job, stand_ins):
    ends(job(END="0"))
    start, *arguments = stand_ins.calls[0].partition(" -m msg_jax.main ")
    assert start == f"srun --kill-on-bad-exit=1 --cpus-per-task=12 {stand_ins.folder / 'task'}"
    assert arguments[1] == " ".join(ARGUMENTS)


def test_the_signal_goes_to_the_script_and_the_log_is_continued():
    options = {line.removeprefix("#SBATCH ") for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()}
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= options
