"""One module per format that temporal code reads, and what these modules share."""
