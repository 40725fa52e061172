"""Settings that contradict each other are refused in one sentence that names field and remedy."""

from jax.sharding import AbstractMesh
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.clip import TINY
from msg_jax.config.schema import Config
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.infra.record import RECORD
from msg_jax.methods import AvpRpo, ContinueFlow, Merge
from msg_jax.programs import checks, stages
from msg_jax.programs.plan import plan
from msg_jax.recipes import presets, runs
from msg_jax.run.run import Run


def refusal(config):
    with pytest.raises(UserError) as caught:
        checks.check(config())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("base", "words"), [
    (dict(objective="score"), ["config.base.objective='score'", "'flow', 'diffusion'"]),
    (dict(network="unet"), ["config.base.network='unet'", "'cross_attention'"]),
    (dict(network="mmdit"), ["config.base.features", "'text'"]),
    (dict(network="mmdit", features=("clip", "sync", "text"), positions=False), ["config.base.positions=False", "True"]),
    (dict(network="mmdit", features=("clip", "sync", "text"), pooled_tokens=2), ["config.base.pooled_tokens=2", "0"]),
    (dict(network="mmdit", features=("clip", "sync", "text"), modality_tokens=2), ["config.base.modality_tokens=2", "0"]),
    (dict(modality_tokens=-1), ["config.base.modality_tokens=-1", "0 or more"]),
    (dict(features=("clip", "smell")), ["config.base.features='smell'", "'motion'"]),
    (dict(features=()), ["config.base.features is empty"]),
    (dict(diffusion=dict(solver="euler")), ["config.base.diffusion.solver='euler'", "'ddim'"]),
    (dict(diffusion=dict(prediction="velocity")), ["config.base.diffusion.prediction='velocity'", "'v'"]),
    (dict(lora_rank=4), ["config.base.lora_rank=4"]),
    (dict(steps=0), ["config.base.steps=0", "config.base.initial=released"]),
])
def test_a_network_or_objective_that_does_not_fit_is_refused(base, words):
    sentence = refusal(lambda: replace(runs.vta_ldm("smoke"), base=base))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(("changes", "words"), [
    (dict(arms={"avp_rpo": AvpRpo()}), ["config.base.objective=diffusion", "config.arms (avp_rpo)"]),
    (dict(arms={"avp_rpo": AvpRpo()}, base=dict(objective="flow"), augment=dict(concat=0.5)), ["config.augment", "avp_rpo"]),
    (dict(encoders=dict(kind="joint"), base=dict(network="mmdit", features=("clip", "sync", "text"))),
     ["config.encoders.kind=joint", "config.base.network=cross_attention"]),
    (dict(extract=dict(motion=False), base=dict(features=("motion",))), ["config.base.features", "config.extract.motion=True"]),
    (dict(extract=dict(flow_grid=4, motion=False)), ["config.extract.flow_grid=4", "config.extract.motion=True"]),
    (dict(data=dict(source="")), ["config.data.source is not given", "--config.data.source=folder:PATH"]),
    (dict(variant="small_16k", codec=dict(kind="released")), ["config.clip does not fit the released small_16k"]),
    (dict(sampling=dict(guidance_projection=-0.1)), ["config.sampling.guidance_projection=-0.1 is not a share"]),
    (dict(sampling=dict(guidance_rescale=2.0)), ["config.sampling.guidance_rescale=2.0 is not a share"]),
    (dict(arms={"avp_rpo": AvpRpo(start="soup")}), ["config.arms.avp_rpo.start='soup'"]),
])
def test_sections_that_contradict_each_other_are_refused(changes, words):
    sentence = refusal(lambda: replace(runs.vta_ldm("smoke"), **changes))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("preset", ["tiny", "tiny_study", "smoke"])
@pytest.mark.parametrize("recipe", [runs.avp_rpo, runs.base, runs.sf_cavp, runs.sync_dpo, runs.joint, runs.reward_study])
def test_recipes_pass(recipe, preset):
    checks.check(recipe(preset))


