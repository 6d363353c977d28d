"""The bars of the judge. docs/reference/judge.md says how each was found; `python -m tests.bench.judge_table` makes its table."""

from __future__ import annotations

LAG_MS = 45.0
"""Most that the lips may be early or late. ITU-R BT.1359-1: from here on people notice sound that leads the picture. Real clips
of 9 s measured -17 … 6 ms, of 3 s -38 … 41."""
LAG_CONFIDENCE = 0.4
"""A lag of less confidence (`measure_sync.Lag`) is no verdict: then lips must follow the sound near lag 0."""
NEAR_MS = 60.0
"""Lags at which lips count as in step when their exact lag is not known."""
LIP_CORRELATION = 0.5
"""Least correlation of lips and sound. Real clips of 9 s measured 0.64 and more, another talker's speech at most 0.45; of 3 s 0.48
(one in a hundred) and at most 0.51 (nine in ten)."""
CLOSURES = 0.4
"""Least share of /p b m/ at which the lips close. 19 real films of 9 s measured 0.40 and more (median 1.0), the same mouths at
other moments 0.0 … 1.0 (median 0.61): only a mouth that hardly closes fails."""
CLOSURES_LEAST = 4
"""Fewer sounds give no verdict."""
REST = 0.03
"""Most that a mouth in silence may move: standard deviation of its opening in outer eye distances. 95 of 100 real clips kept
0.015; those above 0.02 open the mouth long before they speak."""
REST_LEAST_S = 0.5
FROZEN_S = 1.2
"""Longest stretch of speech in which the lips may stand still, in seconds. Real clips measured at most 1.08."""
STILL = 2.2
"""Under this many times the motion of cheeks and nose, over a second, lips stand still. Real mouths 2.7 … 5.4 (median of a clip),
pasted ones 1.0 … 2.1."""
MOTION_LEAST = 0.5
"""Motion of cheeks and nose, in levels a frame, that is assumed at least: of a still picture they do not move."""
FLICKER = 0.8
"""Most that the skin around the mouth may change from frame to frame beyond cheeks and nose, motion taken off, in levels, in the
worst tenth of the frames, and beyond the reference."""
SHARPNESS = 0.70
"""Least detail of the mouth against the rest of the face. Real clips measured 0.76 … 1.22."""
SHARPNESS_OF_REFERENCE = 0.75
"""The same as a share of what the reference has; a mouth blurred over 2.5 pixels keeps 0.46 … 0.61."""
SEAM = 0.6
"""Most steepness of an edge round the mouth, in levels a pixel, that the reference has not. A step of 6 levels measured 1.0 … 1.8,
none 0.0 … 0.2."""
COLOUR_STEP = 3.5
"""Most distance, in Lab levels, by which the skin around the mouth may lie off the cheeks other than in the reference. Clips of one
talker differ by up to 2.8; a tint of 14 levels of one colour measured 3.9 and more."""
BLACK = 0.0
"""Most share of black frames, beyond that of the reference."""
BLACK_LEVEL = 20.0
"""A frame is black when 99 of 100 pixels are darker than this (levels of luminance; black is 16 in video)."""
FACE_LEAST_S = 1.0
"""A face that is seen for less is not judged."""
FACE_LEAST_PX = 48.0
"""A face that is narrower is not judged: its lips are a few pixels high."""
