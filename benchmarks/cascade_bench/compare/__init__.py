"""`cascade-bench compare`: a bundle and what the field would run instead, side by side.

In: a bundle, the run it was made from, labelled images. Out: a `Record` of speed and quality,
shown as tables, JSON, a plot and a page. `run` is the order of things.
"""
