"""Every setting of a run, with its default: the `tiny` preset.

The tree is read-only. A recipe (msg_jax/recipes) or a preset changes it with `tree.replace`, the command line with
`--config.SECTION.FIELD=VALUE`. Fields whose type is a `Literal` list their choices; `tree.from_dict` checks them.

Units are in the names: `_sec`, `_hz`, `_px`. Shares are in [0, 1]. Rates and batch sizes count clips, not windows.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar, Literal, dataclass_transform

from msg_jax.clip import TINY, ClipSpec

Scales = tuple[float, ...]
Feature = Literal["clip", "sync", "text", "motion"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@_section
class Optimizer:
    """AdamW with linear warm-up, cosine decay and clipping by global norm."""

    learning_rate: float  # the peak
    warmup_steps: int
    final_scale: float = 0.02  # learning rate at the last step, as a share of the peak
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 1e-2
    clip_norm: float = 1.0


@_section
class Training:
    """What every training has."""

    steps: int
    batch_size: int  # clips per step, over all devices
    optimizer: Optimizer
    accumulate: int = 1  # micro-batches per step: less memory, the same result up to rounding


@_section
class Lora:
    """Low-rank adapters (models/lora.py); rank 0 trains the whole network."""

    lora_rank: int = 0
    lora_scale: float = 1.0  # alpha / rank
    lora_targets: str = "^(joint|fused)_.*/(qkv|out|w[123])$"  # attention and feed-forward layers of every block


@_section
class Data:
    source: str = "scenes"  # scenes | folder:PATH | tfds:NAME_OR_FOLDER
    cache: str = "runs/data"  # the scenes are written here once
    seed: int = 0
    train: int = 4096  # scenes per split
    validation: int = 256
    test: int = 256
    windows_per_video: int = 4  # folder sources: clips cut from one video
    frame_choice: Literal["training", "mmaudio_inference"] = "training"  # folder sources: data/frame_grid.py
    read_threads: int = 0  # that read and decode clips; 0: one for each core


@_section
class Codec:
    kind: Literal["pca", "released"] = "pca"  # released: MMAudio's VAE and BigVGAN
    fit_clips: int = 512
    vocoder_iterations: int = 32  # Griffin-Lim


@_section
class PictureCodec:
    """Latents of frames at the rate of the sound's, for `base.network` joint (models/codec.py)."""

    channels: int = 96
    strips: int = 1  # of a frame, left to right; each has its own part of the channels, and is a token of the network
    fit_clips: int = 512
    motion: float = 1.0  # above 1: more of the channels hold what changes between a token's frames
    whitening: float = 1.0  # 0: one scale for all channels; 1: each has unit deviation


@_section
class Joint:
    """Read where `base.network` is joint: sound and pictures are generated together.

    The rest of the training items have neither stream.
    """

    video_to_audio: float = 0.25  # share of training items whose pictures are known
    audio_to_video: float = 0.15  # share of those whose sound is known
    sets: tuple[str, ...] = ("ood", "ambient", "fast")  # of scenes that training does not have (data/scene_sets.py)
    set_clips: int = 128  # of each


@_section
class Judge(Training):
    """A sound-event detector that evaluates. It is never a reward. Each of the two judges learns from half of the clips."""

    steps: int = 400
    batch_size: int = 64
    optimizer: Optimizer = Optimizer(learning_rate=3e-3, warmup_steps=30)
    threshold: float = 0.4  # probability from which a peak counts as an event
    min_gap_sec: float = 0.08  # between two events of one class


@_section
class SFCAVPLossWeights:
    semantic: float = 1.0
    dynamic: float = 1.0
    window: float = 1.0


@_section
class SFCAVP(Training):
    preset: Literal["tiny", "r50"] = "tiny"  # network size
    local_windows: bool = False  # r50: windows see .3 s around each step; False: seconds, as networks trained before 0.2
    remat: bool = True  # r50: recompute each block in the backward pass
    steps: int = 700
    batch_size: int = 64
    optimizer: Optimizer = Optimizer(learning_rate=3e-3, warmup_steps=30)
    crop_share: float = 0.8  # both modalities are cropped to this share of the clip at a random place
    lags: tuple[int, ...] = (-16, -12, -8, -6, -4, -2, 2, 4, 6, 8, 12, 16)  # steps of 40 ms; a clip's own negatives
    loss_weights: SFCAVPLossWeights = SFCAVPLossWeights()


