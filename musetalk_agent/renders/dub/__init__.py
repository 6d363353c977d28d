"""Dubs: the mouths of real footage say another sound, and everything else stays as it is."""
