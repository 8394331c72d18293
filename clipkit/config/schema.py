"""Every option of a run, typed, on one page. A YAML file sets them; ``key=value`` overrides.

A field's comment is its documentation. ``batch_size`` is global, over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class FilterConfig:
    """What must hold of a sample; the source is looked through once, before training."""

    min_edge: int | None = None  # pixels, of an image's shorter edge
    max_aspect: float | None = None  # longer edge over shorter
    min_caption: int | None = None  # characters
    max_caption: int | None = None
    # A column, or a field of a ``.json`` member, that holds a number: a CLIP score, say.
    score: str | None = None
    min_score: float | None = None
    list: str | None = None  # a file that ``clipkit data filter`` wrote for this source


@dataclass
class SourceConfig:
    """Where image-text pairs come from."""

    # A file, a folder, a glob (``train-*.tar``), a brace range (``train-{000..127}.tar``), any
    # fsspec URL of these, or ``hf://datasets/owner/name`` for what ``datasets`` loads.
    path: str = ""
    # ``lines``: texts alone, one a line.
    format: Literal["auto", "webdataset", "parquet", "table", "folder", "datasets", "lines"] = (
        "auto"
    )
    # The tar member or column that holds the image, and the caption; found by its usual names
    # where it is not given. ``json.name`` reads a field of a ``.json`` member or a struct.
    # Several captions are named with commas: ``txt,json.alt``. In a folder of images ``folder``
    # says that the names of folders are the classes.
    image: str | None = None
    caption: str | None = None
    # The folder that relative image paths in a table start from; none: the table's own, or one
    # near it in which they are.
    image_root: str | None = None
    # The split to take, for ``datasets`` sources and Karpathy's JSON.
    split: str = "train"
    # Of a sample with several captions (several columns or members, or a list in one):
    # ``random`` takes another each time it is trained on, by its position, and all of them when
    # evaluating; ``join`` makes one of them all. ``lines`` is as ``random``, and each line of a
    # text is a caption of its own.
    captions: Literal["random", "first", "join", "lines"] = "random"
    # What a class becomes that is a folder's name, a ``.cls`` member or a class label.
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    # A file with a name a line, where classes are numbers, or folders that say nothing: the
    # first line names class 0. Folders called by numbers are by these, others by their order.
    class_names: str | None = None
    # How the samples of WebDataset shards are counted. ``index``: all shards are read once,
    # before training. ``sizes``: a ``sizes.json`` beside them tells; each is indexed when it is
    # first read. ``estimate``: their bytes tell, about; likewise. auto: ``index`` for local
    # shards; for URLs ``sizes`` where they are told, else ``estimate`` when training.
    count: Literal["auto", "index", "sizes", "estimate"] = "auto"
    filter: FilterConfig = field(default_factory=FilterConfig)


@dataclass
class MixedSourceConfig(SourceConfig):
    """A source of a mixture."""

    # Its share of the samples of every batch, relative to the others'; none: as many as it has.
    weight: float | None = None


@dataclass
class LabelSource(SourceConfig):
    """A source whose classes are asked for: where captions stand, each class as the data has it,
    without templates. Made for evaluation, no part of a config."""

    numbers: bool = False  # of class labels: their numbers, not their names
    unlabelled: bool = False  # samples of no class are samples, too


@dataclass
class PreprocessConfig:
    """How raw pairs become tensors: it travels with the weights, so that embedding can never
    differ from training."""

    image_size: int = 224  # pixels, square
    # ``crop``: shortest edge to image_size, then the centre. ``squash``: both edges, no crop.
    resize: Literal["crop", "squash"] = "crop"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    # A folder or hub name for AutoTokenizer; none: a CLIP-compatible BPE is trained on the
    # captions at the first start and saved with the run.
    tokenizer: str | None = None
    vocab_size: int = 8192  # at most, of a tokenizer trained here
    context_length: int = 77  # tokens, start and end included


@dataclass
class ForeignPreprocess(PreprocessConfig):
    """Of a model from elsewhere, where it does what no run here asks for: read from the model's
    folder, no part of a config."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    # Whose roundings: transformers resizes with torchvision and floors the corner of the crop,
    # open_clip resizes with Pillow and rounds it.
    library: Literal["transformers", "open_clip"] = "transformers"


@dataclass
class AugmentConfig:
    """Random changes of training images, a function of (seed, position)."""

    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the area that is kept
    crop_ratio: tuple[float, float] = (0.75, 1.3333333)  # width : height
    horizontal_flip: float = 0.0  # probability; captions may speak of left and right


