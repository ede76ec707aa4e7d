//! The auditor on a real machine. Five sides are compared, and neither the control plane nor the agent is asked:
//! the rows, as `audit` reads them; processes, by /proc; files in the agent's folder; links, rules and DHCP leases
//! in the namespaces of its networks; addresses, by what is claimed, reserved, let through, and given to QEMU.
//!
//! How things are called on a node is said here once more, and nothing of it is the agent's code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::Value;
use xtask::{leftovers, procfs};

use crate::audit::{Finding, Wrong, rows};
use crate::tables::Tables;

/// Where to look.
pub struct Machine {
    /// The database.
    pub tables: Tables,
    /// Everything of its world is under here: processes are known by it.
    folder: PathBuf,
    /// The name of the node, whose agent's folder is called the same.
    node: String,
    /// Namespaces, and links that lead to them, that were there before: another's.
    before: BTreeSet<String>,
}

/// What the rows say that the node holds.
#[derive(Default)]
struct Held {
    /// All objects.
    ids: BTreeSet<String>,
    /// Instances, and whether they run, where that is known.
    instances: BTreeMap<String, Option<bool>>,
    networks: BTreeSet<String>,
    disks: BTreeMap<String, PathBuf>,
    digests: BTreeSet<String>,
    nics: Vec<Nic>,
}

struct Nic {
    instance: String,
    network: String,
    tap: String,
    mac: String,
    address: String,
}

/// What was found so far.
struct Findings(BTreeSet<Finding>);

impl Findings {
    fn say(&mut self, wrong: Wrong, what: impl Into<String>) {
        self.0.insert(Finding { wrong, what: what.into() });
    }

    /// Whatever is there may be there, and whatever must be there is.
    fn compare<T: Ord + std::fmt::Debug>(&mut self, what: &str, there: &[T], may: &[T], must: &[T]) {
        for one in there.iter().filter(|one| !may.contains(one)) {
            self.say(Wrong::Orphan, format!("{what} {one:?}"));
        }
        for one in must.iter().filter(|one| !there.contains(one)) {
            self.say(Wrong::Ghost, format!("{what} {one:?}"));
        }
        let mut seen = BTreeSet::new();
        for one in there.iter().filter(|one| !seen.insert(*one)) {
            self.say(Wrong::Duplicate, format!("{what} {one:?}"));
        }
    }
}

impl Machine {
    /// The machine that is this node, before it holds any network.
    pub fn of(db: &str, folder: &Path, node: &str) -> Machine {
        let before = entries(Path::new("/run/netns")).into_iter().chain(links(None)).collect();
        Machine { tables: Tables::of(db), folder: folder.to_owned(), node: node.to_owned(), before }
    }

    /// Looks at everything, when all is quiet.
    pub async fn audit(&self) -> Vec<Finding> {
        let mut found = Findings(BTreeSet::new());
        rows(&self.tables, &mut found.0).await;
        let held = self.held().await;
        self.processes(&held, &mut found);
        self.files(&held, &mut found);
        self.namespaces(&held, &mut found);
        addresses(&held, &mut found);
        found.0.into_iter().collect()
    }

    fn state(&self) -> PathBuf {
        self.folder.join(&self.node)
    }

    async fn held(&self) -> Held {
        let sql = format!(
            "SELECT a.object, r.kind, r.spec, r.claims, r.status, coalesce(j.state, 'done') FROM assignment a \
             JOIN resource r ON r.id = a.object JOIN resource n ON n.id = a.node LEFT JOIN job j ON j.id = r.job \
             WHERE a.remove = 0 AND n.name = '{}'",
            self.node
        );
        let mut held = Held::default();
        for row in self.tables.ask(&sql).await {
            let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
            let (id, spec, claims, status) = (row[0].clone(), json(&row[2]), json(&row[3]), json(&row[4]));
            held.ids.insert(id.clone());
            match row[1].as_str() {
                "instance" => {
                    held.nics.extend(nics(&id, &spec, &claims));
                    // What failed or was cancelled is wanted, and was not brought about.
                    held.instances.insert(id, (row[5] == "done").then(|| spec["power"] != "off"));
                }
                "network" => drop(held.networks.insert(id)),
                "disk" => {
                    let pool = claims["pool"]["path"].as_str().filter(|path| !path.is_empty());
                    let folder = pool.map_or_else(|| self.state().join("disks"), PathBuf::from);
                    held.disks.insert(id.clone(), folder.join(format!("{id}.qcow2")));
                }
                "image" => drop(held.digests.insert(text(&status["sha256"]))),
                other => panic!("the auditor does not know what a node holds of a {other}"),
            }
        }
        held
    }

