//! Plain kinds: what one driver makes, changes and takes away by itself, without knowing what else the node holds.
//! A new one is a file in `drivers/` and its line in the list there: deciding, trying again, comparing, reporting and
//! finding it again after a restart are done once, around it.

use crate::drivers::{Deviation, DriverError};
use prost::Message;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{Order, OrderSecret};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The driver of a plain kind. Each function may block, may be called again at any time, and finds out by looking what
/// is to be done: an agent that was killed half way is started anew and asks the same.
pub trait Driver: Send + Sync + 'static {
    /// The kind, as orders and the API call it.
    const KIND: &'static str;
    /// What is ordered.
    type Order: Message + Default + PartialEq;
    /// What is told.
    type Report: Message + Default;

    /// On the node whose agent keeps its things in this folder.
    fn new(state: &Path) -> Self;

    /// All objects that are here, half made ones too.
    fn ids(&self) -> Result<BTreeSet<String>, DriverError>;

    /// What is here of one.
    fn observe(&self, id: &str) -> Result<Option<Here<Self>>, DriverError>;

    /// Makes it as ordered, whatever is here.
    fn apply(&self, id: &str, order: &Self::Order) -> Result<(), DriverError>;

    /// Leaves nothing of it. Nothing happens if it is gone.
    fn remove(&self, id: &str) -> Result<(), DriverError>;
}

/// What is here of an object.
#[derive(Debug)]
pub struct Here<D: Driver + ?Sized> {
    /// The order that this is exactly; none if it is half made.
    pub order: Option<D::Order>,
    /// What is told of it.
    pub report: D::Report,
    /// What was written for it, by file name, secrets masked.
    pub rendered: BTreeMap<String, String>,
}

/// The same for all plain kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPlain {
    /// The body of the order that this is exactly.
    pub in_force: Option<Vec<u8>>,
    /// What is told of it: an encoded report of its kind.
    pub report: Vec<u8>,
    /// What was written for it, by file name.
    pub rendered: BTreeMap<String, String>,
    /// From this moment on, in milliseconds since 1970, it is to be made anew although its order stays: it expires.
    pub until_ms: Option<u64>,
}

/// What was ordered of one.
#[derive(Clone, Default, PartialEq)]
pub struct Ordered {
    /// An encoded order of its kind.
    pub body: Vec<u8>,
    /// What the markers in it stand for.
    pub secrets: Vec<OrderSecret>,
    /// It is to go.
    pub remove: bool,
}

impl Ordered {
    /// Of this order, if it is one of a plain kind.
    pub fn of(order: &Order) -> Option<Self> {
        let body = Self::body_of(order)?.clone();
        Some(Self { body, secrets: order.secrets.clone(), remove: order.remove })
    }

    /// What is ordered, if it is of a plain kind.
    pub fn body_of(order: &Order) -> Option<&Vec<u8>> {
        match order.body.as_ref()?.body.as_ref()? {
            Body::Plain(body) => Some(body),
            _ => None,
        }
    }

    /// What a marker stands for.
    pub fn secret(&self, marker: &str) -> Option<&str> {
        self.secrets.iter().find(|secret| secret.marker == marker).map(|secret| secret.value.as_str())
    }
}

impl From<Vec<u8>> for Ordered {
    fn from(body: Vec<u8>) -> Self {
        Self { body, ..Self::default() }
    }
}

/// Without secrets: it is part of what is logged.
impl std::fmt::Debug for Ordered {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Ordered({} bytes, {} secrets)", self.body.len(), self.secrets.len())
    }
}

/// All of one plain kind that is ordered, by object.
pub type OrderedAll = BTreeMap<String, Ordered>;

/// A driver of whatever plain kind.
pub trait Plain: Send + Sync {
    /// The kind.
    fn kind(&self) -> &'static str;

    /// All objects that are here.
    fn all(&self) -> Result<BTreeSet<String>, DriverError>;

    /// What is here of one, compared with what was ordered.
    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError>;

    /// All that is here, compared with what was ordered.
    fn look_at_all(&self, ordered: &OrderedAll) -> Result<BTreeMap<String, ObservedPlain>, DriverError> {
        let mut all = BTreeMap::new();
        for id in self.all()? {
            if let Some(seen) = self.look(&id, ordered.get(&id))? {
                all.insert(id, seen);
            }
        }
        Ok(all)
    }

    /// Makes it as ordered, and makes sure that it is so. Answers what somebody had changed, and was put right.
    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError>;

    /// True if those that are to be made at the same time are handed over together: lines of one thing, say, that is
    /// told of all of them at once.
    fn is_together(&self) -> bool {
        false
    }

    /// Makes what the making of each of these by itself would make, but for what one alone says of it: what helps all
    /// of them is done once. Whatever fails here fails again, and is told, when each is made.
    fn prepare(&self, _all: &[(String, Ordered)]) {}

    /// Leaves nothing of it.
    fn take_away(&self, id: &str) -> Result<(), DriverError>;
}

/// A line of the list of drivers.
pub type Line = fn(&Path) -> Arc<dyn Plain>;

/// All drivers of plain kinds.
pub type Plains = Vec<Arc<dyn Plain>>;

/// The line of a driver.
pub fn driver<D: Driver>(state: &Path) -> Arc<dyn Plain> {
    Arc::new(D::new(state))
}

impl<D: Driver> Plain for D {
    fn kind(&self) -> &'static str {
        D::KIND
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        self.ids()
    }

    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let Some(here) = self.observe(id)? else { return Ok(None) };
        // Messages are compared, not bytes: the same message can be written in more than one way.
        let same =
            |body: &&Vec<u8>| here.order.is_some() && D::Order::decode(body.as_slice()).ok() == here.order;
        Ok(Some(ObservedPlain {
            in_force: ordered.map(|ordered| &ordered.body).filter(same).cloned(),
            report: here.report.encode_to_vec(),
            rendered: here.rendered,
            until_ms: None,
        }))
    }

    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        let order = D::Order::decode(ordered.body.as_slice())
            .map_err(|error| DriverError::Permanent(format!("the order cannot be read: {error}")))?;
        self.apply(id, &order)?;
        // Without this a driver that is wrong about itself would be asked over and over, without a pause.
        match self.look(id, Some(ordered))? {
            Some(ObservedPlain { in_force: Some(_), .. }) => Ok(Vec::new()),
            _ => Err(DriverError::Retry(format!("{id} was made, and is not as ordered"))),
        }
    }

    fn take_away(&self, id: &str) -> Result<(), DriverError> {
        self.remove(id)?;
        match self.observe(id)? {
            None => Ok(()),
            Some(_) => Err(DriverError::Retry(format!("{id} was removed, and is still here"))),
        }
    }
}
