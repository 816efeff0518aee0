"""The HDF5 feature file: write it, check it, read it, cut windows from it, say what it holds."""
