"""Augmentation of the student's input: masked parts, noise, rooms, other speakers.

The teacher always receives the clean utterance. What is masked or added depends on seed, epoch and utterance alone, and
is drawn in the data workers: a resumed run, other workers or other ranks draw the same.
"""
