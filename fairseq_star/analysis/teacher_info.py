"""``fairseq-star teacher``: facts on a checkpoint as a run would load it, and the layers a student would learn from."""

from dataclasses import dataclass

from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_encoder
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.losses.layer_plan import match_layers


@dataclass
class TeacherInfo:
    """Facts on a teacher; the command prints its ``str()``."""

    path: str
    family: str
    num_layers: int
    embed_dim: int
    num_heads: int | tuple[int, ...]
    num_parameters: int
    normalize: bool
    sample_rate: int  # Hz
    frame_rate: float  # Hz
    receptive_field: int  # samples
    architecture: str
    layer_map: list[int] | StarError  # the teacher's layer (1-based) for each of the student's, or the error

    def __str__(self) -> str:
        audio = "zero mean and unit variance" if self.normalize else "as it is"
        if isinstance(self.layer_map, StarError):
            layers = str(self.layer_map)
        else:
            layers = " ".join(f"{own}<-{taught}" for own, taught in enumerate(self.layer_map, start=1))
        rows = [
            ("teacher", self.path),
            ("family", self.family),
            ("layers", self.num_layers),
            ("width", self.embed_dim),
            ("heads", self.num_heads),
            ("parameters", f"{self.num_parameters:,}"),
            ("normalize", f"{str(self.normalize).lower()} (audio {audio})"),
            ("sample rate", f"{self.sample_rate:,} Hz"),
            ("frame rate", f"{self.frame_rate:g} Hz ({self.receptive_field} samples a frame)"),
            ("layer map", f"{self.architecture}: {layers}"),
        ]
        return "\n".join(f"{name:<13}{value}" for name, value in rows)


def teacher_info(path: str, architecture: str = "starhubert") -> TeacherInfo:
    """Load the teacher at ``path`` or HuggingFace id as a run would, and match its layers with ``architecture``'s.

    Raises:
        StarError: an unknown architecture, or a teacher that cannot be loaded.
    """
    if architecture not in ARCHITECTURES:
        raise StarError(f"--arch: there is no {architecture[:60]!a}; the architectures are {', '.join(ARCHITECTURES)}")
    located = hub.locate(path, "teacher")
    teacher = load_encoder(located.path, option="teacher")
    try:
        layer_map = match_layers(teacher.num_layers, ARCHITECTURES[architecture]().encoder_layers)
    except StarError as error:
        layer_map = error
    return TeacherInfo(
        path=located.name,
        family=teacher.family,
        num_layers=teacher.num_layers,
        embed_dim=teacher.embed_dim,
        num_heads=teacher.num_heads,
        num_parameters=teacher.num_parameters,
        normalize=teacher.normalize,
        sample_rate=teacher.sample_rate,
        frame_rate=teacher.sample_rate / teacher.geometry.downsample_rate,
        receptive_field=teacher.geometry.receptive_field,
        architecture=architecture,
        layer_map=layer_map,
    )
