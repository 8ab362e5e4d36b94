"""Objectives: what a search measures of a trial. Each has one file here and one in conf/objective."""
