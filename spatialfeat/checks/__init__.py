"""What can be wrong with a data set: one module per family of faults, the estimate, and how all of it is told."""