    // === processes ===

    fn processes(&self, held: &Held, found: &mut Findings) {
        let (mut guests, mut resolvers, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for seen in procfs::of(&self.folder) {
            let program = seen.argv[0].rsplit('/').next().unwrap_or_default().to_owned();
            if program.starts_with("qemu-system") {
                let id = option(&seen.argv, "guest=").unwrap_or_default();
                given_to_qemu(&id, &seen.argv, held, found);
                guests.push(id);
            } else if program == "dnsmasq" {
                let file = seen.argv.iter().find_map(|word| word.strip_prefix("--conf-file="));
                let folder = Path::new(file.unwrap_or_default()).parent().and_then(Path::file_name);
                resolvers.push(folder.unwrap_or_default().to_string_lossy().into_owned());
            } else if program.starts_with("rhyzome-") {
                own.push(program);
            } else {
                found.say(Wrong::Orphan, format!("process {}", seen.line()));
            }
        }
        let may: Vec<String> = runs(held, |runs| runs != Some(false));
        found.compare("a guest of", &guests, &may, &runs(held, |runs| runs == Some(true)));
        let networks: Vec<String> = held.networks.iter().cloned().collect();
        found.compare("a resolver of", &resolvers, &networks, &networks);
        let programs = ["rhyzome-api", "rhyzome-agent"].map(str::to_owned);
        found.compare("a program", &own, &programs, &[]);
    }

    // === files ===

    fn files(&self, held: &Held, found: &mut Findings) {
        let state = self.state();
        let all = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
        let instances: Vec<String> = held.instances.keys().cloned().collect();
        let run = runs(held, |runs| runs == Some(true));
        found.compare("a folder of", &entries(&state.join("instances")), &instances, &run);
        let short = |ids: &[String]| ids.iter().map(|id| short(id)).collect::<Vec<_>>();
        found.compare("sockets in", &entries(&state.join("run")), &short(&instances), &short(&run));
        let networks = all(&held.networks);
        found.compare("a folder of", &entries(&state.join("networks")), &networks, &networks);
        let digests = all(&held.digests);
        found.compare("image", &entries(&state.join("images")), &digests, &digests);
        let orders: Vec<String> = held.ids.iter().map(|id| format!("{id}.json")).collect();
        found.compare("the order", &entries(&state.join("ledger/objects")), &orders, &orders);
        let mut pools: BTreeSet<&Path> = held.disks.values().filter_map(|path| path.parent()).collect();
        let own = state.join("disks");
        pools.insert(&own);
        for pool in pools {
            let inside = held.disks.values().filter(|path| path.parent() == Some(pool));
            let inside: Vec<String> =
                inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect();
            found.compare("disk", &entries(pool), &inside, &inside);
        }
    }

    // === links, rules, leases ===

    fn namespaces(&self, held: &Held, found: &mut Findings) {
        let others = leftovers::others(&self.folder);
        let ours =
            |name: &String| name.starts_with("rz-") && !others.contains(name) && !self.before.contains(name);
        let wanted: Vec<String> = held.networks.iter().map(|id| namespace(id)).collect();
        let there: Vec<String> = entries(Path::new("/run/netns")).into_iter().filter(ours).collect();
        found.compare("namespace", &there, &wanted, &wanted);
        let outside: Vec<String> = links(None).into_iter().filter(ours).collect();
        found.compare("the outer end of", &outside, &wanted, &[]);
        for id in &held.networks {
            let nics: Vec<&Nic> = held.nics.iter().filter(|nic| nic.network == *id).collect();
            let namespace = namespace(id);
            if there.contains(&namespace) {
                in_namespace(&namespace, &nics, found);
            }
            promised(&self.state().join("networks").join(id), &nics, found);
        }
    }
}

/// Taps, and whose frames pass at each.
fn in_namespace(namespace: &str, nics: &[&Nic], found: &mut Findings) {
    let taps: Vec<String> = nics.iter().map(|nic| nic.tap.clone()).collect();
    let there: Vec<String> =
        links(Some(namespace)).into_iter().filter(|name| name.len() == 11 && name.starts_with('t')).collect();
    found.compare(&format!("in {namespace} tap"), &there, &taps, &taps);
    let wanted: Vec<[String; 3]> =
        nics.iter().map(|nic| [nic.tap.clone(), nic.mac.clone(), nic.address.clone()]).collect();
    let ruleset = json(Some(namespace), &["nft", "-j", "list", "ruleset"]);
    let mut through = Vec::new();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        if object["set"]["name"] == "port_arp" {
            for element in object["set"]["elem"].as_array().into_iter().flatten() {
                let words = &element["concat"];
                through.push([text(&words[0]), text(&words[1]), text(&words[2])]);
            }
        }
    }
    found.compare(&format!("in {namespace} a rule for"), &through, &wanted, &wanted);
}

