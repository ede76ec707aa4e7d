//! Prepares a machine.
