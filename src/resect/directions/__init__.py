"""Directions in the residual stream: one method a file."""

from resect.directions.mean_difference import mean_difference, mean_rows, raw_direction
from resect.directions.values import Directions

__all__ = ["Directions", "mean_difference", "mean_rows", "raw_direction"]
