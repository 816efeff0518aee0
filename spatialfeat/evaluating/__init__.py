"""Where an evaluation's predictions come from, and which files and tables it leaves behind."""
