//! The locked API document, and the Rust client made for it.
//!
//! The client is thin: it knows the manners of the API (paging, jobs, problems, uploads, the console), which
//! are the same for every kind, and no kind at all. Kinds are in the [`DOCUMENT`].

mod client;
mod console;
mod error;
mod events;
mod kinds;
mod patience;
mod shown;
#[cfg(test)]
mod tests;
mod types;

pub use client::{Answer, Client, Login, Pieces, Settings};
pub use console::Console;
pub use error::{Error, FieldError, Problem};
pub use events::{Event, Events};
pub use kinds::{Choice, Kind, Kinds, Verb};
pub use shown::Renewal;
pub use types::{Job, JobStep, Outcome, Page, Resource, Written};

/// The OpenAPI 3.1 document of the API, as it is locked in the repository.
pub const DOCUMENT: &str = include_str!("../openapi.json");
