"""Teachers by their HuggingFace id, with the real client and a hub on the loopback interface."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_star.analysis.probe import run_probe
from fairseq_star.analysis.profile import profile
from fairseq_star.analysis.runs import load_run
from fairseq_star.analysis.teacher_info import teacher_info
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.checkpoints import run_teacher
from fairseq_star.formats import hub as teacher_hub
from fairseq_star.formats import import_student, load_teacher, teacher_files
from fairseq_star.formats.hub import locate, locate_together
from fairseq_star.formats.student import load_student
from tests.support import ROOT, hub_server, runs, tiny_teachers
from tests.support.runs import NO_DROPOUT, saved

pytest.importorskip("huggingface_hub")
ID, OPTION = "acme/hubert-base.v2", "task.teacher"
CONFIGS = {"config.json": b"{}", "preprocessor_config.json": b"{ }"}  # equal contents would be fetched once
OTHERS = {
    "README.md": b"#", "modeling.py": b"raise SystemExit", "tf_model.h5": b"t", "flax_model.msgpack": b"f",
    "onnx/model.onnx": b"o", "model.fp16.safetensors": b"h", "training_args.bin": b"a", "vocab.json": b"{}",
}  # fmt: skip


def sharded(stem: str, suffix: str) -> dict[str, bytes]:
    parts = [f"{stem}-{number:05d}-of-00002.{suffix}" for number in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", parts, strict=True))}).encode()
    return {f"{stem}.{suffix}.index.json": index, **{part: part.encode() for part in parts}}


SAFETENSORS, PICKLE = {"model.safetensors": b"safe"}, {"pytorch_model.bin": b"pickle"}
SAFE_PARTS, PICKLE_PARTS = sharded("model", "safetensors"), sharded("pytorch_model", "bin")
SIMPLE = {**CONFIGS, **SAFETENSORS}


@pytest.fixture
def hub():
    with hub_server.served() as hub:
        yield hub


@pytest.fixture
def environment(hub, tmp_path):
    """What makes the client of a process talk to the hub of the test, and keep what it gets in the test's folder."""
    proxies = dict.fromkeys([name for name in os.environ if name.lower().endswith("_proxy")], "")
    return {
        **proxies, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "",
    }  # fmt: skip


@pytest.fixture
def restart(environment, monkeypatch):
    """Have the client read its environment again, with changes, as a new process would; it never leaves 127.0.0.1."""
    kept = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] == "huggingface_hub"}
    others, connect = [], socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            others.append(address)
            raise OSError("no test leaves this machine")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)

    def forget() -> None:
        if loaded := sys.modules.get("huggingface_hub.utils"):
            getattr(loaded, "close_session", lambda: None)()  # not in the oldest versions
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]

    def restart(**changes: str) -> None:
        for name, value in {**environment, **changes}.items():
            monkeypatch.setenv(name, value)
        forget()

    restart()
    yield restart
    forget()
    sys.modules.update(kept)
    assert not others


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("model") / "hubert"

    def save(model, path: Path) -> None:
        model.save_pretrained(path, max_shard_size="20KB")

    tiny_teachers.huggingface(path, "hubert", save=save)
    assert (path / "model.safetensors.index.json").exists()
    return path


def files_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def one_line(call, *words: str) -> str:
    with pytest.raises(StarError) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told
    assert "; " in told, "no mend"
    assert [word for word in words if word not in told] == []
    return told


# What is an id.


@pytest.mark.parametrize(
    "name",
    [
        "hubert.pt", "models/hubert.pt", "models/hubert.safetensors", "./acme/hubert", "../hubert", "~/hubert", "/a/b",
        "a/b/c", "acme/", "/hubert", "acme/hubert@", "acme/HUBERT.PT",
        "some-model", "acme/hub ert", "", "acme/a--b", "acme//hubert",
    ],
)  # fmt: skip
def test_a_path_is_not_looked_for_on_the_hub(name, hub, restart):
    assert locate(name, OPTION) == teacher_hub.Located(name, name)
    told = one_line(lambda: load_teacher(name), OPTION, f"{name} is not there")
    assert "facebook/hubert-base-ls960" in told
    assert not hub.log


