"""A folder of images → where its captions are, in the layouts that data sets come in."""
