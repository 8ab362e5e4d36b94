"""Search: which archs to ask for, what a candidate scores and costs, and the study that remembers all of it."""
