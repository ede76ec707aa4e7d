//! Two throw-away kinds, one of them held by nodes, are scaffolded in a copy of the tree, compile, and keep the
//! contract that every kind must keep: so the templates cannot rot.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::new_resource::Scaffold;
use xtask::{repository, run};

/// The kinds, and whether nodes hold them.
const KINDS: [(&str, bool); 2] = [("mail-box", false), ("bucket", true)];

/// A copy of our own files beside what is built: its path is the same each time, so that the second time is quick.
fn copy() -> PathBuf {
    let (from, into) = (repository(), target().join("scaffold"));
    let listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let list = run::output(Command::new("git").args(listed).current_dir(&from)).unwrap();
    let files: Vec<&str> =
        list.split('\0').filter(|file| !file.is_empty() && from.join(file).exists()).collect();
    assert!(files.len() > 100, "our own files are not found: {}", files.len());
    drop_others(&into, &into, &files);
    for file in files {
        let (old, new) = (from.join(file), into.join(file));
        let bytes = fs::read(old).unwrap();
        // A file that is touched is built again.
        if fs::read(&new).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(new.parent().unwrap()).unwrap();
            fs::write(new, bytes).unwrap();
        }
    }
    into
}

/// What an earlier run has scaffolded, or what we have no more.
fn drop_others(root: &Path, folder: &Path, files: &[&str]) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            drop_others(root, &path, files);
        } else if !files.contains(&path.strip_prefix(root).unwrap().to_str().unwrap()) {
            fs::remove_file(path).unwrap();
        }
    }
}

fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    folder.unwrap_or_else(|| repository().join("target"))
}

/// What cargo says in the copy, which shares all that is built of others' code: of the whole workspace, as everywhere, or
/// others' code would be built with other features once more. `accept`: the document of the API, as it is now.
fn cargo(copy: &Path, words: &str, accept: bool) -> Result<String, String> {
    let mut command = run::cargo();
    command.args(words.split(' ')).current_dir(copy).env("CARGO_TARGET_DIR", target());
    // Others' code is built without debug information anyway: ours is not needed here.
    command
        .env("RHYZOME_CONTRACT_OF", KINDS.map(|(kind, _)| kind).join(","))
        .env("CARGO_PROFILE_DEV_DEBUG", "false");
    if accept {
        command.env("RHYZOME_ACCEPT_OPENAPI", "1");
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

fn done(copy: &Path, words: &str) -> String {
    cargo(copy, words, false).unwrap_or_else(|said| panic!("cargo {words}: {said}"))
}

fn passed(said: &str) -> usize {
    let counts = said.lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next());
    counts.map(|count| count.parse::<usize>().unwrap()).sum()
}

/// Takes a line out of a file of the copy while something is asked.
fn without<T>(copy: &Path, file: &str, line: &str, ask: impl FnOnce() -> T) -> T {
    let path = copy.join(file);
    let whole = fs::read_to_string(&path).unwrap();
    assert!(whole.contains(line), "{file} has no `{line}`");
    fs::write(&path, whole.replace(line, "")).unwrap();
    let answer = ask();
    fs::write(&path, whole).unwrap();
    answer
}

/// Runs tests that were built already: what they read of the tree, they read now.
fn again(copy: &Path, built: &str, test: &str) -> String {
    let program = built.split_once("in_process/main.rs (").unwrap().1.split_once(')').unwrap().0;
    let program = if program.starts_with('/') { program.into() } else { copy.join(program) };
    let output = Command::new(program).arg(test).current_dir(copy).output().unwrap();
    assert!(!output.status.success(), "{test} sees nothing");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_scaffolded_kind_keeps_the_contract_and_each_gap_is_told_by_name() {
    let copy = copy();
    for (kind, agent) in KINDS {
        let scaffold = Scaffold::of(&copy, kind, None, agent).unwrap();
        let written = scaffold.write(&copy).unwrap();
        assert_eq!(written.len(), if agent { 8 } else { 5 }, "{written:?}");
        let twice = Scaffold::of(&copy, kind, None, agent).unwrap_err();
        assert!(format!("{twice:#}").contains("is taken"), "{twice:#}");
    }
    done(&copy, "fmt --all");

    // Not in the document yet, and nothing limits how many of one kind a tenant makes: each is told.
    let units = "test --workspace --lib --no-fail-fast -- resources:: the_locked_document drivers::bucket";
    let field = "    /// How many mail boxes.\n    #[serde(default, skip_serializing_if = \"Option::is_none\")]\n    \
                 pub mail_boxes: Option<u64>,\n";
    let said = without(&copy, "api-server/src/resources/tenant.rs", field, || {
        cargo(&copy, units, false).unwrap_err()
    });
    for test in ["the_locked_document", "every_quantity_can_be_limited"] {
        let failed = said.lines().any(|line| line.contains(test) && line.ends_with("FAILED"));
        assert!(failed, "{test} sees nothing: {said}");
    }
    // With the field, and the document accepted, nothing is wrong.
    let said = cargo(&copy, units, true).unwrap_or_else(|said| panic!("cargo {units}: {said}"));
    let of_driver = said.lines().filter(|line| line.contains("drivers::bucket") && line.ends_with("ok"));
    assert_eq!(of_driver.count(), 1, "{said}");
    let document = fs::read_to_string(copy.join("openapi/openapi.json")).unwrap();
    assert!(document.contains("/v1/tenants/{tenant}/mail-boxes"), "the document has the new kind");

    // All that every kind is asked, on both databases; its own story; and what holds for all files.
    let words = "test --workspace --test in_process -- rest_contract stories arrows hygiene::no_file laws crash::every";
    let said = done(&copy, words);
    assert!(passed(&said) > 2 * 10 + 2 * 3 + 5, "{said}");

    let story = "tests/tests/in_process/stories/mail_box.rs";
    let told = fs::read(copy.join(story)).unwrap();
    fs::remove_file(copy.join(story)).unwrap();
    let gap = again(&copy, &said, "every_kind_has_its_story");
    assert!(gap.contains("the kind `mail-box` has no story"), "{gap}");
    fs::write(copy.join(story), told).unwrap();
    let list = "tests/tests/in_process/stories/mod.rs";
    let gap = without(&copy, list, "mod mail_box;", || again(&copy, &said, "every_story_is_in_the_list"));
    assert!(gap.contains("lacks the line `mod mail_box;`"), "{gap}");
    let list = "node-agent/src/drivers/mod.rs";
    for (line, told) in [
        ("pub mod bucket;", "no line `pub mod bucket;`"),
        ("    crate::plain::driver::<bucket::BucketDriver>,", "the driver of `bucket` is not in THE LIST"),
    ] {
        let gap =
            without(&copy, list, line, || again(&copy, &said, "every_kind_that_nodes_hold_has_its_driver"));
        assert!(gap.contains(told), "{gap}");
    }
    let lost = copy.join("api-server/src/resources/lost.rs");
    fs::write(&lost, "").unwrap();
    let gap = again(&copy, &said, "every_file_of_a_kind_has_its_line");
    assert!(gap.contains("[\"lost\"]: a file in resources/ without a line"), "{gap}");
    fs::remove_file(&lost).unwrap();
}
