"""What the student hears while it learns, where that is less than the teacher hears: parts masked, or noise added.

The teacher always hears the clean utterance. What is masked or added depends on seed, epoch and utterance alone, and is
drawn in the data workers: a resumed run, other workers or other ranks hear the same.
"""
