//! Nodes as they were a moment ago: reading all of them for each instance would make a create cost as much as there
//! are nodes. What is chosen from here is a guess, and the row of the node decides.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::Bell;
use super::bells::Bells;
use crate::kernel::Timestamp;
use crate::kernel::place::{Candidate, Needs, place};

/// The nodes that were read last.
pub(crate) struct Nodes(Mutex<Kept>);

struct Kept {
    /// Says when a node is not what it was.
    ear: Receiver<Bell>,
    /// None: to be read.
    nodes: Option<Vec<Candidate>>,
    /// When they were.
    read_at: Timestamp,
}

/// For how long what other servers give and take on the nodes may be unknown here.
const FRESH_MILLIS: i64 = 1000;

// === impl Nodes ===

impl Nodes {
    pub(super) fn new(bells: &Bells) -> Nodes {
        Nodes(Mutex::new(Kept { ear: bells.subscribe(), nodes: None, read_at: Timestamp(0) }))
    }

    /// The best node, as far as is known; none if nothing is known, or if there is none. It counts as used from now
    /// on, before its row does: whoever chooses at the same time would otherwise choose the same, and wait for it.
    pub(super) fn choose(&self, needs: &Needs, now: Timestamp) -> Option<Candidate> {
        let mut kept = self.lock();
        kept.listen();
        if kept.read_at.plus_millis(FRESH_MILLIS) < now || now < kept.read_at {
            return None;
        }
        let nodes = kept.nodes.as_mut()?;
        let id = place(needs, nodes).ok()?;
        let node = nodes.iter_mut().find(|node| node.id == id)?;
        let as_read = node.clone();
        node.vcpus_used = node.vcpus_used.saturating_add(u64::from(needs.vcpus));
        node.memory_used = node.memory_used.saturating_add(needs.memory_bytes);
        node.disk_used = node.disk_used.saturating_add(needs.disk_bytes);
        Some(as_read)
    }

    /// These are the nodes; read after the last `forget`.
    pub(super) fn keep(&self, nodes: &[Candidate], now: Timestamp) {
        let mut kept = self.lock();
        (kept.nodes, kept.read_at) = (Some(nodes.to_vec()), now);
    }

    /// So many processors, bytes of memory and of disk more are in use on a node; fewer, where they are negative. What
    /// is rolled back afterwards is known wrong, until the nodes are read again.
    pub(super) fn used(&self, node: &str, [vcpus, memory, disk]: [i64; 3]) {
        let mut kept = self.lock();
        let Some(node) = kept.nodes.iter_mut().flatten().find(|known| known.id == node) else { return };
        node.vcpus_used = node.vcpus_used.saturating_add_signed(vcpus);
        node.memory_used = node.memory_used.saturating_add_signed(memory);
        node.disk_used = node.disk_used.saturating_add_signed(disk);
    }

    /// They are to be read again.
    pub(super) fn forget(&self) {
        let mut kept = self.lock();
        kept.listen();
        kept.nodes = None;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked has left a guess that is no worse than any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn listen(&mut self) {
        loop {
            match self.ear.try_recv() {
                Ok(Bell::Resource(id)) if id.starts_with("node_") => self.nodes = None,
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => self.nodes = None,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }
}
