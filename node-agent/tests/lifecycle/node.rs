//! A node in a temporary folder, and an agent's owner on it, without a network and without a server.

use bytes::Bytes;
use futures_util::StreamExt;
use rhyzome_agent::drivers;
use rhyzome_agent::drivers::disk::DiskDriver;
use rhyzome_agent::drivers::image::{BlobSource, ImageDriver};
use rhyzome_agent::drivers::instance::InstanceDriver;
use rhyzome_agent::drivers::instance::process::{Identity, host_boot_id};
use rhyzome_agent::drivers::network::NetworkDriver;
use rhyzome_agent::drivers::snapshot::SnapshotDriver;
use rhyzome_agent::env::Env;
use rhyzome_agent::host::netns;
use rhyzome_agent::ledger::Ledger;
use rhyzome_agent::link::LinkEvent;
use rhyzome_agent::names;
use rhyzome_agent::owner::{Drivers, Event, Owner, Wires};
use rhyzome_agent::wireguard::engine::Wanted;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::report::Body as ReportBody;
use rhyzome_proto::v1::{
    DiskOrder, ImageOrder, InstanceDisk, InstanceNic, InstanceOrder, InstanceReport, NetworkOrder, Order,
    OrderBody, Power, Report, ReportState, SnapshotOrder, SnapshotReport,
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub const IMAGE: &str = "img_1";
pub const DISK: &str = "disk_1";
pub const INSTANCE: &str = "inst_1";
pub const NETWORK: &str = "net_lifecycle01";
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Node {
    folder: TempDir,
    image: Vec<u8>,
    instance: InstanceOrder,
    sequence: u64,
}

impl Node {
    pub fn new() -> Self {
        Self::of_size(1 << 20)
    }

    /// With an image of this size, of bytes that cannot be made smaller.
    pub fn of_size(bytes: usize) -> Self {
        let instance = InstanceOrder {
            hostname: "guest".into(),
            vcpus: 1,
            memory_bytes: 32 << 20,
            disks: vec![InstanceDisk {
                name: "root".into(),
                disk_id: DISK.into(),
                boot: true,
                ..InstanceDisk::default()
            }],
            power: Power::On.into(),
            boot_epoch: 1,
            stop_deadline_seconds: 1,
            ..InstanceOrder::default()
        };
        Self { folder: tempfile::tempdir().unwrap(), image: boot_sector(bytes), instance, sequence: 0 }
    }

    pub fn start_agent(&self) -> Agent {
        let state = self.folder.path();
        let bytes = self.image.clone();
        let source: BlobSource = Arc::new(move |_, offset| {
            let rest = Bytes::copy_from_slice(&bytes[usize::try_from(offset).unwrap()..]);
            Box::pin(async move { Ok(futures_util::stream::iter([Ok(rest)]).boxed()) })
        });
        let (ring, bell) = mpsc::unbounded_channel();
        let (link, link_in) = mpsc::channel(16);
        let (reports_out, reports) = mpsc::unbounded_channel();
        let (events, events_in) = mpsc::unbounded_channel();
        let drivers = Drivers {
            images: Arc::new(ImageDriver::new(state, source)),
            disks: Arc::new(DiskDriver::new(state)),
            snapshots: Arc::new(SnapshotDriver::new(state)),
            networks: NetworkDriver::new(state),
            instances: Arc::new(InstanceDriver::new(state, ring)),
            plain: drivers::plain(state, &Env::system(), Wanted::Auto),
        };
        events.send(Event::Accelerator("tcg".into())).unwrap();
        link.try_send(LinkEvent::Connected { db_epoch: 1, session: 1 }).unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::open(state).unwrap()));
        let teller = Arc::new(move |report| drop(reports_out.send(report)));
        let findings = Arc::new(|_| {});
        let wires =
            Wires { link: link_in, teller, findings, session: Arc::default(), events: events_in, bell };
        let owner =
            tokio::spawn(Owner::new(ledger, Arc::new(drivers), wires, host_boot_id(), Env::system()).run());
        Agent { owner, link, reports, newest: HashMap::new() }
    }

    pub fn image(&mut self) -> Order {
        let order = ImageOrder {
            sha256: Sha256::digest(&self.image).iter().map(|byte| format!("{byte:02x}")).collect(),
            size_bytes: self.image.len() as u64,
            format: "raw".into(),
            virtual_size_bytes: self.image.len() as u64,
        };
        self.order(IMAGE, Some(Body::Image(order)))
    }

    pub fn disk(&mut self, size_bytes: u64) -> Order {
        let order = DiskOrder { size_bytes, image_id: IMAGE.into(), ..DiskOrder::default() };
        self.order(DISK, Some(Body::Disk(order)))
    }

    pub fn instance(&mut self, change: impl FnOnce(&mut InstanceOrder)) -> Order {
        if self.instance.power() == Power::Off {
            self.instance.power = Power::On.into();
        }
        change(&mut self.instance);
        self.order(INSTANCE, Some(Body::Instance(self.instance.clone())))
    }

    pub fn snapshot(&mut self, id: &str, begin_before_ms: u64) -> Order {
        let order = SnapshotOrder { disk_id: DISK.into(), begin_before_ms, ..SnapshotOrder::default() };
        self.order(id, Some(Body::Snapshot(order)))
    }

    pub fn snapshot_file(&self, id: &str) -> PathBuf {
        self.folder.path().join("snapshots").join(format!("{id}.qcow2"))
    }

    pub fn snapshot_part(&self, id: &str) -> PathBuf {
        self.snapshot_file(id).with_extension("part")
    }

    pub fn disk_file(&self) -> PathBuf {
        self.folder.path().join("disks").join(format!("{DISK}.qcow2"))
    }

    pub fn network(&mut self) -> Order {
        let order = NetworkOrder {
            cidr: "10.77.0.0/24".into(),
            gateway: "10.77.0.1".into(),
            dns: vec!["10.77.0.1".into()],
            domain: "test.internal".into(),
            ..NetworkOrder::default()
        };
        self.order(NETWORK, Some(Body::Network(order)))
    }

    pub fn namespace_exists(&self) -> bool {
        netns::exists(&names::namespace(NETWORK)).unwrap()
    }

    /// When QEMU's process wrote its pid, right before exec.
    pub fn exec_time(&self) -> SystemTime {
        fs::metadata(self.path().join("pid")).unwrap().modified().unwrap()
    }

    pub fn removal(&mut self, id: &str) -> Order {
        Order { remove: true, ..self.order(id, None) }
    }

    fn order(&mut self, id: &str, body: Option<Body>) -> Order {
        self.sequence += 1;
        Order {
            object_id: id.into(),
            db_epoch: 1,
            placement_epoch: 1,
            generation: self.sequence,
            sequence: self.sequence,
            body: body.map(|body| OrderBody { body: Some(body) }),
            ..Order::default()
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("instances").join(INSTANCE)
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap()
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.path().join("console.log")).unwrap_or_default()
    }

    pub fn drop_in(&self, text: &str) {
        let folder = self.path().join("drop-in");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("test.args"), text).unwrap();
    }

    pub fn capabilities_of(&self, pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        line.trim().to_owned()
    }

    pub fn kill_qemu(&self, pid: u32) {
        let identity = Identity::read(&self.path().join("pid")).unwrap();
        assert_eq!(identity.pid, pid);
        identity.kill().unwrap();
    }

    pub async fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain for {what}; qemu.log: {}", self.file("qemu.log"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Files below the agent's folder, but for the ledger's own head.
    pub fn left_behind(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found.retain(|path| !path.ends_with("ledger/meta.json"));
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed half way leaves no guest behind.
        if let Some(identity) = Identity::read(&self.path().join("pid")) {
            let _ = identity.kill();
        }
        let state = self.folder.path().to_owned();
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(NetworkDriver::new(&state).remove(NETWORK))
        });
        if let Err(error) = removed.join().expect("no panic") {
            eprintln!("a network may be left behind: {error}");
        }
    }
}

