"""Typed configuration: one frozen record for each stage, read from the composed YAML with all faults reported together.

Nothing here imports torch: the command line names a run's folder from these records before it loads anything.
"""
