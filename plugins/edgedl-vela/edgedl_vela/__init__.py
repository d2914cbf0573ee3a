"""Vela, Arm's compiler for Ethos-U, as a plugin of edgedl."""