@_section
class SoundEvents(Training):
    """The codebook of unlabelled sound events: the discrete term of the reward."""

    codes: int = 64  # k-means clusters of the sounds that follow an onset
    kinds: int = 16  # clusters left after merging those that the video cannot tell apart; 0 disables the term
    rounds: int = 2  # of label refinement between the modalities
    clips: int = 4096  # training clips at most; their features stay in memory, 140 kB each
    onset_threshold: float = 0.35  # mean rise of the log-mel, in nats
    steps: int = 300
    batch_size: int = 48
    feature_dropout: float = 0.3
    optimizer: Optimizer = Optimizer(learning_rate=2e-3, warmup_steps=30, weight_decay=3e-2)


@_section
class Reward:
    """Weights of the reward's terms."""

    semantic: float = 0.0
    dynamic: float = 0.0
    window: float = 2.0
    events: float = 1.0  # counts only where `sound_events.kinds` > 0
    # By the released Synchformer in `weights`, which needs no training:
    desync: float = 0.0  # of minus the offset in seconds that it expects
    segments: float = 0.0  # of the cosines of its features of pictures and sound, in segments of .64 s

    @property
    def uses_sf_cavp(self) -> bool:
        """Whether an SF-CAVP of one's own must be trained for it."""
        return any((self.semantic, self.dynamic, self.window, self.events))

    @property
    def of_synchformer(self) -> list[str]:
        """The terms with a weight that the released Synchformer scores."""
        return [name for name in ("desync", "segments") if getattr(self, name)]


@_section
class Encoders(Training):
    """What encodes the frames that condition the generator.

    separate: trained to predict audio latents. sf_cavp: the reward's own features. second_sf_cavp: the features of another
    SF-CAVP, trained with the section `sf_cavp`. joint: trained with the generator. released: CLIP and Synchformer. vjepa2:
    V-JEPA 2, of both streams of frames.
    """

    kind: Literal["separate", "sf_cavp", "second_sf_cavp", "joint", "released", "vjepa2"] = "separate"
    steps: int = 600
    batch_size: int = 32
    optimizer: Optimizer = Optimizer(learning_rate=2e-3, warmup_steps=50)


@_section
class Augment:
    """Extra training clips made from others (data/augment.py), as a share of the training split."""

    concat: float = 0.0  # two clips joined at a cut
    speed: float = 0.0  # one clip at one of `speeds`
    speeds: Scales = (0.8, 1.25)
    speed_range: Scales = ()  # (lowest, highest): any speed between them instead
    keep_pitch: bool = False  # at another speed; otherwise the pitch goes with it
    crop: float = 0.0  # a part of one clip, then silence
    crop_shares: Scales = ()  # lengths of the part, one of them; empty: a quarter, a half or three quarters of the clip


@_section
class Extract:
    batch_size: int = 64
    shard_clips: int = 512
    motion: bool = False  # also extract motion energy, for generators whose `features` name it
    flow_grid: int = 0  # with motion: also the mean optical flow in so many cells a side; needs the extra `flow`


@_section
class Diffusion:
    """Read where `base.objective` is diffusion."""

    prediction: Literal["noise", "v"] = "noise"
    schedule: Literal["cosine", "scaled_linear"] = "scaled_linear"
    min_snr_gamma: float = 5.0  # Min-SNR weighting; 0 weighs every time alike
    solver: Literal["ddpm", "ddim", "dpm_solver"] = "dpm_solver"


@_section
class Base(Training, Lora):
    """The generator: network, objective and training."""

    initial: Literal["", "released"] = ""  # released: start from MMAudio's network; with steps=0 use it unchanged
    network: Literal["mmdit", "cross_attention", "joint"] = "mmdit"  # cross_attention: VTA-LDM's; joint: makes pictures too
    objective: Literal["flow", "diffusion"] = "flow"
    time_shift: float = 0.0  # mean logit of the times that flow matching trains at; below 0: nearer to noise
    diffusion: Diffusion = Diffusion()
    hidden: int = 96
    heads: int = 4
    joint_depth: int = 2  # mmdit
    fused_depth: int = 2  # mmdit
    v2: bool = True  # mmdit: the activations and time embedding of MMAudio's v2
    depth: int = 4  # cross_attention
    features: tuple[Feature, ...] = ("clip", "sync", "text")  # what cross_attention sees; an mmdit sees these three
    positions: bool = True  # cross_attention: time positions of the features
    position_kind: Literal["", "learnt", "sinusoidal"] = ""  # cross_attention: embeddings that are added; "": rotary
    pooled_tokens: int = 0  # cross_attention: average each feature into so many parts of the clip; 0 keeps all steps
    modality_tokens: int = 0  # cross_attention: learnt tokens before those of each feature in the context
    attention_implementation: Literal["", "xla", "cudnn", "flash", "heads"] = ""  # mmdit; "": by device, type and shape
    blocks: Literal["", "loop", "unrolled"] = ""  # a loop compiles faster; "": a loop on accelerators (models/stack.py)
    remat: bool = False  # recompute each block in the backward pass: a third more time, a fraction of the memory
    condition_dropout: float = 0.1
    text_dropout: float = 0.5
    ema_decay: float = 0.995
    keep_share: float = 1.0  # train on this share of the clips only
    keep_by: Literal["alignment", "random"] = "alignment"  # alignment of sound and frames, by SF-CAVP
    steps: int = 1500
    batch_size: int = 32
    optimizer: Optimizer = Optimizer(learning_rate=1.5e-3, warmup_steps=100)


