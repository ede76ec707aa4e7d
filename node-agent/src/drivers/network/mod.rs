//! Networks: each has a namespace of its own on the node, with a bridge, the gateway's address, a tap for each
//! guest, rules, a dnsmasq, and a way out if it may have one. Two tenants may use the same addresses.
//!
//! `apply` looks first and changes what differs, so it repairs whatever was done by hand, and costs little when
//! nothing differs: creating an instance waits for it.

mod dnsmasq;
mod drift;
mod links;
pub mod observe;
pub mod plan;
mod record;

pub use observe::ObservedNetwork;
pub use plan::{DesiredNetwork, Port};

use super::{Deviation, DriverError};
use crate::host::{netns, nft};
use crate::names;
use drift::Eye;
use links::{Links, Live};
use plan::ruleset::{self, Ruleset};
use plan::{Uplink, resolver};
use record::{Applied, Record};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes, repairs and takes away networks. Cheap to clone; forgets nothing when dropped, because all is on the disk.
#[derive(Clone)]
pub struct NetworkDriver {
    shared: Arc<Shared>,
}

struct Shared {
    state: PathBuf,
    lease_seconds: u32,
    /// One at a time for each network.
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// What networks share on the node: numbers of uplinks, and the node's own rules.
    node: Mutex<Option<NodeRules>>,
}

/// The node's own rules as they were live at some moment.
struct NodeRules {
    generation: u32,
    listing: Option<String>,
}

/// A network that is as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedNetwork {
    /// Where to open its taps.
    pub namespace: String,
    /// What was written for it, by file name.
    pub rendered: BTreeMap<String, String>,
    /// What somebody had changed, and what was put right.
    pub repaired: Vec<Deviation>,
}

impl NetworkDriver {
    /// A driver whose files are under `state`.
    pub fn new(state: &Path) -> Self {
        Self::with_lease_seconds(state, 60)
    }

    /// The same, with another time for leases.
    pub fn with_lease_seconds(state: &Path, lease_seconds: u32) -> Self {
        let state = state.to_owned();
        let shared = Shared { state, lease_seconds, busy: Mutex::default(), node: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Makes the node hold exactly this.
    pub async fn apply(&self, network: &DesiredNetwork) -> Result<AppliedNetwork, DriverError> {
        plan::check(network)
            .map_err(|why| DriverError::Permanent(format!("network {}: {why}", network.id)))?;
        let network = network.clone();
        self.blocking(network.id.clone(), move |shared| shared.apply(&network)).await
    }

    /// Leaves nothing of the network on the node. Fine if there is nothing.
    pub async fn remove(&self, id: &str) -> Result<(), DriverError> {
        if !names::is_safe_id(id) {
            return Err(DriverError::Permanent(format!("network id {id:?} cannot be a folder's name")));
        }
        let id = id.to_owned();
        self.blocking(id.clone(), move |shared| shared.remove(&id)).await
    }

    /// The networks that this node holds.
    pub async fn observe(&self) -> Result<Vec<ObservedNetwork>, DriverError> {
        observe::networks(&self.shared.state).map_err(|error| DriverError::io("looking for networks", &error))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        id: String,
        work: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || {
            let busy = Arc::clone(lock(&shared.busy).entry(id.clone()).or_default());
            let _alone = lock(&busy);
            work(&shared).map_err(|error| DriverError::io(format!("network {id}"), &error))
        });
        done.await
            .unwrap_or_else(|error| Err(DriverError::Retry(format!("the network driver stopped: {error}"))))
    }
}

/// Everything that is open for one look at one namespace.
struct Inside {
    runtime: tokio::runtime::Runtime,
    node: Links,
    links: Links,
    filter: nft::Filter,
    cookie: u64,
}

impl Shared {
    fn apply(&self, network: &DesiredNetwork) -> io::Result<AppliedNetwork> {
        let folder = names::network_folder(&self.state, &network.id);
        let namespace = names::namespace(&network.id);
        fs::create_dir_all(folder.join("drop-in"))?;
        let mut record = Record::load(&folder);
        let before = record.clone();

        let eye = Eye::new(&before, network);
        let mut repaired = drift::files(&folder, &before.files);
        repaired.extend(eye.namespace(&namespace, netns::exists(&namespace)?));
        let inside = Inside::open(&namespace)?;
        let live = inside.runtime.block_on(inside.links.observe())?;
        let uplink = self.uplink(network, &mut record, &inside)?;
        if record.slot != before.slot || record.nat != before.nat {
            // Before anything uses it, so that no other network chooses the same.
            record.save(&folder)?;
        }
        if netns_is_old(&before, &inside) {
            repaired.extend(eye.links(&live, network, uplink));
        }
        let (live, bridge) = inside.build(&namespace, live, network, uplink)?;

        let ruleset = Ruleset::of_network(network, uplink);
        let script = ruleset.script();
        let node_dns = if network.dns.is_empty() { node_resolvers() } else { Vec::new() };
        let service = dnsmasq::Service {
            namespace: &namespace,
            cookie: inside.cookie,
            bridge,
            setting: resolver::Setting {
                folder: &folder,
                lease_seconds: self.lease_seconds,
                node_dns: &node_dns,
                user: nix::unistd::geteuid().is_root().then_some(("root", "root")),
            },
        };
        // Programs that know nothing of each other: started side by side. No frame passes before all are through.
        let (filtered, protected, served) = std::thread::scope(|scope| {
            let protected = scope.spawn(|| if uplink.is_some() { self.protect_node() } else { Ok(None) });
            let served = scope.spawn(|| service.ensure(network, before.resolver.as_ref()));
            let filtered = filter_frames(&inside, &namespace, ruleset, before.applied.as_ref(), eye.settled);
            let served = served.join().unwrap_or_else(|_| Err(io::Error::other("starting dnsmasq panicked")));
            let protected =
                protected.join().unwrap_or_else(|_| Err(io::Error::other("protecting the node panicked")));
            (filtered, protected, served)
        });
        // What one of them achieved is remembered even if the other failed.
        record.applied = filtered.as_ref().ok().and_then(|(applied, _)| applied.clone());
        record.resolver =
            served.as_ref().map_or(before.resolver.clone(), |(resolver, _)| Some(resolver.clone()));
        let rendered = rendered(&folder, script.clone());
        let is_whole = filtered.is_ok() && protected.is_ok() && served.is_ok();
        let settled = eye.settled;
        record.files = drift::digests(&rendered);
        record.whole = is_whole.then(|| eye.whole());
        record::write_if_changed(&folder.join("ruleset.nft"), &script)?;
        if record != before {
            record.save(&folder)?;
        }
        repaired.extend(filtered?.1);
        repaired.extend(protected?);
        repaired.extend(served?.1.into_iter().filter(|_| settled));
        inside.runtime.block_on(async {
            inside.links.open_taps(&live, network).await?;
            inside.links.close_taps(&live, network).await
        })?;
        Ok(AppliedNetwork { namespace, rendered, repaired })
    }