def test_what_exists_is_a_path(hub, restart, tmp_path, monkeypatch):
    hub.repository("acme/hubert", SIMPLE)
    (tmp_path / "acme" / "hubert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("acme/hubert", OPTION).path == "acme/hubert"
    assert not teacher_hub.names_moving("acme/hubert")
    assert not hub.log


# What is fetched.


@pytest.mark.parametrize("asked", ["", "@main", "@v1.0", "@refs/pr/3", "@commit"])
def test_an_id_is_fetched_and_named_by_its_commit(asked, hub, restart):
    repository = hub.repository(ID, SIMPLE)
    commit = repository.branches["v1.0"] = repository.branches["refs/pr/3"] = repository.branches["main"]
    repository.push({**SIMPLE, "model.safetensors": b"later"}, "elsewhere")
    located = locate(ID + asked.replace("commit", commit), OPTION)
    assert located.name == f"{ID}@{commit}"
    assert files_in(located.path) == set(SIMPLE)
    assert (Path(located.path) / "model.safetensors").read_bytes() == b"safe"
    assert not teacher_hub.names_moving(located.name)


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (SAFETENSORS | PICKLE | PICKLE_PARTS, SAFETENSORS),
        (SAFETENSORS | SAFE_PARTS, SAFETENSORS),
        (SAFE_PARTS | PICKLE, SAFE_PARTS),
        (PICKLE | PICKLE_PARTS, PICKLE),
        (PICKLE_PARTS, PICKLE_PARTS),
    ],
)
@pytest.mark.parametrize("configs", [CONFIGS, {"config.json": b"{}", "processor_config.json": b"{ }"}])
def test_configs_and_one_format_of_the_weights_are_fetched(configs, there, fetched, hub, restart):
    hub.repository(ID, {**OTHERS, **there, **configs})
    located = locate(ID, OPTION)
    assert files_in(located.path) == hub.fetched == {*configs, *fetched}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.sampled_from(sorted({**OTHERS, **SAFETENSORS, **PICKLE, **SAFE_PARTS, **PICKLE_PARTS}))))
def test_a_fetched_teacher_is_that_of_a_whole_clone(tmp_path_factory, names):
    contents = {**OTHERS, **SAFETENSORS, **PICKLE, **SAFE_PARTS, **PICKLE_PARTS, **CONFIGS}
    names |= set(CONFIGS)
    clone, fetched = (tmp_path_factory.mktemp(name) for name in ("clone", "fetched"))
    try:
        wanted = set(teacher_hub._wanted(sorted(names), "title"))
    except StarError:
        wanted = set()
    for folder, chosen in ((clone, names), (fetched, names & wanted)):
        for name in chosen:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(contents[name])

    def read(folder: Path) -> list[str] | None:
        try:
            return [Path(path).name for path in teacher_files(str(folder))]
        except StarError:
            return None

    assert read(fetched) == read(clone)
    assert not wanted & set(OTHERS)
    assert not ({"model.safetensors", *SAFE_PARTS} & wanted and {"pytorch_model.bin", *PICKLE_PARTS} & wanted)


def test_what_is_cached_is_not_fetched_again(hub, restart):
    hub.repository(ID, SIMPLE)
    pinned = locate(ID, OPTION).name
    hub.log.clear()
    restart()
    assert locate(ID, OPTION).name == pinned
    assert not hub.fetched
    hub.log.clear()
    assert locate(pinned, OPTION).name == pinned
    assert not hub.log, "a commit cannot change"


def test_a_cache_that_lacks_the_audio_format_is_completed(hub, restart):
    """transformers' own loader of models leaves one."""
    commit = hub.repository(ID, SIMPLE).branches["main"]
    from huggingface_hub import snapshot_download

    snapshot_download(ID, allow_patterns=["config.json", "model.safetensors"])
    assert files_in(locate(f"{ID}@{commit}", OPTION).path) == set(SIMPLE)


def test_a_moved_branch_is_followed(hub, restart):
    repository = hub.repository(ID, SIMPLE)
    first = locate(ID, OPTION)
    commit = repository.push({**SIMPLE, "model.safetensors": b"moved"})
    moved = locate(ID, OPTION)
    assert moved.name == f"{ID}@{commit}" != first.name
    assert (Path(moved.path) / "model.safetensors").read_bytes() == b"moved"
    assert (Path(first.path) / "model.safetensors").read_bytes() == b"safe"


# What cannot be fetched.


@pytest.mark.parametrize("asked", ["main", "commit"])
def test_offline_the_cache_is_enough(asked, hub, restart):
    commit = hub.repository(ID, {**SIMPLE, **OTHERS}).branches["main"]
    cached = locate(ID, OPTION)
    hub.log.clear()
    restart(HF_HUB_OFFLINE="1")
    assert locate(f"{ID}@{asked.replace('commit', commit)}", OPTION) == cached
    assert not hub.log


