//! Disks as they were: copied under a guest that goes on, fetched across an agent that is killed, and a guest that goes on
//! from there.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use rhyzome_api::kernel::Timestamp;
use serde_json::{Value, json};
use xtask::procfs;

use super::house::{BOOT, House, path_of, until};
use super::lease::COUNTS;

/// More than all that is between a node and a client can keep.
const NOISE_BYTES: usize = 48 << 20;
/// What a client has read before the node's agent is killed.
const FIRST_BYTES: usize = 1 << 20;

fn qemu_img(words: &[&str]) {
    let done = Command::new("qemu-img").args(words).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of bytes that cannot be made smaller.
fn noise(folder: &Path) -> PathBuf {
    let (raw, image) = (folder.join("noise.raw"), folder.join("noise.qcow2"));
    let mut bytes = vec![0; NOISE_BYTES];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    std::fs::write(&raw, bytes).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    image
}

fn counts(house: &House, id: &str) -> Vec<u64> {
    let console = house.console(id);
    // The last line may be half of one.
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse().ok()).collect()
}

fn await_counts(house: &House, id: &str, more_than: usize) -> Vec<u64> {
    until("a guest that counts", 2 * BOOT, || {
        Some(counts(house, id)).filter(|counts| counts.len() > more_than)
    })
}

/// A client that reads the first bytes of an answer, and then nothing until `meanwhile` is over; all that came of its body.
fn fetch_slowly(house: &House, path: &str, meanwhile: impl FnOnce()) -> Vec<u8> {
    let mut stream = TcpStream::connect(house.world.http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let token = house.world.token().unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: here\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    let mut bytes = vec![0; FIRST_BYTES];
    stream.read_exact(&mut bytes).unwrap();
    meanwhile();
    let mut rest = Vec::new();
    // Broken off, by whatever sign: what came is what counts.
    let _ = stream.read_to_end(&mut rest);
    bytes.extend(rest);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(bytes.starts_with(b"HTTP/1.") && bytes[..end].windows(5).any(|it| it == b" 200 "), "no 200");
    bytes.split_off(end)
}

#[test]
fn a_disk_is_copied_fetched_and_gone_on_from() {
    let mut house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    let folder = super::house::folder();
    house.import("noise", &noise(folder.path()));
    house.make("/v1/tenants/default/disks", json!({"name": "data", "spec": {"image": "noise"}}));
    let spec = json!({"user_data": COUNTS, "disks": {"data": {"disk": "data"}}});
    let web = house.make_instance("default", "web", spec);
    let id = web["id"].as_str().unwrap().to_owned();
    let qemu = house.qemu(&id);

    // Under a guest that writes: it goes on.
    let first = await_counts(&house, &id, 3);
    house.world.said(&["snapshot", "create", "monday", "--disk", "web-root", "--wait"]).unwrap();
    let last = counts(&house, &id);
    await_counts(&house, &id, last.len() + 3);
    assert_eq!(house.qemu(&id), qemu);

    // Its agent is killed while it is copied: QEMU goes on, and the next agent with it.
    let asked = json!({"name": "noise", "spec": {"disk": "data"}});
    let taking = house.call("POST", "/v1/tenants/default/snapshots", asked).is(202).json;
    let part = house.state().join("snapshots").join(format!("{}.part", taking["id"].as_str().unwrap()));
    // Empty it is made before QEMU begins.
    let is_under_way = || std::fs::metadata(&part).is_ok_and(|part| part.len() > 4 << 20);
    until("a copy that is under way", 30, || is_under_way().then_some(()));
    house.world.agents[0].kill9().unwrap();
    let record = std::fs::read_to_string(part.with_extension("json")).unwrap();
    let begun: Value = serde_json::from_str(&record).unwrap();
    house.world.restart_agent(0).unwrap();
    house.done(&taking);
    assert_eq!(house.qemu(&id), qemu);
    let taken = house.get(&path_of(&taking))["status"]["taken_at"].clone();
    let begun = Timestamp(begun["taken_at_ms"].as_i64().unwrap() * 1000);
    assert_eq!(taken, json!(begun), "it was taken anew");

    // Fetched, while the node's agent is killed: not all of it came, and what did is gone on from.
    let path = "/v1/tenants/default/snapshots/noise";
    let noise = house.get(path);
    let size = usize::try_from(noise["status"]["size_bytes"].as_u64().unwrap()).unwrap();
    assert!(size > NOISE_BYTES, "{noise:#}");
    let agent = house.world.agents[0].pid().unwrap();
    let came = fetch_slowly(&house, &format!("{path}/content"), || procfs::signal(agent, Signal::SIGKILL));
    assert!(came.len() < size, "all {size} bytes had come before the agent was killed");
    house.world.restart_agent(0).unwrap();
    let file = folder.path().join("noise.back");
    let sha256 = noise["status"]["sha256"].as_str().unwrap();
    let part = folder.path().join(format!("noise.back.{}.part", &sha256[..12]));
    std::fs::write(&part, &came).unwrap();
    house.world.said(&["snapshot", "download", "noise", text(&file)]).unwrap();
    assert!(!part.exists());
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() == size && bytes.starts_with(&came));
    assert_eq!(rhyzome_pki::sha256_hex(&bytes), sha256);
    let log = std::fs::read_to_string(house.world.folder.join("server.log")).unwrap();
    assert!(
        log.lines().any(|line| line.contains("/content") && line.contains("status=206")),
        "it did not go on"
    );
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&file),
        text(&folder.path().join("noise.raw")),
    ]);
    assert_eq!(house.qemu(&id), qemu, "the guest has noticed that its agent was killed");

    // A guest goes on from what it was.
    let file = folder.path().join("monday.qcow2");
    house.world.said(&["snapshot", "download", "monday", text(&file)]).unwrap();
    let again = house.world.said(&["snapshot", "download", "monday", text(&file)]).unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");
    house.world.said(&["image", "import", "monday", text(&file)]).unwrap();
    let other = house.make_instance("default", "other", json!({"image": "monday"}));
    let counted = await_counts(&house, other["id"].as_str().unwrap(), 1)[0];
    let (from, to) = (first.last().unwrap() + 1, last.last().unwrap() + 2);
    assert!((from..=to).contains(&counted), "it goes on with {counted}; it was copied in {from}..={to}");

    // Stopped, too; and what has snapshots stays.
    house.act(&path_of(&web), "stop", json!({"mode": "hard"}));
    house.world.said(&["snapshot", "create", "stopped", "--disk", "web-root", "--wait"]).unwrap();
    let refused = house.call("DELETE", &path_of(&web), Value::Null).problem(409, "in-use");
    assert!(refused.json.to_string().contains("stopped"), "{:#}", refused.json);
    for name in ["monday", "noise", "stopped"] {
        house.delete(&format!("/v1/tenants/default/snapshots/{name}"));
    }
    for object in [&web, &other] {
        house.delete(&path_of(object));
    }
    for path in ["disks/data", "images/monday", "networks/default"] {
        house.delete(&format!("/v1/tenants/default/{path}"));
    }
    house.delete("/v1/images/noise");
    house.nothing_left(&before);
}
