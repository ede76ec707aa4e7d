//! How much of the server each may have: nobody can take what is another's, however much they ask.
//!
//! - `rate`: how often. `counts`: how many at the same time. `turns`: who is next. All three are pure; the clock comes in.
//! - `gate`: what a request passes, and gives back when it has been answered. `settings`: the configuration's keys.
//! - `source`: whom an address stands for.
//!
//! Three rings, each within the next: a caller has less than its tenant, a tenant less than the server. Operators pass
//! the first two: they are who would have to help.

mod counts;
mod gate;
mod rate;
mod settings;
mod source;
mod turns;

pub use counts::Counts;
pub use gate::{Gate, Pass, Refused, Who};
pub use rate::{Rate, Rates};
pub use settings::{BodyLimits, ConnectionLimits, LimitsConfig, LimitsFile, Share};
pub use source::network;
