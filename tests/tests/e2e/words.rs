//! Words of the command line that look back, against a real server without a node.

use super::house::{House, alone};

#[test]
fn what_was_is_seen_and_brought_back() {
    let house = House::with(alone(), |options| options.nodes.clear());
    let say = |words: &[&str]| house.world.said(words).unwrap();
    say(&["network", "create", "lan", "--tag", "env=prod"]);
    say(&["network", "edit", "lan", "--tag", "env=test", "--rename", "wan"]);
    assert_eq!(say(&["network", "revisions", "wan"]).lines().count(), 3, "a header and two versions");
    say(&["network", "restore", "wan", "1", "--wait"]);
    let back = house.world.json(&["network", "show", "lan"]).unwrap();
    assert_eq!((&back["tags"]["env"], &back["version"]), (&"prod".into(), &3.into()), "{back:#}");
    let none = house.world.said(&["network", "restore", "lan", "99"]).unwrap_err().to_string();
    assert!(none.contains("no such"), "{none}");
    let access = say(&["network", "access", "lan"]);
    assert!(access.contains("operators") && access.contains("network:delete"), "{access}");

    // A job that waits for an upload which never comes: cancelled, read, tried again.
    say(&["image", "create", "pic"]);
    let job = house.world.json(&["image", "show", "pic"]).unwrap()["job"].as_str().unwrap().to_owned();
    say(&["job", "cancel", &job]);
    let log = say(&["job", "log", &job]);
    assert!(log.lines().last().unwrap().contains("cancelled"), "{log}");
    for line in say(&["job", "log", &job, "--output", "json"]).lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    let again = house.world.json(&["job", "retry", &job]).unwrap();
    assert_ne!(again["id"], job.as_str());
    let all = house.world.json(&["job", "list"]).unwrap();
    let ids: Vec<_> = all.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&again["id"].as_str().unwrap()) && ids.contains(&job.as_str()), "{ids:?}");

    say(&["image", "create", "common", "--global"]);
    let list = say(&["image", "list"]);
    let line = list.lines().find(|line| line.contains("common")).unwrap_or_else(|| panic!("{list}"));
    assert!(line.starts_with("(all)"), "{list}");
}
