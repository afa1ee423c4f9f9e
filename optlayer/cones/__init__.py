"""Cones, one file each: the projection Π onto the dual cone and its derivative."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cone:
    """K = {0}^zero × ℝ₊^nonnegative, in this order: what the rows of Ax + s = b live in."""

    zero: int
    nonnegative: int
