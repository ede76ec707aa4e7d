//! The language between the control plane and its node agents.
//!
//! The `.proto` file beside this crate is the contract; everything here is generated from it at build
//! time, without `protoc`. This crate depends on nothing of ours, and both sides meet only here.

/// Messages and services of `rhyzome.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("rhyzome.v1");
}

/// The marker is told, what it stands for never.
impl std::fmt::Debug for v1::OrderSecret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("OrderSecret").field("marker", &self.marker).finish_non_exhaustive()
    }
}
