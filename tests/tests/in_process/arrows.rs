//! The house's arrows: who may know whom. Reads our own use-lines and manifests, and fails with the sentence
//! that explains the arrow.

use std::fs;
use std::path::{Path, PathBuf};

/// In files whose path begins with `within`, no line of code may name any of `never`.
struct Arrow {
    within: &'static str,
    except: &'static [&'static str],
    never: &'static [&'static str],
    because: &'static str,
}

const ARROWS: &[Arrow] = &[
    Arrow {
        within: "api-server/src/kernel",
        except: &[],
        never: &[
            "crate::store",
            "crate::rest",
            "crate::jobs",
            "crate::channel",
            "crate::auth",
            "crate::resources",
            "sqlx",
            "axum",
            "tonic",
            "std::fs",
            "std::net::Tcp",
            "tokio",
        ],
        because: "the kernel is the words of the domain: no I/O, and it knows nobody above it",
    },
    Arrow {
        within: "api-server/src/resources",
        except: &[],
        never: &[
            "crate::store",
            "crate::rest",
            "crate::jobs",
            "crate::channel",
            "crate::auth",
            "sqlx",
            "axum",
            "tonic",
            "std::fs",
            "tokio",
        ],
        because: "a kind is pure: it plans, and others do",
    },
    Arrow {
        within: "api-server/src/store",
        except: &[],
        never: &[
            "crate::rest",
            "crate::jobs",
            "crate::channel",
            "crate::auth",
            "crate::resources",
            "axum",
            "tonic",
            "rhyzome_proto",
        ],
        because: "the store knows nobody above it: they meet in it",
    },
    Arrow {
        within: "api-server/src/rest",
        except: &[],
        never: &["crate::jobs", "crate::channel", "sqlx", "tonic", "rhyzome_proto"],
        because: "rest, jobs and channel meet in the store, and only there",
    },
    Arrow {
        within: "api-server/src/jobs",
        except: &[],
        never: &["crate::rest", "crate::channel", "crate::auth", "sqlx", "axum", "tonic", "rhyzome_proto"],
        because: "rest, jobs and channel meet in the store, and only there",
    },
    Arrow {
        within: "api-server/src/channel",
        except: &[],
        never: &["crate::rest", "crate::jobs", "crate::auth", "sqlx", "axum"],
        because: "rest, jobs and channel meet in the store, and only there",
    },
    Arrow {
        within: "api-server/src",
        except: &["api-server/src/store"],
        never: &["sqlx::"],
        because: "only the store knows SQL",
    },
    Arrow {
        within: "api-server/src",
        except: &["api-server/src/rest"],
        never: &["axum::", "StatusCode"],
        because: "only rest knows HTTP",
    },
    Arrow {
        within: "api-server/src",
        except: &["api-server/src/main.rs"],
        never: &["std::env::var"],
        because: "the environment is read once, at the start",
    },
    Arrow {
        within: "api-server",
        except: &[],
        never: &["rhyzome_agent", "rhyzome-agent.workspace"],
        because: "server and agent meet in proto, and only there",
    },
    Arrow {
        within: "node-agent",
        except: &[],
        never: &["rhyzome_api", "rhyzome-api.workspace"],
        because: "server and agent meet in proto, and only there",
    },
    Arrow {
        within: "pki",
        except: &[],
        never: &["tonic", "axum", "tokio::net"],
        because: "certificates know neither gRPC nor HTTP",
    },
    Arrow {
        within: "proto",
        except: &[],
        never: &["rhyzome_pki", "rhyzome_api", "rhyzome_agent", "rhyzome_sql"],
        because: "the language depends on nothing of ours",
    },
    Arrow {
        within: "node-agent/src/reconcile",
        except: &[],
        never: &["std::fs", "tokio", "rtnetlink", "std::process"],
        because: "deciding is pure; acting is dull",
    },
    Arrow {
        within: "cli",
        except: &[],
        never: &["rhyzome_api", "rhyzome_proto", "rhyzome-api.workspace"],
        because: "the command line is a client like any other",
    },
];

/// The drivers of the agent: none knows another.
const DRIVERS: [&str; 4] = ["instance", "disk", "network", "image"];

#[test]
fn no_arrow_points_where_it_must_not() {
    let root = root();
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let path = file.strip_prefix(&root).unwrap().display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        for arrow in ARROWS {
            let inside = path.starts_with(&format!("{}/", arrow.within));
            if inside && !arrow.except.iter().any(|except| path.starts_with(except)) {
                wrong.extend(offences(&path, &text, arrow.never, arrow.because));
            }
        }
        for driver in DRIVERS {
            if path.starts_with(&format!("node-agent/src/drivers/{driver}")) {
                let others: Vec<String> = DRIVERS
                    .iter()
                    .filter(|other| **other != driver)
                    .map(|other| format!("drivers::{other}"))
                    .collect();
                let others: Vec<&str> = others.iter().map(String::as_str).collect();
                wrong.extend(offences(&path, &text, &others, "drivers never call each other"));
            }
        }
        if let Some(kind) = path.strip_prefix("api-server/src/resources/")
            && kind != "mod.rs"
            && !kind.starts_with("testing")
        {
            let own = kind.split(['/', '.']).next().unwrap_or_default().to_owned();
            let kinds = [
                "tenant",
                "node",
                "machine_type",
                "storage_pool",
                "image",
                "network",
                "disk",
                "instance",
                "ssh_key",
            ];
            let others: Vec<String> =
                kinds.iter().filter(|kind| **kind != own).map(|kind| format!("resources::{kind}")).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            wrong.extend(offences(
                &path,
                &text,
                &others,
                "one kind never knows another: what it must know arrives as facts",
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_offence_is_seen_and_explained() {
    let text = "//! sqlx in a comment is fine\nuse sqlx::query;\n";
    let found = offences("x.rs", text, &["sqlx"], "only the store knows SQL");
    assert_eq!(found, ["x.rs:2 names `sqlx`: only the store knows SQL"]);
}

#[test]
fn files_have_a_size_at_which_they_are_split() {
    let root = root();
    let mut large = Vec::new();
    for file in sources(&root).into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let path = file.strip_prefix(&root).unwrap().display().to_string();
        let most = if path.contains("tests") { 800 } else { 500 };
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        if lines > most {
            large.push(format!("{path} has {lines} lines; split it at {most}"));
        }
    }
    assert!(large.is_empty(), "{}", large.join("\n"));
}

/// Lines of code that name what they must not. Comments may name anybody.
fn offences(path: &str, text: &str, never: &[&str], because: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if path.ends_with(".toml") && line.starts_with("description") {
            continue;
        }
        for name in never.iter().filter(|name| names(code, name)) {
            found.push(format!("{path}:{} names `{name}`: {because}", index + 1));
        }
    }
    found
}

/// True if `name` stands in the code as a word of its own (its end may go on when it ends in punctuation).
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back().is_some_and(word);
        let after = name.ends_with(word) && code[at + name.len()..].starts_with(word);
        !before && !after && !code[..at].contains('"')
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All of our Rust files and manifests.
fn sources(root: &Path) -> Vec<PathBuf> {
    let members =
        ["proto", "pki", "sql", "imagefmt", "api-server", "node-agent", "openapi", "cli", "tests", "xtask"];
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = members.iter().map(|member| root.join(member)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") || path.ends_with("Cargo.toml") {
                found.push(path);
            }
        }
    }
    found
}
