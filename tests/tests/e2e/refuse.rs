//! What is refused, and changes nothing: bad bodies, bad images, no room, no rights.

use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use super::house::{House, folder, until};

const IMAGES: &str = "/v1/tenants/default/images";
const INSTANCES: &str = "/v1/tenants/default/instances";
const NETWORKS: &str = "/v1/tenants/default/networks";
const JSON: &str = "Content-Type: application/json";

#[test]
fn bad_input_is_told_whole_and_changes_nothing() {
    let house = House::new();
    house.import_tiny();
    let before = house.get(INSTANCES);
    let bad = json!({"name": "with spaces", "spec": {
        "image": "none", "vcpus": 0, "colour": "red", "node": "gone", "root": {"size_bytes": 1_u64 << 60},
    }});
    let answer = house.call("POST", INSTANCES, bad).problem(422, "invalid");
    let wanted = ["name", "spec.colour", "spec.image", "spec.node", "spec.root.size_bytes", "spec.vcpus"];
    assert_eq!(answer.fields(), wanted);

    house.call("POST", NETWORKS, json!({"name": "a", "spec": {"cidr": "10.1.0.0/16"}})).one_of(&[201, 202]);
    let overlap = json!({"name": "b", "spec": {"cidr": "10.1.2.0/24"}});
    let answer = house.call("POST", NETWORKS, overlap).problem(422, "invalid");
    assert_eq!(answer.fields(), ["spec.cidr"]);

    let at = |address: &str| json!({"spec": {"image": "tiny", "nics": {"lan": {"network": "a", "address": address}}}});
    house.call("POST", INSTANCES, at("10.1.0.9")).is(202);
    for (address, why) in [("10.1.0.9", "in use"), ("10.2.0.9", "outside"), ("10.1.0.0", "network")] {
        let answer = house.call("POST", INSTANCES, at(address)).problem(422, "invalid");
        assert_eq!(answer.fields(), ["spec.nics.lan.address"], "{why}: {:#}", answer.json);
    }
    house.raw("POST", INSTANCES, &[JSON], "{\"spec\": {\"image\"").problem(400, "malformed");
    let huge = format!("{{\"metadata\": {{\"a\": \"{}\"}}}}", "x".repeat(100 << 20));
    // The server may close before all of it is sent: then there is no answer to read, and nothing was taken.
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        house.raw("POST", INSTANCES, &[JSON], &huge)
    }));
    if let Ok(answer) = refused {
        answer.is(413);
    }
    let after = house.get(INSTANCES);
    let count = |list: &Value| list["items"].as_array().unwrap().len();
    assert_eq!(count(&after), count(&before) + 1, "only the good one was made");

    let large = json!({"spec": {"image": "tiny", "memory_bytes": 1_u64 << 39}});
    let answer = house.call("POST", INSTANCES, large).problem(409, "no-capacity");
    assert!(
        answer.json["nodes"][0]["reasons"][0].as_str().unwrap().contains("bytes of memory"),
        "{:#}",
        answer.json
    );
}

#[test]
fn hostile_images_are_refused_before_any_engine_opens_them() {
    let house = House::new();
    let blobs = house.world.home().join("blobs");
    for (name, bytes) in hostile() {
        let made = house.call("POST", IMAGES, json!({"name": name, "spec": {}})).is(202).json;
        let path = format!("{IMAGES}/{name}/content");
        let answer = upload(&house, &path, &bytes);
        assert!(answer.contains("422") && answer.contains("/problems/"), "{name}: {answer}");
        let left: Vec<_> = std::fs::read_dir(&blobs).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{name} left {left:?}");
        let image = house.get(&format!("{IMAGES}/{name}"));
        assert_eq!(image["status"]["sha256"], Value::Null, "{name}: {image:#}");
        assert!(made["id"].is_string());
    }
}

