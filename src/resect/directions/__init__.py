"""Directions in the residual stream: one method a file, baselines as values, error bars."""

from resect.directions.baselines import Baseline
from resect.directions.mean_difference import mean_difference, mean_of_differences, mean_rows, raw_direction
from resect.directions.methods import METHODS, Method
from resect.directions.values import Directions

__all__ = ["METHODS", "Baseline", "Directions", "Method", "mean_difference", "mean_of_differences", "mean_rows", "raw_direction"]
