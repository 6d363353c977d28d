"""Text to speech: `voices.Voices` chooses a voice by name and streams PCM with phonemes; see `synthesizer` for the interface.

Kept empty of imports: the worker process runs inside this package and needs none of them.
"""
