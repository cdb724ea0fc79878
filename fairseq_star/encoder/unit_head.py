"""HuBERT's prediction of units: one of K for each frame, by cosine with learned vectors (arXiv 2106.07447, eq. 3).

    logits_k = cos(W x_t + b, e_k) / temperature

Source: ``fairseq/models/hubert/hubert.py``, ``compute_nce``; the cosines there are taken one unit at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1  # HubertConfig.logit_temp


class UnitHead(nn.Module):
    """``final_proj`` and ``label_embs_concat`` of a HuBERT, of one set of units.

    Args:
        width: D, of the states.
        num_units: K.
        dim: of the space in which cosines are taken.
        temperature: cosines are divided by it.
    """

    def __init__(self, width: int, num_units: int, dim: int = 256, temperature: float = TEMPERATURE):
        super().__init__()
        self.final_proj = nn.Linear(width, dim)
        self.label_embs = nn.Parameter(torch.empty(num_units, dim).uniform_())
        self.temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (N x K, float32) of ``states`` (N x D)."""
        with torch.autocast(states.device.type, enabled=False):
            given = F.linear(states.float(), self.final_proj.weight.float(), self.final_proj.bias.float())
            return F.normalize(given, dim=-1) @ F.normalize(self.label_embs.float(), dim=-1).T / self.temperature
