//! Who may know whom: reads our own use-lines and manifests, and fails with the sentence that explains the arrow.

mod paths;

use std::path::{Path, PathBuf};

/// Something that must never be.
struct Arrow {
    /// Files that it is about, by their path in the repository.
    from: fn(&str) -> bool,
    /// Paths that they must not name.
    to: fn(&str, &str) -> bool,
    /// Why.
    because: &'static str,
}

const ARROWS: &[Arrow] = &[
    Arrow {
        from: |file| !in_one_of(file, &["api-server/src/store/", "sql/", "tests/"]),
        to: |_, path| begins(path, &["sqlx", "crate::store::db"]),
        because: "only the store knows SQL, so that a database can change without anybody noticing",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/"]) && !file.starts_with("api-server/src/rest/"),
        to: |_, path| {
            begins(path, &["axum", "http", "http_body", "utoipa_swagger_ui", "tower_http", "hyper"])
        },
        because: "only rest knows HTTP and its statuses; everybody else speaks the kernel's words",
    },
    Arrow {
        from: |file| {
            in_one_of(file, &["api-server/src/"])
                && !in_one_of(file, &["api-server/src/app.rs", "api-server/src/app/"])
        },
        to: |_, path| begins(path, &["axum_server", "hyper_util::server"]),
        because: "the App opens the doors, nobody else",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/"]) && !file.starts_with("api-server/src/channel/"),
        to: |_, path| begins(path, &["tonic"]),
        because: "only the channel knows gRPC",
    },
    Arrow {
        from: |file| {
            in_one_of(file, &["node-agent/src/"])
                && !in_one_of(file, &["node-agent/src/link/", "node-agent/src/enroll.rs"])
        },
        to: |_, path| begins(path, &["tonic"]),
        because: "only the agent's link and its joining know gRPC; the rest of the agent must work without a server",
    },
    Arrow {
        from: |file| {
            in_one_of(file, &["api-server/src/"])
                && !in_one_of(file, &["api-server/src/channel/", "api-server/src/resources/"])
        },
        to: |_, path| begins(path, &["rhyzome_proto", "prost"]),
        because: "wire types end at the channel and in the wire section of a kind's file",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/kernel/"]),
        to: |_, path| is_io(path) || (path.starts_with("crate::") && !begins(path, &["crate::kernel"])),
        because: "the kernel is words and pure functions: it reaches nothing and knows nobody",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/limits/"]),
        to: |_, path| path.starts_with("crate::") && !begins(path, &["crate::kernel", "crate::limits"]),
        because: "limits count keys: whose they are, and what is told, is for those who ask",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/resources/"]),
        to: |_, path| {
            is_io(path)
                || (path.starts_with("crate::") && !begins(path, &["crate::kernel", "crate::resources"]))
        },
        because: "a kind is pure: it imports the kernel and its own wire messages, nothing else",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/resources/"]) && !file.ends_with("/resources/mod.rs"),
        to: |file, path| another_below(file, "api-server/src/resources/", path, "crate::resources::"),
        because: "one kind never imports another: what it must know of others arrives as Facts",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/store/"]),
        to: |_, path| {
            let others = ["crate::rest", "crate::jobs", "crate::channel", "crate::auth", "crate::app"];
            begins(path, &others) || begins(path, &["crate::webhooks", "crate::outbound", "crate::sealing"])
        },
        because: "the store is where the others meet; it rings a bell and knows nobody who hears it",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/rest/"]),
        to: |_, path| begins(path, &["crate::jobs", "crate::channel", "crate::app"]),
        because: "rest, jobs and channel never call each other: they meet in the store",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/jobs/"]),
        to: |_, path| begins(path, &["crate::rest", "crate::channel", "crate::auth", "crate::app"]),
        because: "rest, jobs and channel never call each other: they meet in the store",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/channel/"]),
        to: |_, path| begins(path, &["crate::rest", "crate::jobs", "crate::auth", "crate::app"]),
        because: "rest, jobs and channel never call each other: they meet in the store",
    },
    Arrow {
        from: |file| in_one_of(file, &["api-server/src/webhooks/"]),
        to: |_, path| {
            begins(path, &["crate::rest", "crate::jobs", "crate::channel", "crate::auth", "crate::app"])
        },
        because: "webhooks read the log in the store, and know nobody who writes there",
    },
    Arrow {
        from: |file| !in_one_of(file, &["node-agent/", "tests/"]),
        to: |_, path| begins(path, &["rhyzome_agent"]),
        because: "server and agent meet in proto: neither is built from the other",
    },
    Arrow {
        from: |file| !in_one_of(file, &["api-server/", "tests/"]),
        to: |_, path| begins(path, &["rhyzome_api"]),
        because: "server and agent meet in proto, and clients know the document only",
    },
    Arrow {
        from: |file| in_one_of(file, &["node-agent/src/drivers/"]) && !file.ends_with("/drivers/mod.rs"),
        to: |file, path| {
            !begins(path, &["crate::drivers::DriverError"])
                && another_below(file, "node-agent/src/drivers/", path, "crate::drivers::")
        },
        because: "one driver never calls another: what spans them is decided in reconcile",
    },
    Arrow {
        from: |file| in_one_of(file, &["node-agent/src/reconcile/"]),
        to: |_, path| is_io(path) && !begins(path, &["rhyzome_proto"]),
        because: "reconcile is pure, so that every case is a test of milliseconds",
    },
    Arrow {
        from: |file| in_one_of(file, &["pki/"]),
        to: |_, path| begins(path, &["tonic", "axum", "hyper", "tokio"]),
        because: "pki ends at rustls configurations: whoever serves decides with what",
    },
    Arrow {
        from: |file| !may_read_the_environment(file),
        to: |_, path| {
            begins(path, &["std::env::var", "std::env::vars", "std::env::var_os", "std::env::vars_os"])
        },
        because: "the process's environment is read once, at the start, by whoever reads the configuration",
    },
];

