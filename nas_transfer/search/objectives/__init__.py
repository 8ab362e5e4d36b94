"""Objectives: what is measured of a candidate, one file here and one in conf/objective each."""
