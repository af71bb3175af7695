"""From arrays and options to a Problem: the only place that complains about input.

Below this folder nothing is checked again. `arrays` knows array types and dtypes, `match` names axes, `options` reads
the small values, and the rest makes one call each: `attention`, `decoding`, `transforms`.
"""
