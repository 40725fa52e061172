"""Settings that contradict each other are refused in one sentence that names field and remedy."""

import numpy as np
import pytest

from msg_jax import networks
from msg_jax.clip import TINY
from msg_jax.config.schema import Config
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.methods import AvpRpo
from msg_jax.programs import checks
from msg_jax.recipes import presets, runs


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
    (dict(data=dict(source="")), ["config.data.source is not given", "--config.data.source=folder:PATH"]),
    (dict(variant="small_16k", codec=dict(kind="released")), ["config.clip does not fit the released small_16k"]),
    (dict(arms={"avp_rpo": AvpRpo(start="soup")}), ["config.arms.avp_rpo.start='soup'"]),
])
def test_sections_that_contradict_each_other_are_refused(changes, words):
    sentence = refusal(lambda: replace(runs.vta_ldm("smoke"), **changes))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("preset", ["tiny", "tiny_study", "smoke"])
@pytest.mark.parametrize("recipe", [runs.avp_rpo, runs.base, runs.sf_cavp, runs.sync_dpo, runs.reward_study])
def test_recipes_pass(recipe, preset):
    checks.check(recipe(preset))


def test_network_and_objective_are_independent():
    checks.check(replace(runs.base("tiny"), base=dict(objective="diffusion")))
    checks.check(replace(runs.vta_ldm("tiny"), base=dict(objective="flow")))


def test_the_default_is_mmdit_with_flow_matching():
    config = Config()
    checks.check(config)
    assert networks.diffusion(config) is None and networks.solver(config) == {}
    assert type(networks.generator(config, TINY, dict(clip=1, sync=1, text=1), np.float32)).__name__ == "MMDiT"
    assert presets.get("tiny").base == config.base
