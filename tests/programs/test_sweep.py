"""A sweep of several trainings: its changes, its shared stages, its table; and a whole one at the smoke preset."""

import dataclasses
import doctest
import json

import numpy as np
import pytest

from msg_jax import programs
from msg_jax.clip import TINY
from msg_jax.config.schema import Sweep
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.evaluation.event_metrics import groups
from msg_jax.inference import loading
from msg_jax.programs import checks, sweep
from msg_jax.programs.plan import plan
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from msg_jax.studies import event_metrics


def study(**cells):
    return replace(runs.vta_ldm_study("smoke"), sweep=dict(cells=dict(axis=cells)))


def test_a_cell_changes_its_fields_and_no_other():
    config = study(one=dict(base=dict(features=("clip",))))
    cell = sweep.cells_of(config)[1]
    changed = cell.config(config)
    assert (cell.axis, cell.name) == ("axis", "one") and changed.base.features == ("clip",)
    assert (changed.program, changed.sweep) == ("stages", Sweep()) and config.program == "sweep"
    plain = sweep.cells_of(config)[0].config(config)
    assert changed != plain == replace(changed, base=dict(features=config.base.features))


@pytest.mark.parametrize("changes", [dict(base=dict(feature=("clip",))), dict(base=dict(positions="no"))])
def test_a_change_that_does_not_fit_is_one_sentence(changes):
    config = study(odd=changes)
    with pytest.raises(UserError, match=r"config\.sweep\.cells\.axis\.odd"):
        sweep.cells_of(config)[1].config(config)


def test_every_cell_of_the_study_fits_its_networks():
    config = runs.vta_ldm_study("tiny")
    cells = sweep.cells_of(config)
    assert len(cells) == 23
    for cell in cells:
        changed = cell.config(config)
        checks.check(changed)
        assert "event_metrics" in plan(changed)


def test_cells_share_the_stages_on_whose_settings_they_agree(tmp_path):
    config = study(
        slow=dict(encoders=dict(kind="sf_cavp"), base=dict(features=("clip",))),
        fast=dict(encoders=dict(kind="sf_cavp"), base=dict(features=("sync",))),
        deeper=dict(base=dict(depth=2)), joined=dict(augment=dict(concat=0.5)),
        second=dict(encoders=dict(kind="second_sf_cavp")),
        second_shorter=dict(encoders=dict(kind="second_sf_cavp"), sf_cavp=dict(steps=1)),
    )
    cells = {cell.name: cell.config(config) for cell in sweep.cells_of(config)}
    made = {name: Run.create(changed, tmp_path / "cells" / name) for name, changed in cells.items()}
    shared = Run.create(cells["baseline"], tmp_path)
    places = {name: sweep.place(made[name], plan(cells[name]), shared, plan(shared.config)).places for name in cells}
    assert places["deeper"] == places["baseline"] and places["baseline"]["extract"] == tmp_path / "extract"
    assert places["slow"]["extract"] == places["fast"]["extract"] != places["joined"]["extract"] != tmp_path / "extract"
    for name in ("prepare", "codec", "judge"):
        assert {places[cell][name] for cell in cells} == {tmp_path / name}
    assert {cell for cell in cells if places[cell]["sf_cavp"] != tmp_path / "sf_cavp"} == {"second_shorter"}
    assert len({places[cell]["encoders"] for cell in ("baseline", "slow", "second", "second_shorter")}) == 4
    assert places["joined"]["encoders"] == tmp_path / "encoders" != places["slow"]["encoders"]
    assert "base" not in places["slow"]  # a cell's own


def test_groups_of_clips():
    def record(caption, *kinds):
        events = np.full((4, 3), -1.0, np.float32)
        events[: len(kinds), 0] = kinds
        return {"caption": caption, "events": events}

    found = groups([record("wood", 0, 0), record("wood, then lamp", 0, 4), record("a, b and c", 0, 1, 2)])
    assert found == {"all": [0, 1, 2], "transition": [1], "1_source": [0], "2_sources": [1], "3_sources": [2]}


