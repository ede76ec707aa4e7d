//! THE LIST OF STORIES: what only one kind does, a file for each, a line for each. What all kinds do is asked in
//! `rest_contract.rs`.

mod binding;
mod member;
mod mesh;
mod mesh_member;
mod role;
mod snapshot;
mod ssh_key;
mod token;
mod user;
mod vpn_network;
mod vpn_pool;
mod wireguard_peer;
mod wireguard_server;

use std::collections::BTreeSet;
use std::path::Path;

use rhyzome_api::kernel::Held;
use rhyzome_api::resources::registry;

use super::arrows::repository;

/// Kinds whose story is told with others', or beside their plans.
const TOLD_ELSEWHERE: [(&str, &str); 10] = [
    ("tenant", "tests/tests/in_process/quota.rs"),
    ("node", "tests/tests/in_process/channel/mod.rs"),
    ("machine-type", "api-server/src/resources/machine_type.rs"),
    ("storage-pool", "api-server/src/resources/storage_pool.rs"),
    ("image", "tests/tests/in_process/channel/mod.rs"),
    ("network", "tests/tests/e2e/life.rs"),
    ("disk", "tests/tests/in_process/store.rs"),
    ("instance", "tests/tests/in_process/placement.rs"),
    ("placement-group", "tests/tests/in_process/placement.rs"),
    ("webhook", "tests/tests/in_process/webhooks.rs"),
];

/// Files that tell of a kind each, in this folder of the repository.
fn files(folder: &str, others: &[&str]) -> BTreeSet<String> {
    let entries = std::fs::read_dir(repository().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stems = names.filter_map(|name| name.strip_suffix(".rs").map(str::to_owned));
    stems.filter(|stem| !others.contains(&stem.as_str())).collect()
}

fn kinds() -> BTreeSet<String> {
    registry().all().iter().map(|kind| kind.meta().kind.replace('-', "_")).collect()
}

fn read(file: &str) -> String {
    let path = repository().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn every_file_of_a_kind_has_its_line_in_the_registry() {
    let files = files("api-server/src/resources", &["mod", "testing"]);
    let lost: Vec<_> = files.symmetric_difference(&kinds()).cloned().collect();
    assert!(
        lost.is_empty(),
        "{lost:?}: a file in resources/ without a line in resources/mod.rs, or the reverse"
    );
}

#[test]
fn every_kind_has_its_story() {
    for kind in registry().all() {
        let kind = kind.meta().kind;
        let own = format!("tests/tests/in_process/stories/{}.rs", kind.replace('-', "_"));
        let told = TOLD_ELSEWHERE.iter().find(|(of, _)| *of == kind).map(|(_, file)| *file);
        if let Some(file) = told {
            assert!(read(file).contains(&format!("\"{kind}\"")), "{file} does not speak of {kind}");
            assert!(
                !Path::new(&own).exists(),
                "{kind} has a story of its own: take it out of TOLD_ELSEWHERE"
            );
        } else {
            let there = repository().join(&own).exists();
            assert!(there, "the kind `{kind}` has no story: tell in {own} what only it does");
        }
    }
}

/// Drivers that know of each other's things by what is decided in `reconcile/`: all others are plain.
const NOT_PLAIN: [&str; 5] = ["disk", "image", "instance", "network", "snapshot"];

/// Kinds whose objects are parts of the same thing: one room drives them all.
const OF_A_ROOM: [&str; 5] = ["mesh_member", "vpn_network", "vpn_pool", "wireguard_peer", "wireguard_server"];

#[test]
fn every_kind_that_nodes_hold_has_its_driver() {
    let list = read("node-agent/src/drivers/mod.rs");
    let registry = registry();
    let held = registry.all().iter().filter(|kind| kind.meta().held != Held::Never);
    let held: BTreeSet<String> = held.map(|kind| kind.meta().kind.replace('-', "_")).collect();
    assert!(
        list.contains("crate::wireguard::drivers("),
        "the room of {OF_A_ROOM:?} is not asked for its drivers"
    );
    for kind in held.iter().filter(|kind| !OF_A_ROOM.contains(&kind.as_str())) {
        let line = list.lines().any(|line| line == format!("pub mod {kind};"));
        assert!(line, "nodes hold the kind `{kind}`, and drivers/mod.rs has no line `pub mod {kind};`");
        let plain =
            list.lines().any(|line| line.trim().starts_with(&format!("crate::plain::driver::<{kind}::")));
        assert!(
            plain != NOT_PLAIN.contains(&kind.as_str()),
            "the driver of `{kind}` is not in THE LIST of drivers/mod.rs: no agent would hold one"
        );
    }
    for file in files("node-agent/src/drivers", &["mod"]) {
        assert!(held.contains(&file), "drivers/{file}.rs is of no kind that nodes hold");
    }
}

#[test]
fn every_story_is_in_the_list() {
    let list = read("tests/tests/in_process/stories/mod.rs");
    for file in files("tests/tests/in_process/stories", &["mod"]) {
        let line = format!("mod {file};");
        assert!(
            list.lines().any(|one| one == line),
            "stories/mod.rs lacks the line `{line}`: the story is not told"
        );
        assert!(kinds().contains(&file), "stories/{file}.rs tells of no kind");
    }
}
