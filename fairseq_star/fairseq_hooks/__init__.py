"""Replaced functions of fairseq, and checks before a run: checkpoints, signals, threads and memory.

fairseq asks a plugin nothing about these, so some of its functions are replaced. All of them, with who does it and why:

``checkpoint_utils.load_checkpoint`` (``checkpoints``): training alone calls it (``fairseq_cli/train.py``, ``main``),
    once, before data is read. There a run is checked, and the next three are replaced.
``checkpoint_utils.torch_persistent_save`` (``checkpoints``): gives up on a full disk in 8 s, and does not sync.
``checkpoint_utils.PathManager`` (``checkpoints``): its ``copy`` leaves half a file when killed.
``fairseq_cli.train.validate_and_save`` (``stopping``): a run that must stop would validate first.
``checkpoint_utils.verify_checkpoint_directory`` (``checkpoints``): a ``save_dir`` that is a file ends in a traceback.
    ``main`` calls it before there is a task: it and the first are replaced on import, not when training starts.
``models.hubert.hubert_asr.HubertEncoder`` (``models.hubert_ctc``): a wrong ``w2v_path`` ends in a traceback.
``models.MODEL_DATACLASS_REGISTRY`` (``models.hubert_ctc``): the config of ``hubert_ctc`` lacks an option that its
    encoder reads (facebookresearch/fairseq#4916).
"""
