//! What the owner does on the node, and what it sees there: by the drivers, or, in simulation, on a node in memory.

use super::Drivers;
use super::act::{self, Done, Seen};
use super::look::{self, Sight};
use crate::drivers::Progress;
use crate::plain::Ordered;
use crate::reconcile::{Action, Orders};
use futures_util::future::BoxFuture;

/// The only way from the owner to the node.
pub trait Hands: Send + Sync + 'static {
    /// Carries out one action on one object, and looks at the result.
    fn act<'a>(&'a self, id: &'a str, action: Action, now_ms: u64, progress: Progress)
    -> BoxFuture<'a, Done>;

    /// The plain kinds of which those that are begun together are made together.
    fn together(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Makes some of such a kind as ordered, and looks at each: one answer for each, in their order.
    fn make_together(
        &self,
        kind: &'static str,
        all: Vec<(String, Ordered)>,
    ) -> BoxFuture<'_, Vec<(String, Done)>> {
        Box::pin(act::make_together(&[], kind, all))
    }

    /// Looks at everything that is there.
    fn look<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, Sight>;

    /// Looks at one instance.
    fn look_at_instance<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Seen>;

    /// Looks at one image.
    fn look_at_image(&self, sha256: &str) -> Seen;

    /// The plain kinds that it can hold.
    fn plain_kinds(&self) -> Vec<&'static str>;
}

impl Hands for Drivers {
    fn act<'a>(
        &'a self,
        id: &'a str,
        action: Action,
        now_ms: u64,
        progress: Progress,
    ) -> BoxFuture<'a, Done> {
        Box::pin(act::act(self, id, action, now_ms, progress))
    }

    fn together(&self) -> Vec<&'static str> {
        self.plain.iter().filter(|driver| driver.is_together()).map(|driver| driver.kind()).collect()
    }

    fn make_together(
        &self,
        kind: &'static str,
        all: Vec<(String, Ordered)>,
    ) -> BoxFuture<'_, Vec<(String, Done)>> {
        Box::pin(act::make_together(&self.plain, kind, all))
    }

    fn look<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, Sight> {
        Box::pin(look::look(self, orders))
    }

    fn look_at_instance<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Seen> {
        Box::pin(act::look_at_instance(self, id))
    }

    fn look_at_image(&self, sha256: &str) -> Seen {
        act::look_at_image(self, sha256)
    }

    fn plain_kinds(&self) -> Vec<&'static str> {
        self.plain.iter().map(|driver| driver.kind()).collect()
    }
}
