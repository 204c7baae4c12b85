"""The lane and its policy for all tests of this folder."""

from lane_cases import lane, lane_policy

__all__ = ["lane", "lane_policy"]
