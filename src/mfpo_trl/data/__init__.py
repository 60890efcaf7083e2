"""From a text-preference data set to one with dispreferred images (`mfpo build`): sources, key words, regions, difficulty."""
