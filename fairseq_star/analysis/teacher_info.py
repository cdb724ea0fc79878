"""``fairseq-star teacher``: facts on a checkpoint as a run would load it, and the layers a student would learn from."""

from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_encoder
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.losses.layer_plan import match_layers


def teacher_info(path: str, architecture: str = "starhubert") -> str:
    """Describe the teacher at ``path`` or HuggingFace id, and its layers matched with ``architecture``'s, line by line.

    Raises:
        StarError: an unknown architecture, or a teacher that cannot be loaded.
    """
    if architecture not in ARCHITECTURES:
        raise StarError(f"--arch: there is no {architecture[:60]!a}; the architectures are {', '.join(ARCHITECTURES)}")
    located = hub.locate(path, "teacher")
    teacher = load_encoder(located.path, option="teacher")
    try:
        matched = match_layers(teacher.num_layers, ARCHITECTURES[architecture]().encoder_layers)
        layers = " ".join(f"{own}<-{taught}" for own, taught in enumerate(matched, start=1))
    except StarError as error:
        layers = str(error)
    audio = "zero mean and unit variance" if teacher.normalize else "as it is"
    geometry = teacher.geometry
    frame_rate = teacher.sample_rate / geometry.downsample_rate
    rows = {
        "teacher": located.name,
        "family": teacher.family,
        "layers": teacher.num_layers,
        "width": teacher.embed_dim,
        "heads": teacher.num_heads,
        "parameters": f"{teacher.num_parameters:,}",
        "normalize": f"{str(teacher.normalize).lower()} (audio {audio})",
        "sample rate": f"{teacher.sample_rate:,} Hz",
        "frame rate": f"{frame_rate:g} Hz ({geometry.receptive_field} samples a frame)",
        "layer map": f"{architecture}: {layers}",
    }
    return "\n".join(f"{name:<13}{value}" for name, value in rows.items())
