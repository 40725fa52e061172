"""The configuration tree: conversions, checked changes, and what is refused."""

import dataclasses
import doctest
import json

import pytest

from msg_jax import tables
from msg_jax.config import tree
from msg_jax.config.schema import Config, FolderEvaluation, Preference
from msg_jax.errors import UserError
from msg_jax.methods import KINDS, AvpRpo, Merge, SyncDpo
from msg_jax.recipes import presets, runs

CASES = [
    (name, preset) for name in runs.RECIPES for preset in presets.PRESETS
    if name != "evaluate" and (preset in runs.VTA_LDM_PRESETS or not name.startswith("vta_ldm"))
    and (preset in runs.JOINT_PRESETS or name != "joint")
]
CASES += [("evaluate", ""), ("evaluate", "compare")]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_from_dict_is_the_inverse_of_to_dict(name, preset):
    config = runs.RECIPES[name](preset)
    values = json.loads(json.dumps(tree.to_dict(config)))
    assert tree.from_dict(type(config), values, KINDS) == config


def test_an_arm_s_dict_has_its_kind_and_an_arm_keeps_its_type():
    config = tree.replace(Config(), arms={"a": AvpRpo(winner="real"), "b": Merge(shares={"a": 0.5})})
    values = tree.to_dict(config)["arms"]
    assert values["a"]["kind"] == "avp_rpo" and values["a"]["winner"] == "real"
    assert values["b"] == {"kind": "merge", "start": "base", "changes": {}, "label": "", "note": "", "shares": {"a": 0.5}}
    arms = tree.from_dict(Config, {"arms": values}, KINDS).arms
    assert [type(arm) for arm in arms.values()] == [AvpRpo, Merge] and arms == config.arms


def test_missing_fields_keep_their_defaults_and_without_kinds_there_are_no_arms():
    assert tree.from_dict(Config, {}) == Config()
    found = tree.from_dict(Config, {"base": {"hidden": 8}, "arms": {"a": {"kind": "unknown"}}})
    assert found == tree.replace(Config(), base=dict(hidden=8)) and found.arms == {}


# What is converted


def test_a_whole_number_given_for_a_float_becomes_a_float():
    config = tree.from_dict(Config, {"reward": {"window": 3}, "evaluate": {"guidance_scales": [1, 2.5]}})
    assert config.reward.window == 3.0 and type(config.reward.window) is float
    assert config.evaluate.guidance_scales == (1.0, 2.5) and type(config.evaluate.guidance_scales[0]) is float


def test_lists_become_tuples():
    config = tree.from_dict(Config, {"seeds": [1, 2], "base": {"features": ["clip", "motion"]}, "mesh": [-1, 2, 1]})
    assert (config.seeds, config.base.features, config.mesh) == ((1, 2), ("clip", "motion"), (-1, 2, 1))
    shares = tree.from_dict(Config, {"arms": {"a": {"kind": "merge", "shares": {"b": 1}}}}, KINDS).arms["a"].shares
    assert shares == {"b": 1.0} and type(shares["b"]) is float
    cells = tree.from_dict(Config, {"sweep": {"cells": {"axis": {"one": {"base": {"features": ["clip"]}}}}}}).sweep.cells
    assert cells == {"axis": {"one": {"base": {"features": ("clip",)}}}}


def test_replace_changes_the_named_fields_of_a_section_only():
    config = tree.replace(Config(), base=dict(hidden=8, optimizer=dict(b2=0.5)), arms={"a": AvpRpo()})
    assert config.base == dataclasses.replace(
        Config().base, hidden=8, optimizer=dataclasses.replace(Config().base.optimizer, b2=0.5)
    )
    assert config.arms == {"a": AvpRpo()} and dataclasses.replace(config, base=Config().base, arms={}) == Config()
    assert Config().base.hidden == 96


def test_an_arm_s_changes_are_those_of_its_preference_section_alone():
    arms = {"a": SyncDpo(changes=dict(steps=3, optimizer=dict(b1=0.5))), "b": SyncDpo()}
    config = tree.replace(Config(), preference=dict(beta=7.0), arms=arms)
    default = dataclasses.replace(Preference(), beta=7.0)
    changed = dataclasses.replace(default, steps=3, optimizer=dataclasses.replace(default.optimizer, b1=0.5))
    assert (tree.preference_of(config, "a"), tree.preference_of(config, "b")) == (changed, default)


# What is refused


