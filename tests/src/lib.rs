//! Black box and in-process tests of the whole.
