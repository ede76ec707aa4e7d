//! What holds for the whole repository: sizes of files, licences of what we build on.

use std::process::Command;

use serde_json::Value;

use super::arrows::{is_test, repository, sources};

/// Licences that may stand in our programs.
const ALLOWED: [&str; 16] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MPL-2.0",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "Unlicense",
    "0BSD",
    "Apache-2.0 WITH LLVM-exception",
];

/// There is one TLS, rustls with ring: another would be a second set of bugs, and needs a C compiler's favour.
const NEVER: [&str; 5] = ["aws-lc-sys", "aws-lc-rs", "openssl-sys", "native-tls", "openssl"];

fn too_long(file: &str, lines: usize) -> Option<String> {
    let most = if is_test(file) { 800 } else { 500 };
    (lines > most).then(|| format!("{file} has {lines} lines, {most} is the end: split it by what it does"))
}

/// Whether a licence expression leaves us a choice that is allowed: `(MIT OR GPL-2.0) AND Zlib`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words) -> bool {
    let mut good = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        // Both sides are read in any case.
        good |= all_of(words);
    }
    good
}

fn all_of(words: &mut Words) -> bool {
    let mut good = one(words);
    while words.next_if_eq(&"AND").is_some() {
        good &= one(words);
    }
    good
}

fn one(words: &mut Words) -> bool {
    match words.next() {
        Some("(") => {
            let good = any_of(words);
            words.next() == Some(")") && good
        }
        Some(name) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().unwrap_or_default();
            ALLOWED.contains(&name) || ALLOWED.contains(&format!("{name} WITH {exception}").as_str())
        }
        Some(name) => ALLOWED.contains(&name),
        None => false,
    }
}

#[test]
fn no_file_is_too_long() {
    let all: Vec<String> =
        sources().iter().filter_map(|(file, text)| too_long(file, text.lines().count())).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
    assert!(too_long("api-server/src/x.rs", 501).is_some() && too_long("tests/tests/x.rs", 501).is_none());
}

#[test]
fn every_dependency_may_be_used() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // What other systems need is not downloaded, and not built.
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo lists our dependencies");
    let mut bad = Vec::new();
    for package in packages {
        let (name, licence) =
            (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or("none"));
        if !is_allowed(licence) {
            bad.push(format!("{name} is under `{licence}`, which is none of those that we may build on"));
        }
        if NEVER.contains(&name) {
            bad.push(format!(
                "{name} came in: TLS is rustls with ring and nothing else, find who asks for it"
            ));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn licence_expressions_are_read() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "MIT/Apache-2.0",
        "(GPL-2.0 OR MIT) AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "none", "", "(MIT"] {
        assert!(!is_allowed(bad), "{bad}");
    }
}