@dataclass
class DataConfig:
    """What is read, and in which order."""

    train: SourceConfig = field(default_factory=SourceConfig)
    # Instead of ``train``, several sources by name. Each goes through its own epochs.
    mix: dict[str, MixedSourceConfig] = field(default_factory=dict)
    # Splits by name, for evaluation while training and after it.
    evaluate: dict[str, SourceConfig] = field(default_factory=dict)
    # This share of the training samples is held back, always the same ones, and evaluated as
    # the split ``holdout``: for data that come with no split.
    holdout: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = 2  # loader processes a rank; 0: in the training process
    # The order: an epoch's chunks of ``shuffle_chunk`` neighbouring samples are permuted and
    # laid end to end over ``lanes`` readers; each reads its part through windows of
    # ``shuffle_window`` samples, each permuted. Larger is better mixed; smaller reads more
    # sequentially.
    lanes: int = 8
    shuffle_chunk: int = 64
    shuffle_window: int = 4096
    # Instead of those three: so many samples whose captions share rare words stand together in a
    # batch, as hard negatives (https://arxiv.org/abs/2208.04060, section 4.1); 0: none do. For
    # sets that lie on a disk, one source, some millions of captions at most.
    hard_negatives: int = 0
    # What is read of remote files is kept on the local disk, for all runs together, up to this.
    cache_gb: float = 10.0
    # Training samples are kept in memory up to this, images decoded, in each process that loads,
    # for sets that fit: each is read and decoded once a run and not once an epoch.
    decoded_gb: float = 0.0
    max_image_pixels: int = 64_000_000  # larger images are skipped before they are decoded
    # Of the samples of ``train``, those lost to damaged shards; above it a run does not start.
    max_loss_share: float = 0.001
    max_skip_share: float = 0.05  # of the samples seen; above it the run ends with exit 3


@dataclass
class TowerConfig:
    """A transformer encoder; heads are width / 64 where they are not given."""

    width: int = 512
    layers: int = 12
    heads: int | None = None
    mlp_ratio: float = 4.0
    dropout: float = 0.0  # on attention weights, the one place CLIPModel has it


@dataclass
class VisionConfig(TowerConfig):
    """A Vision Transformer (https://arxiv.org/abs/2010.11929)."""

    width: int = 768
    patch_size: int = 32
    # This share of the patches is left out while training, others for each image and step: as
    # much less to compute (FLIP, https://arxiv.org/abs/2212.00794, section 3).
    patch_dropout: float = 0.0


@dataclass
class ModelConfig:
    """Two towers into one space: a transformers CLIPModel, new or from a folder."""

    # A Hugging Face folder or hub name to start from; the sizes, dropout and activation below are
    # then its own.
    pretrained: str | None = None
    # ``vision`` freezes the image tower, as in LiT (https://arxiv.org/abs/2111.07991).
    freeze: Literal["none", "vision", "text"] = "none"
    embed_dim: int = 512
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    # How attention is computed; auto: SDPA, but plain batched matmuls in bf16 on a CPU, where
    # SDPA's backward is several times slower at these lengths.
    attention: Literal["auto", "eager", "sdpa"] = "auto"


@dataclass
class LossConfig:
    """Over the global batch, exact, in float32, in memory linear in the batch."""

    # ``infonce``: softmax over the batch, as CLIP. ``sigmoid``: a question of yes or no for each
    # image with each text, with a learned bias, as SigLIP (https://arxiv.org/abs/2303.15343).
    kind: Literal["infonce", "sigmoid"] = "infonce"
    # Of a new model, as ``init_bias``: a pretrained one keeps its own. CLIP's; SigLIP's is 0.1.
    init_temperature: float = 0.07
    # Of ``sigmoid``. SigLIP's is for positives that are rare: begin nearer to 0 where
    # ``duplicates`` are many and positives.
    init_bias: float = -10.0
    max_scale: float = 100.0  # logit_scale is clamped to its logarithm after each step
    # Pairs of a batch with the same text, or with the same image file, are negatives of one
    # another as all others are, or positives. To ``infonce`` it is all one while equal texts have
    # one vector, as they have without dropout; ``sigmoid`` else answers such a pair with no.
    duplicates: Literal["negatives", "positives"] = "negatives"
    label_smoothing: float = 0.0  # of ``infonce``
    # bf16 is two to five times as fast on a CPU that has it, and rounds.
    matmul: Literal["fp32", "bf16"] = "fp32"


@dataclass
class OptimConfig:
    """Linear warm-up, then ``schedule``; the learning rate is a function of the step alone."""

    # ``adamw`` (https://arxiv.org/abs/1711.05101), or ``muon`` for the matrices of the towers'
    # layers (https://kellerjordan.github.io/posts/muon) with AdamW for all else.
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-4
    muon_lr: float | None = None  # of those matrices; none: ``lr``, as a step is as large
    min_lr: float = 0.0
    # How ``lr`` falls to ``min_lr``. ``cosine``: from the warm-up on. ``wsd``: it is held, then
    # falls in the last ``cooldown`` of the steps, fast first (1 - √x). ``constant``: the same,
    # linearly. Until its cooldown a run of these two does not depend on where it ends, so it
    # may be given more steps (--allow-change train.steps); but ``train.stages`` are shares of them.
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    cooldown: float | None = None  # share of the steps; none: 0.2; 0: it is held to the end
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2  # not on norms, biases, embeddings of one dimension, logit_scale
    warmup_steps: int = 100
    grad_clip: float | None = 1.0  # largest gradient norm
    # For fine-tuning: each layer learns this much slower than the one after it, the embeddings
    # slowest; the projections, at the end, at the full rate.
    layer_decay: float = 1.0
    # Factors of the rate of a whole tower, its projection included.
    vision_lr_scale: float = 1.0
    text_lr_scale: float = 1.0


