"""The lecture's claims, each measured."""

from experiments.lecture.run import LectureConfig, lecture

__all__ = ["LectureConfig", "lecture"]