@pytest.mark.parametrize("cached", [(), ("config.json",), ("config.json", "model-00001-of-00002.safetensors")])
def test_offline_without_it_is_one_line(cached, hub, restart, environment):
    hub.repository(ID, {**CONFIGS, **SAFE_PARTS})
    if cached:
        from huggingface_hub import snapshot_download

        snapshot_download(ID, allow_patterns=list(cached))
    hub.log.clear()
    restart(HF_HUB_OFFLINE="1")
    one_line(lambda: locate(ID, OPTION), OPTION, ID, "HF_HUB_OFFLINE", environment["HF_HUB_CACHE"])
    assert not hub.log


def test_a_hub_that_is_down_is_one_line_or_the_cache(restart, caplog, tmp_path):
    with hub_server.served() as gone:
        gone.repository(ID, SIMPLE)
        restart(HF_ENDPOINT=gone.url)
        cached = locate(ID, OPTION)
    restart(HF_ENDPOINT=gone.url)
    assert locate(ID, OPTION) == cached
    assert cached.name.rpartition("@")[2] in caplog.text, "told"
    restart(HF_ENDPOINT=gone.url, HF_HUB_CACHE=str(tmp_path / "empty"))
    one_line(lambda: locate(ID, OPTION), OPTION, ID, gone.url, "try again")


@pytest.mark.parametrize("cached", [(), ("config.json",)])
def test_a_hub_that_fails_half_way_is_one_line(cached, hub, restart):
    hub.repository(ID, SIMPLE)
    if cached:
        from huggingface_hub import snapshot_download

        snapshot_download(ID, allow_patterns=list(cached))
    hub.after[f"GET /api/models/{ID}/revision/main"] = lambda: setattr(hub, "is_down", True)
    one_line(lambda: locate(ID, OPTION), OPTION, ID, hub.url, "try again")
    assert not hub.fetched & set(SAFETENSORS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme/absent", ("no file or folder", "no model acme/absent", "HF_TOKEN")),
        (f"{ID}@v9", (ID, "no revision v9", "branch")),
        (f"{ID}@{'0' * 40}", (ID, f"no revision {'0' * 40}")),
        ("acme/gated", ("acme/gated is restricted", "HF_TOKEN")),
        ("acme/checkpoints", ("acme/checkpoints has no config.json",)),
        ("acme/flax", ("acme/flax has neither model.safetensors nor pytorch_model.bin",)),
        ("acme/ends.git", ("acme/ends.git",)),
    ],
)
def test_each_failure_is_one_line(name, words, hub, restart):
    hub.repository(ID, SIMPLE)
    hub.repository("acme/gated", SIMPLE, gated=True)
    hub.repository("acme/checkpoints", {"hubert.pt": b"", "README.md": b""})
    hub.repository("acme/flax", {**CONFIGS, "flax_model.msgpack": b""})
    one_line(lambda: locate(name, OPTION), OPTION, *words)
    assert not hub.fetched & {*SAFETENSORS, "flax_model.msgpack"}


def test_a_token_opens_a_gated_model_and_a_wrong_one_is_one_line(hub, restart):
    hub.repository(ID, SIMPLE, gated=True)
    restart(HF_TOKEN="hf_wrong")
    one_line(lambda: locate(ID, OPTION), OPTION, ID, "renew HF_TOKEN")
    restart(HF_TOKEN=hub_server.TOKEN)
    assert files_in(locate(ID, OPTION).path) == set(SIMPLE)