def test_means_over_seeds_and_differences_of_equal_seeds(tmp_path):
    def write(cell, seed, f1):
        path = tmp_path / "cells" / cell / f"seed_{seed}" / "event_metrics" / event_metrics.FILE
        path.parent.mkdir(parents=True)
        row = {"fd_judge": 1.0, "all": {"clips": 5, "event_f1": f1}}
        path.write_text(json.dumps({"rows": [{"guidance": 2.0} | row], "reconstructed": row}))

    config = replace(study(better=dict(base=dict(depth=2)), broken=dict(base=dict(depth=3))), seeds=(0, 1))
    for seed, (base, better) in enumerate([(0.1, 0.4), (0.3, 0.4)]):
        write("baseline", seed, base)
        write("better", seed, better)
    results = sweep.summary(config, tmp_path, sweep.cells_of(config), {"broken": "it fell"})
    baseline, cell = results["cells"]
    assert baseline["differences"] == {} and baseline["metrics"]["all/event_f1"]["mean"] == pytest.approx(0.2)
    assert baseline["metrics"]["all/event_f1"]["error"] == pytest.approx(0.1)
    assert cell["differences"]["all/event_f1"] == pytest.approx({"mean": 0.2, "error": 0.1})
    table = sweep.format_table(results)
    assert "| axis | better | 2 | 0.400 ± 0.000 |" in table and "| +0.200 ± 0.100 |" in table
    assert "broken failed: it fell" in table and "\n\n\n" not in table


def test_doctest():
    assert doctest.testmod(sweep).failed == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes_cache):
    """A sweep with a cell of every kind, and the config that made it."""
    config = study(
        joint=dict(encoders=dict(kind="joint"), base=dict(features=("clip",))),
        filtered=dict(base=dict(keep_share=0.5)),
        joined=dict(augment=dict(concat=0.25, speed=0.25), base=dict(features=("sync", "motion"))),
        failing=dict(base=dict(keep_share=0.01)),
    )
    config = replace(config, data=dict(cache=str(scenes_cache)), seeds=(0, 1))
    workdir = tmp_path_factory.mktemp("sweep")
    programs.run(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_a_sweep_makes_every_cell_and_goes_on_after_one_that_fails(finished):
    _, workdir = finished
    results = json.loads((workdir / "results.json").read_text())
    assert [cell["name"] for cell in results["cells"]] == ["baseline", "joint", "filtered", "joined"]
    assert results["failed"].keys() == {"failing"} and "keep_share" in results["failed"]["failing"]
    for cell in results["cells"]:
        assert 0 <= cell["metrics"]["all/event_f1"]["mean"] <= 1 and cell["metrics"]["fd_judge"]["error"] is not None
    assert (workdir / "table.md").read_text().count("| joint |") == 2
    shared = {path.parent.name for path in workdir.glob("*/run.json")}
    assert shared == {"prepare", "codec", "judge", "encoders", "extract", "sf_cavp", "alignment"}
    variants = sorted(path.parent.name.split("_")[0] for path in workdir.glob("variants/*/run.json"))
    assert variants == ["encoders", "extract", "extract"]


@pytest.mark.slow
def test_a_finished_cell_is_not_made_again(finished):
    config, workdir = finished
    records = (path for path in workdir.rglob("cells/*/seed_*/*/run.json") if "failing" not in str(path))
    before = {path: path.stat().st_mtime_ns for path in records}
    programs.run(config, workdir)
    assert before and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["joint", "joined"])
def test_a_cell_can_be_generated_from(finished, cell):
    _, workdir = finished
    made = loading.load_checkpoint(workdir / "cells" / cell / "seed_0" / "base")
    assert made.solver["solver"] == "dpm_solver"
    frames = np.random.default_rng(0).integers(0, 256, (100, 24, 24, 3), np.uint8)
    conditions = made.encode([(frames[:80], frames[:20])])
    latents = made.sample(conditions, made.noise(0, "clip", 40), steps=2, guidance_scale=2.0)
    assert latents.shape == (40, 32) and np.isfinite(latents).all()
    assert made.decode(latents).shape == (TINY.audio_samples,)
    doubled = dataclasses.replace(made).encode([(frames[:80], frames[:20])] * 2)
    assert made.sample(doubled, made.noise(0, "clip", 60), steps=2, guidance_scale=2.0).shape == (60, 32)
