//! `rhyzome-api pki`: the authority is exchanged beside a server that is at work, which is killed in between.

use std::time::{Duration, Instant};

use super::place::Place;

fn until(place: &Place, words: &str) -> String {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let said = place.done(&["pki", "status"]);
        if said.contains(words) {
            return said;
        }
        assert!(Instant::now() < end, "waited in vain for {words:?}: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The root that has this role.
fn root(status: &str, role: &str) -> String {
    let line = status.lines().find(|line| line.split_whitespace().nth(1) == Some(role));
    line.unwrap_or_else(|| panic!("{role}: {status}")).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn an_operator_exchanges_the_authority_while_servers_come_and_go() {
    let place = Place::sqlite();
    let server = place.serve();
    let trusted = || std::fs::read_to_string(place.path().join("data/ca.pem")).unwrap();
    let first = until(&place, "No exchange is under way");
    let old = root(&first, "signs");
    assert!(place.done(&["node", "invite", "n1"]).contains(&format!(".{old}")), "the token names it");
    assert!(place.refused(&["pki", "retire"]).contains("no authority that could retire"));
    drop(server); // kill -9

    assert!(place.done(&["pki", "rotate"]).contains("is prepared"));
    assert!(place.refused(&["pki", "rotate"]).contains("an exchange is under way"));
    let prepared = place.done(&["pki", "status"]);
    let new = root(&prepared, "next");
    assert!(root(&prepared, "signs") == old && new != old);
    let server = place.serve();
    let activated = until(&place, "Activated since");
    assert!(root(&activated, "signs") == new && root(&activated, "previous") == old);
    assert!(
        place.done(&["node", "invite", "n1"]).contains(&format!(".{new}")),
        "new tokens name the new one"
    );
    assert!(place.refused(&["pki", "retire"]).contains("join tokens may be left"));
    drop(server);

    let server = place.serve();
    assert_eq!(trusted().matches("BEGIN").count(), 2, "clients on this machine trust both");
    assert!(place.done(&["pki", "retire", "--cut-off"]).contains("Make a backup"));
    let end = Instant::now() + Duration::from_secs(60);
    while trusted().matches("BEGIN").count() != 1 {
        assert!(Instant::now() < end, "clients on this machine are told");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(root(&until(&place, "No exchange is under way"), "signs"), new);
    server.stop();
    let file = place.path().join("backup");
    place.done(&["backup", file.to_str().unwrap()]);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains("pki/rotation.json") && !kept.contains("pki/root.key"));
}
