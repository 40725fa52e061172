"""python tests/mutants.py [--only=WORDS] [--json=FILE]

Break one line of the code at a time, in a copy, and check that a fast test fails.

A mutant is killed if the tests that guard its line fail. Exits with code 1 if a mutant survives, if its line is no longer in
the code, or if its tests fail on the code as it is.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ("msg_jax", "tests", "configs", "benchmarks", "docs", "pyproject.toml")
DID_FAIL = 1  # pytest's exit code where a test failed


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`before` becomes `after` in `path`, at its only place; `tests` are the tests that must notice."""

    name: str
    path: str
    before: str
    after: str
    tests: str


LOSSES, ROUNDS = "tests/tasks/test_losses.py", "tests/methods/test_ranked.py"
SAMPLER, SAMPLING = "tests/inference/test_sampler.py", "tests/inference/test_sampling.py"
REWARD, CONTRASTIVE = "tests/preference/test_reward.py", "tests/losses/test_contrastive.py"
SAMPLING_CODE = "msg_jax/inference/sampling.py"
FETCH = "tests/convert/test_fetch.py"
VGGSOUNDER = "tests/data/test_vggsounder.py"
PREFERENCE = "msg_jax/tasks/preference.py"
RANKED = "msg_jax/methods/ranked.py"
ROUND = "msg_jax/methods/rounds.py"
VALIDATION, PICKED = "msg_jax/methods/validation.py", "tests/methods/test_validation.py"
FLOW = "msg_jax/tasks/flow.py"

