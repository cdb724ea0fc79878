"""The task: manifests in, a student trained on its teacher's hidden states."""

import logging

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import OmegaConf

from fairseq_star.data.splits import check_folder, load_augmentation, load_split
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import exit_on_star_error
from fairseq_star.fairseq_hooks.checkpoints import guard_runs, run_teacher
from fairseq_star.fairseq_hooks.data_watch import watch
from fairseq_star.fairseq_hooks.epoch_position import RecordedBatches, batch_options
from fairseq_star.fairseq_hooks.first_weights import begin_student, size_student
from fairseq_star.fairseq_hooks.preflight import adopt_audio_format, check_student
from fairseq_star.fairseq_hooks.steps import Steps
from fairseq_star.losses.units import UNITS
from fairseq_star.plots.tensorboard import TensorboardMaps
from fairseq_star.tasks.options import StarDistillationConfig
from fairseq_star.teacher.provider import TeacherProvider

logger = logging.getLogger(__name__)


@register_task("star_distillation", dataclass=StarDistillationConfig)
class StarDistillationTask(FairseqTask):
    """Distil a speech SSL model: a frozen teacher's hidden states for each batch of a manifest.

    The teacher is loaded when a model is built for training, never when a finished student is loaded.
    """

    cfg: StarDistillationConfig

    def __init__(self, cfg: StarDistillationConfig):
        super().__init__(cfg)
        self.provider: TeacherProvider | None = None
        self.augment = None
        self.first_weights_folder = self._option("save_dir")
        self.student_layers = self.student_dim = 0
        with exit_on_star_error():
            self.steps = Steps(cfg)
            # Read only where it is needed: a task made without a whole run's config has none.
            self.maps = TensorboardMaps(cfg.log_tgm_maps, cfg.tensorboard_logdir if cfg.log_tgm_maps else None)

    @classmethod
    def setup_task(cls, cfg: StarDistillationConfig, **kwargs) -> "StarDistillationTask":
        return cls(cfg)

    @property
    def teacher(self) -> FrozenEncoder | None:
        """Return the teacher, once a run has loaded it."""
        return self.provider and self.provider.encoder

    def _option(self, name: str) -> object:
        """Return an option of another section; None where a task is made without a run's config."""
        return OmegaConf.select(self.cfg, name, throw_on_resolution_failure=False)

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False):
        if from_checkpoint:
            return self._build(cfg, from_checkpoint)
        with exit_on_star_error():
            check_folder(self.cfg.data)
            provider = self._load_teacher()
            teacher = provider.encoder
            size_student(cfg, teacher.config)
            model = self._build(cfg)
            check_student(teacher, model, self.cfg)
            begin_student(self, model, teacher)
            provider.open_cache(
                self.cfg.teacher_cache,
                dtype=str(self.cfg.teacher_cache_dtype),
                compression=str(self.cfg.teacher_cache_compression),
                dim=self.cfg.teacher_cache_dim,
            )
        if self.cfg.compile:
            teacher.model.compile_layers()
            model.compile_layers()
        self.provider = provider
        self.student_layers, self.student_dim = len(model.encoder.layers), model.config.embed_dim
        student_parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info(
            f"teacher: {teacher.num_parameters:,} parameters, {teacher.num_layers} layers of {teacher.embed_dim}; "
            f"student: {student_parameters:,} ({student_parameters / teacher.num_parameters:.1%})"
        )
        return model

    def _build(self, cfg: FairseqDataclass, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.mask_prob:
            model.learn_mask()
        return model

    def build_criterion(self, cfg: FairseqDataclass, from_checkpoint: bool = False):
        criterion = super().build_criterion(cfg, from_checkpoint)
        if digests := [one.digest for term in getattr(criterion, "terms", ()) for one in getattr(term, "units", ())]:
            self.state.merge_state_dict({UNITS: digests})
        return criterion

    def _load_teacher(self) -> TeacherProvider:
        """Load the teacher; record its name and audio format for this run and in the student's checkpoints.

        A HuggingFace id gets its commit, so that a run keeps the teacher it began with.
        """
        precision = self.cfg.teacher_precision
        provider = TeacherProvider(
            run_teacher(self.cfg),
            precision=precision and str(precision),
            valid_group_norm=not self.cfg.padded_group_norm,
        )
        self.cfg.teacher = provider.name
        adopt_audio_format(self.cfg, provider.encoder)
        self.state.merge_state_dict(provider.record)
        return provider

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **kwargs) -> None:
        """Load ``{data}/{split}.tsv``, refusing a bad line or file before training starts."""
        cache, geometry = self.provider and self.provider.cache, self.provider and self.teacher.geometry
        with exit_on_star_error():
            if geometry and self.augment is None:  # else no student is trained, or it is built already
                self.augment = load_augmentation(self.cfg, geometry, self.student_dim)
            dataset = load_split(
                self.cfg,
                split,
                geometry=geometry,
                augment=self.augment,
                digests=cache is not None,
                read_ahead=cache and cache.read_ahead,
            )
            self.datasets[split] = dataset
            self.steps.bad_audio.set_split_size(len(dataset))
            if cache is not None:
                cache.count_in(split, dataset)

    def get_batch_iterator(self, dataset, *arguments, **options):
        training = dataset is self.datasets.get(self._option("train_subset"))
        with exit_on_star_error():
            iterator = super().get_batch_iterator(dataset, *arguments, **options)
            if training and not isinstance(iterator, RecordedBatches):
                iterator = RecordedBatches(iterator, dataset, batch_options(self.cfg, options))
                if dataset in self.dataset_to_epoch_iter:
                    self.dataset_to_epoch_iter[dataset] = iterator
        # Validation's workers start when the process is at its largest, and would keep a copy of it to the run's end.
        iterator.persistent_workers &= training
        return watch(iterator)

    def begin_epoch(self, epoch: int, model) -> None:
        self.steps.begin_epoch(model)

    def begin_valid_epoch(self, epoch: int, model) -> None:
        self.steps.losses.check()
        self.maps.begin_validation(model)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        arguments = sample, model, criterion, optimizer, update_num, ignore_grad
        return self.steps.train(super().train_step, self.provider, *arguments)

    def valid_step(self, sample, model, criterion):
        result = self.steps.validate(super().valid_step, self.provider, sample, model, criterion)
        if "net_input" in sample:
            self.maps.draw(self.provider, criterion, sample)
        return result

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        with exit_on_star_error():
            self.steps.reduce(logging_outputs, self.provider, training=criterion.training)

    def max_positions(self):
        return None


guard_runs(StarDistillationTask)
