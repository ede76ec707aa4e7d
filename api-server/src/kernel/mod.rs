//! The words of the domain. No I/O, no SQL, no HTTP, no wire: whoever wants to know what Rhyzome *is*
//! reads this folder, and everything in it can be tested in microseconds.

pub mod adopt;
pub mod caller;
pub mod certificate;
pub mod env;
pub mod error;
pub mod facts;
pub mod job;
pub mod join;
pub mod kind;
pub mod name;
pub mod phase;
pub mod place;
pub mod plan;
pub mod policy;
pub mod quota;
pub mod realm;
pub mod resource;
pub mod role;
pub mod schema;
pub mod secret;
pub mod ssh;
pub mod totp;
pub mod version;
pub mod webhook;
pub mod wireguard;

pub use caller::{Caller, Right};
pub use env::{Env, Timestamp};
pub use error::{Clash, Error, FieldError};
pub use facts::{Fact, Facts, Ref, Relation, Target};
pub use job::{JobState, Verb};
pub use kind::{Kind, Registry, Stored, erased};
pub use plan::{Child, Claim, ClaimKind, Claims, Order, Pick, Plan, Step, Who};
pub use resource::{Action, Change, Held, Meta, NameRule, Object, Resource, ResourceCore, Scope};
