"""The claims of the lecture, each measured against exact values."""

from experiments.lecture.run import LectureConfig, lecture

__all__ = ["LectureConfig", "lecture"]