@pytest.mark.parametrize(("values", "sentence"), [
    ({"bass": {}}, "config has no field bass: did you mean base?"),
    ({"base": {"hiden": 3}}, "config.base has no field hiden: did you mean hidden?"),
    ({"base": {"optimizer": {"learning-rate": 1.0}}},
     "config.base.optimizer has no field learning-rate: did you mean learning_rate?"),
    ({"clip": {"mel": {"band": 3}}}, "config.clip.mel has no field band: did you mean bands?"),
    ({"data": {"xyz": 3}}, "config.data has no field xyz."),
    ({"arms": {"a": {"kind": "avp_rpo", "winer": "real"}}}, "config.arms.a has no field winer: did you mean winner?"),
    ({"reward_study": {"rewards": {"r": {"wights": {}}}}},
     "config.reward_study.rewards.r has no field wights: did you mean weights?"),
])
def test_an_unknown_field_is_named_with_its_path_and_the_closest_one(values, sentence):
    with pytest.raises(UserError) as error:
        tree.from_dict(Config, values, KINDS)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("values", "sentence"), [
    ({"seed": "3"}, "config.seed='3' is not of the type int."),
    ({"seed": 3.0}, "config.seed=3.0 is not of the type int."),
    ({"seed": True}, "config.seed=True is not of the type int."),
    ({"seed": None}, "config.seed=None is not of the type int."),
    ({"base": {"v2": 1}}, "config.base.v2=1 is not of the type bool."),
    ({"base": {"ema_decay": "0.9"}}, "config.base.ema_decay='0.9' is not of the type float."),
    ({"base": {"ema_decay": True}}, "config.base.ema_decay=True is not of the type float."),
    ({"base": 3}, "config.base=3 is not of the type Base."),
    ({"weights": 3}, "config.weights=3 is not of the type str."),
    ({"seeds": 3}, "config.seeds=3 is not of the type tuple[int, ...]."),
    ({"seeds": [0, "1"]}, "config.seeds='1' is not of the type int."),
    ({"arms": {"a": {"kind": "merge", "shares": {"b": "half"}}}}, "config.arms.a.shares.b='half' is not of the type float."),
])
def test_a_value_of_the_wrong_type_is_named_with_its_path(values, sentence):
    with pytest.raises(UserError) as error:
        tree.from_dict(Config, values, KINDS)
    assert str(error.value) == sentence


def test_a_mapping_is_needed_where_the_field_is_one():
    with pytest.raises(UserError, match=r"^config\.sweep\.cells=3 is not of the type .*Mapping"):
        tree.from_dict(Config, {"sweep": {"cells": 3}})


@pytest.mark.parametrize(("values", "sentence"), [
    ({"base": {"network": "unet"}},
     "config.base.network='unet' is not a choice: use one of 'mmdit', 'cross_attention', 'joint'."),
    ({"base": {"features": ["clip", "smell"]}},
     "config.base.features='smell' is not a choice: use one of 'clip', 'sync', 'text', 'motion'."),
    ({"arms": {"a": {"kind": "sync_dpo", "curriculum": "steep"}}},
     "config.arms.a.curriculum='steep' is not a choice: use one of 'linear', 'uniform'."),
])
def test_a_wrong_choice_is_named_beside_the_right_ones(values, sentence):
    with pytest.raises(UserError) as error:
        tree.from_dict(Config, values, KINDS)
    assert str(error.value) == sentence


@pytest.mark.parametrize("arm", [{"kind": "magic"}, {}, "magic"])
def test_an_arm_of_an_unknown_kind_is_named(arm):
    words = r"^config\.arms\.a\.kind=('magic'|None) is not a method: use one of avp_rpo, sync_dpo, .*, awm\.$"
    with pytest.raises(UserError, match=words):
        tree.from_dict(Config, {"arms": {"a": arm}}, KINDS)


def test_replace_refuses_what_from_dict_refuses():
    for changes, sentence in (
        (dict(base=dict(hiden=3)), r"config\.base has no field hiden: did you mean hidden"),
        (dict(base=dict(hidden="3")), r"config\.base\.hidden='3' is not of the type int"),
        (dict(codec=dict(kind="mp3")), r"config\.codec\.kind='mp3' is not a choice"),
    ):
        with pytest.raises(UserError, match=sentence):
            tree.replace(Config(), **changes)
    with pytest.raises(UserError, match=r"^config\.arms\.a\.changes has no field step: did you mean steps"):
        tree.preference_of(tree.replace(Config(), arms={"a": SyncDpo(changes=dict(step=3))}), "a")
    with pytest.raises(UserError, match=r"^config has no field thread: did you mean threads\?$"):
        tree.replace(FolderEvaluation(), thread=3)


def test_a_config_is_read_only():
    config = runs.avp_rpo("smoke")
    for section, field in ((config, "seed"), (config.base, "hidden"), (config.base.optimizer, "b1"), (config.clip, "video_px"),
                           (config.arms["avp_rpo"], "winner"), (config.reward_study.rewards["reward"], "sf_cavp")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, field, 3)


def test_doctests():
    for module in (tree, tables):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed, module
