"""What can be wrong with a data set, what a study of it takes on this machine, and the report of both."""