    /// The way out: the one remembered, or a new one that nobody else has.
    fn uplink(
        &self,
        network: &DesiredNetwork,
        record: &mut Record,
        inside: &Inside,
    ) -> io::Result<Option<Uplink>> {
        record.nat = network.nat;
        if !network.nat {
            return Ok(None);
        }
        if record.slot.is_none() {
            let _alone = lock(&self.node);
            let others = observe::records(&self.state)?;
            let taken: Vec<u32> = others.into_iter().filter_map(|(_, other)| other.slot).collect();
            let node = inside.runtime.block_on(inside.node.observe())?;
            let slot = plan::choose_slot(&network.id, &taken, &node.addresses());
            record.slot = Some(slot.ok_or_else(|| {
                io::Error::other(
                    "all of 100.64.0.0/10 is in use on this node, so the network gets no way out",
                )
            })?);
            record.save(&names::network_folder(&self.state, &network.id))?;
        }
        Ok(record.slot.map(Uplink::of_slot))
    }

    /// The node's own rules, which all networks share: there before the first frame comes out of one. Answers what
    /// somebody had changed in them.
    fn protect_node(&self) -> io::Result<Option<Deviation>> {
        let mut known = lock(&self.node);
        let filter = nft::Filter::open()?;
        let generation = filter.generation()?;
        if known.as_ref().is_some_and(|known| known.generation == generation) {
            return Ok(None);
        }
        // Someone changed something in the node's rules. Most likely not in our table.
        let before = known.as_ref().and_then(|known| known.listing.clone());
        let found = if known.is_some() { nft::list("inet rhyzome")? } else { None };
        if before.is_some() && before == found {
            *known = Some(NodeRules { generation, listing: before });
            return Ok(None);
        }
        set_sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
        let rules = Ruleset::of_node();
        // The first transaction makes it 2: before it there is nothing that could be in the way.
        nft::run(&if generation == 1 { rules.definition() } else { rules.script() })?;
        let generation = filter.generation()?;
        // What to compare with is asked for only on a node where others write too.
        let listing = if known.is_some() { nft::list("inet rhyzome")? } else { None };
        let text = |listing: &Option<String>| listing.clone().unwrap_or_default();
        let changed = known.as_ref().and_then(|_| drift::rules("the node", &text(&found), &text(&listing)));
        *known = Some(NodeRules { generation, listing });
        Ok(changed)
    }

    fn remove(&self, id: &str) -> io::Result<()> {
        let folder = names::network_folder(&self.state, id);
        let namespace = names::namespace(id);
        let record = Record::load(&folder);
        dnsmasq::end(&folder, record.resolver.as_ref())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async { Links::open()?.delete(&namespace).await })?;
        netns::delete(&namespace)?;