/// Puts the guest on the network.
pub fn with_nic(order: &mut InstanceOrder) {
    order.nics = vec![InstanceNic {
        name: "lan".into(),
        network_id: NETWORK.into(),
        mac: "52:54:00:77:00:05".into(),
        address: "10.77.0.5/24".into(),
    }];
}

pub struct Agent {
    owner: JoinHandle<()>,
    link: mpsc::Sender<LinkEvent>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// The newest report of each object since it was ordered last.
    newest: HashMap<String, Report>,
}

impl Agent {
    pub fn kill(self) {
        self.owner.abort();
    }

    pub async fn order(&mut self, order: Order) {
        self.newest.remove(&order.object_id);
        self.link.send(LinkEvent::Order(Box::new(order))).await.unwrap();
    }

    async fn report(&mut self, what: &str, mut is_it: impl FnMut(&Report) -> bool) -> Report {
        if let Some(report) = self.newest.values().find(|report| is_it(report)) {
            return report.clone();
        }
        let mut last = Vec::new();
        let wait = async {
            loop {
                let report = self.reports.recv().await.expect("the owner ended");
                self.newest.insert(report.object_id.clone(), report.clone());
                if is_it(&report) {
                    return report;
                }
                last.push(format!(
                    "{} {:?} {} {:?}",
                    report.object_id,
                    report.state(),
                    report.message,
                    report.body
                ));
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(report) => report,
            Err(_) => panic!("no report of {what}, but:\n{}", last.join("\n")),
        }
    }

    pub async fn state(&mut self, id: &str, state: ReportState) -> Report {
        self.report(state.as_str_name(), |report| report.object_id == id && report.state() == state).await
    }

    pub async fn instance(&mut self, is_it: impl Fn(&InstanceReport) -> bool) -> InstanceReport {
        let report = self
            .report("the instance", |report| match &report.body {
                Some(ReportBody::Instance(instance)) => is_it(instance),
                _ => false,
            })
            .await;
        match report.body {
            Some(ReportBody::Instance(instance)) => instance,
            _ => unreachable!(),
        }
    }

    pub async fn power(&mut self, power: &str) -> InstanceReport {
        self.instance(|report| report.power == power).await
    }

    /// What a snapshot is when it is whole.
    pub async fn snapshot(&mut self, id: &str) -> SnapshotReport {
        match self.state(id, ReportState::Applied).await.body {
            Some(ReportBody::Snapshot(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    pub async fn disk_size(&mut self, size_bytes: u64) {
        let is_it = |report: &Report| match &report.body {
            Some(ReportBody::Disk(disk)) => disk.virtual_size_bytes == size_bytes,
            _ => false,
        };
        self.report("the disk's size", is_it).await;
    }
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path.display().to_string());
        }
    }
}

/// Prints "RZ" on the first serial port and halts for good.
fn boot_sector(bytes: usize) -> Vec<u8> {
    let mut code = vec![0xfa, 0xba, 0xf8, 0x03]; // cli; mov dx, 0x3f8
    for letter in super::MARKER.bytes() {
        code.extend([0xb0, letter, 0xee]); // mov al, letter; out dx, al
    }
    code.extend([0xf4, 0xeb, 0xfd]); // halt: hlt; jmp halt
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    let mut dice = 1_u64;
    code.resize_with(bytes, || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 56) as u8
    });
    code
}
