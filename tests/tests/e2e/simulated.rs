//! Simulated nodes as a person would start them: two commands, and the API does what it does with machines.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use xtask::procfs;
use xtask::world::{Process, Style, binaries, namespace_of};

use super::house::{House, alone, nic, path_of, until};

/// Tells a simulation something; what it answers.
fn tell(state: &Path, command: &str) -> String {
    let mut socket = until("its socket", 60, || UnixStream::connect(state.join("control.sock")).ok());
    socket.write_all(format!("{command}\n").as_bytes()).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

/// Processes of this world but server and agents. Other worlds may be on the machine.
fn made_for_guests(house: &House) -> Vec<String> {
    let lines = procfs::of(&house.world.folder).into_iter().map(|seen| seen.line());
    lines.filter(|line| !line.contains("/rhyzome-api ") && !line.contains("/rhyzome-agent ")).collect()
}

/// An instance comes to run on a node that is not there, step by step, survives the end of the simulation, and is
/// deleted; no process, link or file of a guest was ever made.
#[test]
fn an_instance_lives_on_a_simulated_node() {
    let house = House::with(alone(), |options| options.nodes.clear());
    let image = house.world.folder.join("empty.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("16M")
        .status()
        .unwrap();
    assert!(made.success());
    house.import("empty", &image);

    let lines = house.world.said(&["node", "invite", "sim", "--count", "3"]).unwrap();
    assert_eq!(lines.lines().count(), 3, "{lines}");
    let (invitations, state) = (house.world.folder.join("sim.txt"), house.world.folder.join("simulated"));
    std::fs::write(&invitations, lines).unwrap();
    let agent = binaries().unwrap().join("rhyzome-agent").display().to_string();
    let words = |more: &[&str]| {
        let words = [&[agent.as_str(), "simulate", "--state-dir", state.to_str().unwrap()], more].concat();
        words.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let process =
        |more: &[&str]| Process::new("simulated", &house.world.folder, words(more), Style::default());
    let mut simulation = process(&["--nodes", "3", "--invitations", invitations.to_str().unwrap()]);
    simulation.start().unwrap();
    for node in ["sim-1", "sim-2", "sim-3"] {
        house.wait_for(&format!("/v1/nodes/{node}"), "a session", 60, |node| node["phase"] == "ready");
    }
    let node = house.get("/v1/nodes/sim-2");
    assert_eq!(node["status"]["simulated"], true, "{node:#}");
    let list = house.world.said(&["node", "list"]).unwrap();
    assert!(list.contains("SIMULATED") && list.contains(" yes "), "{list}");

    assert_eq!(tell(&state, "hold"), "ok");
    let asked = json!({"name": "web", "spec": {"image": "empty"}});
    let made = house.call("POST", "/v1/tenants/default/instances", asked).is(202).json;
    let mut steps = Vec::new();
    until("the guest's start", 60, || {
        let step = tell(&state, "step");
        if step != "nothing waits" {
            assert_ne!(house.get(&path_of(&made))["phase"], "running", "it was not told to start");
            steps.push(step);
        }
        steps.last()?.contains(" Start ").then_some(())
    });
    house.done(&made);
    let web = house.get(&path_of(&made));
    assert_eq!((&web["phase"], &web["status"]["accelerator"]), (&json!("running"), &json!("simulated")));
    assert_eq!(made_for_guests(&house), Vec::<String>::new());
    let network = namespace_of(nic(&web)["network"].as_str().unwrap());
    assert!(!Path::new("/run/netns").join(network).exists(), "a simulated node makes no network");
    assert!(!state.join("sim-1/instances").exists(), "a simulated node makes no file for a guest");

    // Ended and started again, with nothing but its folder.
    simulation.terminate(Duration::from_secs(20)).unwrap();
    for node in ["sim-1", "sim-2", "sim-3"] {
        house.wait_for(&format!("/v1/nodes/{node}"), "its end", 60, |node| node["phase"] == "offline");
    }
    let mut simulation = process(&[]);
    simulation.start().unwrap();
    until("three nodes again", 60, || tell(&state, "show").contains("\nconnected 3\n").then_some(()));
    house.delete(&path_of(&made));
    house.call("GET", &path_of(&made), Value::Null).problem(404, "not-found");
    house.delete("/v1/images/empty");
    until("nodes that hold nothing", 60, || tell(&state, "show").contains("\norders 0\n").then_some(()));
    simulation.terminate(Duration::from_secs(20)).unwrap();
    assert!(!state.join("control.sock").exists());
    assert_eq!(made_for_guests(&house), Vec::<String>::new());
}