@_section
class Sampling:
    """How networks are sampled, for candidates, evaluation and `generate` alike."""

    guidance_rescale: float = 0.0  # share by which the level that guidance adds is taken back; 0: as MMAudio samples
    guidance_projection: float = 0.0  # share taken away of what guidance adds along the data predicted without it; 1: APG
    time_shift: float = 0.0  # added to the logits of the solver's times; below 0: more of the steps near noise


@_section
class Preference(Training, Lora):
    """What preference arms share; an arm's `changes` replace fields for that arm alone."""

    videos: int = 1024  # training clips per round
    candidates: int = 5  # per clip
    candidate_guidance: float = 2.0
    candidate_steps: int = 8
    keep_share: float = 0.5  # keep the pairs with the largest score difference
    join_cost: float = 0.005  # what a join of `stitched` pairs must gain in the clip's reward
    rounds: int = 1
    steps: int = 150  # per round
    batch_size: int = 16  # pairs
    optimizer: Optimizer = Optimizer(learning_rate=3e-4, warmup_steps=10)
    dpo_guidance: float = 1.0  # guidance scale of the velocities that the preference loss compares
    beta: float = 20.0
    dpo_weight: float = 1.0
    winner_weight: float = 1.0  # flow matching on the winner
    real_weight: float = 1.0  # flow matching on the real sound
    condition_dropout: float = 0.1
    text_dropout: float = 0.5
    prompts: bool = False  # candidates are sampled, and then compared, with the clips' captions
    stop_at_real: bool = True  # no further round once the reward reaches that of real sound
    held_out_reward: bool = False  # train a second SF-CAVP that rewards nothing; its reward is reported, round by round


@_section
class Arm:
    """One tuned system of a run. Its type (msg_jax/methods) is the method that makes it."""

    kind: ClassVar[str]
    start: str = "base"  # `base` or another arm
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of `preference`, for this arm alone
    label: str = ""  # in tables and reports; empty: the method's
    note: str = ""  # one line beside the label


@_section
class Evaluate:
    split: Literal["validation", "test"] = "test"
    clips: int = 256
    guidance_scales: Scales = (1.0, 1.5, 2.0)
    steps: int = 8  # of the solver
    batch_size: int = 64
    tolerance_sec: float = 0.08  # of event F1
    prompts: bool = False  # give captions to a generator that reads text
    samples: int = 1  # per clip and system; four halve the sampling noise of a comparison
    reward_clips: int = 128
    reward_candidates: int = 6
    reward_guidance: float = 1.5
    bootstrap: int = 1000  # resamples
    examples: int = 3  # clips in the report


@_section
class StudiedReward:
    """One reward of a reward study."""

    sf_cavp: str = ""  # folders of finished sf_cavp stages, separated by commas: an ensemble; empty: the run's own
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by term; empty: the run's own


def _studied_rewards() -> Mapping[str, StudiedReward]:
    single = {term: StudiedReward(weights={term: 1.0}) for term in ("semantic", "dynamic", "window")}
    return single | {"reward": StudiedReward(), "events": StudiedReward(weights={"events": 1.0})}


@_section
class RewardStudy:
    split: Literal["validation", "test"] = "validation"
    clips: int = 128
    candidates: int = 6
    guidance_scales: Scales = (1.5, 2.0)
    steps: int = 8
    tolerance_sec: float = 0.08
    bootstrap: int = 1000
    rewards: Mapping[str, StudiedReward] = dataclasses.field(default_factory=_studied_rewards)
    baseline: str = "reward"  # the others are also shown as differences to it; "" for none
    edits: tuple[str, ...] = (  # mistakes put into real sound (data/edits.py)
        "swap", "drop", "add", "shift_40ms", "shift_80ms", "shift_160ms", "shift_320ms", "reversed",
    )
    through_codec: bool = True  # compare sounds after the codec, as candidates are, or as recorded