@pytest.mark.parametrize("recipe", [runs.avp_rpo, runs.student])
def test_the_demo_is_a_shorter_tiny(recipe):
    demo, tiny = recipe("demo"), recipe("tiny")
    checks.check(demo)
    sections = ("judge", "second_judge", "encoders", "sf_cavp", "sound_events", "base", "preference")
    assert all(getattr(demo, name).steps < getattr(tiny, name).steps for name in sections)
    assert demo.clip == tiny.clip and demo.base.hidden == tiny.base.hidden


@pytest.mark.parametrize(("changes", "words"), [
    (dict(), None),
    (dict(preference=dict(batch_size=8)), "config.preference.batch_size=8 cannot be split over 16 devices.* multiple of 16"),
    (dict(preference=dict(batch_size=8), arms={"continue_cfm": ContinueFlow()}), None),  # it takes batches of 32
    (dict(preference=dict(batch_size=6), arms={"continue_cfm": ContinueFlow()}),
     "config.preference.batch_size=6 .* multiple of 4"),
    (dict(arms={"avp_rpo": AvpRpo(changes=dict(batch_size=24))}), "config.arms.avp_rpo.changes.batch_size=24 .* of 16"),
    (dict(arms={"half": Merge(shares={"avp_rpo": 0.5})}, preference=dict(batch_size=8)), None),
    (dict(base=dict(accumulate=4)), "config.base.batch_size=32 .*, in accumulate=4 micro-batches: .* multiple of 64"),
    (dict(encoders=dict(batch_size=40, kind="separate")), "config.encoders.batch_size=40"),
    (dict(encoders=dict(batch_size=40, kind="joint")), None),
    (dict(judge=dict(batch_size=8)), "config.judge.batch_size=8"),
    (dict(judge=dict(batch_size=8), data=dict(source="folder:videos")), None),
])
def test_batches_that_the_mesh_cannot_split_are_refused_at_the_start(changes, words):
    mesh = AbstractMesh((4, 4, 2), ("data", "fsdp", "tensor"))
    config = replace(runs.avp_rpo("tiny"), arms={"avp_rpo": AvpRpo()})
    config = replace(config, **changes)
    stages = set(plan(config))
    if words is None:
        checks.check_batches(config, stages, mesh)
    else:
        with pytest.raises(UserError, match=words):
            checks.check_batches(config, stages, mesh)


def test_a_run_stops_at_once_unless_the_stage_is_finished(tmp_path):
    config = replace(runs.avp_rpo("smoke"), preference=dict(batch_size=12), stages=("avp_rpo",), arms={"avp_rpo": AvpRpo()})
    with pytest.raises(UserError, match=r"config.preference.batch_size=12 cannot be split over 8 devices"):
        stages.run(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "avp_rpo").mkdir()
    (tmp_path / "avp_rpo" / RECORD).write_text('{"finished": true}')
    run = Run.create(config, tmp_path)
    assert stages._is_finished(run, plan(config)["avp_rpo"]) and not stages._is_finished(run, plan(config)["base"])


def test_network_and_objective_are_independent():
    checks.check(replace(runs.base("tiny"), base=dict(objective="diffusion")))
    checks.check(replace(runs.vta_ldm("tiny"), base=dict(objective="flow")))


def test_the_default_is_mmdit_with_flow_matching():
    config = Config()
    checks.check(config)
    assert networks.diffusion(config) is None
    assert networks.solver(config) == {"guidance_rescale": 0.0, "guidance_projection": 0.0, "time_shift": 0.0}
    nearer = networks.solver(replace(config, sampling=dict(time_shift=-1.0)))
    assert nearer["time_shift"] == -1
    assert type(networks.generator(config, TINY, dict(clip=1, sync=1, text=1), np.float32)).__name__ == "MMDiT"
    assert presets.get("tiny").base == config.base