def test_a_full_disk_is_one_line(hub, restart, environment):
    hub.repository(ID, {**SIMPLE, "model.safetensors": bytes(3 * 2**20)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))  # a write past it fails as one to a full disk does
    try:
        one_line(lambda: locate(ID, OPTION), OPTION, ID, environment["HF_HUB_CACHE"], "make room", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(locate(ID, OPTION).path) == set(SIMPLE), "the next attempt mends it"


def test_without_the_client_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    one_line(lambda: locate(ID, OPTION), OPTION, ID, "pip install 'fairseq-star[hf]'")


# Who takes an id.


def test_commands_take_an_id(hub, restart, model, tmp_path):
    commit = hub.repository(ID, model).branches["main"]
    source = torch.randn(1, 6000)
    expected = load_teacher(str(model))(source, [6000]).hidden_states[-1]
    assert torch.equal(load_teacher(ID)(source, [6000]).hidden_states[-1], expected)
    assert f"{ID}@{commit}" in teacher_info(ID)
    [row] = profile([f"{ID}@main"], teacher=ID, speed=False).rows
    assert (row.name, row.family) == (f"{ID}@{commit}", "HuBERT (HuggingFace)")
    import_student(ID, tmp_path / "student.pt")
    assert load_student(str(tmp_path / "student.pt"), "test").num_parameters == row.num_parameters
    one_line(lambda: run_probe(ID, teacher="acme/absent", data=tmp_path), "--teacher", "acme/absent")


def test_a_run_keeps_its_commit(hub, restart, environment, model, corpus, tmp_path, monkeypatch, caplog):
    repository = hub.repository(ID, model)
    commit = repository.branches["main"]
    run = tmp_path / "run"
    options = [
        *NO_DROPOUT,
        "model.encoder_layers=2",
        "optimization.max_update=4",
        f"task.teacher_cache={tmp_path / 'cache'}",
    ]
    finished = runs.run(runs.hydra_arguments(corpus, f"{ID}@main", run, *options))
    assert finished.returncode == 0, finished.stderr
    assert saved(run / "checkpoint_last.pt")["cfg"]["task"]["teacher"] == f"{ID}@{commit}"

    moved = repository.push({path.name: path.read_bytes() for path in model.iterdir()} | {"model.safetensors": b""})
    hub.log.clear()
    assert load_run(str(run / "checkpoint_last.pt")).cfg.task.teacher == f"{ID}@{commit}", "evaluate and report"
    assert not hub.log

    def teacher_of(name: str, checkpoint: str = "checkpoint_last.pt") -> str:
        """What a run of the same command, or another, would learn from."""
        cfg = OmegaConf.create(saved(run / "checkpoint_best.pt")["cfg"])
        cfg.task.teacher, cfg.task.save_dir, cfg.task.restore_file = name, str(run), checkpoint
        return locate_together(run_teacher(cfg.task), "task.teacher").name

    assert teacher_of(ID) == teacher_of(f"{ID}@main") == f"{ID}@{commit}"
    assert "as in the run's checkpoint" in caplog.text
    assert not hub.log
    (run / "checkpoint_last.pt").write_bytes(b"damaged")
    assert teacher_of(ID) == teacher_of(ID, str(run / "checkpoint_best.pt")) == f"{ID}@{commit}"
    assert teacher_of(ID, str(run / "none.pt")) == f"{ID}@{moved}"
    hub.repository("acme/other", SIMPLE)
    assert teacher_of("acme/other").startswith("acme/other@")
    assert teacher_of(f"{ID}@{moved}") == f"{ID}@{moved}"


WORKERS = """
import json, multiprocessing, os, platform, sys
import torch.distributed as dist
from fairseq_star.errors import StarError
from fairseq_star.formats.hub import locate_together

def work(rank):
    machine = "one" if rank < 2 else "two"
    platform.node = lambda: machine
    os.chdir(machine)
    os.environ |= {"HF_HOME": f"{os.getcwd()}/home", "HF_HUB_CACHE": f"{os.getcwd()}/home/hub"}
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/../rendezvous", rank=rank, world_size=3)
    told = []
    for name in sys.argv[1:]:
        try:
            located = locate_together(name, "task.teacher")
            told.append([located.name, located.path])
        except StarError as error:
            told.append(str(error))
    with open(f"../told{rank}.json", "w") as file:
        json.dump(told, file)

assert "huggingface_hub" not in sys.modules  # which reads its environment when it is imported
workers = [multiprocessing.get_context("fork").Process(target=work, args=[rank]) for rank in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
sys.exit(any(worker.exitcode for worker in workers))
"""


def test_workers_wait_for_one_of_each_machine(hub, environment, tmp_path):
    """Three workers on two machines, whose caches are two; the branch moves as soon as worker 0 has what it wants."""
    repository = hub.repository(ID, SIMPLE)
    commit = repository.branches["main"]
    weights = f"GET /lfs/{ID}/resolve/{commit}/model.safetensors"
    hub.after[weights] = lambda: repository.push({**SIMPLE, "model.safetensors": b"moved"})
    (tmp_path / "one").mkdir()
    (tmp_path / "two" / "acme").mkdir(parents=True)
    (tmp_path / "two" / "acme" / "half").touch()
    finished = subprocess.run(
        [sys.executable, "-c", WORKERS, ID, "acme/absent", "acme/half"], capture_output=True, text=True, timeout=300,
        cwd=tmp_path, env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(3)]
    located, absent, half = zip(*told, strict=True)
    assert [name for name, _ in located] == [f"{ID}@{commit}"] * 3
    assert [Path(path).is_relative_to(tmp_path / "two") for _, path in located] == [False, False, True]
    assert hub.log.count(weights) == 2
    assert hub.log.count(f"GET /api/models/{ID}/revision/main") in (1, 2), "the client's own count for one worker"
    assert len(set(absent)) == len(set(half)) == 1
    assert "no model acme/absent" in absent[0]
    assert len([line for line in hub.log if "absent" in line]) == 1
    assert "acme/half exists for some workers only" in half[0]
