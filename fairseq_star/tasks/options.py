"""Options of ``task=star_distillation``; those of augmentation are in ``fairseq_star/data/augment/options.py``."""

from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum
from omegaconf import II, MISSING

from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.data.bad_audio import POLICIES
from fairseq_star.teacher.cache.cache import STORED_DTYPES
from fairseq_star.teacher.cache.settings import COMPRESSIONS
from fairseq_star.teacher.provider import PRECISIONS


@dataclass
class StarDistillationConfig(AugmentConfig):
    """Options of ``task=star_distillation``."""

    data: str = field(default=MISSING, metadata={"help": "folder of the manifests, {split}.tsv"})
    teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the teacher, such as hubert_base_ls960.pt, or a HuggingFace folder or id, such as "
            "facebook/hubert-base-ls960 or facebook/hubert-base-ls960@REVISION"
        },
    )
    sample_rate: Optional[int] = field(
        default=None, metadata={"help": "Hz; taken from the teacher, and an error where it contradicts the teacher"}
    )
    normalize: Optional[bool] = field(
        default=None,
        metadata={"help": "audio to zero mean and unit variance; taken from the teacher, likewise"},
    )
    max_sample_size: Optional[int] = field(default=None, metadata={"help": "crop longer utterances to so many samples"})
    min_sample_size: Optional[int] = field(default=None, metadata={"help": "leave out utterances of fewer samples"})
    fixed_crop: bool = field(
        default=False, metadata={"help": "crop to the beginning; off: at random, but repeatably, anew each epoch"}
    )
    skip_audio_check: bool = field(
        default=False,
        metadata={"help": "do not read every file's header before training (seconds for 100 h) to name bad ones"},
    )
    on_bad_audio: ChoiceEnum(POLICIES) = field(
        default="error",
        metadata={"help": "a file that turns out unreadable in mid-run: end the run, or name it and go on without it"},
    )
    max_bad_share: float = field(
        default=0.01,
        metadata={"help": "with on_bad_audio=skip: end the run when more than this share of the utterances is bad"},
    )
    padded_group_norm: bool = field(
        default=False,
        metadata={
            "help": "first group norm of teacher and student (and what else mixes padding in) over the padded batch, "
            "as the libraries do; off: over valid samples, so that features do not depend on the neighbours in a batch"
        },
    )
    teacher_precision: Optional[ChoiceEnum(list(PRECISIONS))] = field(
        default=None, metadata={"help": "precision the teacher computes in; that of the run when not given"}
    )
    compile: bool = field(
        default=False,
        metadata={"help": "torch.compile the layers of teacher and student; best with task.pad_to_multiple"},
    )
    pad_to_multiple: int = field(
        default=1,
        metadata={"help": "pad batches to a multiple of so many samples (16000 say), so that compiled code is reused"},
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder to keep the teacher's hidden states in, so that later epochs and runs skip the teacher; "
            "its size is logged first (about 3.6 GB an hour of audio for HuBERT Base)"
        },
    )
    teacher_cache_dtype: ChoiceEnum(list(STORED_DTYPES)) = field(
        default="float16", metadata={"help": "precision of the stored hidden states, uncompressed"}
    )
    teacher_cache_compression: ChoiceEnum(COMPRESSIONS) = field(
        default="none",
        metadata={
            "help": "int8: a byte a number (1.8 GB an hour); pca: the first coordinates of each layer's principal "
            "components, a byte each (0.46 GB an hour at a quarter of the width). Fitted to a sample of the corpus in "
            "a first pass, which logs the error of Gram matrices and gradient"
        },
    )
    teacher_cache_dim: Optional[int] = field(
        default=None, metadata={"help": "of pca: coordinates stored; a quarter of the teacher's width when not given"}
    )
    release_memory: bool = field(
        default=False,
        metadata={
            "help": "without a GPU: give freed memory back to the system at once; off: the process keeps it for its "
            "next tensors, which saves a step its page faults"
        },
    )
    persistent_workers: bool = field(
        default=True,
        metadata={
            "help": "keep the training set's data workers from epoch to epoch; off: start them anew in each, which "
            "copies this process's memory page by page where it writes to it"
        },
    )
    log_tgm_maps: int = field(
        default=0,
        metadata={
            "help": "draw temporal Gram matrices of teacher and student to TensorBoard in the first validation and "
            "every so many-th after it; 0: never"
        },
    )
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")
    save_dir: Optional[str] = II("checkpoint.save_dir")
    restore_file: Optional[str] = II("checkpoint.restore_file")
    seed: int = II("common.seed")
    amp: bool = II("common.amp")
    max_update: int = II("optimization.max_update")
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    teacher_layers: Optional[List[int]] = II("criterion.teacher_layers")
