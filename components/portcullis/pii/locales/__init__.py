"""Packs of recognisers by region; `RECOGNISERS` has all of them, and those that hold everywhere."""

from portcullis.pii import entities
from portcullis.pii.locales import eu, us, world

RECOGNISERS = (*entities.RECOGNISERS, *world.RECOGNISERS, *us.RECOGNISERS, *eu.RECOGNISERS)