/// Of ours, what each crate may depend on.
const MANIFESTS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("pki", &[]),
    ("sql", &[]),
    ("imagefmt", &[]),
    ("openapi", &[]),
    ("cli", &["rhyzome-client"]),
    ("api-server", &["rhyzome-proto", "rhyzome-pki", "rhyzome-sql", "rhyzome-imagefmt"]),
    ("node-agent", &["rhyzome-proto", "rhyzome-pki", "rhyzome-imagefmt"]),
];

/// Third parties that a crate must not even be able to name.
const STRANGERS: &[(&str, &[&str])] = &[
    ("pki", &["tonic", "axum", "hyper-util", "sqlx"]),
    ("node-agent", &["axum", "sqlx", "utoipa", "reqwest"]),
    ("cli", &["axum", "sqlx", "tonic"]),
    ("openapi", &["axum", "sqlx", "tonic"]),
    ("sql", &["axum", "tonic"]),
    ("imagefmt", &["tokio", "axum", "tonic", "sqlx"]),
];

fn in_one_of(file: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| file.starts_with(folder))
}

fn begins(path: &str, fronts: &[&str]) -> bool {
    fronts
        .iter()
        .any(|front| path.strip_prefix(front).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

fn is_io(path: &str) -> bool {
    const IO: [&str; 17] = [
        "tokio",
        "tokio_util",
        "tokio_stream",
        "sqlx",
        "axum",
        "tonic",
        "hyper",
        "reqwest",
        "nix",
        "rtnetlink",
        "rhyzome_pki",
        "rhyzome_imagefmt",
        "std::fs",
        "std::process",
        "std::env",
        "std::time::SystemTime",
        "std::time::Instant",
    ];
    begins(path, &IO)
}

/// `path` leads to another file or folder below `folder` than the one that `file` is in.
fn another_below(file: &str, folder: &str, path: &str, front: &str) -> bool {
    let own = file.strip_prefix(folder).and_then(|rest| rest.split(['/', '.']).next());
    let other = path.strip_prefix(front).and_then(|rest| rest.split("::").next());
    // A capital letter: an item of the folder's own `mod.rs`.
    matches!((own, other), (Some(own), Some(other)) if own != other && other.starts_with(char::is_lowercase))
}

fn may_read_the_environment(file: &str) -> bool {
    let tests = ["tests/", "xtask/", "proto/build.rs"];
    let starts = ["/src/main.rs", "/src/config.rs", "cli/src/settings.rs"];
    in_one_of(file, &tests) || starts.iter().any(|end| file.ends_with(end))
}

/// What is wrong with one file: a sentence for each arrow that must not exist.
fn wrong(file: &str, text: &str) -> Vec<String> {
    let below_src = file.split_once("src/").map_or(file, |(_, below)| below);
    let named = paths::named(text, &paths::module(below_src));
    let arrows = ARROWS.iter().filter(|arrow| (arrow.from)(file));
    let of_arrow = |arrow: &Arrow| {
        let bad = named.iter().filter(|path| (arrow.to)(file, path));
        bad.map(|path| format!("{file} names `{path}`: {}", arrow.because)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = arrows.flat_map(of_arrow).collect();
    all.sort();
    all.dedup();
    all
}

fn wrong_manifest(folder: &str, text: &str) -> Vec<String> {
    let mut section = "";
    let mut all = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if !matches!(section, "[dependencies]" | "[build-dependencies]") || name.is_empty() {
            continue;
        }
        let ours = MANIFESTS.iter().find(|(of, _)| *of == folder);
        if name.starts_with("rhyzome") && ours.is_some_and(|(_, may)| !may.contains(&name)) {
            all.push(format!(
                "{folder}/Cargo.toml has `{name}`: docs/architecture.md says whom {folder} may know"
            ));
        }
        let strangers = STRANGERS.iter().find(|(of, _)| *of == folder);
        if strangers.is_some_and(|(_, never)| never.contains(&name)) {
            all.push(format!("{folder}/Cargo.toml has `{name}`: that is the business of another room"));
        }
    }
    all
}

/// The folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file of ours, by its path in the repository.
pub fn sources() -> Vec<(String, String)> {
    let root = repository();
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("Cargo.toml").exists());
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                all.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(all.len() > 100, "our own files are not found: {}", all.len());
    all
}

/// Unit tests in files of their own.
pub fn is_test(file: &str) -> bool {
    ["/tests/", "/tests.rs", "/testing.rs"].iter().any(|part| file.contains(part))
        || file.starts_with("tests/")
}

#[test]
fn no_arrow_that_must_not_exist() {
    let sources = sources();
    let files = sources.iter().filter(|(file, _)| !is_test(file));
    let mut all: Vec<String> = files.flat_map(|(file, text)| wrong(file, text)).collect();
    for (folder, _) in MANIFESTS {
        let text = std::fs::read_to_string(repository().join(folder).join("Cargo.toml")).unwrap();
        all.extend(wrong_manifest(folder, &text));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_bad_line_is_told_with_its_reason() {
    let cases = [
        ("api-server/src/rest/crud.rs", "use sqlx::query;", "only the store knows SQL"),
        ("api-server/src/jobs/mod.rs", "use axum::http::StatusCode;", "only rest knows HTTP"),
        (
            "api-server/src/jobs/mod.rs",
            "use crate::{kernel::Error, channel::Streams};",
            "they meet in the store",
        ),
        ("api-server/src/store/report.rs", "fn f() { crate::rest::router(); }", "the others meet"),
        ("api-server/src/store/jobs.rs", "use super::super::jobs::run;", "the others meet"),
        ("api-server/src/store/webhooks.rs", "use crate::webhooks::send;", "the others meet"),
        ("api-server/src/webhooks/mod.rs", "use crate::rest::Face;", "webhooks read the log"),
        ("api-server/src/channel/x.rs", "use crate::rest::{self, Ask};", "they meet in the store"),
        ("api-server/src/rest/x.rs", "fn f(s: tonic::Status) {}", "only the channel knows gRPC"),
        ("api-server/src/store/x.rs", "use rhyzome_proto::v1;", "wire types end"),
        ("api-server/src/kernel/x.rs", "use std::{fs, io};", "the kernel is words"),
        ("api-server/src/kernel/x.rs", "use crate::store::Store;", "the kernel is words"),
        ("api-server/src/resources/disk.rs", "use super::image::Image;", "one kind never imports another"),
        ("api-server/src/resources/disk.rs", "use crate::store::Store;", "a kind is pure"),
        ("api-server/src/app.rs", "use rhyzome_agent::agent;", "meet in proto"),
        ("node-agent/src/agent.rs", "use rhyzome_api::app;", "meet in proto"),
        ("node-agent/src/drivers/disk/mod.rs", "use super::image::ImageDriver;", "one driver never calls"),
        ("node-agent/src/drivers/image.rs", "use crate::drivers::disk::Base;", "one driver never calls"),
        ("node-agent/src/reconcile/mod.rs", "use tokio::fs;", "reconcile is pure"),
        ("node-agent/src/owner/mod.rs", "use tonic::Status;", "only the agent's link"),
        ("pki/src/tls.rs", "use tonic::transport;", "pki ends at rustls"),
        ("node-agent/src/owner/mod.rs", "fn f() { std::env::var(\"X\"); }", "is read once, at the start"),
    ];
    for (file, line, because) in cases {
        let said = wrong(file, &format!("//! Words.\n{line}\n")).join("\n");
        assert!(said.contains(file) && said.contains(because), "{file}: {line}: {said:?}");
    }
    let manifest = "[dependencies]\nrhyzome-agent.workspace = true\n";
    assert_eq!(wrong_manifest("api-server", manifest).len(), 1);
    assert_eq!(wrong_manifest("pki", "[dependencies]\ntonic = \"1\"\n").len(), 1);
    assert!(wrong_manifest("pki", "[dev-dependencies]\ntonic = \"1\"\n").is_empty());
}

#[test]
fn what_only_looks_bad_is_left_alone() {
    let cases = [
        ("api-server/src/rest/crud.rs", "// use sqlx::query;\nuse crate::store::{Job, Written};"),
        ("api-server/src/rest/crud.rs", "const A: &str = \"use sqlx::query;\";"),
        ("api-server/src/rest/crud.rs", "const A: &str = r#\"sqlx::\"query\"#;"),
        ("api-server/src/kernel/x.rs", "use std::net::Ipv4Addr;\nuse super::{Error, Facts};"),
        ("api-server/src/kernel/x.rs", "#[cfg(test)]\nmod tests { use std::fs; fn f() { tokio::spawn(); } }"),
        ("api-server/src/resources/instance/plan.rs", "use super::{Instance, validate::range};"),
        ("node-agent/src/drivers/network/links.rs", "use crate::drivers::network::plan::Nic;"),
        ("node-agent/src/node.rs", "const A: &str = std::env::consts::ARCH;"),
    ];
    for (file, text) in cases {
        assert_eq!(wrong(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}