        let mut known = lock(&self.node);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if !observe::records(&self.state)?.iter().any(|(_, other)| other.nat) && record.nat {
            nft::run(ruleset::without_node_rules())?;
            *known = None;
        }
        Ok(())
    }
}

impl Inside {
    /// Opens the namespace, and makes it if there is none.
    fn open(namespace: &str) -> io::Result<Self> {
        if !netns::exists(namespace)? {
            netns::create(namespace)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let node = {
            let _context = runtime.enter();
            Links::open()?
        };
        let (links, filter) = netns::run_in(namespace, || {
            let _context = runtime.enter();
            set_sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
            // Before any interface is there. Where the kernel has no IPv6 there is nothing to switch off.
            for which in ["all", "default"] {
                let _ = set_sysctl(&format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
            Ok((Links::open()?, nft::Filter::open()?))
        })?;
        let cookie = filter.namespace()?;
        Ok(Self { runtime, node, links, filter, cookie })
    }

    /// Everything but rules, dnsmasq, and taps that let frames through. Answers what was seen of it at last,
    /// and the bridge's index.
    fn build(
        &self,
        namespace: &str,
        live: Live,
        network: &DesiredNetwork,
        uplink: Option<Uplink>,
    ) -> io::Result<(Live, u32)> {
        self.runtime.block_on(async {
            let mut live = live;
            match uplink {
                Some(uplink) => {
                    if self.node.build_outer_end(namespace, &live, uplink).await? {
                        live = self.links.observe().await?;
                    }
                }
                None => self.node.delete(namespace).await?,
            }
            let make_taps = |missing: &[&str]| {
                netns::run_in(namespace, || missing.iter().try_for_each(|tap| netns::create_tap(tap)))
            };
            let bridge = self.links.build(&live, network, uplink, make_taps).await?;
            Ok((live, bridge))
        })
    }
}

/// Makes the namespace hold exactly `ruleset`. Starts no program if it does; changes a few elements if it can.
///
/// Answers what to remember, which is nothing if someone else was writing at the same time; and, where it was `settled`,
/// what somebody had changed.
fn filter_frames(
    inside: &Inside,
    namespace: &str,
    ruleset: Ruleset,
    before: Option<&Applied>,
    settled: bool,
) -> io::Result<(Option<Applied>, Option<Deviation>)> {
    let generation = inside.filter.generation()?;
    let known = before.filter(|before| before.namespace == inside.cookie && before.generation == generation);
    let difference = match known {
        Some(known) if known.ruleset == ruleset => return Ok((Some(known.clone()), None)),
        Some(known) => ruleset.difference(&known.ruleset),
        None => None,
    };
    let changed = netns::run_in(namespace, || match difference {
        Some(difference) => nft::run_until_live(&difference, &inside.filter, generation).map(|()| None),
        // The first transaction of a namespace makes it 2: before it there is nothing to take away.
        None if generation == 1 => nft::run(&ruleset.definition()).map(|()| None),
        None if settled => {
            let found = listing(&ruleset)?;
            nft::run(&ruleset.script())?;
            Ok(drift::rules("the network", &found, &listing(&ruleset)?))
        }
        None => nft::run(&ruleset.script()).map(|()| None),
    })?;
    let after = inside.filter.generation()?;
    let alone = after == generation.wrapping_add(1);
    Ok((alone.then_some(Applied { namespace: inside.cookie, generation: after, ruleset }), changed))
}

/// What is live of the tables that are ours.
fn listing(ruleset: &Ruleset) -> io::Result<String> {
    ruleset.tables().map(|table| Ok(nft::list(table)?.unwrap_or_default())).collect()
}

/// False if the namespace was made anew: then nothing in it was there, and that is told once.
fn netns_is_old(before: &Record, inside: &Inside) -> bool {
    before.applied.as_ref().is_some_and(|applied| applied.namespace == inside.cookie)
}

fn rendered(folder: &Path, script: String) -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("ruleset.nft".to_owned(), script)]);
    for name in ["dnsmasq.conf", "dhcp-hosts", "hosts"] {
        if let Ok(text) = fs::read_to_string(folder.join(name)) {
            files.insert(name.to_owned(), text);
        }
    }
    files
}

/// The node's own resolvers. Where a local one stands before them (systemd-resolved), those that it asks itself.
fn node_resolvers() -> Vec<IpAddr> {
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let read =
        |file| fs::read_to_string(file).map(|text| resolver::usable_resolvers(&text)).unwrap_or_default();
    files.into_iter().map(read).find(|found| !found.is_empty()).unwrap_or_default()
}

fn set_sysctl(file: &str, value: &str) -> io::Result<()> {
    if fs::read_to_string(file).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(file, value).map_err(|error| io::Error::new(error.kind(), format!("writing {file}: {error}")))
}

/// A panic elsewhere does not make what the lock guards wrong: all of it is compared with what is live.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