MUTANTS = (
    # Steps on a CPU
    Mutant("a step on a CPU gives its memory back", "msg_jax/infra/runtime.py", "_set_heap(_M_MMAP_MAX, 0)",
           "_set_heap(_M_MMAP_MAX, 9)", "tests/infra/test_processes.py -k finds_the_memory"),
    Mutant("frames are normalised around zero", "msg_jax/models/slowfast.py", "jnp.maximum(square - jnp.square(mean), 0)",
           "square", "tests/models/test_slowfast.py -k normalised"),
    # Downloads and the app
    Mutant("a damaged download is accepted", "msg_jax/convert/fetch.py",
           'checked, right = "SHA-256", sha256 == file.sha256', 'checked, right = "SHA-256", True', FETCH),
    Mutant("a download is continued with another file", "msg_jax/convert/fetch.py",
           '(etag, total, _begin(response)) != (note.get("etag"), note.get("bytes"), size)',
           '_begin(response) != size', FETCH),
    Mutant("a result is served to everybody", "msg_jax/app/studio.py",
           "if outcome is None or not secrets.compare_digest(outcome.session.encode(), session.encode()):",
           "if outcome is None:", "tests/app/test_studio.py"),
    Mutant("a cancelled job goes on", "msg_jax/app/jobs.py", "job._cancelled.set()", "pass", "tests/app/test_jobs.py"),
    # Directions
    Mutant("the worst of several is kept", "msg_jax/inference/generate.py", "best = int(np.argmax(rewards))",
           "best = int(np.argmin(rewards))", "tests/inference/test_generate.py -k best"),
    Mutant("a window looks across a cut", "msg_jax/inference/generate.py",
           "held.append(pictures[np.clip(np.arange(len(pictures)), low, high)])", "held.append(pictures)",
           "tests/inference/test_generate.py -k cut"),
    Mutant("a part's sound begins at the video's start", "msg_jax/inference/generate.py",
           "start_sec = part.start_sec + window.start / clip.latent_hz", "start_sec = window.start / clip.latent_hz",
           "tests/inference/test_generate.py -k part_of"),
    Mutant("guidance is rescaled the wrong way", SAMPLING_CODE, "change + rescale * (ratio - 1) * data",
           "change + rescale * (1 - ratio) * data", SAMPLING),
    Mutant("guidance keeps the wrong part", SAMPLING_CODE, "change = -projection * _along", "change = projection * _along",
           SAMPLING),
    Mutant("streams are projected together", SAMPLING_CODE, "cuts = np.cumsum(streams)[:-1]", "cuts = []", SAMPLING),
    Mutant("candidates are not rescaled", "msg_jax/inference/sampler.py", "guidance_scale=guidance_scale, **solver,",
           "guidance_scale=guidance_scale,", SAMPLER),
    Mutant("DeSync prefers the later sound", "msg_jax/inference/ranking.py", "scores.append(-self._network",
           "scores.append(self._network",
           "tests/inference/test_desync.py"),
    Mutant("a cue reaches beyond its span", SAMPLING_CODE, "ramp * np.clip(0.5 + inside / max(2 * fade, 1), 0, 1)", "ramp",
           SAMPLING),
    Mutant("all windows have the first negative text", SAMPLING_CODE,
           "nulls = [null(chunk) for chunk in chunks(negative_text, windows_at_once)]",
           "nulls = [null(negative_text[:1])] * len(processed)", SAMPLING),
    Mutant("peaks are left above the ceiling", "msg_jax/data/level.py",
           'lowest = ndimage.minimum_filter1d(allowed, size, mode="nearest")', "lowest = allowed", "tests/data/test_level.py"),
    # Judges and costs
    Mutant("a control ignores the arm that it matches", "msg_jax/methods/continue_flow.py",
           "steps=max(1, round((matched - spent) / operations.of_step(self.task(given))))", "steps=section.steps",
           "tests/methods/test_controls.py"),
    Mutant("a control forgets what its start has cost", "msg_jax/methods/continue_flow.py", "(matched - spent)", "matched",
           "tests/methods/test_controls.py"),
    # Test sets
    Mutant("a general name counts beside its kind", "msg_jax/data/vggsounder.py",
           "return names - {kinds[name] for name in names if name in kinds}", "return names", f"{VGGSOUNDER} -k once"),
    Mutant("a video with music is chosen", "msg_jax/data/multi_event.py", 'if "True" in flags:', 'if "True" in flags[1:]:',
           f"{VGGSOUNDER} -k hand"),
    Mutant("a visible duck is an unseen bird", "msg_jax/data/vggsounder.py", "if event not in seen | general and",
           "if event not in seen and", f"{VGGSOUNDER} -k visible"),
    # The preference loss
    Mutant("the loss prefers the loser", "msg_jax/losses/preference.py",
           "return -(beta / 2) * (winner_change - loser_change)", "return (beta / 2) * (winner_change - loser_change)",
           "tests/losses/test_preference.py"),
    Mutant("the task swaps winner and loser", PREFERENCE,
           "sides = interleave(pairs.winner, pairs.loser)", "sides = interleave(pairs.loser, pairs.winner)", LOSSES),
    Mutant("the loser gets other noise", PREFERENCE, "interleave(noise, noise)", "interleave(noise, -noise)", LOSSES),
    Mutant("the loser gets another t", PREFERENCE, "interleave(t, t),", "interleave(t, 1 - t),", LOSSES),
    Mutant("the reference gets other noise", PREFERENCE,
           "[self.errors(each, pairs, noise, t, section.dpo_guidance) for each in (policy, frozen[\"reference\"])]",
           "[self.errors(each, pairs, s * noise, t, section.dpo_guidance) for s, each in "
           "((1, policy), (-1, frozen[\"reference\"]))]", LOSSES),
    Mutant("the policy is its own reference", PREFERENCE,
           "for each in (policy, frozen[\"reference\"])]", "for each in (policy, policy)]", LOSSES),
    Mutant("policy and reference are swapped", PREFERENCE,
           "PairErrors(*sides[0], *sides[1])", "PairErrors(*sides[1], *sides[0])", LOSSES),
    Mutant("the guidance of the loss is ignored", PREFERENCE,
           "pairs, noise, t, section.dpo_guidance)", "pairs, noise, t)", LOSSES),
    Mutant("no anchor on the winner", PREFERENCE,
           "section.winner_weight * winner.mean() + section", "section", LOSSES),
    Mutant("no anchor on real sound", PREFERENCE, "+ section.real_weight * real", "", LOSSES),
    Mutant("the anchor is the loser", PREFERENCE,
           "winner = sides[0][0] if", "winner = sides[0][1] if", LOSSES),
    # Rounds and pairs
    Mutant("later rounds sample the first model", ROUND,
           "self.pool.fill(pool_folder, number, variables)",
           "self.pool.fill(pool_folder, number, job.load(self.method.start))", ROUNDS),
    Mutant("later rounds use the first candidates", ROUND,
           "if number > 0 or self.method.samples_itself():", "if self.method.samples_itself():", ROUNDS),
    Mutant("later rounds start from the first model", ROUND,
           "job.seed, variables, dims, name", "job.seed, job.load('base'), dims, name", ROUNDS),
    Mutant("the stop rule is off", ROUND, "if self.section.stop_at_real and", "if False and", ROUNDS),
    Mutant("the stop rule cannot be switched off", ROUND, "if self.section.stop_at_real and", "if", ROUNDS),
    Mutant("every round has the same clips", "msg_jax/methods/candidates.py",
           "default_rng((self.seed, number)).permutation", "default_rng(self.seed).permutation", ROUNDS),
    Mutant("captions in pairs that were sampled without", PREFERENCE,
           "processed(self.as_sampled(pairs.conditions, variables)),", "processed(pairs.conditions),", LOSSES),
    Mutant("the loser is the best candidate", RANKED,
           "latents[self.pairs.worst[row], steps]}", "latents[self.pairs.best[row], steps]}", ROUNDS),
    Mutant("features of another clip", RANKED,
           "item, latents = self.features[self.indices[i]],", "item, latents = self.features[i],", ROUNDS),
    Mutant("the paper's winner is a candidate", RANKED, "if self.winner == \"real\":", "if self.winner == \"\":", ROUNDS),
    Mutant("the reward of steps has the wrong sign", "msg_jax/methods/avp_rpo.py",
           "return step_rewards", "return -step_rewards", ROUNDS),
    Mutant("the reward of candidates has the wrong sign", "msg_jax/methods/avp_rpo.py",
           "return scores[..., SCORES.index(\"reward\")]", "return -scores[..., SCORES.index(\"reward\")]", ROUNDS),
    Mutant("DeSync rewards what is late", "msg_jax/inference/scorer.py",
           "offsets[place] = -self._network", "offsets[place] = self._network", "tests/inference/test_scorer.py"),
    Mutant("the weight of DeSync is ignored", "msg_jax/inference/scorer.py",
           "weights.desync * offsets[..., None]", "offsets[..., None]", "tests/inference/test_scorer.py"),
    Mutant("segments count at other moments", "msg_jax/inference/scorer.py",
           "(np.append(cosines[:1], cosines) + np.append(cosines, cosines[-1:])) / 2", "np.append(cosines, cosines[-1:])",
           "tests/inference/test_scorer.py"),
    Mutant("a network is picked by its reward", VALIDATION, 'for name in ("event_f1", "held_out_reward"):',
           'for name in ("reward",):', f"{PICKED} -k asked"),
    Mutant("the worst network is picked", "msg_jax/methods/picked.py", "if unrewarded(row) > max(map(unrewarded, rows)):",
           "if unrewarded(row) < max(map(unrewarded, rows)):", f"{PICKED} -k picked"),
    Mutant("shares count from the round before", "msg_jax/methods/picked.py", "add_scale(origin, share, change)",
           "add_scale(picked, share, change)", f"{PICKED} -k picked"),
    Mutant("every clip of a video counts for the stop rule", VALIDATION,
           "name.rpartition(\"@\")[0] or name", "name", "tests/methods/test_methods.py"),
    Mutant("random pairs follow their own reward", "msg_jax/methods/random_pairs.py",
           "np.roll(step_rewards, 1, axis=0)", "step_rewards", ROUNDS),
    Mutant("the oracle ranks by errors, not against them", "msg_jax/methods/oracle.py",
           "return -step_errors", "return step_errors", ROUNDS),
    Mutant("pairs with small gaps are kept", "msg_jax/preference/pairs.py",
           "np.argsort(-gap, kind=\"stable\")", "np.argsort(gap, kind=\"stable\")", "tests/preference/test_pairs.py"),
    Mutant("a join costs nothing", "msg_jax/preference/pairs.py",
           "cost, rows, stay = join_cost * steps,", "cost, rows, stay = 0 * steps,", "tests/preference/test_pairs.py"),
    # The reward and SF-CAVP
    Mutant("the reward leaves the windows out", "msg_jax/models/sf_cavp.py",
           "\"window\": jnp.sum(video.local * audio.local, axis=-1).mean(axis=1),",
           "\"window\": 0 * jnp.sum(video.local * audio.local, axis=-1).mean(axis=1),", REWARD),
    Mutant("the rewards of steps leave the windows out", "msg_jax/preference/reward.py",
           "+ weights.window * windows @ spread", "", REWARD),
    Mutant("the windows at the ends count more", "msg_jax/preference/reward.py",
           "spread = in_window / in_window.mean(axis=1, keepdims=True) / len(in_window)",
           "spread = in_window / in_window.sum(axis=0)", REWARD),
    Mutant("the events term has the wrong sign", "msg_jax/preference/reward.py",
           "weights.events * (1 - steps", "weights.events * (1 + steps", REWARD),
    Mutant("no lagged negatives", "msg_jax/losses/contrastive.py", "if extra is not None:", "if False:", CONTRASTIVE),
    Mutant("negatives of one device only", "msg_jax/losses/contrastive.py",
           "keys = key if axis_name is None else lax.all_gather(key, axis_name, tiled=True)",
           "keys = key if axis_name is None else jnp.tile(key, (lax.axis_size(axis_name), 1))", CONTRASTIVE),
    Mutant("one direction of the contrast only", "msg_jax/losses/contrastive.py",
           "one_way(video, audio), one_way(audio, video)", "one_way(video, audio), one_way(video, audio)", CONTRASTIVE),
    Mutant("windows are not told apart within a clip", "msg_jax/losses/contrastive.py",
           "return symmetric_info_nce(video.reshape(-1, features), audio.reshape(-1, features), scale, axis_name)",
           "return symmetric_info_nce(video.mean(1), audio.mean(1), scale, axis_name)", CONTRASTIVE),
    Mutant("the parameters of the contrast get no gradient in micro-batches", "msg_jax/train.py",
           "jax.lax.scan(add, direct, (pieces,", "jax.lax.scan(add, jax.tree.map(jnp.zeros_like, direct), (pieces,",
           "tests/test_train.py -k cached"),
    # Flow matching and sampling
    Mutant("the path runs backwards", "msg_jax/losses/flow.py",
           "return (1 - t) * noise + t * data", "return t * noise + (1 - t) * data", "tests/losses/test_flow.py"),
    Mutant("conditions are never dropped", FLOW,
           "conditions = drop_conditions(draws[\"drops\"], conditions, null)", "conditions = conditions", LOSSES),
    Mutant("text is dropped with the video's probability", FLOW,
           "section.condition_dropout, section.text_dropout)", "section.condition_dropout, section.condition_dropout)",
           LOSSES),
    Mutant("latents are not normalised", FLOW,
           "model.apply(variables, latents, method=\"normalize\"), draws", "latents, draws", LOSSES),
    Mutant("the moving average is not used", FLOW,
           "trained = state.params if state.ema_params is None else state.ema_params", "trained = state.params", LOSSES),
    Mutant("the moving average forgets at once", "msg_jax/train.py",
           "old * decay + new * (1 - decay)", "old * (1 - decay) + new * decay", LOSSES),
    Mutant("guidance points the other way", "msg_jax/inference/sampling.py",
           "guidance_scale * towards + (1 - guidance_scale) * away", "guidance_scale * away + (1 - guidance_scale) * towards",
           SAMPLING),
    Mutant("the last step of the solver is dropped", "msg_jax/inference/sampling.py",
           "(times[:-1], times[1:]))[0][0]", "(times[:-2], times[1:-1]))[0][0]", SAMPLING),
    Mutant("candidates get the conditions of other clips", "msg_jax/inference/sampling.py",
           "lambda a: jnp.repeat(a, candidates, axis=0), processed)",
           "lambda a: jnp.tile(a, (candidates,) + (1,) * (a.ndim - 1)), processed)", SAMPLER),
    Mutant("all clips get the same noise", "msg_jax/inference/sampler.py",
           "jax.random.fold_in(root, i)", "jax.random.fold_in(root, 0 * i)", SAMPLER),
    Mutant("samples stay normalised", "msg_jax/inference/sampler.py",
           "latents = model.apply(variables, latents, method=\"unnormalize\")", "latents = latents + 0", SAMPLER),
    Mutant("captions are always used", "msg_jax/inference/sampler.py",
           "conditions if prompts else conditions.replace(text=null.text)", "conditions", SAMPLER),
    # Weighted samples and students
    Mutant("bad samples attract the policy", "msg_jax/losses/advantage.py",
           "reward * positive + (1 - reward) * negative", "reward * positive + (1 - reward) * positive",
           "tests/losses/test_advantage.py"),
    Mutant("the ratio of AWM is not clipped", "msg_jax/losses/advantage.py",
           "jnp.clip(ratio, 1 - clip, 1 + clip) * advantage", "ratio * advantage", "tests/losses/test_advantage.py"),
    Mutant("advantages of one video hold for all", "msg_jax/methods/weighted.py",
           "rewards - rewards.mean(axis=1, keepdims=True)", "rewards - rewards.mean()", "tests/methods/test_weighted.py"),
    Mutant("the old policy is the new one", "msg_jax/tasks/advantage.py",
           "for each in (policy, reference)", "for each in (policy, policy)", LOSSES),
    Mutant("the student learns the teacher without guidance", "msg_jax/tasks/student.py",
           "sampling.guided(velocity, cond, null, self.guidance,", "sampling.guided(velocity, cond, null, 1.0,", LOSSES),
    Mutant("a part of the path has the velocity of a whole", "msg_jax/tasks/student.py",
           "jnp.diff(path, axis=1) / np.diff(times)[:, None, None]", "jnp.diff(path, axis=1)", LOSSES),
    Mutant("shifted times go towards data", "msg_jax/losses/flow.py", "np.exp(-shift)", "np.exp(shift)",
           "tests/inference/test_sampling.py"),
    Mutant("trainings ignore the shift of times", "msg_jax/tasks/flow.py", "count, self.run.config.base.time_shift)", "count)",
           "tests/methods/test_joint_sync_dpo.py"),
    Mutant("windows ignore the shift of times", "msg_jax/inference/sampling.py",
           "pairwise(solver_times(steps, time_shift))", "pairwise(solver_times(steps))", "tests/inference/test_sampling.py"),
    Mutant("strips are guessed one by one", "msg_jax/models/joint_mmdit.py", "turned = _exact(x_t, basis.T)", "turned = x_t",
           "tests/models/test_joint_mmdit.py"),
    Mutant("frames are decoded with the weight of motion", "msg_jax/models/codec.py", "self.frames, 1 / self.motion)",
           "self.frames, self.motion)", "tests/models/test_codec.py"),
    Mutant("a joint row counts its first sample alone", "msg_jax/studies/joint.py",
           "np.sum([each.counts[name] for each in samples], axis=0)", "samples[0].counts[name]",
           "tests/programs/test_joint.py"),
    Mutant("a student is sampled with guidance", "msg_jax/methods/method.py",
           "candidate_guidance=1.0, candidate_steps=own", "candidate_steps=own", "tests/methods/test_methods.py"),
    # SyncDPO, merging, adapters
    Mutant("the curriculum does not move", "msg_jax/preference/distortions.py",
           "jnp.clip(step / max(steps - 1, 1), 0.0, 1.0)", "jnp.clip(0.5, 0.0, 1.0)", "tests/preference/test_distortions.py"),
    Mutant("a shift does nothing", "msg_jax/preference/distortions.py",
           "jnp.arange(len(sequence)) - _sign(key) * _steps(seconds, hz)", "jnp.arange(len(sequence))",
           "tests/preference/test_distortions.py"),
    Mutant("the distorted sound wins", "msg_jax/methods/sync_dpo.py",
           "batch | {\"winner\": real, \"loser\": self.losers(loser_key, real, index, strength), \"rule\": index}",
           "batch | {\"loser\": real, \"winner\": self.losers(loser_key, real, index, strength), \"rule\": index}", LOSSES),
    Mutant("a merge ignores its share", "msg_jax/methods/merge.py",
           "optax.tree.add_scale(merged, share,", "optax.tree.add_scale(merged, 1.0,", "tests/methods/test_controls.py"),
    Mutant("a merge starts from the tuned arm", "msg_jax/methods/merge.py",
           "optax.tree.sub(job.load(name), start)", "job.load(name)", "tests/methods/test_controls.py"),
    Mutant("the control trains on too few clips", "msg_jax/methods/continue_flow.py",
           "batch_size=4 * preference.batch_size", "batch_size=preference.batch_size", "tests/methods/test_controls.py"),
    Mutant("all modalities have the same learnt tokens", "msg_jax/models/cross_attention.py",
           "self.modalities[name].astype", "self.modalities[c.features[0]].astype", "tests/models/test_cross_attention.py"),
    Mutant("V-JEPA 2's pairs turn by one angle", "msg_jax/models/vjepa2.py",
           "np.tile(_ROPE_THETA ** -(np.arange(part // 2) / (part / 2)), 2)",
           "np.repeat(_ROPE_THETA ** -(np.arange(part // 2) / (part / 2)), 2)", "tests/models/test_vjepa2.py"),
    Mutant("phases are pieces of the video", "msg_jax/models/vjepa2.py",
           "reshape(-1, phases).T", "reshape(phases, -1)", "tests/models/test_vjepa2.py"),
    Mutant("adapters are not scaled", "msg_jax/models/lora.py",
           "scale * leaf if path[-1] == \"b\" else leaf", "leaf", "tests/models/test_lora.py"),
    # The evaluation
    Mutant("events are matched greedily", "msg_jax/evaluation/events.py",
           "partner = maximum_bipartite_matching(csr_array(near), perm_type=\"column\")",
           "partner = np.full(len(near), -1)\n"
           "    for row in range(len(near)):\n"
           "        free = [j for j in np.flatnonzero(near[row]) if j not in partner]\n"
           "        partner[row] = free[0] if free else -1", "tests/evaluation/test_events.py"),
    Mutant("the class of an event does not count", "msg_jax/evaluation/events.py",
           "    if class_aware:\n", "    if False:\n", "tests/evaluation/test_events.py"),
    Mutant("the tolerance of 40 ms is the run's", "msg_jax/evaluation/event_metrics.py",
           "events.clip_counts(truth, found, TIMING_SEC)", "events.clip_counts(truth, found, tolerance_sec)",
           "tests/evaluation/test_events.py"),
    Mutant("the bootstrap is not paired", "msg_jax/evaluation/bootstrap.py",
           "pairs = np.concatenate([counts, baseline], axis=1)",
           "pairs = np.concatenate([counts, np.random.default_rng(0).permutation(baseline)], axis=1)",
           "tests/evaluation/test_bootstrap.py"),
    Mutant("the detector hears the level", "msg_jax/evaluation/detector.py",
           "(self.kernel,))(_standardise(mel))", "(self.kernel,))(mel)", "tests/evaluation/test_detector.py"),
    Mutant("the detector learns onsets late", "msg_jax/evaluation/events.py",
           "((centres - onset_sec * frames_hz) / blur_frames)", "((centres - 5 - onset_sec * frames_hz) / blur_frames)",
           "tests/evaluation/test_detector.py"),
)


