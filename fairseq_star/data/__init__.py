"""Data of a distillation run: the audio data set, splits, bad and overlong audio, augmentation of the student's
input."""
