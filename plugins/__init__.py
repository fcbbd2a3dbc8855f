"""The clustering operator: numpy reference, native library, and the one function that checks its input and
calls it."""
