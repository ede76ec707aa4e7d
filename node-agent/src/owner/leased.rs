//! What the owner does about the node's lease.

use super::Owner;
use super::stale::Stale;
use crate::lease::Lease;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{Order, Power};
use std::sync::Arc;
use std::time::Duration;

/// Tells the link whether the node needs a lease.
pub type Wanter = Arc<dyn Fn(bool) + Send + Sync>;

impl Owner {
    /// The same, of a node that may hold a lease.
    pub fn with_lease(self, lease: Lease, wanter: Wanter) -> Self {
        Self { lease: Some((lease, wanter)), ..self }
    }

    /// A server has granted a lease. It counts only when all orders before it are in the ledger: one that a full disk
    /// has refused may be to let go of a guest that runs elsewhere by now.
    pub(super) fn leased(&mut self, until: Duration) {
        if !self.intake().is_empty() {
            return tracing::warn!("a lease is passed over: there are orders that cannot be kept");
        }
        let wanted = self.orders.values().any(needs_lease);
        let Some((lease, _)) = self.lease.as_mut().filter(|_| wanted) else { return };
        if let Err(error) = lease.extend(until) {
            tracing::error!(%error, "the node's lease cannot be written, so it is not in force");
        }
    }

    /// Decisions are made by what the lease allows now; how long that stays so.
    pub(super) fn weigh_lease(&mut self) -> Duration {
        let Some((lease, wanter)) = &self.lease else { return Duration::MAX };
        // No plain thing needs one.
        if self.stale == Stale::All {
            self.lease_wanted = self.orders.values().any(needs_lease);
        }
        let wanted = self.lease_wanted;
        wanter(wanted);
        let now = self.env.uptime();
        let standing = lease.standing(now);
        if standing != self.known.world.lease {
            if wanted {
                tracing::info!(?standing, "the node's lease");
            }
            self.known.world.lease = standing;
            self.stale = Stale::All;
        }
        lease.changes_in(now).filter(|_| wanted).unwrap_or(Duration::MAX)
    }
}

fn needs_lease(order: &Order) -> bool {
    match order.body.as_ref().and_then(|body| body.body.as_ref()) {
        Some(Body::Instance(instance)) => {
            !order.remove && instance.ha_restart && instance.power() != Power::Off
        }
        _ => false,
    }
}
