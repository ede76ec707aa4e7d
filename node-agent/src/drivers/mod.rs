//! One driver per thing the node can hold. Each observes, applies and removes its own, and never calls another:
//! what spans them (an instance needs its disks and networks first) is decided in `reconcile`.
//!
//! Kinds that stand alone are plain: see `plain.rs`, and THE LIST below.

pub mod disk;
pub mod image;
pub mod instance;
pub mod network;
pub mod snapshot;

use crate::env::Env;
use crate::plain::{Line, Plains};
use crate::wireguard::engine::Wanted;
use std::io;
use std::path::Path;

/// THE LIST of drivers of plain kinds, one line each, as `cargo xtask new-resource NAME --agent` writes it.
const PLAIN: &[Line] = &[
    // A kind's line: crate::plain::driver::<thing::ThingDriver>,
];

/// The drivers of all plain kinds, on the node whose agent keeps its things in this folder.
pub fn plain(state: &Path, env: &Env, wireguard: Wanted) -> Plains {
    // Devices and their peers are several kinds in one room.
    alone(state).into_iter().chain(crate::wireguard::drivers(state, env, wireguard)).collect()
}

/// Those of THE LIST alone: they need nothing but the folder.
pub fn alone(state: &Path) -> Plains {
    PLAIN.iter().map(|line| line(state)).collect()
}

/// Something that is not as a driver left it, or not as it was ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deviation {
    /// `network.links`, `network.rules`, `guest.file`...
    pub what: &'static str,
    /// What there should be, for people.
    pub expected: String,
    /// What is there instead.
    pub found: String,
}

impl Deviation {
    /// One, in the words of people.
    pub fn new(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what, expected: expected.into(), found: found.into() }
    }
}

/// Told how many bytes are there, now and then.
pub type Progress = Box<dyn FnMut(u64) + Send>;

/// Why a driver could not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The world may be kinder next time: tried again with backoff.
    #[error("{0}")]
    Retry(String),
    /// The order itself cannot be carried out on this node: reported, and not tried again until it changes.
    #[error("{0}")]
    Permanent(String),
}

impl DriverError {
    /// True if trying the same order again cannot help.
    pub fn is_permanent(&self) -> bool {
        matches!(self, DriverError::Permanent(_))
    }

    /// Says what was being done when `error` happened.
    pub fn io(doing: impl std::fmt::Display, error: &io::Error) -> Self {
        DriverError::Retry(format!("{doing}: {error}"))
    }
}
