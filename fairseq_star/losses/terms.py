"""What the criterion logs, in the order in which it is shown, and what each means to a reader of the report."""

TERMS = {
    "loss": "the sum that training lowers",
    "layerwise": "how moments relate within each layer",
    "intra_layer": "how moments relate from the input of a layer to its output",
    "avg_attn": "where all layers look (attention maps)",
    "last_attn": "where the last layer looks (attention map)",
    "units": "which of the teacher’s units each hidden moment is (cross-entropy)",
    "units_unmasked": "which of the teacher’s units each clear moment is (cross-entropy)",
    "unit_accuracy": "share of moments whose unit is told right; the one curve here that should rise",
    "frames": "how near the teacher’s states lie, moment by moment, through linear heads",
}
