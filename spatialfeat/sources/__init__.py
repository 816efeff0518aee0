"""Videos or frames, and annotations of any form -> what the other commands read."""