@dataclass
class StageConfig:
    """A part of a run; what is left out is as in the rest of the config."""

    share: float = 1.0  # of the steps; those of all stages make 1
    # At most the model's own, which positions are interpolated to, and its own in the last stage.
    image_size: int | None = None
    context_length: int | None = None
    patch_dropout: float | None = None


@dataclass
class TrainConfig:
    """How long, how big, how precise; what is saved and shown."""

    batch_size: int = 256  # global, over all ranks
    epochs: float | None = None  # one of epochs and steps
    steps: int | None = None
    # A batch that does not fit is computed in parts of this many pairs, over all ranks; every
    # pair of the batch is a negative all the same (https://arxiv.org/abs/2101.06983). It takes
    # a second forward pass.
    micro_batch: int | None = None
    # A run in stages, e.g. [{share: 0.8, image_size: 112}, {share: 0.2}]: most of its steps on
    # small images and short texts costs less (CLIPA, https://arxiv.org/abs/2305.07017).
    stages: list[StageConfig] = field(default_factory=list)
    # The mean gradient of this many parts of the batch, each its own only negatives.
    accumulate: int = 1
    # How several ranks share the work. ``fsdp`` shards weights, gradients and moments too.
    distributed: Literal["ddp", "fsdp"] = "ddp"
    # With fsdp, weights, gradients and moments stay in the CPU's memory, where the optimizer
    # works on them; the accelerator holds a layer's weights while it needs them.
    offload: bool = False
    # What the towers compute in. Weights, gradients, moments and the loss are float32 always.
    # ``auto``: bf16 where matrix products in it are measured to be faster on this device, else
    # fp16 on a GPU where they are, else fp32. It is settled at a run's first start and recorded
    # in its config.yaml, which ``auto`` keeps from then on.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # Decay of a moving average of the weights, 0.9999 say; less in the first steps. It is
    # evaluated beside the weights, and it is the model that the run leaves.
    ema: float | None = None
    # Of this share of the layers less is kept and the forward pass computed twice, for a larger
    # batch; ``true`` means all.
    activation_checkpointing: bool | float = False
    compile: bool = False  # torch.compile for the layers; a minute at the start
    save_every: int = 500  # steps
    save_minutes: float | None = None  # and at least this often
    keep: int = 2  # checkpoints; the newest
    # A step waits only until weights and moments are copied to the CPU's memory, which takes as
    # much of it as they do; a thread writes them. A run ends when they are on the disk.
    save_in_background: bool = True
    # ``sharded``: with fsdp, each rank writes what it holds, and reads no more than that when the
    # run goes on, be it with more or fewer ranks, with fsdp or ddp. ``clipkit convert`` makes
    # a Hugging Face folder of a checkpoint. ``whole``: the first rank writes all of it, in one.
    checkpoint: Literal["whole", "sharded"] = "whole"
    log_every: int = 10  # steps
    trackers: list[str] = field(default_factory=list)  # of accelerate: tensorboard, wandb …


@dataclass
class EvalConfig:
    """Retrieval on ``data.evaluate``, and a suite of tasks, while training."""

    every: int = 0  # steps; 0: only at the end
    batch_size: int = 256  # images or texts at a time on a rank
    splits: list[str] | None = None  # names in data.evaluate; none: all
    # A YAML of tasks, see docs/evaluation.md; what they give at the end is in OUTPUT/eval.
    suite: str | None = None


@dataclass
class PlanConfig:
    """The GPUs that ``clipkit train --dry-run`` plans for; training takes no notice. With one of
    these set, the table of 1 to 4,096 GPUs is shown."""

    # TFLOP/s of one, in ``train.precision``, by its data sheet: 989 for an H100. None: what this
    # machine does with the model is measured, and stands for a GPU.
    gpu_tflops: float | None = None
    utilisation: float = 0.4  # the share of it that training reaches, as in metrics.jsonl
    gpus_per_node: int = 8
    # GB/s that a GPU sends in a collective to others of its node, and a node, with all its GPUs,
    # to other nodes. These are NVLink 4 and 8 × 400 Gbit/s.
    gpu_gb_s: float = 400.0
    node_gb_s: float = 400.0


@dataclass
class Config:
    """One run. ``clipkit train CONFIG --print-config`` prints it whole."""

    output: str = "runs/default"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
