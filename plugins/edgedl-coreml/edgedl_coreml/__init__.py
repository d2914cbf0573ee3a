"""Core ML for edgedl."""
