"""Rows of skipped.jsonl from several processes and threads at once."""

import json
import subprocess
import sys

from conftest import ROOT, environment

PROCESSES, THREADS, ROWS = 4, 2, 20

SCRIPT = """
import multiprocessing, pathlib, sys, threading
from msg_jax.run.run import Run

def report(process):
    run = Run(pathlib.Path(sys.argv[1]), None, None)
    def rows(thread):
        for i in range({rows}):
            run.report_skipped({{"path": f"{{process}}-{{thread}}-{{i}}", "reason": "x"}})
            run.report_skipped({{"path": f"shared-{{i}}", "reason": "x"}})
    threads = [threading.Thread(target=rows, args=(thread,)) for thread in range({threads})]
    [each.start() for each in threads], [each.join() for each in threads]

context = multiprocessing.get_context("fork")  # no backend has started
workers = [context.Process(target=report, args=(process,)) for process in range({processes})]
[each.start() for each in workers], [each.join() for each in workers]
sys.exit(max(each.exitcode for each in workers))
"""


def test_no_row_is_lost_and_none_is_there_twice(tmp_path):
    script = SCRIPT.format(rows=ROWS, threads=THREADS, processes=PROCESSES)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=environment(), check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    paths = sorted(row["path"] for row in rows)
    own = [f"{process}-{thread}-{i}" for process in range(PROCESSES) for thread in range(THREADS) for i in range(ROWS)]
    assert paths == sorted([*own, *(f"shared-{i}" for i in range(ROWS))])
