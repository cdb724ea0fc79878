"""A streaming student takes audio as it arrives: one chunk (``step``), any number of live streams (``streams``)."""

from fairseq_star.deploy.streaming.step import StreamShape, StreamState, StreamStep, check_streams
from fairseq_star.deploy.streaming.streams import Streams

__all__ = ["StreamShape", "StreamState", "StreamStep", "Streams", "check_streams"]