def copy(folder: pathlib.Path) -> None:
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)


def fails(folder: pathlib.Path, tests: str) -> bool:
    """Whether a test in the copy fails; raises RuntimeError if none ran."""
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, DID_FAIL):
        raise RuntimeError(f"pytest ended with code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == DID_FAIL


def survives(folder: pathlib.Path, mutant: Mutant) -> bool:
    path = folder / mutant.path
    text = path.read_text()
    path.write_text(text.replace(mutant.before, mutant.after))
    try:
        return not fails(folder, mutant.tests)
    finally:
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name or path contains these words")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in f"{mutant.name} {mutant.path}"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy(folder)
        broken = [tests for tests in sorted({mutant.tests for mutant in chosen}) if fails(folder, tests)]
        if broken:
            print(f"These tests fail on the code as it is: {', '.join(broken)}")
            return 1
        for mutant in chosen:
            begun = time.monotonic()
            alive = survives(folder, mutant)
            rows.append({"mutant": mutant.name, "path": mutant.path, "killed": not alive})
            print(f"{'SURVIVES' if alive else 'killed':<9} {time.monotonic() - begun:5.0f} s  {mutant.name}", flush=True)
    alive = sum(not row["killed"] for row in rows)
    print(f"{len(rows) - alive} of {len(rows)} mutants killed")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
