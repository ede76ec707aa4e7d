//! The locked API document, and the Rust client made for it.