/// Uploads as any client would; what curl says, with the status.
fn upload(house: &House, path: &str, bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let output = Command::new("curl")
        .args([
            "-s",
            "-w",
            " %{http_code}",
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "-H",
        ])
        .arg(format!("Authorization: Bearer {}", house.world.token().unwrap()))
        .arg("--data-binary")
        .arg(format!("@{}", file.path().display()))
        .arg(format!("http://{}{path}", house.world.http))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Images that would do harm, their headers written by hand (QEMU, docs/interop/qcow2.rst).
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let header = |backing: u64, incompatible: u64, size: u64| {
        let mut bytes = vec![0_u8; 4 * 65536];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(8, &backing.to_be_bytes());
        put(16, &(if backing == 0 { 0_u32 } else { 11 }).to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &size.to_be_bytes());
        put(36, &1_u32.to_be_bytes());
        put(40, &(3 * 65536_u64).to_be_bytes());
        put(48, &65536_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(72, &incompatible.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        if backing != 0 {
            put(usize::try_from(backing).unwrap(), b"/etc/shadow");
        }
        bytes
    };
    let mut truncated = header(0, 0, 1 << 30);
    truncated.truncate(70_000);
    vec![
        ("no-image", b"#!/bin/sh\necho not an image\n".to_vec()),
        ("truncated", truncated),
        ("backing", header(512, 0, 1 << 30)),
        ("data-file", header(0, 1 << 2, 1 << 30)),
        ("exbibyte", header(0, 0, 1 << 60)),
    ]
}

#[test]
fn a_good_file_in_the_images_folder_becomes_an_image_and_a_bad_one_does_not() {
    let images = folder();
    let tiny = xtask::image::tiny(None, true).unwrap();
    std::fs::copy(tiny, images.path().join("dropped.qcow2")).unwrap();
    std::fs::write(images.path().join("bad.qcow2"), &hostile()[2].1).unwrap();
    let place = images.path().to_owned();
    let house = House::with(super::house::alone(), |options| {
        options.config = json!({"images": {"folder": place}});
    });
    let ready = || {
        let image = house.call("GET", "/v1/images/dropped", Value::Null);
        (image.status == 200 && image.json["phase"] == "ready").then_some(())
    };
    until("the image to be taken in", 30, ready);
    house.call("GET", "/v1/images/bad", Value::Null).problem(404, "not-found");
    house.make(INSTANCES, json!({"name": "of-it", "spec": {"image": "dropped"}}));
}

#[test]
fn the_api_is_never_open_and_nobody_has_more_rights_than_needed() {
    let mut house = House::new();
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({}));
    let none = xtask::http::request(
        house.world.http,
        "GET",
        "/v1/nodes",
        &[],
        "",
        std::time::Duration::from_secs(5),
    );
    assert_eq!(none.unwrap().status, 401);

    let server = super::house::Process::of(house.world.server.pid().unwrap());
    assert_ne!(server.status("Uid").split(' ').next(), Some("0"), "the server runs as root");
    let agent = super::house::Process::of(house.world.agents[0].pid().unwrap());
    assert_ne!(agent.status("Uid").split(' ').next(), Some("0"), "the agent runs as root");
    // NET_BIND_SERVICE (10), NET_ADMIN (12), SYS_ADMIN (21), and nothing else.
    assert_eq!(agent.status("CapEff"), "0000000000201400");
    let qemu = house.qemu(web["id"].as_str().unwrap());
    assert_ne!(qemu.status("Uid").split(' ').next(), Some("0"), "a guest runs as root");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(qemu.status(set), "0000000000000000", "{set} of QEMU");
    }
    assert_eq!(qemu.status("NoNewPrivs"), "1");

    let node = house.get("/v1/nodes/node1");
    assert_eq!(node["status"]["accelerator"], "tcg", "{node:#}");
    assert!(node["status"]["accelerator_reason"].as_str().unwrap().contains("kvm"), "{node:#}");
}
