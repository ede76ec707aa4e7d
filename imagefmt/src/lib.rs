//! Reads disk image headers without trusting them.
