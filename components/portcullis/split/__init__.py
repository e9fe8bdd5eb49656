"""The keyed split of a data set into training and test rows that share no input."""
