"""Whole data sets as tokens: made on one machine or on Ray, read at random, exported, indexed and searched."""