/// What DHCP promises, and what it has given.
fn promised(folder: &Path, nics: &[&Nic], found: &mut Findings) {
    let wanted: Vec<[String; 2]> = nics.iter().map(|nic| [nic.mac.clone(), nic.address.clone()]).collect();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let pair = |words: &[&str]| Some([words.first()?.to_lowercase(), (*words.get(1)?).to_owned()]);
    let reserved = read("dhcp-hosts");
    let reserved: Vec<_> =
        reserved.lines().filter_map(|line| pair(&line.split(',').collect::<Vec<_>>())).collect();
    found.compare("a reservation of", &reserved, &wanted, &wanted);
    for line in read("leases").lines() {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        // The server's own identity is a line of two words.
        if let Some(lease) = pair(&words).filter(|lease| words.len() > 2 && !wanted.contains(lease)) {
            found.say(Wrong::Leak, format!("DHCP lease of {lease:?}"));
        }
    }
}

// === addresses ===

/// No two have the same, whatever the rows and QEMU say.
fn addresses(held: &Held, found: &mut Findings) {
    let mut seen = BTreeSet::new();
    for nic in &held.nics {
        for thing in [nic.mac.clone(), format!("{} in {}", nic.address, nic.network)] {
            if !seen.insert(thing.clone()) {
                found.say(Wrong::Duplicate, format!("{thing} of {}", nic.instance));
            }
        }
    }
}

/// A guest has the hardware addresses that it was given.
fn given_to_qemu(id: &str, argv: &[String], held: &Held, found: &mut Findings) {
    let words = argv.iter().flat_map(|word| word.split(','));
    let has: Vec<String> =
        words.filter_map(|word| word.strip_prefix("mac=")).map(str::to_lowercase).collect();
    let nics = held.nics.iter().filter(|nic| nic.instance == id);
    let wanted: Vec<String> = nics.map(|nic| nic.mac.clone()).collect();
    found.compare(&format!("in the guest {id}"), &has, &wanted, &wanted);
}

// === what things are called ===

fn nics(id: &str, spec: &Value, claims: &Value) -> Vec<Nic> {
    let given = |name: &str, what: &str| {
        let claim = text(&claims[format!("nics.{name}.{what}")]);
        claim.split('/').next().unwrap_or_default().to_lowercase()
    };
    let nics = spec["nics"].as_object().into_iter().flatten();
    nics.map(|(name, nic)| Nic {
        instance: id.to_owned(),
        network: text(&nic["network"]),
        tap: format!("t{}", short(&format!("{id}/{name}"))),
        mac: given(name, "mac"),
        address: given(name, "address"),
    })
    .collect()
}

fn runs(held: &Held, which: impl Fn(Option<bool>) -> bool) -> Vec<String> {
    held.instances.iter().filter(|(_, runs)| which(**runs)).map(|(id, _)| id.clone()).collect()
}

fn namespace(network: &str) -> String {
    format!("rz-{}", &network[network.len() - 10..])
}

fn short(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref()[..5].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn option(argv: &[String], key: &str) -> Option<String> {
    argv.iter().flat_map(|word| word.split(',')).find_map(|word| word.strip_prefix(key).map(str::to_owned))
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn links(namespace: Option<&str>) -> Vec<String> {
    let found = json(namespace, &["ip", "-j", "link"]);
    found.as_array().into_iter().flatten().map(|link| text(&link["ifname"])).collect()
}

fn json(namespace: Option<&str>, words: &[&str]) -> Value {
    let inside = namespace.map(|name| ["ip", "netns", "exec", name]);
    let all: Vec<&str> = inside.iter().flatten().chain(words).copied().collect();
    let output = Command::new(all[0]).args(&all[1..]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}
