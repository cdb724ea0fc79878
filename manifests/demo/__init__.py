"""The demo's synthetic corpus with its labels, the keyword task, and the pretraining of the embedded teacher."""
