"""Every field of an experiment: the schema's entries. Nothing else holds a default or a choice.

The defaults are the recipe `funmatch`: label-free function matching on CIFAR-100 (Beyer et al.
2021). What is made of the entries: the config and the rules of resume and cohorts (`schema`), the
checks of choice and range (`checks`), and docs/config.md (`document`), in this order.
"""

from __future__ import annotations

from kd_jax.config.entry import Field, closed, left_open, right_open

NAME, PATH, ARCHITECTURE = "a name", "a path", "an architecture"  # forms that several fields have
_BATCH = 2**20  # examples; more than any batch
_COUNT = 2**31 - 1  # the largest int32
_EPOCHS = 1e6
_DTYPES = ("float32", "bfloat16")

# What each group of fields is about; the empty name is that of the fields without a group.
GROUPS = {
    "": "The run",
    "schedule": "Schedule of the learning rate, after the warm-up",
    "optimizer": "Optimiser",
    "dataset": "Data set",
    "teacher": "Teacher",
    "student": "Student",
    "batch_norm": "Batch normalisation",
    "distill": "Distillation: what the student's loss is",
    "mixup": "Mixup and CutMix",
    "augment": "Augmentation",
}

FIELDS = (
    Field(
        "seed", 0, "Seed of the student's first values, the order of examples and the views.",
        range=closed(0, _COUNT),
    ),
    Field(
        "batch_size", 512, "Examples of a whole step, over all devices.",
        range=closed(1, _BATCH), unit="examples",
    ),
    Field(
        "accumulate", 1,
        "Parts that the batch is computed in, one after another, for batches that do not fit into "
        "memory. Batch norm and the loss `dist` see one part at a time, so another value is "
        "another training.",
        range=closed(1, _BATCH),
    ),
    Field(
        "total_epochs", 300.0,
        "Length of the training. It may change at a resume where the steps that were made are "
        "those of the new length too: under the schedule `constant`, under `wsd` before its decay, "
        "under `step` before its first drop. A warm-up is at most a tenth of the run; one that "
        "was cut to it keeps the length.",
        range=left_open(0, _EPOCHS), unit="epochs",
    ),
    Field(
        "total_steps", None,
        "Length of the training; replaces `total_epochs` when it is set, and may change as that.",
        none_or=int, range=closed(1, _COUNT), unit="steps",
    ),
    Field(
        "learning_rate", 1e-3, "Learning rate at the peak of the schedule.",
        range=left_open(0, 1e3), cohort_mutable=True,
    ),
    Field(
        "warmup_epochs", 5.0,
        "Length of the linear warm-up from 0; at most a tenth of the run is used.",
        range=closed(0, _EPOCHS), unit="epochs", cohort_mutable=True,
    ),
    Field(
        "weight_decay", 1e-4, "Strength of the weight decay, see `optimizer.decay`.",
        range=right_open(0, 1), cohort_mutable=True,
    ),
    Field(
        "patience", 0,
        "Validations without a new best after which training stops and the best is kept; 0: "
        "training never stops early. For training from labels: function matching only gets better "
        "with patience.",
        range=closed(0, _COUNT), unit="validations",
    ),
    Field(
        "schedule.name", "cosine", "Shape of the schedule.",
        choices=("cosine", "cosine_by_epoch", "linear", "constant", "step", "wsd"),
        cohort_mutable=True,
    ),
    Field(
        "schedule.step_at", (0.5, 0.75),
        "`step`: shares of the run after which the learning rate drops.",
        form="rising numbers in (0, 1)", cohort_mutable=True,
    ),
    Field(
        "schedule.step_factor", 0.1, "`step`: factor of each drop.",
        range=left_open(0, 1), cohort_mutable=True,
    ),
    Field(
        "schedule.cooldown", 0.2, "`wsd`: share of the run in which the rate falls linearly to 0.",
        range=closed(0, 1), cohort_mutable=True,
    ),
    Field(
        "optimizer.name", "adam", "Optimiser.",
        choices=(
            "sgd", "adam", "nadam", "radam", "adabelief", "adan", "ademamix", "lion", "lamb",
            "muon",
        ),
        cohort_mutable=True,
    ),
    Field(
        "optimizer.momentum", 0.9, "`sgd`: momentum of the velocity.",
        range=right_open(0, 1), cohort_mutable=True,
    ),
    Field(
        "optimizer.nesterov", True, "`sgd`: use Nesterov's momentum.", cohort_mutable=True
    ),
    Field(
        "optimizer.clip_norm", 1.0,
        "Largest global norm of the gradient; larger ones are scaled down to it. 0: no clipping.",
        range=closed(0, 1e9), cohort_mutable=True,
    ),
    Field(
        "optimizer.decay", "decoupled",
        "`decoupled`: weights shrink by `weight_decay` * schedule / peak, whatever the learning "
        "rate. `l2`: `weight_decay` * weights is added to the gradient.",
        choices=("decoupled", "l2"), cohort_mutable=True,
    ),
    Field(
        "optimizer.decay_on", "kernels", "Parameters that decay.",
        choices=("kernels", "all"), cohort_mutable=True,
    ),
    Field(
        "dataset.name", "cifar100",
        "An image classification set of tfds; or `digits`, which needs no download; or `folder`, "
        "for images in `dataset.data_dir`.",
        form=NAME,
    ),
    Field(
        "dataset.data_dir", "",
        "Directory of the data; empty: TFDS_DATA_DIR, otherwise the default of tfds.",
        form=PATH, resume_mutable=True,
    ),
    Field("dataset.train_split", "train", "Split to train on, in the notation of tfds.", form=NAME),
    Field("dataset.test_split", "test", "Split to test on, in the notation of tfds.", form=NAME),
    Field(
        "dataset.image_size", 0,
        "Side of the square that images are scaled and cropped to; 0: they stay as they are.",
        range=closed(0, 4096), unit="pixels",
    ),
    Field(
        "dataset.download", False, "Let tfds download what is missing.", resume_mutable=True
    ),
    Field(
        "dataset.val_examples", 5000.0,
        "Examples that are held out of train for validation, stratified by class; below 1: their "
        "share of train.",
        range=left_open(0, _COUNT), unit="examples",
    ),
    Field(
        "dataset.resident", "auto",
        "Whether training images are kept on the devices; `auto`: if they fit into "
        "`dataset.device_budget_mb`. Otherwise the host gathers batches and sends them ahead; the "
        "training is the same.",
        choices=("auto", "always", "never"), resume_mutable=True,
    ),
    Field(
        "dataset.device_budget_mb", 4000.0, "Memory of each device for training images.",
        range=closed(0, 1e9), unit="MB", resume_mutable=True,
    ),
    Field(
        "dataset.split_seed", 0, "Seed of the choice of examples for validation.",
        range=closed(0, _COUNT),
    ),
    Field(
        "dataset.validation", "held_out",
        "`held_out`: a part of train. `half_of_test`: nothing is held out, and validation is a "
        "random half of the test split.",
        choices=("held_out", "half_of_test"),
    ),
    Field(
        "teacher.arch", "",
        "Architecture of the teacher; empty: none, or the one that the weights name.",
        form=f"{ARCHITECTURE}, or empty",
    ),
    Field(
        "teacher.weights", "",
        "The teacher: a file of weights, a directory made by `kd_jax.import_teacher`, the workdir "
        "of a finished run; or from another library `torch:package.module:factory[@FILE]`, "
        "`timm:NAME[@FILE]`, `torchvision:NAME[@FILE]`, `onnx:FILE`, `keras:FILE`. A resumed run "
        "identifies it by arrays, architecture and normalisation, so the path may change.",
        form=PATH, resume_mutable=True,
    ),
    Field(
        "teacher.claimed_top1", None,
        "Top-1 on test that the teacher must reach; None: what the weights claim.",
        none_or=float, range=closed(0, 100), unit="percent",
    ),
    Field(
        "teacher.tolerance_points", 0.2,
        "Distance from the claim that is accepted.",
        range=closed(0, 100), unit="percentage points", resume_mutable=True,
    ),
    Field(
        "teacher.on_mismatch", "stop", "What happens when the teacher misses its claim.",
        choices=("stop", "warn"), resume_mutable=True,
    ),
    Field(
        "teacher.normalisation", "own",
        "Normalisation of the teacher's pixels; `own`: that of its weights, or of the data set "
        "where they do not say. `half`: mean 0.5 and std 0.5, as in the study's code. `unit`: "
        "pixels from 0 to 1, `byte`: from 0 to 255. The others: that data set's.",
        choices=("own", "half", "cifar100", "cifar10", "imagenet", "unit", "byte"),
        source="`half`: javi99/understanding_knowledge_distillation",
    ),
    Field(
        "teacher.channels", "own",
        "Order of the channels of a teacher from another library; `own`: red first, unless it says "
        "otherwise.",
        choices=("own", "rgb", "bgr"),
    ),
    Field(
        "teacher.input_size", 0,
        "Height and width that the view is resized to inside a teacher from another library; 0: "
        "what it says, or as the images come.",
        range=closed(0, 4096), unit="pixels",
    ),
    Field(
        "teacher.crop_fraction", 0.0,
        "With an input size, of a teacher from another library: 0: the whole view is resized to "
        "it. Otherwise the short side is resized to the size divided by this, and the centre is "
        "cropped; 0.875 is torchvision's 256 to 224.",
        range=closed(0, 1),
    ),
    Field(
        "teacher.dtype", "float32", "Precision of the teacher's computations.", choices=_DTYPES
    ),
    Field(
        "teacher.ensemble", (),
        "Further teachers, each as in `teacher.weights`. A resumed run identifies them as it does "
        "that.",
        form="paths", resume_mutable=True,
    ),
    Field(
        "teacher.shares", (), "Weights of all teachers, in order; empty: equal.",
        form="positive numbers",
    ),
    Field(
        "teacher.combine", "probabilities",
        "`probabilities`: one target, the mean of the teachers' softened predictions. `losses`: "
        "the mean of the losses to each teacher.",
        choices=("probabilities", "losses"),
    ),
    Field(
        "teacher.record", "",
        "Directory in which the teacher's answers to every view of the run are recorded, for "
        "`teacher.replay`; empty: they are not. A resumed run goes on with recorded answers of the "
        "same precision, or without, as it began; the path may change.",
        form=PATH, resume_mutable=True,
    ),
    Field(
        "teacher.record_dtype", "float32",
        "Precision of a recording. What the student learns from is what is recorded.",
        choices=("float32", "float16"), resume_mutable=True,
    ),
    Field(
        "teacher.record_top", 0,
        "Of each answer record the largest logits, as many as this, and the mass of the others at "
        "`distill.temperature`, which they then share equally; 0: all logits. For many classes, "
        "and for losses on probabilities.",
        range=closed(0, 2**16), unit="logits", resume_mutable=True,
    ),
    Field(
        "teacher.record_limit_gb", 20.0, "Largest size of a recording; a larger one is refused.",
        range=left_open(0, 1e6), unit="GB", resume_mutable=True,
    ),
    Field(
        "teacher.replay", "",
        "Directory of a recording that answers in the teacher's place; seed, data, batch and views "
        "must be those of the run that recorded. Then `teacher.weights` may be empty.",
        form=PATH, resume_mutable=True,
    ),
    Field(
        "student.arch", "mobilenet_v3_small", "Architecture of the student.", form=ARCHITECTURE,
        cohort_mutable=True,
    ),
    Field(
        "student.dropout", 0.0, "Dropout rate before the head.", range=right_open(0, 1),
        cohort_mutable=True,
    ),
    Field(
        "student.ema_decay", 0.0,
        "Share of the old values in the running average of the weights, reached gradually; the "
        "average is then evaluated and kept. 0: no average.",
        range=right_open(0, 1), cohort_mutable=True,
    ),
    Field(
        "student.normalisation", "dataset",
        "Normalisation of the student's pixels; `dataset`: that of the data set, `half`: mean 0.5 "
        "and std 0.5.",
        choices=("dataset", "half"), cohort_mutable=True,
    ),
    Field(
        "student.dtype", "float32",
        "Precision of the student's computations; parameters stay float32.",
        choices=_DTYPES, cohort_mutable=True,
    ),
    Field(
        "student.init_seed", None, "Seed of the student's first values; None: `seed`.",
        none_or=int, range=closed(0, _COUNT), cohort_mutable=True,
    ),
    Field(
        "student.weights", "",
        "Weights to start from, given as `teacher.weights`; of a network that does not know the "
        "data's classes the body is kept, and the last layer is new. Empty: values drawn from the "
        "seed.",
        form=PATH, cohort_mutable=True,
    ),
    Field(
        "student.freeze", "",
        "Parameters whose path this expression finds do not change, and neither do the running "
        "statistics of a batch norm all of whose parameters it finds. Empty: none.",
        form="a regular expression", cohort_mutable=True,
    ),
    Field(
        "student.quantize", "none",
        "`int8`: the last part of training computes with the numbers of an int8 file, and the "
        "student that is kept has their ranges, see docs/export.md. For networks of the zoo with "
        "batch norm.",
        choices=("none", "int8"), source="Jacob et al. 2018",
    ),
    Field(
        "student.quantize_share", 0.1,
        "Share of the run, its last part, in which a student with `quantize` computes with int8's "
        "numbers.",
        range=left_open(0, 1), source="Krishnamoorthi 2018, section 3.2",
    ),
    Field(
        "batch_norm.sync", True,
        "Statistics over the whole batch. False: over each device's part, which saves two "
        "reductions a norm; the number of devices then changes the training, and must not change "
        "at a resume.",
    ),
    Field(
        "distill.temperature", 5.0, "Temperature T of both softened predictions.",
        range=left_open(0, 1e4), source="Hinton et al. 2015, section 2", cohort_mutable=True,
    ),
    Field(
        "distill.loss", "forward_kl",
        "Loss to the teacher, see docs/recipes.md. `python`: a function that was given to "
        "`kd_jax.distill`, of the logits; `python_with_labels`: of the labels too.",
        choices=(
            "forward_kl", "reverse_kl", "jensen_shannon", "squared_error", "hard_label", "dist",
            "dkd", "python", "python_with_labels",
        ),
        cohort_mutable=True,
    ),
    Field(
        "distill.squared_temperature", True,
        "Multiply the loss by T^2, where it has a temperature.",
        source="Hinton et al. 2015, section 2", cohort_mutable=True,
    ),
    Field(
        "distill.standardize_logits", False,
        "Shift and scale the logits of both networks to mean 0 and std 1 before the loss.",
        source="Sun et al. 2024", cohort_mutable=True,
    ),
    Field(
        "distill.reduction", "mean", "Reduction of the loss over the global batch.",
        choices=("mean", "sum"), cohort_mutable=True,
    ),
    Field(
        "distill.view", "same",
        "`same`: all networks see the same pixels. `independent`: the teacher has a crop and a "
        "flip of its own. `fixed`: the teacher's logits of the clean images, computed once.",
        choices=("same", "independent", "fixed"), source="Beyer et al. 2021, section 3",
    ),
    Field(
        "distill.dkd_target", 1.0, "`dkd`: alpha, weight of the part about the labelled class.",
        range=closed(0, 1e3), source="Zhao et al. 2022", cohort_mutable=True,
    ),
    Field(
        "distill.dkd_others", 8.0, "`dkd`: beta, weight of the part about the other classes.",
        range=closed(0, 1e3), source="Zhao et al. 2022", cohort_mutable=True,
    ),
    Field(
        "distill.dist_inter", 1.0, "`dist`: beta, weight of the correlation over classes.",
        range=closed(0, 1e3), source="Huang et al. 2022", cohort_mutable=True,
    ),
    Field(
        "distill.dist_intra", 1.0, "`dist`: gamma, weight of the correlation over examples.",
        range=closed(0, 1e3), source="Huang et al. 2022", cohort_mutable=True,
    ),
    Field(
        "distill.label_weight", 0.0,
        "The loss is `total_weight` * (`label_weight` * cross-entropy + (1 - `label_weight`) * the "
        "distillation loss). 0: label-free. 1: training from scratch, where a teacher only serves "
        "to compare.",
        range=closed(0, 1), source="Hinton et al. 2015, section 2", cohort_mutable=True,
    ),
    Field(
        "distill.total_weight", 1.0,
        "Factor of the whole loss, for published weights whose sum is not 1: 1 * cross-entropy + "
        "3 * the distillation loss is `total_weight` 4 and `label_weight` 0.25.",
        range=left_open(0, 1e3), cohort_mutable=True,
    ),
    Field(
        "distill.warmup_epochs", 0.0,
        "Length of the linear warm-up of the distillation loss from 0, during which the "
        "cross-entropy has its full weight already; at most a tenth of the run is used.",
        range=closed(0, _EPOCHS), unit="epochs", source="megvii-research/mdistiller",
        cohort_mutable=True,
    ),
    Field(
        "distill.label_smoothing", 0.0, "Share of a label that is spread over all classes.",
        range=right_open(0, 1), source="Szegedy et al. 2016, section 7", cohort_mutable=True,
    ),
    Field(
        "distill.features", (),
        "Pairs of a module of the teacher and one of the student whose outputs are compared, such "
        "as (('layer3', 'features.8'),); a wrong path names the near ones.",
        form="pairs of paths", cohort_mutable=True,
    ),
    Field(
        "distill.feature_loss", "mse",
        "`mse`: squared error behind a linear projector, which is not kept. `attention`: of the "
        "maps of where both are active.",
        choices=("mse", "attention"),
        source="`mse`: Romero et al. 2015; `attention`: Zagoruyko and Komodakis 2017",
        cohort_mutable=True,
    ),
    Field(
        "distill.feature_weight", 1.0, "Weight of the features' loss, which is added.",
        range=left_open(0, 1e6), cohort_mutable=True,
    ),
    Field(
        "mixup.kind", "batch",
        "Where a lambda is drawn: for the batch, for each group of neighbours in it (8 groups are "
        "what 8 devices with a lambda each would do), or for each example. `none`: no mixup.",
        choices=("none", "batch", "group", "example"), source="Zhang et al. 2018",
    ),
    Field(
        "mixup.groups", 1, "`group`: number of groups, which divides the batch.",
        range=closed(1, _BATCH),
    ),
    Field(
        "mixup.alpha", 1.0, "lambda is drawn from Beta(alpha, alpha); 1 is uniform.",
        range=left_open(0, 1e3),
    ),
    Field(
        "mixup.partner", "roll",
        "Example that another is mixed with; `roll`: the next of the batch, `permutation`: a "
        "random one of the batch, `uniform`: any training example.",
        choices=("roll", "permutation", "uniform"), source="`roll`: google-research/big_vision",
    ),
    Field(
        "mixup.method", "mixup",
        "`mixup`: a weighted sum of both images. `cutmix`: a box of the partner's pixels.",
        choices=("mixup", "cutmix"), source="`cutmix`: Yun et al. 2019",
    ),
    Field(
        "augment.crop_pad_px", 4,
        "Padding on each side before a random crop of the image's size; 0: no such crop.",
        range=closed(0, 16), unit="pixels",
    ),
    Field(
        "augment.crop_area", 1.0,
        "Least share of the image's area in a crop of random shape, which is scaled back to the "
        "image's size; 1: no such crop. For images that are larger than their subject.",
        range=left_open(0, 1),
    ),
    Field("augment.flip", True, "Flip each image left to right with probability 1/2."),
    Field(
        "checkpoint_every_steps", 500, "Distance between checkpoints.",
        range=closed(1, _COUNT), unit="steps", resume_mutable=True,
    ),
    Field(
        "keep_checkpoints", 2,
        "Number of the newest checkpoints that are kept, besides the best on validation.",
        range=closed(1, 1000), resume_mutable=True, cohort_mutable=True,
    ),
    Field(
        "eval_every_epochs", 1.0,
        "Distance between validations. It may change at a resume only where `patience` is 0, which "
        "counts validations.",
        range=left_open(0, _EPOCHS), unit="epochs", resume_mutable=True,
    ),
    Field(
        "log_every_steps", 10, "Distance between records of training metrics.",
        range=closed(1, _COUNT), unit="steps", resume_mutable=True,
    ),
    Field(
        "trackers", ("tensorboard",),
        "Where metrics are written besides `metrics.jsonl`, see docs/trackers.md; empty: nowhere.",
        form="some of `tensorboard`, `trackio`", resume_mutable=True, cohort_mutable=True,
    ),
    Field(
        "steps_per_call", 1,
        "Steps that the devices make before they return to Python, for networks so small that they "
        "would wait for it. The training is the same.",
        range=closed(1, 10_000), unit="steps", resume_mutable=True,
    ),
    Field(
        "num_devices", 0,
        "Devices to train on; 0: all of them, on CPU one a core. It may change at a resume only "
        "where `batch_norm.sync` is true.",
        range=closed(0, 4096), unit="devices", resume_mutable=True,
    ),
)  # fmt: skip

# Names of `trackers`.
TRACKERS = ("tensorboard", "trackio")
# Distillation losses that read the label of an image.
LABEL_LOSSES = ("dkd", "python_with_labels")