@_section
class Sweep:
    """Read where `program` is sweep: changes to the config by axis and cell, {axis: {cell: {section: {field: value}}}}."""

    cells: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@_section
class Every:
    """Intervals in steps."""

    log: int = 25
    checkpoint: int = 200
    held_out: int = 100  # loss on validation clips; 0: never


@_section
class Guard:
    """What stops a training."""

    spike: float = 20.0  # a loss above this multiple of the running median; 0: only a loss that is not finite
    window: int = 100  # losses in the median
    data_timeout_sec: float = 600.0  # for one batch


@_section
class Log:
    """Observability; nothing here changes a result."""

    tensorboard: bool = False
    wandb: str = ""  # project name; empty: off
    profile_steps: str = ""  # A:B traces steps A to B - 1 of each training; --profile_steps sets it
    explain_sharding: bool = False  # print the first step's sharding and exit; --explain_sharding sets it


@_section
class Config:
    """One run: what it makes, and every setting of it."""

    program: Literal["stages", "sweep"] = "stages"
    preset: str = "tiny"  # names the default --workdir, runs/PRESET
    stages: tuple[str, ...] = ()  # the targets; stages they need run first
    seed: int = 0  # of the data and of the networks that all systems share
    seeds: tuple[int, ...] = (0,)  # one base model and one run of every arm for each
    mesh: tuple[int, ...] = (-1, 1, 1)  # data, fsdp, tensor
    weights: str = ""  # folder of released files, for networks whose kind is `released` or `vjepa2`
    variant: str = ""  # which released system
    clip: ClipSpec = TINY
    data: Data = Data()
    codec: Codec = Codec()
    judge: Judge = Judge()  # hears decoded log-mels; chooses settings, on the validation split
    picture_codec: PictureCodec = PictureCodec()
    picture_judge: Judge = Judge()  # sees decoded frames
    joint: Joint = Joint()
    second_judge: Judge = Judge()  # another network, hears waveforms; only ever reported
    sf_cavp: SFCAVP = SFCAVP()
    sound_events: SoundEvents = SoundEvents()
    reward: Reward = Reward()
    encoders: Encoders = Encoders()
    augment: Augment = Augment()
    extract: Extract = Extract()
    base: Base = Base()
    sampling: Sampling = Sampling()
    preference: Preference = Preference()
    arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    evaluate: Evaluate = Evaluate()
    reward_study: RewardStudy = RewardStudy()
    sweep: Sweep = Sweep()
    every: Every = Every()
    guard: Guard = Guard()
    log: Log = Log()

    @property
    def reward_stages(self) -> tuple[str, ...]:
        """The stages that make the reward's networks."""
        if not self.reward.uses_sf_cavp:
            return ()
        return ("sf_cavp", "sound_events") if self.sound_events.kinds else ("sf_cavp",)


@_section
class FolderEvaluation:
    """Generated clips against reference clips, or finished evaluations side by side."""

    program: Literal["evaluate_folder", "compare"] = "evaluate_folder"
    preset: str = "evaluation"  # names the default --workdir, runs/evaluation
    # What is evaluated.
    generated: str = ""  # folder of sounds or videos
    reference: str = ""  # folder of sounds or videos, paired with them by file stem; empty: metrics without reference only
    generated_cache: str = ""  # folders of features that av-benchmark wrote (.pth), beside or instead of files
    reference_cache: str = ""
    ids: str = ""  # file of clip ids, one a line: evaluate these only (python -m msg_jax.data.multi_event)
    events: str = ""  # csv of true events, id,class,onset,offset: adds metrics by number of events
    duration_sec: float = 8.0  # of each clip from its start; less if no generated clip is that long
    # With what.
    weights: str = ""  # folder of released files (docs/WEIGHTS.md): VGGish, PANNs, Synchformer
    sf_cavp: str = ""  # folder of a finished sf_cavp stage
    judge: str = ""  # folder of a finished judge stage
    # How.
    seed: int = 0
    bootstrap: int = 1000  # resamples
    examples: int = 4  # clips in the report
    threads: int = 2  # that read files
    # compare: folders of finished evaluations or runs, separated by commas; the first is the baseline.
    runs: str = ""
    names: str = ""  # their labels; default: the folders' names
